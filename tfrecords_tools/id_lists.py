"""Lists of ids: `<split>.txt` of a folder, one id a line."""

import collections
import itertools
import ntpath
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfrecords_tools.checks.leaks import leaks
from tfrecords_tools.file_finder import stem_of
from tfrecords_tools.list_lines import names_masks
from tfrecords_tools.program import check_folder
from tfrecords_tools.text_files import read_text
from tfseg.errors import UserError

# Names in a note.
_NAMED = 5


def read_ids(path: str) -> list[str]:
    """Reads a list of ids, one a line; blank lines do not count.

    A line may also name an image and its mask; see `list_lines`.

    Raises:
      UserError: a line stands there twice, or points out of the folder.
    """
    ids = [line.strip() for line in read_text(path).splitlines()]
    ids = [i for i in ids if i]
    twice = [i for i, n in collections.Counter(ids).items() if n > 1]
    if twice:
        raise UserError(
            "A list holds an id more than once.",
            where=path,
            received=f"{len(twice)} such ids: {', '.join(twice[:5])}",
            fix="remove the repetitions",
        )
    for i in ids:
        # Published lists of images and masks begin with '/' and mean the data set's folder.
        is_rooted = os.path.isabs(i) and not names_masks([i])
        if is_rooted or ntpath.splitdrive(i)[0] or ".." in re.split(r"[/\\\s,;|]", i):
            raise UserError("An id must be a name below the image folder.", where=path, received=i)
    return ids


def read_splits(splits_dir: str, wanted: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Reads `<split>.txt` of a folder.

    Args:
      splits_dir: folder of lists.
      wanted: names of the splits, in the order in which to convert; None: all, sorted.

    Raises:
      UserError: no lists, a wanted one is missing (names those present), or a bad or empty list.
    """
    check_folder(splits_dir, "splits_dir")
    there = sorted(n for n in os.listdir(splits_dir) if not n.startswith("."))
    names = [n for n in there if n.endswith(".txt")]
    present = sorted(n[: -len(".txt")] for n in names)
    if not present:
        raise UserError(
            "The folder holds no <split>.txt.",
            where=splits_dir,
            received=", ".join(there[:_NAMED]) or "an empty folder",
            accepted="train.txt, val.txt and so on, with one id a line",
            fix="rename the lists; or leave out --splits_dir where splits shall be drawn",
        )
    if others := [n for n in there if n not in names]:
        print(
            f"note: left out in {splits_dir}, because a list is <split>.txt: "
            + ", ".join(others[:_NAMED])
            + (" ..." if len(others) > _NAMED else ""),
            flush=True,
        )
    missing = [name for name in wanted or [] if name not in present]
    if missing:
        raise UserError(
            "There is no such list.",
            where=splits_dir,
            received=", ".join(missing),
            accepted=", ".join(present),
        )
    splits = {}
    for name in dict.fromkeys(wanted or present):
        splits[name] = read_ids(os.path.join(splits_dir, f"{name}.txt"))
        if not splits[name]:
            raise UserError(
                f"The list of split '{name}' is empty.",
                where=os.path.join(splits_dir, f"{name}.txt"),
            )
    for a, b in itertools.combinations(splits, 2):
        shared = sorted({stem_of(i) for i in splits[a]} & {stem_of(i) for i in splits[b]})
        if shared and leaks(a, b):
            print(
                f"warning: {a} and {b} share {len(shared)} images ({', '.join(shared[:3])}): "
                "scores on them will be too good. Take them out of one of the lists",
                flush=True,
            )
    return splits


def check_unlabelled(unlabelled: Sequence[str], splits: Mapping[str, Any]) -> None:
    """Insists that --unlabelled_splits names splits that are converted.

    Raises:
      UserError: it does not.
    """
    wrong = [name for name in unlabelled if name not in splits]
    if wrong:
        raise UserError(
            "--unlabelled_splits names splits that are not converted.",
            where="--unlabelled_splits",
            received=", ".join(wrong),
            accepted=", ".join(splits),
        )
