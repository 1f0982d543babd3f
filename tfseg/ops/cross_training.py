"""Progressive cross training: who may teach whom, and how much. Pure functions.

Two networks label each other's weakly labelled images. One of them never learns from the images
with masks. So its IoU on these (from running counts) tells how good its labels are elsewhere. Each
weakly labelled image counts by the IoU of its worst class.

Source: Wang et al., "Learning pseudo labels for semi-and-weakly supervised semantic segmentation",
Pattern Recognition 2022, section 3.3; Learning Pseudo Labels specification 4.2.
"""

import tensorflow as tf

from tfseg.ops.class_aware import mask_absent_logits


def cross_label(
    logits: tf.Tensor, present: tf.Tensor, label: tf.Tensor, has_label: tf.Tensor
) -> tf.Tensor:
    """Returns what one network's prediction teaches the other.

    Args:
      logits: float [N, H, W, C].
      present: float32 [N, C], classes that the image may hold.
      label: int32 [N, H, W], true labels with ignored pixels; used for images with `has_label`.
      has_label: bool [N], whether an image has a true label.

    Returns:
      int32 [N, H, W] without gradient: the arg max among present classes, or `label`.
    """
    best = tf.argmax(mask_absent_logits(logits, present), -1, output_type=tf.int32)
    return tf.stop_gradient(tf.where(has_label[:, None, None], label, best))


def class_counts(
    label: tf.Tensor,
    prediction: tf.Tensor,
    num_classes: int,
    *,
    ignore_label: int,
    count_ignored: bool,
) -> tf.Tensor:
    """Counts pixels by class.

    Args:
      label: int32 [N, H, W].
      prediction: int32 [N, H, W], class ids.
      num_classes: C.
      ignore_label: pixels with this label have no true class.
      count_ignored: predictions there count as predictions, as published; every IoU is then too
        small.

    Returns:
      float32 [3, C]: pixels of each true class, of each predicted class, and where both agree;
      whole numbers up to 2^24 pixels of a class, the nearest float32 beyond.
    """

    def count(ids: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        # In integers: a sum of ones in float32 stops at 2^24.
        return tf.math.unsorted_segment_sum(
            tf.reshape(tf.cast(counted, tf.int32), [-1]), tf.reshape(ids, [-1]), num_classes
        )

    known = tf.not_equal(label, ignore_label)
    safe_label = tf.where(known, label, 0)
    predicted = tf.ones_like(known) if count_ignored else known
    hit = known & tf.equal(prediction, safe_label)
    counts = [count(safe_label, known), count(prediction, predicted), count(safe_label, hit)]
    return tf.cast(tf.stack(counts), tf.float32)


def iou_of_counts(counts: tf.Tensor) -> tf.Tensor:
    """Returns X / (T + P - X) of counts [3, C] in the order of `class_counts`, float32 [C]."""
    truth, predicted, hit = tf.unstack(counts)
    return hit / (truth + predicted - hit)


def image_weights(
    iou: tf.Tensor, present: tf.Tensor, *, power: float, zero_counts_as: float
) -> tf.Tensor:
    """Weighs images by how well their worst class is predicted.

    Args:
      iou: float32 [C].
      present: float32 [N, C].
      power: exponent on the smallest IoU.
      zero_counts_as: value in place of an IoU of exactly 0, which a class has that was never found
        yet. 1, as published: the other classes of the image then decide its weight. 0: the image
        has no weight yet.

    Returns:
      float32 [N] in [0, 1]; 1 for an image without present classes.
    """
    score = tf.where(iou > 0.0, iou, zero_counts_as)
    worst = tf.reduce_min(tf.where(present > 0.0, score, 1.0), -1)
    return tf.pow(worst, power)
