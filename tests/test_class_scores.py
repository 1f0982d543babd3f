"""Image-level scores and their losses: values by hand, limits and gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops.class_scores import class_loss, class_scores, focal_mask_penalty


def test_scores_follow_the_formula():
    # Two pixels; class 1: pooled (2 * 0.5 + 4 * 0.25) / (1 + 0.75), mean mask 0.375.
    logits = tf.constant([[[[1.0, 2.0, 3.0], [1.0, 4.0, -1.0]]]])
    masks = tf.constant([[[[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]]])
    expected = [
        2.0 / 1.75 + (1 - 0.375) ** 3 * math.log(0.01 + 0.375),
        -0.75 / 1.75 + (1 - 0.375) ** 3 * math.log(0.01 + 0.375),
    ]
    np.testing.assert_allclose(class_scores(logits, masks), [expected], rtol=1e-6)


def test_power_and_offset_are_those_of_the_penalty():
    masks = tf.constant([[[[0.5, 0.5]]]])
    scores = class_scores(tf.zeros([1, 1, 1, 2]), masks, power=2.0, offset=0.1)
    np.testing.assert_allclose(scores, [[0.25 * math.log(0.6)]], rtol=1e-6)


def test_penalty_of_empty_and_full_masks():
    masks = tf.constant([[[[0.0, 1.0]] * 3] * 3])
    penalty = focal_mask_penalty(masks)
    np.testing.assert_allclose(penalty, [[math.log(0.01), 0.0]], rtol=1e-6)


def test_penalty_is_finite_where_rounding_makes_a_mean_exceed_one():
    masks = tf.fill([1, 2, 2, 1], 1.000001)
    with tf.GradientTape() as tape:
        tape.watch(masks)
        penalty = focal_mask_penalty(masks, power=2.5)
    assert penalty.numpy().item() == 0.0
    assert np.isfinite(tape.gradient(penalty, masks)).all()


def test_background_moves_the_scores_through_the_masks_only():
    logits = tf.random.stateless_normal([2, 4, 5, 3], [1, 2])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        fixed = class_scores(logits, tf.stop_gradient(tf.nn.softmax(logits)))
        whole = class_scores(logits, tf.nn.softmax(logits))
    through_logits, both = tape.gradient(fixed, logits), tape.gradient(whole, logits)
    assert not through_logits.numpy()[..., 0].any()
    assert both.numpy()[..., 0].any()
    assert (np.abs(both) > 0).all()


def test_half_precision_is_widened():
    logits = tf.random.stateless_normal([2, 64, 64, 3], [1, 2])
    masks = tf.nn.softmax(logits)
    narrow = class_scores(tf.cast(logits, tf.float16), tf.cast(masks, tf.float16))
    assert narrow.dtype == tf.float32
    np.testing.assert_allclose(narrow, class_scores(logits, masks), atol=1e-3)


def test_loss_is_the_mean_over_classes_of_each_image():
    scores = tf.constant([[0.0, 2.0], [-1.0, 3.0]])
    loss = class_loss(scores, tf.constant([[1.0, 0.0], [0.0, 1.0]]))
    expected = [
        (math.log(2) + math.log1p(math.exp(2))) / 2,
        (math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))) / 2,
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_positive_weights_count_present_classes_more():
    scores, label = tf.constant([[0.5, 0.5]]), tf.constant([[1.0, 0.0]])
    positive, negative = math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.5))
    for weights, factor in (([10.0, 4.0], 10.0), (np.array([2.0, 3.0]), 2.0)):
        loss = class_loss(scores, label, positive_weights=weights)
        assert loss.numpy()[0] == pytest.approx((factor * positive + negative) / 2)


def test_losses_of_huge_scores_are_finite():
    scores, label = tf.constant([[1e4, -1e4]]), tf.constant([[0.0, 1.0]])
    for weights in (None, [10.0, 10.0]):
        assert np.isfinite(class_loss(scores, label, positive_weights=weights)).all()
