"""The image and mask files of ids, and what may be wrong where one has none."""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from tfrecords_tools import class_files
from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.errors import UserError

# Above this, looking for similar names takes too long.
_MAX_COMPARED = 20_000


def composed(name: str) -> str:
    """Returns a name with accents as single characters (NFC); macOS writes some names without."""
    return unicodedata.normalize("NFC", name)


class FileFinder:
    """Finds the file of an id: folder/id plus one of the known extensions, in any case.

    Composed and decomposed accents (NFC, NFD) are the same.
    """

    def __init__(self, folder: str, extensions: Iterable[str] = IMAGE_EXTENSIONS):
        self.folder, self.extensions = folder, frozenset(extensions)
        self._stems: dict[str, dict[str, list[str]]] = {}

    def _in(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            path = self._folder_on_disk(folder)
            for name in sorted(os.listdir(path)) if os.path.isdir(path) else ():
                stem, extension = os.path.splitext(name)
                if extension.lower() in self.extensions:
                    stems.setdefault(composed(stem), []).append(name)
            self._stems[folder] = stems
        return self._stems[folder]

    def _folder_on_disk(self, folder: str) -> str:
        names = [folder, *(unicodedata.normalize(form, folder) for form in ("NFC", "NFD"))]
        paths = [os.path.join(self.folder, name) for name in names]
        return next((path for path in paths if os.path.isdir(path)), paths[0])

    def find(self, i: str) -> str | None:
        """Returns the path of an id's file, None if there is none.

        Raises:
          UserError: several files fit.
        """
        folder, stem = os.path.split(i)
        names = self._in(folder).get(composed(stem), [])
        if len(names) > 1:
            raise UserError(
                f"Several files fit id '{i}'.",
                where=os.path.join(self.folder, folder),
                received=", ".join(names),
                accepted="one image of that name in --images_dir, and one mask in --masks_dir",
                fix="where one of them is the mask, put the masks into a folder of their own; "
                "else keep one of them",
            )
        return os.path.join(self._folder_on_disk(folder), names[0]) if names else None

    def near(self, i: str, most: int = 3) -> list[str]:
        """Returns files of an id's folder whose names hold the id or look like it."""
        folder, stem = os.path.split(i)
        stems = {k: names[0] for k, names in self._in(folder).items() if k != composed(stem)}
        found = [k for k in stems if composed(stem) in k]
        if not found and len(stems) < _MAX_COMPARED:
            found = difflib.get_close_matches(composed(stem), stems, n=most, cutoff=0.7)
        return [stems[k] for k in found[:most]]


def ids_below(folder: str, *, without: str | None = None) -> list[str]:
    """Returns the ids of all images below a folder, sorted: paths below it, without extension.

    Args:
      folder: of images; hidden files and folders do not count.
      without: a folder that is left out, such as that of the masks.

    Raises:
      UserError: there are none, or two files have one id.
    """
    found = []
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not (without and os.path.realpath(os.path.join(path, name)) == without)
        )
        below = os.path.relpath(path, folder)
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in IMAGE_EXTENSIONS and not name.startswith("."):
                found.append(composed(stem if below == "." else f"{below}/{stem}"))
    if not found:
        raise UserError(
            "There are no images below the folder.",
            where=folder,
            accepted="files that end in " + " ".join(sorted(IMAGE_EXTENSIONS)),
        )
    finder = FileFinder(folder)
    for i in found:
        finder.find(i)  # Says which files have one id.
    return sorted(found)


def find_all(ids: Sequence[str], finder: Any, *, split: str, what: str) -> list[str]:
    """Returns the file of every id.

    Args:
      ids: of a list.
      finder: a `FileFinder`, or something like it.
      split: name of the list.
      what: 'image' or 'mask'.

    Raises:
      UserError: some have none; names how many and the first ones, and the likely cause.
    """
    paths = [finder.find(i) for i in ids]
    missing = [i for i, path in zip(ids, paths) if path is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(ids)} ids of split '{split}' have no {what}.",
            where=finder.folder,
            received=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            accepted="<id> plus one of " + " ".join(sorted(finder.extensions)),
            fix=_advice(missing, finder, f"{split}.txt", what),
        )
    return paths


def _is_there(finder: Any, name: str) -> bool:
    """Says whether a file fits an id, or a file name."""
    try:
        return any(finder.find(i) for i in (name, os.path.splitext(name)[0]))
    except UserError:  # several
        return True


def _advice(missing: Sequence[str], finder: Any, listed_in: str, what: str) -> str:
    """Returns the next step for ids without a file."""
    # The first may be a header.
    for i in missing[:2]:
        columns = [c for c in re.split(r"\s*[\s,;|]\s*", i) if c]
        are_files = [os.path.splitext(c)[1].lower() in IMAGE_EXTENSIONS for c in columns]
        if len(columns) > 1 and (sum(are_files) > 1 or _is_there(finder, columns[0])):
            return (
                f"a line of {listed_in} holds one id, not {len(columns)} columns: leave the first "
                "one, as a path below the folder of images without extension; the mask of an id "
                "is the file of the same name in --masks_dir"
            )
    i = missing[0]
    if "\\" in i:
        return f"write '/' between folders in {listed_in}, not '\\'"
    stem, extension = os.path.splitext(i)
    if extension.lower() in finder.extensions:
        return f"ids stand in the lists without '{extension}'"
    if os.path.basename(i) != i and _is_there(finder, os.path.basename(i)):
        return f"the folder has '{os.path.basename(i)}': write ids as paths below it"
    if what == "image" and class_files.is_header(i):
        return f"the first line of {listed_in} looks like a column's header: remove it"
    near = finder.near(i)
    if what == "mask":
        by_name = ""
        if near:
            by_name = (
                f"the folder has {', '.join(near)}: give each mask the name of its image (take the "
                "ending, such as '_mask', out of the names); or "
            )
        return by_name + (
            "add the masks, list the split in --unlabelled_splits if it is used without them, "
            "or give --allow_missing_masks"
        )
    if near:
        return f"check the list and the folder, which has {', '.join(near)}"
    return "check the list and the folder"


def mask_paths(
    split: str,
    ids: Sequence[str],
    finder: FileFinder | None,
    *,
    unlabelled: bool,
    allow_missing: bool,
) -> list[str | None]:
    """Returns the mask file of every id of a split, None where it is written without.

    Raises:
      UserError: masks are missing and the split may not do without.
    """
    if unlabelled or finder is None:
        return [None] * len(ids)
    if allow_missing:
        paths = [finder.find(i) for i in ids]
        if not any(paths):
            near = finder.near(ids[0])
            raise UserError(
                f"Not one of the {len(ids)} ids of split '{split}' has a mask.",
                where=finder.folder,
                received=", ".join(ids[:5]) + (" ..." if len(ids) > 5 else ""),
                accepted="<id> plus one of " + " ".join(sorted(finder.extensions)),
                fix=(f"the folder has {', '.join(near)}: " if near else "")
                + "give each mask the name of its image, or list the split in --unlabelled_splits "
                "if it is used without masks",
            )
        return paths
    return find_all(ids, finder, split=split, what="mask")
