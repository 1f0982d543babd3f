"""ResNet 50 and 101 "s": three 3x3 stem convolutions, strides on the first unit of each layer.

Source: He et al., "Deep residual learning", CVPR 2016, in the dilated form of the PyTorch-Encoding
model collection that Learning Pseudo Labels starts from (LPL specification 3). At output stride 8
the units' rates are the published ones: 1, then 2 in `layer3`; 2, then 4 in `layer4`.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.backbones.base import STANDARDISED, Backbone, EndPoints, unit_names
from tfseg.models.backbones.resnet import Bottleneck
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.initial_values import he_normal_fan_out
from tfseg.models.layers.settings import Settings
from tfseg.models.layers.strides import AtrousRate, max_pool
from tfseg.models.layers.units import ConvBatchNorm

_UNITS = {"resnet50s": (3, 4, 6, 3), "resnet101s": (3, 4, 23, 3)}
# Tensors of the PyTorch files of each variant. They tell its files from those of other backbones.
TORCH_PROBES = {
    "resnet101s": ("conv1.0.weight", "layer3.6.conv1.weight"),
    "resnet50s": ("conv1.0.weight", "layer3.5.conv1.weight"),
}
# Channels of the stem's convolutions, and of the bottlenecks of the four layers.
_STEM, _BOTTLENECKS = (64, 64, 128), (64, 128, 256, 512)
_STEM_NAMES = ("conv1_1", "conv1_2", "conv1_3")


def bottleneck_names(name: str, torch: str) -> dict[str, str]:
    """Names the modules of a PyTorch bottleneck by the layers of ours.

    Args:
      name: of our layer.
      torch: of the module, with a dot at its end, or ''.
    """
    names = unit_names(f"{name}/shortcut", f"{torch}downsample.0", f"{torch}downsample.1")
    for i in (1, 2, 3):
        names |= unit_names(f"{name}/conv{i}", f"{torch}conv{i}", f"{torch}bn{i}")
    return names


class ResNetS(Backbone):
    """ResNet "s" without its classifier.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      variant: resnet50s or resnet101s, and the scope of the variables.
      output_stride: 8 (published), 16 or 32.
      multi_grid: unit rates of the last layer; None: 1, 1, 1.
      bounded: ReLU6 and clipped sums.
      units: units of the four layers; None: those of the variant.
      stem: channels of the three convolutions before them.
      bottlenecks: channels of the bottlenecks of the layers, which have four times as many at their
        ends.
    """

    facts = STANDARDISED
    last = "layer4"

    def __init__(
        self,
        settings: Settings,
        variant: str,
        *,
        output_stride: int,
        multi_grid: Sequence[int] | None,
        bounded: bool,
        units: Sequence[int] | None = None,
        stem: Sequence[int] = _STEM,
        bottlenecks: Sequence[int] = _BOTTLENECKS,
    ):
        super().__init__(variant)
        settings = settings.replace(decay=0.9, epsilon=1e-5, kernel_init=he_normal_fan_out)
        self.scope = variant
        self.stem = []
        channels = 3
        for leaf, filters in zip(_STEM_NAMES, stem):
            stride = 2 if leaf == _STEM_NAMES[0] else 1
            convolution = Conv2D(settings, f"{variant}/{leaf}", channels, filters, 3, stride=stride)
            self.stem.append(ConvBatchNorm(convolution, settings, activation=settings.activation))
            channels = self.channels[leaf] = filters
        rates = AtrousRate(output_stride, current=4)
        self.units, self._ends = [], []
        units = _UNITS[variant] if units is None else units
        for i, (count, bottleneck) in enumerate(zip(units, bottlenecks), start=1):
            for unit in range(1, count + 1):
                stride, rate = rates.next(2 if unit == 1 and i > 1 else 1)
                unit_rate = multi_grid[unit - 1] if multi_grid and i == 4 else 1
                layer = Bottleneck(
                    settings,
                    f"{variant}/layer{i}/unit_{unit}",
                    channels,
                    bottleneck,
                    stride=stride,
                    rate=rate * unit_rate,
                    bounded=bounded,
                )
                channels = layer.out_channels
                self.units.append(layer)
                end = f"layer{i}" if unit == count else f"layer{i}/unit_{unit}"
                self._ends.append(end)
                self.channels[end] = channels
        self.low_level = {4: "layer1", 8: "layer2"}
        self.hypercolumn = {16: "layer4", 15: "layer3", 14: "layer2", 8: "layer1"}

    def call(self, x: tf.Tensor, training: bool = False) -> EndPoints:
        """Maps a network input [N, h, w, 3] to end points by name."""
        ends = {}
        for leaf, layer in zip(_STEM_NAMES, self.stem):
            x = ends[leaf] = layer(x, training=training)
        x = max_pool(x)
        for end, unit in zip(self._ends, self.units):
            x, _ = unit(x, training=training)
            ends[end] = x
        return ends

    def torch_names(self) -> dict[str, str]:
        """Returns the modules' names of the published weights: the stem is a sequence."""
        modules = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))
        names = {}
        for leaf, (convolution, norm) in zip(_STEM_NAMES, modules):
            names |= unit_names(f"{self.scope}/{leaf}", convolution, norm)
        for unit in self.units:
            layer, number = unit.name.removeprefix(f"{self.scope}/").split("/unit_")
            names |= bottleneck_names(unit.name, f"{layer}.{int(number) - 1}.")
        return names
