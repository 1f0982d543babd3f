"""Pseudo masks: class scores of pixels thresholded into labels, many of them `ignore_label`.

A pixel is labelled where exactly one class passes. Masks of classes that an image does not hold
are to be set to 0 by the caller. Nothing here has a gradient.

Source: Araslanov and Roth, "Single-stage semantic segmentation from image labels", CVPR 2020,
section 3.3 (PASCAL VOC); SLRNet specification 4.5.
"""

import tensorflow as tf


def confident_classes(
    masks: tf.Tensor,
    *,
    cutoff_top: float,
    cutoff_low: float,
    background_factor: float,
    ignore_label: int = 255,
) -> tf.Tensor:
    """Labels the pixels near a class's own maximum (the rule for PASCAL VOC).

    A class passes where its mask is above max(f t, cutoff_low), with t its largest value in the
    image and f the share that is asked for.

    Args:
      masks: float [N, H, W, C], class 0 is background.
      cutoff_top: f of foreground classes; published: 0.6.
      cutoff_low: threshold below which nothing passes; published: 0.2.
      background_factor: f of background; published: 0.7.
      ignore_label: label where no class or several pass.

    Returns:
      int32 [N, H, W].

    Source: specification 4.5, "VOC pseudo mask".
    """
    masks = tf.cast(masks, tf.float32)
    share = tf.constant([background_factor] + [cutoff_top] * (masks.shape[-1] - 1), tf.float32)
    top = tf.reduce_max(masks, [1, 2], keepdims=True)
    return _only_class(masks > tf.maximum(top * share, cutoff_low), ignore_label)


def confident_foreground(
    masks: tf.Tensor, *, cutoff_top: float, cutoff_low: float, ignore_label: int = 255
) -> tf.Tensor:
    """Labels clear foreground, and as background what no foreground class claims (for COCO).

    With each mask divided by its largest value in the image + 1e-6, a foreground class passes
    above cutoff_top, and background where no foreground class is above cutoff_low. The mask of
    background itself is not used. Between the two cutoffs a pixel has no label.

    Args:
      masks: float [N, H, W, C], class 0 is background.
      cutoff_top: published: 0.5 or 0.6.
      cutoff_low: at most cutoff_top; published: 0.1.
      ignore_label: label where no class or several pass.

    Returns:
      int32 [N, H, W].

    Source: specification 4.5, "COCO/L2ID".
    """
    foreground = tf.cast(masks, tf.float32)[..., 1:]
    foreground /= tf.reduce_max(foreground, [1, 2], keepdims=True) + 1e-6
    unclaimed = tf.reduce_all(foreground <= cutoff_low, -1, keepdims=True)
    return _only_class(tf.concat([unclaimed, foreground > cutoff_top], -1), ignore_label)


def _only_class(passed: tf.Tensor, ignore_label: int) -> tf.Tensor:
    """Returns the class that alone passed, int32 [N, H, W], or `ignore_label`."""
    passed = tf.cast(passed, tf.int32)
    single = tf.equal(tf.reduce_sum(passed, -1), 1)
    return tf.where(single, tf.argmax(passed, -1, output_type=tf.int32), ignore_label)
