"""Writes splits: shards, index and dataset.json, so that half a split never reads as a whole one.

All shards of a split are written under temporary names. Then, in this order: dataset.json forgets
the split, its old files go, the new shards and the index get their names, dataset.json lists the
split. `split_index.load_index` refuses splits that dataset.json does not list, so whatever moment a
run is interrupted at, a split is either the old one, the new one, or one clear message. Bytes
depend on the input alone, so running again gives the same files. Several runs may write into one
folder: they publish one after the other. Far away the order is the same, with an upload in the
place of a new name.
"""

import collections
import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

import numpy as np
import tqdm

from tfseg import sharing, storage
from tfseg.data.atomic_writing import ShardWriter, write_atomically
from tfseg.data.folders import check_holds_no_images
from tfseg.data.index import Index, IndexBuilder, Row
from tfseg.data.index_file import index_path, save_index
from tfseg.data.parallel import parallel_map
from tfseg.data.shards import files_of, shard_name
from tfseg.data.specs import DATASET_FILE, DatasetSpec, read_dataset_json
from tfseg.errors import UserError

# Held by every run while it works in the folder, and by one alone while it publishes.
_WORKING_LOCK = ".converting.lock"
_PUBLISHING_LOCK = ".dataset.json.lock"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One record, ready to be written.

    Attributes:
      data: a serialised `tf.train.Example`.
      row: what the index keeps about it.
      pixels: [C + 1] int64, pixels per class and, last, ignored ones; None without a mask.
      notes: what was done to the image or should be looked at; counted over the split.
      is_pseudo: the mask is a prediction.
    """

    data: bytes
    row: Row
    pixels: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    is_pseudo: bool = False


@dataclasses.dataclass
class SplitReport:
    """What was written for a split: counts, pixels per class, notes with their counts."""

    split: str
    count: int = 0
    num_masks: int = 0
    num_image_labels: int = 0
    num_pseudo_labels: int = 0
    pixels: np.ndarray | None = None
    images_per_class: np.ndarray | None = None
    notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def count_pixels(label: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Returns pixels per class id and, last, those with the ignore label; [C + 1] int64.

    A class that is the ignore label too (ADE20K's 0) counts as ignored.
    """
    counts = np.bincount(label.reshape(-1), minlength=max(256, spec.num_classes)).astype(np.int64)
    ignored = counts[spec.ignore_label]
    counts[spec.ignore_label] = 0
    return np.append(counts[: spec.num_classes], ignored)


def write_splits(
    output_dir: str,
    spec: DatasetSpec,
    splits: Mapping[str, Sequence[Any]],
    encode: Callable[[Any], Encoded],
    *,
    num_shards: int,
    num_workers: int,
    together: Collection[str] = (),
) -> list[SplitReport]:
    """Converts every task of every split and writes the splits one after the other.

    Args:
      output_dir: made if it is missing.
      spec: the classes; must be those of splits already there.
      splits: name -> tasks in record order; a task is whatever `encode` takes.
      encode: picklable; task -> `Encoded`.
      num_shards: per split; fewer where a split has fewer records.
      num_workers: processes.
      together: names of splits that divide the same images. From the first new one on the data set
        has none of the old ones, which could share images with the new.

    Raises:
      UserError: a bad name or count, an empty split, other classes already there, or whatever
        `encode` raises. Nothing of the split at hand is kept then.
    """
    _check_request(splits, num_shards, num_workers)
    make_output_dir(output_dir)
    _remove_leftovers(output_dir)
    with sharing.locked(_lock(output_dir, _WORKING_LOCK), shared=True) as no_locks:
        if storage.is_remote(output_dir):
            print(
                f"note: each split lies in {storage.work_folder(output_dir)} until it is whole and "
                "is uploaded (TMPDIR chooses the disk). An object store has no locks: let no other "
                f"machine write into {output_dir} until this run has ended",
                flush=True,
            )
        elif no_locks:
            print(
                f"note: {output_dir} is on a disk without locks ({no_locks}): let no other "
                "converter write into it until this one has ended",
                flush=True,
            )
        _check_same_classes(output_dir, spec, {*splits, *together})
        _tell_replaced(output_dir, splits, together)
        done: list[SplitReport] = []
        for split in splits:
            old = {split} if done else {split, *together}
            done.append(
                _write_split(output_dir, spec, split, splits, encode, num_shards, num_workers, old)
            )
        return done


def make_output_dir(output_dir: str) -> None:
    """Makes a folder for records where there is none.

    Raises:
      UserError: it is a file, or a folder of images.
    """
    if not storage.exists(os.path.join(output_dir, DATASET_FILE)):
        check_holds_no_images(output_dir, "output_dir")
    try:
        storage.make_folder(output_dir)
    except FileExistsError:
        raise UserError("The output directory is a file.", where=output_dir) from None


def _lock(output_dir: str, name: str) -> str:
    return os.path.join(storage.work_folder(output_dir), name)


def _check_request(splits: Mapping[str, Sequence[Any]], num_shards: int, num_workers: int) -> None:
    for flag, value in (("num_shards", num_shards), ("num_workers", num_workers)):
        if value < 1:
            raise UserError(f"--{flag} must be at least 1.", where=f"--{flag}", received=value)
    if not splits:
        raise UserError("There is no split to write.")
    for split, tasks in splits.items():
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise UserError(
                "A split's name is part of file names and must be made of letters, digits, "
                "'_', '-' and '.'.",
                received=split,
            )
        if not tasks:
            raise UserError(f"Split '{split}' is empty.", where=split, fix="check its list of ids")


def _remove_leftovers(output_dir: str) -> None:
    """Removes temporary files of runs that were killed, unless another run is at work."""
    start = time.time()
    with contextlib.suppress(sharing.Busy):
        with sharing.locked(_lock(output_dir, _WORKING_LOCK), wait=False) as no_locks:
            # Without locks they may be those of a run that is at work.
            if not no_locks:
                sharing.remove_leftovers(storage.work_folder(output_dir), before=start)


def _check_same_classes(output_dir: str, spec: DatasetSpec, leaving: Set[str]) -> None:
    """Refuses splits with other classes, except those that are about to leave the folder."""
    content = read_dataset_json(output_dir)
    if content is None:
        return
    staying = sorted(set(content.get("splits", {})) - leaving)
    if staying and any(content.get(k) != v for k, v in spec.to_json().items()):
        raise UserError(
            "The output directory holds splits with other classes.",
            where=output_dir,
            received=", ".join(staying),
            fix="choose another --output_dir, or remove the files that are there",
        )


def _tell_replaced(output_dir: str, splits: Mapping[str, Any], together: Collection[str]) -> None:
    there = (read_dataset_json(output_dir) or {}).get("splits", {})
    if replaced := [name for name in splits if name in there]:
        print(f"note: will replace in {output_dir}: {', '.join(replaced)}", flush=True)
    if gone := sorted((set(together) - set(splits)) & set(there)):
        print(
            f"note: will remove from {output_dir}: {', '.join(gone)}, drawn earlier among the same "
            "images",
            flush=True,
        )


def _write_dataset_json(
    output_dir: str,
    spec: DatasetSpec,
    *,
    without: Collection[str] = (),
    new: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Writes dataset.json without the entries of some splits, and with new ones."""
    splits = (read_dataset_json(output_dir) or {}).get("splits", {})
    splits = {name: value for name, value in splits.items() if name not in without}
    splits |= new or {}
    content = {**spec.to_json(), "splits": dict(sorted(splits.items()))}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(os.path.join(output_dir, DATASET_FILE), text.encode())


def _write_split(
    output_dir: str,
    spec: DatasetSpec,
    split: str,
    splits: Mapping[str, Sequence[Any]],
    encode: Callable[[Any], Encoded],
    num_shards: int,
    num_workers: int,
    old: Collection[str],
) -> SplitReport:
    tasks = splits[split]
    num_shards = min(num_shards, len(tasks))
    bounds = [len(tasks) * k // num_shards for k in range(num_shards + 1)]
    report = SplitReport(
        split,
        pixels=np.zeros(spec.num_classes + 1, np.int64),
        images_per_class=np.zeros(spec.num_image_classes, np.int64),
    )
    builder = IndexBuilder(spec)
    names = [shard_name(split, k, num_shards) for k in range(num_shards)]
    shards: list[dict[str, Any]] = []
    with contextlib.ExitStack() as undo:
        writers = []
        encoded = parallel_map(encode, tasks, num_workers=num_workers)
        undo.callback(encoded.close)
        progress = tqdm.tqdm(
            total=len(tasks), unit="image", desc=split, disable=not sys.stderr.isatty()
        )
        undo.callback(progress.close)
        for k, name in enumerate(names):
            writer = ShardWriter(os.path.join(output_dir, name))
            undo.callback(writer.discard)
            writers.append(writer)
            for _ in range(bounds[k], bounds[k + 1]):
                item = next(encoded)
                writer.write(item.data)
                builder.add(k, writer.offsets[-1], writer.lengths[-1], item.row)
                _count(report, item, spec)
                progress.update()
            writer.finish()
            shards.append(
                {
                    "file": name,
                    "records": len(writer.offsets),
                    "sha256": writer.sha256,
                    "bytes": writer.num_bytes,
                }
            )
        index = builder.build(names, [shard["bytes"] for shard in shards])
        entry = {**_summary(report, spec), "shards": shards}
        with sharing.locked(_lock(output_dir, _PUBLISHING_LOCK)):
            # Again: another run may have published since.
            _check_same_classes(output_dir, spec, {*splits, *old})
            _write_dataset_json(output_dir, spec, without=old)
            for name in old:
                _remove_split(output_dir, name)
            _publish(output_dir, split, writers, index)
            _write_dataset_json(output_dir, spec, new={split: entry})
    return report


def _remove_split(output_dir: str, split: str) -> None:
    """Removes the index and the shards of a split, if they are there."""
    with contextlib.suppress(FileNotFoundError):
        storage.remove(index_path(output_dir, split))
    for name in files_of(output_dir, split):
        storage.remove(os.path.join(output_dir, name))


def _publish(output_dir: str, split: str, writers: list[ShardWriter], index: Index) -> None:
    """Puts finished shards and their index into the folder."""
    if storage.is_remote(output_dir):
        size = sum(writer.num_bytes for writer in writers)
        print(f"uploading {split}: {len(writers)} shard(s), {size / 1e6:.0f} MB", flush=True)
    for writer in writers:
        writer.publish()
    save_index(index_path(output_dir, split), index)


def _count(report: SplitReport, item: Encoded, spec: DatasetSpec) -> None:
    report.count += 1
    report.notes.update(item.notes)
    if item.row.has_mask:
        report.num_masks += 1
        report.num_pseudo_labels += item.is_pseudo
        report.pixels += item.pixels
    if item.row.image_labels is not None:
        report.num_image_labels += 1
        columns = [i - spec.first_image_class for i in item.row.image_labels]
        report.images_per_class[columns] += 1


def _summary(report: SplitReport, spec: DatasetSpec) -> dict[str, Any]:
    return {
        "count": report.count,
        "num_masks": report.num_masks,
        "num_image_labels": report.num_image_labels,
        "num_pseudo_labels": report.num_pseudo_labels,
        "pixels": dict(zip((*spec.class_names, "(ignored)"), report.pixels.tolist())),
    }


def describe(reports: Sequence[SplitReport], spec: DatasetSpec) -> str:
    """Returns a table of what was written, for people."""
    lines = [f"{'split':<20} {'images':>7} {'masks':>7} {'image labels':>13}"]
    for r in reports:
        lines.append(f"{r.split:<20} {r.count:>7} {r.num_masks:>7} {r.num_image_labels:>13}")
    lines += ["", "share of labelled pixels, and images by image-level label:"]
    width = max(len(name) for name in (*spec.class_names, "(ignored)"))
    lines.append(" " * (width + 2) + "".join(f"{r.split[:17]:>18}" for r in reports))
    for k, name in enumerate((*spec.class_names, "(ignored)")):
        cells = []
        for r in reports:
            share = f"{r.pixels[k] / r.pixels.sum():.2%}" if r.pixels.sum() else "-"
            column = k - spec.first_image_class
            images = ""
            if column >= 0 and k < spec.num_classes and r.num_image_labels:
                images = f" {r.images_per_class[column]:>7}"
            cells.append(f"{share + (images or ' ' * 8):>18}")
        lines.append(f"  {name:<{width}}" + "".join(cells))
    for r in reports:
        if r.num_pseudo_labels:
            lines.append(f"note: {r.split}: {r.num_pseudo_labels} masks are pseudo labels")
        for note, count in sorted(r.notes.items()):
            lines.append(f"note: {r.split}: {count} x {note}")
    return "\n".join(lines)
