"""Class activation maps and their refinement by self-attention: pure functions.

Notation: N images, a grid of h x w cells, D feature channels, K image-level classes.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017; PseudoSeg specification 5.3 and 5.4.
"""

import tensorflow as tf

from tfseg.ops.losses import safe_divide

# Added to the score of a pair with a padded cell, so that its softmax is exactly 0 in float32.
_MASKED = -1e9


def class_activation_maps(
    features: tf.Tensor, kernel: tf.Tensor, multiplier: tf.Tensor | None = None
) -> tf.Tensor:
    """Computes Grad-CAM for a classifier that is a mean over space and a linear map.

    There the gradient of class c's logit is constant over space, G_k = W[k, c] m_k / (h w), so
    that one matrix product replaces K backward passes: cam_c = ReLU(sum_k G_k A_k).

    Args:
      features: A, float [N, h, w, D], the classifier's input before its mean.
      kernel: W, float32 [1, 1, D, K].
      multiplier: m, dropout's factors on the pooled features, float32 [N or 1, 1, 1, D]; None: 1.

    Returns:
      float32 [N, h, w, K], at least 0.

    Source: specification 5.3.
    """
    features = tf.cast(features, tf.float32)
    if multiplier is not None:
        features *= multiplier
    cells = tf.cast(tf.shape(features)[1] * tf.shape(features)[2], tf.float32)
    return tf.nn.relu(tf.nn.conv2d(features, kernel, 1, "SAME")) / cells


def grad_cam(image_logits: tf.Tensor, features: tf.Tensor, *, per_image: bool = True) -> tf.Tensor:
    """Computes Grad-CAM of any layer, by one backward pass for each class.

    Works inside a `tf.function` only.

    Args:
      image_logits: float32 [N, K], computed from `features`.
      features: A, float [N, h, w, D].
      per_image: the gradient's mean is taken over space; False: over batch and rows, the published
        quirk.

    Returns:
      float32 [N, h, w, K], at least 0: ReLU(sum_k mean(G_k) A_k).

    Source: specification 5.3.
    """
    axes = [1, 2] if per_image else [0, 1]
    wide = tf.cast(features, tf.float32)
    maps = []
    for score in tf.unstack(tf.reduce_sum(image_logits, 0)):
        gradient = tf.cast(tf.gradients(score, features)[0], tf.float32)
        weights = tf.reduce_mean(gradient, axes, keepdims=True)
        maps.append(tf.reduce_sum(weights * wide, -1))
    return tf.nn.relu(tf.stack(maps, -1))


def normalise_maps(maps: tf.Tensor, image_label: tf.Tensor) -> tf.Tensor:
    """Keeps the maps of present classes and scales each to a maximum of 1.

    Args:
      maps: float32 [N, h, w, K], at least 0.
      image_label: float32 [N, K], 1 where the class is taken to be present.

    Returns:
      float32 [N, h, w, K] in [0, 1]; 0 for absent classes. A maximum below 1e-5 counts as 1e-5.

    Source: specification 5.3.
    """
    maps *= image_label[:, None, None, :]
    return safe_divide(maps, tf.reduce_max(maps, [1, 2], keepdims=True))


def with_background(scores: tf.Tensor, *, ceiling: float) -> tf.Tensor:
    """Prepends a background channel: ceiling minus the largest foreground score.

    Args:
      scores: float [N, h, w, K].
      ceiling: largest value that a score can take: 1 for normalised maps, 2 for their sum with an
        average of them.

    Returns:
      float [N, h, w, 1 + K].
    """
    background = ceiling - tf.reduce_max(scores, -1, keepdims=True)
    return tf.concat([background, scores], -1)


def attention_scores(query: tf.Tensor, key: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Computes S = q k^T / sqrt(d), pushed down to -1e9 where a cell of the pair is padding.

    Args:
      query, key: float32 [N, P, d], P cells.
      valid: float32 [N, P], 1 = image, 0 = padding or cut-out.

    Returns:
      float32 [N, P, P], queries by keys. Its softmax over keys gives an invalid query the same
      weight everywhere.

    Source: specification 5.4.
    """
    scores = tf.matmul(query, key, transpose_b=True) * (query.shape[-1] ** -0.5)
    both = valid[:, :, None] * valid[:, None, :]
    return scores + (1.0 - both) * _MASKED
