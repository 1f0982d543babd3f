"""A convolution with its batch norm and activation: what backbones and heads are made of."""

import dataclasses

import tensorflow as tf

from tfseg.models import kernels
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D, DepthwiseConv2D
from tfseg.models.layers.settings import Activation, Layer, Settings


@dataclasses.dataclass(eq=False)
class Folded:
    """A convolution's kernel and bias that do its batch norm too; see `models.folding`.

    Attributes:
      kernel: in the compute type, of the convolution's shape.
      bias: likewise, [out_channels]; None: the next layer adds it.
    """

    kernel: tf.Variable
    bias: tf.Variable | None


class ConvBatchNorm(Layer):
    """A convolution (or a depthwise one), batch norm, and an activation where asked.

    Args:
      convolution: `Conv2D` or `DepthwiseConv2D`, without bias.
      settings: of the batch norm.
      activation: applied last; None: nothing.
      norm_name: scope of the batch norm; None: `<convolution's name>/BatchNorm`.

    Attributes:
      folded: takes the place of convolution and batch norm while it is set.
    """

    folded: Folded | None = None

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
        self.activation = activation

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [N, h, w, C] to [N, h', w', out_channels]."""
        if self.folded is not None:
            return self._as_folded(x, self.folded)
        x = self.norm(self.convolution(x), training=training)
        return x if self.activation is None else self.activation(x)

    def _as_folded(self, x: tf.Tensor, folded: Folded) -> tf.Tensor:
        kernel = folded.kernel
        x = self.convolution.with_kernel(tf.cast(x, kernel.dtype), tf.convert_to_tensor(kernel))
        if folded.bias is not None:
            x = tf.nn.bias_add(x, folded.bias)
        if self.activation is None:
            return kernels.kept_apart(x)
        return kernels.relu6_apart(x) if self.activation is tf.nn.relu6 else self.activation(x)


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
