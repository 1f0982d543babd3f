"""Makes TFRecords of images that were annotated with labelme.

python tfrecords_tools/build_labelme.py --images_dir=photos --output_dir=records

* Every .json below --annotations_dir (by default --images_dir) is read. Its image is the file of
  its `imagePath`, beside it or below --images_dir, or the file of its own name; where there is
  none, the image that is embedded in it.
* Polygons, rectangles, circles and masks are painted in the order of the file, later ones over
  earlier ones. Lines and points have no area: they are counted and not painted.
* Pixels of `__ignore__` and --void_label are ignored. `_background_` is class 0. The classes are
  the other labels in alphabetical order, or those of --class_names (labelme's labels.txt).
* Images without a .json become split `unlabelled`; those whose .json has no shapes are all
  background. The splits are drawn as build_folder.py draws them, or given with --splits_dir.
* Image-level labels are the labels of all shapes of an image.
"""

import time
from collections.abc import Mapping, Sequence

from absl import flags

from tfrecords_tools import class_files, drawn_splits, program, split_flags
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import stem_of
from tfrecords_tools.id_lists import check_unlabelled, read_splits
from tfrecords_tools.labelme.annotation import Annotation
from tfrecords_tools.labelme.painting import IGNORED, MaskReader, classes_of, has_area, ids_of
from tfrecords_tools.labelme.pairing import Annotated, read_folder
from tfrecords_tools.text_files import read_text
from tfseg.data.class_names import is_background
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
_IGNORE_LABEL = 255


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder of images.")
    flags.DEFINE_string("annotations_dir", None, "Folder of the .json files; None: --images_dir.")
    flags.DEFINE_string(
        "class_names",
        None,
        "Text file, one class name a line, in id order, background first. None: the labels in "
        "alphabetical order.",
    )
    flags.DEFINE_multi_string(
        "void_label",
        [],
        "A label whose pixels are ignored, like those of __ignore__; may be repeated.",
    )
    flags.DEFINE_string("name", "labelme", "Name of the data set in dataset.json.")
    split_flags.define_flags()
    program.define_output_flags()
    program.define_image_flags()
    # labelme shows images turned by their tag, and points are pixels of what it shows.
    FLAGS.set_default("exif_orientation", "apply")


def read_names(path: str) -> tuple[str, ...]:
    """Reads names of classes; labelme's labels.txt begins with `__ignore__`, which is none.

    Raises:
      UserError: see `class_files.parse`.
    """
    lines = read_text(path).splitlines()
    named = "\n".join(line for line in lines if line.strip() != IGNORED)
    names = class_files.parse(named, where=path, has_background=True)
    if is_background(names[0]):
        return names
    return ("background", *names)


def names_of(annotations: Sequence[Annotation], void_labels: Sequence[str]) -> tuple[str, ...]:
    """Returns background and the labels of all shapes in alphabetical order.

    Raises:
      UserError: there are none.
    """
    labels = {shape.label for annotation in annotations for shape in annotation.shapes}
    labels -= {IGNORED, *void_labels}
    names = sorted(label for label in labels if not is_background(label))
    if not names:
        raise UserError(
            "No shape has a label that is a class.",
            where="--annotations_dir",
            received=f"{len(annotations)} files of labelme",
            fix="draw shapes, or give the classes with --class_names",
        )
    return ("background", *names)


def make_sources(
    splits: Mapping[str, Sequence[str]],
    found: Mapping[str, Annotated],
    ids: Mapping[str, int],
    *,
    unlabelled_splits: Sequence[str] = (),
    allow_missing_masks: bool = False,
) -> dict[str, list[ImageSource]]:
    """Joins lists, images and annotations.

    Args:
      splits: ids by split, with or without extension.
      found: of `read_folder`.
      ids: class id of each label.
      unlabelled_splits: written without masks.
      allow_missing_masks: write images without an annotation without a mask.

    Raises:
      UserError: an image or an annotation is missing.
    """
    check_unlabelled(unlabelled_splits, splits)
    tasks: dict[str, list[ImageSource]] = {}
    for split, lines in splits.items():
        names = [stem_of(line) for line in lines]
        _check_there(split, names, found)
        unlabelled = split in unlabelled_splits
        missing = [i for i in names if found[i].annotation is None]
        if missing and not (unlabelled or allow_missing_masks):
            raise UserError(
                f"{len(missing)} of {len(names)} ids of split '{split}' have no .json of labelme.",
                received=", ".join(missing[:5]),
                fix="annotate them, list the split in --unlabelled_splits, or give "
                "--allow_missing_masks",
            )
        tasks[split] = []
        for i in names:
            annotation, notes, labels = found[i].annotation, [], None
            if annotation is not None:
                labels = classes_of(annotation.shapes, ids)
            elif not unlabelled:
                notes.append("image without a .json")
            if not isinstance(found[i].image, str):
                notes.append("image taken from its .json (imageData), as there is no such file")
            mask = None if unlabelled else annotation
            tasks[split].append(
                ImageSource(i, found[i].image, mask, image_labels=labels, notes=tuple(notes))
            )
    return tasks


def _check_there(split: str, names: Sequence[str], found: Mapping[str, Annotated]) -> None:
    missing = [i for i in names if i not in found]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} ids of split '{split}' have no image.",
            where="--splits_dir",
            received=", ".join(missing[:5]),
            accepted=f"paths below --images_dir, such as {', '.join(list(found)[:3])}",
            fix="check the list and the folder",
        )


def _spec(annotations: Sequence[Annotation]) -> DatasetSpec:
    """Returns the data set as the flags and the labels describe it, and says which classes it has.

    Raises:
      UserError: no classes, or too many.
    """
    if FLAGS.class_names:
        names = read_names(FLAGS.class_names)
    else:
        names = names_of(annotations, FLAGS.void_label)
        print(f"classes: {', '.join(names)} (--class_names sets another order)", flush=True)
    class_files.check_ignore_label(names, _IGNORE_LABEL, where="--class_names, or the labels")
    return DatasetSpec(name=FLAGS.name, class_names=names, ignore_label=_IGNORE_LABEL)


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("images_dir", "output_dir")
    split_flags.check()
    annotations_dir = FLAGS.annotations_dir or FLAGS.images_dir
    program.check_folder(FLAGS.images_dir, "images_dir")
    program.check_folder(annotations_dir, "annotations_dir")
    found = read_folder(FLAGS.images_dir, annotations_dir, num_workers=FLAGS.num_workers)
    annotations = [entry.annotation for entry in found.values() if entry.annotation is not None]
    spec = _spec(annotations)
    ids = ids_of(annotations, spec.class_names, FLAGS.void_label, spec.ignore_label)
    drawn, bare = not FLAGS.splits_dir, []
    if drawn:
        classes = {
            i: classes_of(filter(has_area, entry.annotation.shapes), ids)
            for i, entry in found.items()
            if entry.annotation is not None
        }
        splits, bare = split_flags.draw(classes, [i for i in found if i not in classes])
    else:
        splits = read_splits(FLAGS.splits_dir, FLAGS.splits)
    with drawn_splits.replacing(splits if drawn else None, FLAGS.output_dir) as earlier:
        program.write(
            spec,
            make_sources(
                splits,
                found,
                ids,
                unlabelled_splits=[*FLAGS.unlabelled_splits, *bare],
                allow_missing_masks=FLAGS.allow_missing_masks or drawn,
            ),
            Encoder(
                spec,
                max_megapixels=FLAGS.max_image_megapixels,
                exif_orientation=FLAGS.exif_orientation,
                mask_reader=MaskReader(ids),
            ),
            started=started,
            together=earlier,
        )


if __name__ == "__main__":
    define_flags()
    program.run(main)
