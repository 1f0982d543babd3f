"""Which of TensorFlow's kernels this machine is fast with: all choices that depend on it.

Every choice gives the same values; only the time differs.
"""

import functools

import tensorflow as tf

from tfseg import machine

# Positions of a feature map, in one image, from which batch norm gains from bfloat16: of maps of 65
# pixels and more, forward and backward with the ReLU took 0.49 to 0.67 of the time, of 33 pixels
# 0.93 to 1.08 (a CPU with matrix units for bfloat16, TensorFlow 2.20).
_LARGE_MAP = 64 * 64


def avoid_slow_fusions() -> None:
    """Keeps TensorFlow from fusing convolutions on CPUs where that makes them slow.

    oneDNN has kernels of fused convolutions for CPUs with AVX-512. Without it oneDNN computes what
    follows a convolution one number at a time: EfficientNet-Lite0 saw 0.5 images of 257 x 257 a
    second, and 13.6 with the convolutions apart (two cores of an AMD EPYC with AVX2). Training is
    not touched by it, because gradients need what lies between the operations.

    The setting is of the process (`tf.config.optimizer`).
    """
    if _has_gpu():
        return
    features = _cpu_features()
    if "avx2" in features and "avx512f" not in features:
        tf.config.optimizer.set_experimental_options({"remapping": False})


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
    return compute_type if large and "amx_bf16" in _cpu_features() else tf.float32


def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


@functools.cache
def _cpu_features() -> frozenset[str]:
    """Returns the CPU's features by their names of Linux; none where they are not told."""
    return machine.processor().features or frozenset()
