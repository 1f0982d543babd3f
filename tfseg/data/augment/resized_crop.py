"""The resized crop: a part of the image of random area and shape, resized to one size.

`draw` makes the decisions of one example from a NumPy generator; `apply` carries them out, and is
otherwise a pure function of arrays. Images stay uint8, for colours and resizing are Pillow's: its
cubic kernel widens when it shrinks, and rounds. TensorFlow has neither, so the pipeline calls
`apply` from a `tf.numpy_function`; what takes time in it releases the interpreter.

Source: SLRNet specification 2.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from tfseg.data import colors, pixels, resampling
from tfseg.data.augment.base import Context, numpy_views
from tfseg.errors import UserError
from tfseg.settings.data import DataConfig

# Ranges of the published jitter: factors of 1 - x to 1 + x; hues turned by -x to x full circles.
_FACTOR, _HUE = 0.3, 0.1
_TRIES = 10
# Width to height, drawn evenly on a logarithmic scale.
_ASPECT_RATIOS = (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class ResizedCropDraws:
    """The random decisions for one example.

    Attributes:
      box: top, left, height and width of the crop, in pixels of the image.
      flip: whether it is mirrored left and right.
      colors: (name, parameter) of each colour operation, in their order.
    """

    box: tuple[int, int, int, int]
    flip: bool
    colors: tuple[tuple[str, float], ...]


def _draw_box(
    rng: np.random.Generator, size: tuple[int, int], area: Sequence[float]
) -> tuple[int, int, int, int]:
    height, width = size
    for _ in range(_TRIES):
        pixels = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(*np.log(_ASPECT_RATIOS)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = rng.integers(height - h, endpoint=True)
            return int(top), int(rng.integers(width - w, endpoint=True)), h, w
    return _central_box(height, width)


def _central_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Returns the largest box in the middle whose shape is allowed."""
    narrowest, widest = _ASPECT_RATIOS
    h, w = height, width
    if width < narrowest * height:
        h = max(1, round(width / narrowest))
    elif width > widest * height:
        w = max(1, round(height * widest))
    return (height - h) // 2, (width - w) // 2, h, w


def draw(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    area: Sequence[float] = (0.9, 1.0),
    flip_probability: float = 0.5,
    jitter_strength: float = 1.0,
) -> ResizedCropDraws:
    """Makes the decisions of one example.

    A crop has a random share of the area and a random shape; after ten that did not fit into the
    image it is the largest in the middle whose shape is allowed.

    Args:
      rng: the only source of chance.
      size: height and width of the image.
      area: smallest and largest share of the image's area.
      flip_probability: of mirroring left and right.
      jitter_strength: factor on the ranges of the colour jitter, in [0, 1].

    Source: SLRNet specification 2; the defaults are the published ones.
    """
    box = _draw_box(rng, size, area)
    flip = bool(rng.random() < flip_probability)
    jitter = colors.draw_jitter(rng, factor=_FACTOR, hue=_HUE, strength=jitter_strength)
    return ResizedCropDraws(box, flip, jitter)


def apply(
    image: np.ndarray,
    label: np.ndarray | None,
    draws: ResizedCropDraws,
    *,
    crop_size: Sequence[int],
) -> dict[str, np.ndarray]:
    """Augments one example.

    Args:
      image: uint8 [H, W, 3], RGB; stays as it is.
      label: uint8 [H, W]; None: no label map is returned.
      draws: the random decisions.
      crop_size: height and width of the result.

    Returns:
      'image' uint8 [h, w, 3]; 'valid' bool [h, w], true throughout; and 'label' uint8 [h, w] with
      values of `label` only.
    """
    top, left, height, width = draws.box
    # Cut first: nothing outside the crop has a share in its edge.
    box = slice(top, top + height), slice(left, left + width)

    def mirrored(x: np.ndarray) -> np.ndarray:
        return cv2.flip(x, 1) if draws.flip else x

    window = [slice(0, side) for side in crop_size]
    resized = resampling.resized_window(image[box], crop_size, window, Image.Resampling.BICUBIC)
    picture = Image.fromarray(mirrored(resized))
    for name, parameter in draws.colors:
        picture = colors.adjusted(picture, name, parameter)
    views = {"image": np.asarray(picture), "valid": np.ones(tuple(crop_size), np.bool_)}
    if label is not None:
        part = np.ascontiguousarray(label[box])
        views["label"] = mirrored(pixels.resize_label(part, crop_size))
    return views


def make_views(config: DataConfig, context: Context) -> Callable[..., dict[str, tf.Tensor]]:
    """See `augment.make_views`.

    Raises:
      UserError: --crop_area is no range of shares.
    """
    area = tuple(config.augmentation_settings.crop_area)
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise UserError(
            "The random areas of the crop are wrong.",
            where="--crop_area",
            received=",".join(map(str, area)),
            accepted="smallest,largest share of the image's area, above 0 and up to 1",
        )

    def made(rng, image, label):
        draws = draw(
            rng,
            image.shape[:2],
            area=area,
            flip_probability=config.flip_probability,
            jitter_strength=config.jitter_strength,
        )
        return apply(image, label, draws, crop_size=config.train_crop_size)

    return numpy_views(made, config.train_crop_size, context, image_type=tf.uint8)
