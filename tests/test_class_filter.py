"""Class filtering: which classes stay, and what becomes of the masks."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops.class_filter import filter_classes, kept_classes


def logits_of(*probs):
    p = np.array(probs, np.float64)
    return tf.constant(np.log(p / (1 - p)), tf.float32)


SCORES = logits_of([0.9, 0.2, 0.5, 0.7], [0.1, 0.15, 0.05, 0.2])


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        ({"score_cut": 0.3}, [[1, 0, 1, 1], [0, 0, 0, 0]]),
        ({"top_classes": 2}, [[1, 0, 0, 1], [0, 1, 0, 1]]),
        ({"top_classes": 9}, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        # The places are among all classes, not among those above the cut.
        ({"score_cut": 0.6, "top_classes": 3}, [[1, 0, 0, 1], [0, 0, 0, 0]]),
        ({"score_cut": 0.12, "top_classes": 1}, [[1, 0, 0, 0], [0, 0, 0, 1]]),
    ],
    ids=str,
)
def test_kept_classes(settings, expected):
    np.testing.assert_array_equal(kept_classes(SCORES, **settings), expected)


def test_a_score_at_the_cut_is_taken_out():
    np.testing.assert_array_equal(kept_classes(tf.zeros([1, 2]), score_cut=0.5), [[0, 0]])


def test_equal_scores_stay_together():
    kept = kept_classes(logits_of([0.4, 0.8, 0.4, 0.3]), top_classes=2)
    np.testing.assert_array_equal(kept, [[1, 1, 1, 0]])
    # A network without image-level scores of its own gives 1 for every class.
    kept = kept_classes(tf.ones([2, 20]), score_cut=0.3, top_classes=6)
    np.testing.assert_array_equal(kept, np.ones([2, 20]))


MASKS = np.array([[[[0.5, 0.2, 0.3], [0.8, 0.1, 0.1]]]], np.float32)


def test_filtered_masks_are_not_normalised():
    present = tf.constant([[1.0, 0.0, 1.0]])
    filtered = filter_classes(MASKS, present, background_power=3.0)
    np.testing.assert_allclose(filtered, [[[[0.125, 0, 0.3], [0.512, 0, 0.1]]]], rtol=1e-6)


def test_a_suppressed_class_is_raised_to_twice_the_power_of_the_background():
    filtered = filter_classes(MASKS, background_power=1.0, suppressed_class=2)
    np.testing.assert_allclose(filtered, [[[[0.5, 0.2, 0.09], [0.8, 0.1, 0.01]]]], rtol=1e-6)
    filtered = filter_classes(MASKS, background_power=0.5, suppressed_class=2)
    np.testing.assert_allclose(filtered[..., 2], MASKS[..., 2], rtol=1e-6)
    np.testing.assert_allclose(filtered[..., 0], np.sqrt(MASKS[..., 0]), rtol=1e-6)


def test_each_image_has_its_own_classes():
    masks = np.full([2, 1, 1, 3], 0.25, np.float32)
    filtered = filter_classes(masks, tf.constant([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(filtered[:, 0, 0], [[0.25, 0.25, 0], [0.25, 0, 0]])


def test_without_settings_nothing_changes():
    np.testing.assert_array_equal(filter_classes(MASKS), MASKS)
