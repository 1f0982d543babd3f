"""Makes TFRecords of anyone's images: a folder of images, one of masks, one of lists.

python tfrecords_tools/build_folder.py --images_dir=images --masks_dir=masks --splits_dir=lists \
    --class_names=classes.txt --output_dir=records

* --splits_dir holds one <split>.txt per split with one id a line, without extension. Without it the
  splits are drawn: `val` (--val_fraction), `train` (--labelled images with masks) and `unlabelled`
  (the others, and all images without masks), with every class in each; the lists stay in
  OUTPUT_DIR/lists.
* --class_names is a text file with one name a line and nothing else; its line number, from 0, is
  the class id, and the first is background (--has_background=false where there is none).
* Masks are one-channel images of class ids, or palette PNGs, whose indices are the ids. Every id of
  a split needs one of its own name, unless the split stands in --unlabelled_splits.
* --class_colors in place of --class_names is a CSV `name,r,g,b`: masks have a colour for each
  class. A colour that is no class is an error, unless --void_color names it.
* --image_labels is a CSV `id,name name ...` of the classes in each image (separated by ';' where
  names hold spaces); without it they are those of the mask, and unknown without a mask.
* --label_map is a JSON file {"from": to} of mask ids; to the ignore label what shall not count.

Images keep their JPEG or PNG bytes; what is neither, or not RGB, becomes RGB PNG: of 16 bits the
high byte is kept, floating-point values within 0 and 1 are multiplied by 255.
"""

import csv
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from absl import flags

from tfrecords_tools import class_files, color_masks, drawn_splits, file_finder, program
from tfrecords_tools.class_files import read_class_names
from tfrecords_tools.color_masks import ColorMaskReader
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import FileFinder, composed, find_all
from tfrecords_tools.id_lists import check_unlabelled, read_splits
from tfrecords_tools.text_files import read_json, read_text
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
# Cells of a CSV with a column for each class.
_ONE_HOT = frozenset({"", "0", "1", "-1", "0.0", "1.0", "false", "true", "no", "yes"})
# First cells that make a CSV's first line a header.
_ID_HEADERS = frozenset({"id", "ids", "image", "image_id", "filename", "file", "name"})


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder of images.")
    flags.DEFINE_string("masks_dir", None, "Folder of masks; without it all splits are unlabelled.")
    flags.DEFINE_string(
        "splits_dir",
        None,
        "Folder of <split>.txt, one id a line; without it train, unlabelled and val are drawn.",
    )
    flags.DEFINE_float(
        "val_fraction", 0.2, "Without --splits_dir: share of the images with masks that is val."
    )
    flags.DEFINE_integer(
        "labelled",
        None,
        "Without --splits_dir: images of train. Those left over are unlabelled; their masks stay "
        "in the records, and only monitors see them. None: all that are not val.",
    )
    flags.DEFINE_integer("seed", 0, "Without --splits_dir: of the draw.")
    flags.DEFINE_string("class_names", None, "Text file, one class name a line, in id order.")
    flags.DEFINE_string(
        "class_colors",
        None,
        "CSV 'name,r,g,b' in place of --class_names, where masks have a colour for each class.",
    )
    flags.DEFINE_multi_string(
        "void_color",
        [],
        "With --class_colors: a colour r,g,b of masks that counts nowhere; may be repeated.",
    )
    flags.DEFINE_string("image_labels", None, "CSV: id,name name ...")
    flags.DEFINE_string(
        "image_labels_column", None, "Header of that CSV's column; needed if it has more than two."
    )
    flags.DEFINE_bool(
        "ignore_unknown_labels", False, "Count names that are no class instead of stopping."
    )
    flags.DEFINE_string("label_map", None, 'JSON file {"from": to} of mask ids.')
    flags.DEFINE_integer("ignore_label", 255, "Mask id (after --label_map) that counts nowhere.")
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


@dataclasses.dataclass(frozen=True)
class ImageLabels:
    """Image-level labels of a CSV: class ids by image id; names that are no class, counted."""

    ids: Mapping[str, tuple[int, ...]]
    unknown: Mapping[str, int]


def _pick_columns(
    rows: list[list[str]], column: str | None, class_names: Collection[str], path: str
) -> tuple[int, int, bool]:
    """Returns (column of ids, column of names, whether there is a header)."""
    header = [cell.strip() for cell in rows[0]]
    if column is not None:
        if column not in header:
            raise UserError(
                "--image_labels_column is not in the CSV's first line.",
                where=path,
                received=column,
                accepted=", ".join(header),
            )
        lower = [cell.lower() for cell in header]
        return (lower.index("id") if "id" in lower else 0), header.index(column), True
    if len(header) != 2:
        hot = [k for k in range(1, len(header)) if _is_one_hot(row[k : k + 1] for row in rows[1:])]
        if hot and (len(hot) == len(header) - 1 or any(header[k] in class_names for k in hot)):
            raise _one_hot_error(path, ", ".join(header))
        fix = "put a comma between id and names"
        if len(header) > 2:
            fix = "name the column with --image_labels_column"
        if len(header) > 2 and all(cell in class_names for cell in header[1:]):
            fix = "put ';' between the names of an image"
        raise UserError(
            "The CSV of image-level labels does not have two columns.",
            where=path,
            received=f"{len(header)} columns: {', '.join(header)}",
            accepted="id,name name ..., with a comma between id and names",
            fix=fix,
        )
    return 0, 1, header[0].lower() in _ID_HEADERS


def _is_one_hot(rows: Iterable[Sequence[str]]) -> bool:
    """Says whether cells, one row an image, are 0 and 1 and not names."""
    cells = {cell.strip().lower() for row in rows for cell in row}
    return bool(cells - {""}) and cells <= _ONE_HOT


def _one_hot_error(path: str, received: str) -> UserError:
    return UserError(
        "The CSV of image-level labels has a column of 0 and 1 for each class (one-hot).",
        where=path,
        received=received,
        accepted="id,name name ...: the names of the classes of each image in one column",
        fix="write for each image the names of the columns that hold 1, with ';' between them",
    )


def _split_names(cell: str, class_id: Mapping[str, int]) -> list[str]:
    """Splits "cat dog", "cat;traffic light" and "traffic light" where that is one class."""
    if cell.strip() in class_id:
        return [cell.strip()]
    names = cell.split(";") if ";" in cell else cell.split()
    return [name.strip() for name in names if name.strip()]


def read_image_labels(
    path: str, spec: DatasetSpec, *, column: str | None = None, ignore_unknown: bool = False
) -> ImageLabels:
    """Reads image-level labels.

    Args:
      path: CSV; the first line is a header if `column` is given or its first cell says so ('id').
      spec: the classes; background cannot be named.
      column: header of the column of names.
      ignore_unknown: count names that are no class.

    Raises:
      UserError: malformed, an id twice, or unknown names.
    """
    try:
        rows = [row for row in csv.reader(read_text(path).splitlines()) if row]
    except csv.Error as error:
        raise UserError("A CSV cannot be read.", where=path, received=str(error)) from None
    if not rows:
        raise UserError("The CSV of image-level labels is empty.", where=path)
    class_id = {n: k for k, n in enumerate(spec.class_names) if k >= spec.first_image_class}
    id_column, name_column, has_header = _pick_columns(rows, column, class_id, path)
    named = [row[name_column : name_column + 1] for row in rows[has_header:]]
    if not _ONE_HOT & set(class_id) and _is_one_hot(named):
        raise _one_hot_error(path, ", ".join(rows[0]))
    labels: dict[str, tuple[int, ...]] = {}
    unknown: Counter = Counter()
    for number, row in enumerate(rows[has_header:], start=1 + has_header):
        if len(row) != len(rows[0]):
            raise UserError(
                "A line of the CSV has another number of columns.",
                where=f"{path}, line {number}",
                received=len(row),
                accepted=len(rows[0]),
            )
        cell = row[name_column]
        names = _split_names(cell, class_id)
        image_id = composed(row[id_column].strip())
        if image_id in labels:
            raise UserError(
                "The CSV holds an id twice.", where=f"{path}, line {number}", received=image_id
            )
        unknown.update(n for n in names if n not in class_id)
        labels[image_id] = tuple(sorted({class_id[n] for n in names if n in class_id}))
    none_known = bool(unknown) and not any(labels.values())
    if unknown and (none_known or not ignore_unknown):
        raise UserError(
            "The CSV of image-level labels names "
            + ("unknown classes only." if none_known else "unknown classes."),
            where=path,
            received=", ".join(f"{n} ({k} x)" for n, k in unknown.most_common(20)),
            accepted=", ".join(class_id),
            fix="correct the names"
            + ("" if none_known else ", or give --ignore_unknown_labels to leave them out"),
        )
    return ImageLabels(labels, unknown)


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

    Raises:
      UserError: an image or a mask is missing, or the CSV has none of the ids.
    """
    check_unlabelled(unlabelled_splits, splits)
    tasks: dict[str, list[ImageSource]] = {}
    for split, ids in splits.items():
        image_paths = find_all(ids, images, split=split, what="image")
        unlabelled = split in unlabelled_splits or masks is None
        mask_paths = file_finder.mask_paths(
            split, ids, masks, unlabelled=unlabelled, allow_missing=allow_missing_masks
        )
        tasks[split] = []
        for i, image, mask in zip(ids, image_paths, mask_paths):
            notes = []
            if mask is None and not unlabelled:
                notes.append("image without a mask (--allow_missing_masks)")
            labels = None if image_labels is None else image_labels.ids.get(composed(i))
            if image_labels is not None and labels is None:
                notes.append("image without a line in the CSV: its image-level labels are unknown")
            tasks[split].append(
                ImageSource(
                    i,
                    image,
                    mask,
                    image_labels=labels,
                    image_labels_unknown=image_labels is not None,
                    notes=tuple(notes),
                )
            )
    if image_labels is not None and not any(
        s.image_labels is not None for sources in tasks.values() for s in sources
    ):
        raise UserError(
            "The CSV of image-level labels has a line for none of the images.",
            received=", ".join(list(image_labels.ids)[:3]),
            accepted="ids as in the lists, such as " + next(iter(tasks.values()))[0].id,
            fix="write the ids of the lists into the CSV, without extension",
        )
    return tasks


# What is meant only where lists are drawn, and only where they are given.
_OF_DRAWN, _OF_GIVEN = ("val_fraction", "labelled", "seed"), ("splits",)


def _check_lists() -> None:
    """Insists on flags that say one thing about the lists.

    Raises:
      UserError: a flag of drawn lists with --splits_dir, or the other way round; or no masks.
    """
    given = bool(FLAGS.splits_dir)
    for name in _OF_DRAWN if given else _OF_GIVEN:
        if FLAGS[name].present:
            raise UserError(
                f"--{name} is for lists that are {'drawn' if given else 'given'}.",
                where=f"--{name}",
                received=FLAGS[name].value,
                fix=f"leave out --{name}, or " + ("--splits_dir" if given else "add --splits_dir"),
            )
    if not given and not FLAGS.masks_dir:
        raise UserError(
            "Lists are drawn among images with masks.",
            where="--masks_dir",
            fix="give --masks_dir, or lists of your own with --splits_dir",
        )


def draw_splits(
    spec: DatasetSpec, label_map: Mapping[int, int] | None, mask_reader: ColorMaskReader | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Draws the lists of the images below --images_dir, and says so.

    Returns:
      The ids of each split, and the splits in which no image has a mask.

    Raises:
      UserError: see `drawn_splits`.
    """
    wanted = drawn_splits.Wanted(FLAGS.val_fraction, FLAGS.labelled, FLAGS.seed)
    ids = file_finder.ids_below(FLAGS.images_dir, without=os.path.realpath(FLAGS.masks_dir))
    masks = FileFinder(FLAGS.masks_dir)
    paths = {i: path for i in ids if (path := masks.find(i)) is not None}
    if not paths:
        # Says what the folder of masks has instead.
        find_all(ids, masks, split="train", what="mask")
    classes = drawn_splits.classes_of_masks(
        paths,
        spec,
        label_map=label_map,
        max_megapixels=FLAGS.max_image_megapixels,
        mask_reader=mask_reader,
        num_workers=FLAGS.num_workers,
    )
    splits = drawn_splits.draw(classes, [i for i in ids if i not in paths], wanted)
    for line in drawn_splits.describe(splits, classes, spec):
        print(line, flush=True)
    return splits, [name for name, ids in splits.items() if not set(ids) & set(paths)]


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
        raise UserError("--class_names needs 2 names or more.", where=where)
    class_files.check_ignore_label(names, FLAGS.ignore_label, where=where)
    if FLAGS.has_background and not class_files.is_background(names[0]):
        print(
            f"note: class 0, '{names[0]}', counts as background, which no image-level label names "
            "(--has_background=false where there is none)",
            flush=True,
        )
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
    return found


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("images_dir", "output_dir")
    _check_lists()
    program.check_folder(FLAGS.images_dir, "images_dir")
    if FLAGS.masks_dir:
        program.check_folder(FLAGS.masks_dir, "masks_dir")
    if not 0 <= FLAGS.ignore_label <= 255:
        raise UserError("--ignore_label must lie within 0 and 255.", received=FLAGS.ignore_label)
    if FLAGS.image_labels_column and not FLAGS.image_labels:
        raise UserError("--image_labels_column needs --image_labels.")
    spec, mask_reader = _classes()
    label_map = read_label_map(FLAGS.label_map, spec) if FLAGS.label_map else None
    image_labels = _told_image_labels(spec) if FLAGS.image_labels else None
    drawn = not FLAGS.splits_dir
    if drawn:
        splits, without_masks = draw_splits(spec, label_map, mask_reader)
    else:
        splits, without_masks = read_splits(FLAGS.splits_dir, FLAGS.splits), []
    tasks = make_sources(
        splits,
        FileFinder(FLAGS.images_dir),
        FileFinder(FLAGS.masks_dir) if FLAGS.masks_dir else None,
        image_labels,
        unlabelled_splits=[*FLAGS.unlabelled_splits, *without_masks],
        allow_missing_masks=FLAGS.allow_missing_masks or drawn,
    )
    program.write(
        spec,
        tasks,
        Encoder(
            spec,
            label_map=label_map,
            max_megapixels=FLAGS.max_image_megapixels,
            exif_orientation=FLAGS.exif_orientation,
            mask_reader=mask_reader,
        ),
        started=started,
    )
    if drawn:
        drawn_splits.save(splits, FLAGS.output_dir)


if __name__ == "__main__":
    define_flags()
    program.run(main)
