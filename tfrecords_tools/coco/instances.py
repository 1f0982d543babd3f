"""Instances files: the json of COCO, as it is and as other tools write it."""

import dataclasses
import re
import urllib.parse
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tfrecords_tools import class_files
from tfrecords_tools.file_finder import composed, stem_of
from tfrecords_tools.text_files import read_json
from tfseg.data.class_names import is_background
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.errors import UserError

# What other files are, by a key that they have and an instances file lacks.
_OTHER_FILES = {
    "shapes": "labelme's file of one image; build_labelme.py reads a folder of such files",
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
# Addresses of Label Studio that name no host.
_LOCAL_FILES = "/data/local-files/"
_STRUCTURE = "COCO's instances json: an object with the lists images, annotations, categories"


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
            parts["received"] = shortened(parts["received"])
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
            return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else shortened(value)
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

    def headings(
        self, items: Sequence[dict[str, Any]], categories: Mapping[int | str, str]
    ) -> set[int | str]:
        """Returns the categories whose name is the 'supercategory' of another one."""
        below: dict[str, set[int | str]] = {}
        for k, item in enumerate(items):
            above = item.get("supercategory")
            if isinstance(above, str):
                number = self.identity(item, "id", f"categories[{k}]")
                below.setdefault(above.strip(), set()).add(number)
        return {c for c, name in categories.items() if below.get(name, set()) - {c}}

    def images(
        self, items: Sequence[dict[str, Any]]
    ) -> dict[int | str, tuple[str, tuple[int, int] | None]]:
        """Returns (file name, size) by image id."""
        found: dict[int | str, tuple[str, tuple[int, int] | None]] = {}
        for k, item in enumerate(items):
            place = f"images[{k}]"
            number = self.identity(item, "id", place)
            place += f", image {number}"
            name = _path_of(composed(self.text(item, "file_name", place)).replace("\\", "/"))
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
        categories: Mapping[int | str, str],
    ) -> tuple[dict[int | str, list[Region]], int]:
        """Returns regions by image id, and how many annotations belong to no image.

        The regions have the ids of their categories; the classes are known when all files are read.
        """
        regions: dict[int | str, list[Region]] = {i: [] for i in images}
        without_image: list[Any] = []
        for k, item in enumerate(items):
            place = f"annotation {shortened(item.get('id', f'number {k}'))}"
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
                    shortened(item.get("id", f"number {k}")),
                    category,
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


def shortened(value: Any) -> str:
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


def _path_of(name: str) -> str:
    """Returns the path in a `file_name`; Label Studio may write an address there."""
    if "://" not in name and not name.startswith(_LOCAL_FILES):
        return name
    try:
        parts = urllib.parse.urlsplit(name)
        asked_for = urllib.parse.parse_qs(parts.query).get("d")
    except ValueError:
        return name
    path = asked_for[0] if asked_for else urllib.parse.unquote(parts.path)
    return path.replace("\\", "/").strip() if _is_unicode(path) and path.strip("/ ") else name


def read_instances(paths: Sequence[str]) -> Instances:
    """Reads instances files.

    Raises:
      UserError: malformed, files with different categories, more categories than a mask can hold,
        or an image in two of them. Names the file, and the entry and its image where it is one.
    """
    categories: dict[int | str, str] | None = None
    images: dict[str, ImageAnnotations] = {}
    notes, headings = [], set()
    for path in paths:
        reader = _Reader(path)
        content = reader.content()
        own = reader.categories(content["categories"])
        if categories is None:
            categories = own
        headings |= reader.headings(content["categories"], own)
        if own != categories:
            differing = sorted(map(str, set(own.items()) ^ set(categories.items())))
            raise reader.error(
                "Instances files have different categories.",
                received=", ".join(differing[:5]),
                accepted=f"the categories of {paths[0]}",
            )
        entries = reader.images(content["images"])
        regions, num_without_image = reader.regions(content["annotations"], entries, categories)
        if num_without_image:
            notes.append(
                f"{path}: {num_without_image} annotations of images that the file does not list "
                "(removed ones?) were left out"
            )
        for i, (name, size) in entries.items():
            stem = stem_of(name)
            if stem in images:
                other = images[stem]
                raise UserError(
                    "An image stands twice in the instances files.",
                    where=" and ".join(dict.fromkeys((other.file, path))),
                    received=f"{other.name}, {name} (image {i})",
                    accepted="one entry for each image, with all of its annotations",
                )
            images[stem] = ImageAnnotations(path, name, size, tuple(regions[i]))
    return _with_classes(categories, headings, images, notes, paths[0])


def _with_classes(
    categories: Mapping[int | str, str],
    headings: Collection[int | str],
    images: Mapping[str, ImageAnnotations],
    notes: Sequence[str],
    path: str,
) -> Instances:
    """Decides which category is which class.

    Args:
      categories: names by id.
      headings: those that may stand there as headings of others alone, as Roboflow's category 0.
      images: whose regions have the ids of their categories.
      notes: so far.
      path: the first file, for messages.

    Raises:
      UserError: see `_classes`.
    """
    used = {region.class_id for image in images.values() for region in image.regions}
    kept = {c: name for c, name in categories.items() if c in used or c not in headings}
    left_out = [f"'{name}' ({c})" for c, name in categories.items() if c not in kept]
    names, class_id = _classes(kept or categories, path)
    notes = list(notes)
    if left_out and kept:
        notes.append(f"category {', '.join(left_out)} only heads others and was left out")
    background = [name for c, name in kept.items() if not class_id[c]]
    if background:
        notes.append(f"category '{background[0]}' is taken as background, class 0")
    known = DATASETS["coco"]
    return Instances(
        known if names == known.class_names else DatasetSpec("coco_like", names),
        {
            stem: dataclasses.replace(
                image,
                regions=tuple(
                    dataclasses.replace(region, class_id=class_id[region.class_id])
                    for region in image.regions
                ),
            )
            for stem, image in images.items()
        },
        tuple(notes),
    )


def _classes(
    categories: Mapping[int | str, str], path: str
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Returns the class names, and the class id of each category.

    Raises:
      UserError: too many of them, or two of one name.
    """
    objects = {c: n for c, n in categories.items() if not is_background(n)}
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
