"""The most confident share of every class in every image, and scores that stand out."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops.confident_share import class_of_image, most_confident, standardised


def probs_of(label, confidence, num_classes=4):
    """Returns probabilities with this arg max and maximum, [1, 1, P, C]."""
    label, confidence = np.asarray(label), np.asarray(confidence)
    rest = (1.0 - confidence) / (num_classes - 1)
    probs = np.repeat(rest[:, None], num_classes, 1)
    probs[np.arange(len(label)), label] = confidence
    return tf.constant(probs[None, None])


def kept(probs, percent, classes=(2, 3), candidate=None):
    shape = probs.shape[:3]
    candidate = tf.ones(shape, tf.bool) if candidate is None else candidate
    return most_confident(probs, candidate, classes=classes, percent=percent).numpy()


def test_half_of_each_class_by_hand():
    probs = probs_of([2, 2, 2, 2, 3, 3, 1], [0.5, 0.9, 0.6, 0.7, 0.4, 0.8, 0.99])
    np.testing.assert_array_equal(kept(probs, 50.0), [[[-1, 2, -1, 2, -1, 3, -1]]])


def test_the_number_is_rounded_down():
    probs = probs_of([2] * 7, np.linspace(0.5, 0.8, 7))
    for percent, number in ((0, 0), (14, 0), (15, 1), (99.9, 6), (100, 7)):
        assert (kept(probs, float(percent)) == 2).sum() == number
    # 29 of 100, whatever 0.29 * 100 is in floating point.
    probs = probs_of([3] * 100, np.linspace(0.5, 0.8, 100))
    assert (kept(probs, 29.0) == 3).sum() == 29


def test_equal_ones_are_taken_in_reading_order():
    probs = tf.reshape(probs_of([2] * 6, [0.6] * 6), [1, 2, 3, 4])
    np.testing.assert_array_equal(kept(probs, 50.0), [[[2, 2, 2], [-1, -1, -1]]])


def test_images_do_not_share():
    sure, unsure = probs_of([2, 2], [0.9, 0.8]), probs_of([2, 2], [0.4, 0.5])
    result = kept(tf.concat([sure, unsure], 0), 50.0)
    np.testing.assert_array_equal(result, [[[2, -1]], [[-1, 2]]])


def test_other_pixels_are_neither_named_nor_counted():
    probs = probs_of([2, 2, 2, 2], [0.9, 0.8, 0.7, 0.6])
    candidate = tf.constant([[[False, False, True, True]]])
    np.testing.assert_array_equal(kept(probs, 50.0, candidate=candidate), [[[-1, -1, 2, -1]]])
    assert (kept(probs, 50.0, classes=(3,)) == -1).all()


@pytest.mark.parametrize("jit", [False, True])
def test_a_graph_gives_the_same(jit):
    rng = np.random.default_rng(0)
    probs = tf.constant(rng.dirichlet(np.ones(4), (2, 5, 6)).astype("float32"))
    candidate = tf.constant(rng.random((2, 5, 6)) < 0.7)
    compiled = tf.function(
        lambda p, c: most_confident(p, c, classes=(1, 2), percent=60.0), jit_compile=jit
    )
    expected = most_confident(probs, candidate, classes=(1, 2), percent=60.0)
    np.testing.assert_array_equal(compiled(probs, candidate), expected)


def test_scores_are_standardised_over_the_candidates_of_each_image():
    rng = np.random.default_rng(1)
    scores = rng.normal([[[[3.0, -7.0]]]], [[[[0.5, 20.0]]]], (3, 6, 7, 2)).astype("float32")
    candidate = rng.random((3, 6, 7)) < 0.5
    candidate[2] = False
    result = standardised(tf.constant(scores), tf.constant(candidate)).numpy()
    for i in (0, 1):
        of = scores[i][candidate[i]].astype("float64")
        expected = (scores[i] - of.mean(0)) / of.std(0)
        np.testing.assert_allclose(result[i], expected, rtol=1e-4, atol=1e-4)
    assert (result[2] == 0).all()
    equal = standardised(tf.ones([1, 2, 2, 1]), tf.ones([1, 2, 2], tf.bool))
    np.testing.assert_array_equal(equal, np.zeros([1, 2, 2, 1]))


def test_an_image_is_of_the_class_that_is_likelier_there_than_usual():
    scores = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    chosen = np.random.default_rng(2).random((4, 3, 3)) < 0.5
    chosen[2] = False
    scores[2] = 1e3
    candidate = chosen | (np.random.default_rng(3).random((4, 3, 3)) < 0.5)
    candidate[2] = False
    both = tf.constant(chosen), tf.constant(candidate)
    result = class_of_image(tf.constant(scores), *both).numpy()
    mean = {i: scores[i][chosen[i]].mean(0) for i in (0, 1, 3)}
    usual = scores[candidate].mean(0)
    for image, value in mean.items():
        assert result[image] == (value - usual).argmax()
    assert len({result[i] for i in mean}) > 1 and 0 <= result[2] < 3
    # A class that is favoured in all images alike does not matter.
    favoured = class_of_image(tf.constant(scores + np.float32([0, 50, 0])), *both).numpy()
    np.testing.assert_array_equal(favoured[[0, 1, 3]], result[[0, 1, 3]])
