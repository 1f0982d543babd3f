"""Layers: initial values, batch norm's arithmetic on one and two replicas, dropout, strides."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.models import kernels
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D, DepthwiseConv2D, decayed_variables
from tfseg.models.layers.dropout import Dropout
from tfseg.models.layers.initial_values import (
    he_normal_fan_out,
    he_truncated_normal,
    truncated_normal,
    uniform_fan_in,
    xavier_uniform,
)
from tfseg.models.layers.settings import Settings
from tfseg.models.layers.strides import AtrousRate

SEED = tf.constant([3, 4])


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# Initial values ---------------------------------------------------------------------------------


def test_initial_value_depends_on_seed_network_and_name_only():
    def kernel(name="a/conv", **settings):
        return Conv2D(Settings(**settings), name, 4, 8, 3).kernel.numpy()

    first = kernel()
    Conv2D(Settings(), "b/conv", 4, 8, 3)
    np.testing.assert_array_equal(kernel(), first)
    for other in (kernel(seed=1), kernel(network="teacher"), kernel("b/conv")):
        assert np.abs(other - first).max() > 0.01


@pytest.mark.parametrize(
    "init, stddev, limit",
    [
        # A normal truncated at two deviations has 0.8796 of its deviation.
        (truncated_normal(0.09), 0.09 * 0.8796, 0.18),
        (he_truncated_normal, np.sqrt(2.6 / 576) * 0.8796, 2 * np.sqrt(2.6 / 576)),
        (xavier_uniform, np.sqrt(2 / (9 * (64 + 128))), np.sqrt(6 / (9 * (64 + 128)))),
        (uniform_fan_in(9 * 64), np.sqrt(1 / (3 * 9 * 64)), np.sqrt(1 / (9 * 64))),
    ],
)
def test_initial_distributions(init, stddev, limit):
    values = init(np.random.default_rng(0), [3, 3, 64, 128])
    assert values.dtype == np.float32
    assert np.abs(values).max() <= limit * 1.0001
    assert np.abs(values).max() > limit * 0.99
    np.testing.assert_allclose(values.std(), stddev, rtol=0.02)
    np.testing.assert_allclose(values.mean(), 0.0, atol=stddev * 0.02)


def test_he_normal_by_fan_out_is_not_truncated():
    values = he_normal_fan_out(np.random.default_rng(0), [3, 3, 64, 128])
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    assert (np.abs(values) > 2 * values.std()).mean() == pytest.approx(0.0455, abs=0.003)


# Convolutions -----------------------------------------------------------------------------------


def test_strided_convolution_is_the_dense_one_subsampled():
    """The point of fixed padding: also where the input's size is even."""
    for size in (9, 8):
        x = _image(1, size, size, 4)
        for make in (
            lambda **stride: Conv2D(Settings(), "c", 4, 5, 3, **stride),
            lambda **stride: DepthwiseConv2D(Settings(), "d", 4, 3, **stride),
        ):
            dense, strided = make()(x), make(stride=2)(x)
            np.testing.assert_allclose(strided, dense[:, ::2, ::2], atol=1e-5)


@pytest.mark.parametrize("rate", [1, 2, 6])
def test_depthwise_convolution_and_gradients_equal_a_loop(rate):
    layer = DepthwiseConv2D(Settings(), "d", 3, rate=rate)
    x, weights = tf.constant(_image(2, 9, 8, 3)), _image(2, 9, 8, 3, seed=1)

    def loop(x):
        padded = tf.pad(x, [[0, 0], [rate, rate], [rate, rate], [0, 0]])
        return tf.add_n(
            [
                padded[:, i * rate : i * rate + 9, j * rate : j * rate + 8]
                * layer.kernel[i, j, :, 0]
                for i in range(3)
                for j in range(3)
            ]
        )

    def value_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(y * weights)
        return (y, *tape.gradient(loss, [x, layer.kernel]))

    for ours, expected in zip(value_and_gradients(layer), value_and_gradients(loop)):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_pointwise_convolution_in_bfloat16_is_near_the_float32_one():
    x = _image(2, 5, 4, 16)
    narrow = Conv2D(Settings(compute_dtype="bfloat16"), "c", 16, 8)
    wide = Conv2D(Settings(), "c", 16, 8)
    assert narrow.kernel.dtype == tf.float32
    y = narrow(x)
    assert y.dtype == tf.bfloat16 and y.shape == [2, 5, 4, 8]
    np.testing.assert_allclose(tf.cast(y, tf.float32), wide(x), atol=0.02)


def test_decayed_are_plain_kernels_only():
    class Both(tf.Module):
        def __init__(self):
            super().__init__()
            self.conv = Conv2D(Settings(), "a", 2, 2, use_bias=True)
            self.free = Conv2D(Settings(), "b", 2, 2, decayed=False)
            self.depthwise = DepthwiseConv2D(Settings(), "c", 2)
            self.norm = BatchNorm(Settings(), "d", 2)

    assert [v.name for v in decayed_variables(Both())] == ["a/weights:0"]


# Batch norm -------------------------------------------------------------------------------------


def _expected_batch_norm(x, epsilon):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    n = x[..., 0].size
    return (x - mean) / np.sqrt(variance + epsilon), mean, variance * n / (n - 1)


@pytest.mark.parametrize("use_gamma", [True, False])
def test_batch_norm_normalises_biased_and_records_unbiased(use_gamma):
    layer = BatchNorm(Settings(decay=0.9, epsilon=1e-3), "n", 3, use_gamma=use_gamma)
    assert [v.name for v in layer.trainable_variables] == (
        ["n/gamma:0", "n/beta:0"] if use_gamma else ["n/beta:0"]
    )
    x = _image(2, 3, 2, 3) * 2 + 5
    y, mean, unbiased = _expected_batch_norm(x, 1e-3)
    np.testing.assert_allclose(layer(x, training=True), y, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * unbiased, rtol=1e-5)


def test_batch_norm_inference_uses_moving_statistics_and_leaves_them():
    layer = BatchNorm(Settings(epsilon=1e-3), "n", 2)
    layer.moving_mean.assign([1.0, 2.0])
    layer.moving_variance.assign([4.0, 9.0])
    x = _image(2, 3, 2, 2)
    expected = (x - [1.0, 2.0]) / np.sqrt(np.array([4.0, 9.0]) + 1e-3)
    np.testing.assert_allclose(layer(x, training=False), expected, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, [1.0, 2.0])


def test_bfloat16_batch_norm_is_the_widened_one_in_training_and_gradients(monkeypatch):
    x = tf.cast(_image(2, 7, 5, 3) * 2.0 + 1.0, tf.bfloat16)
    weights = tf.cast(_image(2, 7, 5, 3, seed=1), tf.bfloat16)
    results = {}
    for name, kind in (("narrow", tf.bfloat16), ("wide", tf.float32)):
        monkeypatch.setattr(kernels, "batch_norm_type", lambda *_, kind=kind: kind)
        layer = BatchNorm(Settings(decay=0.0, compute_dtype="bfloat16"), "n", 3)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(tf.cast(y * weights, tf.float32))
        assert y.dtype == tf.bfloat16
        gradients = tape.gradient(loss, [x, layer.gamma, layer.beta])
        results[name] = [y, *gradients, layer.moving_mean, layer.moving_variance]
    for narrow, wide in zip(results["narrow"], results["wide"]):
        narrow, wide = (tf.cast(t, tf.float32).numpy() for t in (narrow, wide))
        # Two roundings to 8 bits may lie between them.
        np.testing.assert_allclose(narrow, wide, rtol=2**-7, atol=2**-7 * np.abs(wide).max())
    for i in (4, 5):
        np.testing.assert_allclose(results["narrow"][i], results["wide"][i], rtol=1e-5)


def test_frozen_batch_norm_ignores_training():
    layer = BatchNorm(Settings(fine_tune_batch_norm=False), "n", 2)
    x = _image(2, 3, 2, 2)
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.moving_mean, [0.0, 0.0])


def test_synchronised_batch_norm_on_two_replicas_equals_the_whole_batch(two_replicas):
    x, weights = _image(4, 3, 2, 3) * 2 + 5, _image(4, 3, 2, 3, seed=1)

    def gradients(layer, x, weights):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * weights)
        return (y, *tape.gradient(loss, [x, layer.gamma]))

    alone = BatchNorm(Settings(decay=0.9, sync_batch_norm=True), "n", 3)
    y, dx, dgamma = gradients(alone, tf.constant(x), weights)
    with two_replicas.scope():
        layer = BatchNorm(Settings(decay=0.9, sync_batch_norm=True), "n", 3)

    @tf.function
    def run():
        def replica():
            i = tf.distribute.get_replica_context().replica_id_in_sync_group
            start = 2 * tf.cast(i, tf.int32)
            return gradients(layer, tf.constant(x)[start : start + 2], weights[start : start + 2])

        return two_replicas.run(replica)

    weights = tf.constant(weights)
    parts = [two_replicas.experimental_local_results(part) for part in run()]
    np.testing.assert_allclose(tf.concat(parts[0], 0), y, atol=1e-5)
    np.testing.assert_allclose(tf.concat(parts[1], 0), dx, atol=1e-5)
    np.testing.assert_allclose(parts[2][0] + parts[2][1], dgamma, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean.numpy(), alone.moving_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(
        layer.moving_variance.numpy(), alone.moving_variance.numpy(), rtol=1e-5
    )


def test_statistics_of_unsynchronised_replicas_are_averaged(two_replicas):
    with two_replicas.scope():
        layer = BatchNorm(Settings(decay=0.0), "n", 1)

    @tf.function
    def run():
        def replica():
            i = tf.distribute.get_replica_context().replica_id_in_sync_group
            layer(tf.ones([1, 2, 2, 1]) * tf.cast(i, tf.float32), training=True)

        two_replicas.run(replica)

    run()
    np.testing.assert_allclose(layer.moving_mean.numpy(), [0.5])


# Dropout and rates ------------------------------------------------------------------------------


def test_dropout_is_a_function_of_its_seed_and_keeps_the_mean():
    layer, other = Dropout("a", 0.25), Dropout("b", 0.25)
    x = tf.ones([100, 100])
    y = layer(x, training=True, dropout_seed=SEED)
    np.testing.assert_array_equal(y, layer(x, training=True, dropout_seed=SEED))
    assert set(np.unique(y)) == {0.0, np.float32(4 / 3)}
    np.testing.assert_allclose(np.mean(y), 1.0, atol=0.03)
    assert np.any(y != other(x, training=True, dropout_seed=SEED))
    assert np.any(y != layer(x, training=True, dropout_seed=SEED + 1))


def test_dropout_of_whole_channels():
    layer = Dropout("a", 0.25, whole_channels=True)
    y = layer(tf.ones([20, 3, 4, 100]), training=True, dropout_seed=SEED).numpy()
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    np.testing.assert_allclose((y[:, 0, 0] == 0).mean(), 0.25, atol=0.03)
    np.testing.assert_allclose(y.max(), 4 / 3, rtol=1e-6)
    assert np.any(y[0] != y[1])


def test_dropout_is_off_in_inference_and_at_rate_zero():
    x = tf.ones([4])
    np.testing.assert_array_equal(Dropout("a", 0.5)(x, training=False), x)
    np.testing.assert_array_equal(Dropout("a", 0.0)(x, training=True), x)


def test_dropout_without_seed_or_with_impossible_rate_is_an_error():
    with pytest.raises(ValueError, match="dropout_seed"):
        Dropout("a", 0.5)(tf.ones([4]), training=True)
    with pytest.raises(UserError, match="dropout rate"):
        Dropout("a", 1.0)


def test_strides_become_rates_of_what_follows():
    rates = AtrousRate(output_stride=8, current=4)
    assert [rates.next(s) for s in (1, 2, 2, 1, 2, 1)] == [
        (1, 1),
        (2, 1),
        (1, 1),
        (1, 2),
        (1, 2),
        (1, 4),
    ]
