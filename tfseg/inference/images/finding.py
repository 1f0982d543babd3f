"""Which image files are meant, what each is called, and which share of them is taken.

An image's key is its path as the user sees it: below the folder that was given, below the fixed
part of a pattern, or as it stands in a list. Names of files that are written, shares of the work
and the manifest go by keys, so that they are the same on every machine.
"""

import collections
import dataclasses
import glob
import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from tfseg.data.folders import walk
from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.data.prediction_files import safe_path
from tfseg.errors import UserError
from tfseg.files import SAVE_AS_UTF8, did_you_mean, is_utf16

LIST_EXTENSIONS = (".txt", ".lst")
_ACCEPTED = "files ending in " + " ".join(IMAGE_EXTENSIONS)
# File systems allow 255 bytes; the rest is for the extension and the temporary name.
_MAX_NAME_BYTES = 180
_HASH_DIGITS = 8
_MAX_NAMED = 5


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A file to predict: its key, and the path under which it can be opened."""

    key: str
    path: str


@dataclasses.dataclass(frozen=True)
class Found:
    """The files to predict, by rising key, and notes on files that are left out."""

    images: tuple[ImageFile, ...]
    notes: tuple[str, ...] = ()


def find_images(images: str, output_dir: str) -> Found:
    """Finds the files that --images means.

    Args:
      images: an image file, a folder, a pattern, or a text file of paths.
      output_dir: where predictions are written; no file in it is found by a folder or pattern.

    Raises:
      UserError: there is none, or one is not there, cannot be opened or has an unknown format.
    """
    extension = os.path.splitext(images)[1].lower()
    if os.path.isdir(images):
        found = _in_folder(images, output_dir)
    elif os.path.isfile(images) and extension in LIST_EXTENSIONS:
        found = _in_list(images)
    elif os.path.isfile(images):
        found = Found((ImageFile(os.path.basename(images), images),))
    elif glob.has_magic(images):
        found = _by_pattern(images, output_dir)
    else:
        raise UserError(
            "There is no such file or folder.",
            where="--images",
            received=images,
            accepted="an image file, a folder, a pattern such as 'photos/*.jpg', or a text file "
            "with one path a line",
            fix=did_you_mean(images, "check the path; it counts from the folder that you are in"),
        )
    _check_files(found.images, images)
    return found


def _in_folder(folder: str, output_dir: str) -> Found:
    images, others = [], collections.Counter()
    for parent, names in walk(folder, without=output_dir, onerror=_raise):
        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if name.startswith(".") or extension not in IMAGE_EXTENSIONS:
                others[extension or name] += 1
                continue
            path = os.path.join(parent, name)
            images.append(ImageFile(os.path.relpath(path, folder).replace(os.sep, "/"), path))
    if not images:
        raise UserError(
            "The folder holds no images.",
            where="--images",
            received=folder + (f", with {sum(others.values())} other files" if others else ""),
            accepted=_ACCEPTED,
            fix="give the folder in which the photographs are",
        )
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(_MAX_NAMED))
    note = "files that are no images by their names are left out: "
    note += f"{kinds} ({sum(others.values())} in all)"
    return Found(_sorted(images), (note,) if others else ())


def _raise(error: OSError) -> None:
    raise error


def _in_list(path: str) -> Found:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.strip() for line in file]
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(
            "The list is empty.", where="--images", received=path, accepted="one path a line"
        )
    if is_utf16(lines[0].encode(errors="surrogateescape")):
        raise UserError(
            "The list is not UTF-8.",
            where="--images",
            received=f"{path}, in UTF-16",
            accepted="text in UTF-8, one path a line",
            fix=SAVE_AS_UTF8,
        )
    folder = os.path.dirname(path)
    keys = dict.fromkeys(os.path.normpath(line).replace(os.sep, "/") for line in lines)
    images = _sorted([ImageFile(key, os.path.join(folder, key)) for key in keys])
    repeated = len(lines) - len(keys)
    note = f"{repeated} lines of {path} repeat an image, which is predicted once"
    return Found(images, (note,) if repeated else ())


def _by_pattern(pattern: str, output_dir: str) -> Found:
    folder, name = os.path.split(pattern)
    if os.path.isdir(folder):
        # Brackets in the name of a folder that is there are no pattern.
        pattern = os.path.join(glob.escape(folder), name)
    else:
        # What stands before the first folder with a wildcard.
        folder = os.path.dirname(re.split(r"[*?\[]", pattern)[0])
    paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    written = os.path.join(os.path.realpath(output_dir), "")
    if not os.path.join(os.path.realpath(folder), "").startswith(written):
        paths = [path for path in paths if not os.path.realpath(path).startswith(written)]
    if not paths:
        raise UserError(
            "No file fits the pattern.",
            where="--images",
            received=pattern,
            fix="put the pattern in quotes, so that the shell leaves it alone",
        )
    return Found(
        _sorted(
            [
                ImageFile(os.path.relpath(path, folder or ".").replace(os.sep, "/"), path)
                for path in paths
            ]
        )
    )


def _sorted(images: Sequence[ImageFile]) -> tuple[ImageFile, ...]:
    return tuple(sorted(images, key=lambda image: image.key))


def _check_files(images: Sequence[ImageFile], given: str) -> None:
    """Insists on files that can be opened and whose format is known."""

    def insist(wrong: list[str], what: str, accepted: str | None = None) -> None:
        if wrong:
            shown = ", ".join(map(ascii, wrong[:_MAX_NAMED]))
            raise UserError(
                f"{len(wrong)} of {len(images)} images {what}.",
                where=f"--images={given}",
                received=shown + (", ..." if len(wrong) > _MAX_NAMED else ""),
                accepted=accepted,
                fix="leave them out, or correct their names; a list has one path a line",
            )

    paths = [image.path for image in images]
    extensions = {path: os.path.splitext(path)[1].lower() for path in paths}
    insist(
        [path for path in paths if extensions[path] not in IMAGE_EXTENSIONS],
        "have an unknown format",
        _ACCEPTED + "; a list ends in " + " or ".join(LIST_EXTENSIONS),
    )
    insist([path for path in paths if not os.path.isfile(path)], "are not there")
    insist([path for path in paths if not os.access(path, os.R_OK)], "cannot be opened")


# Shares -----------------------------------------------------------------------------------------


def part_of(text: str) -> tuple[int, int]:
    """Reads --part.

    Args:
      text: 'k/n'.

    Returns:
      (k, n), with 1 <= k <= n.

    Raises:
      UserError: something else.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    part = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise UserError(
            "--part must be one of several shares.",
            where="--part",
            received=text,
            accepted="k/n with k from 1 to n, for example 3/16",
        )
    return part


def share(images: Sequence[ImageFile], part: tuple[int, int] | None) -> tuple[ImageFile, ...]:
    """Returns the images of a share, (k, n); None: all."""
    if part is None:
        return tuple(images)
    number, count = part
    return tuple(image for image in images if int(_digest(image.key), 16) % count == number - 1)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


# Names ------------------------------------------------------------------------------------------


def output_names(keys: Collection[str], known: Mapping[str, str]) -> dict[str, str]:
    """Returns the name, without the extension of its kind, under which each image is written.

    It is the key without extension. If several images would have this name, it is the whole key. If
    such keys differ only in capitals, a part of the key's hash is added.

    Args:
      keys: of all images, whatever share of them is taken.
      known: names that images have already; they keep them.

    Returns:
      Names by key: paths that stay below their folder, and differ even where capitals do not count.
    """
    levels = dict.fromkeys((key for key in keys if key not in known), 0)
    while True:
        names = {key: _name(key, level) for key, level in levels.items()}
        names |= {key: known[key] for key in keys if key in known}
        counts = collections.Counter(map(_folded, [*names.values(), *_absent(known, keys)]))
        parents = {_folded(parent) for name in names.values() for parent in _parents(name)}
        clashing = [
            key
            for key, level in levels.items()
            if level < 2 and (counts[_folded(names[key])] > 1 or _is_folder(names[key], parents))
        ]
        if not clashing:
            return names
        for key in clashing:
            levels[key] += 1


def _absent(known: Mapping[str, str], keys: Collection[str]) -> list[str]:
    """Returns the names of images that were predicted and are not among the present ones."""
    present = set(keys)
    return [name for key, name in known.items() if key not in present]


def _name(key: str, level: int) -> str:
    path = safe_path(key)
    folder, base = os.path.split(path)
    if level == 0:
        base = os.path.splitext(base)[0]
    if level == 2 or len(base.encode()) > _MAX_NAME_BYTES:
        cut = base.encode()[: _MAX_NAME_BYTES - _HASH_DIGITS - 1].decode(errors="ignore")
        base = f"{cut}-{_digest(key)[:_HASH_DIGITS]}"
    return f"{folder}/{base}" if folder else base


def _folded(name: str) -> str:
    """Returns a form that is equal for names which some file systems take for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _parents(name: str) -> list[str]:
    folders = name.split("/")[:-1]
    return ["/".join(folders[: i + 1]) for i in range(len(folders))]


def _is_folder(name: str, parents: Collection[str]) -> bool:
    """Whether a file that is written under a name would stand where a folder must be."""
    return any(_folded(name + kind) in parents for kind in (".png", ".jpg", ".npz", ".json"))
