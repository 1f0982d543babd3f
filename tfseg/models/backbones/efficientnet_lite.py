"""EfficientNet-Lite0 up to its last block.

Source: Tan and Le, "EfficientNet", ICML 2019, in the Lite form of Google's model repository (no
squeeze-and-excitation, ReLU6); ImageNet weights: `tfseg.weights.pretrained.load_pretrained`. The
1280-channel head of the classifier is left out, as DeepLab leaves out MobileNetV2's.
"""

import tensorflow as tf

from tfseg.models.backbones.base import Backbone, EndPoints, Facts
from tfseg.models.layers.convolutions import Conv2D, DepthwiseConv2D
from tfseg.models.layers.initial_values import he_truncated_normal
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.strides import AtrousRate
from tfseg.models.layers.units import ConvBatchNorm

# (kernel, stride of the first block, expansion, channels, blocks), after the 32-channel stem.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_TORCH_PARTS = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dw_conv": "_depthwise_conv",
    "dw_bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
# Tensors of the PyTorch files of each variant. They tell its files from those of other backbones.
TORCH_PROBES = {"efficientnet_lite0": ("_blocks.0._depthwise_conv.weight",)}
_KERNEL, _BIAS = "kernel", "bias"
FACTS = Facts(
    mean_pixel=(127.0, 127.0, 127.0),
    scale=(128.0, 128.0, 128.0),
    offset=(127.0, 127.0, 127.0),
    kernel_name=_KERNEL,
    bias_name=_BIAS,
)


class LiteBlock(Layer):
    """Expand 1x1, depthwise k x k, project 1x1 (linear); a sum where the shapes agree."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        in_channels: int,
        channels: int,
        *,
        kernel_size: int,
        expansion: int,
        stride: int,
        rate: int,
        add: bool,
    ):
        super().__init__(name)
        self.out_channels, self.inner_channels = channels, in_channels * expansion
        self._add = add
        self.expand = None
        if expansion > 1:
            self.expand = _unit(
                settings,
                f"{name}/expand",
                lambda scope: Conv2D(
                    settings, scope, in_channels, self.inner_channels, kernel_name=_KERNEL
                ),
            )
        self.depthwise = _unit(
            settings,
            f"{name}/dw",
            lambda scope: DepthwiseConv2D(
                settings,
                scope,
                self.inner_channels,
                kernel_size,
                stride=stride,
                rate=rate,
                fixed_padding=False,
                kernel_name=_KERNEL,
            ),
        )
        self.project = _unit(
            settings,
            f"{name}/project",
            lambda scope: Conv2D(
                settings, scope, self.inner_channels, channels, kernel_name=_KERNEL
            ),
            activation=None,
        )

    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (output, output of the depthwise convolution)."""
        inner = x if self.expand is None else self.expand(x, training=training)
        inner = self.depthwise(inner, training=training)
        y = self.project(inner, training=training)
        return (x + y if self._add else y), inner


def _unit(settings, name, convolution, *, activation=tf.nn.relu6, joint="_") -> ConvBatchNorm:
    """A convolution `<name>_conv` with its batch norm `<name>_bn`."""
    return ConvBatchNorm(
        convolution(f"{name}{joint}conv"),
        settings,
        activation=activation,
        norm_name=f"{name}{joint}bn",
    )


class EfficientNetLite(Backbone):
    """EfficientNet-Lite0 without its 1x1 head and classifier.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      variant: efficientnet_lite0, and the scope of the variables.
      output_stride: 8, 16 or 32.
    """

    facts = FACTS
    last = "block15"

    def __init__(self, settings: Settings, variant: str, *, output_stride: int):
        super().__init__(variant)
        settings = settings.replace(
            decay=0.99,
            epsilon=1e-3,
            kernel_init=he_truncated_normal,
            depthwise_init=_depthwise_he,
        )
        self.scope = variant
        channels = 32
        self.stem = _unit(
            settings,
            f"{variant}/stem",
            lambda scope: Conv2D(
                settings, scope, 3, 32, 3, stride=2, fixed_padding=False, kernel_name=_KERNEL
            ),
            joint="/",
        )
        self.channels["stem"] = channels
        rates = AtrousRate(output_stride, current=2)
        self.blocks = []
        for kernel_size, first_stride, expansion, stage_channels, count in _STAGES:
            for unit in range(count):
                wanted = first_stride if unit == 0 else 1
                stride, rate = rates.next(wanted)
                end = f"block{len(self.blocks):02d}"
                block = LiteBlock(
                    settings,
                    f"{variant}/{end}",
                    channels,
                    stage_channels,
                    kernel_size=kernel_size,
                    expansion=expansion,
                    stride=stride,
                    rate=rate,
                    # Where a stride has become a rate the sum stays as the weights know it.
                    add=wanted == 1 and channels == stage_channels,
                )
                channels = stage_channels
                self.blocks.append(block)
                self.channels[end] = channels
                self.channels[f"{end}/dw"] = block.inner_channels
        # The widest features before the stride is left: the next stage's expansion is at its end.
        self.low_level = {4: "block02", 8: "block04", 16: "block10"}
        self.hypercolumn = {16: "block15", 15: "block10", 14: "block07", 8: "block04", 4: "block02"}

    def call(self, x: tf.Tensor, training: bool = False) -> EndPoints:
        """Maps a network input [N, h, w, 3] to end points by name."""
        x = self.stem(x, training=training)
        ends = {"stem": x}
        for i, block in enumerate(self.blocks):
            x, inner = block(x, training=training)
            ends[f"block{i:02d}"], ends[f"block{i:02d}/dw"] = x, inner
        return ends

    def torch_names(self) -> dict[str, str]:
        """Returns the modules' names of the file in the package of ImageNet weights."""
        names = {f"{self.scope}/stem/conv": "_conv_stem", f"{self.scope}/stem/bn": "_bn0"}
        for i, block in enumerate(self.blocks):
            # Where there is no expansion its names stand for nothing.
            for ours, theirs in _TORCH_PARTS.items():
                names[f"{block.name}/{ours}"] = f"_blocks.{i}.{theirs}"
        return names


def _depthwise_he(rng, shape):
    # Each output channel of a depthwise kernel sees k x k values, whatever the channel count.
    return he_truncated_normal(rng, (*shape[:2], 1, shape[2])).reshape(shape)
