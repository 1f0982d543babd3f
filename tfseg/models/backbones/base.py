"""What every backbone tells about itself."""

import dataclasses

import tensorflow as tf

from tfseg.models.layers.settings import Layer

EndPoints = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Constants of a backbone, before it is built.

    Attributes:
      mean_pixel: RGB 0-255 that the scaling maps to about 0; what images are padded with.
      scale: by channel; network input = (image - offset) / scale.
      offset: see `scale`.
      classifier_dropout_rate: dropout before the image-level classifier.
      kernel_name, bias_name: leaf names of the classifier's variables.
    """

    mean_pixel: tuple[float, float, float]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    classifier_dropout_rate: float = 0.0
    kernel_name: str = "weights"
    bias_name: str = "biases"


# Network input = image * 2 / 255 - 1.
CENTRED = Facts(mean_pixel=(127.5,) * 3, scale=(127.5,) * 3, offset=(127.5,) * 3)
# Means and deviations of ImageNet's pixels, as PyTorch's model collections use them. What is padded
# with zeros after normalising has the mean pixel before it.
_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
_DEVIATION = (255 * 0.229, 255 * 0.224, 255 * 0.225)
STANDARDISED = Facts(mean_pixel=_MEAN, scale=_DEVIATION, offset=_MEAN)


def unit_names(unit: str, convolution: str, norm: str) -> dict[str, str]:
    """Names PyTorch's modules of a convolution with batch norm, by our layers' names.

    Args:
      unit: our convolution's name; the batch norm is `<unit>/BatchNorm`.
      convolution, norm: the modules.
    """
    return {unit: convolution, f"{unit}/BatchNorm": norm}


class Backbone(Layer):
    """Base of the backbones: `call(image, training)` returns a dictionary of end points.

    Attributes, set by each backbone:
      facts: constants.
      scope: first component of its variables' names.
      last: name of the deepest end point.
      channels: channels of every end point, by name.
      low_level: by stride, the end point that a decoder at that stride merges.
      hypercolumn: by stride code, the end points that PseudoSeg's attention may use (spec 5.3).
      patch_size: side in pixels of the patches into which images are cut: their sides are multiples
        of it, and it is the stride of every end point. None: convolutions, which take any size.
      token_maps: end points of a vision transformer, shallow to deep; none of other backbones.
      takes_dropout_seed: `call` takes `dropout_seed` too, because there is dropout inside.
      torch_is_bgr: the first kernel of PyTorch files sees blue first.
      torch_optional: tensors that PyTorch files may lack.
      torch_foreign: tensors that show that a file is of another network.
    """

    facts: Facts
    scope: str
    last: str
    patch_size: int | None = None
    token_maps: tuple[str, ...] = ()
    takes_dropout_seed = False
    torch_is_bgr = False
    torch_optional: tuple[str, ...] = ()
    torch_foreign: tuple[str, ...] = ()

    def __init__(self, name: str):
        super().__init__(name)
        self.channels: dict[str, int] = {}
        self.low_level: dict[int, str] = {}
        self.hypercolumn: dict[int, str] = {}

    def recompute_units(self) -> None:
        """Lets training keep of each unit its input alone, and compute the rest again.

        A unit is a part that consists of layers. A layer by itself keeps little but its input.
        """
        for unit in self._flatten(recursive=False, predicate=lambda part: isinstance(part, Layer)):
            unit.recompute = bool(unit.submodules)

    def torch_names(self) -> dict[str, str]:
        """Returns PyTorch's module by our layer's name; empty where there is no such original."""
        return {}

    def normalise(self, image: tf.Tensor) -> tf.Tensor:
        """Maps RGB 0..255 [N, h, w, 3] to the float32 network input."""
        offset = tf.constant(self.facts.offset, tf.float32)
        factor = tf.constant([1.0 / scale for scale in self.facts.scale], tf.float32)
        return (tf.cast(image, tf.float32) - offset) * factor
