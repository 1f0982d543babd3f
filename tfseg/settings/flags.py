"""Flags from settings, and what of them was given: the only module of settings that knows absl.

`define` makes one absl flag per setting; `given` returns those that stand on the command line or in
a flagfile, in the settings' own types. `reading` builds the settings from them.
"""

import typing
from collections.abc import Mapping
from typing import Any

from absl import flags

from tfseg.errors import UserError
from tfseg.settings import reading
from tfseg.settings.reading import element_type, options_of, owned_of

FLAGS = flags.FLAGS


def _settings_in(cls: type) -> typing.Iterator[tuple[Any, Any]]:
    """Yields (field, annotation) of a section and of all that it can choose."""
    annotations = typing.get_type_hints(cls)
    for field in options_of(cls):
        yield field, annotations[field.name]
    for field in owned_of(cls):
        for choice in field.metadata["registry"].values():
            yield from _settings_in(choice.settings)


def define(*classes: type) -> None:
    """Makes one flag per setting; one that several sections share is one flag.

    The flags have no defaults: a setting that is not given takes its default in `reading`.
    """
    for cls in classes:
        for field, annotation in _settings_in(cls):
            if field.name not in FLAGS:
                _define(field, annotation)


def _define(field: Any, annotation: Any) -> None:
    name, meta = field.name, field.metadata
    scalar, is_tuple = element_type(annotation)
    if is_tuple and meta["words"]:
        flags.DEFINE_multi_string(name, None, meta["help"])
    elif is_tuple and meta["multi"]:
        multi = {int: flags.DEFINE_multi_integer, float: flags.DEFINE_multi_float}[scalar]
        multi(name, None, meta["help"])
    elif is_tuple:
        flags.DEFINE_list(name, None, meta["help"])
    elif meta["choices"]:
        flags.DEFINE_enum(name, None, meta["choices"], meta["help"])
    elif scalar in (int, float):
        number = {int: flags.DEFINE_integer, float: flags.DEFINE_float}[scalar]
        lower, upper = meta["limits"]
        number(name, None, meta["help"], lower_bound=lower, upper_bound=upper)
    else:
        text = {bool: flags.DEFINE_boolean, str: flags.DEFINE_string}[scalar]
        text(name, None, meta["help"])


def given(*classes: type) -> dict[str, Any]:
    """Returns the settings that stand on the command line or in a flagfile, by name.

    Args:
      *classes: those passed to `define`.

    Raises:
      UserError: a list is malformed.
    """
    found = {}
    for cls in classes:
        for field, annotation in _settings_in(cls):
            if field.name in found or not FLAGS[field.name].present:
                continue
            found[field.name] = _parsed(field, annotation)
    return found


def _parsed(field: Any, annotation: Any) -> Any:
    """Returns the flag's value in the setting's type."""
    name, words = field.name, field.metadata["words"]
    value = FLAGS[name].value
    scalar, is_tuple = element_type(annotation)
    if not is_tuple or value is None:
        return value
    # A flagfile may have brought numbers before the word.
    if value and value[-1] in words:
        return value[-1]
    empty = None if type(None) in typing.get_args(annotation) else ()
    try:
        return tuple(scalar(x) for x in value) or empty
    except ValueError:
        raise UserError(
            f"--{name} is not a list of {scalar.__name__} values.",
            where=f"--{name}",
            received=",".join(str(x) for x in value),
            accepted=f"{' or '.join(words)}, or --{name}=NUMBER repeated"
            if words
            else "comma-separated numbers, for example 513,513",
        ) from None


def read(cls: type, defaults: Mapping[str, Any] | None = None) -> Any:
    """Returns the settings of a program that has one section.

    Raises:
      UserError: see `given` and `reading.read`.
    """
    return reading.read(cls, given(cls), defaults=defaults)
