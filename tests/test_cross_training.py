"""Progressive cross training's pure functions, on arrays that a human can check."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops import cross_training

IGNORE = 255
LABEL = tf.constant([[[0, 0, 1], [2, IGNORE, IGNORE]]])
PREDICTION = tf.constant([[[0, 1, 1], [1, 2, 0]]])


@pytest.mark.parametrize("count_ignored, predicted", [(True, [2, 3, 1]), (False, [1, 3, 0])])
def test_counts_of_truth_prediction_and_agreement(count_ignored, predicted):
    counts = cross_training.class_counts(
        LABEL, PREDICTION, 3, ignore_label=IGNORE, count_ignored=count_ignored
    )
    np.testing.assert_array_equal(counts, [[2, 1, 1], predicted, [1, 1, 0]])
    iou = cross_training.iou_of_counts(counts)
    np.testing.assert_allclose(iou, [1 / (2 + predicted[0] - 1), 1 / 3, 0.0], rtol=1e-6)


def test_more_pixels_than_float32_counts_are_counted():
    pixels = 2**24 + 10
    label = tf.zeros([1, 1, pixels], tf.int32)
    counts = cross_training.class_counts(label, label, 1, ignore_label=255, count_ignored=True)
    np.testing.assert_array_equal(counts, [[pixels]] * 3)


def test_an_image_counts_by_its_worst_present_class():
    iou = tf.constant([0.9, 0.5, 0.0])
    present = tf.constant([[1.0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]])
    published = cross_training.image_weights(iou, present, power=2.0, zero_counts_as=1.0)
    np.testing.assert_allclose(published, [0.81, 0.25, 0.81, 1.0], rtol=1e-6)
    safer = cross_training.image_weights(iou, present, power=2.0, zero_counts_as=0.0)
    np.testing.assert_allclose(safer, [0.81, 0.25, 0.0, 1.0], rtol=1e-6)


def test_power_0_makes_every_image_count_the_same():
    weights = cross_training.image_weights(
        tf.constant([0.3, 0.0]), tf.ones([2, 2]), power=0.0, zero_counts_as=0.0
    )
    np.testing.assert_array_equal(weights, [1.0, 1.0])


def test_a_network_teaches_present_classes_and_masks_come_first():
    logits = np.zeros([2, 1, 2, 3], np.float32)
    logits[..., 2] = 9.0  # absent in the first image
    logits[..., 1] = [1.0, -1.0]
    present = tf.constant([[1.0, 1, 0], [1, 1, 1]])
    label = tf.constant([[[2, 2]], [[IGNORE, 1]]])
    with tf.GradientTape() as tape:
        variable = tf.Variable(logits)
        taught = cross_training.cross_label(variable, present, label, tf.constant([False, True]))
        total = tf.reduce_sum(tf.cast(taught, tf.float32) * 0.0)
    np.testing.assert_array_equal(taught, [[[1, 0]], [[IGNORE, 1]]])
    assert tape.gradient(total, variable) is None
