"""ResNet v1 50 and 101 with atrous rates, and the `_beta` form with three 3x3 root convolutions.

Source: He et al., "Deep residual learning", CVPR 2016; PseudoSeg specification 4.3. Scopes leave
out `_beta`, as the published checkpoints do.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.backbones.base import CENTRED, Backbone, EndPoints, Facts
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.initial_values import he_truncated_normal
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.strides import AtrousRate
from tfseg.models.layers.units import ConvBatchNorm

_MEAN = (123.15, 115.90, 103.06)
MEAN_SUBTRACTED = Facts(mean_pixel=_MEAN, scale=(1.0, 1.0, 1.0), offset=_MEAN)
_UNITS = {"resnet_v1_50": (3, 4, 6, 3), "resnet_v1_101": (3, 4, 23, 3)}
_BOTTLENECKS = (64, 128, 256, 512)
_CLIP = 6.0


class Bottleneck(Layer):
    """1x1, 3x3, 1x1 and a shortcut.

    Args:
      settings: of its convolutions.
      name: scope.
      in_channels: channels of the input.
      bottleneck: channels of the first two convolutions; the third has four times as many.
      stride: of the unit.
      rate: atrous rate of the 3x3 convolution.
      bounded: clipped sums.
      stride_at: the convolution that has the stride: conv2, the 3x3 one, or conv1.
      project: the shortcut is a convolution; None: only where the numbers of channels differ.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        in_channels: int,
        bottleneck: int,
        *,
        stride: int,
        rate: int,
        bounded: bool,
        stride_at: str = "conv2",
        project: bool | None = None,
    ):
        super().__init__(name)
        depth = 4 * bottleneck
        self._stride, self._bounded, self._activation = stride, bounded, settings.activation
        self.out_channels = depth
        self.convolutions = []
        channels = in_channels
        for leaf, filters, kernel_size in (
            ("conv1", bottleneck, 1),
            ("conv2", bottleneck, 3),
            ("conv3", depth, 1),
        ):
            convolution = Conv2D(
                settings,
                f"{name}/{leaf}",
                channels,
                filters,
                kernel_size,
                stride=stride if leaf == stride_at else 1,
                rate=rate if leaf == "conv2" else 1,
            )
            activation = None if leaf == "conv3" else settings.activation
            self.convolutions.append(ConvBatchNorm(convolution, settings, activation=activation))
            channels = filters
        self.shortcut = None
        if in_channels != depth if project is None else project:
            convolution = Conv2D(settings, f"{name}/shortcut", in_channels, depth, stride=stride)
            self.shortcut = ConvBatchNorm(convolution, settings)

    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (output, output of the third convolution before the sum)."""
        if self.shortcut is not None:
            shortcut = self.shortcut(x, training=training)
        else:
            shortcut = x[:, :: self._stride, :: self._stride] if self._stride > 1 else x
        for layer in self.convolutions:
            x = layer(x, training=training)
        total = tf.clip_by_value(x, -_CLIP, _CLIP) if self._bounded else x
        return self._activation(total + shortcut), x


class ResNet(Backbone):
    """ResNet without its classifier.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      variant: resnet_v1_50, resnet_v1_101, or either with `_beta`.
      output_stride: 8, 16 or 32.
      multi_grid: unit rates of the last block; None: 1, 1, 1.
      bounded: ReLU6 and clipped sums.
    """

    def __init__(
        self,
        settings: Settings,
        variant: str,
        *,
        output_stride: int,
        multi_grid: Sequence[int] | None,
        bounded: bool,
    ):
        super().__init__(variant)
        settings = settings.replace(decay=0.95, epsilon=1e-5, kernel_init=he_truncated_normal)
        beta = variant.endswith("_beta")
        self.facts = CENTRED if beta else MEAN_SUBTRACTED
        self.scope = variant.removesuffix("_beta")
        self.last = "block4"
        self.root = self._root(settings, beta)
        rates = AtrousRate(output_stride, current=4)
        self.units, self._ends = [], []
        channels = self.root[-1].out_channels
        for i, (count, bottleneck) in enumerate(zip(_UNITS[self.scope], _BOTTLENECKS), start=1):
            for unit in range(1, count + 1):
                stride, rate = rates.next(2 if unit == count and i < 4 else 1)
                unit_rate = (multi_grid or (1,) * count)[unit - 1] if i == 4 else 1
                name = f"block{i}/unit_{unit}/bottleneck_v1"
                layer = Bottleneck(
                    settings,
                    f"{self.scope}/{name}",
                    channels,
                    bottleneck,
                    stride=stride,
                    rate=rate * unit_rate,
                    bounded=bounded,
                )
                channels = layer.out_channels
                self.units.append(layer)
                end = f"block{i}" if unit == count else f"block{i}/unit_{unit}"
                self._ends.append((end, f"{name}/conv3"))
                self.channels[end] = self.channels[f"{name}/conv3"] = channels
        self.low_level = {
            4: "block1/unit_2/bottleneck_v1/conv3",
            8: "block2/unit_3/bottleneck_v1/conv3",
        }
        self.hypercolumn = {16: "block4", 15: "block3", 14: "block2", 8: "block1"}

    def _root(self, settings: Settings, beta: bool) -> list[ConvBatchNorm]:
        convolutions = (
            (("conv1_1", 3, 64, 3, 2), ("conv1_2", 64, 64, 3, 1), ("conv1_3", 64, 128, 3, 1))
            if beta
            else (("conv1", 3, 64, 7, 2),)
        )
        layers = []
        for leaf, in_channels, filters, kernel_size, stride in convolutions:
            convolution = Conv2D(
                settings, f"{self.scope}/{leaf}", in_channels, filters, kernel_size, stride=stride
            )
            layers.append(ConvBatchNorm(convolution, settings, activation=settings.activation))
            self.channels[leaf] = filters
        return layers

    def call(self, x: tf.Tensor, training: bool = False) -> EndPoints:
        """Maps a network input [N, h, w, 3] to end points by name."""
        ends = {}
        for layer in self.root:
            x = ends[layer.convolution.name.split("/")[-1]] = layer(x, training=training)
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        for (end, conv3_end), unit in zip(self._ends, self.units):
            x, conv3 = unit(x, training=training)
            ends[end], ends[conv3_end] = x, conv3
        return ends
