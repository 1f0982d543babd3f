"""The index of a split as it lies on disk: from its file, or from a scan of the shards.

Records without an index (published ones) are scanned on first use. Either way the shards are held
against what dataset.json and the index promise of them.
"""

import contextlib
import dataclasses
import os
import socket
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tqdm

from tfseg import sharing, storage
from tfseg.data import framing, tfexample
from tfseg.data.framing import Location, RecordError
from tfseg.data.index import Index, IndexBuilder, row_of
from tfseg.data.index_file import index_path, read_index, save_index
from tfseg.data.shard_scan import Damage, damage_error, scan
from tfseg.data.shards import files_of, shards_of, splits_present
from tfseg.data.specs import DATASET_FILE, DatasetSpec, read_dataset_json, split_entry
from tfseg.errors import UserError

OnDamage = Callable[[RecordError], None]


def _raise(error: RecordError) -> None:
    raise error


def load_index(
    dataset_dir: str, split: str, spec: DatasetSpec, *, on_damage: OnDamage | None = None
) -> Index:
    """Returns the index of a split: the file beside the shards, else from a scan of them.

    A scan reads every byte once and writes the index where the folder is writable and nothing
    was damaged. Of several processes that need it one scans, and the others wait; one of them takes
    over if it ends early.

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
    with contextlib.ExitStack() as scanning:
        index = _read_if_there(path, spec)
        if index is None:
            scanning.enter_context(_sole_scan(dataset_dir, split))
            # Of the process that was waited for.
            index = _read_if_there(path, spec)
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

            def damaged(error: RecordError) -> None:
                # No index will be written: nobody needs to wait for it any longer.
                scanning.close()
                on_damage(error)

            index = _scan_split(dataset_dir, split, spec, shards, sizes, promise, damaged)
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


def _read_if_there(path: str, spec: DatasetSpec) -> Index | None:
    return read_index(path, spec) if storage.exists(path) else None


@contextlib.contextmanager
def _sole_scan(dataset_dir: str, split: str) -> Iterator[None]:
    """Waits while another process makes the index of a split; then it is this one's turn.

    Nobody waits where the folder cannot be written to, so that no index could be shared, or its
    disk has no locks. Processes on other machines are not waited for where the folder lies on an
    object store.
    """
    note = f"process {os.getpid()} on {socket.gethostname()}"
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            path = os.path.join(storage.work_folder(dataset_dir), f".indexing-{split}.lock")
            try:
                held.enter_context(sharing.locked(path, wait=False, note=note))
            except sharing.Busy as busy:
                print(
                    f"indexing {split}: waits for {busy.holder or 'another process'}, which is at "
                    "it",
                    file=sys.stderr,
                    flush=True,
                )
                held.enter_context(sharing.locked(path, note=note))
        yield


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
            f"indexing {split}: {len(shards)} shard(s), {sum(sizes) / 1e6:.0f} MB without an index",
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
        except (OSError, UserError):
            # A read-only folder, or no space: the index stays in memory and is made again.
            pass
    return index
