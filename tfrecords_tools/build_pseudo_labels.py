"""Makes a split whose masks are predictions (pseudo labels), where there are no true ones.

python vis.py --checkpoint_dir=run --dataset_dir=records --vis_split=unlabelled \
    --vis_logdir=drawn --use_image_labels --also_save_raw_predictions
python tfrecords_tools/build_pseudo_labels.py --dataset_dir=records --labelled_split=labelled \
    --pseudo_labels_dir=drawn/raw_segmentation_results --ids=lists/all.txt \
    --output_split=all_pseudo --output_dir=records

* --ids lists the images of the new split, one id a line, as in the records. Images come from
  whichever split of --dataset_dir has them. --ids_of_split=<split> takes that split's images in
  place of a list, and the labelled split's.
* Ids of --labelled_split keep their masks; without that flag none does. Every other id takes the
  picture of class ids that `vis.py --also_save_raw_predictions` wrote for it; its record says
  image/pseudo = 1.
* The file of an id is its last component plus .png, or all of them where names would otherwise
  be the same, just as vis.py names it for the splits that hold the id. Data sets with evaluation
  ids (Cityscapes) have these in the files; they become class ids again.
* Image-level labels are those of the image's record.

Everything is checked before anything is written.

Source: Learning Pseudo Labels specification 1 and 4.4. There predictions of labelled images are
written too and passed over in training; here they are not needed.
"""

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import flags
from PIL import Image

from tfrecords_tools import program
from tfrecords_tools.encoder import make_record
from tfrecords_tools.id_lists import read_ids
from tfrecords_tools.masks import classes_in, map_ids, read_mask
from tfseg.data import framing, prediction_files, tfexample, writing
from tfseg.data.framing import Location
from tfseg.data.index import Index
from tfseg.data.parallel import parallel_map
from tfseg.data.record_reader import RecordReader
from tfseg.data.shards import splits_present
from tfseg.data.specs import (
    DATASET_FILE,
    DatasetSpec,
    load_spec,
    read_dataset_json,
    split_entry,
)
from tfseg.data.split_index import load_index
from tfseg.errors import UserError

FLAGS = flags.FLAGS
_MAX_NAMED = 5
_RAW = "the folder raw_segmentation_results that vis.py --also_save_raw_predictions writes"


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("dataset_dir", None, "Folder of records with the images.")
    flags.DEFINE_string(
        "dataset", "pascal_voc_seg", "The classes of records that carry no dataset.json."
    )
    flags.DEFINE_string(
        "labelled_split",
        None,
        "Split whose images keep their masks. None: no image keeps its mask.",
    )
    flags.DEFINE_string("pseudo_labels_dir", None, f"Folder of <name>.png: {_RAW}.")
    flags.DEFINE_string("ids", None, "Text file, one id a line: the images of the new split.")
    flags.DEFINE_string(
        "ids_of_split", None, "In place of --ids: this split's images and the labelled split's."
    )
    flags.DEFINE_string("output_split", None, "Name of the new split.")
    flags.DEFINE_float(
        "max_image_megapixels", 64.0, "Refuse pictures with more than this many megapixels."
    )
    program.define_output_flags()


@dataclasses.dataclass(frozen=True)
class PseudoLabelSource:
    """Where one record of the new split comes from.

    Attributes:
      id: `image/filename`.
      location: of the record with the image.
      length: of that record, bytes.
      size: (height, width) of the image.
      pseudo_label: path of its predicted mask; None: the mask of the record.
    """

    id: str
    location: Location
    length: int
    size: tuple[int, int]
    pseudo_label: str | None


# Which files -------------------------------------------------------------------------------------


def load_splits(
    dataset_dir: str, spec: DatasetSpec, labelled_split: str | None, *, without: str | None = None
) -> tuple[dict[str, Index], list[str]]:
    """Returns the indices of all splits, the labelled one first, and the names of unusable ones.

    Args:
      dataset_dir: folder of records.
      spec: the data set.
      labelled_split: must be usable; the others need not be. None: there is none.
      without: a split to leave out.

    Raises:
      UserError: the labelled split is not there or damaged.
    """
    splits, unusable = {}, []
    if labelled_split is not None:
        splits[labelled_split] = load_index(dataset_dir, labelled_split, spec)
    for split in splits_present(dataset_dir):
        if split in (labelled_split, without):
            continue
        try:
            splits[split] = load_index(dataset_dir, split, spec)
        except UserError:
            unusable.append(split)
    return splits, unusable


def _shown(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_MAX_NAMED]) + (", ..." if len(ids) > _MAX_NAMED else "")


def file_names(ids: Iterable[str], splits: Mapping[str, Index]) -> dict[str, set[str]]:
    """Returns the names under which vis.py may have written each image, without extension.

    There is more than one where splits that share an image name their pictures differently.
    """
    wanted = set(ids)
    names: dict[str, set[str]] = {i: set() for i in wanted}
    for index in splits.values():
        if wanted.isdisjoint(index.ids.tolist()):
            continue
        try:
            of_split = prediction_files.output_names(index.ids.tolist())
        except UserError:
            continue  # vis.py cannot have drawn this split.
        for i, name in zip(index.ids.tolist(), of_split):
            if i in wanted:
                names[i].add(name)
    return names


def find_pseudo_labels(
    ids: Sequence[str], splits: Mapping[str, Index], folder: str
) -> dict[str, str]:
    """Returns the file of every id.

    Raises:
      UserError: some have none, several fit, or one fits several ids; names the first ones.
    """
    found: dict[str, str] = {}
    owner: dict[str, str] = {}
    missing = []
    names = file_names(ids, splits)
    for i in ids:
        paths = [os.path.join(folder, f"{name}.png") for name in sorted(names[i])]
        paths = [path for path in paths if os.path.isfile(path)]
        if not paths:
            missing.append(i)
            continue
        if len(paths) > 1:
            raise UserError(
                f"Several pseudo labels fit id '{i}'.",
                where=folder,
                received=", ".join(os.path.relpath(path, folder) for path in paths),
                fix="draw the images into a new folder with one run of vis.py",
            )
        if paths[0] in owner:
            raise UserError(
                "One pseudo label fits two ids.",
                where=paths[0],
                received=f"{owner[paths[0]]}, {i}",
                fix="draw a split that holds both images: vis.py then keeps their folders apart",
            )
        found[i], owner[paths[0]] = paths[0], i
    if missing:
        raise UserError(
            f"{len(missing)} of {len(ids)} ids without a true mask have no pseudo label.",
            where=folder,
            received=_shown(missing),
            accepted=f"<last component of the id>.png, in {_RAW}",
            fix="draw the split that holds them, or leave them out of the new split",
        )
    return found


def make_sources(
    ids: Sequence[str],
    splits: Mapping[str, Index],
    *,
    dataset_dir: str,
    labelled_split: str | None,
    pseudo_labels_dir: str,
    unusable: Sequence[str] = (),
) -> list[PseudoLabelSource]:
    """Joins ids, records and pseudo labels.

    Args:
      ids: of the new split, in its order.
      splits: of `load_splits`.
      dataset_dir: their folder.
      labelled_split: keeps its masks; None: no split does.
      pseudo_labels_dir: folder of the others' masks.
      unusable: splits that could not be searched, for messages.

    Raises:
      UserError: an id is in no split, a labelled image has no mask, or see `find_pseudo_labels`.
    """
    rows = {
        split: {image_id: row for row, image_id in enumerate(index.ids.tolist())}
        for split, index in splits.items()
    }
    unknown = [i for i in ids if not any(i in of_split for of_split in rows.values())]
    if unknown:
        more = f" (unusable, not searched: {', '.join(unusable)})" if unusable else ""
        raise UserError(
            f"{len(unknown)} of {len(ids)} ids are in no split of the records.",
            where=dataset_dir,
            received=_shown(unknown),
            accepted=f"ids of {', '.join(splits)}{more}"
            + "".join(f", such as {index.ids[0]}" for index in list(splits.values())[:1]),
            fix="write the ids as in the records, or make records of these images first",
        )
    labelled = {} if labelled_split is None else rows[labelled_split]
    without_mask = [
        i for i in ids if i in labelled and not splits[labelled_split].has_mask[labelled[i]]
    ]
    if without_mask:
        raise UserError(
            f"{len(without_mask)} images of split '{labelled_split}' have no mask.",
            where=f"--labelled_split={labelled_split}",
            received=_shown(without_mask),
            accepted="a split in which every image has a mask",
        )
    files = find_pseudo_labels([i for i in ids if i not in labelled], splits, pseudo_labels_dir)
    readers = {split: RecordReader(index, dataset_dir) for split, index in splits.items()}
    sources = []
    for i in ids:
        holders = [split for split in splits if i in rows[split]]
        if i not in labelled:
            # One that knows what the image shows, if there is one.
            holders.sort(key=lambda s: not splits[s].has_image_labels[rows[s][i]])
        split = holders[0]
        index, row = splits[split], rows[split][i]
        sources.append(
            PseudoLabelSource(
                i,
                readers[split].location(row),
                int(index.length[row]),
                (int(index.height[row]), int(index.width[row])),
                files.get(i),
            )
        )
    return sources


# One mask, one record ----------------------------------------------------------------------------


def read_pseudo_label(
    path: str, size: tuple[int, int], spec: DatasetSpec, *, max_megapixels: float
) -> np.ndarray:
    """Reads a predicted mask.

    Args:
      path: a picture of raw ids.
      size: (height, width) of its image.
      spec: the data set.
      max_megapixels: cap, from the header.

    Returns:
      uint8 [height, width], class ids and perhaps the ignore label.

    Raises:
      UserError: undecodable, in colours, of another size, or with ids that are no class.
    """
    _check_mode(path)
    raw, _ = read_mask(path, max_megapixels=max_megapixels)
    if raw.shape != size:
        raise UserError(
            "A pseudo label has another size than its image.",
            where=path,
            received=f"{raw.shape[0]}x{raw.shape[1]} (height x width)",
            accepted=f"{size[0]}x{size[1]}, the image's",
            fix=f"give {_RAW}: its pictures have the size of the images",
        )
    ids = prediction_files.class_ids(raw, spec)
    wrong = np.unique(raw[ids < 0])
    if wrong.size:
        what = "evaluation ids" if spec.eval_ids else "class ids"
        values = spec.eval_ids or (0, "...", spec.num_classes - 1)
        raise UserError(
            f"A pseudo label holds values that are no {what} of the data set.",
            where=path,
            received=", ".join(map(str, wrong[:20])),
            accepted=f"{', '.join(map(str, values))}, and {spec.ignore_label} (ignore)",
            fix="predict with a network of this data set's classes",
        )
    return ids.astype(np.uint8)


def _check_mode(path: str) -> None:
    """Refuses pictures in colours with a hint at the right folder."""
    try:
        with Image.open(path) as image:
            mode = image.mode
    except OSError:
        return  # `read_mask` says what is wrong.
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise UserError(
            "A pseudo label has colours, not class ids.",
            where=path,
            received=f"mode {mode}",
            accepted="PNG with one channel of class ids",
            fix=f"give {_RAW}, not segmentation_results",
        )


@dataclasses.dataclass(frozen=True)
class Checker:
    """Looks at one pseudo label; sent to the worker processes."""

    spec: DatasetSpec
    max_megapixels: float

    def __call__(self, source: PseudoLabelSource) -> UserError | None:
        try:
            read_pseudo_label(
                source.pseudo_label, source.size, self.spec, max_megapixels=self.max_megapixels
            )
        except UserError as error:
            return error
        return None


def check_pseudo_labels(
    sources: Sequence[PseudoLabelSource], checker: Checker, *, num_workers: int
) -> None:
    """Reads every pseudo label once.

    Raises:
      UserError: some cannot be used; tells how many and what is wrong with the first.
    """
    pseudo = [source for source in sources if source.pseudo_label is not None]
    errors = [e for e in parallel_map(checker, pseudo, num_workers=num_workers) if e is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        first = errors[0]
        raise UserError(
            f"{len(errors)} of {len(pseudo)} pseudo labels cannot be used. The first: {first.what}",
            where=first.where,
            received=first.received,
            accepted=first.accepted,
            fix=first.fix,
        )


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns a `PseudoLabelSource` into a record; sent to the worker processes."""

    spec: DatasetSpec
    max_megapixels: float

    def __call__(self, source: PseudoLabelSource) -> writing.Encoded:
        place = source.location
        data = framing.read_record(place.path, place.offset, source.length)
        example = tfexample.decode(data, place)
        is_pseudo, notes = example.is_pseudo, []
        if source.pseudo_label is None:
            ids = self._true_mask(example, source)
        else:
            is_pseudo = True
            ids = read_pseudo_label(
                source.pseudo_label,
                (example.height, example.width),
                self.spec,
                max_megapixels=self.max_megapixels,
            )
        labels = example.image_labels
        labels = None if labels is None else tuple(int(i) for i in labels)
        if is_pseudo and labels is not None and set(classes_in(ids, self.spec)) - {*labels}:
            notes.append(
                "pseudo label with classes that the image-level labels lack (vis.py "
                "--use_image_labels leaves them out)"
            )
        return make_record(
            source.id,
            example.image,
            (example.height, example.width),
            ids,
            image_labels=labels,
            spec=self.spec,
            notes=tuple(notes),
            is_pseudo=is_pseudo,
        )

    def _true_mask(self, example: tfexample.Example, source: PseudoLabelSource) -> np.ndarray:
        tfexample.check_pixels(
            example.label,
            max_megapixels=self.max_megapixels,
            location=source.location,
            key=tfexample.LABEL,
        )
        where = f"{source.location}, id {source.id}"
        ids = tfexample.decode_pixels(example.label, location=source.location, key=tfexample.LABEL)
        if ids.ndim != 2:
            raise UserError("A mask is not one channel of class ids.", where=where)
        return map_ids(ids, None, self.spec, where=where)


# The program -------------------------------------------------------------------------------------


def check_output(
    dataset_dir: str, output_dir: str, output_split: str, labelled_split: str | None
) -> bool:
    """Refuses to replace a split that is not made of pseudo labels.

    Returns:
      Whether the new split goes where the old ones are.

    Raises:
      UserError: it would replace one of them.
    """
    same = os.path.realpath(dataset_dir) == os.path.realpath(output_dir)
    if not same or output_split not in splits_present(dataset_dir):
        return same
    content = read_dataset_json(dataset_dir)
    is_ours = False
    if content is not None:
        where = os.path.join(dataset_dir, DATASET_FILE)
        entry = split_entry(content, output_split, where=where)
        # A split that dataset.json does not list is a conversion that did not finish.
        is_ours = entry is None or bool(entry.get("num_pseudo_labels"))
    if output_split == labelled_split or not is_ours:
        raise UserError(
            f"The new split would replace split '{output_split}', which holds no pseudo labels.",
            where=output_dir,
            received=f"--output_split={output_split}",
            fix="choose another --output_split or --output_dir",
        )
    return same


def _ids(splits: Mapping[str, Index]) -> list[str]:
    """Returns the ids of the new split, of --ids or of --ids_of_split."""
    if FLAGS.ids is not None:
        ids = read_ids(FLAGS.ids)
        if not ids:
            raise UserError(
                "The list of images is empty.",
                where=f"--ids={FLAGS.ids}",
                accepted="one image id a line, as in the records",
            )
        return ids
    if FLAGS.ids_of_split not in splits:
        raise UserError(
            f"There is no split '{FLAGS.ids_of_split}' in {FLAGS.dataset_dir}.",
            where=f"--ids_of_split={FLAGS.ids_of_split}",
            accepted=", ".join(splits),
            fix="make its records first, or give another split",
        )
    names = (FLAGS.ids_of_split, FLAGS.labelled_split)
    indexes = [splits[name] for name in names if name is not None]
    return list(dict.fromkeys(i for index in indexes for i in index.ids.tolist()))


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("dataset_dir", "pseudo_labels_dir", "output_split", "output_dir")
    if (FLAGS.ids is None) == (FLAGS.ids_of_split is None):
        raise UserError(
            "The images of the new split are given in one way.",
            where="--ids, --ids_of_split",
            received="neither" if FLAGS.ids is None else "both",
            accepted="one of the two flags",
        )
    program.check_folder(FLAGS.pseudo_labels_dir, "pseudo_labels_dir")
    spec = load_spec(FLAGS.dataset_dir, FLAGS.dataset)
    same_folder = check_output(
        FLAGS.dataset_dir, FLAGS.output_dir, FLAGS.output_split, FLAGS.labelled_split
    )
    splits, unusable = load_splits(
        FLAGS.dataset_dir,
        spec,
        FLAGS.labelled_split,
        without=FLAGS.output_split if same_folder else None,
    )
    ids = _ids(splits)
    sources = make_sources(
        ids,
        splits,
        dataset_dir=FLAGS.dataset_dir,
        labelled_split=FLAGS.labelled_split,
        pseudo_labels_dir=FLAGS.pseudo_labels_dir,
        unusable=unusable,
    )
    check_pseudo_labels(
        sources, Checker(spec, FLAGS.max_image_megapixels), num_workers=FLAGS.num_workers
    )
    if FLAGS.labelled_split is not None:
        left_out = len(set(splits[FLAGS.labelled_split].ids.tolist()) - set(ids))
        if left_out:
            print(
                f"note: {left_out} images of split '{FLAGS.labelled_split}' are not in --ids and "
                "so not in the new split",
                flush=True,
            )
    program.write(
        spec,
        {FLAGS.output_split: sources},
        Encoder(spec, FLAGS.max_image_megapixels),
        started=started,
    )


if __name__ == "__main__":
    define_flags()
    program.run(main)
