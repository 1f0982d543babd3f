"""Initial weights from a TensorFlow checkpoint, by the names of variables.

Source: PseudoSeg specification 4.7 for what is left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfseg.errors import UserError
from tfseg.methods.base import LAST_LAYER_SCOPES, LOGITS_SCOPE
from tfseg.models.backbones import BACKBONES
from tfseg.models.heads.projection import CLASS_VECTORS
from tfseg.weights.checkpoint import find, reading
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.checkpoint.stored_networks import deployable_network, stored_variables
from tfseg.weights.coverage import Coverage, listed
from tfseg.weights.object_paths import keys_by_name

# What a TF1 checkpoint holds besides the model's variables.
_NOT_MODEL = re.compile(
    r"(^|/)(global_step|beta[12]_power|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH|Momentum"
    r"|Adam|Adam_1|RMSProp|RMSProp_1|Adagrad|ExponentialMovingAverage)$"
)
# First names of variables that are not their backbone's name.
_SCOPES = {"MobilenetV2": "mobilenet_v2"}


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
        received=f"variables of {other}" if other else listed(stored) or "no variables",
        accepted=f"variables of {variant}",
        fix=fix,
    )
