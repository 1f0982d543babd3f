"""RandAugment: some random operations on colours, and then DeepLab's scale, crop and flip.

The operations are keras_cv's, which work on images of float32 in 0..255 and take their strength as
an argument. What they are and how strong is drawn here: keras_cv's own draws cannot be repeated.
They see the image as it is in the record, before it is scaled and padded; label maps are moved with
it and never shown to them.

Source: Cubuk et al., "RandAugment", CVPR workshops 2020, for the operations on colours but
inversion. Here each operation draws a strength of its own, where RandAugment has one for all, and
DeepLab's geometry stands for the operations that move pixels.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfseg.data.augment import deeplab
from tfseg.data.augment.base import Context, scale_factors, scale_range_of
from tfseg.settings.data import DataConfig

with contextlib.redirect_stdout(io.StringIO()):  # where it would tell its backend
    from keras_cv import layers

_RANGE = (0, 255)
# Factors go this far from 1, and thresholds and shifts this far, at strengths of -1 and 1.
_FACTOR, _SOLARIZED, _SHIFT = 0.9, 127.0, 76.0
_BITS = (7, 6, 5, 4)

# (float32 [1, H, W, 3] in 0..255, float32 scalar in [-1, 1)) -> likewise changed.
Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _equalize() -> Operation:
    # It decides by tensors in Python's words, which only a rewritten function can.
    equalize = tf.function(layers.Equalization(_RANGE).augment_images)
    return lambda image, strength: equalize(image)


def _posterize() -> Operation:
    posterize = [layers.Posterization(_RANGE, bits=bits).augment_image for bits in _BITS]

    def operation(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
        number = tf.cast(tf.abs(strength) * len(_BITS), tf.int32)
        branches = [lambda one=one: one(image) for one in posterize]
        return tf.switch_case(tf.minimum(number, len(_BITS) - 1), branches)

    return operation


def _solarize() -> Operation:
    solarize = layers.Solarization(_RANGE).augment_images
    return lambda image, strength: solarize(
        image, {"thresholds": 255.0 - _SOLARIZED * tf.abs(strength), "additions": 0.0}
    )


def _autocontrast() -> Operation:
    autocontrast = layers.AutoContrast(_RANGE).augment_images
    return lambda image, strength: autocontrast(image)


def _sharpness() -> Operation:
    sharpen = _scaled(layers.RandomSharpness(1.0, _RANGE).augment_images, 0.0, _FACTOR)

    def operation(image: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
        # Where no pixel has neighbours on all sides there is nothing to smooth, and it fails.
        is_wide = tf.reduce_min(tf.shape(image)[1:3]) >= 3
        return tf.cond(is_wide, lambda: sharpen(image, strength), lambda: image)

    return operation


def _scaled(augment: Callable, start: float, scale: float) -> Operation:
    return lambda image, strength: augment(image, transformations=start + scale * strength)


def operations() -> dict[str, Operation]:
    """Returns the operations by name.

    Strengths: 'solarize' inverts values above 255 to 128 and 'posterize' keeps 7 to 4 bits, both by
    the strength without its sign; 'contrast' is 0.1 to 1.9 times what it was; 'color' and
    'sharpness' move away from (below 0) or towards (above) grey and the smoothed image;
    'brightness' adds up to 76 either way; 'autocontrast' and 'equalize' have none.
    """
    return {
        "autocontrast": _autocontrast(),
        "equalize": _equalize(),
        "posterize": _posterize(),
        "solarize": _solarize(),
        "color": _scaled(layers.RandomColorDegeneration(1.0).augment_images, 0.0, _FACTOR),
        "contrast": _scaled(layers.RandomContrast(_RANGE, 1.0).augment_images, 1.0, _FACTOR),
        "brightness": _scaled(layers.RandomBrightness(1.0, _RANGE).augment_images, 0.0, _SHIFT),
        "sharpness": _sharpness(),
    }


@dataclasses.dataclass(frozen=True)
class RandAugmentDraws:
    """The random decisions about colours for one example.

    Attributes:
      operations: int32 [N], numbers in the order of `operations()`; one may come twice.
      strengths: float32 [N], in [-1, 1).
    """

    operations: tf.Tensor
    strengths: tf.Tensor


def draw(seed: tf.Tensor, *, ops: int, choices: int) -> RandAugmentDraws:
    """Makes the decisions about colours for one example.

    Args:
      seed: int [2], unique to run, epoch and example.
      ops: how many operations.
      choices: from how many.
    """
    # The geometry is drawn from the seed itself.
    which, how = (tf.random.experimental.stateless_fold_in(seed, i) for i in (1, 2))
    return RandAugmentDraws(
        operations=tf.random.stateless_uniform([ops], which, 0, choices, tf.int32),
        strengths=tf.random.stateless_uniform([ops], how, -1.0, 1.0),
    )


def adjust_colors(
    image: tf.Tensor, draws: RandAugmentDraws, choices: Sequence[Operation]
) -> tf.Tensor:
    """Applies the drawn operations one after the other.

    Args:
      image: uint8 or float32 [H, W, 3] in 0..255.
      draws: the decisions.
      choices: the operations.

    Returns:
      float32 [H, W, 3] in 0..255.
    """

    def adjusted(image: tf.Tensor, number: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
        branches = [lambda one=one: one(image, strength) for one in choices]
        return tf.ensure_shape(tf.switch_case(number, branches), image.shape)

    batch = tf.cast(image, tf.float32)[None]
    for i in range(draws.operations.shape[0]):
        batch = adjusted(batch, draws.operations[i], draws.strengths[i])
    return batch[0]


def make_views(config: DataConfig, context: Context) -> Callable[..., dict[str, tf.Tensor]]:
    """See `augment.make_views`."""
    settings = config.augmentation_settings
    scale_range = scale_range_of(settings)
    scales = scale_factors(*scale_range, step=0)
    choices = list(operations().values())
    ops = 0 if context.light else settings.augmentation_ops

    def views(image, label, size, seed):
        draws = draw(seed, ops=ops, choices=len(choices))
        geometry = deeplab.draw(
            seed,
            size,
            crop_size=config.train_crop_size,
            scales=scales,
            scale_range=scale_range,
            flip_probability=config.flip_probability,
        )
        return deeplab.training_views(
            adjust_colors(image, draws, choices),
            label,
            geometry,
            crop_size=config.train_crop_size,
            mean_pixel=context.mean_pixel,
            ignore_label=context.ignore_label,
        )

    return views
