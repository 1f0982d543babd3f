"""Batches of one pass over a split, every record exactly once."""

import collections
import dataclasses

import numpy as np
import tensorflow as tf

from tfseg.data.augment.base import padded_view
from tfseg.data.image_input import ImageInput
from tfseg.data.reading import (
    decode,
    decode_label,
    deterministic_options,
    num_threads,
    table_lookup,
)
from tfseg.data.source import RecordSource
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.settings.data import DataConfig


def make_eval_dataset(
    split: str,
    spec: DatasetSpec,
    config: DataConfig,
    image_input: ImageInput,
    *,
    batch_size: int,
) -> "EvalDataset":
    """Makes the data set of one pass over a split, every record exactly once.

    Images of one padded size share batches, and no image is padded further for its neighbours'
    sake: padding changes predictions, so one that depended on the batch would make results depend
    on the batch size. The last batch of each size is filled up with rows of weight 0, so that all
    batches are full. Where every image is padded to its own next size there are many sizes, and a
    GPU with large batches works on many such rows; a crop size that holds all images avoids that.

    Args:
      split: name of the split.
      spec: the data set.
      config: directory, limits, threads.
      image_input: how the images are resized and padded.
      batch_size: rows of a batch.

    Returns:
      An iterable of batches (vocabulary: `pipeline`).

    Raises:
      UserError: the split is not there, empty or truncated; on iterating, a damaged record.
    """
    index = load_index(config.dataset_dir, split, spec)
    strict = dataclasses.replace(config, skip_bad_records=False)
    source = RecordSource(split, index, spec, strict, labels="optional")
    sizes = [
        image_input.seen_size(int(height), int(width))
        for height, width in zip(index.height, index.width)
    ]
    groups: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    for i, size in enumerate(sizes):
        groups[image_input.padded_size(size)].append(i)
    return EvalDataset(
        source, _eval_batches(source, config, image_input, groups, batch_size, sizes)
    )


def _eval_batches(source, config, image_input, groups, batch_size, image_sizes) -> tf.data.Dataset:
    """Batches of the images of each group, all padded to the size that is the group's key."""
    numbers, weights, sizes = [], [], []
    for size, members in groups.items():
        surplus = -len(members) % batch_size
        numbers += members + members[:1] * surplus
        weights += [1.0] * len(members) + [0.0] * surplus
        sizes += [size] * (len(members) + surplus)
    only_size = sizes[0] if len(groups) == 1 else None
    spec = source.spec
    table = spec.seen_unseen and spec.seen_unseen.evaluation_table(
        spec.num_classes, spec.ignore_label
    )

    def read(i):
        i = int(i)
        image, label, has_label, *_ = source.fetch(i)
        return image, label, has_label, np.array(image_sizes[i], np.int32)

    def make(i, weight, size):
        image, label, has_label, shape = tf.numpy_function(
            source.keeping_errors(read), [i], (tf.string, tf.string, tf.bool, tf.int32)
        )
        image = decode(image, 3)
        label = decode_label(label, has_label, image, source.spec, "optional")
        if table is not None:
            label = table_lookup(label, table)
        image, label = image_input.resized(image, label, tf.ensure_shape(shape, [2]))
        example = padded_view(
            image,
            label,
            size=size if only_size is None else only_size,
            mean_pixel=image_input.mean_pixel,
            ignore_label=source.spec.ignore_label,
        )
        has_label = tf.ensure_shape(has_label, [])
        return {**example, "index": i, "weight": weight, "has_label": has_label}

    columns = (np.array(numbers), np.array(weights, np.float32), np.array(sizes, np.int32))
    return (
        source.reading_ahead(tf.data.Dataset.from_tensor_slices(columns), lambda i: i)
        .map(
            tf.autograph.experimental.do_not_convert(make),
            num_parallel_calls=num_threads(config),
            deterministic=True,
        )
        .batch(batch_size, drop_remainder=True)
        .prefetch(2)
        .with_options(deterministic_options())
    )


class EvalDataset:
    """One pass over a split; errors of its records are raised as the user's."""

    def __init__(self, source: RecordSource, batches: tf.data.Dataset):
        self._source, self._batches = source, batches

    def __iter__(self):
        try:
            yield from self._batches
        except tf.errors.OpError:
            self._source.explain()
            raise
