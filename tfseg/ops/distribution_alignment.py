"""Distribution alignment of pixels: pure functions.

A network that learns from its own predictions finds ever more of the classes that it often finds,
and loses the others. Alignment multiplies the probability of a class by its area in the masks over
its area in the predictions.

Source: Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1, for the classes of whole images.
Areas, and images whose classes are known: ours.
"""

import tensorflow as tf

# What counts as seen before the first image: this share of an image, of all classes alike. It keeps
# the factors of the first steps near 1.
_PRIOR = 0.01


def areas(probability: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Returns the share of each image that each class takes, float32 [N, C].

    Args:
      probability: float32 [N, H, W, C].
      valid: float32 [N, H, W], 0 for pixels that do not count; an image of such alone has areas of
        0.
    """
    counted = valid[..., None]
    return tf.math.divide_no_nan(
        tf.reduce_sum(probability * counted, [1, 2]), tf.reduce_sum(counted, [1, 2])
    )


def area_means(area: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns what running means of a class's area in the images that may show it are made of.

    Args:
      area: float32 [N, C], of `areas`.
      present: float32 [N, C], 1 where an image may show the class.

    Returns:
      float32 [2, C]: the mean area, with 0 for an image that does not show the class, and the share
      of images that may show it.
    """
    return tf.stack([tf.reduce_mean(area * present, 0), tf.reduce_mean(present, 0)])


def factors(of_masks: tf.Tensor, of_predictions: tf.Tensor) -> tf.Tensor:
    """Returns what the probability of each class is multiplied by, float32 [C], above 0.

    Args:
      of_masks, of_predictions: float32 [2, C], running means of `area_means` that began at 0.
    """
    return _area_where_shown(of_masks) / _area_where_shown(of_predictions)


def _area_where_shown(means: tf.Tensor) -> tf.Tensor:
    area, shown = tf.unstack(means)
    return (area + _PRIOR / area.shape[0]) / (shown + _PRIOR)


def align(logits: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns logits whose probabilities are the former ones times the factors, normalised.

    Args:
      logits: float32 [N, H, W, C].
      factor: float32 [C], above 0.
    """
    return logits + tf.math.log(factor)
