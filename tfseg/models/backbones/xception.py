"""Aligned Xception 41, 65 and 71 (DeepLab's form: separable convolutions in place of pooling).

Source: Chollet, "Xception", CVPR 2017; Chen et al., "Encoder-decoder with atrous separable
convolution", ECCV 2018; PseudoSeg specification 4.2.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.backbones.base import CENTRED, Backbone, EndPoints
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.initial_values import truncated_normal
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.strides import AtrousRate
from tfseg.models.layers.units import ConvBatchNorm, SeparableConv

FACTS = dataclasses.replace(CENTRED, classifier_dropout_rate=0.5)
# Bound of what is added in residual sums where activations are bounded.
_CLIP = 6.0


@dataclasses.dataclass(frozen=True)
class Block:
    """One scope of the network.

    Attributes:
      scope: for example `entry_flow/block1`.
      depths: channels of the three separable convolutions.
      skip: 'conv', 'sum' or 'none'.
      stride: of the last separable convolution of the last unit.
      units: number of units.
      relu_inside: ReLU after both batch norms; False: before the depthwise convolution.
    """

    scope: str
    depths: tuple[int, int, int]
    skip: str
    stride: int = 1
    units: int = 1
    relu_inside: bool = False


def _entry(*depths_and_strides: tuple[int, int]) -> list[Block]:
    return [
        Block(f"entry_flow/block{i}", (depth,) * 3, "conv", stride)
        for i, (depth, stride) in enumerate(depths_and_strides, start=1)
    ]


def _after_entry(middle_units: int) -> list[Block]:
    return [
        Block("middle_flow/block1", (728,) * 3, "sum", units=middle_units),
        Block("exit_flow/block1", (728, 1024, 1024), "conv", 2),
        Block("exit_flow/block2", (1536, 1536, 2048), "none", relu_inside=True),
    ]


_ENTRY = _entry((128, 2), (256, 2), (728, 2))
_ENTRY_71 = _entry((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
# Low-level features: the second separable convolution of the block that leaves the stride.
_VARIANTS = {
    "xception_41": (_ENTRY + _after_entry(8), {4: 2, 8: 3}),
    "xception_65": (_ENTRY + _after_entry(16), {4: 2, 8: 3}),
    "xception_71": (_ENTRY_71 + _after_entry(16), {4: 3, 8: 5}),
}


class XceptionModule(Layer):
    """Three separable convolutions and a skip connection."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        in_channels: int,
        block: Block,
        *,
        stride: int,
        rate: int,
        unit_rates: Sequence[int],
        bounded: bool,
        skip_after_relu: bool = False,
    ):
        super().__init__(name)
        self._skip, self._bounded = block.skip, bounded
        self._skip_after_relu = skip_after_relu
        self._activation = settings.activation
        self._relu_first = not block.relu_inside
        self.out_channels = block.depths[-1]
        self.separable = []
        channels = in_channels
        for i, depth in enumerate(block.depths):
            self.separable.append(
                SeparableConv(
                    settings,
                    f"{name}/separable_conv{i + 1}",
                    channels,
                    depth,
                    stride=stride if i == 2 else 1,
                    rate=rate * unit_rates[i],
                    activation=settings.activation if block.relu_inside else None,
                )
            )
            channels = depth
        self.shortcut = None
        if block.skip == "conv":
            convolution = Conv2D(
                settings, f"{name}/shortcut", in_channels, block.depths[-1], stride=stride
            )
            self.shortcut = ConvBatchNorm(convolution, settings)

    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (output, output of the second separable convolution)."""
        residual, second = x, x
        for i, layer in enumerate(self.separable):
            if self._relu_first:
                residual = self._activation(residual)
            residual = layer(residual, training=training)
            if i == 1:
                second = residual
        if self._skip == "none":
            return residual, second
        # The shortcut sees the input before any ReLU, but for UniMatch's form.
        if self.shortcut is not None:
            shortcut = self.shortcut(x, training=training)
        else:
            shortcut = self._activation(x) if self._skip_after_relu else x
        if not self._bounded:
            return residual + shortcut, second
        residual = tf.clip_by_value(residual, -_CLIP, _CLIP)
        if self.shortcut is not None:
            shortcut = tf.clip_by_value(shortcut, -_CLIP, _CLIP)
        return tf.nn.relu6(residual + shortcut), second


class Xception(Backbone):
    """Xception without its classifier.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      variant: a key of `_VARIANTS`, and the scope of the variables.
      output_stride: 8, 16 or 32.
      multi_grid: unit rates of the three convolutions of the last block; None: 1, 1, 1.
      bounded: ReLU6 and clipped sums.
      form: 'deeplab', or 'unimatch': where a skip has no convolution it is the unit's input after
        its ReLU, and batch norm has an epsilon of 1e-5 in place of 1e-3.

    Source: UniMatch specification 3 and 3.2 for the form.
    """

    facts = FACTS

    def __init__(
        self,
        settings: Settings,
        variant: str,
        *,
        output_stride: int,
        multi_grid: Sequence[int] | None,
        bounded: bool,
        form: str = "deeplab",
    ):
        super().__init__(variant)
        settings = settings.replace(
            decay=0.9997,
            epsilon=1e-5 if form == "unimatch" else 1e-3,
            kernel_init=truncated_normal(0.09),
            depthwise_init=truncated_normal(0.09),
        )
        blocks, low_level_blocks = _VARIANTS[variant]
        self.scope = variant
        self.last = "exit_flow/block2"
        self.conv1_1, self.conv1_2 = self._stem(settings)
        rates = AtrousRate(output_stride, current=2)
        self.units, self._ends = [], []
        channels = 64
        for block in blocks:
            for unit in range(1, block.units + 1):
                stride, rate = rates.next(block.stride if unit == block.units else 1)
                module = XceptionModule(
                    settings,
                    f"{variant}/{block.scope}/unit_{unit}/xception_module",
                    channels,
                    block,
                    stride=stride,
                    rate=rate,
                    unit_rates=(multi_grid or (1, 1, 1)) if block.skip == "none" else (1, 1, 1),
                    bounded=bounded,
                    skip_after_relu=form == "unimatch",
                )
                channels = module.out_channels
                self.units.append(module)
                end = block.scope if unit == block.units else f"{block.scope}/unit_{unit}"
                second = f"{block.scope}/unit_{unit}/xception_module/separable_conv2_pointwise"
                self._ends.append((end, second))
                self.channels[end] = channels
                self.channels[second] = block.depths[1]
        self.low_level = {
            stride: f"entry_flow/block{i}/unit_1/xception_module/separable_conv2_pointwise"
            for stride, i in low_level_blocks.items()
        }
        last_entry = max(low_level_blocks.values())
        self.hypercolumn = {
            16: "exit_flow/block2",
            15: "exit_flow/block1",
            14: "middle_flow/block1",
            13: f"entry_flow/block{last_entry}",
            8: f"entry_flow/block{last_entry - 1}",
            4: "entry_flow/block1",
        }

    def _stem(self, settings: Settings) -> list[ConvBatchNorm]:
        """Two 3x3 convolutions, the first of stride 2."""
        layers = []
        for leaf, in_channels, filters, stride in (("conv1_1", 3, 32, 2), ("conv1_2", 32, 64, 1)):
            end = f"entry_flow/{leaf}"
            convolution = Conv2D(
                settings, f"{self.scope}/{end}", in_channels, filters, 3, stride=stride
            )
            layers.append(ConvBatchNorm(convolution, settings, activation=settings.activation))
            self.channels[end] = filters
        return layers

    def call(self, x: tf.Tensor, training: bool = False) -> EndPoints:
        """Maps a network input [N, h, w, 3] to end points by name."""
        ends = {}
        for leaf, layer in (("conv1_1", self.conv1_1), ("conv1_2", self.conv1_2)):
            x = ends[f"entry_flow/{leaf}"] = layer(x, training=training)
        for (end, second_end), unit in zip(self._ends, self.units):
            x, second = unit(x, training=training)
            ends[end], ends[second_end] = x, second
        return ends
