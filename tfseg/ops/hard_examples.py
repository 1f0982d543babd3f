"""Online hard example mining by a probability and a count.

Source: UniMatch specification 3.1. (`ops.losses.hardest_pixels_mean` takes a share.)
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.ops.losses import mean_over, pixel_cross_entropy


def hard_pixels(
    logits: tf.Tensor,
    label: tf.Tensor,
    *,
    ignore_label: int,
    threshold: float,
    min_kept: int,
    over_replicas: bool = False,
) -> tf.Tensor:
    """Returns which pixels count, bool [N, H, W].

    p is the probability of a pixel's true class, and 1 for ignored pixels. If fewer than `min_kept`
    pixels are not ignored, all of these count. Otherwise a pixel counts whose p is at most the
    threshold, or at most the `min_kept`-th smallest p if that is larger.

    Args:
      logits: float32 [N, H, W, C].
      label: int32 [N, H, W], class ids or `ignore_label`.
      ignore_label: of pixels that never count.
      threshold: probability.
      min_kept: pixels; of a replica.
      over_replicas: look at the pixels of the global batch; `min_kept` is then multiplied by the
        number of replicas.
    """
    kept = tf.not_equal(label, ignore_label)
    safe_label = tf.where(kept, label, 0)
    log_prob = tf.nn.log_softmax(tf.stop_gradient(logits))
    prob = tf.exp(tf.gather(log_prob, safe_label, axis=-1, batch_dims=3))
    prob = tf.where(kept, prob, 1.0)
    everywhere, known = tf.reshape(prob, [-1]), tf.reduce_sum(tf.cast(kept, tf.float32))
    if over_replicas:
        context = tf.distribute.get_replica_context()
        everywhere = context.all_gather(everywhere, axis=0)
        known = context.all_reduce(tf.distribute.ReduceOp.SUM, known)
        min_kept *= context.num_replicas_in_sync
    limit = tf.constant(threshold, tf.float32)
    if min_kept > 0:
        # XLA wants a number that is known while the graph is built.
        size = everywhere.shape[0] or tf.size(everywhere)
        count = min(min_kept, size) if isinstance(size, int) else tf.minimum(min_kept, size)
        smallest = -tf.math.top_k(-everywhere, k=count).values[-1]
        limit = tf.maximum(limit, smallest)
    return kept & ((prob <= limit) | (known < float(min_kept)))


def hard_pixel_loss(
    logits: tf.Tensor,
    label: tf.Tensor,
    *,
    ignore_label: int,
    threshold: float = 0.7,
    min_kept: int = 200000,
    class_weights: Sequence[float] | None = None,
    over_replicas: bool = False,
) -> tf.Tensor:
    """Mean cross entropy over the pixels of `hard_pixels`, whose arguments these are.

    Args:
      class_weights: C weights on the loss; which pixels count does not depend on them.

    Returns:
      float32 scalar; 0 where every pixel is ignored.
    """
    logits = tf.cast(logits, tf.float32)
    counted = hard_pixels(
        logits,
        label,
        ignore_label=ignore_label,
        threshold=threshold,
        min_kept=min_kept,
        over_replicas=over_replicas,
    )
    hard = tf.where(counted, label, ignore_label)
    loss, kept = pixel_cross_entropy(
        logits, hard, ignore_label=ignore_label, class_weights=class_weights
    )
    return mean_over(loss, kept, over_replicas=over_replicas)
