"""What a person sees of a training run: a bar on a terminal, plain lines elsewhere, a log file."""

import datetime
import json
import os
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from tfseg.data.atomic_writing import write_atomically
from tfseg.errors import naming_file


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


def _rounded(value: float, digits: int) -> str:
    """Returns a number with so many digits after the point; one that rounds to 0 has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _is_after(line: str, step: int) -> bool:
    """Whether a line is an entry of a later step; what is no entry of ours is none."""
    try:
        return json.loads(line)["step"] > step
    except (ValueError, RecursionError, LookupError, TypeError):
        return False


def _forget_after(log_path: str, step: int) -> None:
    """Drops log entries of steps that a killed run did but could not save."""
    with open(log_path, encoding="utf-8", errors="surrogateescape") as file:
        kept = [line for line in file if line.endswith("\n") and not _is_after(line, step)]
    write_atomically(log_path, "".join(kept).encode(errors="surrogateescape"))


class Progress:
    """Reports steps, losses, rate and time left.

    Args:
      total_steps: steps of the whole run.
      start_step: steps that an earlier run has done.
      images_per_step: images of all streams in one step.
      log_path: JSON-lines file; one object per report, appended to.
    """

    def __init__(
        self, *, total_steps: int, start_step: int, images_per_step: int, log_path: str | None
    ):
        self.total_steps = total_steps
        self.images_per_step = images_per_step
        self._log_path = log_path
        if log_path and os.path.exists(log_path):
            _forget_after(log_path, start_step)
        self._last = (time.monotonic(), start_step)
        self._seconds_per_step: float | None = None
        self._bar = (
            tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def report(
        self,
        step: int,
        losses: Mapping[str, float],
        rate: float,
        figures: Mapping[str, float] | None = None,
    ) -> float:
        """Shows one interval; returns its images per second.

        Args:
          step: steps done so far.
          losses: mean of each loss over the interval.
          rate: current learning rate, without factors of parameter groups.
          figures: of the method's monitors, over the interval.
        """
        figures = figures or {}
        now = time.monotonic()
        then, step_then = self._last
        self._last = (now, step)
        seconds = (now - then) / max(1, step - step_then)
        # The first interval holds tracing and compilation; later ones are averaged smoothly.
        previous = self._seconds_per_step
        self._seconds_per_step = seconds if previous is None else 0.7 * previous + 0.3 * seconds
        images = self.images_per_step / max(seconds, 1e-9)
        left = _duration(self._seconds_per_step * (self.total_steps - step))
        losses = {name: value + 0.0 for name, value in losses.items()}  # No -0.0.
        total = sum(losses.values())
        loss = f"loss {_rounded(total, 4)}"
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"{loss}, {images:.1f} images/s, left {left}")
        else:
            parts = ", ".join(f"{name} {_rounded(value, 4)}" for name, value in losses.items())
            print(
                f"step {step}/{self.total_steps}: {loss} ({parts}), rate {rate:.3g}, "
                f"{images:.1f} images/s, {left} left",
                flush=True,
            )
            if figures:
                values = ", ".join(
                    f"{name} {_rounded(value, 3)}" for name, value in figures.items()
                )
                print(f"  monitors: {values}", flush=True)
        if self._log_path:
            entry = {"step": step, "loss": total, **losses, "learning_rate": rate}
            if figures:
                entry["monitors"] = dict(figures)
            entry["images_per_second"] = round(images, 3)
            with naming_file(self._log_path), open(self._log_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        return images

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
