"""Reads every byte of a folder of records and reports whatever is wrong with it.

python tfrecords_tools/check.py --dataset_dir=records

Verifies the checksums of every record, sizes and SHA-256 of the shards and the counts in
dataset.json, the index, sizes, class ids, image-level labels; decodes every image and mask; looks
for ids and pictures that stand in a validation split and elsewhere. It never stops at the first
problem. It warns of classes that no mask shows, with the likely cause. Exit code: 0 if all is well,
1 if anything is wrong, 2 if there is nothing to check.

With --splits=train --ids_with=cow,motorbike --ids_file=FILE it also lists the images that show one
of these classes, as --drop_images of train_zls.py reads them.
"""

import collections
import dataclasses
import hashlib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags
from PIL import Image

from tfrecords_tools import class_files, program
from tfrecords_tools.masks import classes_in
from tfseg import sharing
from tfseg.data import class_names, framing, records, specs, tfexample, writing
from tfseg.data.parallel import parallel_map
from tfseg.data.records import Damage, Location, RecordError
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
_PROBLEMS_EXIT_CODE = 1


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("dataset_dir", None, "Folder of records.")
    flags.DEFINE_string(
        "dataset", "pascal_voc_seg", "The classes of records that carry no dataset.json."
    )
    flags.DEFINE_list("splits", None, "Check these splits only; by default all.")
    flags.DEFINE_integer("num_workers", os.cpu_count() or 1, "Processes.")
    flags.DEFINE_float("max_image_megapixels", 64.0, "Report images with more megapixels.")
    flags.DEFINE_list(
        "ids_with", None, "Names of classes; ids whose mask shows one of them go into --ids_file."
    )
    flags.DEFINE_string("ids_file", None, "List of ids to write, one in a line; for --ids_with.")
    flags.DEFINE_integer("max_listed", 20, "Lines shown for each kind of problem; all are counted.")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong: its kind, for counting, and where and what exactly."""

    split: str
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A record to be looked at."""

    path: str
    record: int
    offset: int
    length: int

    @property
    def location(self) -> Location:
        return Location(self.path, self.record, self.offset)


@dataclasses.dataclass
class Finding:
    """What was found in one record."""

    row: records.Row | None = None
    picture: bytes = b""
    pixels: np.ndarray | None = None
    is_pseudo: bool = False
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


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


# One record -------------------------------------------------------------------------------------


def _one_line(error: UserError) -> str:
    parts = [str(error.where or ""), error.what.rstrip(".")]
    if error.received is not None:
        parts.append(f"received {error.received}")
    if error.accepted is not None:
        parts.append(f"accepted {error.accepted}")
    return ": ".join(p for p in parts[:2] if p) + "".join(f"; {p}" for p in parts[2:])


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Looks at one record; sent to the worker processes."""

    spec: DatasetSpec
    max_megapixels: float

    def __call__(self, task: Task) -> Finding:
        finding = Finding()
        try:
            data = records.read_record(task.path, task.offset, task.length)
            example = tfexample.decode(data, task.location)
        except RecordError as error:
            finding.problems.append(("unusable record", _one_line(error)))
            return finding
        where = f"{task.location}, id {example.filename}"
        finding.picture = hashlib.blake2b(example.image, digest_size=16).digest()
        labels = self._image_labels(example, where, finding)
        finding.is_pseudo = example.is_pseudo
        if example.is_pseudo and example.label is None:
            finding.problems.append(("pseudo label without a mask", where))
        finding.row = records.Row(
            example.filename, example.height, example.width, labels, example.label is not None
        )
        image = self._decode(example.image, "image", task, where, finding)
        if image is not None and image.mode != "RGB":
            finding.notes.append(f"image of mode {image.mode} (decoders make it RGB)")
        if example.label is not None:
            mask = self._decode(example.label, "mask", task, where, finding)
            if mask is not None:
                self._check_mask(mask, example, labels, where, finding)
        return finding

    def _image_labels(
        self, example: tfexample.Example, where: str, finding: Finding
    ) -> tuple[int, ...] | None:
        if example.image_labels is None:
            return None
        spec = self.spec
        valid = range(spec.first_image_class, spec.num_classes)
        wrong = [int(i) for i in example.image_labels if int(i) not in valid]
        if wrong:
            finding.problems.append(
                (
                    "image-level label out of range",
                    f"{where}: {', '.join(map(str, wrong))}; accepted {valid[0]} to {valid[-1]}",
                )
            )
        return tuple(int(i) for i in example.image_labels if int(i) in valid)

    def _decode(
        self, data: bytes, what: str, task: Task, where: str, finding: Finding
    ) -> Image.Image | None:
        key = tfexample.IMAGE if what == "image" else tfexample.LABEL
        try:
            tfexample.check_pixels(
                data, max_megapixels=self.max_megapixels, location=task.location, key=key
            )
            image = tfexample.open_image(data)
            image.load()
            return image
        except RecordError as error:
            finding.problems.append((f"{what} too big", _one_line(error)))
        except Exception as error:  # Pillow's decoders raise many kinds
            finding.problems.append(
                (f"{what} cannot be decoded", f"{where}: {type(error).__name__}: {error}")
            )
        return None

    def _check_mask(
        self,
        mask: Image.Image,
        example: tfexample.Example,
        labels: tuple[int, ...] | None,
        where: str,
        finding: Finding,
    ) -> None:
        bits = example.label[24] if mask.format == "PNG" else 8
        if mask.mode != "L" or bits != 8:
            kind = {"P": "palette mask"}.get(mask.mode, "mask that is not one 8-bit channel")
            finding.problems.append(
                (
                    kind,
                    f"{where}: {mask.format} of mode {mask.mode}, {bits} bits; decoders turn it "
                    "into grey values, not class ids: store class ids in one 8-bit channel",
                )
            )
            return
        if mask.format != "PNG":
            finding.notes.append(f"mask stored as {mask.format}: compression may change ids")
        ids = np.asarray(mask)
        finding.pixels = writing.count_pixels(ids, self.spec)
        values = np.unique(ids)
        wrong = values[(values >= self.spec.num_classes) & (values != self.spec.ignore_label)]
        if len(wrong):
            hint = ""
            if set(values.tolist()) <= _grey_of_palette(self.spec):
                hint = "; they are grey values of palette colours: the mask was read as a picture"
            finding.problems.append(
                (
                    "mask ids out of range",
                    f"{where}: {', '.join(map(str, wrong[:20]))}; accepted 0 to "
                    f"{self.spec.num_classes - 1} and {self.spec.ignore_label}{hint}",
                )
            )
        if labels is not None:
            in_mask = set(classes_in(ids, self.spec))
            absent = sorted(in_mask - set(labels))
            if absent:
                names = ", ".join(self.spec.class_names[i] for i in absent)
                hint = " (pseudo label: predict with --use_image_labels)"
                finding.problems.append(
                    (
                        "class in the mask but not in the image-level labels",
                        f"{where}: {names}{hint if example.is_pseudo else ''}",
                    )
                )
            if set(labels) - in_mask:
                finding.notes.append("image-level label without a pixel in the mask (not wrong)")


def _grey_of_palette(spec: DatasetSpec) -> set[int]:
    """Returns the grey values that a picture of the mask in its colours would have."""
    colors = np.concatenate([spec.colors()[: spec.num_classes], [[224, 224, 192]]])
    return set(np.asarray(Image.fromarray(colors[None].astype(np.uint8)).convert("L"))[0].tolist())


# One split --------------------------------------------------------------------------------------


def _check_shards(dataset_dir: str, result: SplitResult, entry: dict | None) -> list[str]:
    """Compares the files of a split with dataset.json; returns the shards that can be read."""
    try:
        shards = records.shards_of(dataset_dir, result.split)
    except UserError as error:
        result.add("incomplete split", _one_line(error))
        shards = records.files_of(dataset_dir, result.split)
    promised = {} if entry is None else {shard["file"]: shard for shard in entry["shards"]}
    for name in sorted(set(promised) - set(shards)):
        result.add("missing shard", os.path.join(dataset_dir, name))
    readable = []
    for name in shards:
        path = os.path.join(dataset_dir, name)
        try:
            size = framing.shard_bytes(path)
        except RecordError as error:
            result.add("shard that cannot be read", _one_line(error))
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
        for number, item in enumerate(records.scan(path)):
            if isinstance(item, Damage):
                error = records.damage_error(item, path, number)
                result.add("damaged record", _one_line(error))
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
    path = records.index_path(dataset_dir, result.split)
    if not os.path.exists(path):
        result.notes["no index file (it is made on first use)"] += 1
        return
    try:
        index = records.read_index(path, spec)
    except UserError as error:
        result.add("unusable index", _one_line(error))
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


def _index_row(index: records.Index, i: int, spec: DatasetSpec) -> records.Row:
    hot = np.flatnonzero(index.image_labels[i]) + spec.first_image_class
    return records.Row(
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


# Between splits ---------------------------------------------------------------------------------


def _role(split: str) -> str:
    """Returns 'val', 'test', 'both' (trainval, which holds val by definition) or 'train'."""
    words = set(re.split(r"[\W_\d]+", split.lower()))
    if any(w.startswith("trainval") for w in words):
        return "both"
    if words & {"test", "testdev"}:
        return "test"
    if words & {"val", "valid", "validation", "dev", "eval", "minival"}:
        return "val"
    return "train"


def find_leaks(results: Sequence[SplitResult]) -> tuple[list[Problem], list[str]]:
    """Compares the ids and the pictures of every two splits.

    Returns:
      (problems: what a validation or test split shares with a split of another role; remarks on
      every other overlap, such as train within train_aug).
    """
    problems, remarks = [], []
    for a, b in itertools.combinations(results, 2):
        roles = {_role(a.split), _role(b.split)}
        leak = len(roles) > 1 and "both" not in roles
        shared = sorted(set(a.ids) & set(b.ids))
        pictures = sorted(set(a.pictures) & set(b.pictures), key=lambda p: a.pictures[p])
        renamed = [p for p in pictures if a.pictures[p] != b.pictures[p]]
        both = f"{a.split}, {b.split}"
        if shared and leak:
            problems.append(
                Problem(
                    both,
                    "ids in two splits (leakage)",
                    f"{both}: {len(shared)} ids: {', '.join(shared[:5])}",
                )
            )
        elif shared:
            small, big = sorted((a, b), key=lambda r: len(r.ids))
            how = "all" if len(shared) == len(small.ids) else f"{len(shared)}"
            remarks.append(f"{how} of the {len(small.ids)} ids of {small.split} are in {big.split}")
        if renamed and leak:
            listed = ", ".join(f"{a.pictures[p]} = {b.pictures[p]}" for p in renamed[:5])
            problems.append(
                Problem(
                    both,
                    "the same picture in two splits (leakage)",
                    f"{both}: {len(renamed)} pictures under different ids: {listed}",
                )
            )
    return problems, remarks


# The whole folder -------------------------------------------------------------------------------


def _entries(dataset_dir: str) -> tuple[dict[str, dict] | None, list[Problem]]:
    """Returns the splits of dataset.json, None without one, and what is malformed."""
    content = specs.read_dataset_json(dataset_dir)
    if content is None:
        return None, []
    entries, problems = {}, []
    where = os.path.join(dataset_dir, specs.DATASET_FILE)
    for split in content.get("splits", {}):
        try:
            entries[split] = specs.split_entry(content, split, where=where)
        except UserError as error:
            problems.append(Problem(split, "malformed dataset.json", _one_line(error)))
    return entries, problems


def check(
    dataset_dir: str,
    *,
    dataset: str = "pascal_voc_seg",
    splits: Sequence[str] | None = None,
    num_workers: int = 1,
    max_megapixels: float = 64.0,
) -> tuple[list[SplitResult], list[Problem], list[str]]:
    """Checks a folder of records.

    Args:
      dataset_dir: the folder.
      dataset: describes records without a dataset.json.
      splits: names, or None for all.
      num_workers: processes.
      max_megapixels: report bigger images.

    Returns:
      (a result per split, every problem, remarks).

    Raises:
      UserError: no such folder or split, no classes known, or no splits at all.
    """
    spec = specs.load_spec(dataset_dir, dataset)
    entries, problems = _entries(dataset_dir)
    present = sorted({*records.splits_present(dataset_dir), *(entries or {})})
    if not present:
        raise UserError("The folder holds no records.", where=dataset_dir)
    wrong = [s for s in splits or [] if s not in present]
    if wrong:
        raise UserError(
            "There is no such split.",
            where=dataset_dir,
            received=", ".join(wrong),
            accepted=", ".join(present),
        )
    results = []
    examiner = Examiner(spec, max_megapixels)
    for split in splits or present:
        results.append(_check_split(dataset_dir, split, spec, entries, examiner, num_workers))
    leaks, remarks = find_leaks(results)
    problems += [p for r in results for p in r.problems] + leaks
    stray = [n for n in os.listdir(dataset_dir) if n.startswith(sharing.TEMPORARY_PREFIX)]
    if stray:
        remarks.append(f"{len(stray)} temporary files of an unfinished run: {stray[0]}")
    return results, problems, remarks


def _check_split(
    dataset_dir: str,
    split: str,
    spec: DatasetSpec,
    entries: dict[str, dict] | None,
    examiner: Examiner,
    num_workers: int,
) -> SplitResult:
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


def ids_with(results: Sequence[SplitResult], names: Sequence[str], spec: DatasetSpec) -> list[str]:
    """Returns the ids of images whose mask shows one of some classes, sorted.

    Args:
      results: of `check`.
      names: of the classes.
      spec: the data set.

    Raises:
      UserError: there is no such class, or no such image.
    """
    where = f"--ids_with={','.join(names)}"
    classes = class_names.find(spec.class_names, names, what=f"data set {spec.name}", where=where)
    ids = sorted({i for r in results for c in classes for i in r.masks_with.get(c, ())})
    if not ids:
        raise UserError("No mask shows one of these classes.", where=where)
    return ids


def class_warnings(results: Sequence[SplitResult], spec: DatasetSpec) -> list[str]:
    """Says which classes may mean something else than their name; see `class_files.warnings`."""
    with_masks = [r for r in results if r.pixels is not None]
    labelled = sum((r.labelled for r in results), collections.Counter())
    return class_files.warnings(
        spec,
        {r.split: r.pixels for r in with_masks},
        np.array([labelled[k] for k in range(spec.num_classes)]),
        are_pseudo=any(r.num_pseudo_labels for r in with_masks),
    )


def describe(
    results: Sequence[SplitResult],
    problems: Sequence[Problem],
    remarks: Sequence[str],
    spec: DatasetSpec,
    *,
    max_listed: int,
) -> str:
    """Returns the report."""
    lines = [
        f"{'split':<24} {'records':>8} {'masks':>8} {'pseudo':>8} {'labels':>8} {'MB':>8} "
        f"{'problems':>9}"
    ]
    for r in results:
        lines.append(
            f"{r.split:<24} {r.count:>8} {r.num_masks:>8} {r.num_pseudo_labels:>8} "
            f"{r.num_image_labels:>8} "
            f"{r.num_bytes / 1e6:>8.1f} {len(r.problems):>9}"
        )
    lines += ["", "share of the masks' pixels:"]
    names = (*spec.class_names, "(ignored)")
    width = max(map(len, names))
    lines.append(" " * (width + 2) + "".join(f"{r.split[:16]:>17}" for r in results))
    for k, name in enumerate(names):
        shares = [
            "-" if r.pixels is None or not r.pixels.sum() else f"{r.pixels[k] / r.pixels.sum():.2%}"
            for r in results
        ]
        lines.append(f"  {name:<{width}}" + "".join(f"{s:>17}" for s in shares))
    lines.append("")
    for r in results:
        lines += [f"note: {r.split}: {n} x {note}" for note, n in sorted(r.notes.items())]
    lines += [f"note: {remark}" for remark in remarks]
    lines += [f"warning: {warning}" for warning in class_warnings(results, spec)]
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, members in sorted(by_kind.items()):
        lines.append(f"PROBLEM: {kind}: {len(members)}")
        lines += [f"  {p.text}" for p in members[:max_listed]]
        if len(members) > max_listed:
            lines.append(f"  ... and {len(members) - max_listed} more (--max_listed)")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    started = time.monotonic()
    program.require("dataset_dir")
    if bool(FLAGS.ids_with) != bool(FLAGS.ids_file):
        raise UserError(
            "One of these flags needs the other.",
            where="--ids_with, --ids_file",
            accepted="for example --ids_with=cow,motorbike --ids_file=drop.txt",
        )
    results, problems, remarks = check(
        FLAGS.dataset_dir,
        dataset=FLAGS.dataset,
        splits=FLAGS.splits,
        num_workers=FLAGS.num_workers,
        max_megapixels=FLAGS.max_image_megapixels,
    )
    spec = specs.load_spec(FLAGS.dataset_dir, FLAGS.dataset)
    print(describe(results, problems, remarks, spec, max_listed=FLAGS.max_listed))
    if FLAGS.ids_with:
        ids = ids_with(results, FLAGS.ids_with, spec)
        with open(FLAGS.ids_file, "w", encoding="utf-8") as file:
            file.write("\n".join(ids) + "\n")
        print(f"{len(ids)} ids of images with {', '.join(FLAGS.ids_with)}: {FLAGS.ids_file}")
    count, seconds = sum(r.count for r in results), time.monotonic() - started
    verdict = f"{len(problems)} problems" if problems else "no problems"
    print(f"{verdict} in {count} records, {seconds:.1f} s: {FLAGS.dataset_dir}", flush=True)
    return _PROBLEMS_EXIT_CODE if problems else 0


if __name__ == "__main__":
    define_flags()
    program.run(main)
