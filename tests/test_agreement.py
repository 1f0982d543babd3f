"""Views of an image, and the labels on which they agree."""

import numpy as np
import tensorflow as tf

from tfseg.ops.agreement import agree, complete, scaled_views, to_first
from tfseg.ops.resize import resize_bilinear

IGNORE = 255


def test_views_come_in_the_published_order():
    image = tf.random.stateless_uniform([2, 9, 13, 3], [0, 1])
    views = scaled_views(image, scales=(1.5, 0.5), mirror=True)
    assert [view.mirrored for view in views] == [False, True] * 3
    sizes = [tuple(view.image.shape[1:3]) for view in views]
    assert sizes == [(9, 13)] * 2 + [(13, 19)] * 2 + [(4, 6)] * 2
    assert [view.scale for view in views] == [1.0, 1.0, 1.5, 1.5, 0.5, 0.5]
    np.testing.assert_array_equal(views[0].image, image)
    for plain, mirrored in zip(views[::2], views[1::2]):
        # (Coordinates are mirrored but for the half pixel that a rounded size leaves over.)
        assert plain.image.shape == mirrored.image.shape
    np.testing.assert_array_equal(views[1].image, image[:, :, ::-1])


def test_without_scales_and_mirrors_there_is_one_view():
    image = tf.zeros([1, 5, 5, 3])
    (view,) = scaled_views(image, scales=(), mirror=False)
    assert not view.mirrored and view.image is image


def test_a_mirrored_view_comes_back():
    scores = tf.random.stateless_normal([1, 4, 6, 2], [0, 1])
    np.testing.assert_array_equal(
        to_first(scores[:, :, ::-1], (4, 6), mirrored=True), scores.numpy()
    )
    for align in (False, True):
        back = to_first(scores[:, :, ::-1], (8, 12), mirrored=True, align_corners=align)
        expected = resize_bilinear(scores, (8, 12), align_corners=align)
        np.testing.assert_allclose(back, expected, atol=1e-6)


def test_views_agree_where_all_have_the_same_largest_score():
    first = tf.constant([[[[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]]])
    second = tf.constant([[[[0.0, 9.0], [0.0, 1.0], [0.0, 5.0]]]])
    third = tf.constant([[[[1.0, 2.0], [1.0, 0.0], [1.0, 0.0]]]])
    label, kept = agree([first, second, third])
    np.testing.assert_array_equal(label, [[[1, 0, 1]]])
    np.testing.assert_array_equal(kept, [[[True, False, False]]])
    label, kept = agree([first])
    np.testing.assert_array_equal(label, [[[1, 0, 1]]])
    assert kept.numpy().all()


def test_only_candidates_are_completed():
    label = tf.constant([[[0, 0, 0, 2, IGNORE]]])
    pseudo = tf.constant([[[3, 3, 3, 3, 3]]])
    kept = tf.constant([[[True, False, True, True, True]]])
    candidate = tf.constant([[[True, True, False, False, False]]])
    for otherwise in (0, IGNORE):
        result = complete(label, pseudo, kept, candidate, otherwise=otherwise)
        np.testing.assert_array_equal(result, [[[3, otherwise, 0, 2, IGNORE]]])
