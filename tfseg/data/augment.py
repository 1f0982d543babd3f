"""Augmentation: pure tensor functions with every random draw given as an argument.

`draw` makes the draws of one example from its seed by arithmetic on one stateless call;
`training_views` applies them. Only the crop is ever resized: the antialiased resize is asked for the
window of the crop instead of the whole scaled image, which gives the same pixels. The colour
jitter is the exception, because its contrast is taken about the mean of the whole scaled image.

Source: PseudoSeg specification, section 3.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Colour operations, by their number in `Draws.jitter_order`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_BRIGHTNESS_DELTA, _CONTRAST_DELTA, _SATURATION_DELTA, _HUE_DELTA = 0.5, 0.5, 0.5, 0.25
CUTOUT_HALF_SIZE_PX = 50
# scale, crop y and x, flip, brightness, contrast, saturation, hue, 4 for the order, cutout y and x.
_NUM_UNIFORMS = 14


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random decisions for one example; all scalars unless noted.

    Attributes:
      scale: float32 factor on the image's sides.
      crop_offset: int32 [2], top and left of the crop in the scaled, padded image.
      flip: bool.
      jitter_order: int32 [4], a permutation of the colour operations.
      brightness, contrast, saturation, hue: float32 deltas and factors.
      cutout_center: int32 [2], in the crop.
    """

    scale: tf.Tensor
    crop_offset: tf.Tensor
    flip: tf.Tensor
    jitter_order: tf.Tensor
    brightness: tf.Tensor
    contrast: tf.Tensor
    saturation: tf.Tensor
    hue: tf.Tensor
    cutout_center: tf.Tensor


def scale_factors(minimum: float, maximum: float, step: float) -> np.ndarray | None:
    """Returns the random scales, float32; None where they are continuous.

    Raises:
      ValueError: minimum greater than maximum, or not positive.
    """
    if not 0 < minimum <= maximum:
        raise ValueError(f"scale factors must be positive and ordered, not {minimum}..{maximum}")
    if minimum == maximum:
        return np.array([minimum], np.float32)
    if step == 0:
        return None
    return np.linspace(minimum, maximum, int((maximum - minimum) / step + 1), dtype=np.float32)


def scaled_size(size: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Returns trunc(size * scale) in float32 arithmetic.

    Args:
      size: int32 [2].
      scale: float32 scalar.

    Returns:
      int32 [2].
    """
    return tf.cast(tf.cast(size, tf.float32) * scale, tf.int32)


def _uniform_integer(u: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Maps uniforms of [0, 1) to integers of [0, count); rounding never reaches `count`."""
    return tf.minimum(tf.cast(u * tf.cast(count, tf.float32), tf.int32), count - 1)


def draw(
    seed: tf.Tensor,
    size: tf.Tensor,
    *,
    crop_size: Sequence[int],
    scales: np.ndarray | None,
    scale_range: tuple[float, float] = (0.5, 2.0),
) -> Draws:
    """Makes the draws of one example.

    Args:
      seed: int [2], unique to run, epoch and example.
      size: int32 [2], height and width of the image.
      crop_size: height and width of the crop.
      scales: of `scale_factors`.
      scale_range: limits where `scales` is None.

    Returns:
      Draws; the crop lies within the scaled and padded image.
    """
    u = tf.random.stateless_uniform([_NUM_UNIFORMS], seed)
    if scales is None:
        scale = scale_range[0] + u[0] * (scale_range[1] - scale_range[0])
    else:
        scale = tf.gather(scales, _uniform_integer(u[0], tf.constant(len(scales))))
    padded = tf.maximum(scaled_size(size, scale), tf.constant(crop_size, tf.int32))
    return Draws(
        scale=scale,
        crop_offset=_uniform_integer(u[1:3], padded - tf.constant(crop_size, tf.int32) + 1),
        flip=u[3] <= 0.5,
        brightness=(2.0 * u[4] - 1.0) * _BRIGHTNESS_DELTA,
        contrast=1.0 + (2.0 * u[5] - 1.0) * _CONTRAST_DELTA,
        saturation=1.0 + (2.0 * u[6] - 1.0) * _SATURATION_DELTA,
        hue=(2.0 * u[7] - 1.0) * _HUE_DELTA,
        jitter_order=tf.argsort(u[8:12]),
        cutout_center=_uniform_integer(u[12:14], tf.constant(crop_size, tf.int32)),
    )


# Resizing ---------------------------------------------------------------------------------------


def resize_window(
    image: tf.Tensor, scaled: tf.Tensor, offset: tf.Tensor, window: tf.Tensor
) -> tf.Tensor:
    """Returns a window of the antialiased bilinear resize of an image.

    Args:
      image: uint8 or float32 [H, W, 3].
      scaled: int32 [2], size of the whole result.
      offset: int32 [2], top and left of the window in it.
      window: int32 [2], size of the window.

    Returns:
      float32 [window height, window width, 3]: the pixels that `tf.image.resize(image, scaled,
      antialias=True)` has there (half-pixel centres, triangle kernel widened when shrinking).
    """
    scale = tf.cast(scaled, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32)
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=window,
        scale=scale,
        translation=-tf.cast(offset, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )[0]


def _nearest_index(in_size: tf.Tensor, out_size: tf.Tensor, start: tf.Tensor, count: tf.Tensor):
    """Returns floor(i (in - 1) / (out - 1) + 1/2) for i = start .. start + count - 1."""
    i = tf.range(start, start + count)
    last = tf.maximum(out_size - 1, 1)
    return (2 * i * (in_size - 1) + last) // (2 * last)


def resize_label_window(
    label: tf.Tensor, scaled: tf.Tensor, offset: tf.Tensor, window: tf.Tensor
) -> tf.Tensor:
    """Returns a window of the align-corners nearest resize of a label map.

    Args:
      label: integer [H, W].
      scaled, offset, window: as for `resize_window`.

    Returns:
      The window, of the label's type; values of `label` only.
    """
    size = tf.shape(label)
    rows = _nearest_index(size[0], scaled[0], offset[0], window[0])
    columns = _nearest_index(size[1], scaled[1], offset[1], window[1])
    return tf.gather(tf.gather(label, rows), columns, axis=1)


def resize_to_range_size(
    height: int, width: int, *, min_size: int | None, max_size: int | None, factor: int | None
) -> tuple[int, int]:
    """Returns the size to which an image is resized before augmentation.

    Args:
      height, width: of the image.
      min_size: shorter side after resizing; None: no resize.
      max_size: cap of the longer side; None: none.
      factor: make both sides a multiple of this, plus one; None: leave them.

    Source: PseudoSeg specification, section 3, step 1, as in DeepLab.
    """
    if min_size is None:
        return height, width
    scale = min_size / min(height, width)
    if max_size is not None and int(max(height, width) * scale) > max_size:
        scale = max_size / max(height, width)
    sides = [int(side * scale) for side in (height, width)]
    if factor is not None:
        sides = [side + (factor - (side - 1) % factor) % factor for side in sides]
    return sides[0], sides[1]


# Colours ----------------------------------------------------------------------------------------


def adjust_brightness(image: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Adds `delta`; the result may leave [0, 1]."""
    return image + delta


def _channel_means(image: tf.Tensor) -> tf.Tensor:
    """Means over height and width, [3]; rows first, because reductions to 3 columns are slow."""
    shape = tf.shape(image)
    by_row = tf.reduce_mean(tf.reshape(image, [shape[0], shape[1] * 3]), axis=0)
    return tf.reduce_mean(tf.reshape(by_row, [shape[1], 3]), axis=0)


def adjust_contrast(
    image: tf.Tensor, factor: tf.Tensor, mean: tf.Tensor | None = None
) -> tf.Tensor:
    """Scales an image about its channel means; the result may leave [0, 1].

    Args:
      image: float32 [H, W, 3].
      factor: float32 scalar.
      mean: float32 [3]; None: the image's own.
    """
    mean = _channel_means(image) if mean is None else mean
    shape = tf.shape(image)
    # One row of offsets: broadcasting along a last axis of 3 is slow.
    offset = tf.tile(mean * (1.0 - factor), shape[1:2])
    rows = tf.reshape(image, [shape[0], shape[1] * 3]) * factor + offset
    return tf.reshape(rows, shape)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the saturation of an image of [0, 1] in HSV, clipped."""
    return tf.raw_ops.AdjustSaturation(images=image, scale=factor)


def adjust_hue(image: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Turns the hue of an image of [0, 1] by `delta` of a full circle."""
    return tf.raw_ops.AdjustHue(images=image, delta=delta)


def _apply(operation: tf.Tensor, image: tf.Tensor, draws: Draws, mean: tf.Tensor | None):
    def clipped(x):
        return tf.clip_by_value(x, 0.0, 1.0)

    branches = {
        BRIGHTNESS: lambda: clipped(adjust_brightness(image, draws.brightness)),
        CONTRAST: lambda: clipped(adjust_contrast(image, draws.contrast, mean)),
        # These two stay within the range of their input.
        SATURATION: lambda: adjust_saturation(image, draws.saturation),
        HUE: lambda: adjust_hue(image, draws.hue),
    }
    result = tf.switch_case(operation, [branches[i] for i in range(4)])
    return tf.ensure_shape(result, image.shape)


def jitter_window(
    image: tf.Tensor, draws: Draws, offset: tf.Tensor, window: tf.Tensor
) -> tf.Tensor:
    """Jitters the colours of a scaled image and returns a window of the result.

    The four operations run in the drawn order, clipped to [0, 1] after each. Those up to the
    contrast need the whole image, because contrast is about its mean; the rest need the window.

    Args:
      image: float32 [H, W, 3] in 0..255, scaled and unpadded.
      draws: order, deltas, factors.
      offset, window: int32 [2] each.

    Returns:
      float32 [window height, window width, 3] in 0..255.
    """
    image = tf.ensure_shape(image / 255.0, [None, None, 3])
    position = tf.argmax(tf.equal(draws.jitter_order, CONTRAST), output_type=tf.int32)
    for i in range(3):
        image = tf.cond(
            position > i,
            lambda x=image, i=i: _apply(draws.jitter_order[i], x, draws, None),
            lambda x=image: x,
        )
        image = tf.ensure_shape(image, [None, None, 3])
    mean = _channel_means(image)
    image = tf.slice(image, [offset[0], offset[1], 0], [window[0], window[1], 3])
    image = _apply(tf.constant(CONTRAST), image, draws, mean)
    for i in range(1, 4):
        image = tf.cond(
            position < i,
            lambda x=image, i=i: _apply(draws.jitter_order[i], x, draws, mean),
            lambda x=image: x,
        )
        image = tf.ensure_shape(image, [None, None, 3])
    return image * 255.0


# Crops ------------------------------------------------------------------------------------------


def pad_image(image: tf.Tensor, size: Sequence[int], mean_pixel: Sequence[float]) -> tf.Tensor:
    """Pads an image at the bottom and the right with the mean pixel.

    Args:
      image: float32 [h, w, 3].
      size: height and width of the result, at least the image's.
      mean_pixel: the backbone's mean colour; becomes 0 in the network.

    Returns:
      float32 [height, width, 3].
    """
    shape = tf.shape(image)
    paddings = [[0, size[0] - shape[0]], [0, size[1] - shape[1]], [0, 0]]
    if len(set(map(float, mean_pixel))) == 1:
        padded = tf.pad(image, paddings, constant_values=float(mean_pixel[0]))
    else:
        mean = tf.constant(mean_pixel, tf.float32)
        channels = [
            tf.pad(image[..., c], paddings[:2], constant_values=mean[c]) for c in range(3)
        ]
        padded = tf.stack(channels, axis=-1)
    return tf.ensure_shape(padded, [size[0], size[1], 3])


def pad_label(label: tf.Tensor, size: Sequence[int], ignore_label: int) -> tf.Tensor:
    """Pads an int32 [h, w] label map at the bottom and the right with the ignore label."""
    shape = tf.shape(label)
    paddings = [[0, size[0] - shape[0]], [0, size[1] - shape[1]]]
    padded = tf.pad(label, paddings, constant_values=tf.cast(ignore_label, label.dtype))
    return tf.ensure_shape(padded, list(size))


def rectangle(size: Sequence[int], top_left: tf.Tensor, bottom_right: tf.Tensor) -> tf.Tensor:
    """Returns bool [height, width], true in the half-open rectangle."""
    rows, columns = tf.range(size[0]), tf.range(size[1])
    in_rows = (rows >= top_left[0]) & (rows < bottom_right[0])
    in_columns = (columns >= top_left[1]) & (columns < bottom_right[1])
    return in_rows[:, None] & in_columns[None, :]


def cut_out(
    image: tf.Tensor, hole: tf.Tensor, mean_pixel: Sequence[float]
) -> tf.Tensor:
    """Fills the hole, bool [H, W], of a float32 [H, W, 3] image with the mean pixel."""
    height, width = image.shape[:2]
    # Rows of 3 W numbers: a broadcast along a last axis of 3 is slow.
    wide_hole = tf.reshape(tf.tile(hole[..., None], [1, 1, 3]), [height, width * 3])
    fill = np.tile(np.asarray(mean_pixel, np.float32), width)
    return tf.reshape(
        tf.where(wide_hole, fill, tf.reshape(image, [height, width * 3])), image.shape
    )


def _flip(x: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.cond(flip, lambda: tf.reverse(x, [1]), lambda: x), x.shape)


def training_views(
    image: tf.Tensor,
    label: tf.Tensor | None,
    draws: Draws,
    *,
    crop_size: Sequence[int],
    mean_pixel: Sequence[float],
    ignore_label: int,
    strong: bool = False,
) -> dict[str, tf.Tensor]:
    """Scales, jitters, crops, cuts out and flips one example.

    Args:
      image: uint8 or float32 [H, W, 3] in 0..255.
      label: integer [H, W]; None: no labels are returned.
      draws: the random decisions.
      crop_size: height and width of the crop.
      mean_pixel: fills padding and the hole.
      ignore_label: fills the label there.
      strong: also make the strong view: same geometry, jittered colours, a square cut out. The
        hole is ignored in label and valid mask; the weak image keeps its pixels.

    Returns:
      'image' (and 'image_strong') float32 [h, w, 3] in 0..255, 'valid' float32 [h, w] with 1 where
      there is an image, and 'label' int32 [h, w].

    Source: PseudoSeg specification, section 3, steps 2-8.
    """
    crop = tf.constant(crop_size, tf.int32)
    size = tf.shape(image)[:2]
    scaled = scaled_size(size, draws.scale)
    offset = draws.crop_offset
    window = tf.minimum(crop, scaled - offset)
    views = {}
    if strong:
        whole = resize_window(image, scaled, tf.zeros([2], tf.int32), scaled)
        weak = tf.slice(whole, [offset[0], offset[1], 0], [window[0], window[1], 3])
        jittered = jitter_window(whole, draws, offset, window)
        views["image_strong"] = pad_image(jittered, crop_size, mean_pixel)
    else:
        weak = resize_window(image, scaled, offset, window)
    views["image"] = pad_image(weak, crop_size, mean_pixel)
    valid = rectangle(crop_size, tf.zeros([2], tf.int32), window)
    if label is not None:
        resized = resize_label_window(label, scaled, offset, window)
        views["label"] = pad_label(tf.cast(resized, tf.int32), crop_size, ignore_label)
    if strong:
        half = CUTOUT_HALF_SIZE_PX
        hole = rectangle(crop_size, draws.cutout_center - half, draws.cutout_center + half)
        views["image_strong"] = cut_out(views["image_strong"], hole, mean_pixel)
        valid &= ~hole
        if label is not None:
            views["label"] = tf.where(hole, ignore_label, views["label"])
    views["valid"] = tf.cast(valid, tf.float32)
    return {name: _flip(view, draws.flip) for name, view in views.items()}


def padded_view(
    image: tf.Tensor,
    label: tf.Tensor,
    *,
    size: Sequence[int],
    mean_pixel: Sequence[float],
    ignore_label: int,
) -> dict[str, tf.Tensor]:
    """Pads an image and its label for evaluation.

    Args:
      image: uint8 or float32 [h, w, 3].
      label: integer [h, w].
      size: height and width of the result.
      mean_pixel, ignore_label: fill the padding.

    Returns:
      'image' float32, 'label' int32, 'valid' float32, as `training_views` gives them.
    """
    inside = tf.shape(image)[:2]
    return {
        "image": pad_image(tf.cast(image, tf.float32), size, mean_pixel),
        "label": pad_label(tf.cast(label, tf.int32), size, ignore_label),
        "valid": tf.cast(rectangle(size, tf.zeros([2], tf.int32), inside), tf.float32),
    }
