"""The short-side crop: an image scaled by its shorter side, padded, cropped and perhaps blurred.

`draw` makes the decisions of one example from a NumPy generator; `apply` carries them out, and is
otherwise a pure function of arrays. Resizing and blur are Pillow's.

Source: ZS3 specification 2.6.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from tfseg.data import colors, resampling
from tfseg.data.augment.base import Context, numpy_views, padding_of, scale_range_of
from tfseg.settings.data import DataConfig

_BLUR_PROBABILITY = 0.5


@dataclasses.dataclass(frozen=True)
class ShortSideCropDraws:
    """The random decisions for one example.

    Attributes:
      flip: whether the image is mirrored left and right, before all else.
      short_side: its shorter side in pixels after scaling.
      position: top and left of the crop, in pixels of the scaled image.
      blur: standard deviation of the Gaussian blur in pixels; None: none.
    """

    flip: bool
    short_side: int
    position: tuple[int, int]
    blur: float | None


def scaled_size(size: Sequence[int], short_side: int) -> tuple[int, int]:
    """Returns height and width of an image whose shorter side becomes `short_side`, at least 1."""
    height, width = size
    if height > width:
        return max(1, height * short_side // width), short_side
    return short_side, max(1, width * short_side // height)


def draw(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    crop_size: Sequence[int],
    base_size: int,
    scale_range: Sequence[float] = (0.5, 2.0),
    flip_probability: float = 0.5,
    max_pixels: float = math.inf,
) -> ShortSideCropDraws:
    """Makes the decisions of one example.

    Args:
      rng: the only source of chance.
      size: height and width of the image.
      crop_size: height and width of the crop.
      base_size: pixels; the shorter side becomes this times a factor.
      scale_range: smallest and largest such factor.
      flip_probability: of mirroring left and right.
      max_pixels: the side is taken smaller where the scaled image had more; at least the image's.

    Source: ZS3 specification 2.6; the limit is ours, for images that are very long.
    """
    flip = bool(rng.random() < flip_probability)
    low, high = (max(1, int(base_size * factor)) for factor in scale_range)
    side = int(rng.integers(low, high, endpoint=True))
    enlargement = max(1.0, math.sqrt(max_pixels / (size[0] * size[1])))
    side = int(min(side, enlargement * min(size)))
    scaled = scaled_size(size, side)
    top, left = (
        int(rng.integers(max(side, crop) - crop, endpoint=True))
        for side, crop in zip(scaled, crop_size)
    )
    blur = float(rng.random()) if rng.random() < _BLUR_PROBABILITY else None
    return ShortSideCropDraws(flip, side, (top, left), blur)


def apply(
    image: np.ndarray,
    label: np.ndarray | None,
    draws: ShortSideCropDraws,
    *,
    crop_size: Sequence[int],
    padding_color: Sequence[float],
    ignore_label: int,
) -> dict[str, np.ndarray]:
    """Augments one example.

    Args:
      image: uint8 [H, W, 3], RGB; stays as it is.
      label: uint8 [H, W]; None: no label map is returned.
      draws: the random decisions.
      crop_size: height and width of the result; smaller images are padded below and on the right.
      padding_color: RGB 0..255, rounded, for the blur works on bytes; published: black.
      ignore_label: fills the label map there.

    Returns:
      'image' uint8 [h, w, 3]; 'valid' bool [h, w], true where there is an image and false in the
      padding; and 'label' uint8 [h, w] with values of `label` and `ignore_label` only.

    Source: ZS3 specification 2.6.
    """
    if draws.flip:
        image, label = cv2.flip(image, 1), None if label is None else cv2.flip(label, 1)
    views = resampling.scaled_crop(
        image,
        label,
        sizes=[scaled_size(image.shape[:2], draws.short_side)],
        position=draws.position,
        crop_size=crop_size,
        padding_color=np.rint(padding_color).astype(np.uint8),
        ignore_label=ignore_label,
    )
    blurred = colors.blurred(Image.fromarray(views["image"]), draws.blur)
    return views | {"image": np.asarray(blurred)}


def make_views(config: DataConfig, context: Context) -> Callable[..., dict[str, tf.Tensor]]:
    """See `augment.make_views`."""
    settings = config.augmentation_settings
    scale_range = scale_range_of(settings)
    crop_size = tuple(config.train_crop_size)
    filling = padding_of(settings, context)

    def made(rng, image, label):
        draws = draw(
            rng,
            image.shape[:2],
            crop_size=crop_size,
            base_size=settings.augmentation_size or min(crop_size),
            scale_range=scale_range,
            flip_probability=config.flip_probability,
            max_pixels=config.max_image_megapixels * 1e6,
        )
        return apply(image, label, draws, crop_size=crop_size, **filling)

    return numpy_views(made, crop_size, context, image_type=tf.uint8)
