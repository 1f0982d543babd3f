"""Measures how far the pseudo labels of trained runs can be trusted.

    python experiments/reliability.py --output_dir=calibration \
      --checkpoint_dirs=photographs/cells/pseudoseg-24-seed0/train,photographs/cells/unimatch-24-seed0/train

Each run's method labels images whose masks its training has hidden (crops and weak views as in its
first steps, networks as in evaluation). In --output_dir it writes calibration.json, with every
number, calibration.md, with

* the accuracy of the pseudo labels,
* the expected calibration error, of all pixels and of those labelled as one class,
* the area under precision over coverage, and the largest that this accuracy allows,

and reliability.svg: accuracy over confidence.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from line_chart import Line, Point, line_chart
from tfseg import command_line
from tfseg.data.atomic_writing import write_atomically
from tfseg.errors import UserError
from tfseg.ops import reliability as ops

FLAGS = flags.FLAGS
# Fewer predictions of a bin say nothing, and are not drawn.
_MIN_DRAWN = 100
# Thresholds of which precision and coverage are told.
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_list("checkpoint_dirs", None, "Training directories, with ',' between them.")
    flags.DEFINE_string("dataset_dir", None, "Folder of records; by default that of each run.")
    flags.DEFINE_string("output_dir", None, "Folder of the results.")
    flags.DEFINE_integer("images", 400, "Crops to look at.", lower_bound=1)
    flags.DEFINE_integer("bins", ops.BINS, "Bins of confidence.", lower_bound=1)


def figures_of(judged: Any, class_names: Sequence[str], bins: int) -> dict[str, Any]:
    """Returns the figures of one kind of pseudo label, of JSON's types.

    Args:
      judged: a `tfseg.runs.pseudo_labels.Judged` of at least one pixel.
      class_names: by class id.
      bins: of confidence.
    """
    found = ops.reliability(judged.confidence, judged.right, bins=bins)
    coverage, precision = ops.precision_over_coverage(judged.confidence, judged.right)
    accuracy = float(judged.right.mean())
    by_class = {
        name: ops.reliability(judged.confidence[own], judged.right[own], bins=bins)
        for c, name in enumerate(class_names)
        for own in [judged.label == c]
    }
    return {
        "pixels": int(judged.right.size),
        "accuracy": accuracy,
        "mean_confidence": float(judged.confidence.mean(dtype=np.float64)),
        "expected_calibration_error": found.expected_calibration_error,
        "class_calibration_error": {
            name: _or_none(own.expected_calibration_error) for name, own in by_class.items()
        },
        "area_under_precision": ops.area_under_precision(coverage, precision),
        "best_area": ops.best_area(accuracy),
        "thresholds": [
            _above(threshold, judged.confidence, judged.right) for threshold in _THRESHOLDS
        ],
        "bins": _bins(found),
        "class_bins": {name: _bins(own) for name, own in by_class.items()},
    }


def _above(threshold: float, confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    kept = confidence >= threshold
    return {
        "threshold": threshold,
        "coverage": float(kept.mean()),
        "precision": float(right[kept].mean()) if kept.any() else None,
    }


def _bins(found: ops.Reliability) -> list[dict[str, Any]]:
    rows = zip(found.count.tolist(), found.confidence.tolist(), found.accuracy.tolist())
    return [
        {"pixels": count, "confidence": _or_none(confidence), "accuracy": _or_none(accuracy)}
        for count, confidence, accuracy in rows
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def judge(checkpoint_dir: str, *, dataset_dir: str | None, images: int, bins: int) -> list[dict]:
    """Returns the figures of every kind of pseudo label of a run.

    Raises:
      UserError: see `tfseg.runs.pseudo_labels.PseudoLabels`.
    """
    # TensorFlow, which --help does not need.
    from tfseg.runs.pseudo_labels import PseudoLabels

    run = PseudoLabels(checkpoint_dir, dataset_dir)
    about = {
        "checkpoint": run.prefix,
        "method": run.config.method + (", image-level labels" if run.config.weakly else ""),
        "train_split": run.data.train_split,
        "train_split_cls": run.data.train_split_cls,
        "seed": run.config.seed,
        "images": images,
    }
    return [
        {**about, "kind": kind, **figures_of(judged, run.spec.class_names, bins)}
        for kind, judged in run.judged(images).items()
    ]


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Returns the figures as a Markdown table."""
    classes = list(entries[0]["class_calibration_error"])
    head = ["pseudo label", "masks", "accuracy", "mean confidence", "ECE", "area", "best area"]
    lines = [
        "ECE: expected calibration error; of a class: of the pixels that are labelled so. Area: "
        "under precision over coverage.",
        "",
        "| " + " | ".join([*head, *(f"ECE {name}" for name in classes)]) + " |",
        "|---" * (len(head) + len(classes)) + "|",
    ]
    for entry in entries:
        figures = (
            entry["accuracy"],
            entry["mean_confidence"],
            entry["expected_calibration_error"],
            entry["area_under_precision"],
            entry["best_area"],
            *(entry["class_calibration_error"].get(name) for name in classes),
        )
        cells = ["-" if value is None else f"{value:.3f}" for value in figures]
        lines.append(f"| {_name(entry)} | {' | '.join([entry['train_split'], *cells])} |")
    return "\n".join((*lines, ""))


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['method']}: {entry['kind']}"


def chart(entries: Sequence[dict[str, Any]]) -> str:
    """Returns the reliability diagram, SVG."""
    tenths = [tenth / 10 for tenth in range(11)]
    lines = [Line("calibrated", [Point(0, 0), Point(1, 1)], reference=True)]
    for entry in entries:
        drawn = [row for row in entry["bins"] if row["pixels"] >= _MIN_DRAWN]
        if drawn:
            points = [Point(row["confidence"], row["accuracy"]) for row in drawn]
            lines.append(Line(_name(entry), points))
    return line_chart(
        lines,
        title="Pseudo labels: accuracy over confidence",
        x_label="confidence",
        y_label="share that is right",
        x_ticks=tenths,
        y_ticks=tenths,
    )


def main(argv: list[str]) -> None:
    """Measures all runs, then writes."""
    for name in ("checkpoint_dirs", "output_dir"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is required.", where=f"--{name}", accepted=FLAGS[name].help)
    entries = []
    for folder in FLAGS.checkpoint_dirs:
        print(f"looking at {folder}", flush=True)
        entries += judge(
            folder, dataset_dir=FLAGS.dataset_dir, images=FLAGS.images, bins=FLAGS.bins
        )
    output = pathlib.Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    contents = {
        "calibration.json": json.dumps(entries, indent=1, allow_nan=False) + "\n",
        "calibration.md": table(entries),
        "reliability.svg": chart(entries),
    }
    for name, text in contents.items():
        write_atomically(str(output / name), text.encode())
    print(table(entries), flush=True)
    print(f"written: {output}", flush=True)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
