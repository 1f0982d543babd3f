"""Distribution alignment of pixels: areas, factors, and what they do to predictions."""

import numpy as np
import tensorflow as tf

from tests.test_methods import make_method, toy_backbone  # noqa: F401
from tfseg.ops import distribution_alignment as ops


def test_areas_are_shares_of_the_pixels_that_count():
    probability = tf.constant([[[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]]] * 2)
    valid = tf.constant([[[1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(ops.areas(probability, valid), [[0.75, 0.25], [0.0, 0.0]])


def test_a_class_counts_in_the_images_that_may_show_it():
    area = tf.constant([[0.6, 0.4, 0.0], [0.8, 0.0, 0.2]])
    present = tf.constant([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    means = ops.area_means(area, present)
    np.testing.assert_allclose(means, [[0.7, 0.2, 0.1], [1.0, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(ops.factors(means, means), 1.0)
    # Class 1 takes 0.4 of its images in the masks and 0.1 in the predictions.
    few = tf.constant([[0.9, 0.05, 0.1], [1.0, 0.5, 0.5]])
    factor = ops.factors(1000.0 * means, 1000.0 * few)
    np.testing.assert_allclose(factor, [0.7 / 0.9, 4.0, 1.0], rtol=1e-3)


def test_nothing_is_known_before_the_first_image():
    nothing = tf.zeros([2, 4])
    np.testing.assert_allclose(ops.factors(nothing, nothing), 1.0)


def test_aligned_probabilities_are_the_former_ones_times_the_factors():
    logits = tf.random.stateless_normal([2, 3, 3, 4], [0, 1])
    factor = tf.constant([1.0, 2.0, 0.5, 3.0])
    expected = tf.nn.softmax(logits) * factor
    expected /= tf.reduce_sum(expected, -1, keepdims=True)
    np.testing.assert_allclose(
        tf.nn.softmax(ops.align(logits, factor)), expected, rtol=1e-5, atol=1e-7
    )


def aligned_method(**options):
    method, _ = make_method("unimatch", settings={"distribution_alignment": True}, **options)
    return method


def stream_of(logits, **more):
    return {"valid": tf.ones(logits.shape[:3]), **more}


def test_a_class_that_is_found_too_rarely_becomes_likelier():
    method = aligned_method()
    # Most of the masks is class 2, which is never the likeliest.
    label = tf.constant([[[0, 2], [2, 2]]])
    logits = tf.math.log(tf.constant([[[[0.6, 0.05, 0.3, 0.05]] * 2] * 2]))
    before = method.guess(logits, stream_of(logits))
    np.testing.assert_array_equal(before.label, 0)
    for _ in range(500):
        method.follow(method.guess(logits, stream_of(logits)), {"label": label})
    after = method.guess(logits, stream_of(logits))
    # Areas are those before alignment, so that the factors settle.
    np.testing.assert_allclose(after.area, [[0.6, 0.05, 0.3, 0.05]], rtol=1e-5)
    np.testing.assert_array_equal(after.label, 2)
    np.testing.assert_allclose(after.confidence, 0.75, atol=0.02)


def test_image_level_labels_say_in_which_images_a_class_counts():
    method = aligned_method(weakly=True)
    # The masks show class 1 in one of two images, on half of it; the predictions find it on a
    # quarter of the only image that shows it, among three without.
    label = tf.constant([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
    logits = tf.math.log(tf.constant([[[[0.75, 0.25 - 2e-6, 1e-6, 1e-6]] * 2] * 2] * 4))
    known = tf.constant([[1.0, 0, 0]] + [[0.0, 0, 0]] * 3)
    stream = stream_of(logits, image_label=known)
    labelled = {"label": label, "image_label": tf.constant([[1.0, 0, 0], [0.0, 0, 0]])}
    for _ in range(1000):
        method.follow(method.guess(logits, stream), labelled)
    factor = ops.factors(*tf.unstack(tf.convert_to_tensor(method.class_areas.means)))
    np.testing.assert_allclose(factor[1], 2.0, rtol=0.05)


def test_crops_without_a_class_of_their_image_change_nothing():
    method = aligned_method(weakly=True)
    # Both images show class 1. One crop lacks it, the other lacks the background.
    label = tf.constant([[[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    image_label = tf.constant([[1.0, 0, 0]] * 2)
    perfect = tf.math.log(tf.one_hot(label, 4) + 1e-9)
    labelled = {"label": label, "image_label": image_label}
    for _ in range(500):
        method.follow(method.guess(perfect, stream_of(perfect, image_label=image_label)), labelled)
    factor = ops.factors(*tf.unstack(tf.convert_to_tensor(method.class_areas.means)))
    np.testing.assert_allclose(factor[:2], 1.0, rtol=0.01)


def test_ignored_pixels_of_masks_do_not_count():
    method = aligned_method()
    ignored = method.spec.ignore_label
    label = tf.constant([[[0, ignored], [ignored, ignored]]])
    logits = tf.zeros([1, 2, 2, 4])
    method.follow(method.guess(logits, stream_of(logits)), {"label": label})
    of_masks, of_predictions = method.class_areas.means.numpy()
    np.testing.assert_allclose(of_masks, [[0.01, 0, 0, 0], [0.01] * 4], rtol=1e-5)
    np.testing.assert_allclose(of_predictions, [[0.0025] * 4, [0.01] * 4], rtol=1e-5)


def test_parts_of_a_batch_make_one_step():
    means = []
    for parts in (1, 4):
        method = aligned_method(gradient_accumulation_steps=parts)
        logits = tf.zeros([1, 2, 2, 4])
        for _ in range(parts):
            labelled = {"label": tf.zeros([1, 2, 2], tf.int32)}
            method.follow(method.guess(logits, stream_of(logits)), labelled)
        means.append(method.class_areas.means.numpy())
    np.testing.assert_allclose(means[0], means[1], rtol=1e-4)
