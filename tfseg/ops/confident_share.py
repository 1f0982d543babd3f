"""The most confident share of every class and image, as pseudo labels: ZS5's rule, and ours.

A network may have been trained on labels that call unknown objects background. It then gives them
no higher probability than it gives to real background in other images, but within their image they
stand out. `standardised` measures how much, and `class_of_image` chooses their class.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019, section 3.2 (ZS5); ZS3
specification 4.6, which settles what the paper leaves open.
"""

from collections.abc import Sequence

import tensorflow as tf

# Far below the variance of log-probabilities within any image.
_VARIANCE_FLOOR = 1e-6


def most_confident(
    probs: tf.Tensor, candidate: tf.Tensor, *, classes: Sequence[int], percent: float
) -> tf.Tensor:
    """Labels, in each image, the most confident pixels of each class.

    A class is the arg max of n candidates of an image. The floor(percent n / 100) of them with the
    highest probability are kept. Among equal ones, the first in reading order are kept.

    Args:
      probs: float [N, h, w, C]; only their order and the arg max matter.
      candidate: bool [N, h, w], pixels that may get a label.
      classes: channels that may be named.
      percent: share, 0 to 100.

    Returns:
      int32 [N, h, w]: the channel, or -1.

    Source: specification 4.6.
    """
    shape = tf.shape(candidate)
    label = tf.argmax(probs, -1, output_type=tf.int32)
    flat_label, confidence, flat_candidate = (
        tf.reshape(x, [shape[0], -1]) for x in (label, tf.reduce_max(probs, -1), candidate)
    )
    order = tf.argsort(confidence, direction="DESCENDING", stable=True)
    # By falling confidence: the class of each pixel, and its rank among the pixels of this class.
    named = tf.equal(flat_label[..., None], tf.constant(classes, tf.int32))
    named = tf.gather(named & flat_candidate[..., None], order, batch_dims=1)
    number = tf.cumsum(tf.cast(named, tf.int32), axis=1)
    count = tf.cast(number[:, -1:], tf.float64)
    allowed = tf.cast(tf.floor(percent * count / 100.0), tf.int32)
    kept = tf.reduce_any(named & (number <= allowed), -1)
    kept = tf.gather(kept, tf.argsort(order), batch_dims=1)
    return tf.where(tf.reshape(kept, shape), label, -1)


def standardised(scores: tf.Tensor, candidate: tf.Tensor) -> tf.Tensor:
    """Returns scores minus their mean over an image's candidates, divided by their deviation.

    Args:
      scores: float32 [N, h, w, C].
      candidate: bool [N, h, w]; an image without any gives zeros.

    Returns:
      float32 [N, h, w, C].

    Source: ours.
    """
    weight = tf.cast(candidate, tf.float32)[..., None]
    count = tf.maximum(tf.reduce_sum(weight, [1, 2], keepdims=True), 1.0)
    mean = tf.reduce_sum(scores * weight, [1, 2], keepdims=True) / count
    centred = (scores - mean) * tf.reduce_max(weight, [1, 2], keepdims=True)
    variance = tf.reduce_sum(centred**2 * weight, [1, 2], keepdims=True) / count
    return centred * tf.math.rsqrt(variance + _VARIANCE_FLOOR)


def class_of_image(scores: tf.Tensor, chosen: tf.Tensor, candidate: tf.Tensor) -> tf.Tensor:
    """Returns the class whose scores at an image's chosen pixels exceed its usual score most.

    A network favours some of the classes that it has never learned, whatever it is shown. So a
    class is compared with its own mean over the candidates of the batch, not with other classes.

    Args:
      scores: float32 [N, h, w, C].
      chosen: bool [N, h, w]; an image without any gets some class.
      candidate: bool [N, h, w].

    Returns:
      int32 [N]: the channel.

    Source: ours.
    """

    def mean(of, axes):
        weight = tf.cast(of, tf.float32)[..., None]
        total = tf.reduce_sum(scores * weight, axes)
        return tf.math.divide_no_nan(total, tf.reduce_sum(weight, axes))

    usual = mean(candidate, [0, 1, 2])
    return tf.argmax(mean(chosen, [1, 2]) - usual, -1, output_type=tf.int32)
