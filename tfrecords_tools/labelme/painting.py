"""Masks from labelme's shapes, painted as labelme paints them: later shapes over earlier ones.

Source: labelme's `utils/shape.py` (`shape_to_mask`). Ours: lines and points have no area, where
labelme draws them ten pixels wide.
"""

import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from tfrecords_tools import class_files
from tfrecords_tools.labelme.annotation import LINES, Annotation, Shape
from tfrecords_tools.masks import are_shares
from tfseg.data.class_names import is_background
from tfseg.errors import UserError

IGNORED = class_files.LABELME_IGNORE
# In longer sides of the image: a shape may leave it, but the time to draw goes with its size.
_MAX_COORDINATE = 10


@dataclasses.dataclass(frozen=True)
class MaskReader:
    """Paints annotations; sent to the worker processes.

    Attributes:
      ids: class id of each label, the ignore label for those that count nowhere.
    """

    ids: Mapping[str, int]

    def __call__(
        self, annotation: Annotation, size: tuple[int, int]
    ) -> tuple[np.ndarray, list[str]]:
        """Returns class ids [H, W] uint8 and notes.

        Raises:
          UserError: the image has another size, or a shape is malformed.
        """
        if annotation.size not in (None, size):
            turned = annotation.size == size[::-1]
            raise UserError(
                "An image has another size than its annotation says.",
                where=annotation.path,
                received=f"{size[0]}x{size[1]} (height x width)",
                accepted=f"{annotation.size[0]}x{annotation.size[1]}, as in the file",
                fix="give --exif_orientation=ignore if it was annotated as it is stored"
                if turned
                else "take the images that were annotated",
            )
        if are_shares(x for shape in annotation.shapes for point in shape.points for x in point):
            raise UserError(
                "The shapes of an annotation lie within 0 and 1.",
                where=annotation.path,
                received=f"points {annotation.shapes[0].points[0]} and others",
                accepted="points in pixels",
                fix="multiply x by the image's width and y by its height",
            )
        label, notes = np.zeros(size, np.uint8), []
        for shape in annotation.shapes:
            if not has_area(shape):
                what = shape.kind if shape.kind in LINES else f"{shape.kind} of less than 3 points"
                notes.append(f"{what}: has no area, so that it is not in the mask")
                continue
            inside = inside_of(shape, size, where=f"{annotation.path}, shape {shape.number}")
            if not inside.any():
                notes.append("shape that covers no pixel of the image: not in the mask")
            label[inside] = self.ids[shape.label]
        if not annotation.shapes:
            notes.append("image without shapes: its mask is all background")
        return label, notes


def has_area(shape: Shape) -> bool:
    """Says whether a shape covers pixels."""
    return shape.kind not in LINES and (shape.kind != "polygon" or len(shape.points) > 2)


def inside_of(shape: Shape, size: tuple[int, int], *, where: str) -> np.ndarray:
    """Returns where a shape lies, [H, W] bool.

    Args:
      shape: one with an area.
      size: height and width of the image, pixels.
      where: file and shape, for messages.

    Raises:
      UserError: it lies far outside, or its mask does not fit its points.
    """
    xs, ys = zip(*shape.points)
    if max(map(abs, xs + ys)) > _MAX_COORDINATE * max(size):
        raise UserError(
            "A shape lies far outside of its image.",
            where=where,
            received=f"x from {min(xs):g} to {max(xs):g}, y from {min(ys):g} to {max(ys):g}",
            accepted=f"pixels of the image, which has {size[0]}x{size[1]} (height x width)",
        )
    if shape.kind == "mask":
        return _pasted(shape, size, where)
    canvas = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(canvas)
    if shape.kind == "circle":
        (x, y), (on_x, on_y) = shape.points
        r = math.hypot(on_x - x, on_y - y)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1, outline=1)
    elif len(shape.points) == 2:
        draw.rectangle((min(xs), min(ys), max(xs), max(ys)), fill=1, outline=1)
    else:
        draw.polygon(list(shape.points), fill=1, outline=1)
    return np.array(canvas)


def _pasted(shape: Shape, size: tuple[int, int], where: str) -> np.ndarray:
    """Returns where the PNG of a mask shape is not 0, at the place of its points."""
    (x0, y0), (x1, y1) = (tuple(map(int, point)) for point in shape.points)
    expected = y1 - y0 + 1, x1 - x0 + 1
    try:
        image = Image.open(io.BytesIO(shape.mask), formats=("PNG",))
        # At the border of an image labelme's masks end one pixel before their second point.
        fits = all(a - b in (0, 1) for a, b in zip(expected, (image.height, image.width)))
        if not fits or image.height > size[0] or image.width > size[1]:
            raise ValueError(
                f"a mask of {image.height}x{image.width} for points around "
                f"{expected[0]}x{expected[1]} (height x width)"
            )
        mask = np.asarray(image)
        if mask.ndim != 2:
            raise ValueError(f"a mask in colours, mode {image.mode}")
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UserError(
            "The mask of a shape is malformed.",
            where=where,
            received=str(error)[:200],
            accepted="a PNG with one channel that covers the rectangle of the shape's points",
            fix="draw the shape again, or as a polygon",
        ) from None
    inside = np.zeros(size, bool)
    top, left = max(y0, 0), max(x0, 0)
    part = mask[top - y0 : size[0] - y0, left - x0 : size[1] - x0] != 0
    inside[top : top + part.shape[0], left : left + part.shape[1]] = part
    return inside


def classes_of(shapes: Iterable[Shape], ids: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the classes of shapes, sorted; background and what counts nowhere left out."""
    found = {shape.label for shape in shapes}
    return tuple(sorted({ids[label] for label in found} - {0, ids[IGNORED]}))


def ids_of(
    annotations: Sequence[Annotation],
    class_names: Sequence[str],
    void_labels: Sequence[str],
    ignore_label: int,
) -> dict[str, int]:
    """Returns the class id of each label that annotations have.

    Args:
      annotations: of all images.
      class_names: in id order, the first is background, as is `_background_`.
      void_labels: labels that count nowhere, beside `__ignore__`.
      ignore_label: their id.

    Raises:
      UserError: a label is no class; names the file.
    """
    ids = {name: k for k, name in enumerate(class_names)}
    ids |= dict.fromkeys((IGNORED, *void_labels), ignore_label)
    for annotation in annotations:
        for shape in annotation.shapes:
            if shape.label not in ids and is_background(shape.label):
                ids[shape.label] = 0
            if shape.label not in ids:
                raise UserError(
                    "A shape has a label that is no class.",
                    where=f"{annotation.path}, shape {shape.number}",
                    received=shape.label[:200],
                    accepted=f"{', '.join(class_names)}; _background_, {IGNORED}",
                    fix="correct the label, add it to --class_names, or let it count nowhere with "
                    f"--void_label={shape.label[:200]}",
                )
    return ids
