"""What an evaluation writes: metrics.json, TensorBoard and the lines on the terminal."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg import metrics
from tfseg.data.atomic_writing import write_atomically
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.inference.zero_label import describe_modes, scores_by_mode

METRICS_FILE = "metrics.json"


def summarize(matrix: np.ndarray, spec: DatasetSpec, *, absent: str = "skip") -> dict[str, Any]:
    """Returns IoU and errors by class, and 'miou' and 'pixel_accuracy'; None where undefined.

    Args:
      matrix: integers [C, C], rows = truth.
      spec: the data set.
      absent: see `metrics.mean_iou`. Classes that take no part in the data set's split are absent
        in neither sense: they have no value.
    """
    ids = (
        np.arange(spec.num_classes)
        if spec.seen_unseen is None
        else np.array(spec.seen_unseen.visible)
    )
    matrix = np.asarray(matrix)[np.ix_(ids, ids)]

    def by_name(values: np.ndarray) -> dict[str, float | None]:
        values = dict(zip(ids.tolist(), values))
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
    return None if math.isnan(value) else float(value)


def make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise UserError(
            "The output directory is a file.", where=path, fix="choose another directory"
        ) from None


def write_metrics(folder: str, result: Mapping[str, Any]) -> None:
    make_folder(folder)
    content = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(os.path.join(folder, METRICS_FILE), content.encode())


def write_summaries(folder: str, result: Mapping[str, Any], spec: DatasetSpec) -> None:
    """Writes TensorBoard scalars under the published names; undefined ones are left out."""
    scalars = {
        "eval/miou_overall": result["miou"],
        "eval/pixel_accuracy": result["pixel_accuracy"],
    }
    for class_id, name in enumerate(spec.class_names):
        scalars[f"eval/miou_class_{class_id}"] = result["class_iou"][name]
    for key in ("cls_overall", "cls_precision", "cls_recall"):
        scalars[f"eval/{key}"] = result.get(key)
    for mode, scores in scores_by_mode(result).items():
        for group, value in scores["mean_iou"].items():
            scalars[f"eval/{mode}/miou_{group}"] = value
    writer = tf.summary.create_file_writer(folder)
    with writer.as_default(step=max(result["step"], 0)):
        for name, value in scalars.items():
            if value is not None:
                tf.summary.scalar(name, value)
    writer.close()


def describe(result: Mapping[str, Any]) -> str:
    """Returns a result as a small table: mIoU, pixel accuracy, the IoU of every class."""

    def per_cent(value: float | None) -> str:
        return "   -  " if value is None else f"{100 * value:6.2f}"

    width = max(map(len, ("pixel accuracy", *result["class_iou"])))
    lines = [f"step {result['step']}, {result['num_images']} images, IoU in per cent:"]
    lines += [f"  {name:<{width}} {per_cent(x)}" for name, x in result["class_iou"].items()]
    lines.append(f"  {'mIoU':<{width}} {per_cent(result['miou'])}")
    lines.append(f"  {'pixel accuracy':<{width}} {per_cent(result['pixel_accuracy'])}")
    for key in ("cls_overall", "cls_precision", "cls_recall"):
        if key in result:
            lines.append(f"  {key:<{width}} {per_cent(result[key])}")
    if "zero_label" in result:
        lines += describe_modes(result, per_cent)
    return "\n".join(lines)
