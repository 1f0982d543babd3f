"""Maximum mean discrepancy: how far apart two sets of samples are in distribution.

Source: Li et al., "Generative moment matching networks", ICML 2015; ZS3 specification 4.1.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.errors import check_choice

# Squared widths of the kernels, as in the published code (the paper has 60 for the last).
BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)


def mmd(
    generated: tf.Tensor,
    real: tf.Tensor,
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
    weights: str = "right",
    epsilon: float = 1e-8,
) -> tf.Tensor:
    """Computes sqrt(mean k(g, g') + mean k(r, r') - 2 mean k(g, r)) over all pairs.

    k(x, y) is the sum over the bandwidths v of exp(-|x - y|^2 / (2 v)); a sample's pair with itself
    counts.

    Args:
      generated: float [..., M, D], samples of one set.
      real: [..., N, D], samples of the other, with the same leading axes.
      bandwidths: v, squared widths of the kernels in the units of the samples.
      weights: 'right': each set's samples weigh one over their number. 'published': the N first of
        all M + N samples, generated ones first, weigh 1 / N and the others -1 / M, which mixes the
        sets where M is not N.
      epsilon: added under the root, so that equal sets have a gradient (of 0).

    Returns:
      [...] in the type of the samples; sqrt(epsilon) for equal sets.

    Raises:
      UserError: unknown `weights`.

    Source: ZS3 specification 4.1. Ours: rounding below 0 is clamped, and epsilon.
    """
    check_choice(weights, ("right", "published"), flag="mmd_weights", what="estimator")
    samples = tf.concat([generated, real], -2)
    squares = tf.reduce_sum(tf.square(samples), -1)
    products = tf.matmul(samples, samples, transpose_b=True)
    distances = squares[..., :, None] + squares[..., None, :] - 2.0 * products
    distances = tf.maximum(distances, 0.0)
    kernel = tf.add_n([tf.exp(distances / (-2.0 * v)) for v in bandwidths])
    weight = _sample_weights(tf.shape(generated)[-2], tf.shape(real)[-2], weights, samples.dtype)
    total = tf.reduce_sum(kernel * (weight[:, None] * weight[None, :]), [-2, -1])
    return tf.sqrt(tf.maximum(total, 0.0) + epsilon)


def _sample_weights(m: tf.Tensor, n: tf.Tensor, kind: str, dtype: tf.DType) -> tf.Tensor:
    """Returns the weights of M generated and N real samples, [M + N]."""
    of_m, of_n = (1.0 / tf.cast(count, dtype) for count in (m, n))
    if kind == "published":
        return tf.concat([tf.fill([n], of_n), tf.fill([m], -of_m)], 0)
    return tf.concat([tf.fill([m], of_m), tf.fill([n], -of_n)], 0)
