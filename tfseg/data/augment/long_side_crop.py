"""The long-side crop: an image scaled by its longer side, padded, cropped and mirrored.

Its strong views are the same crop with other colours: jitter, sometimes grey, sometimes blurred.
`draw` makes the decisions of one example from a NumPy generator; `apply` carries them out, and is
otherwise a pure function of arrays. Resizing, colours and blur are Pillow's, on bytes.

Source: UniMatch specification 2.2 and 2.3.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from tfseg.data import colors, resampling
from tfseg.data.augment.base import Context, numpy_views, padding_of, scale_range_of
from tfseg.data.stream import strong_keys
from tfseg.settings.data import DataConfig

MAKES_STRONG_VIEWS = True

_JITTER_PROBABILITY, _GREY_PROBABILITY, _BLUR_PROBABILITY = 0.8, 0.2, 0.5
# Factors of 1 - x to 1 + x; hues turned by -x to x full circles.
_FACTOR, _HUE = 0.5, 0.25
# Standard deviations of the blur, in pixels.
_BLUR = (0.1, 2.0)


@dataclasses.dataclass(frozen=True)
class StrongDraws:
    """The random decisions for one strong view.

    Attributes:
      colors: (name, parameter) of each colour operation, in their order; none: no jitter.
      grey: whether it loses its colours.
      blur: standard deviation of the Gaussian blur in pixels; None: none.
    """

    colors: tuple[tuple[str, float], ...]
    grey: bool
    blur: float | None


@dataclasses.dataclass(frozen=True)
class LongSideCropDraws:
    """The random decisions for one example.

    Attributes:
      long_side: longer side of the image in pixels after scaling.
      position: top and left of the crop, in pixels of the scaled image.
      flip: whether the crop is mirrored left and right.
      strong: of each strong view.
    """

    long_side: int
    position: tuple[int, int]
    flip: bool
    strong: tuple[StrongDraws, ...] = ()


def scaled_size(size: Sequence[int], long_side: int) -> tuple[int, int]:
    """Returns height and width of an image whose longer side becomes `long_side`, at least 1."""
    longest = max(size)
    height, width = (max(1, int(side * long_side / longest + 0.5)) for side in size)
    return height, width


def draw(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    crop_size: Sequence[int],
    strong_views: int = 0,
    scale_range: Sequence[float] = (0.5, 2.0),
    flip_probability: float = 0.5,
    jitter_strength: float = 1.0,
) -> LongSideCropDraws:
    """Makes the decisions of one example.

    Args:
      rng: the only source of chance.
      size: height and width of the image.
      crop_size: height and width of the crop.
      strong_views: how many there are.
      scale_range: smallest and largest factor on the longer side.
      flip_probability: of mirroring left and right.
      jitter_strength: factor on the ranges of the colour jitter, in [0, 1].
    """
    low, high = (max(1, int(max(size) * factor)) for factor in scale_range)
    long_side = int(rng.integers(low, high, endpoint=True))
    top, left = (
        int(rng.integers(max(side, crop) - crop, endpoint=True))
        for side, crop in zip(scaled_size(size, long_side), crop_size)
    )
    flip = bool(rng.random() < flip_probability)
    strong = tuple(_draw_strong(rng, jitter_strength) for _ in range(strong_views))
    return LongSideCropDraws(long_side, (top, left), flip, strong)


def _draw_strong(rng: np.random.Generator, jitter_strength: float) -> StrongDraws:
    jittered = ()
    if rng.random() < _JITTER_PROBABILITY:
        jittered = colors.draw_jitter(rng, factor=_FACTOR, hue=_HUE, strength=jitter_strength)
    is_grey = bool(rng.random() < _GREY_PROBABILITY)
    blur = float(rng.uniform(*_BLUR)) if rng.random() < _BLUR_PROBABILITY else None
    return StrongDraws(jittered, is_grey, blur)


def strong_view(image: Image.Image, draws: StrongDraws) -> Image.Image:
    """Returns a crop with other colours: jitter, then grey, then blur."""
    for name, parameter in draws.colors:
        image = colors.adjusted(image, name, parameter)
    if draws.grey:
        image = colors.grey(image)
    return colors.blurred(image, draws.blur)


def apply(
    image: np.ndarray,
    label: np.ndarray | None,
    draws: LongSideCropDraws,
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
      padding_color: RGB 0..255, rounded; published: black.
      ignore_label: fills the label map there.

    Returns:
      'image' uint8 [h, w, 3]; the strong views likewise, by `stream.strong_keys`; 'valid' bool
      [h, w], true where there is an image and false in the padding; and 'label' uint8 [h, w] with
      values of `label` and `ignore_label` only.
    """
    views = resampling.scaled_crop(
        image,
        label,
        sizes=[scaled_size(image.shape[:2], draws.long_side)],
        position=draws.position,
        crop_size=crop_size,
        padding_color=np.rint(padding_color).astype(np.uint8),
        ignore_label=ignore_label,
    )
    if draws.flip:
        views = resampling.mirrored(views)
    crop = Image.fromarray(views["image"])
    for key, strong in zip(strong_keys(len(draws.strong)), draws.strong):
        views[key] = np.asarray(strong_view(crop, strong))
    return views


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
            strong_views=context.strong_views,
            scale_range=scale_range,
            flip_probability=config.flip_probability,
            jitter_strength=config.jitter_strength,
        )
        return apply(image, label, draws, crop_size=crop_size, **filling)

    return numpy_views(made, crop_size, context, image_type=tf.uint8)
