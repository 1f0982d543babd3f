"""The shards of a split: finding them, an index over their records, checked reading.

A split is the files `<split>-00000-of-00004.tfrecord` and so on of one folder. Its index
`<split>.index.npz` says where each record lies and what a sampler wants to know about it, so that
any record can be read at once and damage cannot shift the ones behind it. Records without an
index (published ones) are scanned on first use.
"""

import dataclasses
import io
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tqdm

from tfseg import files
from tfseg.data import framing, tfexample
from tfseg.data.framing import Damage, Found, Location, RecordError, ShardWriter, read_record, scan
from tfseg.data.specs import DATASET_FILE, DatasetSpec, read_dataset_json, split_entry
from tfseg.errors import UserError
from tfseg.files import ArrayForm

__all__ = [
    "Damage",
    "Found",
    "Index",
    "Location",
    "RecordError",
    "RecordReader",
    "ShardWriter",
    "damage_error",
    "files_of",
    "index_path",
    "load_index",
    "read_index",
    "read_record",
    "save_index",
    "scan",
    "shard_name",
    "shards_of",
    "splits_present",
]

_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<total>\d+)(\.\w+)?")
# Shards of other people's converters.
_LOOSE_SHARD = re.compile(r"(?P<split>.+)-\d+\.(tfrecords?|records?)")
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


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the records of a split lie, and what is in them, in file order.

    Attributes:
      shards: file names, without the folder.
      shard_bytes: [number of shards] int64, sizes in bytes.
      shard: [n] int32, position in `shards`.
      offset: [n] int64, byte at which the record's header starts.
      length: [n] int64, bytes of data.
      ids: [n] objects of type str, `image/filename`.
      height, width: [n] int32, pixels.
      image_labels: [n, K] uint8, multi-hot; zero where they are not known.
      has_image_labels: [n] bool.
      has_mask: [n] bool.
      first_image_class: class id of the first column of `image_labels`; not in the file.
    """

    shards: tuple[str, ...]
    shard_bytes: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    ids: np.ndarray
    height: np.ndarray
    width: np.ndarray
    image_labels: np.ndarray
    has_image_labels: np.ndarray
    has_mask: np.ndarray
    first_image_class: int = 1

    @property
    def size(self) -> int:
        """Number of records."""
        return len(self.shard)


def shard_name(split: str, number: int, total: int) -> str:
    """Returns the file name of a shard."""
    return f"{split}-{number:05d}-of-{total:05d}.tfrecord"


def index_path(dataset_dir: str, split: str) -> str:
    return os.path.join(dataset_dir, split + _INDEX_SUFFIX)


def _files_by_split(dataset_dir: str) -> dict[str, list[str]]:
    try:
        names = sorted(os.listdir(dataset_dir))
    except FileNotFoundError:
        raise UserError(
            "The folder of records does not exist.",
            where=dataset_dir,
            fix="make it with one of tfrecords_tools/build_*.py",
        ) from None
    except NotADirectoryError:
        raise UserError("The folder of records is a file.", where=dataset_dir) from None
    files: dict[str, list[str]] = {}
    for name in names:
        if name.startswith("."):
            continue
        match = _SHARD.fullmatch(name) or _LOOSE_SHARD.fullmatch(name)
        if match:
            files.setdefault(match["split"], []).append(name)
    return files


def splits_present(dataset_dir: str) -> list[str]:
    """Returns the names of the splits in a folder, sorted.

    Raises:
      UserError: there is no such folder.
    """
    return sorted(_files_by_split(dataset_dir))


def files_of(dataset_dir: str, split: str) -> list[str]:
    """Returns the names of all files that are shards of a split, complete or not."""
    return _files_by_split(dataset_dir).get(split, [])


def shards_of(dataset_dir: str, split: str) -> list[str]:
    """Returns the shard file names of a split in order.

    Raises:
      UserError: no such split (names those present), or its set of shards is not complete.
    """
    files = _files_by_split(dataset_dir)
    if split not in files:
        raise UserError(
            f"There is no split '{split}'.",
            where=dataset_dir,
            received=split,
            accepted=", ".join(sorted(files)) or "(the folder holds no splits at all)",
            fix="choose one of these, or make the split with tfrecords_tools",
        )
    matches = [_SHARD.fullmatch(name) for name in files[split]]
    totals = sorted({m["total"] for m in matches if m})
    if len(totals) > 1 or (totals and not all(matches)):
        raise UserError(
            f"The shards of split '{split}' belong to different sets.",
            where=dataset_dir,
            received=", ".join(files[split][:8]),
            fix="remove the set that is not wanted, or make the split again",
        )
    if totals:
        there, total = {int(m["number"]) for m in matches}, int(totals[0])
        # A few only: the total is what a file name says.
        absent = (number for number in range(total) if number not in there)
        missing = list(itertools.islice(absent, 8))
        if missing or len(there) != len(matches) or len(there) != total:
            raise UserError(
                f"Split '{split}' is not complete.",
                where=dataset_dir,
                received=f"{len(there)} of {total} shards"
                + (f"; missing: {', '.join(map(str, missing))}" if missing else ""),
                fix="copy the missing files, or make the split again",
            )
    return files[split]


def damage_error(damage: Damage, path: str, record: int) -> RecordError:
    """Returns the error that names a damaged stretch; `record` is its number within the file."""
    return RecordError(
        damage.reason,
        location=Location(path, record, damage.offset),
        received=f"{damage.skipped_bytes} bytes up to the next readable record",
    )


class IndexBuilder:
    """Collects the rows of an index."""

    def __init__(self, spec: DatasetSpec):
        self._spec = spec
        self._rows: list[tuple] = []
        self._labels: list[np.ndarray] = []

    def add(self, shard: int, offset: int, length: int, row: "Row") -> None:
        self._rows.append(
            (
                shard,
                offset,
                length,
                row.id,
                row.height,
                row.width,
                row.image_labels is not None,
                row.has_mask,
            )
        )
        hot = np.zeros(self._spec.num_image_classes, np.uint8)
        if row.image_labels is not None:
            hot[np.asarray(row.image_labels, np.int64) - self._spec.first_image_class] = 1
        self._labels.append(hot)

    def build(self, shards: list[str], shard_bytes: list[int]) -> Index:
        columns = list(zip(*self._rows)) or [()] * 8
        return Index(
            shards=tuple(shards),
            shard_bytes=np.array(shard_bytes, np.int64),
            shard=np.array(columns[0], np.int32),
            offset=np.array(columns[1], np.int64),
            length=np.array(columns[2], np.int64),
            ids=np.array(columns[3], object),
            height=np.array(columns[4], np.int32),
            width=np.array(columns[5], np.int32),
            has_image_labels=np.array(columns[6], np.bool_),
            has_mask=np.array(columns[7], np.bool_),
            image_labels=np.array(self._labels, np.uint8).reshape(
                len(self._labels), self._spec.num_image_classes
            ),
            first_image_class=self._spec.first_image_class,
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """What the index keeps about one record besides its place."""

    id: str
    height: int
    width: int
    image_labels: tuple[int, ...] | None
    has_mask: bool


def row_of(example: tfexample.Example, spec: DatasetSpec, location: Location) -> Row:
    """Returns the index row of a decoded record.

    Raises:
      RecordError: an image-level label is no class of the data set.
    """
    labels = example.image_labels
    if labels is not None:
        wrong = labels[(labels < spec.first_image_class) | (labels >= spec.num_classes)]
        if len(wrong):
            raise RecordError(
                "An image-level label is no class of the data set.",
                location=location,
                key=tfexample.IMAGE_LABELS,
                received=", ".join(map(str, wrong[:8])),
                accepted=f"{spec.first_image_class} to {spec.num_classes - 1}",
                fix="check --dataset or dataset.json, or make the records again",
            )
        labels = tuple(int(i) for i in labels)
    return Row(
        id=example.filename,
        height=example.height,
        width=example.width,
        image_labels=labels,
        has_mask=example.label is not None,
    )


def save_index(path: str, index: Index) -> None:
    """Writes an index atomically; equal indices give equal files."""
    arrays = {name: getattr(index, name) for name in _INDEX_FORMS}
    arrays["shards"] = np.array(index.shards, np.str_)
    ids = [image_id.encode() for image_id in index.ids]
    arrays["ids"] = np.frombuffer(b"".join(ids), np.uint8)
    arrays[_ID_ENDS] = np.cumsum([len(image_id) for image_id in ids], dtype=np.int64)
    buffer = io.BytesIO()
    np.savez(buffer, version=np.int32(_INDEX_VERSION), **arrays)
    framing.write_atomically(path, buffer.getvalue())


def read_index(path: str, spec: DatasetSpec) -> Index:
    """Reads an index file.

    Raises:
      UserError: unreadable, contradictory, for another number of classes, or with rows that are
        not all the records of its shards, each once.
    """
    fix = "delete it: it is made again from the shards"
    about = {"what": "An index", "fix": fix}
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
        if sides.size and not 1 <= sides.min() <= sides.max() <= tfexample.MAX_SIDE:
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


OnDamage = Callable[[RecordError], None]


def _raise(error: RecordError) -> None:
    raise error


def load_index(
    dataset_dir: str, split: str, spec: DatasetSpec, *, on_damage: OnDamage | None = None
) -> Index:
    """Returns the index of a split: the file beside the shards, else from a scan of them.

    A scan reads every byte once and writes the index where the folder is writable and nothing
    was damaged.

    Args:
      dataset_dir: folder of the shards.
      split: name of the split.
      spec: the data set.
      on_damage: called for every damaged stretch (and for every truncated shard), which is then
        left out or left to fail when it is read. None: damage is raised.

    Raises:
      UserError: the split does not exist (names those present), holds no records, or is not what
        its index or dataset.json describes: a shard is missing, truncated or another one.
      RecordError: a damaged record, without `on_damage`.
    """
    on_damage = on_damage or _raise
    # First, because "the conversion did not finish" says more than "a shard is missing".
    promise = _promised(dataset_dir, split) if files_of(dataset_dir, split) else None
    shards = shards_of(dataset_dir, split)
    sizes = [framing.shard_bytes(os.path.join(dataset_dir, name)) for name in shards]
    path = index_path(dataset_dir, split)
    index = read_index(path, spec) if os.path.exists(path) else None
    truncated: set[str] = set()
    for source, expected in (
        (os.path.join(dataset_dir, DATASET_FILE), promise and promise.sizes),
        (path, index and dict(zip(index.shards, index.shard_bytes.tolist()))),
    ):
        if expected is not None:
            truncated |= _compare_sizes(
                dataset_dir, shards, sizes, expected, source, on_damage, truncated
            )
    if index is None:
        index = _scan_split(dataset_dir, split, spec, shards, sizes, promise, on_damage)
    elif promise is not None:
        _compare_counts(index, promise, path, "delete it: it is made again from the shards")
    if index.size == 0:
        raise UserError(
            f"Split '{split}' holds no records.",
            where=dataset_dir,
            fix="make it again, or choose another split of: "
            + ", ".join(splits_present(dataset_dir)),
        )
    return index


@dataclasses.dataclass(frozen=True)
class _Promise:
    """What dataset.json says of a split.

    Attributes:
      sizes: bytes of each shard, by file name.
      records: number of records of each shard for which it is told.
      count: number of records of the split, None where it is not told.
    """

    sizes: dict[str, int]
    records: dict[str, int]
    count: int | None


def _promised(dataset_dir: str, split: str) -> _Promise | None:
    """Returns what dataset.json says of a split, None where there is no such file."""
    content = read_dataset_json(dataset_dir)
    if content is None:
        return None
    entry = split_entry(content, split, where=os.path.join(dataset_dir, DATASET_FILE))
    if entry is None:
        raise UserError(
            f"dataset.json does not list split '{split}': its conversion did not finish.",
            where=dataset_dir,
            received=split,
            accepted=", ".join(sorted(content.get("splits", {}))) or "(no split is finished)",
            fix="run the converter again; running it twice does no harm",
        )
    return _Promise(
        {shard["file"]: shard["bytes"] for shard in entry["shards"]},
        {shard["file"]: shard["records"] for shard in entry["shards"] if "records" in shard},
        entry.get("count"),
    )


def _compare_counts(index: Index, promise: _Promise, where: str, fix: str) -> None:
    """Compares the number of records of each shard, and of all, with dataset.json.

    Raises:
      UserError: they differ.
    """
    counts = np.bincount(index.shard, minlength=len(index.shards)).tolist()
    compared = [(name, n, promise.records.get(name, n)) for name, n in zip(index.shards, counts)]
    compared.append(("the split", index.size, promise.count))
    for what, count, expected in compared:
        if expected is not None and count != expected:
            raise UserError(
                f"The number of records of {what} is not the one of {DATASET_FILE}.",
                where=where,
                received=f"{count} records",
                accepted=f"{expected} records",
                fix=fix,
            )


def _compare_sizes(
    dataset_dir: str,
    shards: list[str],
    sizes: list[int],
    expected: dict[str, int],
    source: str,
    on_damage: OnDamage,
    known: set[str],
) -> set[str]:
    """Returns the names of truncated shards, after `on_damage` heard of those not yet known."""
    truncated = set()
    if set(expected) != set(shards):
        missing = sorted(set(expected) - set(shards))
        extra = sorted(set(shards) - set(expected))
        raise UserError(
            "The shards are not those that were written.",
            where=dataset_dir,
            received=f"missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(extra) or 'none'}",
            accepted=f"those listed in {source}",
            fix="make the split again",
        )
    for name, size in zip(shards, sizes):
        if size == expected[name]:
            continue
        path = os.path.join(dataset_dir, name)
        if size < expected[name]:
            truncated.add(name)
            if name in known:
                continue
            on_damage(
                RecordError(
                    "A shard is truncated.",
                    location=Location(path, None, size),
                    received=f"{size} bytes",
                    accepted=f"{expected[name]} bytes, by {source}",
                )
            )
        else:
            raise UserError(
                "A shard is not the one that was written.",
                where=path,
                received=f"{size} bytes",
                accepted=f"{expected[name]} bytes, by {source}",
                fix="make the split again; if the shard was replaced on purpose, delete the "
                "split's .index.npz",
            )
    return truncated


def _scan_split(
    dataset_dir: str,
    split: str,
    spec: DatasetSpec,
    shards: list[str],
    sizes: list[int],
    promise: _Promise | None,
    on_damage: OnDamage,
) -> Index:
    builder, damaged = IndexBuilder(spec), False
    progress = tqdm.tqdm(
        total=sum(sizes),
        unit="B",
        unit_scale=True,
        desc=f"indexing {split}",
        disable=not sys.stderr.isatty(),
    )
    if not sys.stderr.isatty():
        print(
            f"indexing {split}: {len(shards)} shards, {sum(sizes) / 1e6:.0f} MB without an index",
            file=sys.stderr,
            flush=True,
        )
    with progress:
        for number, (name, size) in enumerate(zip(shards, sizes)):
            path = os.path.join(dataset_dir, name)
            for record, item in enumerate(scan(path, with_data=True)):
                try:
                    if isinstance(item, Damage):
                        raise damage_error(item, path, record)
                    found, data = item
                    location = Location(path, record, found.offset)
                    example = tfexample.decode(data, location)
                    builder.add(number, found.offset, found.length, row_of(example, spec, location))
                except RecordError as error:
                    damaged = True
                    on_damage(error)
            progress.update(size)
    index = builder.build(shards, sizes)
    if promise is not None and not damaged:
        _compare_counts(index, promise, dataset_dir, "make the split again")
    if not damaged and index.size:
        try:
            save_index(index_path(dataset_dir, split), index)
        except OSError:
            # A read-only folder, or no space: the index stays in memory and is made again.
            pass
    return index


def _image_labels(example: tfexample.Example, index: Index, i: int) -> tuple:
    """Returns the image-level labels of record `i` and those of the index, None if unknown."""
    received = accepted = None
    if example.image_labels is not None:
        received = sorted(set(example.image_labels.tolist()))
    if index.has_image_labels[i]:
        columns = np.flatnonzero(index.image_labels[i])
        accepted = (columns + index.first_image_class).tolist()
    return received, accepted


class RecordReader:
    """Reads records of a split by number. Threads may share it.

    Args:
      index: of the split.
      dataset_dir: folder of the shards.
    """

    def __init__(self, index: Index, dataset_dir: str):
        self._index, self._dir = index, str(dataset_dir)
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        # Number within the shard, for messages: records of a shard are consecutive.
        self._first = np.searchsorted(index.shard, np.arange(len(index.shards)))

    def location(self, i: int) -> Location:
        """Returns where record `i` of the split lies."""
        shard = int(self._index.shard[i])
        path = os.path.join(self._dir, self._index.shards[shard])
        return Location(path, int(i - self._first[shard]), int(self._index.offset[i]))

    def _descriptor(self, shard: int) -> int:
        with self._lock:
            if shard not in self._descriptors:
                path = os.path.join(self._dir, self._index.shards[shard])
                self._descriptors[shard] = framing.open_shard(path)
            return self._descriptors[shard]

    def read_bytes(self, i: int) -> bytes:
        """Returns the verified data of record `i`.

        Raises:
          RecordError: a checksum or the length is wrong, or the shard is truncated.
        """
        location = self.location(i)
        try:
            descriptor = self._descriptor(int(self._index.shard[i]))
            return framing.read_at(descriptor, location, length=int(self._index.length[i]))
        except OSError as error:
            raise RecordError(
                f"A shard cannot be read ({error.strerror}).", location=location
            ) from None

    def read(self, i: int) -> tfexample.Example:
        """Returns record `i`, verified and parsed.

        Raises:
          RecordError: the record is damaged, is not an Example, or not the one of the index.
        """
        example = tfexample.decode(self.read_bytes(i), self.location(i))
        row = self._index
        for key, received, accepted in (
            (tfexample.FILENAME, example.filename, row.ids[i]),
            (tfexample.HEIGHT, example.height, row.height[i]),
            (tfexample.WIDTH, example.width, row.width[i]),
            (tfexample.LABEL, example.label is not None, row.has_mask[i]),
            (tfexample.IMAGE_LABELS, *_image_labels(example, row, i)),
        ):
            if received != accepted:
                raise RecordError(
                    "A record is not the one that the index describes.",
                    location=self.location(i),
                    key=key,
                    received=received,
                    accepted=accepted,
                    fix="delete the split's .index.npz: it is made again from the shards",
                )
        return example

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
