"""Which classes an image may be given.

With --use_image_labels they are those of its image-level labels, and background where the data set
has one. The labels are those of the record (image/class/label); the published code of Learning
Pseudo Labels takes them from the mask, where void counts as background, and so cannot be used on
images without one. Where the data set has a split into seen and unseen classes, these alone may be
predicted.

Source: Learning Pseudo Labels specification 4.3; STRICT specification 1.6.
"""

import numpy as np
import tensorflow as tf

from tfseg.data import tfexample
from tfseg.data.framing import RecordError
from tfseg.data.index import Index
from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import DatasetSpec
from tfseg.inference.zero_label import classes_taking_part
from tfseg.ops.class_aware import present_classes
from tfseg.settings.prediction import PredictionConfig


def classes_allowed(
    config: PredictionConfig,
    index: Index,
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
    classes = classes_taking_part(spec)
    if len(classes) == spec.num_classes:
        return None
    allowed = np.zeros((index.size, spec.num_classes), np.float32)
    allowed[:, classes] = 1.0
    return allowed


def classes_present(index: Index, spec: DatasetSpec, *, dataset_dir: str, split: str) -> np.ndarray:
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
            location=RecordReader(index, dataset_dir).location(first),
            key=tfexample.IMAGE_LABELS,
            received=f"image {index.ids[first]}",
            accepted=accepted,
            fix="make the records with image-level labels (build_folder.py --image_labels, or from "
            "the masks), or leave out --use_image_labels",
        )
    return present
