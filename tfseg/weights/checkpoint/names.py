"""The names of variables: in networks, and as keys of a checkpoint."""

from typing import Any

import tensorflow as tf

VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def variable_name(variable: tf.Variable) -> str:
    """Returns the variable's checkpoint name: its TF1 scope and leaf, without ':0'."""
    return variable.name.split(":")[0]


def by_name(variables: Any) -> dict[str, tf.Variable]:
    """Maps variables by name; two of the same name are a defect of the network."""
    result: dict[str, tf.Variable] = {}
    for variable in variables:
        name = variable_name(variable)
        if name in result:
            raise ValueError(f"two variables are called {name!r}")
        result[name] = variable
    return result
