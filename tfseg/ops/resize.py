"""Resizing, with the grids of the field.

`tf.image.resize` samples at half-pixel centres, and so do OpenCV and Pillow, whose cubic resizes
are here too; the DeepLab family aligns the corner pixels of input and output. Bilinear resizing is
linear and separable. Where there are GPUs it is two small matrix products here, which XLA compiles
well and whose gradients need no atomic additions; on CPUs TensorFlow's kernel takes a third of
their time ([2, 129, 129, 21] to 513 x 513, with gradient: 25 against 82 ms of processor time).
Graphs that leave this machine are built with `bilinear_by`, which says which of the two they hold.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfseg.ops.shapes import Side, sides

Size = Sequence[int] | tf.Tensor
# How bilinear resizing is computed: TensorFlow's kernel, or two matrix products.
KERNEL, MATRICES = "kernel", "matrices"
_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("bilinear", default=None)


@contextlib.contextmanager
def bilinear_by(way: str) -> Iterator[None]:
    """Builds graphs inside with one way of bilinear resizing, whatever the devices.

    Args:
      way: `KERNEL` or `MATRICES`.
    """
    token = _chosen.set(way)
    try:
        yield
    finally:
        _chosen.reset(token)


def _by_matrices() -> bool:
    if _chosen.get() is None:
        return bool(tf.config.list_physical_devices("GPU"))
    return _chosen.get() == MATRICES


def _static_size(size: Size) -> tuple[int | None, int | None]:
    """Returns (height, width) as far as they are known while a graph is built."""
    if isinstance(size, tf.Tensor):
        value = tf.get_static_value(size, partial=True)
        return (
            (None, None) if value is None else tuple(None if v is None else int(v) for v in value)
        )
    values = [tf.get_static_value(side) for side in size]
    return tuple(None if value is None else int(value) for value in values)


def _sizes(x: tf.Tensor, size: Size) -> list[tuple[Side, Side]]:
    """Returns (input, output) sizes of axes 1 and 2: Python ints where known, else tensors."""
    static = enumerate(_static_size(size))
    return [(side, size[i] if out is None else out) for side, (i, out) in zip(sides(x), static)]


def _is_static(*sizes: Side) -> bool:
    return not any(isinstance(size, tf.Tensor) for size in sizes)


def interpolation_matrix(
    in_size: int | tf.Tensor, out_size: int | tf.Tensor, *, align_corners: bool
) -> np.ndarray | tf.Tensor:
    """Returns the matrix of 1-D linear interpolation.

    Args:
      in_size: number of samples, an int or an int32 scalar tensor.
      out_size: number of interpolated values, likewise.
      align_corners: source coordinate i (in - 1) / (out - 1); False: half-pixel centres,
        (i + 0.5) in / out - 0.5, clipped to the samples.

    Returns:
      float32 [out_size, in_size], rows sum to 1; a NumPy array where both sizes are ints.
    """
    if _is_static(in_size, out_size):
        xp, cast = np, lambda value: np.asarray(value, np.float64)
    else:
        xp, cast = tf, lambda value: tf.cast(value, tf.float64)
    n, m = cast(in_size), cast(out_size)
    i = cast(np.arange(out_size) if xp is np else tf.range(out_size))
    if align_corners:
        coordinate = i * (n - 1) / xp.maximum(m - 1, cast(1))
    else:
        coordinate = xp.maximum(xp.minimum((i + 0.5) * n / m - 0.5, n - 1), cast(0))
    j = cast(np.arange(in_size) if xp is np else tf.range(in_size))
    # A triangle of half-width 1 around the coordinate.
    weights = xp.maximum(1.0 - xp.abs(coordinate[:, None] - j[None, :]), cast(0))
    return weights.astype(np.float32) if xp is np else tf.cast(weights, tf.float32)


def separable_linear(
    x: tf.Tensor, rows: np.ndarray | tf.Tensor, columns: np.ndarray | tf.Tensor
) -> tf.Tensor:
    """Applies one matrix along the height and another along the width.

    Args:
      x: float [N, h, w, C].
      rows: float [H, h].
      columns: float [W, w].

    Returns:
      [N, H, W, C] in the type of `x`.
    """
    rows, columns = tf.cast(rows, x.dtype), tf.cast(columns, x.dtype)
    shape = tf.shape(x)
    channels = x.shape[3] if x.shape[3] is not None else shape[3]
    height_now, width_now = (
        shape[axis] if x.shape[axis] is None else x.shape[axis] for axis in (1, 2)
    )
    height_out, width_out = (
        tf.shape(matrix)[0] if matrix.shape[0] is None else matrix.shape[0]
        for matrix in (rows, columns)
    )
    # Width first, [W, w] x [N h, w, C], then height, [H, h] x [N, h, W C]: only reshapes, and the
    # larger of the two products, when sizes grow, is the one with long rows.
    x = tf.reshape(x, [shape[0] * height_now, width_now, channels])
    x = tf.matmul(columns, x)
    x = tf.reshape(x, [shape[0], height_now, width_out * channels])
    x = tf.matmul(rows, x)
    return tf.reshape(x, [shape[0], height_out, width_out, channels])


def resize_bilinear(x: tf.Tensor, size: Size, *, align_corners: bool = True) -> tf.Tensor:
    """Resizes bilinearly, without antialiasing.

    Args:
      x: any float type, [N, h, w, C].
      size: (height, width) of the result: ints, or an int32 tensor.
      align_corners: align corner pixels as DeepLab does; False: half-pixel centres.

    Returns:
      [N, height, width, C] in the type of `x`; `x` itself where the size is the same.

    The product on GPUs is of ten bits (TF32), unless TensorFlow is told otherwise. In a simulation
    with NumPy 21 logits of standard deviation 3 went from 129 x 129 to 513 x 513 with errors of up
    to 0.008 (root mean square 0.0006), and 4 arg maxes of 10,000 changed; none did in float32.
    The convolution that makes the logits errs more under TF32: by 0.0003 of their standard
    deviation against 0.0002 here. So the fast product stays.

    Source: PseudoSeg specification, notation "AC-bilinear".
    """
    (in_height, out_height), (in_width, out_width) = _sizes(x, size)
    batch, _, _, channels = x.shape
    if _is_static(in_height, out_height, in_width, out_width):
        if (in_height, in_width) == (out_height, out_width):
            return x
        if (in_height, in_width) == (1, 1):
            shape = [tf.shape(x)[0] if batch is None else batch, out_height, out_width, channels]
            return tf.broadcast_to(x, shape)
    # TensorFlow's kernel computes coordinates in float32 and gives float32: no use for float64.
    if _by_matrices() or x.dtype == tf.float64:
        rows = interpolation_matrix(in_height, out_height, align_corners=align_corners)
        columns = interpolation_matrix(in_width, out_width, align_corners=align_corners)
        result = separable_linear(x, rows, columns)
    else:
        result = tf.raw_ops.ResizeBilinear(
            images=tf.cast(x, tf.float32),
            size=tf.stack([out_height, out_width]),
            align_corners=align_corners,
            half_pixel_centers=not align_corners,
        )
    return tf.ensure_shape(tf.cast(result, x.dtype), [batch, *_static_size(size), channels])


# Free parameter of the cubic kernel as OpenCV and Pillow have it.
_OPENCV_A, _PILLOW_A = -0.75, -0.5


def _cubic_weight(distance, xp, a=_OPENCV_A):
    """Returns the cubic kernel at a distance in samples, 0 from 2 on."""
    d = xp.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return xp.where(d <= 1, near, xp.where(d < 2, far, xp.zeros_like(d)))


def cubic_matrix(in_size: int | tf.Tensor, scale: float) -> np.ndarray | tf.Tensor:
    """Returns the matrix that scales a row of samples by a factor with OpenCV's cubic kernel.

    Sample i of the result lies at (i + 0.5) / scale - 0.5: OpenCV divides by the factor that was
    asked for, not by the ratio of the rounded sizes. Beyond the ends the end samples are repeated.

    Args:
      in_size: number of samples, an int or an int32 scalar tensor.
      scale: factor; the result has round(in_size scale) samples, halves to even, at least one.

    Returns:
      float64 [out_size, in_size], rows sum to 1; a NumPy array where the size is an int.

    Source: Learning Pseudo Labels specification 2 (test transform).
    """
    if _is_static(in_size):
        xp, n = np, np.float64(in_size)
        i, j = np.arange(max(1, int(np.rint(n * scale)))), np.arange(in_size)
    else:
        xp, n = tf, tf.cast(in_size, tf.float64)
        i = tf.range(tf.maximum(tf.round(n * scale), 1.0))
        j = tf.range(n)
    coordinate = (i + 0.5) / scale - 0.5
    left = xp.floor(coordinate)
    matrix = 0.0
    for tap in (-1, 0, 1, 2):
        source = xp.minimum(xp.maximum(left + tap, xp.zeros_like(left)), n - 1)
        weight = _cubic_weight(coordinate - left - tap, xp)
        here = source[:, None] == j[None, :]
        matrix += xp.where(here, weight[:, None], xp.zeros_like(weight)[:, None])
    return matrix


def rescale_cubic(x: tf.Tensor, scale: float) -> tf.Tensor:
    """Scales images by a factor as OpenCV's cubic resize does, without antialiasing.

    Args:
      x: float [N, h, w, C]. Scaling commutes with adding and multiplying by constants, so the
        normalised image may be had from the scaled one as well as the other way round.
      scale: factor of both sides.

    Returns:
      float32 [N, round(h scale), round(w scale), C]; `x` itself where the factor is 1.

    Source: Learning Pseudo Labels specification 2 and 4.3.
    """
    if scale == 1.0:
        return tf.cast(x, tf.float32)
    height, width = sides(x)
    # In float64, because GPUs multiply float32 matrices with ten bits.
    result = separable_linear(
        tf.cast(x, tf.float64), cubic_matrix(height, scale), cubic_matrix(width, scale)
    )
    return tf.cast(result, tf.float32)


def resize_cubic(x: tf.Tensor, size: Size) -> tf.Tensor:
    """Resizes images as OpenCV's cubic resize does where it is given a size, not a factor.

    Args:
      x: float [N, h, w, C].
      size: (height, width) of the result: ints, or int32 scalar tensors.

    Returns:
      float32 [N, height, width, C]; `x` itself where the size is the same.
    """
    factors = []
    for in_side, out_side in _sizes(x, size):
        if _is_static(in_side, out_side):
            factors.append((in_side, out_side / in_side))
        else:
            # A factor in float32 could make a side one pixel too long or too short.
            ratio = tf.cast(out_side, tf.float64) / tf.cast(in_side, tf.float64)
            factors.append((tf.convert_to_tensor(in_side), ratio))
    if all(_is_static(*pair) and pair[1] == 1.0 for pair in factors):
        return tf.cast(x, tf.float32)
    # In float64, because GPUs multiply float32 matrices with ten bits.
    result = separable_linear(tf.cast(x, tf.float64), *(cubic_matrix(*pair) for pair in factors))
    return tf.cast(result, tf.float32)


def rescale_bilinear(x: tf.Tensor, scale: float | tf.Tensor) -> tf.Tensor:
    """Scales images by a factor, bilinearly, without antialiasing.

    Sample i of the result lies at (i + 0.5) / scale - 0.5, as in PyTorch 1.6 and newer where a
    factor is given: it divides by the factor, not by the ratio of the sizes, which are rounded.

    Args:
      x: float [N, h, w, C].
      scale: factor of both sides, a number or a float scalar tensor.

    Returns:
      float32 [N, floor(h scale), floor(w scale), C], but at least one pixel.

    Source: STRICT specification 4.1.
    """
    # In float64, because GPUs multiply float32 matrices with ten bits.
    matrices = [_linear_matrix(side, scale) for side in sides(x)]
    return tf.cast(separable_linear(tf.cast(x, tf.float64), *matrices), tf.float32)


def _linear_matrix(in_size: int | tf.Tensor, scale: float | tf.Tensor) -> np.ndarray | tf.Tensor:
    """Returns the float64 matrix that scales a row of samples by a factor."""
    if _is_static(in_size, scale):
        xp, n, j = np, np.float64(in_size), np.arange(in_size)
        i = np.arange(max(1, int(np.floor(n * scale))))
    else:
        xp, n, scale = tf, tf.cast(in_size, tf.float64), tf.cast(scale, tf.float64)
        i, j = tf.range(tf.maximum(tf.floor(n * scale), 1.0)), tf.range(n)
    coordinate = xp.maximum(xp.minimum((i + 0.5) / scale - 0.5, n - 1), 0.0 * n)
    return xp.maximum(1.0 - xp.abs(coordinate[:, None] - j[None, :]), 0.0 * n)


def pillow_matrix(in_size: int | tf.Tensor, out_size: int | tf.Tensor) -> np.ndarray | tf.Tensor:
    """Returns the matrix that resizes a row of samples with Pillow's cubic kernel.

    If a row shrinks, the kernel is wider by the same factor, against aliasing. Weights beyond the
    ends are left out, and the others are scaled to sum to 1.

    Args:
      in_size: number of samples, an int or an int32 scalar tensor.
      out_size: number of samples of the result, likewise.

    Returns:
      float64 [out_size, in_size]; a NumPy array where both sizes are ints.

    Source: SLRNet specification 2 and 6 (PIL bicubic).
    """
    if _is_static(in_size, out_size):
        xp, cast = np, lambda value: np.asarray(value, np.float64)
        i, j = np.arange(out_size), np.arange(in_size)
    else:
        xp, cast = tf, lambda value: tf.cast(value, tf.float64)
        i, j = tf.range(out_size), tf.range(in_size)
    ratio = cast(in_size) / cast(out_size)
    centre = (cast(i) + 0.5) * ratio
    distance = (cast(j)[None, :] + 0.5 - centre[:, None]) / xp.maximum(ratio, cast(1))
    weights = _cubic_weight(distance, xp, _PILLOW_A)
    total = weights.sum(1, keepdims=True) if xp is np else tf.reduce_sum(weights, 1, keepdims=True)
    return weights / total


def resize_pillow(x: tf.Tensor, size: Size) -> tf.Tensor:
    """Resizes 8-bit images as Pillow's `Image.resize(size, BICUBIC)`, but for single roundings.

    `tf.image.resize` with antialiasing has the same kernel, but neither the rounding between width
    and height nor the clipping, which matter at sharp edges: by more than ten grey levels. The
    width comes first; some versions of Pillow begin with the height in some images that are higher
    than wide, which the rounding in between shows.

    Args:
      x: [N, h, w, C], 0 to 255, any number type; other than whole numbers are not rounded first.
      size: (height, width) of the result: ints, or an int32 tensor.

    Returns:
      float32 [N, height, width, C], whole numbers 0 to 255; `x` itself, as float32, where the size
      is known to be the same.

    Source: SLRNet specification 6.
    """
    (in_height, out_height), (in_width, out_width) = _sizes(x, size)
    if _is_static(in_height, out_height, in_width, out_width):
        if (in_height, in_width) == (out_height, out_width):
            return tf.cast(x, tf.float32)

    def to_8_bits(values: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(tf.floor(values + 0.5), 0.0, 255.0)

    # In float64, because GPUs multiply float32 matrices with ten bits.
    rows, columns = (
        tf.cast(pillow_matrix(*pair), tf.float64)
        for pair in ((in_height, out_height), (in_width, out_width))
    )
    x = to_8_bits(tf.einsum("wj,nijc->niwc", columns, tf.cast(x, tf.float64)))
    return tf.cast(to_8_bits(tf.einsum("hi,niwc->nhwc", rows, x)), tf.float32)


def _nearest(x: tf.Tensor, size: Size, *, align_corners: bool) -> tf.Tensor:
    for axis, pair in enumerate(_sizes(x, size), start=1):
        # Products of two sides may pass int32.
        in_size, out_size = (s if _is_static(s) else tf.cast(s, tf.int64) for s in pair)
        i = np.arange(out_size, dtype=np.int64) if _is_static(out_size) else tf.range(out_size)
        if not align_corners:
            index = i * in_size // out_size
        else:
            # floor(i (in - 1) / (out - 1) + 1/2) in integers, where no rounding can go wrong.
            last = max(out_size - 1, 1) if _is_static(out_size) else tf.maximum(out_size - 1, 1)
            index = (2 * i * (in_size - 1) + last) // (2 * last)
        x = tf.gather(x, tf.cast(index, tf.int32), axis=axis)
    return x


def resize_nearest(x: tf.Tensor, size: Size) -> tf.Tensor:
    """Resizes by taking the nearest pixel, source index floor(i in / out).

    Args:
      x: any type, [N, h, w] or [N, h, w, C].
      size: (height, width) of the result: ints, or an int32 tensor.

    Returns:
      [N, height, width] or [N, height, width, C] with values of `x` only.

    Source: PseudoSeg specification, notation "NN".
    """
    return _nearest(x, size, align_corners=False)


def resize_nearest_align_corners(label: tf.Tensor, size: Size) -> tf.Tensor:
    """Resizes by taking the nearest pixel, source index floor(i (in - 1) / (out - 1) + 1/2).

    Args:
      label: any type, [N, h, w] or [N, h, w, C].
      size: (height, width) of the result: ints, or an int32 tensor.

    Returns:
      [N, height, width] or [N, height, width, C] with values of `label` only.

    Source: PseudoSeg specification, notation "NN-AC".
    """
    return _nearest(label, size, align_corners=True)
