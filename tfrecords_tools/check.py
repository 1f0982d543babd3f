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

import os
import time
from collections.abc import Sequence

from absl import flags

from tfrecords_tools import program
from tfrecords_tools.checks.leaks import find_leaks
from tfrecords_tools.checks.record import Examiner, one_line
from tfrecords_tools.checks.report import describe
from tfrecords_tools.checks.split import Problem, SplitResult, check_split
from tfseg import sharing, storage
from tfseg.data import class_names, specs
from tfseg.data.shards import images_instead, splits_present
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError, naming_file

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
            problems.append(Problem(split, "malformed dataset.json", one_line(error)))
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
    present = sorted({*splits_present(dataset_dir), *(entries or {})})
    if not present:
        raise images_instead(dataset_dir) or UserError(
            "The folder holds no records.", where=dataset_dir
        )
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
        results.append(check_split(dataset_dir, split, spec, entries, examiner, num_workers))
    leaks, remarks = find_leaks(results)
    problems += [p for r in results for p in r.problems] + leaks
    stray = [n for n in storage.names(dataset_dir) if n.startswith(sharing.TEMPORARY_PREFIX)]
    if stray:
        remarks.append(f"{len(stray)} temporary files of an unfinished run: {stray[0]}")
    return results, problems, remarks


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
        with naming_file(FLAGS.ids_file), open(FLAGS.ids_file, "w", encoding="utf-8") as file:
            file.write("\n".join(ids) + "\n")
        print(f"{len(ids)} ids of images with {', '.join(FLAGS.ids_with)}: {FLAGS.ids_file}")
    count, seconds = sum(r.count for r in results), time.monotonic() - started
    verdict = f"{len(problems)} problems" if problems else "no problems"
    print(f"{verdict} in {count} records, {seconds:.1f} s: {FLAGS.dataset_dir}", flush=True)
    return _PROBLEMS_EXIT_CODE if problems else 0


if __name__ == "__main__":
    define_flags()
    program.run(main)
