"""The two views of an image: a smaller, perhaps mirrored copy, the way back, and comparison.

All resizing is bilinear with aligned corners.

Source: Pan et al., "Learning self-supervised low-rank network for single-stage weakly and
semi-supervised semantic segmentation", IJCV 2022; SLRNet specification 2 (multi-view).
"""

import tensorflow as tf

from tfseg.ops.resize import Size, resize_bilinear


def second_view(image: tf.Tensor, *, scale: float, flip: tf.Tensor | None = None) -> tf.Tensor:
    """Makes the second view: the image resized, then mirrored where asked for.

    Args:
      image: float [N, H, W, D].
      scale: factor on both sides, above 0.
      flip: bool [N], the images to mirror left and right; None: none.

    Returns:
      float [N, int(H scale), int(W scale), D].

    Source: specification 2.
    """
    dynamic = tf.shape(image)
    size = []
    for axis in (1, 2):
        side = image.shape[axis]
        if side is None:
            size.append(tf.cast(tf.cast(dynamic[axis], tf.float64) * scale, tf.int32))
        else:
            size.append(int(side * scale))
    return _mirrored(resize_bilinear(image, size), flip)


def to_first_view(x: tf.Tensor, size: Size, *, flip: tf.Tensor | None = None) -> tf.Tensor:
    """Brings what was computed from the second view onto the grid of the first.

    Args:
      x: float [N, h2, w2, D]: codes, logits or masks of the second view.
      size: (height, width) of the grid: ints, or an int32 tensor.
      flip: bool [N], as it was given to `second_view`; None: none.

    Returns:
      float [N, height, width, D].

    Source: specification 2.
    """
    return resize_bilinear(_mirrored(x, flip), size)


def largest_only(codes: tf.Tensor) -> tf.Tensor:
    """Sets all but the largest code of each pixel to zero; ties are all kept.

    Args:
      codes: float [N, h, w, K].

    Returns:
      float [N, h, w, K]; gradients go to the codes that were kept.

    Source: specification 4.4.
    """
    top = tf.reduce_max(tf.stop_gradient(codes), -1, keepdims=True)
    return tf.where(tf.equal(codes, top), codes, tf.zeros_like(codes))


def _mirrored(x: tf.Tensor, flip: tf.Tensor | None) -> tf.Tensor:
    return x if flip is None else tf.where(flip[:, None, None, None], x[:, :, ::-1], x)
