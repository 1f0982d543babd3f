"""From what a user gave to frozen settings, with one message where that cannot be meant.

`read` builds a section: a given value first, then that of the run (its config.json), then the
program's default, then the setting's own. `check_heeded` refuses what was given and would have no
effect. `make` does both for Python code.
"""

import dataclasses
import difflib
import os
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfseg import storage
from tfseg.errors import UserError, check_choice
from tfseg.files import describe
from tfseg.settings.option import NEVER, Choice, is_owned

# Bounds of saved numbers: int32, in which TensorFlow counts; and those of lists, which are rates,
# strides, scales and window sizes.
_MAX_NUMBER, _MAX_IN_LIST, _MAX_LENGTH = (1 << 31) - 1, 1 << 16, 64
_RESTORE = "restore the file; or delete it and give the model flags on the command line"


def options_of(cls: type) -> list[dataclasses.Field]:
    """Returns the fields of a section that are settings themselves."""
    return [field for field in dataclasses.fields(cls) if not is_owned(field)]


def owned_of(cls: type) -> list[dataclasses.Field]:
    """Returns the fields of a section that hold the settings of what it chooses."""
    return [field for field in dataclasses.fields(cls) if is_owned(field)]


def element_type(annotation: Any) -> tuple[type, bool]:
    """Returns (scalar type, is a tuple) of a field annotation such as `tuple[int, ...] | None`."""
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    if type(None) in typing.get_args(annotation):
        annotation = options[0]
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def parts(section: Any) -> Iterator[Any]:
    """Yields a section and the own settings of what it chooses."""
    yield section
    for field in owned_of(type(section)):
        if getattr(section, field.name) is not None:
            yield from parts(getattr(section, field.name))


def flat(section: Any) -> dict[str, Any]:
    """Returns a section's settings by name, with those of what it chooses."""
    return {
        field.name: getattr(part, field.name)
        for part in parts(section)
        for field in options_of(type(part))
    }


def fields_of(section: Any) -> dict[str, dataclasses.Field]:
    """Returns the fields behind `flat`."""
    return {field.name: field for part in parts(section) for field in options_of(type(part))}


def may_differ(section: Any) -> dict[str, str]:
    """Returns by name whether a run may go on with another value: NEVER, TOLD or FREELY."""
    return {
        field.name: field.metadata["may_differ"] or type(part).MAY_DIFFER
        for part in parts(section)
        for field in options_of(type(part))
    }


# Building ---------------------------------------------------------------------------------------


def read(
    cls: type,
    given: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    saved: Mapping[str, Any] | None = None,
    where: str = "config.json",
) -> Any:
    """Builds a section.

    Args:
      cls: its dataclass.
      given: what the user set, by name; names of other sections are passed over.
      defaults: the program's own defaults by name.
      saved: values of an earlier run by name, in JSON's types. They fill in what was not given.
      where: the file of `saved`, for messages.

    Raises:
      UserError: a required setting is missing, a value is of the wrong kind or not supported, or a
        given one contradicts the saved one.
    """
    defaults = defaults or {}
    check_saved(cls, saved or {}, where=where)
    annotations = typing.get_type_hints(cls)
    values = {}
    for field in options_of(cls):
        if field.name in given:
            _check_kind(field, annotations[field.name], given[field.name])
        value = given.get(field.name, defaults.get(field.name, field.default))
        if saved is not None and field.name in saved:
            value = _as_saved(cls, field, given, saved[field.name])
        _check(field, value, is_given=field.name in given)
        values[field.name] = value
    for field in owned_of(cls):
        choice = chosen(field.metadata["registry"], field.metadata["chooser"], values)
        values[field.name] = read(
            choice.settings, given, defaults=defaults, saved=saved, where=where
        )
    return cls(**values)


def chosen(registry: Mapping[str, Choice], chooser: str, values: Mapping[str, Any]) -> Choice:
    """Returns the chosen entry of a registry.

    Raises:
      UserError: there is none of this name.
    """
    check_choice(values[chooser], registry, flag=chooser, what=chooser)
    return registry[values[chooser]]


def _as_saved(cls: type, field: dataclasses.Field, given: Mapping[str, Any], before: Any) -> Any:
    """Returns the value of a run, or the given one where it may differ.

    Raises:
      UserError: it may not.
    """
    before = tuple(before) if isinstance(before, list) else before
    if field.name not in given:
        return before
    value = given[field.name]
    if value != before and (field.metadata["may_differ"] or cls.MAY_DIFFER) == NEVER:
        raise UserError(
            f"--{field.name} contradicts the run that made the checkpoint.",
            where=f"--{field.name}",
            received=value,
            accepted=f"{before} (from its config.json)",
            fix=f"leave out --{field.name}: its value is read from config.json",
        )
    return value


def _check_kind(field: dataclasses.Field, annotation: Any, value: Any) -> None:
    """Insists on a value that the setting can have; flags are checked by absl already."""
    if not _fits(field, annotation, value, max_length=None):
        scalar, is_tuple = element_type(annotation)
        kind = f"{'a tuple of ' if is_tuple else ''}{scalar.__name__}"
        bounds: list[str] = []
        if scalar in (int, float):
            lower, upper = field.metadata["limits"]
            largest = _MAX_IN_LIST if is_tuple else _MAX_NUMBER
            bounds = [f"at least {lower}"] * (lower is not None)
            bounds += [f"at most {largest if upper is None else upper}"]
        is_list = is_tuple and isinstance(value, list | tuple) and value
        raise UserError(
            f"--{field.name} cannot have this value.",
            where=f"--{field.name}",
            received=",".join(map(describe, value[:_MAX_LENGTH])) if is_list else describe(value),
            accepted=", ".join(field.metadata["choices"] or (kind, *bounds)),
        )


def _check(field: dataclasses.Field, value: Any, *, is_given: bool) -> None:
    meta = field.metadata
    if meta["required"] and not value:
        raise UserError(
            f"--{field.name} is required.", where=f"--{field.name}", accepted=meta["help"]
        )
    if isinstance(value, str) and not meta["remote"] and storage.is_remote(value):
        raise UserError(
            f"--{field.name} must be a path on a disk.",
            where=f"--{field.name}",
            received=value,
            accepted="a path of this machine's file system. Records alone (--dataset_dir) may lie "
            "on an object store: checkpoints and all else is locked, renamed and added to",
            fix="choose a path on a disk, and copy between it and the object store",
        )
    if meta["dead"] and is_given:
        warnings.warn(
            f"--{field.name} is accepted for old command lines and has no effect: {meta['help']}",
            stacklevel=2,
        )
    if meta["unsupported"] and value != field.default:
        raise UserError(
            f"--{field.name} is not supported: {meta['unsupported']}.",
            where=f"--{field.name}",
            received=value,
            accepted=field.default,
        )


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
    for field in options_of(cls):
        if field.name in saved and not _fits(field, annotations[field.name], saved[field.name]):
            scalar, _ = element_type(annotations[field.name])
            kind = {int: "whole numbers", float: "numbers", bool: "true or false"}.get(scalar)
            choices = field.metadata["choices"]
            raise UserError(
                "A setting of the run cannot be used.",
                where=f"{where}, {field.name}",
                received=describe(saved[field.name]),
                accepted=", ".join(choices or ()) or f"{kind or 'text'} as of --{field.name}",
                fix=_RESTORE,
            )


def _fits(
    field: dataclasses.Field, annotation: Any, value: Any, max_length: int | None = _MAX_LENGTH
) -> bool:
    """Whether a value, tuples as lists or tuples, is one that the setting can have."""
    scalar, is_tuple = element_type(annotation)
    if value is None and type(None) in typing.get_args(annotation):
        return True
    if isinstance(value, str) and value in field.metadata["words"]:
        return True
    if isinstance(value, list | tuple) != is_tuple:
        return False
    values = value if is_tuple else [value]
    largest = _MAX_IN_LIST if is_tuple else _MAX_NUMBER
    if max_length is not None and len(values) > max_length:
        return False
    return all(_is_setting(v, scalar, largest, field.metadata) for v in values)


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


# What has an effect -----------------------------------------------------------------------------


def check_heeded(given: Mapping[str, Any], sections: Sequence[Any]) -> None:
    """Refuses what was given and would have no effect.

    Args:
      given: what the user set, by name.
      sections: the settings that were read from it.

    Raises:
      UserError: a setting of another head, augmentation or method than the chosen one was given,
        or one that needs another setting.
    """
    fields, values = {}, {}
    for section in sections:
        fields |= fields_of(section)
        values |= flat(section)
    for section in sections:
        for part in parts(section):
            for name in part.UNHEEDED:
                if name not in given or name not in fields:
                    continue
                if given[name] != getattr(part, "DEFAULTS", {}).get(name, fields[name].default):
                    _refuse_unheeded(name, given[name], type(part), sections)
    for name, value in given.items():
        if name not in fields:
            _check_owner(name, value, sections)
            continue
        for condition in fields[name].metadata["needs"]:
            if value != fields[name].default and not holds(condition, values):
                _refuse_unneeded(name, value, condition, values)


def refuse_training(cls: type, given: Mapping[str, Any]) -> None:
    """Refuses settings that act in training alone.

    Args:
      cls: a section.
      given: what the user set for an evaluation or for pictures, by name.

    Raises:
      UserError: one was given.
    """
    for name, field in names_of(cls).items():
        if name in given and field.metadata["training"]:
            raise UserError(
                f"--{name} is a setting of training.",
                where=f"--{name}",
                received=given[name],
                fix=f"leave out --{name}: a checkpoint is used as it was trained",
            )


def holds(condition: str, values: Mapping[str, Any]) -> bool:
    """Whether a condition of `option(needs=...)` holds; one on an absent setting does not."""
    name, _, wanted = condition.partition("=")
    value = values.get(name)
    if not wanted:
        return value is not None and value is not False
    return _as_text(value) in wanted.split("|")


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_unneeded(name: str, value: Any, condition: str, values: Mapping[str, Any]) -> None:
    other, _, wanted = condition.partition("=")
    if not wanted:
        needed = f"--{other}"
        raise UserError(
            f"--{name} needs {needed}.",
            where=f"--{name}",
            received=value,
            fix=f"add {needed}, or leave out --{name}",
        )
    raise UserError(
        f"--{name} would have no effect.",
        where=f"--{name}={_as_text(value)}",
        received=f"--{other}={_as_text(values.get(other))}",
        accepted=f"--{name} with --{other}={' or '.join(wanted.split('|'))}",
        fix=f"leave out --{name}, or change --{other}",
    )


def _refuse_unheeded(name: str, value: Any, owner: type, sections: Sequence[Any]) -> None:
    for section in sections:
        for field in owned_of(type(section)):
            if type(getattr(section, field.name)) is owner:
                registry, chooser = field.metadata["registry"], field.metadata["chooser"]
                others = [key for key, c in registry.items() if name not in c.settings.UNHEEDED]
                raise UserError(
                    f"--{chooser}={getattr(section, chooser)} does not use --{name}.",
                    where=f"--{name}",
                    received=value,
                    accepted=f"--{name} with --{chooser}={' or '.join(others)}",
                    fix=f"leave out --{name}, or choose another --{chooser}",
                )


def _check_owner(name: str, value: Any, sections: Sequence[Any]) -> None:
    """Refuses a setting that belongs to something else than what was chosen."""
    for section in sections:
        for field in owned_of(type(section)):
            registry, chooser = field.metadata["registry"], field.metadata["chooser"]
            owners = [
                key
                for key, choice in registry.items()
                if name in {f.name for f in options_of(choice.settings)}
            ]
            if owners:
                about = type(section).__dataclass_fields__[chooser].metadata["help"]
                raise UserError(
                    f"--{name} is no setting of --{chooser}={getattr(section, chooser)}.",
                    where=f"--{name}",
                    received=value,
                    accepted=f"--{name} with --{chooser}={' or '.join(owners)}",
                    fix=f"leave out --{name}, or choose another --{chooser} ({about})",
                )


# For Python code --------------------------------------------------------------------------------


def make(cls: type, **values: Any) -> Any:
    """Builds a section from keyword arguments, those of what it chooses among them.

    Raises:
      UserError: a value is of the wrong kind, or would have no effect.
      TypeError: no setting has this name.

    Example:
      >>> make(DataConfig, dataset_dir="records", augmentation="resized_crop", crop_area=(0.5, 1.0))
    """
    given = given_as([cls], values)
    section = read(cls, given)
    check_heeded(given, [section])
    return section


def given_as(classes: Sequence[type], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments as given settings: lists and arrays are tuples, paths are text.

    Raises:
      TypeError: no setting of these sections has one of the names.
    """
    known = {name for cls in classes for name in names_of(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise TypeError(f"there is no setting {', '.join(unknown)}{hint}")
    return {name: _frozen(value) for name, value in values.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def names_of(cls: type) -> dict[str, dataclasses.Field]:
    """Returns every setting of a section by name, those of all that it can choose among them."""
    fields = {field.name: field for field in options_of(cls)}
    for field in owned_of(cls):
        for choice in field.metadata["registry"].values():
            for name, own in names_of(choice.settings).items():
                fields.setdefault(name, own)
    return fields


def changed(section: Any, **values: Any) -> Any:
    """Returns a section with other values; what is chosen anew takes the defaults of its own.

    Args:
      section: any.
      **values: by name, of the section or of what it chooses after the change.
    """
    return read(type(section), {}, defaults={**flat(section), **values})
