"""From records on disk to batches: `tf.data` pipelines whose every position is arithmetic.

The order of a stream is a function of (seed, split, epoch) (`tfseg.data.sampling`), and the
augmentation of an example one of (seed, split, epoch, record). Where two streams read one split, or
splits of one name, the second has its own name beside the split's (`drawn_by`); a stream with
`order_of` has the order of another and an augmentation of its own. Batch g of a stream covers
positions g B .. (g + 1) B - 1 of the endless sequence of epochs, so a run resumes exactly by
starting at its step; nothing about the data is stored in checkpoints. Records are read by offset: a
damaged one never hides the rest of its shard.

The batch vocabulary, `batch[stream][key]`, as methods see it after `unpacked`:

| key | shape, dtype | meaning |
|---|---|---|
| `image` | [B, H, W, 3] float32, RGB 0-255 | a crop, its weak view |
| `image_strong`, `image_strong_2`, ... | as `image` | as many strong views of it as are asked for |
| `boxes` | [B, views, 4] int32 | CutMix: top, left, height, width for each strong view; 0: none |
| `label` | [B, H, W] int32 | class id or ignore label; absent where the stream has labels='none' |
| `image_label` | [B, K] float32 | multi-hot over the K image-level classes |
| `hidden_label` | [B, H, W] int32 | every mask, for monitors (labels='hidden', 'listed', 'seen') |
| `candidate` | [B, H, W] bool | may get a pseudo label of an unseen class (labels='seen') |
| `valid` | [B, H, W] float32 | 1 = image; 0 = padding, a hole of a strong view, or of a warp |
| `has_label` | [B] bool | whether the record has a mask (labels='listed': one that may be used) |
| `index` | [B] int64 | record number in the split |

Up to the device labels are uint8 (as in the records), `valid` is bool, and images are uint8 where
the augmentation makes whole grey levels: what one thread copies into batches is what a host can
deliver. `unpacked` begins every step.

With labels='seen' `label` went through the training table of the data set's class split after the
augmentation: seen classes stay, pixels of unseen ones are background where that is a seen class,
else ignored as unlabelled ones. `candidate` are the pixels that the table made background, or left
unlabelled, without void and padding; `hidden_label` went through the evaluation table. No id of an
unseen class reaches `label`, for the training table holds none (`tfseg.data.class_splits`).

Evaluation batches have `image`, `label`, `valid`, `has_label`, `index`, and `weight` [B] float32:
0 for rows that only fill the last batch up; where the data set has a class split their `label` went
through its evaluation table.

Source: PseudoSeg specification 2.5 and 3.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.data import augment, cutmix, sampling
from tfseg.data.augment.base import image_label_of
from tfseg.data.index import Index
from tfseg.data.reading import (
    agreeing_label,
    decode,
    decode_label,
    deterministic_options,
    num_threads,
    resize_in_range,
    seen_labels,
    size_in_range,
)
from tfseg.data.source import RecordSource
from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.settings.data import DataConfig

_MANY = np.iinfo(np.int64).max // 2


@dataclasses.dataclass(frozen=True)
class Slice:
    """Which part of each global batch an input pipeline delivers, and how.

    Attributes:
      pipeline: number of this input pipeline (worker).
      num_pipelines: how many there are.
      replicas: replicas that this one feeds; each takes a consecutive part.
    """

    pipeline: int = 0
    num_pipelines: int = 1
    replicas: int = 1


def _boxes(
    stream: Stream, config: DataConfig, settings: Mapping[str, Any], epoch: int, number: int
) -> np.ndarray:
    """Returns the boxes of CutMix of one example, int32 [strong views, 4], or none [0]."""
    drawn = [
        cutmix.draw(
            sampling.generator(settings["seed"], settings["drawn_by"], epoch, number, 2, view),
            config.train_crop_size,
        )
        for view in range(stream.strong_views if stream.boxes else 0)
    ]
    return np.array(drawn, np.int32)


# What is read of a record: image, mask, whether it has one, whether it may be used, image-level
# labels; number, size, seed, boxes.
_READ_TYPES = (
    *(tf.string, tf.string, tf.bool, tf.bool, tf.float32),
    *(tf.int64, tf.int32, tf.int64, tf.int32),
)


def _largest_px(index: Index, config: DataConfig) -> int | None:
    """Returns the pixels of a split's largest image; None where images are resized before."""
    if config.min_resize_value is not None:
        return None
    return int((index.height.astype(np.int64) * index.width).max())


def _training_example(source: RecordSource, stream: Stream, config: DataConfig, settings: dict):
    """Returns the function position -> example of one stream."""
    spec, order = source.spec, settings["order"]
    views = augment.make_views(
        config,
        strong_views=stream.strong_views,
        light=stream.augment == "light",
        mean_pixel=settings["mean_pixel"],
        ignore_label=spec.ignore_label,
        keeping_errors=source.keeping_errors,
        largest_px=_largest_px(source.index, config),
    )

    def read(position):
        epoch, _, repeat = order.at(int(position))
        i = source.good_record(lambda k: order.at(int(position) + k)[1])
        sides = int(source.index.height[i]), int(source.index.width[i])
        size = np.array(size_in_range(*sides, config), np.int32)
        # Each time that a record comes round in an epoch it is augmented differently.
        number = i + repeat * source.index.size
        seed = sampling.generator(
            settings["seed"], settings["drawn_by"], epoch, number, 1
        ).integers(np.iinfo(np.int64).max, size=2)
        boxes = _boxes(stream, config, settings, epoch, number)
        return (*source.fetch(i), np.int64(i), size, seed, boxes)

    def make(position):
        image, label, has_label, may_use, image_label, index, size, seed, boxes = tf.numpy_function(
            source.keeping_errors(read), [position], _READ_TYPES, stateful=False
        )
        size, seed = tf.ensure_shape(size, [2]), tf.ensure_shape(seed, [2])
        image = decode(image, 3)
        label = decode_label(label, has_label, image, spec, stream.labels)
        if stream.image_labels == "record" and stream.labels in ("required", "optional", "listed"):
            label = agreeing_label(label, may_use, image_label, spec)
        image, label = resize_in_range(image, label, size, config)
        example = views(image, label, size, seed)
        example["index"] = tf.ensure_shape(index, [])
        example["has_label"] = tf.ensure_shape(has_label, [])
        if stream.boxes:
            example["boxes"] = tf.ensure_shape(boxes, [stream.strong_views, 4])
        if stream.image_labels == "record":
            example["image_label"] = tf.ensure_shape(image_label, [spec.num_image_classes])
        elif stream.image_labels == "crop":
            example["image_label"] = image_label_of(
                example["label"],
                num_classes=spec.num_classes,
                first_class=spec.first_image_class,
                ignore_label=spec.ignore_label,
            )
        if stream.labels in ("hidden", "listed"):
            example["hidden_label"] = example.pop("label")
        if stream.labels == "seen":
            example |= seen_labels(example, spec)
        if stream.labels == "listed":
            may_use = tf.ensure_shape(may_use, [])
            example["has_label"] = may_use
            ignored = tf.cast(spec.ignore_label, tf.uint8)
            example["label"] = tf.where(may_use, example["hidden_label"], ignored)
        return example

    # Plain graph code: converting it would only take time.
    return tf.autograph.experimental.do_not_convert(make)


def _positions(stream: Stream, part: Slice, start_step: int) -> tf.data.Dataset:
    """Positions of this pipeline's share of each global batch, from a step on."""
    share = stream.batch_size // part.num_pipelines

    def position(k):
        return (k // share) * stream.batch_size + part.pipeline * share + k % share

    numbers = tf.data.Dataset.range(start_step * share, _MANY)
    return numbers.map(tf.autograph.experimental.do_not_convert(position))


def drawn_by(streams: Mapping[str, Stream]) -> dict[str, str]:
    """Returns, by stream, the name that its order and augmentation are drawn by, beside the seed.

    The name of its split. Where an earlier stream has that name, the stream's own name is added:
    two streams on one split would else have the same images in every step, with the same crop.
    """
    names: dict[str, str] = {}
    for name, stream in streams.items():
        drawn = stream.split
        while drawn in names.values():
            drawn += f"/{name}"
        names[name] = drawn
    return names


def ordered_by(streams: Mapping[str, Stream]) -> dict[str, str]:
    """Returns, by stream, the name that its order is drawn by, beside the seed; see `drawn_by`."""
    names = drawn_by(streams)
    return {name: names[stream.order_of or name] for name, stream in streams.items()}


_TYPES = {"label": tf.int32, "hidden_label": tf.int32, "valid": tf.float32}


def unpacked(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested batch of `make_train_dataset` with the types of the vocabulary above."""

    def one(key: str, x: Any) -> Any:
        if isinstance(x, Mapping):
            return unpacked(x)
        dtype = tf.float32 if key.startswith("image") else _TYPES.get(key)
        return x if dtype is None else tf.cast(x, dtype)

    return {key: one(key, x) for key, x in batch.items()}


def make_train_dataset(
    streams: Mapping[str, Stream],
    sources: Mapping[str, RecordSource],
    config: DataConfig,
    *,
    mean_pixel: Sequence[float],
    seed: int,
    start_step: int = 0,
    part: Slice = Slice(),
) -> tf.data.Dataset:
    """Makes the endless data set of a training run.

    Args:
      streams: what the method wants.
      sources: where each stream is read from, by the same names; they keep errors.
      config: crop size, scales, threads.
      mean_pixel: fills padding.
      seed: of order and augmentation.
      start_step: the first step whose batch is delivered.
      part: this input pipeline's part of every batch.

    Returns:
      Elements `{stream: {key: tensor}}` for `unpacked`, one for each replica and step, in turn.

    Raises:
      UserError: a batch cannot be divided among the replicas, the scales are out of order, or an
        image is too long for the augmentation.
    """
    datasets, names, orders = {}, drawn_by(streams), ordered_by(streams)
    for name, stream in streams.items():
        replicas = part.num_pipelines * part.replicas
        if stream.batch_size % replicas:
            raise UserError(
                f"The batch of stream '{name}' cannot be divided among {replicas} replicas.",
                where="--train_batch_size",
                received=stream.batch_size,
                accepted=f"a multiple of {replicas}",
            )
        settings = {
            "order": sampling.Order(orders[name], sources[name].epoch, seed),
            "drawn_by": names[name],
            "seed": seed,
            "mean_pixel": mean_pixel,
        }
        try:
            make = _training_example(sources[name], stream, config, settings)
        except ValueError as error:
            raise UserError(
                f"The random scales are wrong: {error}.",
                where="--min_scale_factor, --max_scale_factor",
            ) from None
        order, source = settings["order"], sources[name]
        datasets[name] = (
            source.reading_ahead(
                _positions(stream, part, start_step),
                lambda position, order=order: order.at(position)[1],
            )
            .map(make, num_parallel_calls=num_threads(config), deterministic=True)
            .batch(
                stream.batch_size // replicas,
                drop_remainder=True,
                # One thread copies some gigabytes a second, and may be too slow for a fast device.
                num_parallel_calls=2 * part.replicas,
                deterministic=True,
            )
        )
    dataset = tf.data.Dataset.zip(datasets).prefetch(2 * part.replicas)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return dataset.with_options(deterministic_options())
