"""WideResNet38: few wide residual blocks that normalise before they convolve.

Source: Wu et al., "Wider or deeper", Pattern Recognition 2019, as SLRNet uses it (SLRNet
specification 3). At output stride 8 strides and rates are the published ones. The published program
always loads ImageNet weights; the initial values here are those of ResNet "s". Scopes are the
original's module names, with slashes for dots.
"""

import tensorflow as tf

from tfseg.models.backbones.base import STANDARDISED, Backbone, EndPoints
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.dropout import Dropout
from tfseg.models.layers.initial_values import he_normal_fan_out
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.strides import AtrousRate

# Tensors of the PyTorch files of each variant. They tell its files from those of other backbones.
TORCH_PROBES = {"wide_resnet38": ("b4_5.conv_branch2a.weight",)}
# (first name, channels inside, channels, stride of the first block, blocks).
_STAGES = (
    ("b2", 128, 128, 2, 3),
    ("b3", 256, 256, 2, 3),
    ("b4", 512, 512, 2, 6),
    ("b5", 512, 1024, 2, 3),
)
# (name, channels, stride, dropout rate).
_BOTTLENECKS = (("b6", 2048, 2, 0.3), ("b7", 4096, 1, 0.5))
_STEM_FILTERS = 64


class PreActivation(Layer):
    """Batch norm and activation in front of a convolution."""

    def __init__(self, settings: Settings, name: str, channels: int):
        super().__init__(f"{name}_unit")
        self.norm = BatchNorm(settings, name, channels)
        self._activation = settings.activation

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [N, h, w, channels] to the same shape."""
        return self._activation(self.norm(x, training=training))


class WideBlock(Layer):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1; and a shortcut.

    Args:
      settings: types, batch norm, initial values.
      name: scope.
      in_channels: channels of the input.
      widths: channels after every convolution.
      kernel_sizes: of every convolution.
      stride: of the first convolution and of the shortcut.
      rates: of every convolution.
      project: whether the shortcut is a convolution; else it is the input.
      dropout_rate: before every convolution but the first, of whole channels.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        in_channels: int,
        widths: tuple[int, ...],
        *,
        kernel_sizes: tuple[int, ...],
        stride: int,
        rates: tuple[int, ...],
        project: bool,
        dropout_rate: float = 0.0,
    ):
        super().__init__(name)
        self.out_channels = widths[-1]
        self.activations, self.convolutions, self.dropouts = [], [], []
        channels = in_channels
        for i, leaf in enumerate(("branch2a", "branch2b1", "branch2b2")[: len(widths)]):
            self.activations.append(PreActivation(settings, f"{name}/bn_{leaf}", channels))
            self.dropouts.append(
                Dropout(f"{name}/dropout_{leaf}", dropout_rate if i else 0.0, whole_channels=True)
            )
            self.convolutions.append(
                Conv2D(
                    settings,
                    f"{name}/conv_{leaf}",
                    channels,
                    widths[i],
                    kernel_sizes[i],
                    stride=1 if i else stride,
                    rate=rates[i],
                )
            )
            channels = widths[i]
        self.shortcut = None
        if project:
            self.shortcut = Conv2D(
                settings, f"{name}/conv_branch1", in_channels, channels, stride=stride
            )

    def call(
        self, x: tf.Tensor, training: bool = False, dropout_seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (output, activated input)."""
        first = self.activations[0](x, training=training)
        shortcut = x if self.shortcut is None else self.shortcut(first)
        y = self.convolutions[0](first)
        for activation, dropout, convolution in zip(
            self.activations[1:], self.dropouts[1:], self.convolutions[1:]
        ):
            y = activation(y, training=training)
            drops = training and dropout_seed is not None
            y = convolution(dropout(y, training=drops, dropout_seed=dropout_seed))
        return shortcut + y, first


class WideResNet(Backbone):
    """WideResNet38 without its classifier.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      variant: wide_resnet38, and the scope of the variables.
      output_stride: 8 (published), 16 or 32. A stride that is dropped multiplies the rates of the
        convolutions that follow, those of the same block included.
    """

    facts = STANDARDISED
    last = "conv6"
    takes_dropout_seed = True

    def __init__(self, settings: Settings, variant: str, *, output_stride: int):
        super().__init__(variant)
        settings = settings.replace(decay=0.9, epsilon=1e-5, kernel_init=he_normal_fan_out)
        self.scope = variant
        self.stem = Conv2D(settings, f"{variant}/conv1a", 3, _STEM_FILTERS, 3)
        self.channels["conv1a"] = channels = _STEM_FILTERS
        rates = AtrousRate(output_stride)
        self.blocks = []
        for first, inner, filters, first_stride, count in _STAGES:
            for i in range(count):
                stride, rate = rates.next(1 if i else first_stride)
                block = WideBlock(
                    settings,
                    f"{variant}/{first}_{i}" if i else f"{variant}/{first}",
                    channels,
                    (inner, filters),
                    kernel_sizes=(3, 3),
                    stride=stride,
                    rates=(rate, rates.rate),
                    # Every stage has more channels than the one before.
                    project=i == 0,
                )
                channels = filters
                self.blocks.append(block)
        for name, filters, wanted, dropout_rate in _BOTTLENECKS:
            stride, _ = rates.next(wanted)
            block = WideBlock(
                settings,
                f"{variant}/{name}",
                channels,
                (filters // 4, filters // 2, filters),
                kernel_sizes=(1, 3, 1),
                stride=stride,
                rates=(1, rates.rate, 1),
                project=True,
                dropout_rate=dropout_rate,
            )
            channels = filters
            self.blocks.append(block)
        for block in self.blocks:
            self.channels[block.name.removeprefix(f"{variant}/")] = block.out_channels
        self.final = PreActivation(settings, f"{variant}/bn7", channels)
        self.channels[self.last] = channels
        self.low_level = {4: "b3_2", 8: "b4_5"}
        self.hypercolumn = {16: "conv6", 15: "b5_2", 14: "b4_5", 8: "b3_2"}

    def call(
        self, x: tf.Tensor, training: bool = False, dropout_seed: tf.Tensor | None = None
    ) -> EndPoints:
        """Maps a network input [N, h, w, 3] to end points by name.

        Those of the blocks are sums that are not activated yet. Without a seed the dropout of `b6`
        and `b7` is off in training too.
        """
        x = self.stem(x)
        ends = {"conv1a": x}
        for block in self.blocks:
            x, _ = block(x, training=training, dropout_seed=dropout_seed)
            ends[block.name.removeprefix(f"{self.scope}/")] = x
        ends[self.last] = self.final(x, training=training)
        return ends

    def torch_names(self) -> dict[str, str]:
        """Returns the modules' names of the published weights."""
        layers = [self.stem]
        for block in self.blocks:
            layers += [*(a.norm for a in block.activations), *block.convolutions]
            layers += [block.shortcut] if block.shortcut is not None else []
        layers.append(self.final.norm)
        inner = {layer.name: layer.name.removeprefix(f"{self.scope}/") for layer in layers}
        return {name: torch.replace("/", ".") for name, torch in inner.items()}
