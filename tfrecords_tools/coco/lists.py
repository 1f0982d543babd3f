"""Splits of instances files for which no lists are given."""

import os
from collections.abc import Mapping, Sequence

from tfrecords_tools import split_flags
from tfrecords_tools.coco.instances import ImageAnnotations, Instances
from tfrecords_tools.coco.painting import has_outline
from tfrecords_tools.coco.pairing import Matcher
from tfrecords_tools.file_finder import FileFinder, ids_below
from tfseg.data.specs import UNLABELLED_SPLIT
from tfseg.errors import UserError

# What tools call the splits that the programs of this project take by default.
_NAMES = {"train": "train", "training": "train"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
_NAMED = 3


def without_lists(
    images_dir: str, instances: Instances, files: Sequence[str], *, draw: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """Divides all images below a folder: each instances file is a split, or they are drawn.

    Args:
      images_dir: folder of images; those in no file are unlabelled.
      instances: content of the files.
      files: the instances files.
      draw: although there are several files.

    Returns:
      The ids of each split, and the splits in which no image has annotations.

    Raises:
      UserError: no image is in the files, or see `split_flags.draw`.
    """
    finder, matcher = FileFinder(images_dir), Matcher(instances.images)
    entries = {
        i: matcher.find(os.path.relpath(finder.find(i), images_dir)) for i in ids_below(finder)
    }
    known = {i: entry for i, entry in entries.items() if entry is not None}
    unknown = [i for i in entries if i not in known]
    if not known:
        raise UserError(
            "No image below --images_dir is in the instances files.",
            where=images_dir,
            received=", ".join(unknown[:_NAMED]),
            accepted="images of these files, such as " + ", ".join(matcher.near(unknown[0])),
            fix="let --images_dir be the folder of the annotated images",
        )
    there = {(entry.file, entry.name) for entry in known.values()}
    absent = [e.name for e in instances.images.values() if (e.file, e.name) not in there]
    if absent:
        print(
            f"warning: {len(absent)} images of the instances files are not below {images_dir}: "
            + ", ".join(absent[:_NAMED]),
            flush=True,
        )
    if draw or len(files) == 1:
        return split_flags.draw({i: _classes(entry) for i, entry in known.items()}, unknown)
    return _by_file(files, known, unknown)


def _classes(entry: ImageAnnotations) -> tuple[int, ...]:
    """Returns the classes with an outline, background left out."""
    return tuple(sorted({r.class_id for r in entry.regions if has_outline(r.segmentation)} - {0}))


def _by_file(
    files: Sequence[str], known: Mapping[str, ImageAnnotations], unknown: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Returns a split for each file that lists images, and one for images that are in none."""
    splits: dict[str, list[str]] = {}
    for name, file in split_names(files).items():
        splits[name] = [i for i, entry in known.items() if entry.file == file]
        print(f"split {name}: {len(splits[name])} images of {file}", flush=True)
    if unknown:
        splits.setdefault(UNLABELLED_SPLIT, []).extend(unknown)
        print(f"split {UNLABELLED_SPLIT}: {len(unknown)} images of no file", flush=True)
    splits = {name: ids for name, ids in splits.items() if ids}
    return splits, [name for name, ids in splits.items() if not set(ids) & set(known)]


def split_names(files: Sequence[str]) -> dict[str, str]:
    """Returns instances files by the name of their split: of their folder, or in their own name.

    Roboflow writes `train/_annotations.coco.json`, CVAT and COCO `instances_train.json`.

    Raises:
      UserError: two have one name.
    """
    names = [os.path.splitext(os.path.basename(file))[0] for file in files]
    if len(set(names)) < len(names):
        names = [os.path.basename(os.path.dirname(os.path.abspath(file))) for file in files]
    plain = [name.removeprefix("instances_") for name in names]
    named = {_NAMES.get(name.lower(), name): file for name, file in zip(plain, files)}
    if len(named) < len(files):
        raise UserError(
            "Several instances files are a split each, and two of them have one name.",
            where="--annotations",
            received=", ".join(files),
            accepted="files such as train/_annotations.coco.json and valid/_annotations.coco.json, "
            "or instances_train.json and instances_val.json",
            fix="rename them; or give lists with --splits_dir; or draw the splits of all images "
            "with --val_fraction=0.2",
        )
    return named
