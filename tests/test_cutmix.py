"""CutMix: boxes as they are drawn, and pasting."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.data import cutmix as boxes
from tfseg.ops import cutmix


@pytest.mark.parametrize("size", [(64, 64), (33, 49), (7, 5)])
def test_boxes_lie_in_the_view_and_every_second_view_has_one(size):
    rng = np.random.default_rng(0)
    drawn = np.array([boxes.draw(rng, size) for _ in range(2000)])
    none = (drawn == 0).all(1)
    assert abs(none.mean() - 0.5) < 0.05
    top, left, height, width = drawn[~none].T
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    shares = height * width / (size[0] * size[1])
    assert shares.max() <= 0.4
    if min(size) > 30:
        assert abs(shares.mean() - 0.21) < 0.015


def test_a_box_has_its_area_and_its_ratio_without_fractions():
    assert boxes.shape(200.0, 2.0) == (20, 10)
    assert boxes.shape(199.0, 2.0) == (19, 9)
    assert boxes.shape(100.0, 0.3) == (5, 18)


def test_what_lies_in_a_box_is_the_donors():
    inside = cutmix.inside(tf.constant([[1, 2, 2, 1], [0, 0, 0, 0]]), (4, 5)).numpy()
    expected = np.zeros((2, 4, 5), bool)
    expected[0, 1:3, 2] = True
    np.testing.assert_array_equal(inside, expected)
    own, donor = np.zeros((2, 4, 5), np.float32), np.ones((2, 4, 5), np.float32)
    for shape in ((2, 4, 5), (2, 4, 5, 3)):
        channels = shape[3:] and (1,) * len(shape[3:])
        a, b = (np.broadcast_to(x.reshape(2, 4, 5, *channels), shape) for x in (own, donor))
        pasted = cutmix.paste(tf.constant(a), tf.constant(b), tf.constant(inside)).numpy()
        np.testing.assert_array_equal(pasted.reshape(2, 4, 5, -1)[..., 0], expected)
