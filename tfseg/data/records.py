"""The shards of a split: finding them, an index over their records, checked reading.

A split is the files `<split>-00000-of-00004.tfrecord` and so on of one folder. Its index
`<split>.index.npz` says where each record lies and what a sampler wants to know about it, so that
any record can be read at once and damage cannot shift the ones behind it. Records without an
index (published ones) are scanned on first use.
"""

import dataclasses
import io
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
_INDEX_VERSION = 1
# n records in s shards, K image-level classes.
_INDEX_FORMS = {
    "shards": ArrayForm("U", "s"),
    "shard_bytes": ArrayForm("int64", "s"),
    "shard": ArrayForm("int32", "n"),
    "offset": ArrayForm("int64", "n"),
    "length": ArrayForm("int64", "n"),
    "ids": ArrayForm("U", "n"),
    "height": ArrayForm("int32", "n"),
    "width": ArrayForm("int32", "n"),
    "image_labels": ArrayForm("uint8", "nK"),
    "has_image_labels": ArrayForm("bool", "n"),
    "has_mask": ArrayForm("bool", "n"),
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
      ids: [n] str, `image/filename`.
      height, width: [n] int32, pixels.
      image_labels: [n, K] uint8, multi-hot; zero where they are not known.
      has_image_labels: [n] bool.
      has_mask: [n] bool.
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
        there = {int(m["number"]) for m in matches}
        missing = sorted(set(range(int(totals[0]))) - there)
        if missing or len(there) != len(matches) or len(there) != int(totals[0]):
            raise UserError(
                f"Split '{split}' is not complete.",
                where=dataset_dir,
                received=f"{len(there)} of {int(totals[0])} shards"
                + (f"; missing: {', '.join(map(str, missing[:8]))}" if missing else ""),
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
            ids=np.array(columns[3], np.str_),
            height=np.array(columns[4], np.int32),
            width=np.array(columns[5], np.int32),
            has_image_labels=np.array(columns[6], np.bool_),
            has_mask=np.array(columns[7], np.bool_),
            image_labels=np.array(self._labels, np.uint8).reshape(
                len(self._labels), self._spec.num_image_classes
            ),
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
    arrays = {f.name: getattr(index, f.name) for f in dataclasses.fields(Index)}
    arrays["shards"] = np.array(index.shards, np.str_)
    buffer = io.BytesIO()
    np.savez(buffer, version=np.int32(_INDEX_VERSION), **arrays)
    framing.write_atomically(path, buffer.getvalue())


def read_index(path: str, spec: DatasetSpec) -> Index:
    """Reads an index file.

    Raises:
      UserError: unreadable, contradictory, or for another number of classes.
    """
    fix = "delete it: it is made again from the shards"
    about = {"what": "An index", "fix": fix}
    version = int(files.read_npz(path, {"version": ArrayForm("iu", ())}, **about)["version"])
    if version != _INDEX_VERSION:
        raise UserError("An index has another version.", where=path, received=version, fix=fix)
    arrays = files.read_npz(path, _INDEX_FORMS, **about)
    n = len(arrays["shard"])
    if n and not 0 <= arrays["shard"].min() <= arrays["shard"].max() < len(arrays["shards"]):
        raise UserError("An index contradicts itself.", where=path, fix=fix)
    if arrays["image_labels"].shape != (n, spec.num_image_classes):
        raise UserError(
            "An index was made for another number of classes.",
            where=path,
            received=f"{arrays['image_labels'].shape[-1]} image-level classes",
            accepted=f"{spec.num_image_classes}, those of {spec.name}",
            fix=f"check --dataset; if it is right, {fix}",
        )
    arrays["shards"] = tuple(str(s) for s in arrays["shards"])
    return Index(**arrays)


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
    promised = _promised_shards(dataset_dir, split) if files_of(dataset_dir, split) else None
    shards = shards_of(dataset_dir, split)
    sizes = [framing.shard_bytes(os.path.join(dataset_dir, name)) for name in shards]
    path = index_path(dataset_dir, split)
    index = read_index(path, spec) if os.path.exists(path) else None
    truncated: set[str] = set()
    for source, expected in (
        (os.path.join(dataset_dir, DATASET_FILE), promised),
        (path, index and dict(zip(index.shards, index.shard_bytes.tolist()))),
    ):
        if expected is not None:
            truncated |= _compare_sizes(
                dataset_dir, shards, sizes, expected, source, on_damage, truncated
            )
    if index is None:
        index = _scan_split(dataset_dir, split, spec, shards, sizes, on_damage)
    if index.size == 0:
        raise UserError(
            f"Split '{split}' holds no records.",
            where=dataset_dir,
            fix="make it again, or choose another split of: "
            + ", ".join(splits_present(dataset_dir)),
        )
    return index


def _promised_shards(dataset_dir: str, split: str) -> dict[str, int] | None:
    """Returns the size of each shard by dataset.json, None where there is no such file."""
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
    return {shard["file"]: shard["bytes"] for shard in entry["shards"]}


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
    if not damaged and index.size:
        try:
            save_index(index_path(dataset_dir, split), index)
        except OSError:
            # A read-only folder, or no space: the index stays in memory and is made again.
            pass
    return index


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
        if example.filename != self._index.ids[i]:
            raise RecordError(
                "A record is not the one that the index describes.",
                location=self.location(i),
                key=tfexample.FILENAME,
                received=example.filename,
                accepted=str(self._index.ids[i]),
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
