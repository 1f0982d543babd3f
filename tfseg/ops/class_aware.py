"""Cross entropy among the classes that an image is known to hold: pure functions.

Image-level labels say which classes are present, and the class of a pixel has to be found among
these only. So the softmax runs over present classes, and absent ones get no gradient.

Notation: f logits, T temperature, g in {0, 1}^C the present classes, e = exp(f / T),
S = sum_k g_k e_k + eps, q = e / S, eps = 1e-5. The published code computes e itself, which
overflows at logits of 88 T; here everything is a difference of logarithms, with the same values.

Source: Wang et al., "Learning pseudo labels for semi-and-weakly supervised semantic segmentation",
Pattern Recognition 2022, section 3.2; Learning Pseudo Labels specification 4.1.
"""

import math

import tensorflow as tf

_LOG_EPSILON = math.log(1e-5)
# Logit of an absent class: exp is 0 in float32, and differences stay finite.
_ABSENT = -1e30


def present_classes(image_label: tf.Tensor, *, has_background: bool) -> tf.Tensor:
    """Returns which class ids an image may hold.

    Args:
      image_label: float32 [N, K] multi-hot over the image-level classes.
      has_background: class 0 is background, has no image-level label and is always present; then
        C = K + 1, else C = K.

    Returns:
      float32 [N, C] of 0 and 1.
    """
    if not has_background:
        return image_label
    return tf.pad(image_label, [[0, 0], [1, 0]], constant_values=1.0)


def mask_absent_logits(logits: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Pushes the logits (or scores) of absent classes far below all others.

    Args:
      logits: float [N, H, W, C].
      present: float32 [N, C].

    Returns:
      float32 [N, H, W, C]; its arg max is a present class.
    """
    kept = present[:, None, None, :] > 0.0
    return tf.where(kept, tf.cast(logits, tf.float32), _ABSENT)


def move_absent_to_present(
    logits: tf.Tensor, present: tf.Tensor, *, has_background: bool
) -> tf.Tensor:
    """Gives the probability of absent classes to the present ones of the foreground.

    A network that sees an object and takes it for an absent class is right that an object is there.
    So the background keeps its probability, and the foreground's is shared among its present
    classes, in the proportion that these have. A mere mask would share it with the background,
    which then often wins. In an image without a foreground class all is background.

    Args:
      logits: float [N, H, W, C].
      present: float32 [N, C], of `present_classes`.
      has_background: class 0 is background; without one this is `mask_absent_logits`.

    Returns:
      float32 [N, H, W, C]; absent classes are far below all others.

    Source: ours.
    """
    masked = mask_absent_logits(logits, present)
    if not has_background:
        return masked
    foreground = tf.cast(logits, tf.float32)[..., 1:]
    kept = masked[..., 1:]
    lost = tf.reduce_logsumexp(foreground, -1, keepdims=True) - tf.reduce_logsumexp(
        kept, -1, keepdims=True
    )
    shows_any = tf.reduce_any(present[:, None, None, 1:] > 0.0, -1, keepdims=True)
    moved = tf.where(shows_any & (kept > _ABSENT), kept + lost, kept)
    return tf.concat([masked[..., :1], moved], -1)


def class_aware_cross_entropy(
    logits: tf.Tensor,
    label: tf.Tensor,
    present: tf.Tensor,
    *,
    ignore_label: int,
    temperature: float = 1.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes -log(q_y + eps) of every pixel with label y.

    eps caps the loss at 11.5; pixels whose q_y is far below eps have nearly no gradient. Absent
    classes get no gradient, unless y itself is one.

    Args:
      logits: float [N, H, W, C].
      label: int32 [N, H, W], class ids or `ignore_label`.
      present: float32 [N, C].
      ignore_label: label of pixels that count 0.
      temperature: T, above 0.

    Returns:
      (loss, kept), both float32 [N, H, W]; kept is 0 for ignored pixels, and so is the loss there.

    Source: specification 4.1, equation of the class-aware cross entropy.
    """
    scaled = tf.cast(logits, tf.float32) / temperature
    kept = tf.not_equal(label, ignore_label)
    safe_label = tf.where(kept, label, 0)
    chosen = tf.reduce_sum(tf.one_hot(safe_label, scaled.shape[-1]) * scaled, -1)
    log_prob = _with_epsilon(chosen - _log_sum(scaled, present)[..., 0])
    return tf.where(kept, -log_prob, 0.0), tf.cast(kept, tf.float32)


def _log_sum(scaled: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns log S, float32 [N, H, W, 1]."""
    masked = mask_absent_logits(scaled, present)
    return _with_epsilon(tf.reduce_logsumexp(masked, -1, keepdims=True))


def _with_epsilon(x: tf.Tensor) -> tf.Tensor:
    """Returns log(exp(x) + eps)."""
    return tf.nn.softplus(x - _LOG_EPSILON) + _LOG_EPSILON
