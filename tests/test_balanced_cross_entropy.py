"""Class-balanced cross entropy: weights by hand, images that do not count, gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops.balanced_cross_entropy import balanced_cross_entropy

IGNORE = 255


def _loss(logits, label, image_label=None):
    return balanced_cross_entropy(
        tf.constant(logits, tf.float32),
        tf.constant(label, tf.int32),
        ignore_label=IGNORE,
        image_label=None if image_label is None else tf.constant(image_label, tf.float32),
    )


def test_frequent_classes_weigh_less():
    # T = 4: three pixels of weight (4 - 3) / 5, one of (4 - 1) / 5; of six pixels two are ignored.
    label = [[[0, 0, 0], [2, IGNORE, IGNORE]]]
    loss = _loss(np.zeros([1, 2, 3, 4]), label)
    assert loss.numpy()[0] == pytest.approx((3 * 1 / 5 + 1 * 3 / 5) / 6 * math.log(4))


def test_counts_are_those_of_each_image():
    label = np.array([[[0, 0, 0, 1]], [[0, 1, 1, IGNORE]]])
    logits = np.random.default_rng(0).normal(size=[2, 1, 4, 2])
    together = _loss(logits, label)
    apart = [_loss(logits[n : n + 1], label[n : n + 1]).numpy()[0] for n in range(2)]
    np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_values_follow_the_formula():
    rng = np.random.default_rng(1)
    logits, label = rng.normal(size=[2, 3, 4, 3]), rng.choice([0, 1, 2, IGNORE], [2, 3, 4])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = []
    for n in range(2):
        counts = np.array([(label[n] == k).sum() for k in range(3)])
        weights = (counts.sum() - counts) / (1 + counts.sum())
        terms = [
            -weights[label[n][p]] * logs[n][p][label[n][p]] if label[n][p] != IGNORE else 0.0
            for p in np.ndindex(3, 4)
        ]
        expected.append(np.mean(terms))
    np.testing.assert_allclose(_loss(logits, label), expected, rtol=1e-5)


def test_logits_are_resized_to_the_labels():
    rng = np.random.default_rng(2)
    logits, label = rng.normal(size=[1, 3, 4, 3]), rng.integers(0, 3, [1, 9, 13])
    resized = tf.raw_ops.ResizeBilinear(
        images=tf.constant(logits, tf.float32), size=[9, 13], align_corners=True
    )
    np.testing.assert_allclose(_loss(logits, label), _loss(resized, label), rtol=1e-6)


@pytest.mark.parametrize("value", [0, 1, IGNORE])
def test_images_of_one_class_or_none_have_no_loss(value):
    logits = np.random.default_rng(3).normal(size=[1, 2, 2, 3])
    assert _loss(logits, np.full([1, 2, 2], value)).numpy().tolist() == [0.0]


@pytest.mark.parametrize("present, counts", [([1, 0], True), ([0, 0], False), ([1, 1], False)])
def test_with_image_labels_every_class_must_have_pixels(present, counts):
    label = [[[0, 1], [1, IGNORE]]]
    logits = np.random.default_rng(4).normal(size=[1, 2, 2, 3])
    unchecked, checked = _loss(logits, label), _loss(logits, label, [present])
    assert unchecked.numpy()[0] > 0.1
    assert checked.numpy()[0] == (unchecked.numpy()[0] if counts else 0.0)


def test_background_must_have_pixels_too():
    logits = np.random.default_rng(5).normal(size=[1, 1, 3, 3])
    assert _loss(logits, [[[1, 2, 2]]]).numpy()[0] > 0.1
    assert _loss(logits, [[[1, 2, 2]]], [[1, 1]]).numpy()[0] == 0.0


def test_gradients_reach_labelled_pixels_of_images_that_count():
    label = tf.constant([[[0, 1, IGNORE]], [[0, 0, 1]]])
    logits = tf.random.stateless_normal([2, 1, 3, 2], [3, 4])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = balanced_cross_entropy(
            logits, label, ignore_label=IGNORE, image_label=tf.constant([[1.0], [0.0]])
        )
    reached = np.abs(tape.gradient(loss, logits)).max(-1) > 0
    np.testing.assert_array_equal(reached, [[[True, True, False]], [[False] * 3]])


def test_compiled_and_in_half_precision_it_is_the_same():
    rng = np.random.default_rng(6)
    logits = tf.constant(rng.normal(size=[2, 4, 4, 3]), tf.float16)
    label = tf.constant(rng.choice([0, 1, 2, IGNORE], [2, 7, 7]), tf.int32)
    compiled = tf.function(
        lambda x, y: balanced_cross_entropy(x, y, ignore_label=IGNORE), jit_compile=True
    )
    expected = _loss(tf.cast(logits, tf.float32), label)
    np.testing.assert_allclose(compiled(logits, label), expected, rtol=1e-5)
