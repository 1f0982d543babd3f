"""Masks from annotations: outlines as polygons or run lengths, painted in the order of the file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfrecords_tools.coco.instances import ImageAnnotations, Region, shortened
from tfrecords_tools.masks import are_shares
from tfseg.errors import UserError

ACCEPTED_OUTLINES = (
    "polygons [[x1, y1, x2, y2, x3, y3, ...], ...], or run lengths {'size': [height, width], "
    "'counts': ...}"
)


@dataclasses.dataclass(frozen=True)
class MaskReader:
    """Paints annotations; sent to the worker processes.

    Attributes:
      ignore_label: what ignored pixels become.
      ignore_crowd: crowd regions are ignored.
    """

    ignore_label: int
    ignore_crowd: bool

    def __call__(
        self, annotations: ImageAnnotations, size: tuple[int, int]
    ) -> tuple[np.ndarray, list[str]]:
        if annotations.size not in (None, size, size[::-1]):
            raise UserError(
                "An image has another size than its instances file says.",
                where=annotations.where,
                received=f"{size[0]}x{size[1]} (height x width)",
                accepted=f"{annotations.size[0]}x{annotations.size[1]}, as in the file",
                fix="take the images that were annotated, or correct height and width if the "
                "annotations are in pixels of these images",
            )
        _check_unit(annotations)
        label = np.zeros(annotations.size or size, np.uint8)
        free = np.ones(label.shape, bool)
        crowds = [r for r in annotations.regions if r.is_crowd]
        others = [r for r in annotations.regions if not r.is_crowd]
        # Every note counts once.
        notes = []
        # Ignored crowds come last: they must not take pixels from anything.
        ordered = others + crowds if self.ignore_crowd else annotations.regions
        for region in ordered:
            if not has_outline(region.segmentation):
                notes.append("annotation without an outline (box only?): not in the mask")
                continue
            ignored = region.is_crowd and self.ignore_crowd
            inside, empty = decode_region(region, *label.shape, where=annotations.where)
            if not inside.any():
                notes.append(
                    "annotation whose outline covers no pixel (tiny, or not in pixels of the "
                    "image): not in the mask"
                )
            elif empty:
                notes.append(
                    "annotation with a polygon that covers no pixel (tiny, outside of the image, "
                    "or of fewer than three points): only its other polygons are in the mask"
                )
            label[inside & free] = self.ignore_label if ignored else region.class_id
            free &= ~inside
        if crowds:
            notes.append("image with crowd regions")
        if not annotations.regions:
            notes.append(
                "image without annotations: its mask is all background (--empty_images=unlabelled "
                "where nobody has looked for objects)"
            )
        return label, notes


def _check_unit(annotations: ImageAnnotations) -> None:
    """Refuses outlines in shares of the image, of which each would cover a pixel.

    Raises:
      UserError: no coordinate of the image's polygons is above 1, and they are not whole numbers.
    """
    polygons = [
        polygon
        for region in annotations.regions
        if isinstance(region.segmentation, list)
        for polygon in _polygons(region.segmentation)
        if isinstance(polygon, list) and polygon
    ]
    if are_shares(x for polygon in polygons for x in polygon if isinstance(x, int | float)):
        raise UserError(
            "The outlines of an image lie within 0 and 1.",
            where=annotations.where,
            received=shortened(polygons[0]),
            accepted="coordinates in pixels",
            fix="multiply x by the image's width and y by its height",
        )


def has_outline(segmentation: Any) -> bool:
    """Says whether an annotation has an outline, right or wrong; boxes have none."""
    if isinstance(segmentation, list):
        # Fewer than three points have no area; pycocotools takes four numbers for a box.
        return any(
            not isinstance(p, list) or len(p) >= 6 or any(isinstance(x, str) for x in p)
            for p in _polygons(segmentation)
        )
    return segmentation is not None and segmentation != "" and segmentation != {}


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _polygons(segmentation: list[Any]) -> list[Any]:
    """Returns a list of polygons, each a flat list of coordinates.

    One polygon is also taken without the list around it, and a polygon as a list of points.
    """
    if segmentation and not any(isinstance(p, list | dict) for p in segmentation):
        return [segmentation]
    if all(_is_point(p) for p in segmentation):
        segmentation = [segmentation]
    return [
        [x for point in p for x in point]
        if isinstance(p, list) and p and all(_is_point(point) for point in p)
        else p
        for p in segmentation
    ]


# In longer sides of the image. A polygon may leave the image, but not by that much: the time that
# pycocotools takes goes with its length in pixels.
_MAX_COORDINATE = 10


def _polygon_runs(polygons: Sequence[Any], height: int, width: int) -> tuple[np.ndarray, int]:
    """Returns what lies in one of several polygons, and how many with points hold no pixel."""
    from pycocotools import mask as coco_mask

    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError(f"a {type(polygon).__name__} in place of a polygon: {polygon}")
        values = np.array(polygon)
        if values.dtype.kind not in "iuf" or values.ndim != 1:
            raise ValueError(f"a polygon that is no list of numbers: {polygon}")
        if len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers, which are no pairs x, y")
        # As floating-point numbers, because the smallest integer has no absolute value.
        if not (np.abs(values.astype(float)) <= _MAX_COORDINATE * max(height, width)).all():
            raise ValueError(f"coordinates far outside of the image: {polygon}")
    # A polygon of fewer than three points has no area.
    with_area = [p for p in polygons if len(p) >= 6]
    runs = coco_mask.frPyObjects(with_area, height, width)
    filled = np.count_nonzero(coco_mask.area(runs))
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool), sum(map(bool, polygons)) - filled


def _run_lengths(counts: Any) -> list[int]:
    """Returns run lengths; COCO's compressed text is unpacked.

    pycocotools decodes runs that do not fill the image into memory that holds anything, and does
    not tell how long they are.
    """
    if isinstance(counts, list):
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts):
            raise ValueError("run lengths that are no whole numbers from 0 on")
        return counts
    if not isinstance(counts, str):
        raise ValueError(f"run lengths of type {type(counts).__name__}")
    lengths: list[int] = []
    value, shift = 0, 0
    for c in (ord(c) - 48 for c in counts):
        if not 0 <= c < 64 or shift > 60:
            raise ValueError("a text that is no compressed run lengths")
        value |= (c & 31) << shift
        shift += 5
        if not c & 32:
            if c & 16:
                value -= 1 << shift
            # From the fourth on they are differences to the last but one.
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    if shift or min(lengths, default=0) < 0:
        raise ValueError("a text that is no compressed run lengths")
    return lengths


def _runs_inside(segmentation: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Returns where run lengths lie, [height, width] bool; they go down the columns."""
    if not {"size", "counts"} <= set(segmentation):
        raise ValueError(f"an object with the keys {', '.join(map(str, segmentation))}")
    lengths = _run_lengths(segmentation["counts"])
    size = segmentation["size"]
    if size != [height, width]:
        raise ValueError(f"it has size {size}, the image {[height, width]}")
    if sum(lengths) != height * width:
        raise ValueError(
            f"the run lengths do not fill the image: {sum(lengths)} of {height * width} pixels"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def decode_region(region: Region, height: int, width: int, *, where: str) -> tuple[np.ndarray, int]:
    """Returns where a region lies, [height, width] bool, and how many polygons of it hold no pixel.

    Args:
      region: one with an outline, see `has_outline`.
      height, width: of the image, pixels.
      where: file and image, for messages.

    Raises:
      UserError: its polygons or run lengths are malformed.
    """
    segmentation = region.segmentation
    try:
        if isinstance(segmentation, Mapping):
            return _runs_inside(segmentation, height, width), 0
        if not isinstance(segmentation, list):
            raise ValueError(f"a {type(segmentation).__name__}: {segmentation}")
        if all(isinstance(part, Mapping) for part in segmentation):
            parts = [_runs_inside(part, height, width) for part in segmentation]
            return np.any(parts, axis=0), 0
        return _polygon_runs(_polygons(segmentation), height, width)
    except Exception as error:  # pycocotools raises plain Exception, too
        raise UserError(
            "An annotation's segmentation is malformed.",
            where=f"{where}, annotation {region.annotation}",
            received=shortened(str(error)),
            accepted=ACCEPTED_OUTLINES,
            fix="correct the annotation, or export the data set as COCO again",
        ) from None
