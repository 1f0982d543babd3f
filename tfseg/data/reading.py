"""From the bytes of a record to tensors, shared by training and evaluation."""

import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfseg.data.augment.base import image_label_of
from tfseg.data.class_splits import UNLABELLED
from tfseg.data.specs import DatasetSpec
from tfseg.data.stream import NEEDING_MASKS
from tfseg.ops import resize
from tfseg.settings.data import DataConfig


def decode(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Returns an encoded JPEG or PNG, a string scalar, as uint8 [H, W, channels]."""
    # decode_image looks at the content: published records hold JPEG and PNG under one key.
    pixels = tf.io.decode_image(data, channels, expand_animations=False)
    return tf.ensure_shape(pixels, [None, None, channels])


def decode_label(
    data: tf.Tensor, has_label: tf.Tensor, image: tf.Tensor, spec: DatasetSpec, labels: str
) -> tf.Tensor | None:
    """Returns the label map uint8 [H, W], ignored throughout where there is none.

    Args:
      data: encoded mask, a string scalar.
      has_label: bool scalar, whether there is one.
      image: [H, W, 3], for its size.
      spec: classes and ignore label.
      labels: as in `Stream`; 'none' gives None.
    """
    if labels == "none":
        return None

    def decoded():
        return decode(data, 1)[..., 0]

    if labels in NEEDING_MASKS:
        label = decoded()
    else:
        ignored = tf.cast(spec.ignore_label, tf.uint8)
        label = tf.cond(has_label, decoded, lambda: tf.fill(tf.shape(image)[:2], ignored))
        label = tf.ensure_shape(label, [None, None])
    if spec.num_classes < 256:
        # On a GPU the cross entropy of an id beyond the classes is a silent NaN.
        wrong = (label >= spec.num_classes) & (label != spec.ignore_label)
        check = tf.debugging.Assert(
            ~tf.reduce_any(wrong), ["a mask holds an id beyond the class count"]
        )
        with tf.control_dependencies([check] if check is not None else []):
            label = tf.identity(label)
    return label


def agreeing_label(
    label: tf.Tensor, may_use: tf.Tensor, image_label: tf.Tensor, spec: DatasetSpec
) -> tf.Tensor:
    """Returns a label map that may be used, after comparing it with the image-level labels."""
    found = image_label_of(
        label,
        num_classes=spec.num_classes,
        first_class=spec.first_image_class,
        ignore_label=spec.ignore_label,
    )
    agrees = tf.reduce_all(found <= image_label) | ~may_use
    check = tf.debugging.Assert(agrees, ["a mask holds a class that the image-level labels lack"])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(label)


def table_lookup(label: tf.Tensor, table: np.ndarray) -> tf.Tensor:
    """Returns what a table of 256 entries makes of label values, in the label's dtype."""
    return tf.cast(tf.gather(tf.constant(table, tf.int32), tf.cast(label, tf.int32)), label.dtype)


def seen_labels(example: Mapping[str, tf.Tensor], spec: DatasetSpec) -> dict[str, tf.Tensor]:
    """Returns what an example with labels='seen' has instead of its whole label map."""
    split, ignore = spec.seen_unseen, spec.ignore_label
    training = table_lookup(example["label"], split.training_table(spec.num_classes, ignore))
    hole = UNLABELLED if split.background is None else split.background
    return {
        "label": tf.where(training == UNLABELLED, tf.cast(ignore, training.dtype), training),
        "candidate": (training == hole) & example["valid"],
        "hidden_label": table_lookup(
            example["label"], split.evaluation_table(spec.num_classes, ignore)
        ),
    }


def resize_in_range(
    image: tf.Tensor, label: tf.Tensor | None, size: tf.Tensor, config: DataConfig
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Resizes before augmentation, where --min_resize_value asks for it: corners aligned.

    Args:
      image: uint8 [H, W, 3].
      label: integer [H, W], or None.
      size: int32 [2], of `size_in_range`.
      config: tells whether it is asked for.

    Returns:
      (float32 [h, w, 3], label with its nearest pixels); both as they came where it is not.
    """
    if config.min_resize_value is None:
        return image, label
    image = resize.resize_bilinear(tf.cast(image, tf.float32)[None], size)[0]
    if label is not None:
        label = resize.resize_nearest_align_corners(label[None], size)[0]
    return image, label


def size_in_range(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """Returns the size (height, width) to which an image is resized before augmentation.

    Args:
      height, width: of the image, pixels.
      config: `min_resize_value`, `max_resize_value` and `resize_factor` are used.

    Source: PseudoSeg specification, section 3, step 1, as in DeepLab.
    """
    if config.min_resize_value is None:
        return height, width
    # In float32, as there: 375 * (513 / 375) may be 512.
    scale = np.float32(config.min_resize_value) / np.float32(min(height, width))
    longest, limit = np.float32(max(height, width)), config.max_resize_value
    if limit is not None and int(longest * scale) > limit:
        scale = np.float32(limit) / longest
    sides = [int(np.float32(side) * scale) for side in (height, width)]
    factor = config.resize_factor
    if factor is not None:
        sides = [side + (factor - (side - 1) % factor) % factor for side in sides]
    return sides[0], sides[1]


def num_threads(config: DataConfig) -> int:
    """Returns how many records are prepared at a time: --data_threads, or one per core."""
    return config.data_threads or os.cpu_count() or 1


def deterministic_options() -> tf.data.Options:
    """Returns the options of every pipeline: a fixed order, fixed numbers of threads."""
    options = tf.data.Options()
    # There is nothing to tune, and to let go of an iterator would wait for the tuning thread, which
    # sleeps for up to a minute.
    options.autotune.enabled = False
    options.deterministic = True
    # The files are ours to position; TensorFlow must not shard them again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
