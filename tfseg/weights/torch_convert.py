"""Turns a PyTorch state dictionary into a checkpoint that training can start from.

Neither PyTorch nor anything in the file is run. A file of a backbone alone gives a checkpoint of
the backbone; one of Learning Pseudo Labels' network gives its ASPP, decoder and logits too, one of
SPNet's or STRICT's the convolutions of its projection, for --head=projection, and one of UniMatch
V2's its DPT, for --head=dpt.
"""

from collections.abc import Mapping
from typing import Any

from tfseg.errors import check_choice
from tfseg.models import BACKBONES, build_model
from tfseg.settings.network import ModelConfig
from tfseg.weights import torch_file
from tfseg.weights.checkpoint import writing
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.torch_initial import load_torch

# For information alone: no variable depends on it.
_CROP_SIZE = (513, 513)
# What stands for a class count where the file has no logits; no variable depends on it then.
_NO_LOGITS = 21
# A tensor of SPNet's head, which --head=projection takes.
_SPNET_PROBE = "aspp.c0.weight"
# The logits of UniMatch V2's head, and the convolution before them.
_DPT_PROBES = ("head.scratch.output_conv.2.weight", "head.scratch.output_conv.0.weight")
# One tensor of each part of Learning Pseudo Labels' head.
_HEAD_PROBES = (
    "aspp.branch1.0.weight",
    "shortcut_conv.0.weight",
    "cat_conv.0.weight",
    "cls_conv.weight",
)


def _side(arrays: Mapping[str, Any], ending: str, axis: int, default: int) -> int:
    """Returns one side of the tensor whose name ends so, or the default where there is none."""
    for name, array in arrays.items():
        if (name == ending or name.endswith("." + ending)) and array.ndim > axis:
            return array.shape[axis]
    return default


def _has(arrays: Mapping[str, Any], tensors: tuple[str, ...]) -> bool:
    return any(name == t or name.endswith("." + t) for name in arrays for t in tensors)


def _describe(
    variant: str, arrays: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Any], int, bool]:
    """Reads off a state dictionary what network it is of.

    Returns:
      (the network's settings; the head's part of them; channels of its last layer; whether it has a
      head).
    """
    if _has(arrays, (_SPNET_PROBE,)):
        head = {
            "output_stride": 8,
            "aspp_with_batch_norm": False,
            "logits_kernel_size": 3,
            "atrous_rates": (6, 12, 18, 24),
        }
        width = _side(arrays, _SPNET_PROBE, 0, _NO_LOGITS)
        return ModelConfig(model_variant=variant, **head), head, width, True
    if _has(arrays, _DPT_PROBES):
        width = _side(arrays, _DPT_PROBES[0], 0, _NO_LOGITS)
        return ModelConfig(model_variant=variant, head="dpt"), {"head": "dpt"}, width, True
    default = ModelConfig()
    kernel_size = _side(arrays, "shortcut_conv.0.weight", 2, 1)
    head = {
        "output_stride": 8,
        "atrous_rates": (6, 12, 18),
        "aspp_with_separable_conv": False,
        "aspp_convs_filters": _side(arrays, "aspp.branch1.0.weight", 0, default.aspp_convs_filters),
        "decoder_output_stride": (4,),
        "decoder_use_separable_conv": False,
        "decoder_filters": _side(arrays, "cat_conv.0.weight", 0, default.decoder_filters),
        # Any other size is the shape error that follows.
        "decoder_projection_kernel_size": 3 if kernel_size == 3 else 1,
    }
    has_head = _has(arrays, _HEAD_PROBES)
    config = ModelConfig(model_variant=variant, **(head if has_head else {}))
    return config, head, _side(arrays, "cls_conv.weight", 0, _NO_LOGITS), has_head


def _as_flags(head: Mapping[str, Any]) -> str:
    """Writes settings as a command line would."""
    words = []
    for name, value in head.items():
        if isinstance(value, bool):
            words.append(f"--{name}={str(value).lower()}")
        elif name == "atrous_rates":
            words += [f"--{name}={rate}" for rate in value]
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words.append(f"--{name}={text}")
    return " ".join(words)


def convert(weights: str, model_variant: str, output: str, entry: str | None = None) -> str:
    """Writes the checkpoint of a PyTorch file.

    Args:
      weights: path of the file.
      model_variant: a backbone with a PyTorch original.
      output: prefix of the checkpoint.
      entry: of the file; see `torch_file.read`.

    Returns:
      The report.

    Raises:
      UserError: an unknown backbone, a file that is missing, damaged or of another network, or an
        output that cannot be written. Nothing is written then.
    """
    check_choice(model_variant, BACKBONES, flag="model_variant", what="backbone")
    arrays = torch_file.read(weights, entry)
    config, head, num_classes, has_head = _describe(model_variant, arrays)
    model = build_model(config, num_classes=num_classes, num_image_classes=1, crop_size=_CROP_SIZE)
    coverage = load_torch(model, arrays, source=weights, with_head=has_head)
    variables = by_name(model.variables)
    writing.export(output, {"model": {name: variables[name] for name in coverage.matched}})
    use = f"--tf_initial_checkpoint={output} --model_variant={model_variant}"
    if has_head:
        use += f" {_as_flags(head)} --initialize_last_layer"
    return f"{coverage}\nwrote {output}; start from it with\n  {use}"
