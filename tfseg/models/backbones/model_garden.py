"""Backbones of TensorFlow's Model Garden: MobileNetV3, and ResNet with atrous rates.

The package builds a network and tells its structure; what computes and learns in it is ours. Each
of its convolutions and batch norms is replaced by our layer of the same kind, so that names, seeds,
types, decay and batch norm are as in every other backbone. Names are the paths in Model Garden's
own checkpoints below the backbone (`layer_with_weights-2/_conv1/kernel`), which is how
`weights.object_paths` finds their values.

- mobilenet_v3_large, mobilenet_v3_small: up to the last inverted residual (end point '4' at output
  stride 16), without the 1x1 convolutions around the global pooling.
- dilated_resnet50, dilated_resnet101: DeepLabv3's ResNet, with a root of one 7x7 convolution and
  maximum pooling. Model Garden's ResNets of the same depth for images have the same variables.
- resnet_rs50: the same with what ResNet-RS adds: a root of three 3x3 convolutions (of 64, 64 and
  128 channels, where ResNet-RS for images has 32, 32 and 64), a strided convolution in place of the
  pooling, shortcuts that average before they project, squeeze-and-excitation of ratio 1/4, Swish.

In both families a dropped stride doubles the rate of the unit that had it already: at output
strides 8 and 16 the features are not those of 32 in between.

Source: tf-models-official, official.vision.modeling.backbones.mobilenet and resnet_deeplab; Howard
et al., "Searching for MobileNetV3", ICCV 2019; Chen et al., "Rethinking Atrous Convolution", 2017;
Bello et al., "Revisiting ResNets", NeurIPS 2021.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.models.backbones.base import STANDARDISED, Backbone, EndPoints
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D, DepthwiseConv2D
from tfseg.models.layers.initial_values import truncated_normal
from tfseg.models.layers.settings import Layer, Settings

_KERNEL, _BIAS, _DEPTHWISE_KERNEL = "kernel", "bias", "depthwise_kernel"


# Imported where one of them is chosen: the package takes seconds and hundreds of modules.
def _mobilenet(**options: Any) -> tf.keras.Model:
    from official.vision.modeling.backbones.mobilenet import MobileNet

    return MobileNet(output_intermediate_endpoints=True, **options)


def _resnet(**options: Any) -> tf.keras.Model:
    from official.vision.modeling.backbones.resnet_deeplab import DilatedResNet

    return DilatedResNet(**options)


@dataclasses.dataclass(frozen=True)
class _Variant:
    """A network of the package.

    Attributes:
      make: builds it.
      options: what it is built with.
      ends: numbers of the last block at stride 4, at 8, at 16, and of all; the first is 0.
      low_level: what follows the name of such a block where a decoder merges it.
    """

    make: Callable[..., tf.keras.Model]
    options: dict[str, Any]
    ends: tuple[int, int, int, int]
    low_level: str = ""


_RESNET_RS = {
    "stem_type": "v1",
    "replace_stem_max_pool": True,
    "resnetd_shortcut": True,
    "se_ratio": 0.25,
    "activation": "swish",
}
# DeepLab merges the widest features of a stride, of MobileNets those of a depthwise convolution.
_VARIANTS = {
    "mobilenet_v3_large": _Variant(
        _mobilenet, {"model_id": "MobileNetV3Large"}, (3, 6, 12, 15), low_level="/depthwise"
    ),
    "mobilenet_v3_small": _Variant(
        _mobilenet, {"model_id": "MobileNetV3Small"}, (1, 3, 8, 11), low_level="/depthwise"
    ),
    "dilated_resnet50": _Variant(_resnet, {"model_id": 50}, (2, 6, 12, 15)),
    "dilated_resnet101": _Variant(_resnet, {"model_id": 101}, (2, 6, 29, 32)),
    "resnet_rs50": _Variant(_resnet, {"model_id": 50, **_RESNET_RS}, (2, 6, 12, 15)),
}


class _Unit(Layer):
    """A block of the package as one of our layers.

    Args:
      block: gives a tensor, or a tensor and others by name.
    """

    def __init__(self, block: tf.keras.layers.Layer):
        super().__init__(f"{block.name}_unit")
        self.block = block

    def call(self, x: tf.Tensor, training: bool = False) -> Any:
        """Maps [N, h, w, C] to what the block gives; Keras tells the layers inside of training."""
        return self.block(x)


class ModelGarden(Backbone):
    """A backbone of Model Garden up to its last block.

    Args:
      settings: seed, types, batch norm; initial values, decay and epsilon are set here.
      variant: one of the above, and the scope of the variables.
      **options: `output_stride` and others of the package's class; the variant's own come first.
    """

    facts = dataclasses.replace(STANDARDISED, kernel_name=_KERNEL, bias_name=_BIAS)

    def __init__(self, settings: Settings, variant: str, **options: Any):
        super().__init__(variant)
        self.scope = variant
        settings = settings.replace(kernel_init=_lecun, depthwise_init=_lecun)
        spec = _VARIANTS[variant]
        self.chain, self._names = [], []
        weighted, blocks = 0, 0
        build = functools.partial(spec.make, **{**options, **spec.options})
        for original in _chain(build, settings.compute_dtype):
            name = None
            layer = original
            if original.weights:
                layer = _ours(original, settings, f"{variant}/layer_with_weights-{weighted}")
                weighted += 1
                # What consists of layers is a block; the root of a ResNet is layers by itself.
                if layer is original:
                    layer = _Unit(original)
                    name = f"block{blocks:02d}"
                    blocks += 1
                    self._note_channels(name, original.output)
            self.chain.append(layer)
            self._names.append(name)
            if blocks > spec.ends[-1]:
                break
        ends = [f"block{number:02d}" for number in spec.ends]
        self.last = ends[-1]
        self.hypercolumn = dict(zip((4, 8, 15, 16), ends))
        self.low_level = {s: end + spec.low_level for s, end in zip((4, 8, 16), ends)}

    def _note_channels(self, name: str, output: Any) -> None:
        output, inner = output if isinstance(output, tuple | list) else (output, {})
        self.channels[name] = output.shape[-1]
        for part, value in inner.items():
            self.channels[f"{name}/{part}"] = value.shape[-1]

    def call(self, x: tf.Tensor, training: bool = False) -> EndPoints:
        """Maps a network input [N, h, w, 3] to end points by name."""
        ends = {}
        # Keras hands `training` on to the layers inside, as our batch norms take it.
        for layer, name in zip(self.chain, self._names):
            x = layer(x, training=training) if isinstance(layer, _Unit) else layer(x)
            if isinstance(x, tuple):
                x, inner = x
                ends |= {f"{name}/{part}": value for part, value in inner.items()}
            if name is not None:
                ends[name] = x
        return ends


def _lecun(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Variance 1 / fan-in of truncated normal values: Keras's VarianceScaling, Model Garden's."""
    # Deviation of the standard normal distribution within two deviations.
    return truncated_normal(1.0 / math.sqrt(math.prod(shape[:-1])) / 0.87962566103423978)(
        rng, shape
    )


def _chain(build: Callable[..., tf.keras.Model], dtype: str) -> list[tf.keras.layers.Layer]:
    """Returns the layers of a network of the package, each of which takes what the last one gave.

    Args:
      build: makes the network.
      dtype: type of the arithmetic.
    """
    # Keras would rewrite the source of each layer, and with TensorFlow 2.15 its own, for a minute.
    build = tf.autograph.experimental.do_not_convert(build)
    with _arithmetic(dtype):
        # The values are not used.
        layers = build(kernel_initializer="zeros").layers
    for before, layer in zip(layers, layers[1:]):
        if [node.inbound_layers for node in layer.inbound_nodes] != [before]:
            raise ValueError(f"{layer.name} does not follow one layer alone")
    return layers[1:]


@contextlib.contextmanager
def _arithmetic(dtype: str) -> Iterator[None]:
    """Keras layers made inside compute in this type."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(dtype)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def _ours(layer: tf.keras.layers.Layer, settings: Settings, name: str) -> tf.keras.layers.Layer:
    """Returns our layer in place of a convolution or batch norm of Keras.

    Args:
      layer: one of these, or one whose attributes are; these are replaced then.
      settings: of our layers.
      name: of our layer; of an attribute's: `<name>/<attribute>`.
    """
    if isinstance(layer, tf.keras.layers.Conv2D):
        height, width, in_channels, filters = layer.kernel.shape
        return Conv2D(
            settings,
            name,
            in_channels,
            filters,
            _square(height, width),
            stride=_square(*layer.strides),
            rate=_square(*layer.dilation_rate),
            use_bias=layer.use_bias,
            fixed_padding=False,
            kernel_name=_KERNEL,
            bias_name=_BIAS,
        )
    if isinstance(layer, tf.keras.layers.DepthwiseConv2D):
        height, width, channels, _ = layer.depthwise_kernel.shape
        return DepthwiseConv2D(
            settings,
            name,
            channels,
            _square(height, width),
            stride=_square(*layer.strides),
            rate=_square(*layer.dilation_rate),
            fixed_padding=False,
            kernel_name=_DEPTHWISE_KERNEL,
        )
    if isinstance(layer, tf.keras.layers.BatchNormalization):
        return BatchNorm(
            settings, name, layer.gamma.shape[0], decay=layer.momentum, epsilon=layer.epsilon
        )
    parts = {
        attribute: part
        for attribute, part in vars(layer).items()
        if isinstance(part, tf.keras.layers.Layer) and part.weights
    }
    if not parts:
        raise ValueError(f"{name} is a {type(layer).__name__}, which is not known here")
    for attribute, part in parts.items():
        setattr(layer, attribute, _ours(part, settings, f"{name}/{attribute}"))
    return layer


def _square(a: int, b: int) -> int:
    if a != b:
        raise ValueError(f"{a} x {b} is not square")
    return a
