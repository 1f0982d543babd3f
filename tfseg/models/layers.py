"""Convolution, batch norm and dropout whose variables carry their TF1 checkpoint names.

Every variable is made in its layer's constructor, under its full name
(`xception_65/entry_flow/conv1_1/weights`), with a value that depends on nothing but the seed, the
network's name and the variable's name. So a network is complete before it sees an image, two
networks of different names start differently, and the order of construction does not matter.

Source: PseudoSeg specification 4.2-4.5 for padding, initial values, decay and epsilon.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.errors import UserError

Initializer = Callable[[np.random.Generator, Sequence[int]], np.ndarray]
Activation = Callable[[tf.Tensor], tf.Tensor]


# Initial values ---------------------------------------------------------------------------------


def truncated_normal(stddev: float) -> Initializer:
    """Normal values of the given deviation; those beyond two deviations are drawn again."""

    def draw(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        values = rng.standard_normal(shape, dtype=np.float32)
        outside = np.abs(values) > 2.0
        while count := int(outside.sum()):
            values[outside] = rng.standard_normal(count, dtype=np.float32)
            outside = np.abs(values) > 2.0
        return values * np.float32(stddev)

    return draw


def he_truncated_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Variance 2 / fan-in; 1.3 makes up for the truncation, as TF1's initialiser does."""
    return truncated_normal(math.sqrt(1.3 * 2.0 / math.prod(shape[:-1])))(rng, shape)


def he_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Normal values of variance 2 / fan-in."""
    deviation = math.sqrt(2.0 / math.prod(shape[:-1]))
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def he_normal_depthwise(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """The same for depthwise kernels, whose outputs each see one channel."""
    return he_normal(rng, (*shape[:2], 1, shape[2])).reshape(shape)


def xavier_uniform(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Uniform values of variance 2 / (fan-in + fan-out)."""
    area = math.prod(shape[:-2])
    limit = math.sqrt(6.0 / (area * (shape[-2] + shape[-1])))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def he_normal_fan_out(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Normal values of variance 2 / fan-out."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(math.sqrt(2.0 / fan_out))


def uniform_fan_in(fan_in: int) -> Initializer:
    """Uniform values within 1 / sqrt(fan-in): what PyTorch's convolutions start with."""
    limit = 1.0 / math.sqrt(fan_in)
    return lambda rng, shape: rng.uniform(-limit, limit, shape).astype(np.float32)


def constant(value: float) -> Initializer:
    """The same value everywhere."""
    return lambda rng, shape: np.full(shape, value, np.float32)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the layers of one network, or one part of it, have in common.

    Attributes:
      network: name of the network; part of every variable's seed, not of its name.
      seed: the run's seed.
      compute_dtype: type of activations; variables and statistics are float32 always.
      fine_tune_batch_norm: training uses batch statistics and updates the moving ones.
      sync_batch_norm: those statistics are taken over all replicas.
      momentum: decay of the moving statistics that the user asks for; None: `decay`.
      decay: of the moving statistics, as published.
      epsilon: added to the variance.
      kernel_init: initial values of convolution kernels.
      depthwise_init: initial values of depthwise kernels.
      pointwise_init: initial values of the other part of separable convolutions in the heads.
      activation: what "ReLU" means in this network.
      init_by_fan_in: makes the initial values of every kernel and bias from its number of inputs,
        whatever the layer would choose; None: the layers choose.
    """

    network: str = "model"
    seed: int = 0
    compute_dtype: str = "float32"
    fine_tune_batch_norm: bool = True
    sync_batch_norm: bool = False
    momentum: float | None = None
    decay: float = 0.9997
    epsilon: float = 1e-3
    kernel_init: Initializer = truncated_normal(0.09)
    depthwise_init: Initializer = truncated_normal(0.09)
    pointwise_init: Initializer = truncated_normal(0.06)
    activation: Activation = tf.nn.relu
    init_by_fan_in: Callable[[int], Initializer] | None = None

    def replace(self, **changes: Any) -> "Settings":
        """Returns a copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def choose_init(self, fan_in: int, own: Initializer) -> Initializer:
        """Returns a layer's own initialiser, or what `init_by_fan_in` puts in its place."""
        return own if self.init_by_fan_in is None else self.init_by_fan_in(fan_in)

    def variable(
        self, name: str, shape: Sequence[int], init: Initializer, *, trainable: bool = True
    ) -> tf.Variable:
        """Makes a float32 variable with a value drawn from (seed, network, name)."""
        text = f"{self.seed}/{self.network}/{name}".encode()
        rng = np.random.Generator(
            np.random.Philox(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))
        )
        # Moving statistics differ between replicas until they are read: then they are averaged.
        placement: dict[str, Any] = (
            {}
            if trainable
            else {
                "synchronization": tf.VariableSynchronization.ON_READ,
                "aggregation": tf.VariableAggregation.MEAN,
            }
        )
        return tf.Variable(init(rng, shape), trainable=trainable, name=name, **placement)


class Layer(tf.keras.layers.Layer):
    """Base of the layers: a Keras layer that leaves types to itself."""

    def __init__(self, name: str):
        super().__init__(name=name, autocast=False)


# Convolutions -----------------------------------------------------------------------------------


class _Padding:
    """Zero padding of a convolution: SAME, or one that does not depend on the input's size.

    SAME puts the odd pixel at the end, so that for even inputs a strided convolution would sample
    other positions than the same network at a finer output stride. Fixed padding gives each side
    its half of the kernel. Where the two agree SAME is used, for which CPUs have faster kernels.
    """

    def __init__(self, kernel_size: int, stride: int, rate: int, fixed: bool):
        self._stride = stride
        self._always_same = stride == 1 or kernel_size == 1 or not fixed
        total = (kernel_size - 1) * rate
        begin = total // 2
        self._fixed = [[0, 0], [begin, total - begin], [begin, total - begin], [0, 0]]

    def __call__(self, x: tf.Tensor) -> str | list[list[int]]:
        sides = x.shape[1:3]
        agrees = all(side is not None and (side - 1) % self._stride == 0 for side in sides)
        return "SAME" if self._always_same or agrees else self._fixed


class Conv2D(Layer):
    """Convolution, NHWC.

    Args:
      settings: types and initial values.
      name: TF1 scope; the kernel is `<name>/<kernel_name>`, the bias `<name>/<bias_name>`.
      in_channels: channels of the input.
      filters: channels of the output.
      kernel_size: side of the kernel.
      stride: stride in both directions.
      rate: atrous rate.
      use_bias: add a bias.
      fixed_padding: see `_padding`; False is TensorFlow's SAME throughout.
      init: initial values; None: the settings'.
      bias_init: of the bias, unless the settings say otherwise; None: zero.
      decayed: whether the kernel is part of the weight decay.
      compute_dtype: type of the output; None: the settings'.
      kernel_name: leaf name of the kernel.
      bias_name: leaf name of the bias.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        in_channels: int,
        filters: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        rate: int = 1,
        use_bias: bool = False,
        fixed_padding: bool = True,
        init: Initializer | None = None,
        bias_init: Initializer | None = None,
        decayed: bool = True,
        compute_dtype: str | None = None,
        kernel_name: str = "weights",
        bias_name: str = "biases",
    ):
        super().__init__(name)
        self.out_channels, self.decayed = filters, decayed
        self._kernel_size, self._stride, self._rate = kernel_size, stride, rate
        self._padding = _Padding(kernel_size, stride, rate, fixed_padding)
        self._type = tf.as_dtype(compute_dtype or settings.compute_dtype)
        shape = [kernel_size, kernel_size, in_channels, filters]
        fan_in = math.prod(shape[:3])
        init = settings.choose_init(fan_in, init or settings.kernel_init)
        self.kernel = settings.variable(f"{name}/{kernel_name}", shape, init)
        self.bias = None
        if use_bias:
            init = settings.choose_init(fan_in, bias_init or constant(0.0))
            self.bias = settings.variable(f"{name}/{bias_name}", [filters], init)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, in_channels] to [N, h', w', filters] in the compute type."""
        x, kernel = tf.cast(x, self._type), tf.cast(self.kernel, self._type)
        if self._kernel_size == 1 and self._stride == 1:
            x = _pointwise(x, kernel)
        else:
            x = tf.nn.conv2d(x, kernel, self._stride, self._padding(x), dilations=self._rate)
        return x if self.bias is None else x + tf.cast(self.bias, self._type)


@tf.custom_gradient
def _pointwise(x: tf.Tensor, kernel: tf.Tensor):
    """1x1 convolution whose kernel gradient is a matrix product over all pixels.

    On CPUs that product is a tenth faster than the convolution's own gradient in float32, and five
    times in bfloat16, for which the latter has no accelerated kernel.
    """

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        dx = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(x),
            filter=kernel,
            out_backprop=dy,
            strides=[1] * 4,
            padding="SAME",
        )
        rows = tf.reshape(x, [-1, x.shape[3]])
        dy_rows = tf.reshape(dy, [-1, dy.shape[3]])
        dkernel = tf.matmul(rows, dy_rows, transpose_a=True)
        return dx, tf.reshape(dkernel, kernel.shape)

    return tf.nn.conv2d(x, kernel, 1, "SAME"), gradient


class DepthwiseConv2D(Layer):
    """Depthwise convolution, NHWC; its kernel is not part of the weight decay.

    Args: as for `Conv2D`; the kernel is `<name>/<kernel_name>`, [k, k, channels, 1].
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        rate: int = 1,
        fixed_padding: bool = True,
        kernel_name: str = "depthwise_weights",
    ):
        super().__init__(name)
        if stride > 1 and rate > 1:
            raise ValueError(f"{name}: stride {stride} and rate {rate} together")
        self.out_channels = channels
        self._stride, self._rate = stride, rate
        self._padding = _Padding(kernel_size, stride, rate, fixed_padding)
        self._type = tf.as_dtype(settings.compute_dtype)
        shape = [kernel_size, kernel_size, channels, 1]
        init = settings.choose_init(kernel_size**2, settings.depthwise_init)
        self.kernel = settings.variable(f"{name}/{kernel_name}", shape, init)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, channels] to [N, h', w', channels] in the compute type."""
        x, kernel = tf.cast(x, self._type), tf.cast(self.kernel, self._type)
        if self._stride == 1 and self._rate == 1 and kernel.shape[0] % 2 == 1:
            return _depthwise(x, kernel)
        strides = [1, self._stride, self._stride, 1]
        dilations = [self._rate, self._rate]
        return tf.nn.depthwise_conv2d(x, kernel, strides, self._padding(x), dilations=dilations)


@tf.custom_gradient
def _depthwise(x: tf.Tensor, kernel: tf.Tensor):
    """Depthwise convolution whose input gradient is one too, with the kernel turned by 180 degrees.

    On CPUs the forward kernel takes half the time of the backward one.
    """

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.depthwise_conv2d(x, kernel, [1] * 4, "SAME")

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        dkernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=x,
            filter_sizes=kernel.shape,
            out_backprop=dy,
            strides=[1] * 4,
            padding="SAME",
        )
        return convolve(dy, tf.reverse(kernel, [0, 1])), dkernel

    return convolve(x, kernel), gradient


def max_pool(x: tf.Tensor, *, ceil: bool = False) -> tf.Tensor:
    """Takes the maximum of 3x3 windows, stride 2, with a border of one pixel on every side.

    Args:
      x: float [N, h, w, C].
      ceil: sides that are even give h / 2 + 1 values, the last from a window that reaches over the
        border; False: h / 2. Odd sides give (h + 1) / 2.

    Returns:
      [N, h', w', C] in the type of `x`.
    """
    sides = x.shape[1:3]
    if all(side is not None and side % 2 == 1 for side in sides):
        return tf.nn.max_pool2d(x, 3, 2, "SAME")
    # SAME would leave out the border above and to the left of even sides, and so sample other
    # positions. The kernel does not take explicit padding on every device.
    dynamic = tf.shape(x)
    after = [1, 1]
    if ceil:
        after = [2 - (dynamic[k] if x.shape[k] is None else x.shape[k]) % 2 for k in (1, 2)]
    lowest = tf.constant(float("-inf"), x.dtype)
    x = tf.pad(x, [[0, 0], *([1, end] for end in after), [0, 0]], constant_values=lowest)
    return tf.nn.max_pool2d(x, 3, 2, "VALID")


# Batch norm -------------------------------------------------------------------------------------


class PooledStatistics:
    """Mean and variance of each channel over all pixels of several batches.

    Args:
      channels: of the batches.
    """

    def __init__(self, channels: int):
        def zeros(shape):
            return tf.Variable(tf.zeros(shape, tf.float64), trainable=False)

        self._count, self._sum, self._squares = zeros([]), zeros([channels]), zeros([channels])

    def add(self, mean: tf.Tensor, unbiased_variance: tf.Tensor, count: tf.Tensor) -> None:
        """Adds a batch of `count` pixels, with float [channels] statistics."""
        count = tf.cast(count, tf.float64)
        mean, variance = tf.cast(mean, tf.float64), tf.cast(unbiased_variance, tf.float64)
        biased = variance * (count - 1.0) / count
        self._count.assign_add(count)
        self._sum.assign_add(count * mean)
        self._squares.assign_add(count * (biased + tf.square(mean)))

    def result(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns mean and unbiased variance, float32 [channels]; None where nothing was added."""
        count = self._count.numpy()
        if count == 0:
            return None
        mean = self._sum.numpy() / count
        biased = np.maximum(self._squares.numpy() / count - np.square(mean), 0.0)
        variance = biased * (count / max(count - 1.0, 1.0))
        return mean.astype(np.float32), variance.astype(np.float32)


class BatchNorm(Layer):
    """Batch norm over N, h, w with float32 parameters and statistics.

    It has three modes. In training the batch is normalised with its biased variance, and the moving
    variance follows the unbiased one, n / (n - 1), as the fused kernel of TF1 does: m := d m +
    (1 - d) batch. In evaluation the moving statistics normalise. While `pooled` is set, batch
    statistics normalise as in training and are added up there, whatever `training` says; the moving
    ones stay as they are. Layers that do not learn statistics (`learns_statistics`) always
    normalise with the moving ones.

    Args:
      settings: decay, epsilon, whether and over what batch statistics are taken.
      name: scope of `gamma`, `beta`, `moving_mean`, `moving_variance`.
      channels: channels of the input.
      use_gamma, use_beta: scale and shift after normalising; without them there is no variable.
      decay: of the moving statistics; None: the settings'.
      epsilon: added to the variance; None: the settings'.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        channels: int,
        *,
        use_gamma: bool = True,
        use_beta: bool = True,
        decay: float | None = None,
        epsilon: float | None = None,
    ):
        super().__init__(name)
        published = settings.decay if decay is None else decay
        self._decay = published if settings.momentum is None else settings.momentum
        self._epsilon = settings.epsilon if epsilon is None else epsilon
        self.learns_statistics = settings.fine_tune_batch_norm
        self.pooled: PooledStatistics | None = None
        self._sync = settings.sync_batch_norm
        ones, zeros = constant(1.0), constant(0.0)
        shape = [channels]
        self._channels = channels
        self.gamma = settings.variable(f"{name}/gamma", shape, ones) if use_gamma else None
        self.beta = settings.variable(f"{name}/beta", shape, zeros) if use_beta else None
        moving = {"trainable": False}
        self.moving_mean = settings.variable(f"{name}/moving_mean", shape, zeros, **moving)
        self.moving_variance = settings.variable(f"{name}/moving_variance", shape, ones, **moving)
        # On CPUs the bfloat16 kernel is several times slower than the float32 one.
        self._widen = settings.compute_dtype == "bfloat16" and not tf.config.list_physical_devices(
            "GPU"
        )

    def call(
        self, x: tf.Tensor, training: bool = False, step: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalises [N, h, w, channels]; the result has the type of `x`.

        Args:
          x: float tensor.
          training: use and record batch statistics (where the settings fine-tune batch norm).
          step: int64 scalar, steps done so far: the decay of the moving statistics is at most
            (1 + step) / (10 + step), so that they are of use from the first steps on; None: the
            decay alone, as published.
        """
        decay = self._decay
        if step is not None:
            done = tf.cast(step, tf.float32)
            decay = tf.minimum(decay, (1.0 + done) / (10.0 + done))
        gamma = tf.ones([self._channels]) if self.gamma is None else self.gamma
        beta = tf.zeros([self._channels]) if self.beta is None else self.beta
        wide = tf.cast(x, tf.float32) if self._widen else x
        # The moving statistics that the training kernel takes are not used by it.
        none = tf.zeros([0])
        if self.pooled is not None:
            result, mean, variance = self._fused(wide, gamma, beta, none, none, True)
            self.pooled.add(mean, variance, tf.reduce_prod(tf.shape(x)[:3]))
        elif not (training and self.learns_statistics):
            result = self._fused(wide, gamma, beta, self.moving_mean, self.moving_variance, False)[
                0
            ]
        elif self._sync and _replicas() > 1:
            result = self._synchronised(wide, gamma, beta, decay)
        else:
            result, mean, variance = self._fused(wide, gamma, beta, none, none, True)
            self._record(mean, variance, decay)
        return tf.cast(result, x.dtype)

    def _fused(self, x, gamma, beta, mean, variance, is_training):
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=mean,
            variance=variance,
            epsilon=self._epsilon,
            is_training=is_training,
        )[:3]

    def _synchronised(
        self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, decay: float | tf.Tensor
    ) -> tf.Tensor:
        """The same over all replicas, whose parts of the batch may differ in size."""
        wide = tf.cast(x, tf.float32)
        axes = [0, 1, 2]
        local = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
        total = _sum_over_replicas(tf.concat([tf.reduce_sum(wide, axes), [local]], 0))
        count = tf.stop_gradient(total[-1])
        mean = total[:-1] / count
        # A second pass about the mean: E[x^2] - E[x]^2 would cancel where the mean is large.
        variance = _sum_over_replicas(tf.reduce_sum(tf.square(wide - mean), axes)) / count
        self._record(mean, variance * (count / tf.maximum(count - 1.0, 1.0)), decay)
        scale = gamma * tf.math.rsqrt(variance + self._epsilon)
        return tf.cast((wide - mean) * scale + beta, x.dtype)

    def _record(
        self, mean: tf.Tensor, unbiased_variance: tf.Tensor, decay: float | tf.Tensor
    ) -> None:
        rate = 1.0 - decay
        self.moving_mean.assign_sub((self.moving_mean - tf.stop_gradient(mean)) * rate)
        difference = self.moving_variance - tf.stop_gradient(unbiased_variance)
        self.moving_variance.assign_sub(difference * rate)


def _replicas() -> int:
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def _sum_over_replicas(x: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


# Dropout ----------------------------------------------------------------------------------------


def fold_seed(seed: tf.Tensor | None, number: int) -> tf.Tensor | None:
    """Returns the seed of one of several uses of the same layers; None stays None.

    Args:
      seed: int32 [2].
      number: of the use. (Adding it to a seed would give the seed of another replica.)
    """
    return None if seed is None else tf.random.experimental.stateless_fold_in(seed, number)


def dropout_key(name: str) -> int:
    """Returns what a layer of this name folds into the seeds that it is given."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1


class Dropout(Layer):
    """Dropout that is a function of its seed.

    Args:
      name: unique in the network; two layers drop different entries for the same seed.
      rate: share of entries that become 0, in [0, 1).
      whole_channels: of [N, h, w, C], drop all of a channel of an image or nothing.
    """

    def __init__(self, name: str, rate: float, *, whole_channels: bool = False):
        super().__init__(name)
        self._whole_channels = whole_channels
        if not 0.0 <= rate < 1.0:
            raise UserError("A dropout rate is in [0, 1).", where=name, received=rate)
        self._rate = rate
        self._key = dropout_key(name)

    def call(
        self, x: tf.Tensor, training: bool = False, dropout_seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Drops entries in training and scales the others by 1 / (1 - rate).

        Args:
          x: float tensor.
          training: False, or a rate of 0, returns `x`.
          dropout_seed: int32 [2]; the same seed drops the same entries, on any device.

        Raises:
          ValueError: training with a rate above 0 and no seed.
        """
        if not training or self._rate == 0.0:
            return x
        if dropout_seed is None:
            raise ValueError(f"{self.name}: dropout in training needs dropout_seed (int32 [2])")
        seed = tf.random.experimental.stateless_fold_in(dropout_seed, self._key)
        # Philox by name: the automatic choice differs between devices.
        shape = tf.shape(x)
        if self._whole_channels:
            shape = tf.stack([shape[0], 1, 1, shape[3]])
        draw = tf.random.stateless_uniform(shape, seed, alg="philox")
        scale = tf.cast(1.0 / (1.0 - self._rate), x.dtype)
        return tf.where(draw >= self._rate, x * scale, tf.zeros_like(x))


# Combinations -----------------------------------------------------------------------------------


class ConvBatchNorm(Layer):
    """A convolution (or a depthwise one), batch norm, and an activation where asked.

    Args:
      convolution: `Conv2D` or `DepthwiseConv2D`, without bias.
      settings: of the batch norm.
      activation: applied last; None: nothing.
      norm_name: scope of the batch norm; None: `<convolution's name>/BatchNorm`.
    """

    def __init__(
        self,
        convolution: Conv2D | DepthwiseConv2D,
        settings: Settings,
        *,
        activation: Activation | None = None,
        norm_name: str | None = None,
    ):
        super().__init__(convolution.name + "_unit")
        self.out_channels = convolution.out_channels
        self.convolution = convolution
        self.norm = BatchNorm(
            settings, norm_name or f"{convolution.name}/BatchNorm", self.out_channels
        )
        self._activation = activation

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [N, h, w, C] to [N, h', w', out_channels]."""
        x = self.norm(self.convolution(x), training=training)
        return x if self._activation is None else self._activation(x)


class SeparableConv(Layer):
    """Depthwise convolution and pointwise convolution, each with batch norm.

    Args:
      settings: of all parts.
      name: scopes are `<name>_depthwise` and `<name>_pointwise`.
      in_channels: channels of the input.
      filters: channels of the output.
      stride: of the depthwise convolution.
      rate: of the depthwise convolution.
      activation: applied after both batch norms; None: after neither.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        in_channels: int,
        filters: int,
        *,
        stride: int = 1,
        rate: int = 1,
        activation: Activation | None = None,
    ):
        super().__init__(name)
        self.out_channels = filters
        depthwise = DepthwiseConv2D(
            settings, f"{name}_depthwise", in_channels, stride=stride, rate=rate
        )
        pointwise = Conv2D(settings, f"{name}_pointwise", in_channels, filters)
        self.depthwise = ConvBatchNorm(depthwise, settings, activation=activation)
        self.pointwise = ConvBatchNorm(pointwise, settings, activation=activation)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [N, h, w, in_channels] to [N, h', w', filters]."""
        return self.pointwise(self.depthwise(x, training=training), training=training)


class AtrousRate:
    """Turns strides into atrous rates once the wanted output stride is reached.

    Args:
      output_stride: no stride goes beyond it.
      current: stride of what comes before.

    Source: PseudoSeg specification 4.2: a stride that is dropped multiplies the rate of the units
    that follow, not of the unit that had it.
    """

    def __init__(self, output_stride: int, current: int = 1):
        self._output_stride, self.current, self.rate = output_stride, current, 1

    def next(self, stride: int) -> tuple[int, int]:
        """Returns (stride, rate) for a unit that would have `stride`."""
        rate = self.rate
        if stride > 1 and self.current == self._output_stride:
            self.rate *= stride
            return 1, rate
        self.current *= stride
        return stride, rate


def decayed_variables(model: tf.Module) -> list[tf.Variable]:
    """Returns the kernels of the weight decay: plain and pointwise convolutions' (spec 4.2-4.5).

    Depthwise kernels, batch norm, biases and kernels declared otherwise are not among them.
    """
    kernels = {
        id(layer.kernel)
        for layer in model.submodules
        if isinstance(layer, Conv2D) and layer.decayed
    }
    return [v for v in model.trainable_variables if id(v) in kernels]
