"""The frame of a converter: flags that all have, its start, and the writing of what it made."""

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from tfrecords_tools import class_files
from tfseg import command_line
from tfseg.data import writing
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.files import did_you_mean

FLAGS = flags.FLAGS


def define_output_flags(*, num_shards: int = 4) -> None:
    """Defines the flags that every converter has."""
    flags.DEFINE_string("output_dir", None, "Folder for the shards, indices and dataset.json.")
    flags.DEFINE_integer("num_shards", num_shards, "Files per split.")
    flags.DEFINE_integer("num_workers", os.cpu_count() or 1, "Processes.")


def define_image_flags() -> None:
    """Defines the flags of converters that read image files."""
    flags.DEFINE_float(
        "max_image_megapixels", 64.0, "Refuse images with more than this many megapixels."
    )
    flags.DEFINE_enum(
        "exif_orientation",
        "auto",
        ("auto", "apply", "ignore"),
        "Whether images are turned by their EXIF orientation tag, which records do not hold. "
        "auto: turn an image only if it has the size of its mask after the turn and not before. "
        "apply: turn every image with a tag. ignore: turn none. Images with a tag are counted.",
    )
    flags.DEFINE_list("splits", None, "Convert these lists only; by default all of --splits_dir.")
    flags.DEFINE_list(
        "unlabelled_splits", [], "Splits that are written without masks, even if masks exist."
    )
    flags.DEFINE_bool(
        "allow_missing_masks",
        False,
        "If an image has no mask file, write it without a mask and count it.",
    )


def require(*names: str) -> None:
    """Insists on flags without a default.

    Raises:
      UserError: one is missing.
    """
    for name in names:
        if not FLAGS[name].value:
            raise UserError(f"--{name} is required.", where=f"--{name}", accepted=FLAGS[name].help)


def run(main: Callable[[list[str]], Any], about: str | None = None) -> None:
    """Runs a converter; a termination request cleans up as Ctrl-C does.

    Args:
      main: see `command_line.run`.
      about: see `command_line.run`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command_line.run(main, about=about)


def check_folder(path: str, flag: str) -> None:
    """Insists that a flag names a folder.

    Raises:
      UserError: it does not.
    """
    if not os.path.isdir(path):
        raise UserError(
            f"--{flag} must be a folder that exists.",
            where=f"--{flag}",
            received=path + (" (a file)" if os.path.exists(path) else ""),
            accepted="a folder",
            fix=did_you_mean(path, "check the path; it counts from the folder that you are in"),
        )


def write(
    spec: DatasetSpec,
    tasks: Mapping[str, Sequence[Any]],
    encode: Callable[[Any], writing.Encoded],
    *,
    started: float,
    together: Collection[str] = (),
) -> None:
    """Writes splits as the output flags say, and prints what was written.

    Args:
      spec, tasks, encode, together: as for `writing.write_splits`.
      started: `time.monotonic()` of the program's start.
    """
    reports = writing.write_splits(
        FLAGS.output_dir,
        spec,
        tasks,
        encode,
        num_shards=FLAGS.num_shards,
        num_workers=FLAGS.num_workers,
        together=together,
    )
    finish(reports, spec, FLAGS.output_dir, started)


def finish(
    reports: Sequence[writing.SplitReport], spec: DatasetSpec, output_dir: str, started: float
) -> None:
    """Prints what was written, and warns of classes that may mean something else."""
    print(writing.describe(reports, spec))
    with_masks = [r for r in reports if r.num_masks]
    num_labelled = np.zeros(spec.num_classes, np.int64)
    num_labelled[spec.first_image_class :] = sum(r.images_per_class for r in reports)
    for warning in class_files.warnings(
        spec,
        {r.split: r.pixels for r in with_masks},
        num_labelled,
        are_pseudo=any(r.num_pseudo_labels for r in with_masks),
    ):
        print(f"warning: {warning}")
    count = sum(r.count for r in reports)
    print(f"{count} records in {time.monotonic() - started:.1f} s: {output_dir}", flush=True)
