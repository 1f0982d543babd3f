"""The figures of a confusion matrix, as metrics.json and the page of pictures have them."""

import math
from typing import Any

import numpy as np

from tfseg import metrics
from tfseg.data.specs import DatasetSpec


def summarize(
    matrix: np.ndarray, spec: DatasetSpec, *, classes: np.ndarray, absent: str = "skip"
) -> dict[str, Any]:
    """Returns IoU and errors by class, and 'miou' and 'pixel_accuracy'; None where undefined.

    Args:
      matrix: integers [C, C], rows = truth.
      spec: the data set.
      classes: ids of the classes that take part. The others have no value, whatever `absent` is.
      absent: see `metrics.mean_iou`.
    """
    matrix = np.asarray(matrix)[np.ix_(classes, classes)]

    def by_name(values: np.ndarray) -> dict[str, float | None]:
        values = dict(zip(classes.tolist(), values))
        return {name: or_none(values.get(c, math.nan)) for c, name in enumerate(spec.class_names)}

    false_positives, false_negatives = metrics.class_errors(matrix)
    return {
        "miou": or_none(metrics.mean_iou(matrix, absent=absent)),
        "class_iou": by_name(metrics.class_iou(matrix, absent=absent)),
        "class_false_positives": by_name(false_positives),
        "class_false_negatives": by_name(false_negatives),
        "pixel_accuracy": or_none(metrics.pixel_accuracy(matrix)),
    }


def or_none(value: float) -> float | None:
    """Returns a score as JSON can have it: None where it is undefined."""
    return None if math.isnan(value) else float(value)
