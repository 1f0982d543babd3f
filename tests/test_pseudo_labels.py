import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops import losses
from tfseg.ops import pseudo_labels as ops


def test_joint_normalisation_keeps_the_proportion_of_the_two():
    first, second = tf.fill([1, 1, 1, 2], 3.0), tf.fill([1, 1, 1, 2], -4.0)
    a, b = ops.joint_normalisation(first, second)
    scale = np.sqrt((9 + 16) / 2)
    np.testing.assert_allclose(a, np.full([1, 1, 1, 2], 3 / scale), rtol=1e-6)
    np.testing.assert_allclose(b, np.full([1, 1, 1, 2], -4 / scale), rtol=1e-6)


def test_sharpening_at_a_half_squares():
    probs = tf.constant([[0.1, 0.3, 0.6]])
    np.testing.assert_allclose(
        ops.sharpen(probs, 0.5), [np.array([0.01, 0.09, 0.36]) / 0.46], rtol=1e-5
    )
    assert ops.sharpen(probs, 1.0) is probs


def test_absent_classes_get_nothing_and_background_stays():
    probs = tf.constant([[[[0.5, 0.3, 0.2]]]])
    masked = ops.mask_absent(probs, tf.constant([[0.0, 1.0]]))
    np.testing.assert_allclose(masked, [[[[5 / 7, 0.0, 2 / 7]]]], rtol=1e-6)
    without = ops.mask_absent(probs, tf.constant([[0.0, 1.0, 1.0]]), has_background=False)
    np.testing.assert_allclose(without, [[[[0.0, 0.6, 0.4]]]], rtol=1e-6)


def test_masking_everything_changes_nothing():
    probs = tf.constant([[[[0.0, 0.3, 0.7]]]])
    np.testing.assert_array_equal(ops.mask_absent(probs, tf.constant([[0.0, 0.0]])), probs)


def _consistency(**options):
    logits = tf.constant([[[[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]]]])
    target = tf.constant([[[[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]]]])
    valid = tf.constant([[[1.0, 1.0, 0.0]]])
    return losses.consistency_loss(target, logits, valid, **options).numpy()


def test_consistency_is_the_mean_over_valid_pixels():
    first = -0.9 * np.log(1 / (1 + np.exp(-2))) - 0.1 * np.log(1 / (1 + np.exp(2)))
    second = -0.2 * np.log(1 / (1 + np.exp(1))) - 0.8 * np.log(1 / (1 + np.exp(-1)))
    assert _consistency() == pytest.approx((first + second) / 2, rel=1e-5)
    # Pixels below the threshold leave the sum, not the denominator.
    confident = tf.constant([[[1.0, 0.0, 1.0]]])
    assert _consistency(confident=confident) == pytest.approx(first / 2, rel=1e-5)


def test_hard_targets_are_class_ids():
    logits = tf.constant([[[[2.0, 0.0]]]])
    hard = losses.consistency_loss(tf.constant([[[1]]]), logits, tf.ones([1, 1, 1]))
    soft = losses.consistency_loss(tf.constant([[[[0.0, 1.0]]]]), logits, tf.ones([1, 1, 1]))
    assert float(hard) == pytest.approx(float(soft))


def test_consistency_of_nothing_valid_is_0():
    logits = tf.ones([1, 1, 1, 2])
    assert float(losses.consistency_loss(logits / 2, logits, tf.zeros([1, 1, 1]))) == 0.0
