"""Makes TFRecords of COCO: masks of 80 classes and background from its instance annotations.

python tfrecords_tools/build_coco.py --images_dir=coco \
    --annotations=coco/annotations/instances_train2017.json \
    --annotations=coco/annotations/instances_val2017.json \
    --splits_dir=data_splits/coco --output_dir=records

* Ids are paths below --images_dir without extension (`train2017/000000177254`); a bare id is also
  looked for in the folders below it.
* An image of the json is the file whose path below --images_dir ends in its `file_name`, or is the
  end of it, extensions aside. Sizes that the json lacks are those of the image.
* Class ids are the categories in the order of their COCO ids, from 1; 0 is background, and so is a
  category of that name.
* Annotations without an outline (boxes) are counted and leave the mask as it is.
* Where annotations overlap, the earlier one in the file keeps the pixel.
* Crowd regions are annotations like the others, or are ignored with --crowd=ignore (where no
  other annotation lies).
* Image-level labels are the categories of all annotations of an image.
"""

import dataclasses
import os
import posixpath
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from tfrecords_tools import class_files, program
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import IMAGE_EXTENSIONS, FileFinder, composed, find_all
from tfrecords_tools.id_lists import check_unlabelled, read_splits
from tfrecords_tools.text_files import read_json
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder that holds train2017, val2017 and so on.")
    flags.DEFINE_multi_string("annotations", None, "Instances json; repeat for several.")
    flags.DEFINE_string("splits_dir", "data_splits/coco", "Folder of <split>.txt.")
    flags.DEFINE_enum("crowd", "class", ("class", "ignore"), "What crowd regions become.")
    program.define_output_flags(num_shards=16)
    program.define_image_flags()


# Reading the json -------------------------------------------------------------------------------

# What other files are, by a key that they have and an instances file lacks.
_OTHER_FILES = {
    "shapes": "labelme's file of one image; join such files with labelme2coco",
    "_via_img_metadata": "a project of VGG Image Annotator; export it as COCO",
    "features": "GeoJSON; export it as COCO",
    "completions": "Label Studio's own format; export it as COCO",
}
_OTHER_ITEMS = {
    "score": "COCO results (predictions), which name no images",
    "data": "Label Studio's own format; export it as COCO",
    "annotations": "Label Studio's own format; export it as COCO",
}
_OTHER_ANNOTATIONS = {
    "segments_info": "COCO panoptic, whose masks are PNGs",
    "caption": "COCO captions",
}
_STRUCTURE = "COCO's instances json: an object with the lists images, annotations, categories"
_SEGMENTATION = (
    "polygons [[x1, y1, x2, y2, x3, y3, ...], ...], or run lengths {'size': [height, width], "
    "'counts': ...}"
)


@dataclasses.dataclass(frozen=True)
class Region:
    """One annotation: its id, class id, polygons or run lengths, and whether it is a crowd."""

    annotation: int | str
    class_id: int
    segmentation: Any
    is_crowd: bool


@dataclasses.dataclass(frozen=True)
class ImageAnnotations:
    """The regions of an image in file order.

    Attributes:
      file: the json.
      name: `file_name`, with '/' between folders.
      size: (height, width) in pixels by the json; None: it does not tell.
      regions: one for each annotation.
    """

    file: str
    name: str
    size: tuple[int, int] | None
    regions: tuple[Region, ...]

    @property
    def where(self) -> str:
        """Names file and image, for messages."""
        return f"{self.file}, image {self.name}"


@dataclasses.dataclass(frozen=True)
class Instances:
    """The content of the instances files.

    Attributes:
      spec: the classes.
      images: by path without extension, as the json has it.
      notes: what was left out, for people.
    """

    spec: DatasetSpec
    images: dict[str, ImageAnnotations]
    notes: tuple[str, ...] = ()


class _Reader:
    """Reads one instances file; every message names the file and the place in it."""

    def __init__(self, path: str):
        self.path = path

    def error(self, what: str, place: str | None = None, **parts: Any) -> UserError:
        where = self.path if place is None else f"{self.path}, {place}"
        if "received" in parts:
            parts["received"] = _shown(parts["received"])
        return UserError(what, where=where, **parts)

    def content(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the lists of the file."""
        what = "An instances file has another structure."
        content = read_json(
            self.path, None, what="An instances file", accepted=_STRUCTURE, check_texts=False
        )
        items = content if isinstance(content, list) else [content]
        first = items[0] if items and isinstance(items[0], dict) else {}
        others = _OTHER_ITEMS if isinstance(content, list) else _OTHER_FILES
        is_other = next((text for key, text in others.items() if key in first), None)
        if not isinstance(content, dict):
            received = f"a {type(content).__name__}" + (f": {is_other}" if is_other else "")
            raise self.error(what, received=received, accepted=_STRUCTURE)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                kind = type(content[key]).__name__ if key in content else "nothing"
                received = f"{kind} at '{key}'" + (f": {is_other}" if is_other else "")
                raise self.error(what, received=received, accepted=_STRUCTURE)
            for k, item in enumerate(content[key]):
                if not isinstance(item, dict):
                    raise self.error(what, f"{key}[{k}]", received=item, accepted="an object {...}")
        return content

    def field(self, item: Mapping[str, Any], key: str, place: str) -> Any:
        if item.get(key) is None:
            raise self.error(
                f"An entry lacks '{key}'.", place, received=item, accepted=_ACCEPTED_FIELDS[key]
            )
        return item[key]

    def identity(self, item: Mapping[str, Any], key: str, place: str) -> int | str:
        """Returns an id; 7, 7.0 and "7" are one, other text is an id of its own."""
        value = self.field(item, key, place)
        if isinstance(value, str):
            return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else _shown(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise self.error(
                f"'{key}' is no id.", place, received=value, accepted=_ACCEPTED_FIELDS[key]
            )
        return int(value)

    def text(self, item: Mapping[str, Any], key: str, place: str) -> str:
        value = self.field(item, key, place)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip() or not _is_unicode(value):
            raise self.error(
                f"'{key}' is no text.", place, received=value, accepted=_ACCEPTED_FIELDS[key]
            )
        return value.strip()

    def length(self, item: Mapping[str, Any], key: str, place: str) -> int | None:
        """Returns a height or width, None where the file does not tell: missing, null or 0."""
        value = item.get(key)
        try:
            if value is not None and not isinstance(value, bool | int | float | str):
                raise ValueError
            number = float(value or 0)
            if isinstance(value, bool) or not 0 <= number < 2**31 or number != number // 1:
                raise ValueError
        except ValueError:
            raise self.error(
                f"'{key}' is no number of pixels.",
                place,
                received=value,
                accepted="a whole number, or nothing: then it is read from the image",
            ) from None
        return int(number) or None

    def categories(self, items: Sequence[dict[str, Any]]) -> dict[int | str, str]:
        """Returns names by category id, in the order of the classes."""
        found: dict[int | str, str] = {}
        for k, item in enumerate(items):
            place = f"categories[{k}]"
            number = self.identity(item, "id", place)
            name = self.text(item, "name", f"{place}, category {number}")
            if found.get(number, name) != name:
                raise self.error(
                    "Two categories have one id.", f"{place}, category {number}", received=item
                )
            found[number] = name
        if not found:
            raise self.error("An instances file has no categories.", accepted=_STRUCTURE)
        # Numbers first; other text in the order of the file.
        order = sorted(found, key=lambda c: (isinstance(c, str), c if isinstance(c, int) else 0))
        return {c: found[c] for c in order}

    def images(
        self, items: Sequence[dict[str, Any]]
    ) -> dict[int | str, tuple[str, tuple[int, int] | None]]:
        """Returns (file name, size) by image id."""
        found: dict[int | str, tuple[str, tuple[int, int] | None]] = {}
        for k, item in enumerate(items):
            place = f"images[{k}]"
            number = self.identity(item, "id", place)
            place += f", image {number}"
            name = composed(self.text(item, "file_name", place)).replace("\\", "/")
            height, width = (self.length(item, key, place) for key in ("height", "width"))
            entry = (name, (height, width) if height and width else None)
            if found.get(number, entry) != entry:
                raise self.error(
                    "Two images have one id.", place, received=f"{found[number][0]}, {name}"
                )
            found[number] = entry
        return found

    def regions(
        self,
        items: Sequence[dict[str, Any]],
        images: Mapping[int | str, tuple[str, Any]],
        class_id: Mapping[int | str, int],
        categories: Mapping[int | str, str],
    ) -> tuple[dict[int | str, list[Region]], int]:
        """Returns regions by image id, and how many annotations belong to no image."""
        regions: dict[int | str, list[Region]] = {i: [] for i in images}
        without_image: list[Any] = []
        for k, item in enumerate(items):
            place = f"annotation {_shown(item.get('id', f'number {k}'))}"
            other = next((t for key, t in _OTHER_ANNOTATIONS.items() if key in item), None)
            if other is not None and "segmentation" not in item:
                raise self.error(
                    "An instances file has another structure.",
                    place,
                    received=other,
                    accepted=_STRUCTURE,
                )
            image = self.identity(item, "image_id", place)
            if image not in images:
                without_image.append(image)
                continue
            place += f", image {images[image][0]}"
            category = self.identity(item, "category_id", place)
            if category not in categories:
                raise self.error(
                    "An annotation has a category that the file does not list.",
                    place,
                    received=f"category_id {category}",
                    accepted=", ".join(f"{c} ({n})" for c, n in list(categories.items())[:20]),
                    fix="add it to the categories, or remove the annotation",
                )
            crowd = item.get("iscrowd") or 0
            if crowd not in _YES and crowd not in _NO:
                raise self.error("'iscrowd' is neither 0 nor 1.", place, received=crowd)
            regions[image].append(
                Region(
                    _shown(item.get("id", f"number {k}")),
                    class_id[category],
                    item.get("segmentation"),
                    crowd in _YES,
                )
            )
        if without_image and len(without_image) == len(items):
            raise self.error(
                "No annotation belongs to an image of the file.",
                received=f"image_id {', '.join(map(str, without_image[:3]))}",
                accepted=f"ids of images, such as {', '.join(map(str, list(images)[:3]))}",
            )
        return regions, len(without_image)


_YES, _NO = (1, "1", "true", "True"), (0, "0", "false", "False")
_ACCEPTED_FIELDS = {
    "id": "a whole number or a text",
    "image_id": "the id of an image: a whole number or a text",
    "category_id": "the id of a category: a whole number or a text",
    "name": "the category's name",
    "file_name": "the path of the image below --images_dir",
}


def _shown(value: Any) -> str:
    """Returns a value for a message, shortened."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 200 else text[:197] + "..."


def _is_unicode(text: str) -> bool:
    """Says whether a text can be written; JSON may hold halves of characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_instances(paths: Sequence[str]) -> Instances:
    """Reads instances files.

    Raises:
      UserError: malformed, files with different categories, more categories than a mask can hold,
        or an image in two of them. Names the file, and the entry and its image where it is one.
    """
    categories: dict[int | str, str] | None = None
    images: dict[str, ImageAnnotations] = {}
    notes = []
    for path in paths:
        reader = _Reader(path)
        content = reader.content()
        own = reader.categories(content["categories"])
        if categories is None:
            categories = own
            names, class_id = _classes(categories, path)
        if own != categories:
            differing = sorted(map(str, set(own.items()) ^ set(categories.items())))
            raise reader.error(
                "Instances files have different categories.",
                received=", ".join(differing[:5]),
                accepted=f"the categories of {paths[0]}",
            )
        entries = reader.images(content["images"])
        regions, num_without_image = reader.regions(
            content["annotations"], entries, class_id, categories
        )
        if num_without_image:
            notes.append(
                f"{path}: {num_without_image} annotations of images that the file does not list "
                "(removed ones?) were left out"
            )
        for i, (name, size) in entries.items():
            stem = _stem(name)
            if stem in images:
                other = images[stem]
                raise UserError(
                    "An image stands twice in the instances files.",
                    where=" and ".join(dict.fromkeys((other.file, path))),
                    received=f"{other.name}, {name} (image {i})",
                    accepted="one entry for each image, with all of its annotations",
                )
            images[stem] = ImageAnnotations(path, name, size, tuple(regions[i]))
    background = [name for c, name in categories.items() if not class_id[c]]
    if background:
        notes.append(f"category '{background[0]}' is taken as background, class 0")
    known = DATASETS["coco"]
    spec = known if names == known.class_names else DatasetSpec("coco_like", names)
    return Instances(spec, images, tuple(notes))


def _classes(
    categories: Mapping[int | str, str], path: str
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Returns the class names, and the class id of each category.

    Raises:
      UserError: too many of them, or two of one name.
    """
    objects = {c: n for c, n in categories.items() if not class_files.is_background(n)}
    names = ("background", *objects.values())
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise UserError(
            "Two categories have one name.",
            where=path,
            received=", ".join(f"{c} ({n})" for c, n in categories.items() if n in twice)[:200],
            fix="rename one of them, or give the annotations of both the same category_id",
        )
    if len(names) > class_files.MAX_NAMES - 1:
        raise UserError(
            "There are more categories than an 8-bit mask can hold.",
            where=path,
            received=f"{len(objects)} categories",
            accepted="at most 254 categories, beside background (0) and the ignore label (255)",
            fix="leave out categories, with their annotations, or merge them",
        )
    class_id = {c: k for k, c in enumerate(objects, start=1)}
    return names, {c: class_id.get(c, 0) for c in categories}


def _stem(path: str) -> str:
    """Returns a path with '/' between folders, in composed characters, without extension."""
    path = posixpath.normpath(composed(path).replace("\\", "/")).lstrip("/")
    stem, extension = os.path.splitext(path)
    return stem if extension.lower() in IMAGE_EXTENSIONS else path


class _Matcher:
    """Finds the entry of an image file."""

    def __init__(self, images: Mapping[str, ImageAnnotations]):
        self._images = images
        self._by_name: dict[str, list[str]] = {}
        for stem in images:
            self._by_name.setdefault(posixpath.basename(stem), []).append(stem)
        self._file_of: dict[str, str] = {}

    def find(self, path: str) -> ImageAnnotations | None:
        """Returns the entry of an image, None if there is none.

        Args:
          path: below the folder of images.

        Raises:
          UserError: several fit, or one fits two images.
        """
        stem = _stem(path)
        parts = stem.split("/")
        fitting = [s for s in self._by_name.get(parts[-1], ()) if _is_end(s.split("/"), parts)]
        if stem in fitting:
            fitting = [stem]
        # Of several ends of the path the longest is the most exact.
        inner = [s for s in fitting if len(s) <= len(stem)]
        if inner:
            fitting = [max(inner, key=len)]
        if len(fitting) > 1:
            raise UserError(
                f"Several images of the instances files fit '{path}'.",
                where=self._images[fitting[0]].file,
                received=", ".join(self._images[s].name for s in fitting[:5]),
                accepted="images that lie in folders as in 'file_name'",
                fix="let --images_dir be the folder above these folders",
            )
        if not fitting:
            return None
        other = self._file_of.setdefault(fitting[0], path)
        if _stem(other) != stem:
            entry = self._images[fitting[0]]
            raise UserError(
                "One image of the instances files fits two image files.",
                where=entry.where,
                received=f"{other}, {path}",
                accepted="a 'file_name' with the folders below --images_dir",
            )
        return self._images[fitting[0]]

    def near(self, path: str) -> list[str]:
        """Returns images of the same name in other folders, else any."""
        stems = self._by_name.get(posixpath.basename(_stem(path))) or list(self._images)
        return [self._images[s].name for s in stems[:3]]


def _is_end(a: Sequence[str], b: Sequence[str]) -> bool:
    """Says whether one of two paths is the end of the other."""
    n = min(len(a), len(b))
    return a[len(a) - n :] == b[len(b) - n :]


# Painting ---------------------------------------------------------------------------------------


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
            inside = decode_region(region, *label.shape, where=annotations.where)
            if not inside.any():
                notes.append(
                    "annotation whose outline covers no pixel (tiny, or not in pixels of the "
                    "image): not in the mask"
                )
            label[inside & free] = self.ignore_label if ignored else region.class_id
            free &= ~inside
        if crowds:
            notes.append("image with crowd regions")
        if not annotations.regions:
            notes.append("image without annotations: its mask is all background")
        return label, notes


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


def _polygon_runs(polygons: Sequence[Any], height: int, width: int) -> Any:
    """Returns what lies in one of several polygons, [height, width] bool."""
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
    runs = coco_mask.merge(coco_mask.frPyObjects(with_area, height, width))
    return coco_mask.decode(runs).astype(bool)


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


def decode_region(region: Region, height: int, width: int, *, where: str) -> np.ndarray:
    """Returns where a region lies, [height, width] bool.

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
            return _runs_inside(segmentation, height, width)
        if not isinstance(segmentation, list):
            raise ValueError(f"a {type(segmentation).__name__}: {segmentation}")
        if all(isinstance(part, Mapping) for part in segmentation):
            return np.any([_runs_inside(part, height, width) for part in segmentation], axis=0)
        return _polygon_runs(_polygons(segmentation), height, width)
    except Exception as error:  # pycocotools raises plain Exception, too
        raise UserError(
            "An annotation's segmentation is malformed.",
            where=f"{where}, annotation {region.annotation}",
            received=_shown(str(error)),
            accepted=_SEGMENTATION,
            fix="correct the annotation, or export the data set as COCO again",
        ) from None


# Files ------------------------------------------------------------------------------------------


class CocoFinder:
    """Finds `<images_dir>/<id>.*`, for bare ids in the folders below, too."""

    def __init__(self, images_dir: str):
        self.folder = images_dir
        self._finder = FileFinder(images_dir)
        self.extensions = self._finder.extensions
        self._below = sorted(
            n for n in os.listdir(images_dir) if os.path.isdir(os.path.join(images_dir, n))
        )

    def find(self, i: str) -> str | None:
        """Returns the path of an id's image, None if there is none.

        Raises:
          UserError: several files fit.
        """
        path = self._finder.find(i)
        if path is not None or "/" in i:
            return path
        found = [p for p in (self._finder.find(f"{f}/{i}") for f in self._below) if p]
        if len(found) > 1:
            raise UserError(
                f"Several files fit id '{i}'.", where=self.folder, received=", ".join(found)
            )
        return found[0] if found else None

    def near(self, i: str) -> list[str]:
        """Returns files of an id's folder whose names look like it."""
        return self._finder.near(i)


def make_sources(
    images_dir: str,
    splits: dict[str, list[str]],
    instances: Instances,
    *,
    unlabelled_splits: Sequence[str] = (),
    allow_missing_masks: bool = False,
) -> dict[str, list[ImageSource]]:
    """Joins lists, images and annotations.

    Raises:
      UserError: an image is missing, or stands in no instances file.
    """
    check_unlabelled(unlabelled_splits, splits)
    finder, matcher = CocoFinder(images_dir), _Matcher(instances.images)
    tasks: dict[str, list[ImageSource]] = {}
    for split, ids in splits.items():
        paths = find_all(ids, finder, split=split, what="image")
        unlabelled = split in unlabelled_splits
        entries = [matcher.find(os.path.relpath(path, images_dir)) for path in paths]
        missing = [i for i, entry in zip(ids, entries) if entry is None]
        if missing and not (unlabelled or allow_missing_masks):
            files = dict.fromkeys(entry.file for entry in instances.images.values())
            raise UserError(
                f"{len(missing)} of {len(ids)} ids of split '{split}' are in no instances file.",
                where=", ".join(files) or None,
                received=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
                accepted="images of these files, such as " + ", ".join(matcher.near(missing[0])),
                fix="give that file with --annotations, let the folders be those of 'file_name', "
                "list the split in --unlabelled_splits, or give --allow_missing_masks",
            )
        tasks[split] = []
        for i, path, known in zip(ids, paths, entries):
            labels = None
            if known is not None:
                labels = tuple(sorted({r.class_id for r in known.regions} - {0}))
            notes = ()
            if known is None and not unlabelled:
                notes = ("image without annotations (--allow_missing_masks)",)
            mask = None if unlabelled else known
            tasks[split].append(ImageSource(i, path, mask, image_labels=labels, notes=notes))
    _check_outlines(tasks)
    return tasks


def _check_outlines(tasks: Mapping[str, Sequence[ImageSource]]) -> None:
    """Refuses annotations without a single outline: the masks would be background only.

    Raises:
      UserError: they are boxes.
    """
    masks = [source.mask for sources in tasks.values() for source in sources if source.mask]
    regions = [region for mask in masks for region in mask.regions]
    if regions and not any(has_outline(region.segmentation) for region in regions):
        raise UserError(
            f"None of the {len(regions)} annotations has an outline; the masks would be all "
            "background.",
            where=", ".join(dict.fromkeys(mask.file for mask in masks)),
            received=f"'segmentation': {_shown(regions[0].segmentation)} (boxes only?)",
            accepted=_SEGMENTATION,
            fix="export outlines; or list the splits in --unlabelled_splits, where the categories "
            "serve as image-level labels",
        )


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("images_dir", "annotations", "splits_dir", "output_dir")
    program.check_folder(FLAGS.images_dir, "images_dir")
    instances = read_instances(FLAGS.annotations)
    spec = instances.spec
    for note in instances.notes:
        print(f"note: {note}", flush=True)
    tasks = make_sources(
        FLAGS.images_dir,
        read_splits(FLAGS.splits_dir, FLAGS.splits),
        instances,
        unlabelled_splits=FLAGS.unlabelled_splits,
        allow_missing_masks=FLAGS.allow_missing_masks,
    )
    program.write(
        spec,
        tasks,
        Encoder(
            spec,
            max_megapixels=FLAGS.max_image_megapixels,
            exif_orientation=FLAGS.exif_orientation,
            mask_reader=MaskReader(spec.ignore_label, FLAGS.crowd == "ignore"),
        ),
        started=started,
    )


if __name__ == "__main__":
    define_flags()
    program.run(main)
