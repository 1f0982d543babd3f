"""Makes TFRecords of COCO-Stuff: 182 classes of things and stuff, without background.

python tfrecords_tools/build_coco_stuff.py --images_dir=coco --masks_dir=stuffthingmaps \
    --output_dir=records

* --masks_dir holds the PNGs of the 164k release (stuffthingmaps_trainval2017): ids 0 to 181, 255
  void. Its folders train2017 and val2017 are those of --images_dir, and by default the splits, with
  these names.
* --splits_dir, if given, holds <split>.txt with ids as `train2017/000000000009`; a bare id is also
  looked for in the folders below.

Source: STRICT specification 2.
"""

import os
import time

from absl import flags

from tfrecords_tools import build_folder, program
from tfrecords_tools.coco.pairing import CocoFinder
from tfrecords_tools.encoder import Encoder
from tfrecords_tools.id_lists import read_splits
from tfseg.data.specs import DATASETS
from tfseg.errors import UserError

FLAGS = flags.FLAGS
SPEC = DATASETS["coco_stuff"]


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("images_dir", None, "Folder that holds train2017, val2017 and so on.")
    flags.DEFINE_string("masks_dir", None, "Folder of the masks, with the same folders.")
    flags.DEFINE_string(
        "splits_dir", None, "Folder of <split>.txt; without it each folder of masks is a split."
    )
    program.define_output_flags(num_shards=16)
    program.define_image_flags()


def splits_of_folders(masks_dir: str, wanted: list[str] | None = None) -> dict[str, list[str]]:
    """Returns the ids of each folder of masks, sorted.

    Args:
      masks_dir: the folder above.
      wanted: names of the folders; None: all.

    Raises:
      UserError: there is no such folder, or one without masks.
    """
    present = sorted(
        name for name in os.listdir(masks_dir) if os.path.isdir(os.path.join(masks_dir, name))
    )
    missing = [name for name in wanted or [] if name not in present]
    if missing or not present:
        raise UserError(
            "There is no such folder of masks.",
            where=masks_dir,
            received=", ".join(missing) or "no folders",
            accepted=", ".join(present) or "train2017, val2017",
            fix="unpack the maps there, or give --splits_dir",
        )
    splits = {}
    for name in dict.fromkeys(wanted or present):
        stems = [os.path.splitext(file) for file in os.listdir(os.path.join(masks_dir, name))]
        splits[name] = sorted(f"{name}/{stem}" for stem, suffix in stems if suffix == ".png")
        if not splits[name]:
            raise UserError("A folder holds no masks.", where=os.path.join(masks_dir, name))
    return splits


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("images_dir", "masks_dir", "output_dir")
    for flag in ("images_dir", "masks_dir"):
        program.check_folder(FLAGS[flag].value, flag)
    if FLAGS.splits_dir:
        splits = read_splits(FLAGS.splits_dir, FLAGS.splits)
    else:
        splits = splits_of_folders(FLAGS.masks_dir, FLAGS.splits)
    tasks = build_folder.make_sources(
        splits,
        CocoFinder(FLAGS.images_dir),
        CocoFinder(FLAGS.masks_dir),
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
        ),
        started=started,
    )


if __name__ == "__main__":
    define_flags()
    program.run(main)
