"""Word vectors of classes, pixel by pixel.

Source: ZS3 specification 2.5.
"""

import tensorflow as tf


def pixel_vectors(vectors: tf.Tensor, label: tf.Tensor, *, ignore_label: int) -> tf.Tensor:
    """Returns the word vector of each pixel's class.

    Args:
      vectors: float [C, D].
      label: integers, any shape; class ids or `ignore_label`.
      ignore_label: pixels with this label get the vector of class 0, as published; the caller has
        to ignore what is made from it.

    Returns:
      Float [..., D].
    """
    label = tf.cast(label, tf.int32)
    return tf.gather(vectors, tf.where(tf.equal(label, ignore_label), 0, label))
