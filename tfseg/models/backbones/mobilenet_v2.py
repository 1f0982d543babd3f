"""MobileNetV2 up to its last inverted residual (`layer_18`).

Source: Sandler et al., "MobileNetV2", CVPR 2018; PseudoSeg specification 4.3. The published
program has no image-level classifier on it; here it has one, so that the methods that need one run.
"""

import tensorflow as tf

from tfseg.models.backbones.base import CENTRED, Backbone, EndPoints
from tfseg.models.layers.convolutions import Conv2D, DepthwiseConv2D
from tfseg.models.layers.initial_values import truncated_normal
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.strides import AtrousRate
from tfseg.models.layers.units import ConvBatchNorm

# (expansion, channels, units, stride of the first unit), after the first convolution.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def divisible_channels(channels: int, multiplier: float, divisor: int) -> int:
    """Scales a channel count and rounds it to a multiple, never below 90 % of the exact value."""
    exact = channels * multiplier
    rounded = max(8, divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


class InvertedResidual(Layer):
    """Expand 1x1, depthwise 3x3, project 1x1 (linear); a sum where the shapes agree."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        in_channels: int,
        channels: int,
        expansion: int,
        *,
        stride: int,
        rate: int,
    ):
        super().__init__(name)
        self.out_channels = channels
        self.inner_channels = in_channels * expansion
        self._add = stride == 1 and in_channels == channels
        self.expand = None
        if expansion > 1:
            expand = Conv2D(settings, f"{name}/expand", in_channels, self.inner_channels)
            self.expand = ConvBatchNorm(expand, settings, activation=tf.nn.relu6)
        depthwise = DepthwiseConv2D(
            settings,
            f"{name}/depthwise",
            self.inner_channels,
            stride=stride,
            rate=rate,
            fixed_padding=False,
        )
        self.depthwise = ConvBatchNorm(depthwise, settings, activation=tf.nn.relu6)
        project = Conv2D(settings, f"{name}/project", self.inner_channels, channels)
        self.project = ConvBatchNorm(project, settings)

    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (output, output of the depthwise convolution)."""
        inner = x if self.expand is None else self.expand(x, training=training)
        inner = self.depthwise(inner, training=training)
        y = self.project(inner, training=training)
        return (x + y if self._add else y), inner


class MobileNetV2(Backbone):
    """MobileNetV2 without its last 1x1 convolution and classifier.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      output_stride: 8, 16 or 32.
      depth_multiplier: factor on the channel counts.
      divisible_by: channel counts are multiples of it; None: 8.
    """

    facts = CENTRED
    scope = "MobilenetV2"
    last = "layer_18"

    def __init__(
        self,
        settings: Settings,
        *,
        output_stride: int,
        depth_multiplier: float,
        divisible_by: int | None,
    ):
        super().__init__("mobilenet_v2")
        settings = settings.replace(
            decay=0.997,
            epsilon=1e-3,
            kernel_init=truncated_normal(0.09),
            depthwise_init=truncated_normal(0.09),
        )

        def scaled(channels: int) -> int:
            return divisible_channels(channels, depth_multiplier, divisible_by or 8)

        channels = scaled(32)
        first = Conv2D(settings, "MobilenetV2/Conv", 3, channels, 3, stride=2, fixed_padding=False)
        self.first = ConvBatchNorm(first, settings, activation=tf.nn.relu6)
        self.channels["layer_1"] = channels
        rates = AtrousRate(output_stride, current=2)
        self.units = []
        for expansion, stage_channels, count, first_stride in _STAGES:
            for unit in range(count):
                index = len(self.units)
                stride, rate = rates.next(first_stride if unit == 0 else 1)
                layer = InvertedResidual(
                    settings,
                    "MobilenetV2/expanded_conv" + (f"_{index}" if index else ""),
                    channels,
                    scaled(stage_channels),
                    expansion,
                    stride=stride,
                    rate=rate,
                )
                channels = layer.out_channels
                self.units.append(layer)
                self.channels[f"layer_{index + 2}"] = channels
                self.channels[f"layer_{index + 2}/depthwise_output"] = layer.inner_channels
        self.low_level = {
            4: "layer_4/depthwise_output",
            8: "layer_7/depthwise_output",
            16: "layer_14/depthwise_output",
        }
        self.hypercolumn = {16: "layer_18", 15: "layer_14", 8: "layer_7", 4: "layer_4"}

    def call(self, x: tf.Tensor, training: bool = False) -> EndPoints:
        """Maps a network input [N, h, w, 3] to end points by name."""
        x = self.first(x, training=training)
        ends = {"layer_1": x}
        for i, unit in enumerate(self.units, start=2):
            x, inner = unit(x, training=training)
            ends[f"layer_{i}"], ends[f"layer_{i}/depthwise_output"] = x, inner
        return ends
