"""Layers on tokens: linear maps, layer norm, and parameters that stand alone.

Leaf names are PyTorch's kind, kernel and bias: with --parameter_groups=deeplab only `biases` learn
twice as fast, which no published vision transformer does.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.layers.initial_values import Initializer, constant
from tfseg.models.layers.settings import Layer, Settings
from tfseg.ops.shapes import sides


class Parameter(Layer):
    """One variable that is used as it is.

    Args:
      settings: seed.
      name: of the variable.
      shape: of the variable.
      init: initial values.
      trainable: False: it has no part in what the network computes, and checkpoints alone hold it.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        shape: Sequence[int],
        init: Initializer,
        *,
        trainable: bool = True,
    ):
        super().__init__(name)
        self.value = settings.variable(name, shape, init, trainable=trainable)


class Dense(Layer):
    """Linear map of the last axis, with a bias.

    Args:
      settings: types and initial values; the bias starts at 0.
      name: scope of `kernel` [in_channels, filters] and `bias`.
      in_channels, filters: sizes of the last axis before and after.
    """

    def __init__(self, settings: Settings, name: str, in_channels: int, filters: int):
        super().__init__(name)
        self.decayed = True
        self._shape = (in_channels, filters)
        self._type = tf.as_dtype(settings.compute_dtype)
        self.kernel = settings.variable(f"{name}/kernel", self._shape, settings.kernel_init)
        self.bias = settings.variable(f"{name}/bias", [filters], constant(0.0))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, T, in_channels] to [N, T, filters] in the compute type."""
        in_channels, filters = self._shape
        rows = tf.reshape(tf.cast(x, self._type), [-1, in_channels])
        rows = tf.matmul(rows, tf.cast(self.kernel, self._type)) + tf.cast(self.bias, self._type)
        return tf.reshape(rows, [*sides(x, (0, 1)), filters])


class LayerNorm(Layer):
    """Normalises the last axis, in float32 whatever the compute type.

    Args:
      settings: seed.
      name: scope of `gamma` and `beta`.
      channels: size of the last axis.
      epsilon: added to the variance.
    """

    def __init__(self, settings: Settings, name: str, channels: int, *, epsilon: float):
        super().__init__(name)
        self._epsilon = epsilon
        self.gamma = settings.variable(f"{name}/gamma", [channels], constant(1.0))
        self.beta = settings.variable(f"{name}/beta", [channels], constant(0.0))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [..., channels] of any float type to float32."""
        x = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + self._epsilon) * self.gamma + self.beta
