"""Windows of Pillow's resize, to the same bytes, without what lies outside of them.

Pillow resizes bytes along the rows first and then along the columns. (Pillow 13 turns that round
where it is less work. Bytes then differ by 1, behind the cubic kernel by more, for values are cut
off at 0 and 255 in between. Here the order stays, whatever version is installed.)
In each direction a pixel is a weighted sum in whole numbers, of weights in units of 2^-22, rounded
to a byte. So a direction is the product of a sparse integer matrix and the image, and a window is
that of some of the matrix's rows. (Pillow's own `box` is in float32, which gives other weights.)
SciPy's product takes less than half of Pillow's time for a pixel, and releases the interpreter.

Source: `precompute_coeffs` and `ImagingResample*_8bpc` of Pillow's src/libImaging/Resample.c.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy import sparse

from tfseg.data import pixels

_DIGITS = 22
# Numbers that are multiplied at a time: int32, so as many as a core's cache has room for.
_AT_A_TIME = 2**18


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2, in Pillow's order of operations."""
    a, x = -0.5, np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


# Kernel, and how far it reaches.
_KERNELS: dict[Image.Resampling, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    Image.Resampling.BILINEAR: (_triangle, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
}


class Axis(NamedTuple):
    """How pixels of one direction are made.

    Attributes:
      weights: int32 [made, needed], in units of 2^-22.
      needed: the pixels that have a share in them.
    """

    weights: sparse.csr_array
    needed: slice


def axis(side: int, scaled: int, window: slice, kernel: Image.Resampling) -> Axis:
    """Returns how a window is made along one direction.

    Args:
      side: pixels of the image.
      scaled: pixels of the image after resizing.
      window: which of these are made; at least one.
      kernel: BILINEAR or BICUBIC.
    """
    function, reach = _KERNELS[kernel]
    scale = side / scaled
    width = max(scale, 1.0)
    reach *= width
    center = (np.arange(window.start, window.stop)[:, None] + 0.5) * scale
    # Truncated towards 0, and not rounded down.
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), side)
    pixel = first + np.arange((last - first).max())
    inside = pixel < last
    share = np.where(inside, function((pixel - center + 0.5) * (1.0 / width)), 0.0)
    # Added up one by one: other orders may round otherwise.
    share /= np.cumsum(share, axis=1)[:, -1:]
    whole = np.trunc(share * 2**_DIGITS + np.copysign(0.5, share)).astype(np.int32)
    needed = slice(int(first.min()), int(last.max()))
    ends = np.concatenate([[0], np.cumsum(inside.sum(1))])
    weights = sparse.csr_array(
        (whole[inside], (pixel[inside] - needed.start).astype(np.int32), ends.astype(np.int32)),
        shape=(len(pixel), needed.stop - needed.start),
    )
    return Axis(weights, needed)


def _product(weights: sparse.csr_array, x: np.ndarray) -> np.ndarray:
    """Returns weighted sums of the rows of uint8 [needed, ...], rounded to uint8 [made, ...]."""
    rows = x.reshape(x.shape[0], -1)
    made = np.empty((weights.shape[0], rows.shape[1]), np.uint8)
    step = max(1, _AT_A_TIME // max(weights.shape))
    for i in range(0, rows.shape[1], step):
        sums = weights @ rows[:, i : i + step].astype(np.int32)
        sums += 1 << (_DIGITS - 1)
        sums >>= _DIGITS
        made[:, i : i + step] = np.clip(sums, 0, 255, out=sums)
    return made.reshape(-1, *x.shape[1:])


def resampled(part: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """Makes a window from the part of an image that it needs.

    Args:
      part: uint8 [needed height, needed width, 3].
      rows, columns: of `axis`.

    Returns:
      uint8 [height, width, 3].
    """
    wide = cv2.transpose(_product(columns.weights, cv2.transpose(part)))
    return _product(rows.weights, wide)


def resized_window(
    image: np.ndarray, size: Sequence[int], window: Sequence[slice], kernel: Image.Resampling
) -> np.ndarray:
    """Returns a window of an image after resizing.

    Args:
      image: uint8 [H, W, 3].
      size: height and width of the whole result in pixels.
      window: rows and columns of it, at least one of each.
      kernel: BILINEAR or BICUBIC.

    Returns:
      uint8 [height, width, 3], what `Image.resize` has there.
    """
    rows, columns = (axis(*sides, kernel) for sides in zip(image.shape, size, window))
    return resampled(image[rows.needed, columns.needed], rows, columns)


def mirrored(views: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays [H, W] or [H, W, channels] mirrored left and right, by the same names."""
    # OpenCV takes a thirtieth of NumPy's time, but knows no bool.
    return {
        name: np.ascontiguousarray(x[:, ::-1]) if x.dtype == np.bool_ else cv2.flip(x, 1)
        for name, x in views.items()
    }


def _shown(position: int, crop: int, side: int) -> slice:
    """Returns which pixels of a side a crop shows; one that it does not show where it has none."""
    start = min(max(0, position), side - 1)
    return slice(start, max(start + 1, min(side, position + crop)))


def scaled_crop(
    image: np.ndarray,
    label: np.ndarray | None,
    *,
    sizes: Sequence[Sequence[int]],
    position: Sequence[int],
    crop_size: Sequence[int],
    padding_color: np.ndarray,
    ignore_label: int,
) -> dict[str, np.ndarray]:
    """Resizes an image and its label map, once or several times, and cuts a crop out.

    Images by Pillow's bilinear kernel, with whole grey levels between; labels to its nearest pixel.

    Args:
      image: uint8 [H, W, 3].
      label: uint8 [H, W]; None: no label map is returned.
      sizes: height and width in pixels after each resize.
      position: row and column of the last size at which the crop begins; may lie outside.
      crop_size: its height and width.
      padding_color: RGB, uint8 or float32 [3]; fills the crop outside of the image.
      ignore_label: fills the label map there.

    Returns:
      'image' [h, w, 3] of `padding_color`'s dtype; 'valid' bool [h, w], true where there is an
      image; and 'label' uint8 [h, w].
    """
    window = [_shown(*sides) for sides in zip(position, crop_size, sizes[-1])]
    corner = [at - shown.start for at, shown in zip(position, window)]
    pixel = [np.arange(shown.start, shown.stop) for shown in window]
    steps: list[list[Axis]] = []
    for before, after in zip([*sizes[-2::-1], image.shape[:2]], reversed(sizes)):
        kernel = Image.Resampling.BILINEAR
        steps.append([axis(*sides, kernel) for sides in zip(before, after, window)])
        window = [direction.needed for direction in steps[-1]]
        pixel = [pixels.nearest_positions(b, a)[i] for b, a, i in zip(before, after, pixel)]
    part = image[tuple(window)]
    for rows, columns in reversed(steps):
        part = resampled(part, rows, columns)

    def placed(x: np.ndarray, filling: int | np.ndarray) -> np.ndarray:
        return pixels.window(x, corner, crop_size, filling=filling)

    views = {
        "image": placed(part.astype(padding_color.dtype, copy=False), padding_color),
        "valid": placed(np.ones(part.shape[:2], np.bool_), False),
    }
    if label is not None:
        views["label"] = placed(label[np.ix_(*pixel)], ignore_label)
    return views
