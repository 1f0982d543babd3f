"""The networks that a checkpoint holds, and giving their weights to a network."""

import re
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.weights.checkpoint.find import step_of
from tfseg.weights.checkpoint.manifest import read_manifest
from tfseg.weights.checkpoint.names import VALUE_SUFFIX, by_name
from tfseg.weights.checkpoint.reading import open_reader, read_numbers


def stored_variables(prefix: str) -> dict[str, dict[str, str]]:
    """Lists what one of our checkpoints holds.

    Returns:
      `{network: {variable name: key in the file}}`; empty for checkpoints of other programs.
    """
    result: dict[str, dict[str, str]] = {}
    for key in open_reader(prefix).get_variable_to_shape_map():
        if key.startswith("networks/") and key.endswith(VALUE_SUFFIX):
            _, network, *name = key[: -len(VALUE_SUFFIX)].split("/", 2)
            if not name:
                continue
            # TensorFlow escapes '/' as '.S' and '.' as '..' inside one component of a path.
            plain = re.sub(r"\.([S.])", lambda m: {"S": "/", ".": "."}[m.group(1)], name[0])
            result.setdefault(network, {})[plain] = key
    return result


def deployable_network(prefix: str) -> str | None:
    """Returns which network of one of our checkpoints is the one to use, or None without any.

    The first that its run named; 'model' or the first by name where no manifest tells.
    """
    stored = stored_variables(prefix)
    try:
        named = read_manifest(prefix).get("networks", [])
    except (OSError, UserError):
        named = []
    return next((name for name in (*named, "model", *sorted(stored)) if name in stored), None)


def load_network(model: Any, prefix: str, network: str | None = None) -> int:
    """Gives a network the weights stored in one of our checkpoints.

    Args:
      model: a network with the same variable names.
      prefix: the checkpoint.
      network: which network of the checkpoint; None: the deployable one.

    Returns:
      The step at which it was saved, or -1 where its name tells none.

    Raises:
      UserError: it is damaged or holds no such network, a variable is missing, or a shape differs
        (for the logits the message says that the class counts differ).
    """
    reader = open_reader(prefix)
    stored = stored_variables(prefix)
    if not stored:
        raise UserError(
            "The checkpoint was not written by tfseg.",
            where=prefix,
            fix="use it as --tf_initial_checkpoint of a training run, then evaluate that run",
        )
    name = network or deployable_network(prefix)
    if name not in stored:
        raise UserError(
            "The checkpoint holds no such network.",
            where=f"{prefix}, --network",
            received=name,
            accepted=", ".join(sorted(stored)),
        )
    shapes = reader.get_variable_to_shape_map()
    for variable_key, variable in by_name(model.variables).items():
        if variable_key not in stored[name]:
            _check_is_no_classifier(model, variable, prefix)
            raise UserError(
                "The checkpoint lacks a variable of the network.",
                where=prefix,
                received=variable_key,
                fix="give the model flags with which the checkpoint was trained",
            )
        key = stored[name][variable_key]
        if list(shapes[key]) != variable.shape.as_list():
            is_logits = "logits" in variable_key
            raise UserError(
                "The checkpoint and the data have different numbers of classes."
                if is_logits
                else "A variable of the checkpoint has another shape than the network's.",
                where=f"{prefix}, {variable_key}",
                received=f"shape {shapes[key]} in the checkpoint",
                accepted=f"shape {variable.shape.as_list()} for this network and data set",
                fix="evaluate with the data set and the model flags of the training run",
            )
        variable.assign(read_numbers(reader, key, prefix))
    step = step_of(prefix)
    return -1 if step is None else step


def network_values(prefix: str, network: str) -> dict[str, np.ndarray]:
    """Returns everything that one of our checkpoints holds of a network, by variable name.

    Args:
      prefix: the checkpoint.
      network: one of `stored_variables`.

    Raises:
      UserError: it is damaged.
    """
    reader = open_reader(prefix)
    keys = stored_variables(prefix)[network]
    return {name: read_numbers(reader, key, prefix) for name, key in keys.items()}


def _check_is_no_classifier(model: Any, variable: tf.Variable, prefix: str) -> None:
    """Refuses a checkpoint without classifier where one is asked for; `variable` is missing."""
    classifier = getattr(model, "classifier", None)
    if classifier is not None and any(variable is v for v in classifier.variables):
        raise UserError(
            "The network of the checkpoint gives no image-level scores.",
            where=prefix,
            received="--weakly, --fp_cut or --topk_classes, which need them",
            accepted="a network with image-level scores: of train_wss.py --weakly or "
            "--method=slrnet",
            fix="leave out these flags",
        )
