"""Makes TFRecords of PASCAL VOC 2012, with the additional masks of SBD where they are at hand.

python tfrecords_tools/build_voc2012.py --voc_dir=VOCdevkit/VOC2012 --sbd_dir=SBD/dataset \
    --splits_dir=data_splits/pascal_voc_seg --output_dir=records

An id's mask is the first of SegmentationClass/<id>.png (official), SegmentationClassAug/<id>.png
(--aug_masks_dir) and cls/<id>.mat of SBD (--sbd_dir). Palette and index PNGs both do. Image-level
labels are the object names of Annotations/<id>.xml (difficult ones included), else the classes of
the mask. By default every list of --splits_dir but `test` is converted; `test` has no masks.
"""

import os
import time
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from absl import flags

from tfrecords_tools import program
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import FileFinder, find_all
from tfrecords_tools.id_lists import check_unlabelled, read_splits
from tfrecords_tools.masks import read_mask, read_mat, whole_ids
from tfseg.data.specs import DATASETS
from tfseg.errors import UserError

FLAGS = flags.FLAGS
SPEC = DATASETS["pascal_voc_seg"]


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string(
        "voc_dir", None, "VOCdevkit/VOC2012: the folder with JPEGImages and SegmentationClass."
    )
    flags.DEFINE_string(
        "aug_masks_dir", None, "Folder of further PNG masks; default: SegmentationClassAug there."
    )
    flags.DEFINE_string("sbd_dir", None, "SBD's folder `dataset`, with cls/<id>.mat.")
    flags.DEFINE_string("splits_dir", "data_splits/pascal_voc_seg", "Folder of <split>.txt.")
    program.define_output_flags()
    program.define_image_flags()


def read_sbd_mask(path: str) -> np.ndarray:
    """Reads GTcls.Segmentation of an SBD file, [H, W] integers.

    Raises:
      UserError: unreadable, or another structure.
    """
    ids = read_mat(
        path,
        lambda content: content["GTcls"]["Segmentation"][0, 0],
        accepted="GTcls.Segmentation",
    )
    return whole_ids(ids, where=path)


class MaskReader:
    """Reads a PNG or .mat mask; sent to the worker processes."""

    def __init__(self, max_megapixels: float):
        self._max_megapixels = max_megapixels

    def __call__(self, path: str, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
        if path.endswith(".mat"):
            return read_sbd_mask(path), []
        return read_mask(path, max_megapixels=self._max_megapixels)


def read_annotation(path: str) -> tuple[int, ...] | None:
    """Returns the classes of an annotation file, None if there is no such file.

    Raises:
      UserError: malformed, or an unknown name.
    """
    if not os.path.exists(path):
        return None
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UserError("An annotation is not XML.", where=path, received=str(error)) from None
    names = {(item.findtext("name") or "").strip() for item in root.iter("object")}
    unknown = sorted(names - set(SPEC.class_names[1:]))
    if unknown:
        raise UserError(
            "An annotation names an unknown class.",
            where=path,
            received=", ".join(unknown),
            accepted=", ".join(SPEC.class_names[1:]),
        )
    return tuple(sorted(SPEC.class_names.index(name) for name in names))


def make_sources(
    voc_dir: str,
    splits: dict[str, list[str]],
    *,
    aug_masks_dir: str | None = None,
    sbd_dir: str | None = None,
    unlabelled_splits: Sequence[str] = (),
    allow_missing_masks: bool = False,
) -> dict[str, list[ImageSource]]:
    """Joins lists, images, masks and annotations.

    Raises:
      UserError: an image or a mask is missing.
    """
    aug_masks_dir = aug_masks_dir or os.path.join(voc_dir, "SegmentationClassAug")
    finders = [
        FileFinder(os.path.join(voc_dir, "SegmentationClass")),
        FileFinder(aug_masks_dir),
    ]
    if sbd_dir:
        finders.append(FileFinder(os.path.join(sbd_dir, "cls"), (".mat",)))
    images = FileFinder(os.path.join(voc_dir, "JPEGImages"))
    annotations: dict[str, tuple[int, ...] | None] = {}
    tasks: dict[str, list[ImageSource]] = {}
    for split, ids in splits.items():
        image_paths = find_all(ids, images, split=split, what="image")
        unlabelled = split in unlabelled_splits
        masks = [None if unlabelled else _first(finders, i) for i in ids]
        missing = [] if unlabelled else [i for i, m in zip(ids, masks) if m is None]
        if missing and not allow_missing_masks:
            raise UserError(
                f"{len(missing)} of {len(ids)} ids of split '{split}' have no mask.",
                where=", ".join(finder.folder for finder in finders),
                received=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
                fix="give --sbd_dir or --aug_masks_dir (train_aug needs one of them), list the "
                "split in --unlabelled_splits, or give --allow_missing_masks",
            )
        tasks[split] = []
        for i, image, mask in zip(ids, image_paths, masks):
            if i not in annotations:
                path = os.path.join(voc_dir, "Annotations", f"{i}.xml")
                annotations[i] = read_annotation(path)
            notes = () if unlabelled or mask else ("image without a mask (--allow_missing_masks)",)
            tasks[split].append(
                ImageSource(i, image, mask, image_labels=annotations[i], notes=notes)
            )
    return tasks


def _first(finders: Sequence[FileFinder], i: str) -> str | None:
    return next((path for path in (finder.find(i) for finder in finders) if path), None)


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("voc_dir", "splits_dir", "output_dir")
    for part in ("", "JPEGImages"):
        program.check_folder(os.path.join(FLAGS.voc_dir, part), "voc_dir")
    for flag in ("aug_masks_dir", "sbd_dir"):
        if FLAGS[flag].value:
            program.check_folder(FLAGS[flag].value, flag)
    splits = read_splits(FLAGS.splits_dir, FLAGS.splits)
    if FLAGS.splits is None:
        splits.pop("test", None)
    check_unlabelled(FLAGS.unlabelled_splits, splits)
    tasks = make_sources(
        FLAGS.voc_dir,
        splits,
        aug_masks_dir=FLAGS.aug_masks_dir,
        sbd_dir=FLAGS.sbd_dir,
        unlabelled_splits=(*FLAGS.unlabelled_splits, "test"),
        allow_missing_masks=FLAGS.allow_missing_masks,
    )
    program.write(
        SPEC,
        tasks,
        Encoder(
            SPEC,
            max_megapixels=FLAGS.max_image_megapixels,
            exif_orientation=FLAGS.exif_orientation,
            mask_reader=MaskReader(FLAGS.max_image_megapixels),
        ),
        started=started,
    )


if __name__ == "__main__":
    define_flags()
    program.run(main)
