"""Segmentation and classification losses: pure functions of tensors.

Inside a replica of a `tf.distribute` strategy the sums and denominators are the replica's own,
as published; with `over_replicas=True` they are taken over the global batch, scaled so that the
mean over replicas is the loss of the whole batch.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.errors import check_choice
from tfseg.ops.resize import resize_bilinear, resize_nearest_align_corners


def safe_divide(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    """Divides, giving 0 where the denominator is not positive.

    Args:
      numerator: float tensor.
      denominator: float tensor that broadcasts with it.

    Returns:
      `numerator / max(1e-5, denominator)`, or 0 where `denominator <= 0`.

    Source: PseudoSeg specification, notation `div0`.
    """
    quotient = numerator / tf.maximum(denominator, 1e-5)
    return tf.where(denominator > 0, quotient, tf.zeros_like(quotient))


def replica_mean(x: tf.Tensor) -> tf.Tensor:
    """Returns the mean of a float tensor over the replicas.

    A denominator d has to be averaged so: the mean over R replicas of n_r / d̄ is Σn / Σd.
    """
    context = tf.distribute.get_replica_context()
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, x)
    return total / tf.cast(context.num_replicas_in_sync, x.dtype)


def mean_over(loss: tf.Tensor, weight: tf.Tensor, *, over_replicas: bool = False) -> tf.Tensor:
    """Returns the sum of losses that are weighted already, over the sum of weights.

    Args:
      loss: float32, any shape; a loss whose weight is 0 is 0.
      weight: float32, any shape.
      over_replicas: take the sum of weights over the global batch.

    Returns:
      float32 scalar; 0 where all weights are 0.
    """
    total = tf.reduce_sum(weight)
    if over_replicas:
        total = replica_mean(total)
    return safe_divide(tf.reduce_sum(loss), total)


def top_k_fraction(step: tf.Tensor, *, final: float, ramp_steps: int) -> tf.Tensor | None:
    """Returns the share of the pixels, the hardest ones, that the loss counts at this step.

    Args:
      step: int64 scalar, optimiser steps done so far.
      final: share at the end of the ramp, in (0, 1].
      ramp_steps: steps over which the share falls linearly from 1; 0: at once.

    Returns:
      float32 scalar, or None where every pixel counts.

    Source: PseudoSeg specification 5.6, OHEM.
    """
    if final >= 1.0:
        return None
    if ramp_steps == 0:
        return tf.constant(final, tf.float32)
    ratio = tf.minimum(1.0, tf.cast(step, tf.float32) / ramp_steps)
    return ratio * final + (1.0 - ratio)


def pixel_cross_entropy(
    logits: tf.Tensor,
    label: tf.Tensor,
    *,
    ignore_label: int,
    class_weights: Sequence[float] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Softmax cross entropy of every pixel.

    Args:
      logits: float [N, H, W, C].
      label: int32 [N, H, W], class ids or `ignore_label`.
      ignore_label: label of pixels that count 0.
      class_weights: C weights; None: 1.

    Returns:
      (loss, weight), both float32 [N, H, W]; ignored pixels are 0 in both. The loss is already
      weighted.
    """
    logits = tf.cast(logits, tf.float32)
    kept = tf.not_equal(label, ignore_label)
    safe_label = tf.where(kept, label, tf.zeros_like(label))
    weight = tf.cast(kept, tf.float32)
    if class_weights is not None:
        weight *= tf.gather(tf.constant(class_weights, tf.float32), safe_label)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=safe_label, logits=logits)
    return loss * weight, tf.cast(kept, tf.float32)


def weights_of(label: tf.Tensor, class_weights: Sequence[float] | None) -> tf.Tensor:
    """Returns the weight of each pixel's class, 1 without weights and for ids that have none.

    Args:
      label: int32, any shape, class ids and others.
      class_weights: by class id; None: 1.

    Returns:
      float32, shape of `label`.
    """
    if class_weights is None:
        return tf.ones_like(label, tf.float32)
    known = (label >= 0) & (label < len(class_weights))
    weight = tf.gather(tf.constant(class_weights, tf.float32), tf.where(known, label, 0))
    return tf.where(known, weight, 1.0)


def number_of_hardest(pixels: tf.Tensor, top_k: tf.Tensor) -> tf.Tensor:
    """Returns trunc(top_k * pixels), int32; above 2^24 pixels, where float32 rounds, at most all.

    Args:
      pixels: int32 scalar.
      top_k: float32 scalar in (0, 1].
    """
    return tf.minimum(tf.cast(top_k * tf.cast(pixels, tf.float32), tf.int32), pixels)


def hardest_pixels_mean(
    pixel_loss: tf.Tensor, top_k: tf.Tensor, *, over_replicas: bool = False
) -> tf.Tensor:
    """Mean of the largest pixel losses.

    Args:
      pixel_loss: float32, any shape; ignored pixels are 0 and count in the number of pixels.
      top_k: float32 scalar in (0, 1]: trunc(top_k * number of pixels) are kept.
      over_replicas: take the hardest pixels of the global batch.

    Returns:
      float32 scalar: their sum over the number of those that are not 0.

    Source: PseudoSeg specification 5.6.
    """
    flat = tf.reshape(pixel_loss, [-1])
    if not over_replicas:
        k = number_of_hardest(tf.size(flat), top_k)
        hardest = tf.math.top_k(flat, k=k, sorted=False).values
        present = tf.reduce_sum(tf.cast(tf.not_equal(hardest, 0.0), tf.float32))
        return safe_divide(tf.reduce_sum(hardest), present)
    context = tf.distribute.get_replica_context()
    everywhere = context.all_gather(tf.stop_gradient(flat), axis=0)
    k = number_of_hardest(tf.size(everywhere), top_k)
    threshold = tf.math.top_k(everywhere, k=k).values[-1]
    # Values equal to the threshold tie for the last places: each takes an equal part of them.
    above = tf.cast(everywhere > threshold, tf.float32)
    tied = tf.cast(tf.equal(everywhere, threshold), tf.float32)
    tied_share = safe_divide(tf.cast(k, tf.float32) - tf.reduce_sum(above), tf.reduce_sum(tied))
    kept = tf.where(flat > threshold, 1.0, tf.where(tf.equal(flat, threshold), tied_share, 0.0))
    kept_positive = kept * tf.cast(tf.not_equal(flat, 0.0), tf.float32)
    return safe_divide(tf.reduce_sum(kept * flat), replica_mean(tf.reduce_sum(kept_positive)))


def segmentation_loss(
    logits: tf.Tensor,
    label: tf.Tensor,
    *,
    ignore_label: int,
    class_weights: Sequence[float] | None = None,
    upsample_logits: bool = True,
    top_k: tf.Tensor | None = None,
    denominator: str = "pixels",
    over_replicas: bool = False,
) -> tf.Tensor:
    """Mean softmax cross entropy over the pixels that are not ignored.

    Args:
      logits: float [N, h, w, C], usually at a stride of 4.
      label: int32 [N, H, W].
      ignore_label: label of pixels that count 0.
      class_weights: C weights on the loss; None: 1.
      upsample_logits: resize logits to the labels (align corners); False: labels to the logits
        (nearest, align corners).
      top_k: share of hardest pixels, or None; see `top_k_fraction`.
      denominator: 'pixels': the number of those that are not ignored; 'weights': the sum of their
        class weights. Not used with `top_k`.
      over_replicas: take denominator and hardest pixels over the global batch.

    Returns:
      float32 scalar; 0 where every pixel is ignored.

    Source: PseudoSeg specification 5.6; ZS3 specification 4.7 ('weights').
    """
    check_choice(denominator, ("pixels", "weights"), flag="denominator", what="denominator")
    if upsample_logits:
        logits = resize_bilinear(tf.cast(logits, tf.float32), tf.shape(label)[1:3])
    else:
        label = resize_nearest_align_corners(label[..., None], tf.shape(logits)[1:3])[..., 0]
    pixel_loss, kept = pixel_cross_entropy(
        logits, label, ignore_label=ignore_label, class_weights=class_weights
    )
    if top_k is not None:
        return hardest_pixels_mean(pixel_loss, top_k, over_replicas=over_replicas)
    if denominator == "weights" and class_weights is not None:
        safe_label = tf.where(kept > 0, label, tf.zeros_like(label))
        kept *= tf.gather(tf.constant(class_weights, tf.float32), safe_label)
    return mean_over(pixel_loss, kept, over_replicas=over_replicas)


def focal_of_mean(
    mean_cross_entropy: tf.Tensor, *, gamma: float = 2.0, alpha: float = 0.5
) -> tf.Tensor:
    """Computes a focal loss from the mean cross entropy of a batch.

    Lin's focal loss is another one: it weighs every pixel by itself.

    Args:
      mean_cross_entropy: float scalar.
      gamma: exponent on 1 - p, where p = exp(-mean_cross_entropy).
      alpha: factor.

    Returns:
      alpha (1 - p)^gamma mean_cross_entropy.

    Source: ZS3 specification 4.7.
    """
    confidence = tf.exp(-mean_cross_entropy)
    return alpha * tf.pow(1.0 - confidence, gamma) * mean_cross_entropy


def multi_label_loss(logits: tf.Tensor, image_label: tf.Tensor) -> tf.Tensor:
    """Mean sigmoid cross entropy over all images and classes.

    Args:
      logits: float [N, K].
      image_label: float32 [N, K] multi-hot.

    Returns:
      float32 scalar.

    Source: PseudoSeg specification 5.2.
    """
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(
            labels=image_label, logits=tf.cast(logits, tf.float32)
        )
    )


def consistency_loss(
    target: tf.Tensor,
    logits: tf.Tensor,
    valid: tf.Tensor,
    confident: tf.Tensor | None = None,
    *,
    over_replicas: bool = False,
) -> tf.Tensor:
    """Cross entropy of logits against a soft or hard target, over the valid pixels.

    Args:
      target: float32 [N, H, W, C] distributions, or int32 [N, H, W] class ids.
      logits: float [N, H, W, C].
      valid: float32 [N, H, W], 0 for padding and cut-out.
      confident: float32 [N, H, W], 0 for pixels whose loss counts 0; they stay in the denominator.
      over_replicas: take the denominator over the global batch.

    Returns:
      float32 scalar: sum of CE * valid * confident over the sum of valid; 0 where nothing is valid.

    Source: PseudoSeg specification 5.6, item 4.
    """
    logits = tf.cast(logits, tf.float32)
    if target.dtype.is_floating:
        pixel_loss = tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=logits)
    else:
        pixel_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits)
    weight = valid if confident is None else valid * confident
    return mean_over(pixel_loss * weight, valid, over_replicas=over_replicas)
