"""What an evaluation writes: metrics.json, TensorBoard and the lines on the terminal."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.data.atomic_writing import write_atomically
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.inference import zero_label
from tfseg.weights.checkpoint.writing import writing_events

METRICS_FILE = "metrics.json"


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
    """Writes TensorBoard scalars; undefined ones are left out.

    The IoU of a class stands under its name, `eval/iou/<name>`, and under the published one,
    `eval/miou_class_<id>`.
    """
    scalars = {
        "eval/miou_overall": result["miou"],
        "eval/pixel_accuracy": result["pixel_accuracy"],
    }
    for class_id, name in enumerate(spec.class_names):
        scalars[f"eval/miou_class_{class_id}"] = result["class_iou"][name]
        scalars[f"eval/iou/{name}"] = result["class_iou"][name]
    for key in ("cls_overall", "cls_precision", "cls_recall"):
        scalars[f"eval/{key}"] = result.get(key)
    for mode, scores in zero_label.scores_by_mode(result).items():
        for group, value in scores["mean_iou"].items():
            scalars[f"eval/{mode}/miou_{group}"] = value
    with writing_events(folder):
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
    if None in result["class_iou"].values():
        lines.append(
            "  (-: takes no part; no such pixel in masks or predictions, or not asked for)"
        )
    lines.append(f"  {'mIoU':<{width}} {per_cent(result['miou'])}")
    lines.append(f"  {'pixel accuracy':<{width}} {per_cent(result['pixel_accuracy'])}")
    for key in ("cls_overall", "cls_precision", "cls_recall"):
        if key in result:
            lines.append(f"  {key:<{width}} {per_cent(result[key])}")
    lines += zero_label.describe(result, per_cent)
    predicted = np.flatnonzero(np.sum(result["confusion_matrix"], axis=0))
    if len(predicted) == 1:
        lines.append(
            f"  every pixel was predicted as '{list(result['class_iou'])[predicted[0]]}': is the "
            "training long enough? (docs/faq.md, 'Everything is predicted as background')"
        )
    return "\n".join(lines)
