"""Where the tensors of a PyTorch state dictionary belong in our networks.

Each backbone that has a PyTorch original names the modules of its layers (`Backbone.torch_names`);
here are the heads', and the order of axes, which depends on the kind of layer alone.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfseg.models.backbones.base import Backbone, unit_names
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D, Conv2DTranspose, DepthwiseConv2D
from tfseg.models.layers.settings import Layer
from tfseg.models.layers.tokens import Dense, LayerNorm, Parameter

# [out, in, h, w] to [h, w, in, out]; a depthwise [channels, 1, h, w] to [h, w, channels, 1], and a
# transposed [in, out, h, w] to [h, w, in, out]; a linear map's [out, in] to [in, out].
_CONVOLUTION_AXES = (2, 3, 1, 0)
_DEPTHWISE_AXES = (2, 3, 0, 1)
_DENSE_AXES = (1, 0)
_AXES = {
    Conv2D: _CONVOLUTION_AXES,
    Conv2DTranspose: _DEPTHWISE_AXES,
    Dense: _DENSE_AXES,
    DepthwiseConv2D: _DEPTHWISE_AXES,
}
# The parallel convolutions of DeepLabv2.
_DEEPLAB_V2_PARTS = ("c0", "c1", "c2", "c3")


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one tensor.

    Attributes:
      variable: ours.
      axes: the tensor's axes in our order; None: as they are.
      shift: by how many places the input channels move on; those at the end come first then.
      reverse: the input channels come in the reverse order.
    """

    variable: tf.Variable
    axes: tuple[int, ...] | None = None
    shift: int = 0
    reverse: bool = False

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """Returns the tensor as float32 in the variable's layout; of any rank but the right one,
        as it is."""
        array = np.asarray(array, np.float32)
        if self.axes is None or array.ndim != len(self.axes):
            return array
        array = array.transpose(self.axes)
        if self.shift:
            array = np.roll(array, self.shift, axis=2)
        return array[:, :, ::-1] if self.reverse else array


def slots(module: tf.Module, names: Mapping[str, str]) -> dict[str, Slot]:
    """Finds the places of the tensors of a network or a part of it.

    Args:
      module: a layer or model.
      names: PyTorch's module by our layer's name.

    Returns:
      Places by tensor name (`layer1.0.bn1.running_mean`), in the order of `names`. Layers without
      a name in `names` have none.
    """
    layers = {m.name: m for m in module.submodules if isinstance(m, Layer)}
    result: dict[str, Slot] = {}
    for name, torch in names.items():
        layer = layers.get(name)
        if isinstance(layer, BatchNorm):
            leaves = {
                "weight": layer.gamma,
                "bias": layer.beta,
                "running_mean": layer.moving_mean,
                "running_var": layer.moving_variance,
            }
            result |= {f"{torch}.{leaf}": Slot(v) for leaf, v in leaves.items() if v is not None}
        elif isinstance(layer, LayerNorm):
            result |= {f"{torch}.weight": Slot(layer.gamma), f"{torch}.bias": Slot(layer.beta)}
        elif isinstance(layer, Parameter):
            result[torch] = Slot(layer.value)
        elif isinstance(layer, tuple(_AXES)):
            result[f"{torch}.weight"] = Slot(layer.kernel, _AXES[type(layer)])
            if getattr(layer, "bias", None) is not None:
                result[f"{torch}.bias"] = Slot(layer.bias)
    return result


def backbone_slots(backbone: Backbone) -> dict[str, Slot]:
    """Finds the places of a backbone's tensors; none where it has no PyTorch original."""
    result = slots(backbone, backbone.torch_names())
    if backbone.torch_is_bgr:
        first = next(iter(result))
        result[first] = dataclasses.replace(result[first], reverse=True)
    return result


def aspp_slots(module: tf.Module, *, prefix: str = "") -> dict[str, Slot]:
    """Finds the places of the tensors of Learning Pseudo Labels' ASPP.

    Args:
      module: an `ASPP` of plain convolutions with image pooling, or a network that has one.
      prefix: of the tensors' names, such as `aspp.`.

    Source: LPL specification 3. Image pooling is the last part of the concatenation there and the
    first here.
    """
    # Branch 5 is the image pooling; a name of a layer that is not there does no harm.
    names = {}
    for i in range(4):
        names |= unit_names(f"aspp{i}", f"branch{i + 1}.0", f"branch{i + 1}.1")
    names |= unit_names("image_pooling", "branch5_conv", "branch5_bn")
    names |= unit_names("concat_projection", "conv_cat.0", "conv_cat.1")
    result = slots(module, names)
    last = "conv_cat.0.weight"
    if last in result:
        projection = result[last]
        # All parts have as many channels as the projection's result.
        result[last] = dataclasses.replace(projection, shift=projection.variable.shape[3])
    return {prefix + name: slot for name, slot in result.items()}


def head_slots(model: tf.Module) -> dict[str, Slot]:
    """Finds the places of the tensors of Learning Pseudo Labels' ASPP, decoder and logits.

    Args:
      model: a network with rates 6, 12, 18, one decoder stage and plain convolutions.

    Source: LPL specification 3.
    """
    names = unit_names("decoder/feature_projection0", "shortcut_conv.0", "shortcut_conv.1")
    names |= unit_names("decoder/decoder_conv0", "cat_conv.0", "cat_conv.1")
    names |= unit_names("decoder/decoder_conv1", "cat_conv.3", "cat_conv.4")
    names["logits/semantic"] = "cls_conv"
    return {**aspp_slots(model, prefix="aspp."), **slots(model, names)}


def summed_logits_slots(model: tf.Module) -> dict[str, Slot]:
    """Finds the places of the tensors of DeepLabv2's sum of atrous convolutions.

    Args:
      model: a network without batch norm in its ASPP.

    Source: STRICT specification 3.
    """
    names = ["logits/semantic" + (f"_{i}" if i else "") for i in range(len(_DEEPLAB_V2_PARTS))]
    return slots(model, {name: f"aspp.{part}" for name, part in zip(names, _DEEPLAB_V2_PARTS)})


def dpt_slots(model: tf.Module) -> dict[str, Slot]:
    """Finds the places of the tensors of UniMatch V2's DPT head.

    Args:
      model: a network with --head=dpt; others have none.

    Source: UniMatch specification 6.
    """
    # A name of a layer that is not there does no harm: the third map is not resized.
    names = {"decoder/output": "output_conv.0", "logits/semantic": "output_conv.2"}
    for i in range(1, 5):
        names[f"decoder/layer{i}"] = f"layer{i}_rn"
        fusion, torch = f"decoder/fusion{i}", f"refinenet{i}"
        names[f"{fusion}/out"] = f"{torch}.out_conv"
        for unit in (1, 2):
            for convolution in ("conv1", "conv2"):
                names[f"{fusion}/res{unit}/{convolution}"] = (
                    f"{torch}.resConfUnit{unit}.{convolution}"
                )
    names = {ours: f"head.scratch.{torch}" for ours, torch in names.items()}
    for i in range(1, 5):
        names[f"decoder/project{i}"] = f"head.projects.{i - 1}"
        names[f"decoder/resize{i}"] = f"head.resize_layers.{i - 1}"
    return slots(model, names)
