"""Maximum mean discrepancy: values against double sums, and what training needs of it."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.ops.mmd import BANDWIDTHS, mmd

RNG = np.random.default_rng(0)


def _sets(m, n, channels=4):
    return (RNG.normal(size=[count, channels]).astype(np.float32) for count in (m, n))


def _kernel(x, y):
    distance = np.sum((x.astype(np.float64) - y) ** 2)
    return sum(np.exp(-distance / (2 * v)) for v in BANDWIDTHS)


def _mean_kernel(a, b):
    return np.mean([[_kernel(x, y) for y in b] for x in a])


def test_one_sample_each_by_hand():
    """Kernels of a sample with itself are 1 for each bandwidth."""
    value = mmd(tf.zeros([1, 3]), tf.constant([[1.0, 2.0, 2.0]]), bandwidths=(2.0, 5.0))
    expected = np.sqrt(2 * 2 - 2 * (np.exp(-9 / 4) + np.exp(-9 / 10)))
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("m, n", [(6, 6), (3, 8), (7, 2)])
def test_any_counts_follow_the_double_sum(m, n):
    generated, real = _sets(m, n)
    expected = np.sqrt(
        _mean_kernel(generated, generated)
        + _mean_kernel(real, real)
        - 2 * _mean_kernel(generated, real)
    )
    assert float(mmd(generated, real)) == pytest.approx(expected, rel=1e-5)


def test_published_weights_are_right_for_equal_counts_alone():
    generated, real = _sets(5, 5)
    right, published = (mmd(generated, real, weights=w) for w in ("right", "published"))
    assert float(right) == pytest.approx(float(published), rel=1e-6)
    generated, real = _sets(4, 9)
    right, published = (mmd(generated, real, weights=w) for w in ("right", "published"))
    assert abs(float(right) - float(published)) > 0.01


def test_equal_sets_are_at_zero_with_a_gradient_of_zero():
    samples = tf.constant(RNG.normal(size=[8, 5]).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(samples)
        loss = mmd(samples, tf.identity(tf.stop_gradient(samples)))
    assert float(loss) < 2e-3  # The root of float32's rounding.
    np.testing.assert_allclose(tape.gradient(loss, samples), 0.0, atol=1e-3)


def test_near_equal_sets_of_large_features_give_numbers():
    """|x|^2 + |y|^2 - 2 x y falls below 0 there, and so does the sum under the root."""
    samples = 100.0 + RNG.normal(size=[64, 256]).astype(np.float32)
    near = samples + 1e-4 * RNG.normal(size=samples.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        generated = tf.constant(near)
        tape.watch(generated)
        loss = mmd(generated, samples)
    assert np.isfinite(loss) and np.isfinite(tape.gradient(loss, generated)).all()


def test_its_gradient_brings_one_set_to_the_other():
    generated, real = _sets(32, 32)
    samples = tf.Variable(generated + 2.0)
    before = float(mmd(samples, real))
    for _ in range(50):
        with tf.GradientTape() as tape:
            loss = mmd(samples, real)
        samples.assign_sub(20.0 * tape.gradient(loss, samples))
    assert float(mmd(samples, real)) < 0.5 * before


def test_leading_axes_are_sets_by_themselves():
    generated, real = (RNG.normal(size=[2, 3, n, 4]).astype(np.float32) for n in (5, 6))
    values = mmd(generated, real)
    assert values.shape == (2, 3)
    assert float(values[1, 2]) == pytest.approx(float(mmd(generated[1, 2], real[1, 2])), rel=1e-5)


def test_unknown_weights_are_refused():
    with pytest.raises(UserError, match="estimator"):
        mmd(tf.zeros([1, 1]), tf.zeros([1, 1]), weights="wrong")
