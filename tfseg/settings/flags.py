"""Flags from dataclasses and dataclasses from flags: the only module that imports absl.flags.

`define(cls)` makes one absl flag per field of a settings class of `config`; `read(cls)` builds
the frozen object from the parsed command line. A program may set its own defaults, because the
published programs differ in some (`train_sup` and `train_wss` start from other learning rates).
"""

import dataclasses
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from absl import flags

from tfseg.errors import UserError
from tfseg.files import describe

FLAGS = flags.FLAGS


def _element_type(annotation: Any) -> tuple[type, bool]:
    """Returns (scalar type, is a tuple) of a field annotation such as `tuple[int, ...] | None`."""
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    if type(None) in typing.get_args(annotation):
        annotation = options[0]
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def _define_field(field: dataclasses.Field, annotation: Any, default: Any) -> None:
    name, meta = field.name, field.metadata
    scalar, is_tuple = _element_type(annotation)
    help_text = meta["help"] + (" (Accepted, without effect.)" if meta["dead"] else "")
    if is_tuple and meta["multi"]:
        multi = {int: flags.DEFINE_multi_integer, float: flags.DEFINE_multi_float}[scalar]
        multi(name, None if default is None else list(default), help_text)
    elif is_tuple:
        as_text = None if default is None else [str(x) for x in default]
        flags.DEFINE_list(name, as_text, help_text)
    elif meta["choices"]:
        flags.DEFINE_enum(name, default, meta["choices"], help_text)
    elif scalar in (int, float):
        number = {int: flags.DEFINE_integer, float: flags.DEFINE_float}[scalar]
        lower, upper = meta["limits"]
        number(name, default, help_text, lower_bound=lower, upper_bound=upper)
    else:
        text = {bool: flags.DEFINE_boolean, str: flags.DEFINE_string}[scalar]
        text(name, default, help_text)


def define(*classes: type, defaults: Mapping[str, Any] | None = None) -> None:
    """Makes one flag per field; a field that several classes share is one flag.

    Args:
      *classes: settings dataclasses made of `config.option` fields.
      defaults: this program's own defaults by field name.
    """
    defaults = defaults or {}
    for cls in classes:
        annotations = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name not in FLAGS:
                default = defaults.get(field.name, field.default)
                _define_field(field, annotations[field.name], default)


def _parse(field: dataclasses.Field, annotation: Any) -> Any:
    """Returns the flag's value in the field's type."""
    value = FLAGS[field.name].value
    scalar, is_tuple = _element_type(annotation)
    if not is_tuple or value is None:
        return value
    empty = None if type(None) in typing.get_args(annotation) else ()
    try:
        return tuple(scalar(x) for x in value) or empty
    except ValueError:
        raise UserError(
            f"--{field.name} is not a list of {scalar.__name__} values.",
            where=f"--{field.name}",
            received=",".join(str(x) for x in value),
            accepted="comma-separated numbers, for example 513,513",
        ) from None


def _check(field: dataclasses.Field, value: Any, default: Any) -> None:
    meta = field.metadata
    given = FLAGS[field.name].present
    if meta["required"] and not value:
        raise UserError(
            f"--{field.name} is required.", where=f"--{field.name}", accepted=meta["help"]
        )
    if meta["dead"] and given:
        warnings.warn(
            f"--{field.name} is accepted for old command lines and has no effect: {meta['help']}",
            stacklevel=2,
        )
    if meta["unsupported"] and value != default:
        raise UserError(
            f"--{field.name} is not supported: {meta['unsupported']}.",
            where=f"--{field.name}",
            received=value,
            accepted=default,
        )


# Bounds of saved numbers: int32, in which TensorFlow counts; and those of lists, which are rates,
# strides, scales and window sizes.
_MAX_NUMBER, _MAX_IN_LIST, _MAX_LENGTH = (1 << 31) - 1, 1 << 16, 64


def check_saved(cls: type, saved: Mapping[str, Any], *, where: str) -> None:
    """Insists that the settings of an earlier run are ones that flags could have given.

    Args:
      cls: a settings dataclass.
      saved: values by field name, of JSON's types; other names are passed over.
      where: the file and the section, for messages.

    Raises:
      UserError: a value is of another type, not among the choices, or outside the limits.
    """
    annotations = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name not in saved:
            continue
        value, (scalar, is_tuple) = saved[field.name], _element_type(annotations[field.name])
        if value is None and type(None) in typing.get_args(annotations[field.name]):
            continue
        values = value if isinstance(value, list | tuple) and is_tuple else [value]
        largest = _MAX_IN_LIST if is_tuple else _MAX_NUMBER
        right = isinstance(value, list | tuple) == is_tuple and len(values) <= _MAX_LENGTH
        if not right or not all(_is_setting(v, scalar, largest, field.metadata) for v in values):
            kind = {int: "whole numbers", float: "numbers", bool: "true or false"}.get(scalar)
            choices = field.metadata["choices"]
            raise UserError(
                "A setting of the run cannot be used.",
                where=f"{where}, {field.name}",
                received=describe(value),
                accepted=", ".join(choices or ()) or f"{kind or 'text'} as of --{field.name}",
                fix="restore the file; or delete it and give the model flags on the command line",
            )


def _is_setting(value: Any, scalar: type, largest: int, meta: Mapping[str, Any]) -> bool:
    if scalar in (str, bool):
        return isinstance(value, scalar) and (not meta["choices"] or value in meta["choices"])
    if type(value) is not int and (type(value) is not float or scalar is int):
        return False
    lower, upper = meta["limits"]
    return (
        -largest <= value <= largest
        and (lower is None or value >= lower)
        and (upper is None or value <= upper)
    )


def read(
    cls: type,
    *,
    saved: Mapping[str, Any] | None = None,
    may_differ: tuple = (),
    where: str = "config.json",
) -> Any:
    """Builds the frozen settings object of a class from the parsed flags.

    Args:
      cls: a settings dataclass that was passed to `define`.
      saved: values of an earlier run (its config.json). They fill in flags that were not given.
      may_differ: fields for which a given flag may contradict the saved value.
      where: the file of `saved`, for messages.

    Raises:
      UserError: a required flag is missing, a value is malformed or not supported, or a flag
        contradicts the saved value.
    """
    annotations = typing.get_type_hints(cls)
    check_saved(cls, saved or {}, where=where)
    values = {}
    for field in dataclasses.fields(cls):
        value = _parse(field, annotations[field.name])
        if saved is not None and field.name in saved:
            before = saved[field.name]
            before = tuple(before) if isinstance(before, list) else before
            if not FLAGS[field.name].present:
                value = before
            elif value != before and field.name not in may_differ:
                raise UserError(
                    f"--{field.name} contradicts the run that made the checkpoint.",
                    where=f"--{field.name}",
                    received=value,
                    accepted=f"{before} (from its config.json)",
                    fix=f"leave out --{field.name}: its value is read from config.json",
                )
        _check(field, value, field.default)
        values[field.name] = value
    return cls(**values)


def define_method_settings(configs: Mapping[str, type]) -> None:
    """Makes the flags of all methods' own settings; without a default, so that each has its own.

    Args:
      configs: settings dataclass of each method by its name.
    """
    for cls in configs.values():
        annotations = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name not in FLAGS:
                _define_field(field, annotations[field.name], None)


def read_method_settings(configs: Mapping[str, type], method: str) -> Any:
    """Builds the settings object of the chosen method.

    Args:
      configs: as for `define_method_settings`.
      method: the chosen one.

    Raises:
      UserError: a flag of another method was given, or a value is malformed.
    """
    owners: dict[str, list[str]] = {}
    for name, cls in configs.items():
        for field in dataclasses.fields(cls):
            owners.setdefault(field.name, []).append(name)
    for flag, methods in owners.items():
        if is_given(flag) and method not in methods:
            raise UserError(
                f"--{flag} is no setting of --method={method}.",
                where=f"--{flag}",
                received=FLAGS[flag].value,
                accepted=f"--{flag} with --method={' or --method='.join(methods)}",
                fix=f"leave out --{flag}, or choose another --method (train_sup.py: supervised, "
                "train_wss.py: pseudoseg, train_zls.py: strict)",
            )
    cls = configs[method]
    annotations = typing.get_type_hints(cls)
    given = {
        field.name: _parse(field, annotations[field.name])
        for field in dataclasses.fields(cls)
        if is_given(field.name)
    }
    return cls(**given)


def is_given(name: str) -> bool:
    """Whether the flag was set on the command line or in a flagfile."""
    return name in FLAGS and FLAGS[name].present > 0
