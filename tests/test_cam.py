import numpy as np
import tensorflow as tf

from tfseg.ops import cam


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_the_analytic_maps_are_those_of_grad_cam():
    features, kernel = tf.constant(_random(2, 3, 4, 5)), tf.constant(_random(1, 1, 5, 3, seed=1))

    @tf.function
    def by_gradient():
        pooled = tf.reduce_mean(features, [1, 2])
        return cam.grad_cam(tf.matmul(pooled, kernel[0, 0]), features)

    expected = by_gradient().numpy()
    assert expected.max() > 0.01
    np.testing.assert_allclose(cam.class_activation_maps(features, kernel), expected, atol=1e-6)


def test_the_published_axes_mix_the_images_of_a_batch():
    features, kernel = tf.constant(_random(2, 3, 4, 5)), tf.constant(_random(1, 1, 5, 3, seed=1))
    multiplier = tf.constant(2.0 * (_random(2, 1, 1, 5, seed=2) > 0), tf.float32)

    @tf.function
    def by_gradient():
        pooled = tf.reduce_mean(features, [1, 2]) * multiplier[:, 0, 0]
        return cam.grad_cam(tf.matmul(pooled, kernel[0, 0]), features, per_image=False)

    mean = tf.reduce_mean(multiplier, 0, keepdims=True)
    maps = cam.class_activation_maps(features, kernel, mean)
    np.testing.assert_allclose(maps, by_gradient(), atol=1e-6)
    own = cam.class_activation_maps(features, kernel, multiplier)
    assert np.abs(maps - own).max() > 0.01


def test_normalised_maps_reach_1_and_absent_classes_are_0():
    maps = tf.constant([[[[2.0, 3.0, 0.0]], [[1.0, 6.0, 0.0]]]])
    result = cam.normalise_maps(maps, tf.constant([[1.0, 0.0, 1.0]]))
    np.testing.assert_allclose(result, [[[[1.0, 0.0, 0.0]], [[0.5, 0.0, 0.0]]]])


def test_tiny_maps_are_not_blown_up():
    result = cam.normalise_maps(tf.constant([[[[1e-7]]]]), tf.constant([[1.0]]))
    np.testing.assert_allclose(result, [[[[1e-2]]]], rtol=1e-5)


def test_background_is_what_the_strongest_class_leaves():
    scores = tf.constant([[[[0.2, 0.7]]]])
    np.testing.assert_allclose(cam.with_background(scores, ceiling=1.0), [[[[0.3, 0.2, 0.7]]]])
    np.testing.assert_allclose(cam.with_background(scores, ceiling=2.0), [[[[1.3, 0.2, 0.7]]]])


def test_no_cell_attends_to_padding():
    query = tf.constant(_random(1, 4, 6))
    key = tf.constant(_random(1, 4, 6, seed=1))
    valid = tf.constant([[1.0, 1.0, 0.0, 1.0]])
    attention = tf.nn.softmax(cam.attention_scores(query, key, valid)).numpy()
    assert (attention[0, [0, 1, 3], 2] == 0.0).all()
    np.testing.assert_allclose(attention[0, 2], 0.25)
    unmasked = tf.matmul(query, key, transpose_b=True).numpy() / np.sqrt(6.0)
    kept = unmasked[0][np.ix_([0, 1, 3], [0, 1, 3])]
    expected = np.exp(kept) / np.exp(kept).sum(1, keepdims=True)
    np.testing.assert_allclose(attention[0][np.ix_([0, 1, 3], [0, 1, 3])], expected, rtol=1e-5)
