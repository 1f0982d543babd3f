"""The JSON that labelme writes for an image: its shapes, and the image itself if it is embedded.

Source: labelme's `label_file.py`.
"""

import base64
import binascii
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfrecords_tools.text_files import read_json
from tfseg.errors import UserError

# `oriented_rectangle` is of labelme 6, `rotation` is its name in X-AnyLabeling.
AREAS = ("polygon", "rectangle", "oriented_rectangle", "rotation", "circle", "mask")
# They have no area, so that they cannot be in a mask.
LINES = ("line", "linestrip", "point", "points")
_STRUCTURE = "labelme's JSON of one image: an object with the list 'shapes', and 'imagePath'"
# What other files are, by a key that they have and labelme's lack.
_OTHER_FILES = {
    "annotations": "an instances json of COCO; give it to build_coco.py",
    "_via_img_metadata": "a project of VGG Image Annotator; export it as COCO",
    "features": "GeoJSON; export it as COCO",
}
_SHOWN = 100
_LARGEST_SIDE = 2**31


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
      number: its place in the file, from 0.
      label: as it is written.
      kind: one of `AREAS` or `LINES`.
      points: x and y in pixels.
      mask: of a mask shape, the PNG that covers the rectangle of its two points.
    """

    number: int
    label: str
    kind: str
    points: tuple[tuple[float, float], ...]
    mask: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What a file says, but for the embedded image.

    Attributes:
      path: the file.
      image_path: of its image, with '/' between folders; '' where it does not tell.
      size: (height, width) in pixels; None: it does not tell.
      shapes: in the order in which they were drawn.
      has_image: an image is embedded.
    """

    path: str
    image_path: str
    size: tuple[int, int] | None
    shapes: tuple[Shape, ...]
    has_image: bool

    @property
    def where(self) -> str:
        """Names the file, for messages."""
        return self.path


@dataclasses.dataclass(frozen=True)
class EmbeddedImage:
    """The image inside a file; an `encoder.ImageSource` takes it in place of a path."""

    path: str

    def __str__(self) -> str:
        return f"{self.path}, imageData"

    def read(self) -> bytes:
        """Returns the encoded image.

        Raises:
          UserError: the file has none.
        """
        return decoded(_content(self.path).get("imageData"), "imageData", self.path)


def decoded(value: Any, what: str, where: str) -> bytes:
    """Returns the bytes of a text in base64.

    Raises:
      UserError: it is no such text.
    """
    try:
        if not isinstance(value, str):
            raise ValueError(f"a {type(value).__name__}")
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UserError(
            f"'{what}' is no encoded image.",
            where=where,
            received=str(error)[:_SHOWN],
            accepted="an image file in base64, as labelme writes it",
        ) from None


def _content(path: str) -> Mapping[str, Any]:
    what = "A file is no annotation of labelme"
    content = read_json(path, None, what="A file of labelme", accepted=_STRUCTURE)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        keys = content if isinstance(content, dict) else ()
        other = next((text for key, text in _OTHER_FILES.items() if key in keys), None)
        kind = f"keys {', '.join(map(str, list(keys)[:8]))}" if keys else type(content).__name__
        raise UserError(
            f"{what}.",
            where=path,
            received=(other or kind)[:_SHOWN],
            accepted=_STRUCTURE,
            fix="take the file out of the folder of annotations",
        )
    return content


def read(path: str) -> Annotation:
    """Reads a file of labelme.

    Raises:
      UserError: no JSON of labelme, or a shape that is malformed or of an unknown kind; names the
        file and the shape.
    """
    content = _content(path)
    image_path = content.get("imagePath") or ""
    if not isinstance(image_path, str):
        raise UserError("'imagePath' is no text.", where=path, received=repr(image_path)[:_SHOWN])
    sides = [_side(content, key, path) for key in ("imageHeight", "imageWidth")]
    return Annotation(
        path,
        image_path.replace("\\", "/"),
        (sides[0], sides[1]) if all(sides) else None,
        tuple(_shape(k, item, path) for k, item in enumerate(content["shapes"])),
        bool(content.get("imageData")),
    )


def _side(content: Mapping[str, Any], key: str, path: str) -> int:
    """Returns a height or width, 0 where the file does not tell."""
    value = content.get(key) or 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST_SIDE:
        raise UserError(
            f"'{key}' is no number of pixels.",
            where=path,
            received=repr(value)[:_SHOWN],
            accepted="a whole number, or null: then it is read from the image",
        )
    return value


def _shape(number: int, item: Any, path: str) -> Shape:
    """Returns a shape.

    Raises:
      UserError: it is malformed or of an unknown kind.
    """
    where = f"{path}, shape {number}"
    if not isinstance(item, dict):
        raise UserError(
            "A shape is no object.", where=where, received=repr(item)[:_SHOWN], accepted="{...}"
        )
    label = item.get("label")
    if not isinstance(label, str) or not label.strip():
        raise UserError(
            "A shape has no label.", where=where, received=repr(label)[:_SHOWN], accepted="a text"
        )
    label = label.strip()
    where += f" ('{label[:_SHOWN]}')"
    # Files of the first versions do not tell: all shapes were polygons.
    kind = item.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind not in AREAS + LINES:
        raise UserError(
            "A shape is of an unknown kind.",
            where=where,
            received=f"shape_type {kind!r}"[:_SHOWN],
            accepted=f"{', '.join(AREAS)}; {', '.join(LINES)} (they have no area and are not "
            "painted)",
            fix="draw the shape as a polygon",
        )
    points = _points(item.get("points"), kind, where)
    mask = decoded(item.get("mask"), "mask", where) if kind == "mask" else None
    return Shape(number, label, kind, points, mask)


# How many points a kind has; the rectangle of some tools has all four corners.
_NUMBERS_OF_POINTS = {
    "rectangle": (2, 4),
    "oriented_rectangle": (4,),
    "rotation": (4,),
    "circle": (2,),
    "mask": (2,),
}


def _points(value: Any, kind: str, where: str) -> tuple[tuple[float, float], ...]:
    """Returns points.

    Raises:
      UserError: they are no pairs of numbers, or not as many as the kind has.
    """
    accepted = _NUMBERS_OF_POINTS.get(kind)
    if (
        not isinstance(value, list)
        or not all(_is_point(point) for point in value)
        or (accepted and len(value) not in accepted)
    ):
        count = " or ".join(map(str, accepted)) if accepted else "any number of"
        raise UserError(
            "The points of a shape are malformed.",
            where=where,
            received=repr(value)[:_SHOWN],
            accepted=f"for a {kind} {count} pairs [x, y]",
        )
    return tuple((float(x), float(y)) for x, y in value)


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        and all(abs(x) < _LARGEST_SIDE and math.isfinite(x) for x in value)
    )
