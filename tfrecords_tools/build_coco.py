"""Makes TFRecords of COCO, or of what other tools export in its format: masks from outlines.

python tfrecords_tools/build_coco.py --images_dir=coco \
    --annotations=coco/annotations/instances_train2017.json \
    --annotations=coco/annotations/instances_val2017.json \
    --splits_dir=data_splits/coco --output_dir=records

* Ids are paths below --images_dir without extension (`train2017/000000177254`); a bare id is also
  looked for in the folders below it.
* An image of the json is the file whose path below --images_dir ends in its `file_name`, or is the
  end of it, extensions aside. Sizes that the json lacks are those of the image.
* Class ids are the categories in the order of their COCO ids, from 1; 0 is background, and so is a
  category of that name. A category without annotations that only heads others is left out.
* Other tools' files have other categories. Without --splits_dir several such files are a split
  each (Roboflow's train, valid and test); of one file the splits are drawn as build_folder.py draws
  them.
* Annotations without an outline (boxes) are counted and leave the mask as it is.
* Where annotations overlap, the earlier one in the file keeps the pixel.
* Crowd regions are annotations like the others, or are ignored with --crowd=ignore (where no
  other annotation lies).
* Image-level labels are the categories of all annotations of an image.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence

from absl import flags

from tfrecords_tools import drawn_splits, program, split_flags
from tfrecords_tools.coco import lists
from tfrecords_tools.coco.instances import Instances, read_instances, shortened
from tfrecords_tools.coco.painting import ACCEPTED_OUTLINES, MaskReader, has_outline
from tfrecords_tools.coco.pairing import CocoFinder, Matcher
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import find_all, stem_of
from tfrecords_tools.id_lists import check_unlabelled, read_splits
from tfseg.data.specs import DATASETS
from tfseg.errors import UserError

FLAGS = flags.FLAGS
# Where these are the categories and no flag says what the splits are.
_COCO_LISTS = "data_splits/coco"


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder that holds train2017, val2017 and so on.")
    flags.DEFINE_multi_string(
        "annotations", None, "Instances file (json); repeat the flag for several."
    )
    split_flags.define_flags(
        without_lists=f"{_COCO_LISTS} for COCO's own categories, a split for each of several "
        "--annotations, else train, unlabelled and val are drawn"
    )
    flags.DEFINE_enum("crowd", "class", ("class", "ignore"), "What crowd regions become.")
    flags.DEFINE_enum(
        "empty_images",
        "background",
        ("background", "unlabelled"),
        "What an image without annotations in the json is: all background, or without a mask.",
    )
    program.define_output_flags(num_shards=16)
    program.define_image_flags()


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
    finder, matcher = CocoFinder(images_dir), Matcher(instances.images)
    tasks: dict[str, list[ImageSource]] = {}
    for split, lines in splits.items():
        ids = [line if finder.find(line) else stem_of(line) for line in lines]
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
                "list the split in --unlabelled_splits, or give --allow_missing_masks (with "
                "--empty_images=unlabelled images without annotations count as missing)",
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
            received=f"'segmentation': {shortened(regions[0].segmentation)} (boxes only?)",
            accepted=ACCEPTED_OUTLINES,
            fix="export outlines; or list the splits in --unlabelled_splits, where the categories "
            "serve as image-level labels",
        )


def _check_cocos_images(splits: Mapping[str, Sequence[str]], instances: Instances) -> None:
    """Insists that COCO's lists, which nobody has named, are lists of these images.

    Raises:
      UserError: not one of the images is in them.
    """
    listed = {os.path.basename(i) for ids in splits.values() for i in ids}
    if listed.isdisjoint(map(os.path.basename, instances.images)):
        raise UserError(
            f"The categories are COCO's own, so its lists ({_COCO_LISTS}) are taken; the images "
            "are not COCO's.",
            where=", ".join(FLAGS.annotations),
            received=", ".join(image.name for image in list(instances.images.values())[:3]),
            accepted=f"images of these lists, such as {next(iter(splits.values()))[0]}",
            fix="give --val_fraction=0.2, which draws the splits; or give lists with --splits_dir",
        )


def _read() -> Instances:
    """Reads --annotations and says what was left out."""
    instances = read_instances(FLAGS.annotations)
    for note in instances.notes:
        print(f"note: {note}", flush=True)
    if FLAGS.empty_images == "background":
        return instances
    annotated = {stem: image for stem, image in instances.images.items() if image.regions}
    print(f"{len(instances.images) - len(annotated)} images have no annotations", flush=True)
    return dataclasses.replace(instances, images=annotated)


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("images_dir", "annotations", "output_dir")
    program.check_folder(FLAGS.images_dir, "images_dir")
    instances = _read()
    spec = instances.spec
    draw = split_flags.asks_to_draw()
    takes_cocos_lists = not FLAGS.splits_dir and not draw and spec is DATASETS["coco"]
    if takes_cocos_lists:
        FLAGS.splits_dir = _COCO_LISTS
    split_flags.check()
    without_lists, bare = not FLAGS.splits_dir, []
    if without_lists:
        splits, bare = lists.without_lists(
            FLAGS.images_dir, instances, FLAGS.annotations, draw=draw
        )
    else:
        splits = read_splits(FLAGS.splits_dir, FLAGS.splits)
        if takes_cocos_lists:
            _check_cocos_images(read_splits(FLAGS.splits_dir), instances)
    tasks = make_sources(
        FLAGS.images_dir,
        splits,
        instances,
        unlabelled_splits=[*FLAGS.unlabelled_splits, *bare],
        allow_missing_masks=FLAGS.allow_missing_masks or without_lists,
    )
    with drawn_splits.replacing(splits if without_lists else None, FLAGS.output_dir) as earlier:
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
            together=earlier,
        )


if __name__ == "__main__":
    define_flags()
    program.run(main)
