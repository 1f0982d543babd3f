"""What augmentations share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from tfseg.data.stream import strong_keys
from tfseg.settings.augmentations import ScalingSettings

# Height and width, known while a graph is built or not.
Size = Sequence[int] | tf.Tensor


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


def scale_range_of(settings: ScalingSettings) -> tuple[float, float]:
    """Returns the smallest and the largest random scale of an augmentation's settings.

    Raises:
      ValueError: see `scale_factors`.
    """
    limits = settings.min_scale_factor, settings.max_scale_factor
    scale_factors(*limits, step=0)
    return limits


def rows_of_one_color(height: int | tf.Tensor, width: int | tf.Tensor, color: Sequence[float]):
    """Returns rows of one colour, float32 [height, 3 width]: short last axes are slow."""
    return tf.tile(tf.constant([color], tf.float32), [height, width])


def pad_image(image: tf.Tensor, size: Size, mean_pixel: Sequence[float]) -> tf.Tensor:
    """Pads an image at the bottom and the right with the mean pixel.

    Args:
      image: float32 [h, w, 3].
      size: height and width of the result, at least the image's.
      mean_pixel: the backbone's mean colour; becomes 0 in the network.

    Returns:
      float32 [height, width, 3].
    """
    shape = tf.shape(image)
    rows = tf.reshape(image, [shape[0], shape[1] * 3])
    rows = tf.concat([rows, rows_of_one_color(shape[0], size[1] - shape[1], mean_pixel)], 1)
    rows = tf.concat([rows, rows_of_one_color(size[0] - shape[0], size[1], mean_pixel)], 0)
    return _with_size(tf.reshape(rows, [size[0], size[1], 3]), size, 3)


def pad_label(label: tf.Tensor, size: Size, ignore_label: int) -> tf.Tensor:
    """Pads an integer [h, w] label map at the bottom and the right with the ignore label."""
    shape = tf.shape(label)
    paddings = [[0, size[0] - shape[0]], [0, size[1] - shape[1]]]
    padded = tf.pad(label, paddings, constant_values=tf.cast(ignore_label, label.dtype))
    return _with_size(padded, size)


def _with_size(x: tf.Tensor, size: Size, *channels: int) -> tf.Tensor:
    """Tells TensorFlow the size as far as it is known while a graph is built."""
    known = [None, None] if isinstance(size, tf.Tensor) else [int(side) for side in size]
    return tf.ensure_shape(x, [*known, *channels])


def rectangle(size: Size, top_left: tf.Tensor, bottom_right: tf.Tensor) -> tf.Tensor:
    """Returns bool [height, width], true in the half-open rectangle."""
    rows, columns = tf.range(size[0]), tf.range(size[1])
    in_rows = (rows >= top_left[0]) & (rows < bottom_right[0])
    in_columns = (columns >= top_left[1]) & (columns < bottom_right[1])
    return in_rows[:, None] & in_columns[None, :]


def image_label_of(
    label: tf.Tensor, *, num_classes: int, first_class: int, ignore_label: int
) -> tf.Tensor:
    """Returns which classes a label map holds.

    Args:
      label: uint8 or int32 [H, W] of class ids and `ignore_label`.
      num_classes: number of class ids.
      first_class: the first id that counts: 1 where 0 is background.
      ignore_label: counts never.

    Returns:
      float32 [num_classes - first_class], multi-hot.

    Source: PseudoSeg specification 2.4.
    """
    label = tf.cast(label, tf.int32)
    label = tf.where(tf.equal(label, ignore_label), -1, label) - first_class
    shifted = tf.boolean_mask(label, label >= 0)
    count = num_classes - first_class
    found = tf.math.bincount(shifted, minlength=count, maxlength=count)
    return tf.ensure_shape(tf.cast(found > 0, tf.float32), [count])


def padded_view(
    image: tf.Tensor,
    label: tf.Tensor,
    *,
    size: Size,
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
      'image' float32, 'label' int32, and 'valid' float32 with 1 where there is an image.
    """
    inside = tf.shape(image)[:2]
    return {
        "image": pad_image(tf.cast(image, tf.float32), size, mean_pixel),
        "label": pad_label(tf.cast(label, tf.int32), size, ignore_label),
        "valid": tf.cast(rectangle(size, tf.zeros([2], tf.int32), inside), tf.float32),
    }


@dataclasses.dataclass(frozen=True)
class Context:
    """What an augmentation is told besides its settings.

    Attributes:
      strong_views: how many are wanted beside the weak one.
      light: the crop alone, where the augmentation knows the difference.
      mean_pixel: RGB 0..255, fills padding.
      ignore_label: class id of pixels that do not count.
      keeping_errors: wraps a function for `tf.numpy_function` so that its user errors are kept.
      largest_px: pixels of the largest image; None: not known.
    """

    strong_views: int
    light: bool
    mean_pixel: tuple[float, ...]
    ignore_label: int
    keeping_errors: Callable[[Callable], Callable]
    largest_px: int | None = None


def padding_of(settings: Any, context: Context) -> dict[str, Any]:
    """Returns what fills a crop outside of the image, as keyword arguments.

    Args:
      settings: of an augmentation with --padding_color.
      context: mean pixel and ignore label.

    Returns:
      'padding_color', RGB 0..255; and 'ignore_label'.
    """
    color = (0.0, 0.0, 0.0) if settings.padding_color == "black" else context.mean_pixel
    return {"padding_color": color, "ignore_label": context.ignore_label}


def use_one_thread_per_call() -> None:
    """Tells OpenCV not to start threads of its own.

    The pipeline already runs one call per core; with OpenCV's threads in each of them the cores
    would be shared among their square. The setting holds for the whole process.
    """
    cv2.setNumThreads(1)


def numpy_views(
    make: Callable,
    crop_size: Sequence[int],
    context: Context,
    *,
    image_type: tf.DType = tf.float32,
) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns the function (image, label, size, seed) -> views of an augmentation on arrays.

    Args:
      make: (NumPy generator, image uint8 [H, W, 3], label uint8 [H, W] or None) -> 'image', the
        strong views by `stream.strong_keys`, 'valid' bool, and 'label' uint8 where there is one.
      crop_size: height and width of the views in pixels.
      context: how many strong views there are; keeps the errors.
      image_type: of the images that `make` returns: bytes where they can hold them, for they are
        copied several times.
    """
    use_one_thread_per_call()
    images = ("image", *strong_keys(context.strong_views))
    types = dict.fromkeys(images, image_type) | {"valid": tf.bool, "label": tf.uint8}
    crop_size = tuple(crop_size)

    def made(seed, image, label=None):
        views = make(np.random.default_rng(seed), image, label)
        return [views[name] for name in types if name in views]

    def views(image, label, size, seed):
        if image.dtype != tf.uint8:  # after --min_resize_value
            image = tf.cast(tf.round(image), tf.uint8)
        given = [seed, image] if label is None else [seed, image, label]
        names = [name for name in types if name != "label" or label is not None]
        arrays = tf.numpy_function(
            context.keeping_errors(made), given, [types[name] for name in names], stateful=False
        )
        shapes = {name: [*crop_size, 3] for name in images}
        return {
            name: tf.ensure_shape(x, shapes.get(name, crop_size)) for name, x in zip(names, arrays)
        }

    return views
