"""CutMix: rectangles of one batch in the place of another's.

Source: UniMatch specification 2.4, 3 and 4.
"""

import tensorflow as tf


def inside(boxes: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Returns which pixels lie in each image's box, bool [N, H, W].

    Args:
      boxes: int32 [N, 4]: top, left, height, width in pixels; a height of 0 is no box.
      size: H, W.
    """
    top, left, height, width = (boxes[:, i, None] for i in range(4))
    rows, columns = (tf.range(side)[None, :] for side in size)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return in_rows[:, :, None] & in_columns[:, None, :]


def paste(own: tf.Tensor, donor: tf.Tensor, inside: tf.Tensor) -> tf.Tensor:
    """Returns the donor's values in the box, the image's own elsewhere.

    Args:
      own, donor: [N, H, W] or [N, H, W, C].
      inside: bool [N, H, W].
    """
    chosen = inside[..., None] if own.shape.rank == 4 else inside
    return tf.where(chosen, donor, own)
