"""Makes TFRecords of anyone's images: a folder of images, one of masks, one of lists.

python tfrecords_tools/build_folder.py --images_dir=images --masks_dir=masks --splits_dir=lists \
    --class_names=classes.txt --output_dir=records

* --splits_dir holds one <split>.txt per split with one id a line, with or without extension; or, as
  published lists do, `JPEGImages/x.jpg SegmentationClass/x.png`. Without it the splits are drawn:
  `val` (--val_fraction), `train` (--labelled images with masks) and `unlabelled` (the others, and
  all images without masks), with every class in each; the lists stay in OUTPUT_DIR/lists. Without
  --masks_dir, --image_labels makes all images the split `unlabelled`.
* --class_names is a text file with one name a line and nothing else (or `id,name` with the ids 0,
  1, 2 and so on); its line number, from 0, is the class id, and the first is background
  (--has_background=false where there is none).
* Masks are one-channel images of class ids, or palette PNGs, whose indices are the ids. Every id of
  a split needs one of its own name, unless the split stands in --unlabelled_splits. Masks may lie
  beside the images (--masks_dir the same folder) and have an ending (--mask_suffix=_mask), which is
  looked for where none is given, and told.
* --class_colors in place of --class_names is a CSV `name,r,g,b`: masks have a colour for each
  class. A colour that is no class is an error, unless --void_color names it.
* --image_labels is a CSV `id,name name ...` of the classes in each image (separated by ';' where
  names hold spaces), or `id,NAME,NAME,...` with a column of 0 and 1 for each class. An image
  without a line takes the classes of its mask. Without a line and a mask its classes are unknown.
* --label_map is a JSON file {"from": to} of mask ids. Map an id to the ignore label, and its pixels
  are ignored.

Images keep their JPEG or PNG bytes; what is neither, or not RGB, becomes RGB PNG: of 16 bits the
high byte is kept, floating-point values within 0 and 1 are multiplied by 255.
"""

import functools
import os
import time
from collections.abc import Mapping, Sequence

from absl import flags

from tfrecords_tools import (
    class_files,
    color_masks,
    drawn_splits,
    file_finder,
    list_lines,
    mask_names,
    palettes,
    program,
    split_flags,
)
from tfrecords_tools.class_files import read_class_names
from tfrecords_tools.color_masks import ColorMaskReader
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import FileFinder, composed, ids_below, stem_of
from tfrecords_tools.id_lists import check_unlabelled, read_splits
from tfrecords_tools.image_label_files import ImageLabels, read_image_labels
from tfrecords_tools.list_lines import Listed
from tfrecords_tools.text_files import read_json
from tfrecords_tools.unknown_values import told_of_all
from tfseg.data.specs import UNLABELLED_SPLIT, DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
_NAMED = 5


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder of images.")
    flags.DEFINE_string(
        "masks_dir",
        None,
        "Folder of masks. None: no image has a mask; --splits_dir or --image_labels is needed "
        "then.",
    )
    flags.DEFINE_string(
        "mask_suffix",
        None,
        "Ending of a mask's name after the name of its image, for example _mask. None: the program "
        "looks for an ending if no mask has the name of its image. Without --masks_dir the masks "
        "lie beside the images.",
    )
    split_flags.define_flags()
    flags.DEFINE_string("class_names", None, "Text file, one class name a line, in id order.")
    flags.DEFINE_string(
        "class_colors",
        None,
        "CSV 'name,r,g,b' in place of --class_names, if masks have a colour for each class.",
    )
    flags.DEFINE_multi_string(
        "void_color",
        [],
        "With --class_colors: a colour r,g,b whose pixels are ignored; may be repeated.",
    )
    flags.DEFINE_string(
        "image_labels",
        None,
        "CSV of lines id,name name ..., or with a column of 0 and 1 for each class.",
    )
    flags.DEFINE_string(
        "image_labels_column",
        None,
        "Header of the column of names in --image_labels; needed if the CSV has more than two.",
    )
    flags.DEFINE_bool(
        "ignore_unknown_labels", False, "Names that are no class are counted and are no error."
    )
    flags.DEFINE_string("label_map", None, 'JSON file {"from": to} of mask ids.')
    flags.DEFINE_integer("ignore_label", 255, "Mask id (after --label_map) of ignored pixels.")
    flags.DEFINE_bool("has_background", True, "The first class is background.")
    flags.DEFINE_string("name", "folder", "Name of the data set in dataset.json.")
    program.define_output_flags()
    program.define_image_flags()


def read_label_map(path: str, spec: DatasetSpec) -> dict[int, int]:
    """Reads {"from": to}.

    Raises:
      UserError: not such an object, or a target that is no class.
    """
    accepted = '{"0": 0, "8": 1, "255": 255}'
    try:
        content = read_json(path, {str: int}, what="--label_map", accepted=accepted)
        label_map = {int(key): value for key, value in content.items()}
        if len(label_map) != len(content):
            raise ValueError("an id stands there twice")
    except ValueError as error:
        raise UserError(
            "--label_map is not a JSON object of integers.",
            where=path,
            received=str(error),
            accepted=accepted,
        ) from None
    wrong = sorted(
        {v for v in label_map.values() if v != spec.ignore_label and not 0 <= v < spec.num_classes}
    )
    if wrong:
        raise UserError(
            "--label_map maps to ids that are no class.",
            where=path,
            received=", ".join(map(str, wrong)),
            accepted=f"0 to {spec.num_classes - 1}, and {spec.ignore_label} (ignore)",
        )
    return label_map


def make_sources(
    splits: Mapping[str, Sequence[str]],
    images: FileFinder,
    masks: FileFinder | None,
    image_labels: ImageLabels | None,
    *,
    unlabelled_splits: Sequence[str] = (),
    allow_missing_masks: bool = False,
) -> dict[str, list[ImageSource]]:
    """Joins lists, images, masks and image-level labels.

    Args:
      splits: lines of lists by split, see `list_lines`.
      images, masks: find the files; without masks no image has one.
      image_labels: by id, or None.
      unlabelled_splits: written without masks.
      allow_missing_masks: write images without a mask without one.

    Raises:
      UserError: an image or a mask is missing, or the CSV has none of the ids.
    """
    check_unlabelled(unlabelled_splits, splits)
    tasks: dict[str, list[ImageSource]] = {}
    for split, lines in splits.items():
        listed = list_lines.resolve(lines, images, masks)
        file_finder.check_found(
            lines, [entry.image for entry in listed], images, split=split, what="image"
        )
        unlabelled = split in unlabelled_splits or masks is None
        paths = _masks_of(split, listed, masks, unlabelled, allow_missing_masks)
        tasks[split] = []
        for entry, mask in zip(listed, paths):
            notes = []
            if mask is None and not unlabelled:
                notes.append("image without a mask (--allow_missing_masks)")
            labels = None if image_labels is None else image_labels.of(entry.id)
            if image_labels is not None and labels is None:
                known = (
                    "unknown, and a training with --weakly stops at it"
                    if mask is None
                    else "those of its mask"
                )
                notes.append(f"image without a line in the CSV: its image-level labels are {known}")
            tasks[split].append(
                ImageSource(
                    entry.id,
                    entry.image,
                    mask,
                    image_labels=labels,
                    notes=tuple(notes),
                )
            )
    if image_labels is not None:
        _check_lines(image_labels, [s for sources in tasks.values() for s in sources])
    return tasks


def _check_lines(image_labels: ImageLabels, sources: Sequence[ImageSource]) -> None:
    """Tells of lines of the CSV that are of no image.

    Raises:
      UserError: all are, and some image has no mask that tells its labels.
    """
    used = {name for s in sources for name in (s.id, stem_of(s.id))}
    left = [i for i in image_labels.ids if i not in used]
    if not left:
        return
    if len(left) == len(image_labels.ids) and any(s.mask is None for s in sources):
        raise UserError(
            "The CSV of image-level labels has a line for none of the images.",
            received=", ".join(left[:3]),
            accepted="ids as in the lists, such as " + sources[0].id,
            fix="write the ids of the lists into the CSV, with or without extension",
        )
    print(
        f"note: {len(left)} of {len(image_labels.ids)} lines of the CSV of image-level labels are "
        f"of no image that is converted: {', '.join(left[:_NAMED])}",
        flush=True,
    )


def _masks_of(
    split: str,
    listed: Sequence[Listed],
    masks: FileFinder | None,
    unlabelled: bool,
    allow_missing: bool,
) -> list[str | None]:
    """Returns the masks of a split: those that its lines name, those of the names of the others."""
    if unlabelled:
        return [None] * len(listed)
    unnamed = [entry.id for entry in listed if entry.mask is None]
    found: dict[str, str | None] = {}
    if unnamed:
        paths = file_finder.mask_paths(
            split, unnamed, masks, unlabelled=False, allow_missing=allow_missing
        )
        found = dict(zip(unnamed, paths))
    return [entry.mask or found[entry.id] for entry in listed]


def _finders(ids: Sequence[str]) -> tuple[FileFinder, FileFinder | None]:
    """Returns what finds images and masks by their names, and says so where that is by their kinds.

    Args:
      ids: of some images at least.
    """
    if not FLAGS.masks_dir:
        return FileFinder(FLAGS.images_dir), None
    if FLAGS.mask_suffix is None:
        found = mask_names.by_kind(FLAGS.images_dir, FLAGS.masks_dir, ids)
        if found:
            print("masks: the lossless files beside the JPEG images of their names", flush=True)
            return found[0], found[1]
    return FileFinder(FLAGS.images_dir), FileFinder(FLAGS.masks_dir)


def _with_suffix(masks: FileFinder, ids: Sequence[str]) -> FileFinder:
    """Returns what finds masks by --mask_suffix, or by an ending that is looked for and told."""
    suffix = FLAGS.mask_suffix
    if suffix is None and mask_names.are_whole_names(FLAGS.images_dir, FLAGS.masks_dir, ids):
        print("masks: files of the whole name of their image (a.jpg.png)", flush=True)
        return FileFinder(masks.folder, masks.extensions, whole_names=True)
    if suffix is None:
        suffix, count = mask_names.by_ending(FLAGS.images_dir, FLAGS.masks_dir, ids)
        if suffix:
            print(
                f"masks: files that end in '{suffix}' (--mask_suffix={suffix}), which fits "
                f"{count} images",
                flush=True,
            )
    return FileFinder(masks.folder, masks.extensions, suffix)


def _given_lists() -> tuple[dict[str, list[str]], FileFinder, FileFinder | None]:
    """Reads --splits_dir; returns the lines of each split, and what finds images and masks."""
    splits = read_splits(FLAGS.splits_dir, FLAGS.splits)
    if not FLAGS.masks_dir and any(map(list_lines.names_masks, splits.values())):
        FLAGS.masks_dir = FLAGS.images_dir
    images, masks = _finders([stem_of(line) for lines in splits.values() for line in lines])
    if masks is None or masks.extensions != images.extensions:
        return splits, images, masks
    with_masks = [lines for name, lines in splits.items() if name not in FLAGS.unlabelled_splits]
    ids = [
        entry.id
        for lines in with_masks
        for entry in list_lines.resolve(lines, images, masks)
        if entry.image is not None and entry.mask is None
    ]
    return splits, images, _with_suffix(masks, ids) if ids else masks


def _drawn_lists(
    encoder: Encoder,
) -> tuple[dict[str, list[str]], list[str], FileFinder, FileFinder]:
    """Draws the lists of the images below --images_dir, and says so.

    Args:
      encoder: reads the masks.

    Returns:
      The ids of each split, the splits in which no image has a mask, what finds images and masks.

    Raises:
      UserError: see `drawn_splits`.
    """
    masks_dir = os.path.realpath(FLAGS.masks_dir)
    images, masks = _finders(ids_below(FileFinder(FLAGS.images_dir), without=masks_dir))
    ids = ids_below(images, without=masks_dir, tell_others=True)
    if masks.extensions == images.extensions:
        masks = _with_suffix(masks, ids)
    if masks.suffix:
        mask_names.check_one_each(masks, ids)
    if masks.suffix and mask_names.is_one_folder(FLAGS.images_dir, masks_dir):
        ids = [i for i in ids if not i.endswith(masks.suffix)]
    for i in ids:
        images.find(i)  # Says which files have one id.
    paths = {i: path for i in ids if (path := masks.find(i)) is not None}
    if not paths:
        # Says what the folder of masks has instead.
        file_finder.find_all(ids, masks, split="train", what="mask")
    _tell_without_image(paths, masks)
    classes = drawn_splits.classes_of_masks(paths, encoder, num_workers=FLAGS.num_workers)
    splits, bare = split_flags.draw(classes, [i for i in ids if i not in paths])
    return splits, bare, images, masks


def _image_labels_alone() -> tuple[dict[str, list[str]], FileFinder]:
    """Puts all images below --images_dir into one split, and says so.

    Returns:
      The ids of the split, and what finds the images.
    """
    images = FileFinder(FLAGS.images_dir)
    ids = ids_below(images, tell_others=True)
    for i in ids:
        images.find(i)  # Says which files have one id.
    print(
        f"no --masks_dir: all {len(ids)} images are in split {UNLABELLED_SPLIT}, without a mask",
        flush=True,
    )
    return {UNLABELLED_SPLIT: ids}, images


def _tell_without_image(paths: Mapping[str, str], masks: FileFinder) -> None:
    """Prints which masks belong to no image."""
    used = {composed(i + masks.suffix) for i in paths}
    together = mask_names.is_one_folder(FLAGS.images_dir, masks.folder)
    without = None if together else os.path.realpath(FLAGS.images_dir)
    there = ids_below(masks, without=without, what="masks", tell_others=not together)
    left = [i for i in there if i.endswith(masks.suffix) and i not in used]
    if left:
        print(
            f"note: {len(left)} masks have no image of their name and were left out: "
            + ", ".join(left[:_NAMED]),
            flush=True,
        )


def _classes() -> tuple[DatasetSpec, ColorMaskReader | None]:
    """Returns the data set as the flags describe it, and what reads masks of colours.

    Raises:
      UserError: there are no classes, or they are told twice or wrongly.
    """
    if bool(FLAGS.class_names) == bool(FLAGS.class_colors):
        raise UserError(
            "The classes are told by one file.",
            where="--class_names, --class_colors",
            received="both" if FLAGS.class_names else "neither",
            accepted="--class_names for masks of class ids, --class_colors for coloured masks",
        )
    if FLAGS.void_color and not FLAGS.class_colors:
        raise UserError("--void_color needs --class_colors.", where="--void_color")
    where = FLAGS.class_names or FLAGS.class_colors
    if FLAGS.class_names:
        names = read_class_names(where, has_background=FLAGS.has_background)
        colors = None
    else:
        of_class = color_masks.read_class_colors(where)
        names, colors = tuple(of_class), list(of_class.values())
    if len(names) < 2:
        raise UserError(
            "--class_names needs 2 names or more.",
            where=where,
            received=names[0],
            accepted="one class name a line; the first is background (or --has_background=false)",
            fix="write each name on a line of its own",
        )
    class_files.check_ignore_label(names, FLAGS.ignore_label, where=where)
    spec = DatasetSpec(
        name=FLAGS.name,
        class_names=names,
        ignore_label=FLAGS.ignore_label,
        has_background=FLAGS.has_background,
        palette=None if colors is None else tuple(colors),
    )
    if FLAGS.class_names:
        return spec, None
    ids = {color: k for k, color in enumerate(colors)}
    for color in map(color_masks.parse_color, FLAGS.void_color):
        if color in ids:
            raise UserError(
                "--void_color is the colour of a class.",
                where="--void_color",
                received=",".join(map(str, color)),
                fix=f"leave it out, or take the class '{names[ids[color]]}' out of {where}",
            )
        ids[color] = FLAGS.ignore_label
    return spec, ColorMaskReader(ids, FLAGS.max_image_megapixels)


def _told_image_labels(spec: DatasetSpec) -> ImageLabels:
    """Reads --image_labels and says which of its names are no class."""
    found = read_image_labels(
        FLAGS.image_labels,
        spec,
        column=FLAGS.image_labels_column,
        ignore_unknown=FLAGS.ignore_unknown_labels,
    )
    if found.unknown:
        listed = ", ".join(f"{n} ({k} x)" for n, k in sorted(found.unknown.items()))
        print(f"ignored image-level names that are no class: {listed}", flush=True)
    for note in found.notes:
        print(f"note: {note}", flush=True)
    return found


def _check_flags() -> None:
    """Insists on flags that fit each other.

    Raises:
      UserError: they do not.
    """
    program.require("images_dir", "output_dir")
    split_flags.check()
    program.check_folder(FLAGS.images_dir, "images_dir")
    if FLAGS.mask_suffix and not FLAGS.masks_dir:
        FLAGS.masks_dir = FLAGS.images_dir
    if FLAGS.masks_dir:
        program.check_folder(FLAGS.masks_dir, "masks_dir")
    elif not FLAGS.splits_dir and (not FLAGS.image_labels or split_flags.asks_to_draw()):
        raise UserError(
            "Lists are drawn among images with masks.",
            where="--masks_dir",
            fix="give --masks_dir (the folder of images again where masks lie beside them), or "
            "lists of your own with --splits_dir; if there is no mask, give --image_labels alone",
        )
    if not 0 <= FLAGS.ignore_label <= 255:
        raise UserError("--ignore_label must lie within 0 and 255.", received=FLAGS.ignore_label)
    if FLAGS.image_labels_column and not FLAGS.image_labels:
        raise UserError("--image_labels_column needs --image_labels.")


def main(argv: list[str]) -> None:
    started = time.monotonic()
    _check_flags()
    spec, mask_reader = _classes()
    encoder = Encoder(
        spec,
        label_map=read_label_map(FLAGS.label_map, spec) if FLAGS.label_map else None,
        max_megapixels=FLAGS.max_image_megapixels,
        exif_orientation=FLAGS.exif_orientation,
        mask_reader=mask_reader,
    )
    image_labels = _told_image_labels(spec) if FLAGS.image_labels else None
    drawn, bare = bool(FLAGS.masks_dir) and not FLAGS.splits_dir, []
    if drawn:
        splits, bare, images, masks = _drawn_lists(encoder)
    elif FLAGS.splits_dir:
        splits, images, masks = _given_lists()
    else:
        (splits, images), masks = _image_labels_alone(), None
    tasks = make_sources(
        splits,
        images,
        masks,
        image_labels,
        unlabelled_splits=[*FLAGS.unlabelled_splits, *bare],
        allow_missing_masks=FLAGS.allow_missing_masks or drawn,
    )
    paths = sorted({s.mask for sources in tasks.values() for s in sources if s.mask is not None})
    if mask_reader is None:
        palettes.check(
            paths, max_megapixels=FLAGS.max_image_megapixels, num_workers=FLAGS.num_workers
        )
    look = functools.partial(encoder.read_ids, size=(0, 0))
    with (
        told_of_all(paths, look, num_workers=FLAGS.num_workers),
        drawn_splits.replacing(splits if drawn else None, FLAGS.output_dir) as earlier,
    ):
        program.write(spec, tasks, encoder, started=started, together=earlier)


if __name__ == "__main__":
    define_flags()
    program.run(main)
