"""The shards of a split: files `<split>-00000-of-00004.tfrecord` and so on of one folder."""

import itertools
import os
import re

from tfseg import storage
from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.data.specs import UNLABELLED_SPLIT
from tfseg.errors import UserError

# What to do where records have only images with masks.
_WITHOUT_UNLABELLED = (
    "convert again with images that have no mask, or with --labelled=N, which keeps N masks for "
    "training; or train on the masks alone with train_sup.py; or name another split with "
    "--train_split_cls"
)
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<total>\d+)(\.\w+)?")
# Folders below each other in which images are looked for.
_SEARCHED_DEPTH = 2
# Shards of other people's converters.
_LOOSE_SHARD = re.compile(r"(?P<split>.+)-\d+\.(tfrecords?|records?)")


def shard_name(split: str, number: int, total: int) -> str:
    """Returns the file name of a shard."""
    return f"{split}-{number:05d}-of-{total:05d}.tfrecord"


def _files_by_split(dataset_dir: str) -> dict[str, list[str]]:
    try:
        names = sorted(storage.names(dataset_dir))
    except FileNotFoundError:
        raise UserError(
            "The folder of records does not exist.",
            where=dataset_dir,
            fix="make it with one of tfrecords_tools/build_*.py (tfseg convert)",
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


def images_instead(dataset_dir: str) -> UserError | None:
    """Returns what to say of a folder of images where one of records was meant.

    Args:
      dataset_dir: folder without a shard.

    Returns:
      None where it has no images either.
    """
    image, has_json = None, False
    if storage.is_remote(dataset_dir):
        tree = [(dataset_dir, [], storage.names(dataset_dir))]
    else:
        tree = os.walk(dataset_dir)
    for path, folders, names in tree:
        # A large tree of something else is not searched.
        if os.path.relpath(path, dataset_dir).count(os.sep) >= _SEARCHED_DEPTH:
            folders.clear()
        image = image or next((name for name in sorted(names) if _is_image(name)), None)
        has_json = has_json or any(name.endswith(".json") for name in names)
    if image is None:
        return None
    converter = "tfrecords_tools/build_folder.py --masks_dir=MASKS --class_names=classes.txt"
    if has_json:
        converter += " (or build_labelme.py, build_coco.py for annotations in JSON)"
    return UserError(
        "The folder holds images, not records of them.",
        where=dataset_dir,
        received=image,
        accepted="shards such as train-00000-of-00004.tfrecord",
        fix=f"make records with python {converter} --images_dir={dataset_dir} "
        "--output_dir=records, and give that folder; predict.py --images takes images as they are",
    )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def files_of(dataset_dir: str, split: str) -> list[str]:
    """Returns the names of all files that are shards of a split, complete or not."""
    return _files_by_split(dataset_dir).get(split, [])


def shards_of(dataset_dir: str, split: str) -> list[str]:
    """Returns the shard file names of a split in order.

    Raises:
      UserError: no such split (names those present), or its set of shards is not complete.
    """
    files = _files_by_split(dataset_dir)
    if not files and (error := images_instead(dataset_dir)):
        raise error
    if not files:
        raise UserError(
            f"There is no split '{split}': the folder holds no records.",
            where=dataset_dir,
            received="no shard such as train-00000-of-00004.tfrecord",
            accepted="a folder that one of tfrecords_tools/build_*.py (tfseg convert) has written",
            fix="check the path. If a converter was stopped before its end, give its command again",
        )
    if split not in files:
        raise UserError(
            f"There is no split '{split}'.",
            where=dataset_dir,
            received=split,
            accepted=", ".join(sorted(files)),
            fix=_WITHOUT_UNLABELLED
            if split == UNLABELLED_SPLIT
            else "choose one of these with the flag of the split (--train_split, "
            "--train_split_cls, --eval_split, --vis_split and so on), or make the split with "
            "tfrecords_tools",
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
