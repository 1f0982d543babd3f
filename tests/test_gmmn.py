"""Generators by hand, their start, and Adam inside a step."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.models import gmmn
from tfseg.models.layers.settings import Settings
from tfseg.ops.adam import adam_update

# One word and one noise value; two hidden units; one output.
WEIGHTS = [
    tf.constant([[1.0, -1.0], [2.0, 0.0]]),
    tf.constant([0.5, 0.0]),
    tf.constant([[1.0], [10.0]]),
    tf.constant([0.25]),
]


def test_a_feature_by_hand():
    """Hidden units 3 + 0.5 + 2 and -3, of which a fifth is left."""
    feature = gmmn.generate(WEIGHTS, tf.constant([[3.0]]), tf.constant([[1.0]]))
    assert feature.numpy() == pytest.approx(5.5 - 6.0 + 0.25)


def test_dropout_doubles_what_it_keeps():
    keep = tf.constant([[True, False]])
    feature = gmmn.generate(WEIGHTS, tf.constant([[3.0]]), tf.constant([[1.0]]), keep)
    assert feature.numpy() == pytest.approx(11.0 + 0.25)


def test_one_layer_is_linear_and_maps_have_any_axes():
    weights = WEIGHTS[:2]
    vectors, noise = tf.fill([2, 3, 4, 1], 3.0), tf.fill([2, 3, 4, 1], 1.0)
    features = gmmn.generate(weights, vectors, noise)
    assert features.shape == (2, 3, 4, 2)
    np.testing.assert_allclose(features[1, 2, 3], [5.5, -3.0])


def test_on_a_graph_a_word_comes_back_by_two_steps():
    """Three nodes in a row: the ends know each other and themselves, and not the middle."""
    adjacency = tf.constant([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    vectors = tf.Variable([[1.0], [2.0], [4.0]])
    with tf.GradientTape() as tape:
        features = gmmn.generate_on_graph(WEIGHTS, adjacency, vectors, tf.zeros([3, 1]))
    reached = tape.jacobian(features, vectors)[:, 0, :, 0].numpy() != 0
    np.testing.assert_array_equal(reached, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    # The middle's hidden units are (1 + 4) + 0.5 and -5 / 5; the ends take them once.
    assert features[0, 0].numpy() == pytest.approx(5.5 - 10.0 + 0.25)


def test_a_node_without_neighbours_has_the_bias_alone():
    feature = gmmn.generate_on_graph(WEIGHTS, tf.zeros([1, 1]), tf.ones([1, 1]), tf.ones([1, 1]))
    assert feature.numpy() == pytest.approx(0.25)


def _generator(name="generator", seed=0, hidden=8):
    settings = Settings(network=name, seed=seed)
    return gmmn.Generator(settings, inputs=6, hidden=hidden, outputs=4, trainable=True)


def test_generators_start_by_name_and_seed():
    kernel = _generator().weights[0].numpy()
    np.testing.assert_array_equal(kernel, _generator().weights[0])
    for other in (_generator("graph"), _generator(seed=1)):
        assert np.any(kernel != other.weights[0])
    limit = np.sqrt(6 / (6 + 8))
    assert 0.8 * limit < np.abs(kernel).max() <= limit
    assert [w.shape.as_list() for w in _generator(hidden=0).weights] == [[6, 4], [4]]
    np.testing.assert_allclose(_generator().weights[3], 0.01)


def test_adam_is_keras_adam_but_for_epsilon():
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (2,))]
    variables = [tf.Variable(value) for value in start]
    optimizer = tf.keras.optimizers.Adam(0.01, epsilon=1e-12, jit_compile=False)
    zeros = [tf.zeros(value.shape) for value in start]
    state = ([tf.constant(value) for value in start], zeros, zeros, tf.constant(0.0))
    for _ in range(5):
        gradients = [tf.constant(rng.normal(size=v.shape).astype(np.float32)) for v in start]
        optimizer.apply_gradients(zip(gradients, variables))
        state = adam_update(state, gradients, rate=0.01, epsilon=1e-12)
    assert float(state[3]) == 5
    for variable, value in zip(variables, state[0]):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6)


def test_adam_s_epsilon_is_added_to_the_corrected_root():
    """At the first step the corrected moments are the gradient and its square."""
    gradient, rate, epsilon = 1e-6, 0.1, 1e-6
    zero = [tf.zeros([1])]
    (weight,), *_ = adam_update(
        (zero, zero, zero, tf.constant(0.0)), [tf.constant([gradient])], rate=rate, epsilon=epsilon
    )
    assert weight.numpy()[0] == pytest.approx(-rate * gradient / (gradient + epsilon), rel=1e-4)
