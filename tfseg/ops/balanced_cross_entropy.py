"""Cross entropy in which classes with many pixels in an image count less.

Source: Araslanov and Roth, "Single-stage semantic segmentation from image labels", CVPR 2020,
section 3.3; SLRNet specification 4.6.
"""

import tensorflow as tf

from tfseg.ops.losses import pixel_cross_entropy
from tfseg.ops.resize import resize_bilinear


def balanced_cross_entropy(
    logits: tf.Tensor,
    label: tf.Tensor,
    *,
    ignore_label: int,
    image_label: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the class-balanced cross entropy of each image.

    Class k has the weight (T - n_k) / (1 + T) in an image with n_k labelled pixels of it and T in
    all. An image whose labelled pixels are all of one class therefore has a loss of 0.

    Args:
      logits: float [N, h, w, C]; resized to the labels (bilinear, aligned corners).
      label: int32 [N, H, W], class ids or `ignore_label`.
      ignore_label: label of pixels that count 0.
      image_label: float32 [N, C - 1] multi-hot over the foreground classes. With it an image
        counts only if the number of classes with labelled pixels is that of its image-level
        classes plus 1 for background. None: every image counts.

    Returns:
      float32 [N], means over all H W pixels, the ignored ones too; 0 for images that do not count.

    Source: specification 4.6.
    """
    logits = resize_bilinear(tf.cast(logits, tf.float32), tf.shape(label)[1:3])
    pixel_loss, kept = pixel_cross_entropy(logits, label, ignore_label=ignore_label)
    counts = _pixels_per_class(label, kept > 0, logits.shape[-1])
    total = tf.reduce_sum(counts, -1, keepdims=True)
    class_weights = (total - counts) / (1.0 + total)
    of_pixel = tf.gather(class_weights, tf.where(kept > 0, label, 0), batch_dims=1)
    loss = tf.reduce_mean(of_pixel * pixel_loss, [1, 2])
    if image_label is None:
        return loss
    seen = tf.reduce_sum(tf.cast(counts > 0, tf.float32), -1)
    return tf.where(tf.equal(seen, 1.0 + tf.reduce_sum(image_label, -1)), loss, 0.0)


def _pixels_per_class(label: tf.Tensor, kept: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns how many kept pixels each class has, float32 [N, C]."""
    images = tf.shape(label)[0]
    # Negative segments are dropped.
    segment = tf.where(kept, label + classes * tf.range(images)[:, None, None], -1)
    # In integers: a sum of ones in float32 stops at 2^24.
    counts = tf.math.unsorted_segment_sum(
        tf.cast(kept, tf.int32), segment, num_segments=classes * images
    )
    return tf.cast(tf.reshape(counts, [images, classes]), tf.float32)
