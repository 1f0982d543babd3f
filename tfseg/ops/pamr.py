"""Pixel-adaptive mask refinement (PAMR): masks drawn to the edges of an image.

Each pixel takes the mean of its neighbours' mask values, weighted by likeness of colour. This is
repeated. Its neighbours are the eight of a 3x3 window, at several dilations d; beyond the border
the outermost pixels are repeated.

The neighbours are computed one after the other: each is cut out of the padded masks when its turn
comes. So the memory is that of a few copies of the masks, however many neighbours there are.

Source: Araslanov and Roth, "Single-stage semantic segmentation from image labels", CVPR 2020,
section 3.3; SLRNet specification 4.5.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from tfseg.ops.resize import resize_bilinear
from tfseg.ops.shapes import sides

DILATIONS = (1, 2, 4, 8, 12, 24)
# Share of the local standard deviation at which likeness has fallen to 1/e.
_SHARPNESS = 0.1
_EPSILON = 1e-8


def affinity(
    image: tf.Tensor, *, dilations: Sequence[int] = DILATIONS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes how similar the colours of a pixel p and of its neighbours q are.

    The softmax over q of the mean over channels of -|I_p - I_q| / (1e-8 + 0.1 s), with s the
    sample standard deviation of the window's values: nine at each dilation, the centre each time.

    Args:
      image: float32 [N, h, w, 3], RGB 0 to 1, at the size of the masks.
      dilations: distances of the neighbours, pixels.

    Returns:
      Weights, float32 [N, h, w, 8 D] for D dilations, which sum to 1: dilation by dilation, the
      neighbours of each in reading order; and s, float32 [N, h, w, 3].

    Source: specification 4.5.
    """
    centres, count = len(dilations), 9 * len(dilations)
    total = _sum_over_neighbours(lambda k, x: x, image, dilations)
    mean = (total + centres * image) / count
    squares = _sum_over_neighbours(lambda k, x: tf.square(x - mean), image, dilations)
    squares += centres * tf.square(image - mean)
    deviation = tf.sqrt(squares / (count - 1))
    scale = 1.0 / (_EPSILON + _SHARPNESS * deviation)
    unlikeness: list[tf.Tensor] = []
    for neighbour in _neighbours(image, dilations):
        with tf.control_dependencies(unlikeness[-1:]):
            unlikeness.append(tf.reduce_mean(tf.abs(image - neighbour()) * scale, -1))
    return tf.nn.softmax(-tf.stack(unlikeness, -1)), deviation


def refine(
    image: tf.Tensor,
    masks: tf.Tensor,
    *,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
) -> tf.Tensor:
    """Refines masks: `iterations` times m_p := sum over q of affinity_pq m_q, without m_p itself.

    Args:
      image: float [N, H, W, 3], RGB 0 to 1; resized to the masks (bilinear, aligned corners).
      masks: float [N, h, w, C].
      dilations: distances of the neighbours, pixels.
      iterations: how often.

    Returns:
      float32 [N, h, w, C]. Sums over classes stay what they were, where they are the same at all
      pixels, and no value leaves the range of its channel.

    Source: specification 4.5.
    """
    masks = tf.cast(masks, tf.float32)
    resized = resize_bilinear(tf.cast(image, tf.float32), tf.shape(masks)[1:3])
    weights, _ = affinity(resized, dilations=dilations)
    weights = tf.split(weights, 8 * len(dilations), axis=-1)

    def step(masks: tf.Tensor) -> tuple[tf.Tensor]:
        total = _sum_over_neighbours(lambda k, x: weights[k] * x, masks, dilations)
        return (tf.ensure_shape(total, masks.shape),)

    return tf.while_loop(
        lambda masks: True, step, (masks,), maximum_iterations=iterations, parallel_iterations=1
    )[0]


def _sum_over_neighbours(
    term: Callable[[int, tf.Tensor], tf.Tensor], x: tf.Tensor, dilations: Sequence[int]
) -> tf.Tensor:
    """Returns the sum of term(k, values of neighbour k), a tensor like `x`."""
    total = tf.zeros_like(x)
    for k, neighbour in enumerate(_neighbours(x, dilations)):
        # Or else a graph would cut out all of them at once.
        with tf.control_dependencies([total]):
            total += term(k, neighbour())
    return total


def _neighbours(x: tf.Tensor, dilations: Sequence[int]) -> Iterator[Callable[[], tf.Tensor]]:
    """Yields, for each neighbour, a function that cuts out its values, [N, h, w, D] as `x`."""
    margin = max(dilations)
    padded = x
    height, width = sides(x)
    for axis, side in ((1, height), (2, width)):
        index = tf.clip_by_value(tf.range(-margin, side + margin), 0, side - 1)
        padded = tf.gather(padded, index, axis=axis)

    def part(top: int, left: int) -> tf.Tensor:
        return padded[:, top : top + height, left : left + width]

    for d in dilations:
        for down in (-d, 0, d):
            for right in (-d, 0, d):
                if down or right:
                    yield functools.partial(part, margin + down, margin + right)
