"""Whether TensorFlow may fuse convolutions with what follows them."""

import contextlib
import functools
from collections.abc import Iterator

import tensorflow as tf

_CPU_FACTS = "/proc/cpuinfo"


def avoid_slow_fusions() -> None:
    """Keeps TensorFlow from fusing convolutions on CPUs where that makes them slow.

    On CPUs without AVX-512 oneDNN computes batch norm one number at a time where it is fused with a
    convolution: EfficientNet-Lite0 saw 0.5 images of 257 x 257 a second, and 13.6 with the
    convolutions apart (two cores of an AMD EPYC with AVX2). Training is not touched by it, because
    gradients need what lies between the operations.

    The setting is of the process (`tf.config.optimizer`).
    """
    if has_few_fusions():
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
    """Returns `tf.nn.relu6(x)`, of which only the lower bound can be fused with a convolution.

    On CPUs with few fusions a convolution of 129x129x256 takes twice as long with both bounds.
    """
    return tf.minimum(tf.nn.relu(x), tf.cast(6.0, x.dtype)) if has_few_fusions() else tf.nn.relu6(x)


def kept_apart(x: tf.Tensor) -> tf.Tensor:
    """Returns the same, which TensorFlow does not fuse with what follows.

    Where a sum follows a convolution with bias, and the next sum takes that one, fusing both fails
    (TensorFlow 2.20, Xception), and then nothing at all is fused in the graph.
    """
    return tf.raw_ops.PlaceholderWithDefault(input=x, shape=x.shape)


@functools.cache
def has_few_fusions() -> bool:
    """Returns whether batch norm and ReLU6 are slow where they are fused with a convolution."""
    return not tf.config.list_physical_devices("GPU") and _has_no_fast_fusions()


def _has_no_fast_fusions() -> bool:
    """Returns whether this is a CPU with AVX2 and without AVX-512; False where that is not told."""
    try:
        with open(_CPU_FACTS) as file:
            flags = file.read().split()
    except OSError:
        return False
    return "avx2" in flags and "avx512f" not in flags
