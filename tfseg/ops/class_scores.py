"""Image-level class scores from logits and masks, and the losses on them.

Source: Araslanov and Roth, "Single-stage semantic segmentation from image labels", CVPR 2020,
sections 3.1 and 3.2; SLRNet specification 4.2 and 4.3.
"""

from collections.abc import Sequence

import tensorflow as tf


def class_scores(
    logits: tf.Tensor, masks: tf.Tensor, *, power: float = 3.0, offset: float = 0.01
) -> tf.Tensor:
    """Computes the scores of the foreground classes: pooled logits plus a penalty on small masks.

    The pooling is normalised global weighted pooling (nGWP): sum over pixels of logit times mask,
    over 1 + the sum of the mask. For a class with a large mask it says how sure the pixels are, and
    does not depend on their number. So the focal penalty lowers the scores of small masks.

    Args:
      logits: float [N, h, w, C], class 0 is background.
      masks: float [N, h, w, C], their softmax.
      power, offset: as for `focal_mask_penalty`.

    Returns:
      float32 [N, C - 1], logits of the presence of each foreground class.

    Source: specification 4.2.
    """
    logits, masks = tf.cast(logits, tf.float32), tf.cast(masks, tf.float32)
    pooled = tf.reduce_sum(logits * masks, [1, 2]) / (1.0 + tf.reduce_sum(masks, [1, 2]))
    return (pooled + focal_mask_penalty(masks, power=power, offset=offset))[:, 1:]


def focal_mask_penalty(masks: tf.Tensor, *, power: float = 3.0, offset: float = 0.01) -> tf.Tensor:
    """Computes (1 - m)^power log(offset + m), m the mean of a mask over the image.

    Args:
      masks: float32 [N, h, w, C], 0 to 1.
      power: above 0; how soon the penalty vanishes when a mask grows.
      offset: above 0; log(offset) is the penalty on an empty mask.

    Returns:
      float32 [N, C].

    Source: specification 4.2.
    """
    mean = tf.reduce_mean(masks, [1, 2])
    # Rounding can carry a mean above 1, where most powers are not defined.
    return tf.pow(tf.maximum(1.0 - mean, 0.0), power) * tf.math.log(offset + mean)


def class_loss(
    scores: tf.Tensor,
    image_label: tf.Tensor,
    *,
    positive_weights: Sequence[float] | tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the multi-label soft margin loss of each image: sigmoid cross entropy.

    Args:
      scores: float [N, K].
      image_label: float32 [N, K] multi-hot.
      positive_weights: K factors on the terms of classes that are present; None: 1.

    Returns:
      float32 [N], means over classes.

    Source: specification 4.3.
    """
    scores = tf.cast(scores, tf.float32)
    if positive_weights is None:
        loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=image_label, logits=scores)
    else:
        loss = tf.nn.weighted_cross_entropy_with_logits(
            labels=image_label,
            logits=scores,
            pos_weight=tf.convert_to_tensor(positive_weights, tf.float32),
        )
    return tf.reduce_mean(loss, -1)
