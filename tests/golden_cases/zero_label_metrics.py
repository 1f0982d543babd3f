"""Golden cases `strict/metrics` and `zs3/metrics`: scores of seen and unseen classes.

Confusion matrices are counted from label maps where a case has some, else they are inputs.
"""

import functools

import numpy as np

from tfseg import metrics

# Exact there: the sums differ in their order alone.
_TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _maps(arrays, prefix):
    """Returns (label, prediction) of all maps, flat."""
    numbers = range(sum(name.startswith(f"{prefix}gt_") for name in arrays))
    return (
        np.concatenate([arrays[f"{prefix}{kind}_{i}"].ravel().astype(np.int64) for i in numbers])
        for kind in ("gt", "pred")
    )


def _counted(label, prediction, classes, num_classes):
    """Counts pixels of some classes; whatever is no class is left out, as published."""
    weight = np.isin(label, list(classes))
    label = np.where(weight, label, 255)
    return metrics.confusion_matrix(
        label, prediction, int(num_classes), ignore_label=255, weight=weight
    )


def _class_ious(matrix):
    """The IoU of each class, as a group of its own; NaN for classes that are nowhere."""
    classes = range(len(matrix))
    return [metrics.group_scores(matrix, seen=[c], unseen=[])["mean_iou"]["seen"] for c in classes]


# STRICT -----------------------------------------------------------------------------------------

_STRICT_QUANTITIES = {
    "Overall Acc": "overall_accuracy",
    "Mean Acc": "mean_accuracy",
    "FreqW Acc": "frequency_weighted_iou",
    "Mean IoU": "mean_iou",
}


def _strict_quantities(path):
    def is_input(name):
        return name.startswith(("lm_gt_", "lm_pred_")) or name.endswith(
            ("_matrix", "_seen", "_unseen", "_n_class")
        )

    return [name for name in _load(path) if not is_input(name)]


def _strict_matrix(arrays, case):
    if not case.startswith("lm"):
        return arrays[f"{case}_matrix"]
    label, prediction = _maps(arrays, "lm_")
    # One of the published functions leaves out the pixels of class 0.
    first = 1 if case == "lm_plain_skip0" else 0
    return _counted(
        label, prediction, range(first, int(arrays["lm_n_class"])), arrays["lm_n_class"]
    )


def _check_strict(path, name):
    arrays = _load(path)
    case, _, quantity = name.partition("/")
    classes = case.partition("_")[0]
    matrix = _strict_matrix(arrays, case)
    if quantity == "class_iou":
        actual = _class_ious(matrix)
    else:
        scores = metrics.group_scores(
            matrix, seen=arrays[f"{classes}_seen"], unseen=arrays[f"{classes}_unseen"]
        )
        first, _, last = quantity.rpartition(" ")
        whole = quantity in _STRICT_QUANTITIES
        group = "all" if whole else last.lower()
        actual = scores[_STRICT_QUANTITIES[quantity if whole else first]][group]
    np.testing.assert_allclose(actual, arrays[name], **_TOLERANCE)


# ZS3 --------------------------------------------------------------------------------------------

_ZS3_QUANTITIES = {
    "pixel_acc_all_seen_unseen": "overall_accuracy",
    "mean_acc_all_seen_unseen": "mean_accuracy",
    "miou_all_seen_unseen": "mean_iou",
    "fwiou_all_seen_unseen": "frequency_weighted_iou",
}
_ZS3_INPUTS = ("seen", "unseen", "n_class", "harmonic_note")
_EVALUATOR_ORDER = ("overall_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def _zs3_quantities(path):
    """What to check; a confusion matrix without label maps is an input."""

    def is_input(name):
        is_matrix = name.endswith("/confusion") and not name.startswith("maps/")
        return is_matrix or name in _ZS3_INPUTS or name.startswith(("gt_", "pred_"))

    return [name for name in _load(path) if not is_input(name)]


def _zs3_matrix(arrays, case, counted=None):
    if case.startswith("cm"):
        matrix = arrays[f"{case}/confusion"]
        np.testing.assert_array_equal(matrix, matrix.astype(np.int64))
        return matrix.astype(np.int64)
    label, prediction = _maps(arrays, "")
    counted = range(int(arrays["n_class"])) if counted is None else counted
    return _counted(label, prediction, counted, arrays["n_class"])


def _check_zs3(path, name):
    arrays = _load(path)
    case, _, quantity = name.partition("/")
    groups = {"seen": arrays["seen"], "unseen": arrays["unseen"]}
    if case == "eval_su":
        # The second published evaluator counts the pixels of one group only, and skips.
        matrix = _zs3_matrix(arrays, "maps", groups.get(quantity))
        scores = metrics.group_scores(matrix, **groups, absent="skip")
        actual = [scores[key]["all"] for key in _EVALUATOR_ORDER]
    else:
        matrix = _zs3_matrix(arrays, case)
        scores = metrics.group_scores(matrix, **groups, absent="zero")
        if quantity == "confusion":
            actual = matrix
        elif quantity == "acc_by_class":
            actual = [
                metrics.group_scores(matrix, seen=[c], unseen=[])["mean_accuracy"]["seen"]
                for c in range(len(matrix))
            ]
        elif quantity == "iou_by_class":
            actual = _class_ious(matrix)
        else:
            values = scores[_ZS3_QUANTITIES[quantity]]
            actual = [values[group] for group in ("all", "seen", "unseen")]
    np.testing.assert_allclose(actual, arrays[name], **_TOLERANCE)


CASES = {
    "strict/metrics": (_strict_quantities, _check_strict),
    "zs3/metrics": (_zs3_quantities, _check_zs3),
}
