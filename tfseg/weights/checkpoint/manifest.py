"""The manifest of a checkpoint: the size and CRC32C of each of its files, and its networks.

It is renamed into place last: a checkpoint without one is taken only where a folder has no other,
and one whose files do not agree with it is damaged, in which case the previous one is taken.
"""

import json
import os
from collections.abc import Iterable
from typing import Any

import google_crc32c

from tfseg import files
from tfseg.errors import UserError

MANIFEST_SUFFIX = ".manifest.json"
_MANIFEST_FORM = {
    "files": {str: {"bytes": range(1 << 63), "crc32c": str}},
    # Older ones name no networks.
    "networks?": [str],
}


def _crc32c(path: str) -> str:
    checksum = google_crc32c.Checksum()
    with files.open_regular(path) as file:
        while chunk := file.read(1 << 24):
            checksum.update(chunk)
    return checksum.hexdigest().decode()


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_of(prefix: str) -> list[str]:
    """Returns the files of a checkpoint, the index last."""
    folder, base = os.path.split(prefix)
    names = [n for n in os.listdir(folder or ".") if n.startswith(base + ".")]
    data = sorted(n for n in names if n.startswith(base + ".data-"))
    return [os.path.join(folder, n) for n in data] + [prefix + ".index"]


def damage(prefix: str) -> str | None:
    """Says what is wrong with a checkpoint of ours, or None where its manifest agrees."""
    try:
        for name, expected in read_manifest(prefix)["files"].items():
            path = os.path.join(os.path.dirname(prefix), name)
            size = os.path.getsize(path)
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']}"
            if _crc32c(path) != expected["crc32c"]:
                return f"the checksum of {name} is wrong"
    except UserError as error:
        return f"{error.what.rstrip('.')}: {error.received}"
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_manifest(prefix: str) -> dict[str, Any]:
    """Returns the manifest of a checkpoint of ours.

    Raises:
      UserError: it is malformed, or lists other files than a checkpoint has.
      FileNotFoundError: there is none.
    """
    path = prefix + MANIFEST_SUFFIX
    manifest = files.read_json(path, _MANIFEST_FORM, what="The manifest")
    base = os.path.basename(prefix)
    listed = set(manifest["files"])
    if f"{base}.index" not in listed or not any(n.startswith(f"{base}.data-") for n in listed):
        raise UserError(
            "The manifest does not list the files of a checkpoint.",
            where=path,
            received=", ".join(sorted(listed)[:3]) or "no files",
            accepted=f"{base}.index, {base}.data-...",
        )
    strange = [n for n in listed if not n.startswith(base + ".") or os.path.basename(n) != n]
    if strange:
        raise UserError("The manifest lists other files.", where=path, received=strange[0])
    return manifest


def move_into_place(staging: str, name: str, folder: str, networks: Iterable[str]) -> None:
    """Moves the files of a checkpoint to its folder, with a manifest, which is the last to come.

    Args:
      staging: where they are.
      name: of the checkpoint.
      folder: where they go.
      networks: what the checkpoint holds, the deployable one first.
    """
    staged = files_of(os.path.join(staging, name))
    manifest = {
        "files": {
            os.path.basename(p): {"bytes": os.path.getsize(p), "crc32c": _crc32c(p)} for p in staged
        },
        "networks": list(networks),
    }
    manifest_path = os.path.join(staging, name + MANIFEST_SUFFIX)
    with open(manifest_path, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
    for path in (*staged, manifest_path):
        _fsync(path)
    target_manifest = os.path.join(folder, name + MANIFEST_SUFFIX)
    if os.path.exists(target_manifest):
        os.remove(target_manifest)
    for path in (*staged, manifest_path):
        os.replace(path, os.path.join(folder, os.path.basename(path)))
    _fsync(folder)
