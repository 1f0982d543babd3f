"""Pseudo labels on which all views of an image agree: pure functions.

A network sees an image as it is, mirrored, and at other sizes. Its answer for each view is brought
to the geometry of the first view. A pixel gets a label where every view has the same arg max.

Source: Pastore et al., "A closer look at self-training for zero-label semantic segmentation", L2ID
at CVPR 2021; STRICT specification 4.1 to 4.3.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfseg.ops.resize import Size, rescale_bilinear, resize_bilinear


@dataclasses.dataclass(frozen=True)
class View:
    """One view of a batch of images.

    Attributes:
      image: float32 [N, h, w, 3].
      mirrored: left and right are exchanged.
      scale: size relative to the first view, a number or a float scalar tensor.
    """

    image: tf.Tensor
    mirrored: bool
    scale: float | tf.Tensor = 1.0


def scaled_views(
    image: tf.Tensor, *, scales: Sequence[float | tf.Tensor], mirror: bool
) -> list[View]:
    """Returns the views of a batch of images, the images themselves first.

    Args:
      image: float32 [N, H, W, 3].
      scales: sizes of further views, relative to the first.
      mirror: every view is followed by its mirror image.

    Returns:
      (1 + number of scales) views, twice as many with `mirror`.

    Source: specification 4.1.
    """
    sources = [image, tf.reverse(image, [2])] if mirror else [image]
    return [View(source, mirrored) for source, mirrored in zip(sources, (False, True))] + [
        View(rescale_bilinear(source, scale), mirrored, scale)
        for scale in scales
        for source, mirrored in zip(sources, (False, True))
    ]


def to_first(
    scores: tf.Tensor, size: Size, *, mirrored: bool, align_corners: bool = False
) -> tf.Tensor:
    """Brings a network's scores of a view to the geometry of the first view.

    Args:
      scores: float [N, h, w, C].
      size: (height, width) of the result.
      mirrored: whether the view was mirrored.
      align_corners: how they are resized; False: half-pixel centres, as published.

    Returns:
      float [N, height, width, C] in the type of `scores`.

    Source: specification 4.1.
    """
    if mirrored:
        scores = tf.reverse(scores, [2])
    return resize_bilinear(scores, size, align_corners=align_corners)


def agree(view_scores: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the arg max of the first view, and where all views share it.

    Args:
      view_scores: float [N, h, w, C] of each view, in the geometry of the first.

    Returns:
      int32 [N, h, w], and bool [N, h, w], true everywhere for a single view.

    Source: specification 4.2.
    """
    first, *others = (tf.argmax(scores, -1, output_type=tf.int32) for scores in view_scores)
    kept = tf.ones_like(first, tf.bool)
    for other in others:
        kept &= tf.equal(first, other)
    return first, kept


def complete(
    label: tf.Tensor,
    pseudo: tf.Tensor,
    kept: tf.Tensor,
    candidate: tf.Tensor,
    *,
    otherwise: int,
) -> tf.Tensor:
    """Puts pseudo labels in the place of missing labels.

    Args:
      label: int32 [N, h, w].
      pseudo: int32 [N, h, w], pseudo labels.
      kept: bool [N, h, w], which of them count.
      candidate: bool [N, h, w], pixels whose label is missing.
      otherwise: label of candidates without a pseudo label that counts.

    Returns:
      int32 [N, h, w]; `label` wherever there is no candidate.

    Source: specification 4.3.
    """
    return tf.where(candidate, tf.where(kept, pseudo, otherwise), label)
