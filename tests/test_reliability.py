import math

import numpy as np
import pytest

from tfseg.ops.reliability import (
    area_under_precision,
    best_area,
    precision_over_coverage,
    reliability,
)


def test_bins_hold_counts_means_and_shares():
    found = reliability([0.0, 0.2, 0.25, 0.6, 1.0], [True, False, True, True, False], bins=4)
    # A confidence on an edge belongs to the bin below it.
    assert found.count.tolist() == [3, 0, 1, 1]
    np.testing.assert_allclose(found.confidence, [0.15, np.nan, 0.6, 1.0])
    np.testing.assert_allclose(found.accuracy, [2 / 3, np.nan, 1.0, 0.0])


def test_calibration_error_is_the_weighted_distance():
    confidence = [0.9, 0.9, 0.9, 0.9, 0.6, 0.6]
    right = [True, True, True, False, True, False]
    # |0.75 - 0.9| of four, |0.5 - 0.6| of two.
    error = reliability(confidence, right, bins=10).expected_calibration_error
    assert error == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    always = reliability([1.0, 1.0], [True, True]).expected_calibration_error
    assert always == 0.0
    assert math.isnan(reliability([], []).expected_calibration_error)


def test_float32_confidence_is_not_summed_in_float32():
    confidence = np.full(2_000_000, 0.1, np.float32)
    found = reliability(confidence, np.zeros(confidence.size, bool))
    assert found.confidence[1] == pytest.approx(0.1, abs=1e-7)


def test_precision_is_that_of_all_above_a_threshold():
    confidence = [0.5, 0.9, 0.7, 0.7, 0.3]
    right = [True, True, False, True, False]
    coverage, precision = precision_over_coverage(confidence, right)
    np.testing.assert_allclose(coverage, [0.2, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(precision, [1.0, 2 / 3, 3 / 4, 3 / 5])


def area(confidence, right):
    return area_under_precision(*precision_over_coverage(confidence, right))


def test_the_area_is_between_accuracy_and_the_best():
    right = np.array([True] * 6 + [False] * 4)
    # One confidence for all: no threshold helps.
    assert area(np.full(10, 0.8), right) == pytest.approx(0.6)
    assert area(np.linspace(1, 0, 10), right) == pytest.approx(
        0.6 + 0.6 * math.log(1 / 0.6), abs=1e-12
    )
    assert best_area(0.6) == pytest.approx(0.6 + 0.6 * math.log(1 / 0.6))
    assert area(np.linspace(0, 1, 10), right) < 0.6
    assert area([0.9, 0.4], [True, True]) == pytest.approx(1.0) == best_area(1.0)
    assert area([0.9, 0.4], [False, False]) == 0.0 == best_area(0.0)


def test_the_area_of_two_groups_by_hand():
    # Coverage 0 to 1/2 at precision 1; then precision (1/2 + (c - 1/2) / 2) / c = (1/4 + c/2) / c.
    confidence, right = [0.9, 0.9, 0.5, 0.5], [True, True, True, False]
    by_hand = 0.5 + 0.25 * math.log(2) + 0.5 * 0.5
    assert area(confidence, right) == pytest.approx(by_hand)
