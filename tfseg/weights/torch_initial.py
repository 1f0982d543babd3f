"""Initial weights from the tensors of a PyTorch file, by the names of its modules."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfseg.errors import UserError
from tfseg.models.backbones import TORCH_PROBES
from tfseg.models.backbones.vit import SHAPES
from tfseg.weights import torch_layout, vit_names
from tfseg.weights.checkpoint.names import by_name, variable_name
from tfseg.weights.coverage import Coverage, listed
from tfseg.weights.prefix import outer_prefix
from tfseg.weights.torch_layout import Slot

# Backbones with a PyTorch original.
VARIANTS = (*TORCH_PROBES, *SHAPES)
# Counters of batch norm, and the second copy that SLRNet's files hold of every decoder tensor.
_NOT_WEIGHTS = re.compile(r"(^|\.)num_batches_tracked$|^(module\.)?newly_added\.")


def _variant_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Names the backbone whose tensors these are, if it is one of ours."""
    for variant, probes in TORCH_PROBES.items():
        if all(any(n == p or n.endswith("." + p) for n in tensors) for p in probes):
            return variant
    return vit_names.variant_of(tensors)


def fitted(name: str, slot: Slot, array: np.ndarray, source: str) -> np.ndarray:
    """Returns a tensor in its variable's layout.

    Args:
      name: of the tensor in the file, for messages.
      slot: where it goes.
      array: the tensor.
      source: what to call the file in messages.

    Raises:
      UserError: it has another shape, or values that are not finite.
    """
    needed = slot.variable.shape.as_list()
    # In the file's order of axes, in which the user can look it up. Compared before anything is
    # made of the array, which may be a small one repeated to any length.
    axes = list(slot.axes or range(len(needed)))
    accepted = [needed[axes.index(i)] for i in range(len(needed))]
    if list(array.shape) != accepted or array.dtype.kind not in "biuf":
        raise UserError(
            "A tensor of the file has another shape or type than the network's.",
            where=f"{source}, {name}",
            received=f"shape {list(array.shape)}, {array.dtype}",
            accepted=f"shape {accepted}, real numbers",
        )
    value = slot.arrange(array)
    if not np.isfinite(value).all():
        raise UserError("The weights are not finite.", where=f"{source}, {name}")
    return value


def _wrong_backbone(
    model: Any, source: str, tensor: str, what: str, tensors: Mapping[str, np.ndarray]
) -> UserError:
    variant, other = model.config.model_variant, _variant_of(tensors)
    fix = f"give a file of {variant}"
    if other is not None and other != variant:
        fix = f"--model_variant={other}, or a file of {variant}"
    return UserError(
        "The file does not hold the weights of this backbone.",
        where=f"{source}, {tensor}",
        received=f"{what}; the file has {listed(tensors)}",
        accepted=f"the tensors of {variant}",
        fix=fix,
    )


def _check_backbone(
    model: Any,
    source: str,
    prefix: str,
    slots: Mapping[str, Slot],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Insists that a file holds the backbone's tensors, and no others of such a network.

    Args:
      model: with the backbone.
      source: what to call the file in messages.
      prefix: what stands before the names of the backbone's tensors.
      slots: places of the backbone's tensors, by the file's names.
      tensors: of the file.

    Raises:
      UserError: it does not.
    """
    backbone = model.backbone
    optional = {prefix + name for name in backbone.torch_optional}
    for name in slots:
        if name not in tensors and name not in optional:
            raise _wrong_backbone(model, source, name, "no such tensor", tensors)
    parts = {name.removeprefix(prefix).split(".")[0] for name in slots} | {*backbone.torch_foreign}
    for name in tensors:
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and name not in slots and inner.split(".")[0] in parts:
            what = "a tensor that this backbone lacks"
            raise _wrong_backbone(model, source, name, what, tensors)
    # Vision transformers of several widths have tensors of the same names.
    other = vit_names.variant_of(tensors)
    if other not in (None, model.config.model_variant):
        name = next(name for name in tensors if name.startswith(prefix))
        raise _wrong_backbone(model, source, name, f"weights of {other}", tensors)


def load_torch(
    model: Any, arrays: Mapping[str, np.ndarray], *, source: str, with_head: bool
) -> Coverage:
    """Gives a network the tensors of a PyTorch state dictionary.

    Args:
      model: of `tfseg.models.build_model`, with a backbone that has a PyTorch original.
      arrays: tensors by name; before the names may stand `module.`, `backbone.` and the like.
      source: what to call them in messages.
      with_head: take ASPP, decoder and logits too, as far as they are there; their names are those
        of Learning Pseudo Labels, or of SPNet. False: the backbone alone.

    Returns:
      What matched; second copies of tensors and counters are among `not_model`.

    Raises:
      UserError: the backbone is not complete, is another one, or a shape differs. The network is
        unchanged then.
    """
    if model.backbone.token_maps:
        arrays = vit_names.original(arrays)
    tensors = {name: array for name, array in arrays.items() if not _NOT_WEIGHTS.search(name)}
    backbone = torch_layout.backbone_slots(model.backbone)
    if not backbone:
        raise UserError(
            f"{model.config.model_variant} has no PyTorch original whose names are known.",
            where=f"--model_variant={model.config.model_variant}, {source}",
            accepted=", ".join(VARIANTS),
            fix="--tf_initial_checkpoint=<prefix> initialises the other backbones",
        )
    prefix = outer_prefix(tensors, backbone, joint=".")
    slots = {prefix + name: slot for name, slot in backbone.items()}
    _check_backbone(model, source, prefix, slots, tensors)
    if with_head:
        outer = prefix.removesuffix("backbone.")
        heads = torch_layout.head_slots(model) | torch_layout.summed_logits_slots(model)
        heads |= torch_layout.dpt_slots(model)
        slots |= {outer + name: slot for name, slot in heads.items()}
    # Everything is checked before anything is assigned.
    values = {
        name: fitted(name, slot, tensors[name], source)
        for name, slot in slots.items()
        if name in tensors
    }
    for name, value in values.items():
        slots[name].variable.assign(value)
    matched = {variable_name(slots[name].variable) for name in values}
    known = model.variables if with_head else model.backbone.variables
    return Coverage(
        source=source,
        matched=tuple(sorted(matched)),
        missing=tuple(n for n in by_name(known) if n not in matched),
        unused=tuple(name for name in tensors if name not in values),
        not_model=len(arrays) - len(tensors),
    )
