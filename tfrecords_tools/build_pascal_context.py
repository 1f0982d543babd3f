"""Makes TFRecords of Pascal-Context: 59 classes and background, from its masks of 459 classes.

python tfrecords_tools/build_pascal_context.py --images_dir=VOCdevkit/VOC2010/JPEGImages \
    --annotations_dir=context/trainval --splits_dir=context/lists --output_dir=records

* --annotations_dir holds <id>.mat with `LabelMap`; labels.txt (`number: name`, all 459) lies in it
  or beside it, else --labels says where.
* --splits_dir holds train.txt and val.txt (4998 and 5105 ids as published), one id a line.
* A pixel whose class is none of the 59 is background, unlabelled ones too: nothing is ignored.

Source: ZS3 specification 2.2.
"""

import os
import time

import numpy as np
from absl import flags

from tfrecords_tools import build_folder, program
from tfrecords_tools.encoder import Encoder
from tfrecords_tools.file_finder import FileFinder
from tfrecords_tools.id_lists import read_splits
from tfrecords_tools.masks import read_mat
from tfrecords_tools.text_files import read_text
from tfseg.data.specs import DATASETS
from tfseg.errors import UserError

FLAGS = flags.FLAGS
SPEC = DATASETS["pascal_context"]
LABELS_FILE = "labels.txt"


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder of the images, VOC2010's JPEGImages.")
    flags.DEFINE_string("annotations_dir", None, "Folder of <id>.mat.")
    flags.DEFINE_string("labels", None, "Text file 'number: name' of all classes in these.")
    flags.DEFINE_string("splits_dir", None, "Folder of <split>.txt, one id a line.")
    program.define_output_flags()
    program.define_image_flags()


def read_labels(path: str) -> dict[str, int]:
    """Returns the number of each class by its name without blanks.

    Raises:
      UserError: a line is not 'number: name', or a class of the data set is missing.
    """
    numbers = {}
    for i, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        number, colon, name = line.partition(":")
        if not colon or not number.strip().isdigit():
            raise UserError(
                "A line of the class list is not 'number: name'.",
                where=f"{path}, line {i}",
                received=line[:80],
                accepted="for example '2: aeroplane'",
            )
        numbers["".join(name.split())] = int(number)
    missing = [name for name in SPEC.class_names[1:] if name not in numbers]
    if missing:
        raise UserError(
            f"The class list lacks {len(missing)} of the {SPEC.num_classes - 1} classes.",
            where=path,
            received=", ".join(missing[:8]) + (" ..." if len(missing) > 8 else ""),
            accepted="the list of all 459 classes that comes with the masks",
            fix="give the right file with --labels",
        )
    return numbers


def find_labels(annotations_dir: str) -> str:
    """Returns the path of labels.txt in the folder of masks or beside it.

    Raises:
      UserError: it is in neither place.
    """
    parent = os.path.dirname(os.path.abspath(annotations_dir))
    places = [os.path.join(folder, LABELS_FILE) for folder in (annotations_dir, parent)]
    for path in places:
        if os.path.exists(path):
            return path
    raise UserError(
        "There is no list of the masks' classes.",
        where=", ".join(places),
        accepted=f"{LABELS_FILE}, which comes with the masks",
        fix="say where it is with --labels",
    )


class MaskReader:
    """Reads a .mat of all classes and returns ids of the 59; sent to the worker processes.

    Args:
      numbers: of `read_labels`.
    """

    def __init__(self, numbers: dict[str, int]):
        self._table = np.zeros(max(numbers.values()) + 1, np.uint8)
        for class_id, name in enumerate(SPEC.class_names[1:], start=1):
            self._table[numbers[name]] = class_id

    def __call__(self, path: str, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
        label = read_mat(path, lambda content: content["LabelMap"], accepted="LabelMap")
        if label.ndim != 2 or label.min() < 0 or (label != np.floor(label)).any():
            raise UserError(
                "A mask is not a map of class numbers.",
                where=path,
                received=f"{label.dtype}, shape {list(label.shape)}",
                accepted="whole numbers from 0 on [height, width]",
            )
        # Numbers that the list lacks are other classes too.
        numbers = np.where(label < len(self._table), label, 0).astype(np.int64)
        return self._table[numbers], []


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("images_dir", "annotations_dir", "splits_dir", "output_dir")
    for flag in ("images_dir", "annotations_dir"):
        program.check_folder(FLAGS[flag].value, flag)
    numbers = read_labels(FLAGS.labels or find_labels(FLAGS.annotations_dir))
    tasks = build_folder.make_sources(
        read_splits(FLAGS.splits_dir, FLAGS.splits),
        FileFinder(FLAGS.images_dir),
        FileFinder(FLAGS.annotations_dir, (".mat",)),
        None,
        unlabelled_splits=FLAGS.unlabelled_splits,
        allow_missing_masks=FLAGS.allow_missing_masks,
    )
    program.write(
        SPEC,
        tasks,
        Encoder(
            SPEC,
            max_megapixels=FLAGS.max_image_megapixels,
            exif_orientation=FLAGS.exif_orientation,
            mask_reader=MaskReader(numbers),
        ),
        started=started,
    )


if __name__ == "__main__":
    define_flags()
    program.run(main)
