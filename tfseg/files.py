"""Reads the files that describe data and runs: JSON and .npz, whatever is in them.

Such files come with downloaded records and weights. They may be cut short, made by another program,
or made to do harm. `read_json` and `read_npz` check the type, the shape and the depth of what they
read, and compare sizes with the file before anything large is allocated. Whatever is wrong becomes
one `UserError`. Only regular files are opened: a named pipe would be waited for.
"""

import codecs
import dataclasses
import difflib
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from tfseg.errors import UserError

# What the arrays of a file may take: four times the file (bfloat16 widens, texts compress well),
# and as much again as any small file may take.
MEMORY_PER_FILE_BYTE = 4
MEMORY_BESIDES = 64 << 20
# The next step where a user's text has another encoding.
SAVE_AS_UTF8 = (
    "save it again and choose the encoding UTF-8 (PowerShell: | Out-File -Encoding utf8; Excel: "
    "CSV UTF-8)"
)
# A description is nested six deep. JSON takes some twenty times its size in memory.
_MAX_DEPTH = 64
_MAX_JSON_BYTES = 64 << 20
_SHOWN = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


# Opening ------------------------------------------------------------------------------------------


def is_utf16(data: bytes) -> bool:
    """Says whether a text begins as UTF-16, which PowerShell writes."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def did_you_mean(path: str, otherwise: str | None = None) -> str | None:
    """Returns the next step where a path is not there: a path of a similar name, or `otherwise`.

    Where a folder is needed and the path is a file, it is the folder of the file.

    Args:
      path: that is not there, of this machine or of an object store.
      otherwise: the next step where nothing has a similar name.

    Example:
      >>> did_you_mean("photos/mask")  # There is photos/masks.
      'did you mean photos/masks?'
    """
    if "://" in path:
        return otherwise
    missing = os.path.normpath(path)
    parent, name = os.path.split(missing)
    if os.path.isfile(missing):
        return f"give a folder, such as that of the file: {parent or '.'}"
    while parent and not os.path.isdir(parent):
        missing = parent
        parent, name = os.path.split(missing)
    try:
        similar = difflib.get_close_matches(name, os.listdir(parent or "."), n=1)
    except OSError:
        return otherwise
    if similar:
        return f"did you mean {os.path.join(parent, similar[0])}?"
    return otherwise if missing == os.path.normpath(path) else f"there is no folder {missing}"


def kind_of(mode: int) -> str | None:
    """Says what a path is by the mode of `os.stat`; None: a regular file."""
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "a folder"
    return {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}.get(
        stat.S_IFMT(mode), "a device"
    )


def open_descriptor(path: str, *, what: str = "This", fix: str | None = None) -> int:
    """Opens a regular file for reading and returns its descriptor.

    Args:
      path: the file.
      what: what to call it in the message.
      fix: the next step.

    Raises:
      UserError: it is a folder, a named pipe, a socket or a device.
      OSError: it is not there or cannot be opened.
    """

    def refused(mode: int) -> UserError:
        return UserError(
            f"{what} is not a file.",
            where=path,
            received=kind_of(mode),
            accepted="a regular file",
            fix=fix,
        )

    mode = os.stat(path).st_mode
    if kind_of(mode) is not None:
        raise refused(mode)
    # Another file may stand there by now; without the flag, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if kind_of(mode) is not None:
        os.close(descriptor)
        raise refused(mode)
    return descriptor


def open_regular(path: str, *, what: str = "This", fix: str | None = None) -> BinaryIO:
    """Opens a regular file for reading bytes; see `open_descriptor`."""
    return os.fdopen(open_descriptor(path, what=what, fix=fix), "rb")


def file_bytes(file: BinaryIO) -> int:
    """Returns the size of an open file, or of bytes in memory that are read as one."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    return size


# JSON ---------------------------------------------------------------------------------------------


def read_json(
    path: str,
    form: Any = None,
    *,
    what: str,
    where: str | None = None,
    accepted: str | None = None,
    fix: str | None = None,
    max_bytes: int | None = _MAX_JSON_BYTES,
    check_texts: bool = True,
    open_file: Callable[..., BinaryIO] = open_regular,
) -> Any:
    """Reads a JSON file in UTF-8, with or without a byte-order mark.

    Args:
      path: the file.
      form: see `check_form`; None: any value.
      what: what to call the file, at the beginning of a message.
      where: the flag and the path; None: the path.
      accepted: what is right, for messages about the whole file.
      fix: the next step, for every message.
      max_bytes: a longer file is refused; None: none is. Only data of users may be that long.
      check_texts: refuse texts that hold half of a character; False: the caller does, who can name
        the place.
      open_file: opens the path as `open_regular` does.

    Returns:
      The content.

    Raises:
      UserError: the file is no regular file, not JSON in UTF-8, too long or too deep, holds a key
        twice or half of a character, or has another form.
      FileNotFoundError: there is no such file.
    """
    where = path if where is None else where

    def bad(problem: str, received: Any) -> UserError:
        return UserError(
            f"{what} {problem}.", where=where, received=received, accepted=accepted, fix=fix
        )

    try:
        with open_file(path, what=what, fix=fix) as file:
            size = file_bytes(file)
            if max_bytes is not None and size > max_bytes:
                raise bad("is too long for such a file", f"{size} bytes")
            data = file.read()
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        content = json.loads(text, object_pairs_hook=_object)
    except (FileNotFoundError, PermissionError):
        raise
    except RecursionError:
        raise bad("is nested too deep", f"more than {_MAX_DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise bad("is not UTF-8", "UTF-16" if is_utf16(data) else str(error)) from None
    except (ValueError, MemoryError) as error:
        raise bad("is not valid JSON", str(error)[:_SHOWN] or "too much for the memory") from None
    except OSError as error:
        raise bad("cannot be read", error.strerror) from None
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            break
    else:
        raise bad("is nested too deep", f"more than {_MAX_DEPTH} levels")
    # Such a text can be neither printed nor written.
    if check_texts and _SURROGATE.search(data) and (text := _half_character(content)) is not None:
        raise bad("holds half of a character", ascii(text)[:_SHOWN])
    if form is not None:
        check_form(content, form, what=what, where=where, fix=fix)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"key {ascii(twice)[:_SHOWN]} stands twice in one object")
    return content


def _half_character(content: Any) -> str | None:
    """Returns a text of the content that is not Unicode, or None."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            return value
    return None


def check_form(
    value: Any, form: Any, *, what: str, where: str | None = None, fix: str | None = None
) -> None:
    """Insists on the form of a value read from JSON.

    Args:
      value: of JSON's own types.
      form: one of `str`, `bool`, `int` (64 bits); a `range` of whole numbers; `[form]`, a list;
        `{key: form}`, an object, which may have further keys and may lack a key that is written
        with '?' behind it; `{str: form}`, an object of any keys; `(form, None)`, that or null;
        `object`, anything.
      what: what to call the file, at the beginning of the message.
      where, fix: for the message.

    Raises:
      UserError: names the place within the value, what stands there and what is accepted.
    """
    fault = _fault(value, form)
    if fault is not None:
        place, received, accepted = fault
        place = place.removeprefix(".")[:_SHOWN]
        raise UserError(
            f"{what} has another structure.",
            where=where,
            received=f"{place}: {received}" if place else received,
            accepted=accepted,
            fix=fix,
        )


def _fault(value: Any, form: Any) -> tuple[str, str, str] | None:
    """Returns the place that departs from a form, what stands there and what is accepted."""
    if isinstance(form, tuple):
        return None if value is None else _fault(value, form[0])
    if isinstance(form, list):
        if not isinstance(value, list):
            return "", describe(value), "a list"
        inner = ((i, each, form[0]) for i, each in enumerate(value))
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            return "", describe(value), "an object"
        missing = [k for k in form if k is not str and not k.endswith("?") and k not in value]
        if missing:
            return f".{missing[0]}", "nothing", f"a key '{missing[0]}'"
        forms = {k if k is str else k.removesuffix("?"): each for k, each in form.items()}
        keys = value if str in forms else forms.keys() & value
        inner = ((key, value[key], forms.get(key, forms.get(str))) for key in keys)
    else:
        accepted = _accepted(value, form)
        return None if accepted is None else ("", describe(value), accepted)
    for key, each, its_form in inner:
        fault = _fault(each, its_form)
        if fault is not None:
            place = f".{key}" if isinstance(key, str) else f"[{key}]"
            return place + fault[0], *fault[1:]
    return None


def _accepted(value: Any, form: Any) -> str | None:
    """Returns what a scalar must be, None where it is that."""
    if isinstance(form, range):
        if type(value) is int and value in form:
            return None
        upper = "on" if form.stop >= 1 << 63 else f"to {form[-1]}"
        return f"a whole number from {form[0]} {upper}"
    if form is int:
        right = type(value) is int and -(1 << 63) <= value < 1 << 63
    else:
        right = isinstance(value, form)
    return None if right else {str: "a text", bool: "true or false"}.get(form, "a whole number")


def describe(value: Any) -> str:
    """Returns a short text that says what a value is; JSON's types have their values told."""
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    try:
        return json.dumps(value)[:_SHOWN]
    except ValueError:  # more digits than Python prints
        return "a number of thousands of digits"
    except TypeError:  # no type of JSON's: a value of Python code
        return f"an object of type {type(value).__name__}"


# .npz ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArrayForm:
    """What an array must be.

    Args:
      dtype: name of its type; or letters of `numpy.dtype.kind`, of which it must have one.
      shape: of each axis its length, or a letter: axes of one letter have one length.
    """

    dtype: str
    shape: Sequence[int | str]

    def fits(self, dtype: np.dtype, shape: tuple[int, ...], lengths: dict[str, int]) -> bool:
        """Whether an array fits; `lengths` of named axes are compared and added to."""
        is_type = dtype.kind in self.dtype if len(self.dtype) < 4 else dtype == np.dtype(self.dtype)
        return (
            is_type
            and len(shape) == len(self.shape)
            and all(
                found == (lengths.setdefault(axis, found) if isinstance(axis, str) else axis)
                for found, axis in zip(shape, self.shape)
            )
        )

    def __str__(self) -> str:
        words = {"U": "texts", "fiu": "numbers"}.get(self.dtype, self.dtype)
        return f"{words} [{', '.join(map(str, self.shape))}]"


# Types that consist of their bytes alone: numbers, truth values and texts.
_PLAIN = "biufcSU"


def read_npz(
    path: str,
    forms: Mapping[str, ArrayForm] | None = None,
    *,
    what: str,
    where: str | None = None,
    accepted: str | None = None,
    fix: str | None = None,
    open_file: Callable[..., BinaryIO] = open_regular,
) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file.

    Args:
      path: the file.
      forms: the arrays to read and what they must be; others in the file are not touched. None: all
        arrays, of any numbers or texts.
      what: what to call the file, at the beginning of a message.
      where: the flag and the path; None: the path.
      accepted: what is right, for messages about the whole file.
      fix: the next step, for every message.
      open_file: opens the path as `open_regular` does.

    Returns:
      The arrays by name.

    Raises:
      UserError: the file is no regular file, not an .npz of plain arrays or a damaged one; an array
        is missing or is another one than its form says; or the arrays take more memory than
        `MEMORY_PER_FILE_BYTE` times the file and `MEMORY_BESIDES`, as no file of real numbers does.
      FileNotFoundError: there is no such file.
    """
    where = path if where is None else where
    accepted = accepted or "an .npz file of plain arrays"
    try:
        with open_file(path, what=what, fix=fix) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive)
            for name in forms or ():
                if name not in members:
                    raise UserError(
                        f"{what} has no array '{name}'.",
                        where=where,
                        received=", ".join(members)[:_SHOWN] or "no arrays",
                        accepted=accepted,
                        fix=fix,
                    )
            wanted = {name: members[name] for name in forms or members}
            headers = {name: _header(archive, member) for name, member in wanted.items()}
            needed = sum(_bytes_of(*header) for header in headers.values())
            allowed = MEMORY_PER_FILE_BYTE * file_bytes(file) + MEMORY_BESIDES
            if needed > allowed:
                raise ValueError(f"arrays of {needed} bytes; a file of this size has {allowed}")
            if forms is not None:
                lengths: dict[str, int] = {}
                # All are compared, so that the message can name all of them.
                fit = [form.fits(*headers[name], lengths) for name, form in forms.items()]
                if not all(fit):
                    raise _misfit(what, forms, headers, where, fix)
            arrays = {}
            for name, member in wanted.items():
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
                _check_texts(name, arrays[name])
            return arrays
    except (FileNotFoundError, PermissionError, UserError):
        raise
    except Exception as error:
        # A damaged archive fails in the zip, the header or the decompression layer, in many ways.
        text = f"{type(error).__name__}: {error}"[:_SHOWN]
        raise UserError(
            f"{what} cannot be read as .npz.",
            where=where,
            received=text,
            accepted=accepted,
            fix=fix,
        ) from None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the arrays of an archive by name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in members:
            raise ValueError(f"array {name} stands there twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed as NumPy packs nothing")
        members[name] = member
    return members


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[np.dtype, tuple[int, ...]]:
    """Returns type and shape of an array, which agree with the length of its data."""
    with archive.open(member) as stream:
        # Headers of later versions, which no plain array has, may have any length.
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{member.filename} has version {version} of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        start = stream.tell()
    if dtype.kind not in _PLAIN:
        raise ValueError(f"{member.filename} is no plain array but of type {dtype}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != member.file_size - start:
        raise ValueError(f"{member.filename} is not as long as its shape {shape} says")
    return dtype, shape


def _bytes_of(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Returns what an array takes; rows without numbers count too, because loops go over them."""
    return math.prod(max(length, 1) for length in shape) * max(dtype.itemsize, 1)


def _misfit(
    what: str,
    forms: Mapping[str, ArrayForm],
    headers: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    where: str,
    fix: str | None,
) -> UserError:
    found = (f"{name} {dtype} {shape}" for name, (dtype, shape) in headers.items())
    return UserError(
        f"{what} has arrays that do not fit together.",
        where=where,
        received=", ".join(found)[: 10 * _SHOWN],
        accepted=", ".join(f"{name} {form}" for name, form in forms.items()),
        fix=fix,
    )


def _check_texts(name: str, array: np.ndarray) -> None:
    """Refuses texts that are not Unicode: Python cannot make strings of them."""
    if array.dtype.kind != "U" or not array.size or not array.dtype.itemsize:
        return
    points = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).view(np.uint32)
    if points.max() > 0x10FFFF or ((points >= 0xD800) & (points <= 0xDFFF)).any():
        raise ValueError(f"{name} holds texts that are not Unicode")
