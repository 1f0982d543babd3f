"""Segmentation and image-level metrics, from integer counts.

Everything is derived from a confusion matrix of int64 counts, rows = truth, columns = prediction.
Counts add up exactly in any order, so a result cannot depend on batch size or replica count.

Source: PseudoSeg specification 7, which is TensorFlow 1's `tf.metrics.mean_iou`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.errors import UserError, check_choice

# Ids listed in messages; a wrong class count would otherwise name every image of a split.
MAX_NAMED = 8


def label_error(label_id: int, num_classes: int, where: Any) -> UserError:
    """Returns the error for a label that is no class; shared by all who meet one."""
    return UserError(
        "A mask holds a label beyond the class count.",
        where=where,
        received=int(label_id),
        accepted=f"0 to {num_classes - 1}, or the ignore label",
        fix="check that the data set's description fits its masks (tfrecords_tools/check.py lists "
        "all such masks)",
    )


def confusion_matrix(
    label: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    *,
    ignore_label: int | None = None,
    weight: np.ndarray | None = None,
    where: Any = None,
) -> np.ndarray:
    """Counts pixels by true and predicted class.

    Args:
      label: integers, any shape; class ids or `ignore_label`.
      prediction: integers of the same shape, 0 to `num_classes - 1`.
      num_classes: C.
      ignore_label: pixels with this label are not counted; None: all are.
      weight: broadcastable to `label`; pixels with weight 0 are not counted, others once.
      where: named in the error, for instance the image's id.

    Returns:
      int64 [C, C], rows = label, columns = prediction.

    Raises:
      UserError: a counted label lies outside 0 to C - 1.
      ValueError: a prediction does, or the shapes differ.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise ValueError(f"label is {label.shape} and prediction {prediction.shape}")
    counted = np.ones(label.shape, bool)
    if ignore_label is not None:
        counted &= label != ignore_label
    if weight is not None:
        counted &= np.asarray(weight) != 0
    label = label[counted].astype(np.int64)
    prediction = prediction[counted].astype(np.int64)
    wrong = label[(label < 0) | (label >= num_classes)]
    if wrong.size:
        raise label_error(wrong[0], num_classes, where)
    if prediction.size and not 0 <= prediction.min() <= prediction.max() < num_classes:
        raise ValueError(f"predictions must lie within 0 and {num_classes - 1}")
    flat = np.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def batch_confusion_matrix(
    label: tf.Tensor,
    prediction: tf.Tensor,
    num_classes: int,
    *,
    ignore_label: int,
    weight: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Counts pixels of a batch by true and predicted class, inside a graph.

    Args:
      label: integers [N, H, W], class ids or `ignore_label`.
      prediction: integers [N, H, W], 0 to `num_classes - 1`.
      num_classes: C.
      ignore_label: pixels with this label are not counted.
      weight: [N]; images with weight 0 (which fill up the last batch) are not counted.

    Returns:
      The counts, int64 [C, C], and per image one label that is no class, or -1, int32 [N]: a
      graph cannot name an image, so the caller raises `label_error`.
    """
    label, prediction = tf.cast(label, tf.int32), tf.cast(prediction, tf.int32)
    counted = tf.reshape(tf.not_equal(weight, 0), [-1, 1, 1]) & tf.not_equal(label, ignore_label)
    is_class = (label >= 0) & (label < num_classes)
    # Negative labels cannot come out of an 8-bit mask; they are reported as the class count.
    wrong = tf.where(counted & ~is_class, tf.where(label < 0, num_classes, label), -1)
    # One more bucket takes what does not count. int32 holds the pixels of any batch.
    bucket = tf.where(counted & is_class, label * num_classes + prediction, num_classes**2)
    counts = tf.math.bincount(
        tf.reshape(bucket, [-1]), minlength=num_classes**2 + 1, maxlength=num_classes**2 + 1
    )
    matrix = tf.reshape(counts[: num_classes**2], [num_classes, num_classes])
    return tf.cast(matrix, tf.int64), tf.reduce_max(wrong, axis=[1, 2])


# What the IoU of a class is that has no true pixel: left out, or 0.
ABSENT_CLASSES = ("skip", "zero")


def class_iou(matrix: np.ndarray, *, absent: str = "skip") -> np.ndarray:
    """Returns the IoU of each class as it is reported, float64 [C].

    Args:
      matrix: integers [C, C], rows = truth.
      absent: 'skip': classes without a true pixel are NaN, even if they were predicted somewhere;
        in the mean the latter count as 0 (`mean_iou`). 'zero': they are 0.

    Source: 'zero': Learning Pseudo Labels specification 6 (there by an epsilon of 1e-10 in the
      denominator, which changes no other class by more than 1e-10).
    """
    truth, union, hit = _sums(matrix)
    return np.where(truth > 0, hit / np.maximum(union, 1), _of_absent(absent))


def mean_iou(matrix: np.ndarray, *, absent: str = "skip") -> float:
    """Returns the mean IoU over classes.

    Args:
      matrix: integers [C, C], rows = truth.
      absent: 'skip': over the classes that are present in truth or prediction; 'zero': over all,
        those that are not with an IoU of 0.

    Returns:
      A fraction; NaN if nothing was counted and absent classes are skipped.
    """
    if not np.isnan(_of_absent(absent)):
        return float(np.mean(class_iou(matrix, absent=absent)))
    _, union, hit = _sums(matrix)
    present = union > 0
    return float(np.mean(hit[present] / union[present])) if present.any() else float("nan")


def _of_absent(absent: str) -> float:
    check_choice(absent, ABSENT_CLASSES, flag="absent_classes", what="convention")
    return 0.0 if absent == "zero" else float("nan")


def class_errors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns false positives and false negatives of each class as shares of its union.

    With the IoU they sum to 1. NaN for classes that are nowhere.

    Args:
      matrix: integers [C, C], rows = truth.

    Returns:
      (false positives, false negatives), float64 [C] each.

    Source: SLRNet specification 6.
    """
    truth, union, hit = _sums(matrix)
    whole = np.where(union > 0, union, np.nan)
    return (union - truth) / whole, (truth - hit) / whole


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Returns the share of counted pixels whose class is right; NaN if none was counted."""
    total = int(np.sum(matrix))
    return int(np.trace(matrix)) / total if total else float("nan")


# What `group_scores` measures, and of which classes.
QUANTITIES = ("overall_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
GROUPS = ("all", "seen", "unseen", "harmonic")


def group_scores(
    matrix: np.ndarray, *, seen: Sequence[int], unseen: Sequence[int], absent: str = "skip"
) -> dict[str, dict[str, float]]:
    """Returns accuracy and IoU of the seen and the unseen classes, and their harmonic means.

    Args:
      matrix: integers [C, C], rows = truth. Pixels of a group are those of its rows; predictions of
        any class count against them.
      seen, unseen: class ids; together they are 'all', other classes take no part in a mean.
      absent: what a mean makes of a class without a value, which for the accuracy is one that is
        nowhere in truth, for the IoU one that is in neither truth nor prediction (in the prediction
        alone: an IoU of 0). 'skip': left out; 'zero': counts as 0.

    Returns:
      Fractions by name of `QUANTITIES` and of `GROUPS`; NaN for what has no pixel or no class.
        overall_accuracy: the share of a group's pixels that are right.
        mean_accuracy: mean over classes of the share of their pixels that are right.
        mean_iou: mean over classes.
        frequency_weighted_iou: sum over classes of the IoU times the class's share of the pixels
          of all classes, not of the group's: 'seen' and 'unseen' sum to 'all'.
        Their 'harmonic' is that of seen and unseen, see `harmonic_mean`.

    Source: STRICT specification 6 ('skip'); ZS3 specification 6 ('zero').
    """
    truth, union, hit = _sums(matrix)
    accuracy, iou = _shares(hit, truth), _shares(hit, union)
    frequency = truth / max(int(truth.sum()), 1)
    scores: dict[str, dict[str, float]] = {name: {} for name in QUANTITIES}
    for group, ids in (("all", (*seen, *unseen)), ("seen", seen), ("unseen", unseen)):
        ids = np.asarray(ids, np.int64)
        pixels = int(truth[ids].sum())
        values = (
            _ratio(int(hit[ids].sum()), pixels),
            _mean(accuracy[ids], absent),
            _mean(iou[ids], absent),
            float(np.nansum(frequency[ids] * iou[ids])) if truth.sum() else float("nan"),
        )
        for name, value in zip(QUANTITIES, values):
            scores[name][group] = value
    for values in scores.values():
        values["harmonic"] = harmonic_mean(values["seen"], values["unseen"])
    return scores


def harmonic_mean(a: float, b: float) -> float:
    """Returns 2 a b / (a + b); 0 where one of them is 0 or undefined.

    Source: STRICT specification 6.
    """
    return 2.0 / (1.0 / a + 1.0 / b) if a > 0 and b > 0 else 0.0


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole, NaN where there is no whole."""
    return part / np.where(whole > 0, whole, np.nan)


def _mean(values: np.ndarray, absent: str) -> float:
    """Returns the mean over classes; NaN without any."""
    defined = values[~np.isnan(values)]
    count = defined.size if np.isnan(_of_absent(absent)) else values.size
    return _ratio(float(defined.sum()), count)


def _sums(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns TP + FN, TP + FP + FN and TP of each class."""
    matrix = np.asarray(matrix)
    hit = np.diagonal(matrix)
    truth = matrix.sum(axis=1)
    return truth, truth + matrix.sum(axis=0) - hit, hit


@dataclasses.dataclass(frozen=True)
class ImageLevelCounts:
    """Counts of (image, class) pairs: present and found, and so on. They add up with `+`."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0

    def __add__(self, other: "ImageLevelCounts") -> "ImageLevelCounts":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return ImageLevelCounts(*(a + b for a, b in zip(mine, others)))

    @property
    def accuracy(self) -> float:
        """Share of all pairs that are right; NaN without any."""
        right = self.true_positives + self.true_negatives
        return _ratio(right, right + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        """Share of found pairs that are present; 0 if none was found, as published."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives, empty=0.0)

    @property
    def recall(self) -> float:
        """Share of present pairs that were found; 0 if none is present, as published."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives, empty=0.0)


def _ratio(part: float, whole: int, empty: float = float("nan")) -> float:
    return part / whole if whole else empty


def image_level_counts(image_logits: np.ndarray, image_label: np.ndarray) -> ImageLevelCounts:
    """Counts pairs of image and class; a class is found where its sigmoid is at least 0.5.

    Args:
      image_logits: float [N, K].
      image_label: multi-hot [N, K].
    """
    # sigmoid(x) >= 0.5 exactly where x >= 0.
    found, present = np.asarray(image_logits) >= 0, np.asarray(image_label) > 0
    return ImageLevelCounts(
        true_positives=int(np.sum(found & present)),
        false_positives=int(np.sum(found & ~present)),
        false_negatives=int(np.sum(~found & present)),
        true_negatives=int(np.sum(~found & ~present)),
    )
