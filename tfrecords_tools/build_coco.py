"""Makes TFRecords of COCO: masks of 80 classes and background from its instance annotations.

python tfrecords_tools/build_coco.py --images_dir=coco \
    --annotations=coco/annotations/instances_train2017.json \
    --annotations=coco/annotations/instances_val2017.json \
    --splits_dir=data_splits/coco --output_dir=records

* Ids are paths below --images_dir without extension (`train2017/000000177254`); a bare id is also
  looked for in the folders below it.
* Class ids are the categories in the order of their COCO ids, from 1; 0 is background.
* Where annotations overlap, the earlier one in the file keeps the pixel.
* Crowd regions are annotations like the others, or are ignored with --crowd=ignore (where no
  other annotation lies).
* Image-level labels are the categories of all annotations of an image.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from tfrecords_tools import common
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder that holds train2017, val2017 and so on.")
    flags.DEFINE_multi_string("annotations", None, "Instances json; repeat for several.")
    flags.DEFINE_string("splits_dir", "data_splits/coco", "Folder of <split>.txt.")
    flags.DEFINE_enum("crowd", "class", ("class", "ignore"), "What crowd regions become.")
    common.define_output_flags(num_shards=16)
    common.define_image_flags()


@dataclasses.dataclass(frozen=True)
class Region:
    """One annotation: its id, class id, polygons or run lengths, and whether it is a crowd."""

    annotation: int
    class_id: int
    segmentation: Any
    is_crowd: bool


@dataclasses.dataclass(frozen=True)
class ImageAnnotations:
    """The regions of an image in file order, and its size in pixels by the json."""

    height: int
    width: int
    regions: tuple[Region, ...]


@dataclasses.dataclass(frozen=True)
class Instances:
    """The content of the instances files, by image name without extension."""

    spec: DatasetSpec
    images: dict[str, ImageAnnotations]


def read_instances(paths: Sequence[str]) -> Instances:
    """Reads instances files.

    Raises:
      UserError: malformed, files with different categories, or an image in two of them.
    """
    categories: dict[int, str] | None = None
    images: dict[str, ImageAnnotations] = {}
    for path in paths:
        try:
            content = common.read_json(path, {}, what="An instances file")
            own = {int(c["id"]): str(c["name"]) for c in content["categories"]}
            if categories is None:
                categories = own
            if own != categories:
                raise UserError("Instances files have different categories.", where=path)
            class_id = {c: k for k, c in enumerate(sorted(categories), start=1)}
            sizes = {
                int(i["id"]): (_stem(i["file_name"]), int(i["height"]), int(i["width"]))
                for i in content["images"]
            }
            regions: dict[int, list[Region]] = {i: [] for i in sizes}
            for a in content["annotations"]:
                regions[int(a["image_id"])].append(
                    Region(
                        int(a["id"]),
                        class_id[int(a["category_id"])],
                        a["segmentation"],
                        bool(a.get("iscrowd", 0)),
                    )
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "An instances file has another structure.",
                where=path,
                received=f"{type(error).__name__}: {error}",
                accepted="COCO's instances json: images, annotations, categories",
            ) from None
        for i, (stem, height, width) in sizes.items():
            if stem in images:
                raise UserError(
                    "An image stands in two instances files.", where=path, received=stem
                )
            images[stem] = ImageAnnotations(height, width, tuple(regions[i]))
    names = ("background", *(categories[c] for c in sorted(categories)))
    known = DATASETS["coco"]
    spec = known if names == known.class_names else DatasetSpec("coco_like", names)
    return Instances(spec, images)


def _stem(file_name: str) -> str:
    return os.path.splitext(os.path.basename(file_name))[0]


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
        label = np.zeros((annotations.height, annotations.width), np.uint8)
        free = np.ones(label.shape, bool)
        crowds = [r for r in annotations.regions if r.is_crowd]
        others = [r for r in annotations.regions if not r.is_crowd]
        notes = []
        # Ignored crowds come last: they must not take pixels from anything.
        ordered = others + crowds if self.ignore_crowd else annotations.regions
        for region in ordered:
            ignored = region.is_crowd and self.ignore_crowd
            inside = decode_region(region, *label.shape)
            label[inside & free] = self.ignore_label if ignored else region.class_id
            free &= ~inside
        if crowds:
            notes.append("image with crowd regions")
        return label, notes


def decode_region(region: Region, height: int, width: int) -> np.ndarray:
    """Returns where a region lies, [height, width] bool.

    Raises:
      UserError: its polygons or run lengths are malformed.
    """
    from pycocotools import mask as coco_mask

    segmentation = region.segmentation
    try:
        if isinstance(segmentation, list):
            # A polygon of fewer than three points has no area.
            polygons = [p for p in segmentation if len(p) >= 6]
            if not polygons:
                return np.zeros((height, width), bool)
            runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        elif isinstance(segmentation["counts"], list):
            if sum(segmentation["counts"]) != height * width:
                raise ValueError("the run lengths do not fill the image")
            runs = coco_mask.frPyObjects(segmentation, height, width)
        else:
            runs = segmentation
        if tuple(runs["size"]) != (height, width):
            raise ValueError(f"it has size {runs['size']}, the image {[height, width]}")
        return coco_mask.decode(runs).astype(bool)
    except Exception as error:  # pycocotools raises plain Exception, too
        raise UserError(
            "An annotation's segmentation is malformed.",
            where=f"annotation {region.annotation}",
            received=f"{type(error).__name__}: {error}",
        ) from None


class CocoFinder:
    """Finds `<images_dir>/<id>.*`, for bare ids in the folders below, too."""

    def __init__(self, images_dir: str):
        self.folder = images_dir
        self._finder = common.FileFinder(images_dir)
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


def make_sources(
    images_dir: str,
    splits: dict[str, list[str]],
    instances: Instances,
    *,
    unlabelled_splits: Sequence[str] = (),
    allow_missing_masks: bool = False,
) -> dict[str, list[common.Source]]:
    """Joins lists, images and annotations.

    Raises:
      UserError: an image is missing, or stands in no instances file.
    """
    common.check_unlabelled(unlabelled_splits, splits)
    finder = CocoFinder(images_dir)
    tasks: dict[str, list[common.Source]] = {}
    for split, ids in splits.items():
        paths = common.find_all(ids, finder, split=split, what="image")
        unlabelled = split in unlabelled_splits
        missing = [i for i in ids if _stem(i) not in instances.images]
        if missing and not (unlabelled or allow_missing_masks):
            raise UserError(
                f"{len(missing)} of {len(ids)} ids of split '{split}' are in no instances file.",
                received=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
                fix="give that file with --annotations, list the split in --unlabelled_splits, or "
                "give --allow_missing_masks",
            )
        tasks[split] = []
        for i, path in zip(ids, paths):
            known = instances.images.get(_stem(i))
            labels = None
            if known is not None:
                labels = tuple(sorted({r.class_id for r in known.regions}))
            notes = ()
            if known is None and not unlabelled:
                notes = ("image without annotations (--allow_missing_masks)",)
            mask = None if unlabelled else known
            tasks[split].append(common.Source(i, path, mask, image_labels=labels, notes=notes))
    return tasks


def main(argv: list[str]) -> None:
    started = time.monotonic()
    common.require("images_dir", "annotations", "splits_dir", "output_dir")
    common.check_folder(FLAGS.images_dir, "images_dir")
    instances = read_instances(FLAGS.annotations)
    spec = instances.spec
    tasks = make_sources(
        FLAGS.images_dir,
        common.read_splits(FLAGS.splits_dir, FLAGS.splits),
        instances,
        unlabelled_splits=FLAGS.unlabelled_splits,
        allow_missing_masks=FLAGS.allow_missing_masks,
    )
    common.write(
        spec,
        tasks,
        common.Encoder(
            spec,
            max_megapixels=FLAGS.max_image_megapixels,
            exif_orientation=FLAGS.exif_orientation,
            mask_reader=MaskReader(spec.ignore_label, FLAGS.crowd == "ignore"),
        ),
        started=started,
    )


if __name__ == "__main__":
    define_flags()
    common.run(main)
