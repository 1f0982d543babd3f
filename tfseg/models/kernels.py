"""Which of TensorFlow's kernels this machine is fast with: all choices that depend on it.

Every choice gives the same values; only the time differs.
"""

import contextlib
import functools
from collections.abc import Iterator

import tensorflow as tf

from tfseg import machine

# Positions of a feature map, in one image, from which batch norm gains from bfloat16: of maps of 65
# pixels and more, forward and backward with the ReLU took 0.49 to 0.67 of the time, of 33 pixels
# 0.93 to 1.08 (a CPU with matrix units for bfloat16, TensorFlow 2.20). Without such units, but with
# AVX-512's instructions for bfloat16, a step of Xception-65 took 0.93 of the time with the large
# maps in bfloat16, and 1.07 with all of them.
_LARGE_MAP = 64 * 64
# Either of these features of a CPU suffices.
_BFLOAT16 = frozenset(("amx_bf16", "avx512_bf16"))


def avoid_slow_fusions() -> None:
    """Keeps TensorFlow from fusing convolutions on CPUs where that makes them slow.

    On CPUs without AVX-512 oneDNN computes batch norm one number at a time where it is fused with a
    convolution: EfficientNet-Lite0 saw 0.5 images of 257 x 257 a second, and 13.6 with the
    convolutions apart (two cores of an AMD EPYC with AVX2). Training is not touched by it, because
    gradients need what lies between the operations.

    The setting is of the process (`tf.config.optimizer`).
    """
    if _has_few_fusions():
        tf.config.optimizer.set_experimental_options({"remapping": False})


@contextlib.contextmanager
def fusing() -> Iterator[None]:
    """Lets TensorFlow fuse in the functions that are called meanwhile, whatever the CPU.

    Bias and ReLU are fast behind a convolution on every CPU; batch norm is not. So it is for
    networks without batch norm, of `folding`.
    """
    before = tf.config.optimizer.get_experimental_options().get("remapping", True)
    tf.config.optimizer.set_experimental_options({"remapping": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"remapping": before})


def relu6_apart(x: tf.Tensor) -> tf.Tensor:
    """Returns `tf.nn.relu6(x)`; where that is faster, only one of its bounds can be fused.

    On CPUs with few fusions a convolution of 129x129x256 takes twice as long with both bounds.
    """
    return (
        tf.minimum(tf.nn.relu(x), tf.cast(6.0, x.dtype)) if _has_few_fusions() else tf.nn.relu6(x)
    )


def kept_apart(x: tf.Tensor) -> tf.Tensor:
    """Returns the same, which TensorFlow does not fuse with what follows.

    Where a sum follows a convolution with bias, and the next sum takes that one, fusing both fails
    (TensorFlow 2.20, Xception), and then nothing at all is fused in the graph.
    """
    return tf.raw_ops.PlaceholderWithDefault(input=x, shape=x.shape)


def batch_norm_type(compute_type: tf.DType, height: int | None, width: int | None) -> tf.DType:
    """Returns the type in which batch norm in training is fastest.

    The kernel computes statistics in float32 either way. In bfloat16 it is fused with the ReLU
    behind it, and nothing is cast. CPUs without instructions for bfloat16 compute it much more
    slowly than float32.

    Args:
      compute_type: of the tensor that is normalised.
      height, width: of the feature map; None: not known.
    """
    if compute_type != tf.bfloat16 or _has_gpu():
        return compute_type
    large = height is not None and width is not None and height * width >= _LARGE_MAP
    return compute_type if large and _BFLOAT16 & _cpu_features() else tf.float32


def _has_few_fusions() -> bool:
    """Returns whether batch norm and ReLU6 are slow where they are fused with a convolution."""
    return not _has_gpu() and "avx2" in _cpu_features() and "avx512f" not in _cpu_features()


def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


@functools.cache
def _cpu_features() -> frozenset[str]:
    """Returns the CPU's features by their names of Linux; none where they are not told."""
    return machine.processor().features or frozenset()
