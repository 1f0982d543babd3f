"""What `eval.py` and `vis.py` share around the network: settings, classes allowed, the dense CRF.

With --use_image_labels the classes that an image may be given are those of its image-level labels,
and background where the data set has one. The labels are those of the record (image/class/label);
the published code of Learning Pseudo Labels takes them from the mask, where void counts as
background, and so cannot be used on images without one.

With --dense_crf the probabilities leave the graph, are cut and resized to the size of the original
image, and refined on its pixels by worker processes: the library holds Python's lock, so threads
would take turns. Images come back in the order in which they were predicted. Classes that are not
allowed stay so after the CRF, for SLRNet too, whose published code lets the CRF bring them back.

Where the data set has a split into seen and unseen classes, only these may be predicted.

Source: Learning Pseudo Labels specification 4.3, 4.4 and 6; SLRNet specification 6; STRICT
specification 1.6.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.config import DataConfig, PredictionConfig
from tfseg.data import records, tfexample
from tfseg.data.framing import RecordError
from tfseg.data.parallel import parallel_map
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError, check_choice
from tfseg.ops import dense_crf
from tfseg.ops.calibration import Calibration
from tfseg.ops.class_aware import present_classes
from tfseg.ops.resize import resize_bilinear, resize_nearest_align_corners
from tfseg.predict import ClassFilter, Views

_CRF_PREFIX = "crf_"
# Flags of the class filter.
_CLASS_FILTER = ("fp_cut", "topk_classes", "bg_pow", "suppressed_class")
# A hundred times the pixels of an image are all that its memory will bear.
_LARGEST_SCALE = 10


def check(config: PredictionConfig, spec: DatasetSpec) -> None:
    """Insists on settings that can be meant.

    Raises:
      UserError: a scale is not positive, settings do not go together or do not fit the data set, a
        flag of the CRF was given without --dense_crf, or the extra that it needs is missing.
    """
    scales = config.eval_scales
    if not scales or not all(0 < scale <= _LARGEST_SCALE for scale in scales):
        raise UserError(
            f"The scales must be positive numbers, at most {_LARGEST_SCALE}.",
            where="--eval_scales",
            received=", ".join(map(str, scales)) or "none",
            accepted="for example --eval_scales=0.75 --eval_scales=1 --eval_scales=1.25",
        )
    # Refuses what does not go together.
    views_of(config, spec)
    given = class_filter_of(config)
    if given and not spec.has_background:
        raise UserError(
            "Where classes are filtered the background takes what they leave, and this data set "
            "has none.",
            where=", ".join(f"--{name}" for name in given),
            received=f"data set {spec.name}",
            fix="leave these flags out",
        )
    if uses_scores(config) and config.use_image_labels:
        raise UserError(
            "Classes are filtered by image-level labels or by image-level scores.",
            where="--use_image_labels, --fp_cut, --topk_classes",
            fix="leave out --use_image_labels, or --fp_cut and --topk_classes",
        )
    _check_class_split(config, spec)
    if config.dense_crf:
        dense_crf.require()
        return
    for field in dataclasses.fields(PredictionConfig):
        if field.name.startswith(_CRF_PREFIX) and getattr(config, field.name) != field.default:
            raise UserError(
                f"--{field.name} needs --dense_crf.",
                where=f"--{field.name}",
                received=getattr(config, field.name),
                fix=f"add --dense_crf, or leave out --{field.name}",
            )


def _check_class_split(config: PredictionConfig, spec: DatasetSpec) -> None:
    if spec.split is None:
        if config.seen_bias:
            raise UserError(
                "Without a class split there are no seen classes to weaken.",
                where="--seen_bias",
                received=config.seen_bias,
                fix="leave out --seen_bias, or evaluate a run that was trained with --class_split",
            )
        return
    if config.seen_bias_space == "prob" and config.seen_bias > 1:
        raise UserError(
            "A bias of probabilities above 1 leaves no seen class.",
            where="--seen_bias",
            received=config.seen_bias,
            accepted="0 to 1, or any number from 0 on with --seen_bias_space=logit",
        )
    if config.seen_bias_space == "prob" and config.seen_bias and config.dense_crf:
        raise UserError(
            "The dense CRF needs probabilities, which are none after a bias was subtracted.",
            where="--seen_bias, --dense_crf",
            accepted="--seen_bias_space=logit",
            fix="sweep and set the bias in logit space, or leave out one of the two",
        )
    refused = {
        "--use_image_labels": config.use_image_labels,
        "--merge_scales=masks": config.merge_scales == "masks",
    }
    for flag in [flag for flag, is_set in refused.items() if is_set]:
        raise UserError(
            "A run with seen and unseen classes is not tested this way.",
            where=flag,
            received=f"class split {spec.split.name}",
            fix=f"leave out {flag}",
        )


def crf_settings(config: PredictionConfig) -> dict[str, Any]:
    """Returns the keyword arguments of `ops.dense_crf.dense_crf`."""
    return {name: getattr(config, _CRF_PREFIX + name) for name in dense_crf.LEARNING_PSEUDO_LABELS}


def views_of(config: PredictionConfig, spec: DatasetSpec) -> Views:
    """Returns the views in which the network sees an image, and what is done to masks.

    Raises:
      UserError: settings do not go together, or the data set has no such class.
    """
    suppressed = config.suppressed_class
    if suppressed is not None:
        names = spec.class_names[spec.first_image_class :]
        check_choice(suppressed, names, flag="suppressed_class", what="class")
        suppressed = spec.class_names.index(suppressed)
    return Views(
        scales=tuple(config.eval_scales),
        flip=config.add_flipped_images,
        merge_scales=config.merge_scales,
        scale_kernel=config.scale_kernel,
        class_filter=ClassFilter(
            score_cut=config.fp_cut,
            top_classes=config.topk_classes,
            background_power=config.bg_pow,
            suppressed_class=suppressed,
        ),
        calibration=calibration_of(config, spec),
    )


def calibration_of(config: PredictionConfig, spec: DatasetSpec) -> Calibration | None:
    """Returns how seen classes are weakened; None: not at all."""
    if spec.split is None or not config.seen_bias:
        return None
    return Calibration(spec.split.seen, config.seen_bias, config.seen_bias_space)


def resize_of(config: PredictionConfig) -> tuple[str, int] | None:
    """Returns how images and masks are resized, and to how many pixels; None: they are not."""
    return None if config.eval_resize == "none" else (config.eval_resize, config.eval_resize_side)


def uses_scores(config: PredictionConfig) -> bool:
    """Whether predictions need the image-level scores of the network."""
    return config.fp_cut is not None or config.topk_classes is not None


def class_filter_of(config: PredictionConfig) -> dict[str, Any]:
    """Returns the flags of the class filter that were set, by name."""
    defaults = PredictionConfig()
    return {
        name: getattr(config, name)
        for name in _CLASS_FILTER
        if getattr(config, name) != getattr(defaults, name)
    }


def settings_of(config: PredictionConfig) -> dict[str, Any]:
    """Returns how predictions were made, in JSON's own types."""
    return {
        "eval_scales": list(config.eval_scales),
        "add_flipped_images": config.add_flipped_images,
        "merge_scales": config.merge_scales,
        "scale_kernel": config.scale_kernel,
        "max_side": config.max_side,
        "eval_resize": resize_of(config) and list(resize_of(config)),
        "class_filter": class_filter_of(config) or None,
        "use_image_labels": config.use_image_labels,
        "dense_crf": crf_settings(config) if config.dense_crf else None,
    }


def classes_allowed(
    config: PredictionConfig,
    index: records.Index,
    spec: DatasetSpec,
    *,
    dataset_dir: str,
    split: str,
) -> np.ndarray | None:
    """Returns which classes each image may be given: by its labels, or by the class split.

    Args:
      config: whether image-level labels are used.
      index, spec, dataset_dir, split: see `classes_present`.

    Returns:
      float32 [number of records, C] of 0 and 1; None: all classes everywhere.

    Raises:
      RecordError: see `classes_present`.
    """
    if config.use_image_labels:
        return classes_present(index, spec, dataset_dir=dataset_dir, split=split)
    if spec.split is None:
        return None
    allowed = np.zeros((index.size, spec.num_classes), np.float32)
    allowed[:, list(spec.split.visible)] = 1.0
    return allowed


def evaluated_label(label: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Returns a mask as it is measured: classes that take no part in the split are ignored.

    Args:
      label: integers of any shape; ids that are no class stay, for the caller to refuse.
      spec: the data set.

    Returns:
      Integers of the same shape.
    """
    if spec.split is None:
        return label
    table = spec.split.evaluation_table(spec.num_classes, spec.ignore_label)
    is_class = (label >= 0) & (label < spec.num_classes)
    return np.where(is_class, table[np.where(is_class, label, 0)], label)


def classes_present(
    index: records.Index, spec: DatasetSpec, *, dataset_dir: str, split: str
) -> np.ndarray:
    """Returns which classes each image of a split may be given, by its image-level labels.

    Args:
      index: of the split.
      spec: the data set.
      dataset_dir: folder of the shards, to name them.
      split: name of the split.

    Returns:
      float32 [number of records, C] of 0 and 1.

    Raises:
      RecordError: a record has no image-level labels, or they leave no class at all.
    """
    present = present_classes(
        tf.constant(index.image_labels, tf.float32), has_background=spec.has_background
    ).numpy()
    unknown = np.flatnonzero(~index.has_image_labels)
    empty = np.flatnonzero(index.has_image_labels & ~present.any(axis=1))
    for numbers, what, accepted in (
        (unknown, "have no image-level labels", "image-level labels in every record"),
        (empty, "show no class by their image-level labels", "at least one class in every image"),
    ):
        if not numbers.size:
            continue
        first = int(numbers[0])
        raise RecordError(
            f"{numbers.size} of {index.size} images of split '{split}' {what}.",
            location=records.RecordReader(index, dataset_dir).location(first),
            key=tfexample.IMAGE_LABELS,
            received=f"image {index.ids[first]}",
            accepted=accepted,
            fix="make the records with image-level labels (build_folder.py --image_labels, or from "
            "the masks), or leave out --use_image_labels",
        )
    return present


def without_padding(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Cuts the padding off the rows and columns of one image's [H, W, ...], by `valid` [H, W]."""
    rows, columns = int(valid.any(axis=1).sum()), int(valid.any(axis=0).sum())
    return x[:rows, :columns]


def original_labels(labels: np.ndarray, valid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Brings labels to the size of the original image.

    Args:
      labels: integers [H, W] of the padded, perhaps resized image.
      valid: [H, W], true inside the image.
      height, width: of the original.

    Returns:
      [height, width], nearest labels where the image was resized.
    """
    labels = without_padding(labels, valid)
    if labels.shape == (height, width):
        return labels
    return resize_nearest_align_corners(labels[np.newaxis], (height, width))[0].numpy()


def original_probabilities(
    probs: np.ndarray, valid: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Brings probabilities to the size of the original image.

    Args:
      probs: float32 [H, W, C] of the padded, perhaps resized image.
      valid, height, width: as for `original_labels`.

    Returns:
      float32 [height, width, C], interpolated where the image was resized.
    """
    probs = without_padding(probs, valid)
    if probs.shape[:2] == (height, width):
        return probs
    return resize_bilinear(probs[np.newaxis], (height, width))[0].numpy()


def decode_image(data: bytes, location: records.Location | None = None) -> np.ndarray:
    """Returns an encoded image as uint8 RGB [H, W, 3].

    Raises:
      RecordError: it cannot be decoded; names the location.
    """
    return tfexample.decode_pixels(data, location=location, mode="RGB")


def decode_label(
    data: bytes, image_id: str, location: records.Location | None = None
) -> np.ndarray:
    """Returns an encoded mask as int64 [H, W].

    Raises:
      UserError: it cannot be decoded or has more than one channel; names the image.
    """
    label = tfexample.decode_pixels(data, location=location, key=tfexample.LABEL)
    if label.ndim != 2:
        raise UserError(
            "A mask is not a picture of class ids.",
            where=f"image {image_id}",
            received=f"{label.shape[-1]} channels",
            accepted="one channel",
            fix="make the records again with tfrecords_tools, which convert palettes",
        )
    return label.astype(np.int64)


def refined_labels(
    batches: Iterable[tuple[Mapping[str, Any], np.ndarray]],
    reader: records.RecordReader,
    index: records.Index,
    config: PredictionConfig,
    data_config: DataConfig,
    *,
    present: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the labels of every image after the dense CRF.

    Args:
      batches: of `pipeline.make_eval_dataset`, each with its probabilities, float32 [N, H, W, C];
        taken while earlier ones are being refined.
      reader: of the split.
      index: of the split.
      config: settings and number of processes of the CRF.
      data_config: limit of image sizes.
      present: of `classes_present`, or None.

    Yields:
      (record number, int32 [height, width]) at the original size, rows of weight 0 left out.

    Raises:
      UserError: a record is damaged, or a process died.
    """

    def tasks():
        for batch, probs in batches:
            valid, weight = batch["valid"].numpy() > 0, batch["weight"].numpy()
            for row, i in enumerate(batch["index"].numpy()):
                if not weight[row]:
                    continue
                i = int(i)
                example, location = reader.read(i), reader.location(i)
                tfexample.check_pixels(
                    example.image,
                    max_megapixels=data_config.max_image_megapixels,
                    location=location,
                )
                size = example.height, example.width
                yield (
                    i,
                    np.ascontiguousarray(original_probabilities(probs[row], valid[row], *size)),
                    decode_image(example.image, location),
                    None if present is None else present[i],
                )

    yield from parallel_map(
        functools.partial(dense_crf.refined_labels, **crf_settings(config)),
        tasks(),
        num_workers=min(config.crf_workers or os.cpu_count() or 1, index.size),
        # One image's probabilities are some twenty megabytes.
        chunk_size=1,
        chunks_ahead=2,
        flag="crf_workers",
    )
