"""The image and mask files of ids, and what may be wrong where one has none."""

import collections
import difflib
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from tfrecords_tools import class_files
from tfseg.data.folders import walk
from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.errors import UserError

# Above this, looking for similar names takes too long.
_MAX_COMPARED = 20_000
# Kinds of files in a note.
_KINDS = 4


def composed(name: str) -> str:
    """Returns a name with accents as single characters (NFC); macOS writes some names without."""
    return unicodedata.normalize("NFC", name)


def stem_of(path: str) -> str:
    """Returns a path with '/' between folders, in composed characters, without extension."""
    path = posixpath.normpath(composed(path).replace("\\", "/")).lstrip("/")
    stem, extension = os.path.splitext(path)
    return stem if extension.lower() in IMAGE_EXTENSIONS else path


class FileFinder:
    """Finds the file of an id: folder/id plus one of the known extensions, in any case.

    Composed and decomposed accents (NFC, NFD) are the same.

    Args:
      folder: of the files.
      extensions: with the dot, in lower case.
      suffix: of the names, before the extension: `_mask` finds `a_mask.png` for id `a`.
      whole_names: the names begin with those of images, extensions and all: `a.jpg.png` is of `a`.
    """

    def __init__(
        self,
        folder: str,
        extensions: Iterable[str] = IMAGE_EXTENSIONS,
        suffix: str = "",
        *,
        whole_names: bool = False,
    ):
        self.folder, self.extensions, self.suffix = folder, frozenset(extensions), suffix
        self._whole_names = whole_names
        self._stems: dict[str, dict[str, list[str]]] = {}

    def _in(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            path = self._folder_on_disk(folder)
            for name in sorted(os.listdir(path)) if os.path.isdir(path) else ():
                stem, extension = self.split(name)
                if extension.lower() in self.extensions:
                    stems.setdefault(composed(stem), []).append(name)
            self._stems[folder] = stems
        return self._stems[folder]

    def split(self, name: str) -> tuple[str, str]:
        """Returns the last part of an id, and the extension of its file."""
        stem, extension = os.path.splitext(name)
        if self._whole_names and os.path.splitext(stem)[1].lower() in IMAGE_EXTENSIONS:
            stem = os.path.splitext(stem)[0]
        return stem, extension

    def _folder_on_disk(self, folder: str) -> str:
        names = [folder, *(unicodedata.normalize(form, folder) for form in ("NFC", "NFD"))]
        paths = [os.path.join(self.folder, name) for name in names]
        return next((path for path in paths if os.path.isdir(path)), paths[0])

    def find(self, i: str) -> str | None:
        """Returns the path of an id's file, None if there is none.

        Raises:
          UserError: several files fit.
        """
        return self._only_one(i, self.suffix)

    def _only_one(self, i: str, suffix: str) -> str | None:
        folder, names = os.path.dirname(i), self.names_of(i, suffix)
        if len(names) > 1:
            raise UserError(
                f"Several files fit id '{i}'" + (f" with '{suffix}'." if suffix else "."),
                where=os.path.join(self.folder, folder),
                received=", ".join(names),
                accepted="one image of that name in --images_dir, and one mask in --masks_dir",
                fix="where one of them is the mask, put the masks into a folder of their own; "
                "else keep one of them",
            )
        return os.path.join(self._folder_on_disk(folder), names[0]) if names else None

    def names_of(self, i: str, suffix: str = "") -> list[str]:
        """Returns the names of all files of an id."""
        folder, stem = os.path.split(i)
        return self._in(folder).get(composed(stem + suffix), [])

    def named(self, path: str) -> tuple[str, str] | None:
        """Finds the file that a text names; the suffix plays no part.

        Args:
          path: below the folder, with or without extension.

        Returns:
          The path without extension and the file, None if there is none.

        Raises:
          UserError: several files fit.
        """
        stem, extension = os.path.splitext(path)
        has_extension = extension.lower() in self.extensions
        # `a.jpg` is that file, also beside `a.jpg.png`.
        exact = [n for n in self.names_of(stem) if composed(n) == composed(os.path.basename(path))]
        if has_extension and exact:
            return stem, os.path.join(self._folder_on_disk(os.path.dirname(path)), exact[0])
        for i in (path, stem) if has_extension else (path,):
            found = self._only_one(i, "")
            if found is not None:
                return i, found
        return None

    def ids_in(self, folder: str) -> list[str]:
        """Returns the paths of a folder's files without extension, in composed characters."""
        return [composed(os.path.join(folder, stem)) for stem in self._in(folder)]

    def near(self, i: str, most: int = 3) -> list[str]:
        """Returns files of an id's folder whose names hold the id or look like it."""
        folder, stem = os.path.split(i)
        stems = {k: names[0] for k, names in self._in(folder).items() if k != composed(stem)}
        found = [k for k in stems if composed(stem) in k]
        if not found and len(stems) < _MAX_COMPARED:
            found = difflib.get_close_matches(composed(stem), stems, n=most, cutoff=0.7)
        return [stems[k] for k in found[:most]]


def _raise(error: OSError) -> None:
    """Raises the error of a folder that cannot be read; one that is not there holds nothing."""
    if not isinstance(error, FileNotFoundError):
        raise error


def ids_below(
    finder: FileFinder,
    *,
    without: str | None = None,
    what: str = "images",
    tell_others: bool = False,
) -> list[str]:
    """Returns the ids of all files below a finder's folder, sorted: paths without extension.

    Args:
      finder: of the files; hidden ones do not count, and its suffix plays no part.
      without: a folder that is left out, such as that of the masks.
      what: the files are, for the message.
      tell_others: print how many files have other extensions.

    Raises:
      UserError: there are none, or a name cannot stand in a list.
      OSError: a folder cannot be read.
    """
    found, others = set(), collections.Counter()
    for path, names in walk(finder.folder, without=without, onerror=_raise):
        below = os.path.relpath(path, finder.folder)
        for name in names:
            stem, extension = finder.split(name)
            if name.startswith("."):
                continue
            if extension.lower() not in finder.extensions:
                others[extension or name] += 1
                continue
            i = stem if below == "." else f"{below}/{stem}"
            if i != i.strip() or i.splitlines() != [i]:
                raise UserError(
                    "The name of a file cannot stand in a list of ids.",
                    where=path,
                    received=ascii(name),
                    accepted="a name without blanks at its ends and without line breaks",
                    fix="rename the file",
                )
            found.add(composed(i))
    if found and others and tell_others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(_KINDS))
        print(
            f"note: {sum(others.values())} files below {finder.folder} are no {what} by their "
            f"names and are left out: {kinds}",
            flush=True,
        )
    if not found:
        raise UserError(
            f"There are no {what} below the folder.",
            where=finder.folder,
            accepted="files that end in " + " ".join(sorted(finder.extensions)),
        )
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
    check_found(ids, paths, finder, split=split, what=what)
    return paths


def check_found(
    ids: Sequence[str], paths: Sequence[str | None], finder: Any, *, split: str, what: str
) -> None:
    """Insists that every id has a file.

    Args:
      paths: of the ids, None where there is none.
      ids, finder, split, what: see `find_all`.

    Raises:
      UserError: see `find_all`.
    """
    missing = [i for i, path in zip(ids, paths) if path is None]
    if missing:
        suffix = getattr(finder, "suffix", "")
        raise UserError(
            f"{len(missing)} of {len(ids)} ids of split '{split}' have no {what}.",
            where=finder.folder,
            received=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            accepted=f"<id>{suffix} plus one of " + " ".join(sorted(finder.extensions)),
            fix=_advice(missing, finder, f"{split}.txt", what),
        )


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
                "one; or give build_folder.py the paths of an image and of its mask, both below "
                "--images_dir and --masks_dir"
            )
    i = missing[0]
    if "\\" in i:
        return f"write '/' between folders in {listed_in}, not '\\'"
    stem, extension = os.path.splitext(i)
    if extension.lower() in finder.extensions:
        return f"ids stand in the lists without '{extension}'"
    folder, name = os.path.split(i)
    if folder and _is_there(finder, name):
        if what == "mask":
            return (
                f"the folder has '{name}': a mask lies in the same folder below --masks_dir as its "
                f"image below --images_dir. Give as --images_dir the folder '{folder}' in it; or "
                "move the masks into folders of the same names"
            )
        return f"the folder has '{name}': write ids as paths below it"
    if what == "image" and class_files.is_header(re.split(r"\s*[,;|\t]", i)[0]):
        return f"the first line of {listed_in} looks like a column's header: remove it"
    near = finder.near(i)
    if what == "mask":
        advice = (
            "add the masks, list the split in --unlabelled_splits if it is used without them, "
            "or give --allow_missing_masks"
        )
        if near:
            advice += (
                f". The folder has {', '.join(near)}: a mask has the name of its image, or this "
                "name and an ending that --mask_suffix says (such as --mask_suffix=_mask)"
            )
        return advice
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
                + "give each mask the name of its image, say what follows it with --mask_suffix, "
                "or list the split in --unlabelled_splits if it is used without masks",
            )
        return paths
    return find_all(ids, finder, split=split, what="mask")
