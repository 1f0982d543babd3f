"""What is predicted already: one line of JSON for each image, appended when its files are there.

The first line says which weights and settings made the predictions. A folder holds predictions of
one pair of weights and settings only. Each share of the work (--part) has its own manifest. A
process that is killed may leave the last line half-written: it is cut off, and the image is
predicted again.
"""

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from tfseg import files, sharing
from tfseg.data.prediction_files import safe_path
from tfseg.errors import UserError, naming_file

_STEM, _EXTENSION = "manifest", ".jsonl"
_FORMAT = 1
_HEADER = {"format": int, "fingerprint": str, "checkpoint": str}
_SIDE = range(1, 1 << 31)
_ENTRY = {
    "image": str,
    "path": str,
    "name": str,
    "bytes": range(1 << 62),
    "modified": int,
    "height": _SIDE,
    "width": _SIDE,
    "saved": [str],
}
_WHAT = "A manifest of predictions"
_FIX = "choose another --output_dir, or delete that one"


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image that is predicted.

    Attributes:
      image: its key.
      path: of its file.
      name: under which its files are written.
      bytes, modified: size and time (ns) of the image file as it was.
      height, width: of the image and its masks, pixels.
      classes: ids in the mask, ascending.
      saved: kinds of files that are written.
    """

    image: str
    path: str
    name: str
    bytes: int
    modified: int
    height: int
    width: int
    classes: tuple[int, ...]
    saved: tuple[str, ...]

    @property
    def state(self) -> tuple[int, int]:
        """What `state_of` said of the image file."""
        return self.bytes, self.modified


def state_of(path: str) -> tuple[int, int]:
    """Returns the size in bytes and the time (ns) of a file, which change when it changes."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def suffix_of(part: tuple[int, int] | None) -> str:
    """Returns the part of file names that tells a share's own files; '' without shares."""
    return "" if part is None else f"-{part[0]:05d}-of-{part[1]:05d}"


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what makes predictions what they are."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_all(folder: str, expected: Mapping[str, Any], *, num_classes: int) -> dict[str, Entry]:
    """Returns the images that a folder has predictions of, by key, from all its manifests.

    Args:
      folder: the output directory.
      expected: the header of the predictions that are to be made.
      num_classes: class ids are below it.

    Raises:
      UserError: it holds predictions of other weights or settings, or a damaged manifest.
    """
    entries: dict[str, Entry] = {}
    form = {**_ENTRY, "classes": [range(num_classes)]}
    for path in _paths(folder):
        for number, line in enumerate(_whole_lines(path)):
            where = f"{path}, line {number + 1}"
            if number == 0:
                _check_header(_parsed(line, _HEADER, where), expected, path)
                continue
            value = _parsed(line, form, where)
            if safe_path(value["name"]) != value["name"]:
                raise UserError(
                    f"{_WHAT} holds a name that leads elsewhere.",
                    where=where,
                    received=ascii(value["name"]),
                    fix=_FIX,
                )
            found = {name: value[name] for name in form}
            found |= {name: tuple(value[name]) for name in ("classes", "saved")}
            entries[value["image"]] = Entry(**found)
    return entries


def exists(folder: str) -> bool:
    """Whether a folder has a manifest."""
    return bool(_paths(folder))


def _paths(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(folder), _STEM + "*" + _EXTENSION)))


def _whole_lines(path: str) -> list[bytes]:
    with files.open_regular(path, what=_WHAT, fix=_FIX) as file:
        return file.read().split(b"\n")[:-1]


def _parsed(line: bytes, form: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{_WHAT} is damaged.", where=where, received=str(error)[:100], fix=_FIX
        ) from None
    files.check_form(value, form, what=_WHAT, where=where, fix=_FIX)
    return value


def _check_header(header: Mapping[str, Any], expected: Mapping[str, Any], path: str) -> None:
    if (header["format"], header["fingerprint"]) != (_FORMAT, expected["fingerprint"]):
        # As they look once written: tuples become lists.
        now = json.loads(json.dumps(expected["settings"]))
        before = header.get("settings")
        before = before if isinstance(before, dict) else {}
        differ = [k for k in now if k in before and before[k] != now[k]]
        raise UserError(
            "The output directory holds predictions of another checkpoint, or with other settings.",
            where=path,
            received=f"predictions of {header['checkpoint']}"
            + "".join(f"; {k} {before[k]}, now {now[k]}" for k in differ if k != "weights")
            + ("; its weights are others now" if "weights" in differ else ""),
            accepted="the same --checkpoint_dir and the same settings, or an empty folder",
            fix="choose another --output_dir, or delete that one",
        )


class Writer:
    """Appends to a manifest; as a context manager it holds the manifest's lock.

    Args:
      folder: the output directory.
      part: this process's share.
      header: what the first line says; with 'fingerprint' and 'checkpoint'.

    Raises:
      UserError: on entering: another process is at work on this share.
    """

    def __init__(self, folder: str, part: tuple[int, int] | None, header: Mapping[str, Any]):
        self._path = os.path.join(folder, _STEM + suffix_of(part) + _EXTENSION)
        self._lock = sharing.locked(self._path + ".lock", wait=False, note=f"process {os.getpid()}")
        self._header = {"format": _FORMAT, **header}

    def __enter__(self) -> "Writer":
        try:
            self._lock.__enter__()
        except sharing.Busy as busy:
            raise UserError(
                "Another process predicts into this directory.",
                where=self._path,
                received=busy.holder,
                fix="wait for it; give processes that work together a --part each",
            ) from None
        # After a kill the end of the last whole line; what follows is overwritten.
        whole = _whole_lines(self._path) if os.path.exists(self._path) else []
        self._file = open(self._path, "r+b" if whole else "wb")
        self._file.truncate(sum(len(line) + 1 for line in whole))
        self._file.seek(0, os.SEEK_END)
        if not whole:
            self._append(self._header)
        return self

    def add(self, entry: Entry) -> None:
        """Appends an image whose files are all there."""
        self._append(dataclasses.asdict(entry))

    def _append(self, value: Mapping[str, Any]) -> None:
        with naming_file(self._path):
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()

    def __exit__(self, *exception: Any) -> None:
        try:
            with naming_file(self._path):
                self._file.close()
        finally:
            self._lock.__exit__(None, None, None)
