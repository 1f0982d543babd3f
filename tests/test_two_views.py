"""The second view and the way back, on ramps, which bilinear resizing must not change."""

import numpy as np
import tensorflow as tf

from tfseg.ops.two_views import second_view, to_first_view


def _ramps(height, width):
    """Two images; channel 0 runs from 0 to 1 from left to right, channel 1 from top to bottom."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    ramps = np.stack([columns, rows], -1).astype(np.float32)
    return np.stack([ramps, 2.0 * ramps])


def test_sides_are_rounded_down_and_corners_kept():
    view = second_view(tf.constant(_ramps(9, 13)), scale=0.5)
    assert view.shape == (2, 4, 6, 2)
    np.testing.assert_allclose(view, _ramps(4, 6), atol=1e-6)


def test_only_the_named_images_are_mirrored_left_and_right():
    view = second_view(tf.constant(_ramps(8, 12)), scale=0.5, flip=tf.constant([False, True]))
    expected = _ramps(4, 6)
    expected[1] = expected[1, :, ::-1]
    np.testing.assert_allclose(view, expected, atol=1e-6)


def test_the_way_back_undoes_size_and_mirroring():
    first = _ramps(9, 13)
    for flip in (None, tf.constant([True, False])):
        view = second_view(tf.constant(first), scale=0.5, flip=flip)
        np.testing.assert_allclose(to_first_view(view, (9, 13), flip=flip), first, atol=1e-6)


def test_sizes_unknown_to_the_graph_give_the_same():
    image, flip = tf.constant(_ramps(9, 13)), tf.constant([True, False])

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 2]), tf.TensorSpec([None], bool)]
    )
    def there_and_back(image, flip):
        view = second_view(image, scale=0.3, flip=flip)
        return view, to_first_view(view, tf.shape(image)[1:3], flip=flip)

    view, back = there_and_back(image, flip)
    np.testing.assert_allclose(view, second_view(image, scale=0.3, flip=flip), atol=1e-6)
    assert view.shape == (2, 2, 3, 2)
    np.testing.assert_allclose(back, image, atol=1e-6)


def test_gradients_reach_the_second_view():
    view = tf.constant(_ramps(4, 6))
    with tf.GradientTape() as tape:
        tape.watch(view)
        total = tf.reduce_sum(to_first_view(view, (9, 13), flip=tf.constant([True, False])))
    # Every pixel of the large view hands out a weight of 1.
    np.testing.assert_allclose(tf.reduce_sum(tape.gradient(total, view)), 2 * 9 * 13 * 2, rtol=1e-5)
