"""The file of an index, `<split>.index.npz`: written, read and held against itself.

It says where each record lies and what a sampler wants to know about it, so that any record can be
read at once and damage cannot shift the ones behind it.
"""

import io
import os

import numpy as np

from tfseg import files, storage
from tfseg.data import framing
from tfseg.data.atomic_writing import write_atomically
from tfseg.data.encoded_image import MAX_SIDE
from tfseg.data.index import Index
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.files import ArrayForm

_INDEX_SUFFIX = ".index.npz"
# Version 1 held `ids` as an array of fixed width, which one long id made wide for all.
_INDEX_VERSION = 2
_ID_ENDS = "id_ends"
# n records in s shards, K image-level classes.
_INDEX_FORMS = {
    "shards": ArrayForm("U", "s"),
    "shard_bytes": ArrayForm("int64", "s"),
    "shard": ArrayForm("int32", "n"),
    "offset": ArrayForm("int64", "n"),
    "length": ArrayForm("int64", "n"),
    "height": ArrayForm("int32", "n"),
    "width": ArrayForm("int32", "n"),
    "image_labels": ArrayForm("uint8", "nK"),
    "has_image_labels": ArrayForm("bool", "n"),
    "has_mask": ArrayForm("bool", "n"),
}
# Of each version; b bytes of all ids together.
_ID_FORMS = {
    1: {"ids": ArrayForm("U", "n")},
    2: {"ids": ArrayForm("uint8", "b"), _ID_ENDS: ArrayForm("int64", "n")},
}


def index_path(dataset_dir: str, split: str) -> str:
    """Returns where the index of a split lies."""
    return os.path.join(dataset_dir, split + _INDEX_SUFFIX)


def save_index(path: str, index: Index) -> None:
    """Writes an index atomically; equal indices give equal files."""
    arrays = {name: getattr(index, name) for name in _INDEX_FORMS}
    arrays["shards"] = np.array(index.shards, np.str_)
    ids = [image_id.encode() for image_id in index.ids]
    arrays["ids"] = np.frombuffer(b"".join(ids), np.uint8)
    arrays[_ID_ENDS] = np.cumsum([len(image_id) for image_id in ids], dtype=np.int64)
    buffer = io.BytesIO()
    np.savez(buffer, version=np.int32(_INDEX_VERSION), **arrays)
    write_atomically(path, buffer.getvalue())


def read_index(path: str, spec: DatasetSpec) -> Index:
    """Reads an index file.

    Raises:
      UserError: unreadable, contradictory, for another number of classes, or with rows that are
        not all the records of its shards, each once.
    """
    fix = "delete it: it is made again from the shards"
    about = {"what": "An index", "fix": fix, "open_file": storage.open_whole}
    version = int(files.read_npz(path, {"version": ArrayForm("iu", ())}, **about)["version"])
    if version not in _ID_FORMS:
        raise UserError("An index has another version.", where=path, received=version, fix=fix)
    arrays = files.read_npz(path, {**_INDEX_FORMS, **_ID_FORMS[version]}, **about)
    try:
        if version > 1:
            arrays["ids"] = _ids(arrays["ids"], arrays.pop(_ID_ENDS))
        wrong = _contradiction(arrays)
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise UserError("An index contradicts itself.", where=path, received=wrong, fix=fix)
    n = len(arrays["shard"])
    if arrays["image_labels"].shape != (n, spec.num_image_classes):
        raise UserError(
            "An index was made for another number of classes.",
            where=path,
            received=f"{arrays['image_labels'].shape[-1]} image-level classes",
            accepted=f"{spec.num_image_classes}, those of {spec.name}",
            fix=f"check --dataset; if it is right, {fix}",
        )
    arrays["shards"] = tuple(str(s) for s in arrays["shards"])
    arrays["ids"] = arrays["ids"].astype(object)
    return Index(**arrays, first_image_class=spec.first_image_class)


def _ids(text: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Cuts the ids out of their joined bytes.

    Args:
      text: uint8 [total bytes], UTF-8.
      ends: int64 [n], where each id ends.

    Returns:
      [n] objects of type str.

    Raises:
      ValueError: they do not fit together.
    """
    joined, ends = text.tobytes(), ends.tolist()
    starts = [0, *ends][:-1] if ends else []
    if (ends[-1] if ends else 0) != len(joined) or any(a > b for a, b in zip(starts, ends)):
        raise ValueError("the ids do not fill their bytes")
    return np.array([joined[a:b].decode() for a, b in zip(starts, ends)], object)


def _contradiction(arrays: dict[str, np.ndarray]) -> str | None:
    """Says what is wrong with the arrays of an index; None: nothing."""
    names = arrays["shards"].tolist()
    if len(set(names)) != len(names):
        return "a shard is named twice"
    for name in ("height", "width"):
        sides = arrays[name]
        if sides.size and not 1 <= sides.min() <= sides.max() <= MAX_SIDE:
            return f"a {name} that no image has"
    if arrays["image_labels"].size and arrays["image_labels"].max() > 1:
        return "image-level labels other than 0 and 1"
    return _gap(*(arrays[name] for name in ("shard_bytes", "shard", "offset", "length")))


def _gap(
    shard_bytes: np.ndarray, shard: np.ndarray, offset: np.ndarray, length: np.ndarray
) -> str | None:
    """Says where rows are not the records of whole shards, in order; None: nowhere.

    Args:
      shard_bytes: [number of shards] integers.
      shard, offset, length: [n] integers.
    """
    shard, offset, length = (x.astype(np.int64) for x in (shard, offset, length))
    if shard.size and not 0 <= shard.min() <= shard.max() < len(shard_bytes):
        return "a row of a shard that is not there"
    # Compared before it is added: a sum may overflow.
    if shard_bytes.size and shard_bytes.min() < 0:
        return "a shard of negative size"
    if ((length < 0) | (length > shard_bytes[shard])).any():
        return "a record that is longer than its shard"
    if (np.diff(shard) < 0).any():
        return "rows that are not in file order"
    ends = offset + framing.OVERHEAD_BYTES + length
    first = np.diff(shard, prepend=-1) > 0
    expected = np.where(first, 0, np.roll(ends, 1))
    wrong = np.flatnonzero(offset != expected)
    if wrong.size:
        i = wrong[0]
        return (
            f"row {i} of {len(offset)} begins at byte {offset[i]} of shard {shard[i]}; the record "
            f"there begins at byte {expected[i]}"
        )
    # What the last row of each shard leaves over; a shard without rows is empty.
    covered = np.zeros(len(shard_bytes), np.int64)
    np.maximum.at(covered, shard, ends)
    wrong = np.flatnonzero(covered != shard_bytes)
    if wrong.size:
        k = wrong[0]
        return f"the rows of shard {k} end at byte {covered[k]} of {shard_bytes[k]}"
    return None
