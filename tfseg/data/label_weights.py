"""Weights of classes in the cross entropy that make up for their shares of the pixels."""

import os
from collections.abc import Sequence

import numpy as np

from tfseg.data.specs import DATASET_FILE, DatasetSpec, read_dataset_json, split_entry
from tfseg.errors import UserError

# Enough for a loss, and short enough to be copied from a terminal.
_DIGITS = 4


def balanced(pixels: Sequence[int]) -> list[float]:
    """Returns N / (K n) for a class with n of N pixels, where K classes have pixels.

    The mean weight of a pixel is 1. A class without a pixel has the weight 1.

    Args:
      pixels: number of labelled pixels by class id.

    Source: `class_weight="balanced"` of scikit-learn; King and Zeng, "Logistic regression in rare
    events data", Political Analysis 2001. Rounded to four digits.
    """
    counts = np.asarray(pixels, np.int64)
    present = np.count_nonzero(counts)
    total = int(counts.sum())
    return [float(f"{total / (present * n):.{_DIGITS}g}") if n else 1.0 for n in counts.tolist()]


def of_split(dataset_dir: str, split: str, spec: DatasetSpec) -> tuple[list[float], list[str]]:
    """Returns the balanced weights of a split, from the counts of its dataset.json.

    Args:
      dataset_dir: folder of the records.
      split: with masks.
      spec: the classes; those without pixel labels in training have the weight 1, and where their
        pixels are background they count as such.

    Returns:
      (weights by class id, names of the classes that should have pixels and have none).

    Raises:
      UserError: there are no counts, or no pixel.
    """
    counts = _counts(dataset_dir, split, spec)
    seen = range(spec.num_classes)
    if spec.seen_unseen is not None:
        seen, background = spec.seen_unseen.seen, spec.seen_unseen.background
        hidden = [c for c in range(spec.num_classes) if c not in seen]
        if background is not None:
            counts[background] += counts[hidden].sum()
        counts[hidden] = 0
    if not counts.any():
        raise UserError(
            f"No mask of split '{split}' has a labelled pixel.",
            where=f"--label_weights, {dataset_dir}",
            fix="choose the split with masks: --train_split",
        )
    return balanced(counts), [spec.class_names[c] for c in seen if not counts[c]]


def _counts(dataset_dir: str, split: str, spec: DatasetSpec) -> np.ndarray:
    """Returns the pixels of a split by class id, [C] int64.

    Raises:
      UserError: dataset.json does not tell them.
    """
    content = read_dataset_json(dataset_dir) or {}
    where = os.path.join(dataset_dir, DATASET_FILE)
    pixels = (split_entry(content, split, where=where) or {}).get("pixels", {})
    missing = [name for name in spec.class_names if name not in pixels]
    if missing:
        raise UserError(
            "--label_weights=balanced needs the pixel counts that converters write.",
            where=f"{where}, split '{split}'",
            received=f"no count of {', '.join(missing[:3])}" if pixels else "no counts",
            fix="make the records again; or repeat --label_weights=NUMBER for each class with the "
            "numbers that tfrecords_tools/check.py prints",
        )
    return np.array([pixels[name] for name in spec.class_names], np.int64)
