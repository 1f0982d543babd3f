"""The splits of a conversion: lists of --splits_dir, or lists that are drawn."""

from collections.abc import Mapping, Sequence

from absl import flags

from tfrecords_tools import drawn_splits
from tfseg.errors import UserError

FLAGS = flags.FLAGS
# What is meant only where lists are drawn, and only where they are given.
_OF_DRAWN, _OF_GIVEN = ("val_fraction", "labelled", "seed"), ("splits",)
# So few images without a mask may be a mistake: they are named.
_NAMED = 5


def define_flags(*, without_lists: str = "train, unlabelled and val are drawn") -> None:
    """Defines the flags that say which image is in which split.

    Args:
      without_lists: what happens without --splits_dir, for the help page.
    """
    flags.DEFINE_string(
        "splits_dir", None, f"Folder of <split>.txt, one id a line; without it {without_lists}."
    )
    flags.DEFINE_float(
        "val_fraction", 0.2, "Without --splits_dir: share of the images with masks in split val."
    )
    flags.DEFINE_integer(
        "labelled",
        None,
        "Without --splits_dir: number of images with masks in split train. The others go into "
        "split unlabelled; their masks stay in the records for the monitors. None: all that are "
        "not in val.",
    )
    flags.DEFINE_integer("seed", 0, "Without --splits_dir: seed of the draw.")


def asks_to_draw() -> bool:
    """Says whether a flag of drawn lists was given."""
    return any(FLAGS[name].present for name in _OF_DRAWN)


def check() -> None:
    """Insists on flags that say one thing about the lists.

    Raises:
      UserError: a flag of drawn lists with --splits_dir, or the other way round; or a value that
        cannot be meant.
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
    _wanted()


def _wanted() -> drawn_splits.Wanted:
    return drawn_splits.Wanted(FLAGS.val_fraction, FLAGS.labelled, FLAGS.seed)


def draw(
    classes: Mapping[str, Sequence[int]], without_masks: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Draws the splits as the flags say, and prints what came out.

    Args:
      classes: by id of an image with a mask, the classes in it.
      without_masks: ids of the other images.

    Returns:
      The ids of each split, and the splits in which no image has a mask.

    Raises:
      UserError: there are too few masks.
    """
    splits = drawn_splits.draw(classes, without_masks, _wanted())
    for line in drawn_splits.describe(splits):
        print(line, flush=True)
    if 0 < len(without_masks) <= _NAMED:
        print(f"note: images without a mask: {', '.join(without_masks)}", flush=True)
    return splits, [name for name, ids in splits.items() if not set(ids) & set(classes)]
