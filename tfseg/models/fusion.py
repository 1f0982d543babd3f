"""Whether TensorFlow may fuse convolutions with what follows them."""

import tensorflow as tf

_CPU_FACTS = "/proc/cpuinfo"


def avoid_slow_fusions() -> None:
    """Keeps TensorFlow from fusing convolutions on CPUs where that makes them slow.

    oneDNN has kernels of fused convolutions for CPUs with AVX-512. Without it oneDNN computes what
    follows a convolution one number at a time: EfficientNet-Lite0 saw 0.5 images of 257 x 257 a
    second, and 13.6 with the convolutions apart (two cores of an AMD EPYC with AVX2). Training is
    not touched by it, because gradients need what lies between the operations.

    The setting is of the process (`tf.config.optimizer`).
    """
    if not tf.config.list_physical_devices("GPU") and _has_no_fast_fusions():
        tf.config.optimizer.set_experimental_options({"remapping": False})


def _has_no_fast_fusions() -> bool:
    """Returns whether this is a CPU with AVX2 and without AVX-512; False where that is not told."""
    try:
        with open(_CPU_FACTS) as file:
            flags = file.read().split()
    except OSError:
        return False
    return "avx2" in flags and "avx512f" not in flags
