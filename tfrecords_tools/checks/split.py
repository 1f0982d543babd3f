"""What is wrong with one split: its shards, dataset.json and index, its records as a whole."""

import collections
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from tfrecords_tools.checks.record import Examiner, Finding, Task, one_line
from tfseg import storage
from tfseg.data import framing
from tfseg.data.framing import RecordError
from tfseg.data.index import Index, Row
from tfseg.data.index_file import index_path, read_index
from tfseg.data.parallel import parallel_map
from tfseg.data.shard_scan import Damage, damage_error, scan
from tfseg.data.shards import files_of, shards_of
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong: its kind, for counting, and where and what exactly."""

    split: str
    kind: str
    text: str


@dataclasses.dataclass
class SplitResult:
    """What was found in a split."""

    split: str
    count: int = 0
    num_bytes: int = 0
    num_masks: int = 0
    num_image_labels: int = 0
    num_pseudo_labels: int = 0
    pixels: np.ndarray | None = None
    labelled: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    ids: list[str] = dataclasses.field(default_factory=list)
    masks_with: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    pictures: dict[bytes, str] = dataclasses.field(default_factory=dict)
    notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, kind: str, text: Any) -> None:
        self.problems.append(Problem(self.split, kind, str(text)))


def _check_shards(dataset_dir: str, result: SplitResult, entry: dict | None) -> list[str]:
    """Compares the files of a split with dataset.json; returns the shards that can be read."""
    try:
        shards = shards_of(dataset_dir, result.split)
    except UserError as error:
        result.add("incomplete split", one_line(error))
        shards = files_of(dataset_dir, result.split)
    promised = {} if entry is None else {shard["file"]: shard for shard in entry["shards"]}
    for name in sorted(set(promised) - set(shards)):
        result.add("missing shard", os.path.join(dataset_dir, name))
    readable = []
    for name in shards:
        path = os.path.join(dataset_dir, name)
        try:
            size = framing.shard_bytes(path)
        except RecordError as error:
            result.add("shard that cannot be read", one_line(error))
            continue
        readable.append(name)
        result.num_bytes += size
        if entry is None:
            continue
        if name not in promised:
            result.add("shard that dataset.json does not list", path)
            continue
        expected = promised[name]["bytes"]
        if size != expected:
            kind = "truncated shard" if size < expected else "shard of another size"
            result.add(kind, f"{path}: {size} bytes; dataset.json says {expected}")
        if promised[name].get("sha256") not in (None, framing.sha256(path)):
            result.add("SHA-256 differs from dataset.json", path)
    return readable


def _frames(dataset_dir: str, shards: Sequence[str], result: SplitResult, entry) -> list[Task]:
    """Walks over the shards and returns their whole records; damage becomes problems."""
    listed = [] if entry is None else entry["shards"]
    promised = {s["file"]: s["records"] for s in listed if "records" in s}
    tasks: list[Task] = []
    for name in shards:
        path = os.path.join(dataset_dir, name)
        number, whole = -1, 0
        for number, item in enumerate(scan(path)):
            if isinstance(item, Damage):
                error = damage_error(item, path, number)
                result.add("damaged record", one_line(error))
            else:
                tasks.append(Task(path, number, item.offset, item.length))
                whole += 1
        if name in promised and whole != promised[name]:
            result.add(
                "record count differs from dataset.json",
                f"{path}: {whole} readable records; dataset.json says {promised[name]}",
            )
    if entry is not None and "count" in entry and entry["count"] != len(tasks):
        result.add(
            "record count differs from dataset.json",
            f"{result.split}: {len(tasks)} readable records; dataset.json says {entry['count']}",
        )
    return tasks


def _check_index(
    dataset_dir: str,
    result: SplitResult,
    spec: DatasetSpec,
    tasks: Sequence[Task],
    findings: Sequence[Finding],
    shards: Sequence[str],
) -> None:
    """Compares the index file with what the shards hold."""
    path = index_path(dataset_dir, result.split)
    if not storage.exists(path):
        result.notes["no index file (it is made on first use)"] += 1
        return
    try:
        index = read_index(path, spec)
    except UserError as error:
        result.add("unusable index", one_line(error))
        return
    sizes = [framing.shard_bytes(os.path.join(dataset_dir, name)) for name in shards]
    if index.shards != tuple(shards) or index.shard_bytes.tolist() != sizes:
        result.add("index differs from the shards", f"{path}: other files or sizes")
    places = zip(index.shard.tolist(), index.offset.tolist())
    entry_at = {(index.shards[s], offset): i for i, (s, offset) in enumerate(places)}
    for task, finding in zip(tasks, findings):
        i = entry_at.pop((os.path.basename(task.path), task.offset), None)
        if i is None:
            result.add("index differs from the shards", f"{task.location}: not in the index")
        elif finding.row is not None and _index_row(index, i, spec) != finding.row:
            result.add("index differs from the shards", f"{task.location}: {finding.row.id}")
    # Entries that no whole record was found for; damage explains them, if there is some.
    if entry_at and not any(p.kind in ("damaged record", "missing shard") for p in result.problems):
        result.add("index differs from the shards", f"{path}: {len(entry_at)} entries too many")


def _index_row(index: Index, i: int, spec: DatasetSpec) -> Row:
    hot = np.flatnonzero(index.image_labels[i]) + spec.first_image_class
    return Row(
        str(index.ids[i]),
        int(index.height[i]),
        int(index.width[i]),
        tuple(hot.tolist()) if index.has_image_labels[i] else None,
        bool(index.has_mask[i]),
    )


def _collect(result: SplitResult, tasks: Sequence[Task], findings: Sequence[Finding]) -> None:
    seen: dict[str, Task] = {}
    for task, finding in zip(tasks, findings):
        result.count += 1
        result.notes.update(finding.notes)
        for kind, text in finding.problems:
            result.add(kind, text)
        if finding.pixels is not None:
            result.pixels = finding.pixels + (0 if result.pixels is None else result.pixels)
        if finding.row is None:
            continue
        if finding.pixels is not None:
            for c in np.flatnonzero(finding.pixels[:-1]).tolist():
                result.masks_with.setdefault(c, []).append(finding.row.id)
        result.labelled.update(finding.row.image_labels or ())
        result.num_masks += finding.row.has_mask
        result.num_image_labels += finding.row.image_labels is not None
        result.num_pseudo_labels += finding.is_pseudo
        if finding.row.id in seen:
            result.add(
                "id twice in a split",
                f"{finding.row.id}: {seen[finding.row.id].location} and {task.location}",
            )
        seen[finding.row.id] = task
        result.pictures[finding.picture] = finding.row.id
    result.ids = list(seen)


def check_split(
    dataset_dir: str,
    split: str,
    spec: DatasetSpec,
    entries: dict[str, dict] | None,
    examiner: Examiner,
    num_workers: int,
) -> SplitResult:
    """Looks at every byte of a split.

    Args:
      dataset_dir: its folder.
      split: its name.
      spec: the data set.
      entries: the splits of dataset.json by name; None without that file.
      examiner: of records.
      num_workers: processes.
    """
    result = SplitResult(split)
    entry = None if entries is None else entries.get(split)
    if entries is not None and entry is None:
        result.add("split that dataset.json does not list", f"{split}: an unfinished conversion?")
    shards = _check_shards(dataset_dir, result, entry)
    tasks = _frames(dataset_dir, shards, result, entry)
    found: Iterator[Finding] = parallel_map(examiner, tasks, num_workers=num_workers)
    progress = tqdm.tqdm(
        found, total=len(tasks), unit="record", desc=split, disable=not sys.stderr.isatty()
    )
    findings = list(progress)
    _collect(result, tasks, findings)
    if not tasks:
        result.add("empty split", split)
    _check_index(dataset_dir, result, spec, tasks, findings, shards)
    return result
