"""Looking through a folder and all folders in it."""

import os
from collections.abc import Callable, Iterator

from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.errors import UserError


def walk(
    folder: str,
    *,
    without: str | None = None,
    onerror: Callable[[OSError], None] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Yields every folder below one, itself first, with the names of its files.

    Hidden folders are left out. A link to a folder counts as that folder. What is in the searched
    folder is found there, so links to it, or to a folder around it, are left out: no file comes
    twice, and links in a circle end.

    Args:
      folder: to look through.
      without: a folder that is left out.
      onerror: takes the error of a folder that cannot be read; None: such a folder is empty.
    """
    root = os.path.realpath(folder)
    left_out = None if without is None else os.path.realpath(without)
    entered = {root}

    def enters(path: str) -> bool:
        real = os.path.realpath(path)
        if real in entered or real == left_out:
            return False
        if os.path.islink(path) and os.path.commonpath([real, root]) in (real, root):
            return False
        entered.add(real)
        return True

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=onerror):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and enters(os.path.join(parent, name))
        ]
        yield parent, names


def check_holds_no_images(folder: str, flag: str) -> None:
    """Refuses to write into a folder of images: the next program would take the output for images.

    Args:
      folder: local; it need not be there. Folders in it do not count.
      flag: that named it.

    Raises:
      UserError: it holds an image.
    """
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    image = next((n for n in names if os.path.splitext(n)[1].lower() in IMAGE_EXTENSIONS), None)
    if image is not None:
        raise UserError(
            "The output directory holds images.",
            where=f"--{flag}={folder}",
            received=image,
            accepted="an empty folder, one that is not there yet, or one of an earlier run",
            fix=f"choose another --{flag}",
        )
