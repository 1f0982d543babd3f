"""Splits that are drawn: which images evaluate, and which of the others keep their masks.

Every class gets its share of both (iterative stratification), and where it is in three images or
more at least one image of each. The draw depends on the ids, the classes in the masks and the seed
alone.

Source: Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011; ours: at least
one image of each class.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tfrecords_tools.encoder import Encoder
from tfrecords_tools.masks import classes_in
from tfrecords_tools.unknown_values import told_of_all
from tfseg import sharing, storage
from tfseg.data import writing
from tfseg.data.atomic_writing import write_atomically
from tfseg.data.parallel import parallel_map
from tfseg.data.specs import UNLABELLED_SPLIT, read_dataset_json
from tfseg.errors import UserError

TRAIN, VAL = "train", "val"
_NAMES = (TRAIN, UNLABELLED_SPLIT, VAL)
# Folder of the lists in the output.
LISTS = "lists"
# Held while splits are drawn into a folder.
_LOCK = ".drawing.lock"
# A class in fewer images trains, and may be absent from val.
_ENOUGH_FOR_VAL = 3
# What Roboflow writes between the name of a photograph and the number of its version.
_ROBOFLOW_VERSION = ".rf."
_NAMED = 2
# Stands for a class in images that show background alone.
_NOTHING = -1


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How the images are divided.

    Attributes:
      val_fraction: share of the images with masks that evaluate.
      labelled: how many of the others are training images with masks; None: all.
      seed: of the draw.

    Raises:
      UserError: a value that cannot be meant.
    """

    val_fraction: float = 0.2
    labelled: int | None = None
    seed: int = 0

    def __post_init__(self):
        if not 0.0 < self.val_fraction < 1.0:
            raise UserError(
                "--val_fraction is a share of the images with masks.",
                where="--val_fraction",
                received=self.val_fraction,
                accepted="a number between 0 and 1, for example 0.2",
            )
        if self.labelled is not None and self.labelled < 1:
            raise UserError(
                "--labelled counts training images with masks.",
                where="--labelled",
                received=self.labelled,
                accepted="1 or more",
            )


def draw(
    classes: Mapping[str, Sequence[int]], without_masks: Sequence[str], wanted: Wanted
) -> dict[str, list[str]]:
    """Divides images into splits.

    Args:
      classes: by id of an image with a mask, the classes in it.
      without_masks: ids of the other images.
      wanted: how.

    Returns:
      Ids of 'train' and 'val', and of 'unlabelled' where any are left for it; each sorted.

    Raises:
      UserError: there are too few masks.
    """
    ids = sorted(classes)
    num_val = round(wanted.val_fraction * len(ids))
    rest = len(ids) - num_val
    num_train = rest if wanted.labelled is None else wanted.labelled
    if num_val < 1 or not 1 <= num_train <= rest:
        raise UserError(
            "There are too few masks for these splits.",
            where="--val_fraction, --labelled",
            received=f"{len(ids)} images with masks: {num_val} for val, "
            f"{num_train} of the other {rest} for train",
            accepted="at least one image for val, and for --labelled no more than are left",
            fix="change --val_fraction or --labelled, or add masks",
        )
    rng = np.random.default_rng(wanted.seed)
    val = _stratified(ids, classes, num_val, rng, enough=_ENOUGH_FOR_VAL, leave_one=True)
    left = [i for i in ids if i not in val]
    train = _stratified(left, classes, num_train, rng, enough=1)
    unlabelled = sorted([i for i in left if i not in train] + list(without_masks))
    splits = {TRAIN: sorted(train), UNLABELLED_SPLIT: unlabelled, VAL: sorted(val)}
    return {name: chosen for name, chosen in splits.items() if chosen}


def _stratified(
    ids: Sequence[str],
    classes: Mapping[str, Sequence[int]],
    count: int,
    rng: np.random.Generator,
    *,
    enough: int,
    leave_one: bool = False,
) -> set[str]:
    """Draws `count` of the ids, so that each class has its share in what is drawn.

    Args:
      ids: to draw from.
      classes: of each of them.
      count: of ids to draw.
      rng: of the draw.
      enough: at least one image is drawn of each class that so many of the ids show.
      leave_one: one image of each class at least is not drawn, as far as there are others.
    """
    share = count / len(ids)
    order = [ids[k] for k in rng.permutation(len(ids))]
    shown = {i: tuple(classes[i]) or (_NOTHING,) for i in order}
    members: dict[int, list[str]] = {}
    for i in order:
        for k in shown[i]:
            members.setdefault(k, []).append(i)
    # How many images of each class are still to be chosen.
    wish = {k: share * len(m) for k, m in members.items()}
    for k, m in members.items():
        if len(m) >= enough:
            wish[k] = max(wish[k], 1.0)
    remaining = {k: len(m) for k, m in members.items()}
    chosen: dict[str, None] = {}

    def choose(image: str) -> None:
        chosen[image] = None
        for k in shown[image]:
            wish[k] -= 1.0
            remaining[k] -= 1

    def is_last(image: str) -> bool:
        return leave_one and any(remaining[k] == 1 for k in shown[image])

    def has_enough(image: str) -> int:
        """Returns how many classes of an image have their share."""
        return sum(wish[k] < 0.5 for k in shown[image])

    drawable = set(members)
    while len(chosen) < count:
        wanted = [k for k in drawable if wish[k] >= 0.5 and remaining[k]]
        if not wanted:
            break
        # The rarest class first: images of common ones are there later too.
        rarest = min(wanted, key=lambda k: (remaining[k], k))
        left = [i for i in members[rarest] if i not in chosen and not is_last(i)]
        if left:
            choose(min(left, key=has_enough))
        else:
            drawable.discard(rarest)
    # What is still to be drawn may show any class.
    rest = sorted((i for i in order if i not in chosen), key=has_enough)
    for may_be_last in (False, True):
        for image in rest:
            if len(chosen) < count and image not in chosen and (may_be_last or not is_last(image)):
                choose(image)
    return set(chosen)


def classes_of_masks(
    paths: Mapping[str, str], encoder: Encoder, *, num_workers: int
) -> dict[str, tuple[int, ...]]:
    """Returns the classes in each mask, background left out.

    Args:
      paths: of the masks, by id.
      encoder: reads them, now and later.
      num_workers: processes.

    Raises:
      UserError: a mask cannot be read, or holds an id that is no class.
    """
    look = functools.partial(_classes_in, encoder)
    with told_of_all(list(paths.values()), look, num_workers=num_workers):
        return dict(zip(paths, parallel_map(look, paths.values(), num_workers=num_workers)))


def _classes_in(encoder: Encoder, path: str) -> tuple[int, ...]:
    return classes_in(encoder.read_ids(path, (0, 0))[0], encoder.spec)


def describe(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a line for each split, and a warning where one photograph is in several.

    (Classes that a split lacks are told of all splits of records, drawn ones or not.)
    """
    lines = [f"drawn: {len(ids)} images of {name}" for name, ids in splits.items()]
    twins = _versions_elsewhere(splits)
    if twins:
        lines.append(
            f"warning: other versions of {len(twins)} images of {VAL} are in other splits, as "
            f"Roboflow names them ({', '.join(twins[:_NAMED])}): {VAL} measures too well. Export "
            "without augmentation, or give the splits of the export with --splits_dir"
        )
    return lines


def _versions_elsewhere(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns images of val of whose photograph another split has a version, as Roboflow names it.

    Its augmentation makes several images `x_jpg.rf.HASH` of one photograph `x`.
    """
    splits_of: dict[str, dict[str, str]] = {}
    for name, ids in splits.items():
        for i in ids:
            photograph, version, _ = os.path.basename(i).partition(_ROBOFLOW_VERSION)
            if version:
                splits_of.setdefault(photograph, {})[name] = i
    return [of[VAL] for of in splits_of.values() if VAL in of and len(of) > 1]


@contextlib.contextmanager
def replacing(splits: Mapping[str, Sequence[str]] | None, output_dir: str) -> Iterator[list[str]]:
    """Holds a folder for a draw, and writes the lists of the draw below it at the end.

    Two draws at the same time would leave splits of both, which share images.

    Args:
      splits: the ids of each split; None: they were not drawn, and nothing is done.
      output_dir: folder of the records; is made.

    Yields:
      The splits that an earlier draw left there, by its lists.

    Raises:
      UserError: another converter is drawing splits into the folder, or its lists are the user's.
    """
    if splits is None:
        yield []
        return
    writing.make_output_dir(output_dir)
    lock = os.path.join(storage.work_folder(output_dir), _LOCK)
    folder = os.path.join(output_dir, LISTS)
    try:
        with sharing.locked(lock, wait=False):
            earlier = [n for n in _NAMES if storage.exists(os.path.join(folder, f"{n}.txt"))]
            if earlier and read_dataset_json(output_dir) is None:
                raise UserError(
                    "The output directory holds lists that no draw has written.",
                    where=folder,
                    received=", ".join(f"{name}.txt" for name in earlier),
                    fix=f"give --splits_dir={folder} to use them, or choose another --output_dir",
                )
            yield earlier
            _save(splits, folder)
    except sharing.Busy:
        raise UserError(
            "Another converter draws splits into this folder at this moment.",
            where=f"--output_dir={output_dir}",
            fix="wait until it has ended, or choose another --output_dir",
        ) from None


def _save(splits: Mapping[str, Sequence[str]], folder: str) -> None:
    """Writes one list `<split>.txt` for each split, in place of earlier ones."""
    storage.make_folder(folder)
    for name in _NAMES:
        if name not in splits:
            with contextlib.suppress(FileNotFoundError):
                storage.remove(os.path.join(folder, f"{name}.txt"))
    for name, ids in splits.items():
        lines = "".join(f"{i}\n" for i in ids)
        write_atomically(os.path.join(folder, f"{name}.txt"), lines.encode())
