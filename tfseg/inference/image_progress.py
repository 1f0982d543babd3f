"""Progress of work on many images."""

import datetime
import sys
import time
from typing import Any

from tqdm import tqdm

# Seconds between progress lines where there is no terminal.
_LINE_INTERVAL_SECS = 10.0


class ImageProgress:
    """Shows how many images are done: a bar on a terminal, now and then a line elsewhere.

    Args:
      what: first words of the line, such as 'evaluating val'.
      total: images in all.
    """

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._start = self._last_line = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, desc=what, unit="image", dynamic_ncols=True) if is_terminal else None
        )

    def add(self, images: int) -> None:
        """Counts images that are done."""
        self._done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(images)
        elif now - self._last_line > _LINE_INTERVAL_SECS and self._done < self._total:
            self._last_line = now
            rate = self._done / (now - self._start)
            left = datetime.timedelta(seconds=int((self._total - self._done) / max(rate, 1e-9)))
            print(
                f"{self._what}: {self._done}/{self._total} images, {rate:.1f} images/s, "
                f"{left} left",
                flush=True,
            )

    def close(self) -> None:
        """Ends the bar, or prints the last line."""
        if self._bar is not None:
            self._bar.close()
        else:
            seconds = time.monotonic() - self._start
            rate = self._done / max(seconds, 1e-9)
            print(
                f"{self._what}: {self._done} images in {seconds:.1f} s, {rate:.1f} images/s",
                flush=True,
            )

    def __enter__(self) -> "ImageProgress":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
