"""Confusion matrices, IoU, image-level counts."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg import metrics
from tfseg.errors import UserError

LABEL = np.array([[0, 0, 1], [1, 255, 2]])
PREDICTION = np.array([[0, 1, 1], [1, 2, 0]])


def test_counts_pixels_by_truth_and_prediction():
    matrix = metrics.confusion_matrix(LABEL, PREDICTION, 3, ignore_label=255)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 2, 0], [1, 0, 0]])


def test_pixels_with_weight_zero_are_not_counted():
    weight = np.array([[1.0], [0.0]])
    matrix = metrics.confusion_matrix(LABEL, PREDICTION, 3, ignore_label=255, weight=weight)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])


def test_a_label_beyond_the_class_count_is_named():
    with pytest.raises(UserError) as error:
        metrics.confusion_matrix(
            np.array([0, 200]), np.array([0, 0]), 3, ignore_label=255, where="image 7"
        )
    assert "200" in str(error.value) and "image 7" in str(error.value)


def test_a_prediction_that_is_no_class_is_a_defect():
    with pytest.raises(ValueError, match="within 0 and 2"):
        metrics.confusion_matrix(np.array([0]), np.array([3]), 3)


@pytest.mark.parametrize("ignore_label", [0, 255])
def test_counts_in_a_graph_equal_those_of_numpy(ignore_label):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (4, 9, 7))
    label[rng.random(label.shape) < 0.2] = ignore_label
    prediction = rng.integers(0, 5, (4, 9, 7))
    weight = np.array([1.0, 0.0, 1.0, 0.0], np.float32)
    count = tf.function(
        lambda *x: metrics.batch_confusion_matrix(
            x[0], x[1], 5, ignore_label=ignore_label, weight=x[2]
        )
    )
    matrix, wrong = count(label, prediction, weight)
    expected = metrics.confusion_matrix(
        label, prediction, 5, ignore_label=ignore_label, weight=weight[:, None, None]
    )
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == tf.int64
    np.testing.assert_array_equal(wrong, [-1, -1, -1, -1])


def test_counts_in_a_graph_are_exact_where_float32_is_not():
    side = 4097  # 4097^2 is odd and above 2^24
    zeros = tf.zeros([1, side, side], tf.int32)
    matrix, _ = metrics.batch_confusion_matrix(
        zeros, zeros, 2, ignore_label=255, weight=tf.ones([1])
    )
    np.testing.assert_array_equal(matrix, [[side * side, 0], [0, 0]])
    assert int(np.float32(side * side)) != side * side


def test_wrong_labels_are_reported_per_image_and_not_counted():
    label = np.array([[[0, 1]], [[1, 200]], [[255, 77]], [[90, 1]]])
    matrix, wrong = metrics.batch_confusion_matrix(
        label, np.zeros_like(label), 3, ignore_label=255, weight=tf.constant([1.0, 1, 1, 0])
    )
    np.testing.assert_array_equal(wrong, [-1, 200, 77, -1])
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [2, 0, 0], [0, 0, 0]])


# Class 2 is only predicted, class 3 neither there nor predicted.
MATRIX = np.array([[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_class_iou_is_undefined_without_true_pixels():
    np.testing.assert_allclose(metrics.class_iou(MATRIX), [3 / 4, 2 / 5, np.nan, np.nan])


def test_mean_iou_counts_a_class_that_is_only_predicted_as_zero():
    assert metrics.mean_iou(MATRIX) == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)


def test_pixel_accuracy():
    assert metrics.pixel_accuracy(MATRIX) == 5 / 8


def test_nothing_counted_is_undefined():
    empty = np.zeros((3, 3), np.int64)
    assert np.isnan(metrics.mean_iou(empty)) and np.isnan(metrics.pixel_accuracy(empty))


def test_image_level_metrics_are_micro_averages():
    logits = np.array([[2.0, -1.0, 0.0], [-3.0, 1.0, -1.0]])
    present = np.array([[1, 1, 0], [0, 1, 0]])
    counts = metrics.image_level_counts(logits[:1], present[:1])
    counts += metrics.image_level_counts(logits[1:], present[1:])
    assert counts == metrics.ImageLevelCounts(2, 1, 1, 2)
    assert counts.accuracy == 4 / 6
    assert counts.precision == 2 / 3
    assert counts.recall == 2 / 3


def test_precision_and_recall_without_positives_are_zero():
    counts = metrics.image_level_counts(np.array([[-1.0]]), np.array([[0]]))
    assert (counts.accuracy, counts.precision, counts.recall) == (1.0, 0.0, 0.0)


def test_absent_classes_are_skipped_or_count_as_zero():
    # Class 2 is nowhere; class 3 was predicted on one pixel of class 0.
    matrix = np.array([[3, 0, 0, 1], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(metrics.class_iou(matrix), [0.75, 1, np.nan, np.nan])
    np.testing.assert_array_equal(metrics.class_iou(matrix, absent="zero"), [0.75, 1, 0, 0])
    assert metrics.mean_iou(matrix) == pytest.approx(1.75 / 3)
    assert metrics.mean_iou(matrix, absent="zero") == pytest.approx(1.75 / 4)
    assert metrics.mean_iou(np.zeros((2, 2), int), absent="zero") == 0
    with pytest.raises(UserError, match="skip, zero"):
        metrics.mean_iou(matrix, absent="one")


def test_errors_by_class_and_iou_sum_to_one():
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    false_positives, false_negatives = metrics.class_errors(matrix)
    np.testing.assert_allclose(false_positives, [1 / 9, 2 / 6, np.nan])
    np.testing.assert_allclose(false_negatives, [2 / 9, 1 / 6, np.nan])
    total = metrics.class_iou(matrix) + false_positives + false_negatives
    np.testing.assert_allclose(total, [1, 1, np.nan])


# Seen and unseen classes ------------------------------------------------------------------------

# Class 3 is nowhere but in one prediction, class 4 takes no part.
GROUPED = np.array(
    [
        [6, 1, 1, 0, 0],
        [2, 2, 0, 0, 0],
        [1, 0, 2, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
)


def grouped(absent="skip", matrix=GROUPED):
    return metrics.group_scores(matrix, seen=(0, 1), unseen=(2, 3), absent=absent)


def test_scores_of_seen_and_unseen_classes():
    scores = grouped()
    assert tuple(scores) == metrics.QUANTITIES
    iou = 6 / 11, 2 / 5, 2 / 5
    expected = {
        "overall_accuracy": (10 / 16, 8 / 12, 2 / 4),
        "mean_accuracy": ((6 / 8 + 2 / 4 + 2 / 4) / 3, (6 / 8 + 2 / 4) / 2, 2 / 4),
        # Class 3 was predicted and is nowhere: an IoU of 0, but no accuracy.
        "mean_iou": (sum(iou) / 4, (iou[0] + iou[1]) / 2, iou[2] / 2),
        "frequency_weighted_iou": (
            (8 * iou[0] + 4 * iou[1] + 4 * iou[2]) / 16,
            (8 * iou[0] + 4 * iou[1]) / 16,
            4 * iou[2] / 16,
        ),
    }
    for name, (both, seen, unseen) in expected.items():
        assert tuple(scores[name]) == metrics.GROUPS
        harmonic = 2 * seen * unseen / (seen + unseen)
        np.testing.assert_allclose(
            [scores[name][group] for group in metrics.GROUPS], [both, seen, unseen, harmonic]
        )


def test_classes_that_are_nowhere_can_count_as_zero_but_not_those_of_no_group():
    skipped, zero = grouped(), grouped("zero")
    assert zero["mean_accuracy"]["unseen"] == pytest.approx(skipped["mean_accuracy"]["unseen"] / 2)
    assert zero["mean_accuracy"]["all"] == pytest.approx((6 / 8 + 2 / 4 + 2 / 4) / 4)
    for name in ("overall_accuracy", "mean_iou", "frequency_weighted_iou"):
        assert zero[name] == skipped[name]
    without = GROUPED.copy()
    without[2, 3] = 0
    assert grouped("skip", without)["mean_iou"]["unseen"] == pytest.approx(2 / 4)
    assert grouped("zero", without)["mean_iou"]["unseen"] == pytest.approx(1 / 4)
    with pytest.raises(UserError, match="skip, zero"):
        grouped("one")


def test_what_is_not_there_is_undefined_and_its_harmonic_mean_zero():
    seen_only = np.diag([3, 4, 0, 0, 0])
    for scores in grouped(matrix=seen_only).values():
        assert scores["seen"] == scores["all"] == 1 and scores["harmonic"] == 0
    for name in ("overall_accuracy", "mean_accuracy", "mean_iou"):
        assert np.isnan(grouped(matrix=seen_only)[name]["unseen"])
    for scores in grouped(matrix=np.zeros((5, 5), int)).values():
        assert np.isnan([scores[group] for group in ("all", "seen", "unseen")]).all()


def test_the_harmonic_mean():
    assert metrics.harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)
    assert metrics.harmonic_mean(0.0, 0.7) == metrics.harmonic_mean(0.7, 0.0) == 0
    assert metrics.harmonic_mean(float("nan"), 0.7) == metrics.harmonic_mean(0.7, np.nan) == 0
