"""The warped crop: an image brought to one size whatever its shape, scaled, padded and cropped.

`draw` makes the decisions of one example from a NumPy generator; `apply` carries them out, and is
otherwise a pure function of arrays. Resizing is Pillow's (`tfseg.data.resampling`).

Source: STRICT specification 2.4.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfseg.data import resampling
from tfseg.data.augment.base import Context, numpy_views, padding_of, scale_range_of
from tfseg.errors import UserError
from tfseg.settings.data import DataConfig

# Sides of the warped image and of the crop, as published.
_PUBLISHED_SIZE, _PUBLISHED_CROP = 513, 321


@dataclasses.dataclass(frozen=True)
class WarpedCropDraws:
    """The random decisions for one example.

    Attributes:
      size: height and width in pixels to which the warped image is scaled.
      position: top and left of the crop, in pixels of the scaled image after its padding.
      flip: whether the crop is mirrored left and right.
    """

    size: tuple[int, int]
    position: tuple[int, int]
    flip: bool


def warped_size(crop_size: Sequence[int], side: int | None = None) -> tuple[int, int]:
    """Returns height and width to which images are warped.

    Args:
      crop_size: height and width of the crop.
      side: both of them; None: as much larger than the crop as published.
    """
    if side is not None:
        return side, side
    return tuple(max(x, round(x * _PUBLISHED_SIZE / _PUBLISHED_CROP)) for x in crop_size)


def draw(
    rng: np.random.Generator,
    *,
    crop_size: Sequence[int],
    size: Sequence[int],
    scale_range: Sequence[float] = (0.5, 1.5),
    flip_probability: float = 0.5,
) -> WarpedCropDraws:
    """Makes the decisions of one example.

    Args:
      rng: the only source of chance.
      crop_size: height and width of the crop.
      size: height and width to which images are warped; nowhere less than the crop's.
      scale_range: smallest and largest factor on `size`.
      flip_probability: of mirroring left and right; published: 0.9 (SPNet: 0.5).

    Source: STRICT specification 2.4.
    """
    factor = rng.uniform(*scale_range)
    scaled = tuple(max(1, round(side * factor)) for side in size)
    position = tuple(
        int(rng.integers(max(side, least) - crop, endpoint=True))
        for side, least, crop in zip(scaled, size, crop_size)
    )
    return WarpedCropDraws(scaled, position, bool(rng.random() < flip_probability))


def apply(
    image: np.ndarray,
    label: np.ndarray | None,
    draws: WarpedCropDraws,
    *,
    crop_size: Sequence[int],
    size: Sequence[int],
    padding_color: Sequence[float],
    ignore_label: int,
) -> dict[str, np.ndarray]:
    """Augments one example.

    Args:
      image: uint8 [H, W, 3], RGB; stays as it is.
      label: uint8 [H, W]; None: no label map is returned.
      draws: the random decisions.
      crop_size: height and width of the result.
      size: height and width to which images are warped. What was scaled to less is padded to it
        on all sides.
      padding_color: RGB 0..255; published: black.
      ignore_label: fills the label map there.

    Returns:
      'image' float32 [h, w, 3] in 0..255; 'valid' bool [h, w], true where there is an image and
      false in the padding; and 'label' uint8 [h, w] with values of `label` and `ignore_label` only.

    Source: STRICT specification 2.4.
    """
    margin = [max(0, whole - side) // 2 for whole, side in zip(size, draws.size)]
    views = resampling.scaled_crop(
        image,
        label,
        # Twice, with whole grey levels between, as published.
        sizes=(size, draws.size),
        position=[start - before for start, before in zip(draws.position, margin)],
        crop_size=crop_size,
        padding_color=np.array(padding_color, np.float32),
        ignore_label=ignore_label,
    )
    return resampling.mirrored(views) if draws.flip else views


def make_views(config: DataConfig, context: Context) -> Callable[..., dict[str, tf.Tensor]]:
    """See `augment.make_views`.

    Raises:
      UserError: images would be warped to less than the crop.
    """
    settings = config.augmentation_settings
    scale_range = scale_range_of(settings)
    crop_size = tuple(config.train_crop_size)
    size = warped_size(crop_size, settings.augmentation_size)
    if min(size) < max(crop_size):
        raise UserError(
            "Images must be warped to no less than the crop.",
            where="--augmentation_size",
            received=settings.augmentation_size,
            accepted=f"at least {max(crop_size)}, the longer side of --train_crop_size",
        )
    common = {"crop_size": crop_size, "size": size}
    filling = padding_of(settings, context)

    def made(rng, image, label):
        draws = draw(
            rng, scale_range=scale_range, flip_probability=config.flip_probability, **common
        )
        return apply(image, label, draws, **common, **filling)

    return numpy_views(made, crop_size, context)
