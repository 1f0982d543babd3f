"""Opens the split of every stream, and insists that it has what the stream needs."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from tfseg.data import augment, sampling
from tfseg.data.framing import RecordError
from tfseg.data.index import Index
from tfseg.data.reading import size_in_range
from tfseg.data.source import RecordSource
from tfseg.data.specs import DatasetSpec, load_spec
from tfseg.data.split_index import load_index
from tfseg.data.stream import NEEDING_MASKS, Stream
from tfseg.errors import UserError
from tfseg.settings.augmentations import AUGMENTATIONS
from tfseg.settings.data import DataConfig


def _usable_masks(
    stream: Stream,
    index: Index,
    streams: Mapping[str, Stream],
    spec: DatasetSpec,
    config: DataConfig,
) -> np.ndarray:
    """Returns which records of a stream with labels='listed' have a usable mask, bool [n].

    Raises:
      UserError: images of `label_split` would be in no stream at all.
    """
    listed = load_index(config.dataset_dir, stream.label_split, spec).ids
    usable = _is_among(index.ids, listed) & index.has_mask
    missing = listed[~_is_among(listed, index.ids[usable])]
    if missing.size and all(other.split != stream.label_split for other in streams.values()):
        raise UserError(
            f"{missing.size} of {listed.size} masks of split '{stream.label_split}' would not be "
            f"used: split '{stream.split}' lacks these images or their masks.",
            where=f"--train_split={stream.label_split}, --train_split_cls={stream.split}",
            received=f"{', '.join(missing[:3])}{' ...' if missing.size > 3 else ''}",
            accepted="a second split whose records hold the images of the first, masks included",
        )
    return usable


def _is_among(ids: np.ndarray, wanted: Iterable[str]) -> np.ndarray:
    """Returns which ids are in a collection, bool [n]; np.isin compares every two objects."""
    wanted = set(wanted)
    return np.fromiter((image_id in wanted for image_id in ids), np.bool_, len(ids))


def make_sources(
    streams: Mapping[str, Stream], spec: DatasetSpec, config: DataConfig
) -> dict[str, RecordSource]:
    """Opens the split of every stream.

    Raises:
      UserError: a split is not there, empty or truncated, or lacks masks, image-level labels or
        classes in them; a stream wants views that the augmentation does not make, or the labels of
        seen classes of a data set without a class split; --drop_images names no image or all.
    """
    indexes, all_lost = {}, {}
    for name, stream in streams.items():
        _check_views(name, stream, config)
        _check_has_split(name, stream, spec)
        lost: list[RecordError] = []
        if stream.dataset_dir is not None:
            _check_same_classes(stream.dataset_dir, spec, config)
        index = load_index(
            stream.dataset_dir or config.dataset_dir,
            stream.split,
            spec,
            on_damage=lost.append if config.skip_bad_records else None,
        )
        _check_masks(name, stream, index)
        if stream.image_labels == "record":
            _check_image_level_labels(name, stream, index, config)
        indexes[name], all_lost[name] = index, lost
    usable = {
        name: _usable_masks(stream, indexes[name], streams, spec, config)
        for name, stream in streams.items()
        if stream.label_split is not None
    }
    dropped = _dropped_records(indexes, config)
    sources = {
        name: RecordSource(
            stream.split,
            indexes[name],
            spec,
            config,
            labels=stream.labels,
            image_labels=stream.image_labels,
            dataset_dir=stream.dataset_dir,
            lost=all_lost[name],
            usable_masks=usable.get(name),
            epoch=_epoch(name, streams, indexes, usable, dropped, spec),
        )
        for name, stream in streams.items()
    }
    for name, source in sources.items():
        _check_sides(source, streams[name], config)
    return sources


def _dropped_records(indexes: Mapping[str, Index], config: DataConfig) -> dict[str, np.ndarray]:
    """Returns the numbers of the records of each stream that --drop_images leaves out.

    Raises:
      UserError: there is no such file, it names no image of any stream, or all of one.
    """
    if config.drop_images is None:
        return {name: np.zeros(0, np.int64) for name in indexes}
    where = f"--drop_images={config.drop_images}"
    try:
        with open(config.drop_images, encoding="utf-8-sig") as file:
            ids = [line.strip() for line in file if line.strip()]
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise UserError(
            "The list of images to leave out cannot be read.",
            where=where,
            accepted="a text file with one id in a line",
        ) from None
    dropped = {name: np.flatnonzero(_is_among(index.ids, ids)) for name, index in indexes.items()}
    if not any(numbers.size for numbers in dropped.values()):
        raise UserError(
            "None of the images to leave out is in the training split.",
            where=where,
            received=f"{', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''}",
            accepted=f"ids such as {next(iter(indexes.values())).ids[0]}",
        )
    for name, numbers in dropped.items():
        if numbers.size == indexes[name].size:
            raise UserError(f"Every image of stream '{name}' is to be left out.", where=where)
    return dropped


def _epoch(name: str, streams, indexes, usable, dropped, spec: DatasetSpec) -> sampling.Epoch:
    """Returns what an epoch of a stream is drawn from.

    Raises:
      UserError: class weights leave no image.
    """
    stream, index = streams[name], indexes[name]
    if stream.sampling == "class_weighted":
        return _class_weighted_epoch(name, stream, index, dropped[name], spec)
    epoch = sampling.uniform(index.size)
    if stream.oversample > 1:
        epoch = sampling.oversampled(usable[name], stream.oversample)
    epoch = sampling.without(epoch, dropped[name])
    if stream.epoch_of is not None:
        other = _epoch(stream.epoch_of, streams, indexes, usable, dropped, spec)
        epoch = dataclasses.replace(epoch, length=other.length)
    if stream.order_of is not None:
        other = _epoch(stream.order_of, streams, indexes, usable, dropped, spec)
        epoch = dataclasses.replace(epoch, length=max(epoch.length, other.length))
    return epoch


def _class_weighted_epoch(
    name: str, stream: Stream, index: Index, dropped: np.ndarray, spec: DatasetSpec
) -> sampling.Epoch:
    """Returns the epoch of draws that prefer rare classes.

    Raises:
      UserError: no image can be drawn.
    """
    known = spec.class_names[spec.first_image_class :]
    person = sampling.UNCOUNTED_CLASS
    # An image without labels is never drawn.
    image_labels = index.image_labels.copy()
    image_labels[dropped] = 0
    try:
        return sampling.class_weighted(
            image_labels,
            length=stream.epoch_length or index.size - dropped.size,
            clutter_penalty=stream.clutter_penalty,
            uncounted=known.index(person) if person in known else None,
        )
    except ValueError:
        raise UserError(
            f"No image of split '{stream.split}' can be drawn by its classes.",
            where=f"stream '{name}'",
            received="image-level labels that name no class, or only "
            f"'{person}', which counts for nothing with a clutter penalty above 1",
            fix="sample uniformly, or check the records with tfrecords_tools/check.py",
        ) from None


def _check_masks(name: str, stream: Stream, index: Index) -> None:
    """Insists on masks where the stream needs them.

    Raises:
      UserError: there is none.
    """
    if stream.labels in NEEDING_MASKS and not index.has_mask.any():
        raise UserError(
            f"No image of split '{stream.split}' has a mask.",
            where=f"stream '{name}'",
            accepted="a split with masks",
            fix="choose another --train_split, or make the records with --masks_dir",
        )
    if stream.image_labels == "crop" and not index.has_mask.any():
        raise UserError(
            f"No image of split '{stream.split}' has a mask to take image-level labels from.",
            where=f"stream '{name}', --image_label_source=crop",
            accepted="a split with masks",
            fix="use --image_label_source=record, with image-level labels in the records",
        )


def _check_image_level_labels(name: str, stream: Stream, index: Index, config: DataConfig) -> None:
    """Insists on image-level labels, and on a class in them where the stream wants one.

    Raises:
      UserError: images lack them; names the first and counts them. With --skip_bad_records some
        may: they are left out as they come.
    """
    known = index.has_image_labels
    if not known.all() and not (config.skip_bad_records and known.any()):
        from_masks = ", or take the labels from the masks as published (--image_label_source=crop)"
        raise UserError(
            f"{_first_of(~known, index, stream.split)} no image-level labels."
            if known.any()
            else f"No image of split '{stream.split}' has image-level labels.",
            where=f"stream '{name}'",
            accepted="a split with image-level labels",
            fix=(
                "name these images too in the --image_labels of the converter (it names those "
                "that lack a line), or take them out of the folder or of the split's list"
                if known.any()
                else "make the records with --image_labels, or choose another --train_split_cls"
            )
            + ". If the command has --weakly: leave out --weakly"
            + (from_masks if index.has_mask.any() else ""),
        )
    empty = known & ~index.image_labels.any(1)
    if stream.require_foreground and empty.any():
        raise UserError(
            f"{_first_of(empty, index, stream.split)} image-level labels that name no class.",
            where=f"stream '{name}'",
            received=", ".join(index.ids[empty][:8]) + (" ..." if empty.sum() > 8 else ""),
            accepted="images that show at least one class besides the background",
            fix="take these ids out of the split's list, or correct their labels, and make its "
            "records again",
        )


def _first_of(which: np.ndarray, index: Index, split: str) -> str:
    """Returns the beginning of a sentence about some records: 'Image x of split y has'."""
    first, count = index.ids[np.argmax(which)], int(which.sum())
    if count == index.size:
        return f"Every image of split '{split}' has"
    if count == 1:
        return f"Image {first} of split '{split}' has"
    return f"{count} of {index.size} images of split '{split}', the first of them {first}, have"


def _check_views(name: str, stream: Stream, config: DataConfig) -> None:
    """Insists on an augmentation that makes the views of the stream.

    Raises:
      UserError: the stream wants others.
    """
    if stream.strong_views and not augment.makes_strong_views(config.augmentation):
        raise UserError(
            f"The method needs a weak and a strong view of the images of stream '{name}'; "
            f"--augmentation={config.augmentation} makes one view.",
            where="--augmentation",
            received=config.augmentation,
            accepted=", ".join(filter(augment.makes_strong_views, AUGMENTATIONS)),
            fix="leave out --augmentation, or choose a --method that takes one view of each image, "
            "such as supervised",
        )


def _check_sides(source: RecordSource, stream: Stream, config: DataConfig) -> None:
    """Refuses images that are too long for the augmentation.

    Raises:
      UserError: there is one; names it.
    """
    max_side = augment.max_side(config, light=stream.augment == "light")
    if max_side is None:
        return
    for height, width, name in zip(source.index.height, source.index.width, source.index.ids):
        size = size_in_range(int(height), int(width), config)
        if max(size) > max_side:
            raise UserError(
                f"Image {name} of split '{source.split}' is too long to be rotated.",
                where=f"--augmentation={config.augmentation}",
                received=f"{size[0]}x{size[1]} pixels",
                accepted=f"sides of at most {max_side} pixels",
                fix="make the records from smaller images, or set --min_resize_value and "
                "--max_resize_value",
            )


def _check_has_split(name: str, stream: Stream, spec: DatasetSpec) -> None:
    """Insists on a class split where the stream wants the labels of seen classes.

    Raises:
      UserError: the data set has none.
    """
    if stream.labels == "seen" and spec.seen_unseen is None:
        raise UserError(
            f"Stream '{name}' needs to know which classes are seen.",
            where="--class_split",
            accepted="the name of a published split, or a JSON file",
        )


def _check_same_classes(dataset_dir: str, spec: DatasetSpec, config: DataConfig) -> None:
    """Compares the classes of a second directory with those of the first.

    Raises:
      UserError: they differ.
    """
    other = load_spec(dataset_dir, config.dataset)
    if (other.class_names, other.ignore_label) != (spec.class_names, spec.ignore_label):
        raise UserError(
            "The two splits have different classes.",
            where=f"--dataset_dir={config.dataset_dir}, --dataset_dir_cls={dataset_dir}",
            received=f"{other.num_classes} classes: {', '.join(other.class_names[:8])} ...",
            accepted=f"{spec.num_classes} classes: {', '.join(spec.class_names[:8])} ...",
            fix="make the second split's records with the class names of the first",
        )
