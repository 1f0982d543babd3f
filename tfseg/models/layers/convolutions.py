"""Plain and depthwise convolutions, their padding, and which kernels the weight decay takes."""

import math

import tensorflow as tf

from tfseg.models.layers.initial_values import Initializer, constant
from tfseg.models.layers.settings import Layer, Settings
from tfseg.ops.shapes import sides


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
      fixed_padding: see `_Padding`; False is TensorFlow's SAME throughout.
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
        self.compute_type = tf.as_dtype(compute_dtype or settings.compute_dtype)
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
        x, kernel = tf.cast(x, self.compute_type), tf.cast(self.kernel, self.compute_type)
        if self._kernel_size == 1 and self._stride == 1:
            x = _pointwise(x, kernel)
        else:
            x = self.with_kernel(x, kernel)
        return x if self.bias is None else x + tf.cast(self.bias, self.compute_type)

    def with_kernel(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves with another kernel, without bias, in the type of both."""
        return tf.nn.conv2d(x, kernel, self._stride, self._padding(x), dilations=self._rate)


class Conv2DTranspose(Layer):
    """Transposed convolution whose kernel is as wide as its stride: every pixel becomes a block.

    Args:
      settings: types and initial values.
      name: scope of `kernel` [size, size, in_channels, filters] and `bias`.
      in_channels: channels of the input.
      filters: channels of the output.
      size: side of the kernel, and the stride.
    """

    def __init__(self, settings: Settings, name: str, in_channels: int, filters: int, size: int):
        super().__init__(name)
        self.out_channels, self.decayed = filters, True
        self._size = size
        self._type = tf.as_dtype(settings.compute_dtype)
        # As PyTorch counts the inputs of such a kernel.
        fan_in = size * size * filters
        init = settings.choose_init(fan_in, settings.kernel_init)
        shape = [size, size, in_channels, filters]
        self.kernel = settings.variable(f"{name}/kernel", shape, init)
        init = settings.choose_init(fan_in, constant(0.0))
        self.bias = settings.variable(f"{name}/bias", [filters], init)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, in_channels] to [N, size h, size w, filters] in the compute type."""
        x, kernel = tf.cast(x, self._type), tf.cast(self.kernel, self._type)
        size, filters = self._size, self.out_channels
        columns = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [1, 1, x.shape[3], -1])
        blocks = _pointwise(x, columns)
        batch, height, width = sides(x, (0, 1, 2))
        blocks = tf.reshape(blocks, [batch * height, width, size, size, filters])
        blocks = tf.transpose(blocks, [0, 2, 1, 3, 4])
        result = tf.reshape(blocks, [batch, height * size, width * size, filters])
        return result + tf.cast(self.bias, self._type)


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
        self.compute_type = tf.as_dtype(settings.compute_dtype)
        shape = [kernel_size, kernel_size, channels, 1]
        init = settings.choose_init(kernel_size**2, settings.depthwise_init)
        self.kernel = settings.variable(f"{name}/{kernel_name}", shape, init)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, channels] to [N, h', w', channels] in the compute type."""
        x, kernel = tf.cast(x, self.compute_type), tf.cast(self.kernel, self.compute_type)
        if self._stride == 1 and self._rate == 1 and kernel.shape[0] % 2 == 1:
            return _depthwise(x, kernel)
        return self.with_kernel(x, kernel)

    def with_kernel(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves with another kernel, in the type of both."""
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


def decayed_variables(model: tf.Module) -> list[tf.Variable]:
    """Returns the kernels of the weight decay: plain and pointwise convolutions' (spec 4.2-4.5).

    So do linear maps. Depthwise kernels, norms, biases and kernels declared otherwise are not among
    them.
    """
    kernels = {
        id(layer.kernel) for layer in model.submodules if isinstance(layer, Layer) and layer.decayed
    }
    return [v for v in model.trainable_variables if id(v) in kernels]
