"""How two predictions become one pseudo label: pure functions.

Source: PseudoSeg specification 5.5.
"""

import tensorflow as tf

from tfseg.ops.class_aware import present_classes
from tfseg.ops.losses import replica_mean


def joint_normalisation(
    first: tf.Tensor, second: tf.Tensor, *, over_replicas: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales two tensors of logits by one factor, to a joint root mean square of 1.

    r = 1 / sqrt(mean of all squares of both + 1e-8). One scalar for the whole batch: it sets how
    flat their softmaxes are and leaves the two in proportion.

    Args:
      first, second: float32 [N, H, W, C], of one shape.
      over_replicas: take the mean over the global batch.

    Returns:
      (first * r, second * r).

    Source: specification 5.5.
    """
    square = 0.5 * (tf.reduce_mean(tf.square(first)) + tf.reduce_mean(tf.square(second)))
    if over_replicas:
        square = replica_mean(square)
    factor = tf.math.rsqrt(square + 1e-8)
    return first * factor, second * factor


def mask_absent(
    probs: tf.Tensor, image_label: tf.Tensor, *, has_background: bool = True
) -> tf.Tensor:
    """Sets absent classes to probability 0 and scales the others back to a sum of 1.

    Args:
      probs: float32 [N, H, W, C].
      image_label: float32 [N, K] multi-hot.
      has_background: class 0 has no image-level label and is always kept; K = C - 1, else K = C.

    Returns:
      float32 [N, H, W, C]; unchanged where every kept class has probability 0.
    """
    present = present_classes(image_label, has_background=has_background)
    kept = probs * present[:, None, None, :]
    total = tf.reduce_sum(kept, -1, keepdims=True)
    return tf.where(total > 0.0, kept / tf.maximum(total, 1e-30), probs)


def sharpen(probs: tf.Tensor, temperature: float) -> tf.Tensor:
    """Makes a distribution sharper: p^(1/T) / sum p^(1/T).

    Args:
      probs: float32 [..., C].
      temperature: T, in (0, 1]; 1 changes nothing.

    Returns:
      float32 [..., C].

    Source: specification 5.5.
    """
    if temperature == 1.0:
        return probs
    powers = tf.pow(probs, 1.0 / temperature)
    return powers / tf.reduce_sum(powers, -1, keepdims=True)
