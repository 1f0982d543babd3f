"""Class filtering: which classes an image may be given, by its image-level scores or labels.

A network may also score every class for the image as a whole. Classes with a low score are removed
from the masks. The background, which would fill what is left, is made weaker.

Source: SLRNet specification 6.
"""

import tensorflow as tf


def kept_classes(
    image_logits: tf.Tensor, *, score_cut: float | None = None, top_classes: int | None = None
) -> tf.Tensor:
    """Returns which image-level classes have a score p = sigmoid(logit) that is high enough.

    Args:
      image_logits: float [N, K].
      score_cut: classes with p above this are kept; None: p may be anything.
      top_classes: number of the classes with the highest p that are kept; classes with the same p
        as the last of them are kept too. K or more: all. None: all.

    Returns:
      float32 [N, K] of 0 and 1.

    Source: SLRNet specification 6 (fp_cut, topk_classes).
    """
    score = tf.sigmoid(tf.cast(image_logits, tf.float32))
    kept = tf.ones_like(score, tf.bool)
    if score_cut is not None:
        kept &= score > score_cut
    if top_classes is not None:
        best = tf.math.top_k(score, min(top_classes, score.shape[-1])).values
        kept &= score >= best[:, -1:]
    return tf.cast(kept, tf.float32)


def filter_classes(
    masks: tf.Tensor,
    present: tf.Tensor | None = None,
    *,
    background_power: float = 1.0,
    suppressed_class: int | None = None,
) -> tf.Tensor:
    """Removes classes from masks and weakens others.

    Args:
      masks: float [N, H, W, C], 0 to 1.
      present: float32 [N, C], 1 for classes that stay and 0 for others; None: all stay.
      background_power: the masks of class 0 are raised to this power.
      suppressed_class: class that is found too often; its masks are raised to twice that power.
        None: none.

    Returns:
      float32 [N, H, W, C], 0 to 1: scores, which no longer sum to 1.

    Source: SLRNet specification 6 (bg_pow; the person of COCO).
    """
    masks = tf.cast(masks, tf.float32)
    if present is not None:
        masks *= present[:, None, None, :]
    powers = [1.0] * masks.shape[-1]
    powers[0] = background_power
    if suppressed_class is not None:
        powers[suppressed_class] = 2.0 * background_power
    if set(powers) == {1.0}:
        return masks
    return tf.pow(masks, tf.constant(powers, tf.float32))
