"""DeepLab's augmentation: pure tensor functions with every random draw given as an argument.

`draw` makes the draws of one example from its seed by arithmetic on one stateless call;
`training_views` applies them. Only the crop is ever resized: the antialiased resize is asked for
the window of the crop instead of the whole scaled image, which gives the same pixels. The colour
jitter is the exception, because its contrast is taken about the mean of the whole scaled image; it
works on colour planes, [3, H, W], where every operation runs over long rows, several times as fast
as TensorFlow's kernels for interleaved colours.

Source: PseudoSeg specification, section 3. Where the scaled image has more than `WHOLE_PX` pixels
that mean is taken of a part of them on a regular grid.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfseg.data.augment.base import (
    Context,
    pad_image,
    pad_label,
    rectangle,
    rows_of_one_color,
    scale_factors,
    scale_range_of,
)
from tfseg.data.augment.color_planes import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    channel_means,
    clipped,
)
from tfseg.data.stream import strong_keys
from tfseg.settings.data import DataConfig

MAKES_STRONG_VIEWS = True

# Colour operations, by their number in `DeepLabDraws.jitter_order`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_BRIGHTNESS_DELTA, _CONTRAST_DELTA, _SATURATION_DELTA, _HUE_DELTA = 0.5, 0.5, 0.5, 0.25
CUTOUT_HALF_SIZE_PX = 50
# Up to so many pixels the mean for the contrast is of the whole scaled image, as published.
WHOLE_PX = 2**20
# Scale, crop y and x, flip.
_NUM_GEOMETRY = 4
# Brightness, contrast, saturation, hue, 4 for the order, cutout y and x.
_NUM_STRONG = 10


@dataclasses.dataclass(frozen=True)
class DeepLabDraws:
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


def scaled_size(size: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Returns trunc(size * scale) in float32 arithmetic, at least 1.

    Args:
      size: int32 [2].
      scale: float32 scalar.

    Returns:
      int32 [2].
    """
    return tf.maximum(tf.cast(tf.cast(size, tf.float32) * scale, tf.int32), 1)


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
    flip_probability: float = 0.5,
    jitter_strength: float = 1.0,
) -> DeepLabDraws:
    """Makes the draws of one example.

    Args:
      seed: int [2], unique to run, epoch and example.
      size: int32 [2], height and width of the image.
      crop_size: height and width of the crop.
      scales: of `scale_factors`.
      scale_range: limits where `scales` is None.
      flip_probability: of mirroring left and right.
      jitter_strength: factor on the ranges of the colour jitter, in [0, 1].

    Returns:
      The draws; the crop lies within the scaled and padded image.
    """
    u = tf.random.stateless_uniform([_NUM_GEOMETRY + _NUM_STRONG], seed)
    if scales is None:
        scale = scale_range[0] + u[0] * (scale_range[1] - scale_range[0])
    else:
        scale = tf.gather(scales, _uniform_integer(u[0], tf.constant(len(scales))))
    padded = tf.maximum(scaled_size(size, scale), tf.constant(crop_size, tf.int32))
    return DeepLabDraws(
        scale=scale,
        crop_offset=_uniform_integer(u[1:3], padded - tf.constant(crop_size, tf.int32) + 1),
        flip=u[3] <= flip_probability,
        **_strong_draws(u[_NUM_GEOMETRY:], crop_size, jitter_strength),
    )


def _strong_draws(
    u: tf.Tensor, crop_size: Sequence[int], jitter_strength: float
) -> dict[str, tf.Tensor]:
    """Returns the fields of `DeepLabDraws` that make a view strong, of uniforms of [0, 1)."""
    return {
        "brightness": (2.0 * u[0] - 1.0) * (jitter_strength * _BRIGHTNESS_DELTA),
        "contrast": 1.0 + (2.0 * u[1] - 1.0) * (jitter_strength * _CONTRAST_DELTA),
        "saturation": 1.0 + (2.0 * u[2] - 1.0) * (jitter_strength * _SATURATION_DELTA),
        "hue": (2.0 * u[3] - 1.0) * (jitter_strength * _HUE_DELTA),
        "jitter_order": tf.argsort(u[4:8]),
        "cutout_center": _uniform_integer(u[8:10], tf.constant(crop_size, tf.int32)),
    }


def draw_strong(
    draws: DeepLabDraws,
    seed: tf.Tensor,
    number: int,
    *,
    crop_size: Sequence[int],
    jitter_strength: float = 1.0,
) -> DeepLabDraws:
    """Makes the draws of a further strong view: the same geometry, other colours, another hole.

    Args:
      draws: of `draw`, the first strong view's.
      seed: int [2], that of `draw`.
      number: of the view, from 2 on.
      crop_size, jitter_strength: as for `draw`.
    """
    own = tf.random.experimental.stateless_fold_in(seed, number)
    u = tf.random.stateless_uniform([_NUM_STRONG], own)
    return dataclasses.replace(draws, **_strong_draws(u, crop_size, jitter_strength))


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
    size = tf.shape(image)[:2]

    def enlarged():
        # Without widening the kernel is the ordinary bilinear one, and to enlarge the whole image
        # with it takes a sixth of the time per pixel.
        pixels = tf.raw_ops.ResizeBilinear(
            images=tf.cast(image, tf.float32)[None], size=scaled, half_pixel_centers=True
        )[0]
        return tf.slice(pixels, [offset[0], offset[1], 0], [window[0], window[1], 3])

    def antialiased():
        return tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=window,
            scale=tf.cast(scaled, tf.float32) / tf.cast(size, tf.float32),
            translation=-tf.cast(offset, tf.float32),
            kernel_type="triangle",
            antialias=True,
        )[0]

    # In floating point: the areas of large pictures overflow int32.
    area, window_area = (tf.reduce_prod(tf.cast(x, tf.float32)) for x in (scaled, window))
    cheaper = tf.reduce_all(scaled >= size) & (area <= 4.0 * window_area)
    return tf.ensure_shape(tf.cond(cheaper, enlarged, antialiased), [None, None, 3])


def _nearest_index(in_size: tf.Tensor, out_size: tf.Tensor, start: tf.Tensor, count: tf.Tensor):
    """Returns floor(i (in - 1) / (out - 1) + 1/2) for i = start .. start + count - 1, int64."""
    # The products of two sides and 2 pass int32 from sides of 23,171 pixels at twice their size on.
    in_size, out_size, start, count = (
        tf.cast(x, tf.int64) for x in (in_size, out_size, start, count)
    )
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


def _apply(operation: tf.Tensor, planes: tf.Tensor, draws: DeepLabDraws) -> tf.Tensor:
    branches = {
        BRIGHTNESS: lambda: clipped(adjust_brightness(planes, draws.brightness)),
        CONTRAST: lambda: clipped(adjust_contrast(planes, draws.contrast)),
        # These two stay within the range of their input.
        SATURATION: lambda: adjust_saturation(planes, draws.saturation),
        HUE: lambda: adjust_hue(planes, draws.hue),
    }
    result = tf.switch_case(operation, [branches[i] for i in range(4)])
    return tf.ensure_shape(result, [3, None, None])


def _apply_if(condition: tf.Tensor, operation: tf.Tensor, planes: tf.Tensor, draws: DeepLabDraws):
    result = tf.cond(condition, lambda: _apply(operation, planes, draws), lambda: planes)
    return tf.ensure_shape(result, [3, None, None])


def _planes(image: tf.Tensor) -> tf.Tensor:
    """Returns an image [H, W, 3] in 0..255 as colour planes [3, H, W] in 0..1."""
    shape = tf.shape(image)
    planes = tf.transpose(tf.reshape(image / 255.0, [-1, 3]))
    return tf.reshape(planes, [3, shape[0], shape[1]])


def _jittered_to_contrast(planes: tf.Tensor, draws: DeepLabDraws) -> tf.Tensor:
    """Returns planes after the operations that come before the contrast."""
    position = tf.argmax(tf.equal(draws.jitter_order, CONTRAST), output_type=tf.int32)
    for i in range(3):
        planes = _apply_if(position > i, draws.jitter_order[i], planes, draws)
    return planes


def _jittered_from_contrast(planes: tf.Tensor, draws: DeepLabDraws, mean: tf.Tensor) -> tf.Tensor:
    """Returns an image [H, W, 3] in 0..255 after the contrast and the operations behind it."""
    position = tf.argmax(tf.equal(draws.jitter_order, CONTRAST), output_type=tf.int32)
    planes = clipped(adjust_contrast(planes, draws.contrast, mean))
    for i in range(1, 4):
        planes = _apply_if(position < i, draws.jitter_order[i], planes, draws)
    shape = tf.shape(planes)
    # A transpose to a last axis of 3 is fast for two dimensions only.
    pixels = tf.transpose(tf.reshape(planes * 255.0, [3, -1]))
    return tf.ensure_shape(tf.reshape(pixels, [shape[1], shape[2], 3]), [None, None, 3])


def jitter_window(
    image: tf.Tensor, draws: DeepLabDraws, offset: tf.Tensor, window: tf.Tensor
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
    planes = _jittered_to_contrast(_planes(image), draws)
    mean = channel_means(planes)
    planes = tf.slice(planes, [0, offset[0], offset[1]], [3, window[0], window[1]])
    return _jittered_from_contrast(planes, draws, mean)


def grid_of(image: tf.Tensor, scaled: tf.Tensor) -> tf.Tensor:
    """Returns points of a large scaled image on a regular grid, WHOLE_PX / 4 to WHOLE_PX of them.

    Args:
      image: uint8 or float32 [H, W, 3].
      scaled: int32 [2], size of the image after scaling; more than `WHOLE_PX` pixels.

    Returns:
      float32 [h, w, 3] in 0..255, each interpolated between four pixels of the image. They are no
      averages of larger areas: those would never be clipped where a small highlight is.
    """
    sides = tf.cast(scaled, tf.float32)
    every = tf.math.ceil(tf.sqrt(tf.reduce_prod(sides) / WHOLE_PX))
    size = tf.cast(tf.math.ceil(sides / every), tf.int32)
    pixels = tf.raw_ops.ResizeBilinear(images=image[None], size=size, half_pixel_centers=True)
    return tf.ensure_shape(pixels[0], [None, None, 3])


def jitter_crop(crop: tf.Tensor, grid: tf.Tensor, draws: DeepLabDraws) -> tf.Tensor:
    """Jitters the colours of a crop, about the mean of a part of the scaled image.

    Args:
      crop: float32 [h, w, 3] in 0..255, unpadded.
      grid: float32 [H, W, 3], of `grid_of`, of which the mean is taken.
      draws: order, deltas, factors.

    Returns:
      float32 [h, w, 3] in 0..255: that of `jitter_window` but for the error of the mean. On
      photographs the views differ by less than a grey level (benchmarks/README.md).
    """
    mean = channel_means(_jittered_to_contrast(_planes(grid), draws))
    return _jittered_from_contrast(_jittered_to_contrast(_planes(crop), draws), draws, mean)


def cut_out(
    image: tf.Tensor, top_left: tf.Tensor, bottom_right: tf.Tensor, mean_pixel: Sequence[float]
) -> tf.Tensor:
    """Fills a rectangle of an image with the mean pixel.

    Args:
      image: float32 [H, W, 3] of static size.
      top_left, bottom_right: int32 [2] each; half-open, may reach beyond the image.
      mean_pixel: the filling.

    Returns:
      float32 [H, W, 3].
    """
    height, width = image.shape[:2]
    top, bottom = [tf.clip_by_value(corner[0], 0, height) for corner in (top_left, bottom_right)]
    left, right = [tf.clip_by_value(corner[1], 0, width) for corner in (top_left, bottom_right)]
    # Put together from blocks of rows: twenty times as fast as choosing pixel by pixel.
    rows = tf.reshape(image, [height, width * 3])
    hole = rows_of_one_color(bottom - top, right - left, mean_pixel)
    middle = [rows[top:bottom, : left * 3], hole, rows[top:bottom, right * 3 :]]
    rows = tf.concat([rows[:top], tf.concat(middle, 1), rows[bottom:]], 0)
    return tf.reshape(rows, image.shape)


def _flip(x: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.cond(flip, lambda: tf.reverse(x, [1]), lambda: x), x.shape)


def _colors(
    image: tf.Tensor,
    scaled: tf.Tensor,
    offset: tf.Tensor,
    window: tf.Tensor,
    strong: Sequence[DeepLabDraws],
    all_small: bool,
) -> list[tf.Tensor]:
    """Returns the weak and the strong views of a window, float32 [h, w, 3], unpadded."""

    def alone():
        return [resize_window(image, scaled, offset, window)]

    if not strong:
        return alone()

    def of_whole():
        whole = resize_window(image, scaled, tf.zeros([2], tf.int32), scaled)
        weak = tf.slice(whole, [offset[0], offset[1], 0], [window[0], window[1], 3])
        return [weak, *(jitter_window(whole, own, offset, window) for own in strong)]

    def of_grid():
        (weak,), grid = alone(), grid_of(image, scaled)
        return [weak, *(jitter_crop(weak, grid, own) for own in strong)]

    # Half of the graph, where no image is large.
    if all_small:
        return of_whole()
    # In floating point: the areas of large pictures overflow int32.
    is_large = tf.reduce_prod(tf.cast(scaled, tf.float32)) > WHOLE_PX
    views = tf.cond(is_large, of_grid, of_whole)
    return [tf.ensure_shape(view, [None, None, 3]) for view in views]


def training_views(
    image: tf.Tensor,
    label: tf.Tensor | None,
    draws: DeepLabDraws,
    *,
    crop_size: Sequence[int],
    mean_pixel: Sequence[float],
    ignore_label: int,
    strong: Sequence[DeepLabDraws] = (),
    cutout_half_size: int = CUTOUT_HALF_SIZE_PX,
    all_small: bool = False,
) -> dict[str, tf.Tensor]:
    """Scales, jitters, crops, cuts out and flips one example.

    Args:
      image: uint8 or float32 [H, W, 3] in 0..255.
      label: integer [H, W]; None: no labels are returned.
      draws: the random decisions.
      crop_size: height and width of the crop.
      mean_pixel: fills padding and the hole.
      ignore_label: fills the label there.
      strong: draws of each strong view, of which the colours and the hole are taken: same geometry,
        jittered colours, a square cut out. The holes of all are ignored in label and valid mask;
        the weak image keeps its pixels.
      cutout_half_size: half the side of that square, pixels; 0: none.
      all_small: no scaled image has more than `WHOLE_PX` pixels.

    Returns:
      'image', and strong views by `strong_keys`, float32 [h, w, 3] in 0..255; 'valid' bool [h, w],
      true where there is an image; and 'label' [h, w] of its dtype.

    Source: PseudoSeg specification, section 3, steps 2-8.
    """
    crop = tf.constant(crop_size, tf.int32)
    size = tf.shape(image)[:2]
    scaled = scaled_size(size, draws.scale)
    offset = draws.crop_offset
    window = tf.minimum(crop, scaled - offset)
    weak, *jittered = _colors(image, scaled, offset, window, strong, all_small)
    views = {"image": pad_image(weak, crop_size, mean_pixel)}
    valid = rectangle(crop_size, tf.zeros([2], tf.int32), window)
    if label is not None:
        resized = resize_label_window(label, scaled, offset, window)
        views["label"] = pad_label(resized, crop_size, ignore_label)
    for key, own, view in zip(strong_keys(len(strong)), strong, jittered):
        corners = [own.cutout_center + half for half in (-cutout_half_size, cutout_half_size)]
        hole = rectangle(crop_size, *corners)
        views[key] = cut_out(pad_image(view, crop_size, mean_pixel), *corners, mean_pixel)
        valid &= ~hole
        if label is not None:
            ignored = tf.cast(ignore_label, label.dtype)
            views["label"] = tf.where(hole, ignored, views["label"])
    views["valid"] = valid
    return {name: _flip(view, draws.flip) for name, view in views.items()}


def make_views(config: DataConfig, context: Context) -> Callable[..., dict[str, tf.Tensor]]:
    """See `augment.make_views`."""
    settings = config.augmentation_settings
    scale_range = scale_range_of(settings)
    scales = scale_factors(*scale_range, settings.scale_factor_step_size)
    all_small = (
        context.largest_px is not None and context.largest_px * scale_range[1] ** 2 <= WHOLE_PX
    )

    def views(image, label, size, seed):
        draws = draw(
            seed,
            size,
            crop_size=config.train_crop_size,
            scales=scales,
            scale_range=scale_range,
            flip_probability=config.flip_probability,
            jitter_strength=config.jitter_strength,
        )
        further = [
            draw_strong(
                draws,
                seed,
                number,
                crop_size=config.train_crop_size,
                jitter_strength=config.jitter_strength,
            )
            for number in range(2, context.strong_views + 1)
        ]
        return training_views(
            image,
            label,
            draws,
            crop_size=config.train_crop_size,
            mean_pixel=context.mean_pixel,
            ignore_label=context.ignore_label,
            strong=[draws, *further][: context.strong_views],
            cutout_half_size=config.cutout_half_size,
            all_small=all_small,
        )

    return views
