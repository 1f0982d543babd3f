"""Layouts of unseen classes, made from label maps without unseen classes.

Features of an unseen class are generated for pixels where the class is. The published code takes
these pixels from the ground truth of the unseen classes. Here an unseen class gets the region of a
seen class, with its shape, size and surroundings.

Source: ours; ZS3 specification 8.1 (what is wrong with the published way).
"""

from collections.abc import Sequence

import tensorflow as tf

_LABELS = 256


def rename(
    label: tf.Tensor, seed: tf.Tensor, *, unseen: Sequence[int], foreground: Sequence[int]
) -> tf.Tensor:
    """Gives all pixels of one seen class to an unseen class, in every image.

    Regions and their neighbourhood stay as they are.

    Args:
      label: int32 [N, H, W], 0 to 255.
      seed: int32 [2].
      unseen: ids of the unseen classes; each is equally likely.
      foreground: ids of the seen classes that may be given away; each that the image holds is
        equally likely.

    Returns:
      int32 [N, H, W]; an image that holds none of `foreground` is unchanged.

    Source: ours.
    """
    return _renamed(label, seed, unseen=unseen, foreground=foreground, balanced=False)


def balanced(
    label: tf.Tensor, seed: tf.Tensor, *, unseen: Sequence[int], foreground: Sequence[int]
) -> tf.Tensor:
    """Gives half of an image's seen classes, rounded up, to unseen classes.

    Args:
      label, seed, unseen, foreground: as for `rename`.

    Returns:
      int32 [N, H, W]; classes that are given away become different unseen ones as long as there are
      any left.

    Source: ours.
    """
    return _renamed(label, seed, unseen=unseen, foreground=foreground, balanced=True)


def _renamed(label, seed, *, unseen, foreground, balanced: bool) -> tf.Tensor:
    images = label.shape[0]
    present = _present(label, foreground)
    order, order_of_unseen = (
        tf.argsort(tf.random.stateless_uniform([images, len(ids)], part, alg="philox"), axis=-1)
        for ids, part in zip(
            (foreground, unseen), tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        )
    )
    # The rank of each class among those present, in a random order; absent ones take no number.
    shuffled = tf.gather(present, order, batch_dims=1)
    rank = tf.cumsum(tf.cast(shuffled, tf.int32), axis=-1) - 1
    number = rank[:, -1:] + 1
    given = shuffled & (rank < ((number + 1) // 2 if balanced else 1))
    new = tf.gather(
        tf.gather(tf.constant(unseen, tf.int32), order_of_unseen),
        tf.maximum(rank, 0) % len(unseen),
        batch_dims=1,
    )
    old = tf.gather(tf.constant(foreground, tf.int32), order)
    # What becomes of every label value: [N, 256].
    change = tf.where(given, new - old, 0)
    table = tf.range(_LABELS) + tf.reduce_sum(
        change[..., None] * tf.one_hot(old, _LABELS, dtype=tf.int32), axis=1
    )
    return tf.gather(table, label, batch_dims=1)


def _present(label: tf.Tensor, classes: Sequence[int]) -> tf.Tensor:
    """Returns which of some classes an image holds, bool [N, len(classes)]."""
    images = label.shape[0]
    segment = label + _LABELS * tf.range(images)[:, None, None]
    counts = tf.math.unsorted_segment_sum(tf.ones_like(segment), segment, images * _LABELS)
    return tf.gather(tf.reshape(counts, [images, _LABELS]), classes, axis=1) > 0
