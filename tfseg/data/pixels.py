"""Pillow's resizing, and padding: what the augmentations on arrays share.

Pillow's bilinear and cubic kernels widen when they shrink, and its results are rounded to bytes
after each direction; TensorFlow has neither. Its nearest pixel is its own too.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def resize_image(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes uint8 [H, W, 3] by Pillow's bilinear kernel; size: height and width in pixels."""
    return _resized(image, size, Image.Resampling.BILINEAR)


def resize_label(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes uint8 [H, W] to Pillow's nearest pixels; size: height and width in pixels."""
    return _resized(label, size, Image.Resampling.NEAREST)


def _resized(x: np.ndarray, size: Sequence[int], kernel: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(x).resize((size[1], size[0]), kernel))


def nearest_positions(in_size: int, out_size: int) -> np.ndarray:
    """Returns the samples, int64 [out_size], that Pillow's nearest resize takes of one axis.

    It adds up the positions one by one in double precision; where one is a whole number, only the
    same sum gives the same sample.
    """
    step = in_size / out_size
    steps = np.full(out_size, step)
    steps[0] = 0.5 * step
    return np.minimum(np.cumsum(steps).astype(np.int64), in_size - 1)


def window(
    x: np.ndarray,
    position: Sequence[int],
    size: Sequence[int],
    *,
    filling: float | Sequence[float],
    dtype: type[np.generic] | None = None,
) -> np.ndarray:
    """Cuts a window out of an array that goes on for ever, filled with one value outside.

    Args:
      x: [H, W] or [H, W, channels].
      position: row and column of `x` at which the window begins; may lie outside.
      size: height and width of the window.
      filling: a number, or one for each channel; of a kind that the result can hold.
      dtype: of the result; None: that of `x`.

    Returns:
      [height, width, ...].
    """
    result = np.empty((*size, *x.shape[2:]), x.dtype if dtype is None else dtype)
    begin = [max(0, -start) for start in position]
    end = [min(n, side - start) for n, side, start in zip(size, x.shape, position)]
    if max(begin) > 0 or end != list(size):
        # Row by row: to assign colours pixel by pixel takes ten times as long.
        result[...] = np.full(result.shape[1:], filling, result.dtype)
    if end[0] > begin[0] and end[1] > begin[1]:
        inside = tuple(slice(a, b) for a, b in zip(begin, end))
        source = tuple(slice(a + p, b + p) for a, b, p in zip(begin, end, position))
        result[inside] = x[source]
    return result
