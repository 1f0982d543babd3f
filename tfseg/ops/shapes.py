"""Sides of a tensor that may be unknown while a graph is built."""

from collections.abc import Sequence

import tensorflow as tf

Side = int | tf.Tensor


def sides(x: tf.Tensor, axes: Sequence[int] = (1, 2)) -> tuple[Side, ...]:
    """Returns the sizes of axes: ints where they are known while a graph is built.

    A known size is kept as such, for shape inference.

    Args:
      x: of any type and rank; height and width are axes 1 and 2 of [N, h, w, C].
      axes: which ones.

    Returns:
      For each axis an int, or a scalar int32 tensor where only the run tells.
    """
    dynamic = tf.shape(x)
    return tuple(dynamic[axis] if x.shape[axis] is None else x.shape[axis] for axis in axes)
