"""Lines of lists: an id, the path of an image, or the paths of an image and of its mask."""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from tfrecords_tools.file_finder import FileFinder
from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.errors import UserError

_SEPARATOR = re.compile(r"\s*[,;|]\s*|\s+")


@dataclasses.dataclass(frozen=True)
class Listed:
    """What a line of a list names.

    Attributes:
      id: path of the image below its folder, without extension; the line where no image fits.
      image: path of the image, None where there is none.
      mask: path of the mask, None where the line names none.
    """

    id: str
    image: str | None
    mask: str | None = None


def resolve(lines: Sequence[str], images: FileFinder, masks: FileFinder | None) -> list[Listed]:
    """Finds the files that lines name.

    A path may have its extension or not, '\\' between folders, and may begin with the name of the
    folder itself (`JPEGImages/x.jpg` for --images_dir=VOC/JPEGImages).

    Args:
      lines: of a list.
      images: finds images.
      masks: finds masks; None: lines name none.

    Raises:
      UserError: several files fit, or two lines name one image.
    """
    found = [_resolved(line, images, masks) for line in lines]
    first: dict[str, str] = {}
    for line, listed in zip(lines, found):
        if listed.id in first:
            raise UserError(
                "A list holds an image more than once.",
                where=images.folder,
                received=f"'{first[listed.id]}' and '{line}', which are {listed.image}",
                fix="remove the repetitions",
            )
        first[listed.id] = line
    return found


def _resolved(line: str, images: FileFinder, masks: FileFinder | None) -> Listed:
    image = _named(line, images)
    if image is not None:
        return Listed(*image)
    pairs = set()
    for left, right in _columns(line) if masks is not None else ():
        image, mask = _named(left, images), _named(right, masks)
        if image is not None and mask is not None:
            pairs.add(Listed(*image, mask[1]))
    if len(pairs) > 1:
        raise UserError(
            "A line of a list can be read in several ways.",
            where=images.folder,
            received=line,
            accepted="an id, or the paths of an image and of its mask with a comma between",
        )
    return pairs.pop() if pairs else Listed(line, None)


def _columns(line: str) -> Iterator[tuple[str, str]]:
    """Yields the ways to cut a line in two; names may hold blanks."""
    for match in _SEPARATOR.finditer(line):
        yield line[: match.start()], line[match.end() :]


def _named(text: str, finder: FileFinder) -> tuple[str, str] | None:
    """Returns (id, path) of the file that a text names, None if there is none."""
    plain = text.replace("\\", "/").lstrip("/")
    folder = os.path.basename(os.path.abspath(finder.folder)) + "/"
    for name in dict.fromkeys((text, plain, plain.removeprefix(folder))):
        found = finder.named(name)
        if found is not None:
            return found
    return None


def names_masks(lines: Iterable[str]) -> bool:
    """Says whether a line is two paths of images."""
    return any(all(_is_file(part) for part in parts) for line in lines for parts in _columns(line))


def _is_file(text: str) -> bool:
    return os.path.splitext(text)[1].lower() in IMAGE_EXTENSIONS
