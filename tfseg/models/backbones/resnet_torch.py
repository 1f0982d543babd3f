"""ResNet 101 with a 7x7 stem, in the two forms that zero-label segmentation starts from.

resnet101 is PyTorch's: the stride in the 3x3 convolution, pixels standardised. resnet101_msra is
the original authors' Caffe model: the stride in the first 1x1 convolution, pooling whose last
window may reach over the border, pixels less their mean, and kernels for BGR, which are turned
when weights are imported.

A stride that is dropped for a finer output multiplies the rate of all units of its layer, the first
one too. (In the other backbones the first unit keeps the rate of those before it.) In
resnet101_msra, where the 3x3 convolution comes after the stride, that leaves the values at the
strided positions as they were; in resnet101 it does not.

Source: He et al., "Deep residual learning", CVPR 2016; STRICT specification 3 (resnet101_msra) and
ZS3 specification 3.1 (resnet101).
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.backbones.base import STANDARDISED, Backbone, EndPoints, Facts, unit_names
from tfseg.models.backbones.resnet import Bottleneck
from tfseg.models.backbones.resnet_s import bottleneck_names
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.initial_values import he_normal_fan_out
from tfseg.models.layers.settings import Settings
from tfseg.models.layers.strides import max_pool
from tfseg.models.layers.units import ConvBatchNorm

_MEAN = (122.675, 116.669, 104.008)
CAFFE = Facts(mean_pixel=_MEAN, scale=(1.0, 1.0, 1.0), offset=_MEAN)
_UNITS = (3, 4, 23, 3)
# Tensors of the PyTorch files of each variant. They tell its files from those of other backbones.
TORCH_PROBES = {
    "resnet101": ("layer3.22.conv1.weight",),
    "resnet101_msra": ("layer4.block23.reduce.conv.weight",),
}
# Channels of the stem and of the bottlenecks of the four layers.
_WIDTHS = (64, 64, 128, 256, 512)
_STEM_STRIDE = 4


@dataclasses.dataclass(frozen=True)
class _Form:
    """What the two networks differ in."""

    facts: Facts
    stride_at: str
    ceil_pool: bool
    decay: float


# (The decay of 0.001 that STRICT's batch norm has is a slip between two conventions.)
_FORMS = {
    "resnet101": _Form(STANDARDISED, "conv2", ceil_pool=False, decay=0.9),
    "resnet101_msra": _Form(CAFFE, "conv1", ceil_pool=True, decay=0.999),
}
_MSRA_PARTS = {
    "conv1": "reduce",
    "conv2": "conv3x3",
    "conv3": "increase",
    "shortcut": "shortcut",
}


class ResNetTorch(Backbone):
    """ResNet 101 without its classifier.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      variant: resnet101 or resnet101_msra, and the scope of the variables.
      output_stride: 8, 16 or 32.
      multi_grid: unit rates of the last layer; None: 1 for all.
      bounded: ReLU6 and clipped sums.
      units: units of the four layers.
      widths: channels of the stem and of the bottlenecks of the layers, which have four times as
        many at their ends.
    """

    last = "layer4"

    def __init__(
        self,
        settings: Settings,
        variant: str,
        *,
        output_stride: int,
        multi_grid: Sequence[int] | None,
        bounded: bool,
        units: Sequence[int] = _UNITS,
        widths: Sequence[int] = _WIDTHS,
    ):
        super().__init__(variant)
        self._form = _FORMS[variant]
        self.facts, self.scope = self._form.facts, variant
        self.torch_is_bgr = self.facts is CAFFE
        settings = settings.replace(
            decay=self._form.decay, epsilon=1e-5, kernel_init=he_normal_fan_out
        )
        convolution = Conv2D(settings, f"{variant}/conv1", 3, widths[0], 7, stride=2)
        self.stem = ConvBatchNorm(convolution, settings, activation=settings.activation)
        self.channels["conv1"] = self.channels["pool1"] = channels = widths[0]
        self.units, self._ends = [], []
        stride, rate = _STEM_STRIDE, 1
        for i, (count, width) in enumerate(zip(units, widths[1:]), start=1):
            step = 1 if i == 1 else 2
            if stride == output_stride:
                rate, step = rate * step, 1
            stride *= step
            grid = (multi_grid if i == len(units) else None) or (1,) * count
            for unit in range(1, count + 1):
                layer = Bottleneck(
                    settings,
                    f"{variant}/layer{i}/unit_{unit}",
                    channels,
                    width,
                    stride=step if unit == 1 else 1,
                    rate=rate * grid[unit - 1],
                    bounded=bounded,
                    stride_at=self._form.stride_at,
                    project=unit == 1,
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
        x = self.stem(x, training=training)
        ends = {"conv1": x}
        x = ends["pool1"] = max_pool(x, ceil=self._form.ceil_pool)
        for end, unit in zip(self._ends, self.units):
            x, _ = unit(x, training=training)
            ends[end] = x
        return ends

    def torch_names(self) -> dict[str, str]:
        """Returns the modules' names: torchvision's, or those of DeepLabv2's PyTorch port."""
        if self.torch_is_bgr:
            return self._msra_names()
        names = unit_names(f"{self.scope}/conv1", "conv1", "bn1")
        for unit in self.units:
            layer, number = unit.name.removeprefix(f"{self.scope}/").split("/unit_")
            names |= bottleneck_names(unit.name, f"{layer}.{int(number) - 1}.")
        return names

    def _msra_names(self) -> dict[str, str]:
        names = unit_names(f"{self.scope}/conv1", "layer1.conv1.conv", "layer1.conv1.bn")
        for unit in self.units:
            # The stem is a layer there too.
            layer, number = unit.name.removeprefix(f"{self.scope}/layer").split("/unit_")
            for ours, theirs in _MSRA_PARTS.items():
                module = f"layer{int(layer) + 1}.block{number}.{theirs}"
                names |= unit_names(f"{unit.name}/{ours}", f"{module}.conv", f"{module}.bn")
        return names
