"""Images that are decoded while others are predicted."""

import collections
import threading
from collections.abc import Iterable, Iterator

import numpy as np

from tfseg.errors import UserError
from tfseg.inference.decoding import decode_file
from tfseg.inference.images.finding import ImageFile

# Decoded images that wait hold at most so many pixels, or are one.
_MAX_WAITING_PIXELS = 32_000_000


def decoded_ahead(
    images: Iterable[ImageFile], *, max_megapixels: float
) -> Iterator[tuple[ImageFile, np.ndarray | UserError]]:
    """Yields images with their pixels, or with what is wrong with the file.

    A thread decodes ahead of the caller. Besides the images that wait, one is being decoded.

    Args:
      images: the files.
      max_megapixels: see `decode_file`.

    Yields:
      (file, uint8 [H, W, 3] or an error).
    """
    waiting: collections.deque = collections.deque()
    changed, stopped = threading.Condition(), threading.Event()

    def pixels_waiting() -> int:
        return sum(_pixels(item) for item in waiting)

    def put(item: object) -> bool:
        with changed:
            changed.wait_for(
                lambda: (
                    stopped.is_set()
                    or not waiting
                    or pixels_waiting() + _pixels(item) <= _MAX_WAITING_PIXELS
                )
            )
            waiting.append(item)
            changed.notify_all()
        return not stopped.is_set()

    def work() -> None:
        try:
            for image in images:
                try:
                    found = decode_file(image.path, max_megapixels=max_megapixels)
                except UserError as error:
                    found = error
                if not put((image, found)):
                    return
                # Not kept while the next one is decoded.
                del found
            put(None)
        except BaseException as error:  # raised where the images are taken
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting)
                item = waiting.popleft()
                changed.notify_all()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
            del item
    finally:
        stopped.set()
        with changed:
            changed.notify_all()
        thread.join()


def _pixels(item: object) -> int:
    if isinstance(item, tuple) and isinstance(item[1], np.ndarray):
        return item[1].shape[0] * item[1].shape[1]
    return 0
