import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.settings.run import TrainConfig
from tfseg.training import optimizers
from tfseg.training.optimizers import Momentum, learning_rate, make_optimizer


def published_momentum(weights, gradients, rates, momentum, nesterov=False):
    """v := m v + g; w := w - rate v, in NumPy."""
    velocity = np.zeros_like(weights)
    for gradient, rate in zip(gradients, rates):
        velocity = momentum * velocity + gradient
        step = gradient + momentum * velocity if nesterov else velocity
        weights = weights - rate * step
    return weights


class StepRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rates):
        self.rates = tf.constant(rates, tf.float32)

    def __call__(self, step):
        return tf.gather(self.rates, tf.cast(step, tf.int32))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_keeps_the_rate_outside_the_velocity(nesterov):
    rates = [0.1, 0.01, 1.0, 0.3]
    gradients = [np.array([1.0, -2.0]), np.array([0.5, 0.5]), np.zeros(2), np.array([3.0, 1.0])]
    start = np.array([1.0, 2.0])
    variable = tf.Variable(start, dtype=tf.float32)
    optimizer = Momentum(StepRate(rates), momentum=0.9, nesterov=nesterov)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    expected = published_momentum(start, gradients, rates, 0.9, nesterov)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6)
    keras_sgd = tf.Variable(start, dtype=tf.float32)
    sgd = tf.keras.optimizers.SGD(StepRate(rates), momentum=0.9, nesterov=nesterov)
    for gradient in gradients:
        sgd.apply_gradients([(tf.constant(gradient, tf.float32), keras_sgd)])
    assert np.abs(keras_sgd.numpy() - expected).max() > 0.01, "the test must tell the two apart"


def test_momentum_on_two_replicas_sums_their_gradients(two_replicas):
    with two_replicas.scope():
        variable = tf.Variable([1.0, 2.0])
        optimizer = Momentum(0.1, momentum=0.9)
        optimizer.build([variable])

    @tf.function
    def step():
        def replica():
            context = tf.distribute.get_replica_context()
            gradient = tf.cast(context.replica_id_in_sync_group + 1, tf.float32) * tf.ones(2)
            optimizer.apply_gradients([(gradient, variable)])

        two_replicas.run(replica)

    step()
    step()
    expected = published_momentum(np.array([1.0, 2.0]), [np.full(2, 3.0)] * 2, [0.1] * 2, 0.9)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6)


def test_slow_start_is_constant_and_then_counts_from_its_end():
    config = TrainConfig(training_number_of_steps=110, slow_start_step=10)
    rate = learning_rate(config)
    assert float(rate(tf.constant(9))) == pytest.approx(1e-4)
    assert float(rate(tf.constant(10))) == pytest.approx(0.007)
    assert float(rate(tf.constant(60))) == pytest.approx(0.007 * 0.5**0.9)
    assert float(rate(tf.constant(110))) == 0.0


def test_cosine_is_constant_and_then_falls_to_zero_over_the_steps_that_remain():
    config = TrainConfig(
        learning_policy="cosine",
        base_learning_rate=0.5,
        training_number_of_steps=130,
        constant_steps=30,
    )
    rate = learning_rate(config)
    expected = {0: 0.5, 29: 0.5, 30: 0.5, 55: 0.25 * (1 + 0.5**0.5), 80: 0.25, 130: 0.0, 200: 0.0}
    for step, value in expected.items():
        assert float(rate(tf.constant(step))) == pytest.approx(value, abs=1e-7), step


def test_cosine_of_a_given_length_may_end_before_zero():
    config = TrainConfig(learning_policy="cosine", base_learning_rate=0.5, decay_steps=100.0)
    config = dataclasses.replace(config, training_number_of_steps=60, constant_steps=10)
    assert float(learning_rate(config)(tf.constant(60))) == pytest.approx(0.25)


def test_cosine_counts_from_the_end_of_the_slow_start():
    config = TrainConfig(learning_policy="cosine", base_learning_rate=0.5, slow_start_step=20)
    config = dataclasses.replace(config, training_number_of_steps=130, constant_steps=10)
    rate = learning_rate(config)
    expected = {19: 1e-4, 20: 0.5, 30: 0.5, 80: 0.25, 130: 0.0}
    for step, value in expected.items():
        assert float(rate(tf.constant(step))) == pytest.approx(value, abs=1e-7), step


def test_adam_ignores_the_schedule_as_published():
    config = TrainConfig(optimizer="adam", adam_learning_rate=0.25)
    assert float(make_optimizer(config).learning_rate) == pytest.approx(0.25)


def published_adamw(weights, gradients, rates, decay):
    """PyTorch's update, in NumPy."""
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for t, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
        weights = weights * (1 - rate * decay)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        weights = weights - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return weights


def _small_gradients():
    """Weights and gradients, some of them so small that the place of epsilon matters."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=[3, 2, 4]) * np.array([1.0, 1e-4, 1e-7, 1e-8])
    return rng.normal(size=[2, 4]), gradients


def test_adamw_is_the_one_of_pytorch_and_follows_the_schedule():
    start, gradients = _small_gradients()
    config = TrainConfig(
        optimizer="adamw", training_number_of_steps=4, base_learning_rate=0.02, learning_power=1.0
    )
    variable = tf.Variable(start, dtype=tf.float32)
    optimizer = make_optimizer(config, lr_multiplier=0.5, weight_decay=0.3)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    rates = [0.01, 0.0075, 0.005]
    expected = published_adamw(start, gradients, rates, 0.3)
    np.testing.assert_allclose(variable, expected, rtol=0, atol=5e-7)
    keras = tf.Variable(start, dtype=tf.float32)
    adam = tf.keras.optimizers.AdamW(StepRate(rates), weight_decay=0.3, epsilon=1e-8)
    for gradient in gradients:
        adam.apply_gradients([(tf.constant(gradient, tf.float32), keras)])
    assert np.abs(keras - expected).max() > 1e-3, "the test must tell the two apart"


def test_adamw_on_two_replicas_sums_their_gradients_and_decays_once(two_replicas):
    start, gradients = _small_gradients()
    with two_replicas.scope():
        variable = tf.Variable(start, dtype=tf.float32)
        optimizer = make_optimizer(TrainConfig(optimizer="adamw"), schedule=0.01, weight_decay=0.3)
        optimizer.build([variable])

    @tf.function
    def step(gradient):
        def replica():
            context = tf.distribute.get_replica_context()
            share = tf.cast(context.replica_id_in_sync_group + 1, tf.float32) / 3.0
            optimizer.apply_gradients([(share * gradient, variable)])

        two_replicas.run(replica)

    for gradient in gradients:
        step(tf.constant(gradient, tf.float32))
    expected = published_adamw(start, gradients, [0.01] * 3, 0.3)
    np.testing.assert_allclose(variable, expected, rtol=0, atol=5e-7)


def test_lr_multiplier_scales_the_schedule():
    config = TrainConfig(training_number_of_steps=100)
    variable = tf.Variable([0.0])
    make_optimizer(config, lr_multiplier=10.0).apply_gradients([(tf.constant([1.0]), variable)])
    assert variable.numpy()[0] == pytest.approx(-0.07)


def test_unknown_optimizer_names_the_known():
    with pytest.raises(UserError, match="momentum, adam, adamw, lamb, lars"):
        make_optimizer(dataclasses.replace(TrainConfig(), optimizer="sgdd"))


def published_lamb(weights, gradients, rates):
    """Adam's direction with the length of the weights, in NumPy."""
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for t, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        weights = weights - rate * np.linalg.norm(weights) / np.linalg.norm(update) * update
    return weights


def published_lars(weights, gradients, rates, momentum):
    """Momentum of gradients with a thousandth of the length of the weights, in NumPy."""
    velocity = np.zeros_like(weights)
    for gradient, rate in zip(gradients, rates):
        ratio = 0.001 * np.linalg.norm(weights) / np.linalg.norm(gradient)
        velocity = momentum * velocity + rate * ratio * gradient
        weights = weights - velocity
    return weights


LAYERWISE = ("lamb", "lars")


@pytest.mark.parametrize("name", LAYERWISE)
def test_layerwise_optimizers_are_the_published_ones(name):
    config = TrainConfig(optimizer=name, training_number_of_steps=4, momentum=0.8)
    config = dataclasses.replace(config, base_learning_rate=2.0, learning_power=1.0)
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=[3, 2]), rng.normal(size=[3, 3, 2])
    kernel = tf.Variable(start, dtype=tf.float32, name="conv1/weights")
    optimizer = make_optimizer(config, lr_multiplier=0.5)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), kernel)])
    rates = [1.0, 0.75, 0.5]
    expected = (
        published_lamb(start, gradients, rates)
        if name == "lamb"
        else published_lars(start, gradients, rates, 0.8)
    )
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["aspp0/BatchNorm/gamma", "stem/bn/beta", "logits/biases", "bias"])
def test_lars_gives_biases_and_batch_norm_the_plain_rate(name):
    config = TrainConfig(optimizer="lars", training_number_of_steps=10, base_learning_rate=0.5)
    variable = tf.Variable([0.0, 4.0], name=name)
    make_optimizer(config).apply_gradients([(tf.constant([1.0, 1.0]), variable)])
    np.testing.assert_allclose(variable, [-0.5, 3.5])


@pytest.mark.parametrize("name", LAYERWISE)
def test_layerwise_optimizers_sum_the_gradients_of_two_replicas(two_replicas, name):
    config = TrainConfig(optimizer=name, training_number_of_steps=10, base_learning_rate=0.1)
    with two_replicas.scope():
        variable = tf.Variable([1.0, 2.0], name="weights")
        optimizer = make_optimizer(config)
        optimizer._create_all_weights([variable])

    @tf.function(autograph=False)
    def step():
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where(tf.equal(number, 0), [1.0, 0.0], [2.0, 1.0])
            optimizer.apply_gradients([(gradient, variable)])

        two_replicas.run(replica)

    step()
    gradients, rates = [np.array([3.0, 1.0])], [0.1]
    expected = (
        published_lamb(np.array([1.0, 2.0]), gradients, rates)
        if name == "lamb"
        else published_lars(np.array([1.0, 2.0]), gradients, rates, 0.9)
    )
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)


@pytest.mark.skipif(not tf.__version__.startswith("2.15"), reason="tensorflow-addons is not there")
def test_lamb_is_the_one_of_tensorflow_addons():
    config = TrainConfig(optimizer="lamb", training_number_of_steps=10)
    makes = (
        lambda: make_optimizer(config),
        lambda: optimizers._addons().optimizers.LAMB(learning_rate(config)),
    )
    found = []
    for make in makes:
        variable, optimizer = tf.Variable([1.0, -1.0], name="weights"), make()
        for gradient in ([1.0, 2.0], [-0.5, 0.3]):
            optimizer.apply_gradients([(tf.constant(gradient), variable)])
        found.append((variable.numpy().tolist(), [v.name for v in optimizer.variables()]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "name", [n for n in optimizers.OPTIMIZERS if n not in ("momentum", "adam", "adamw", *LAYERWISE)]
)
def test_addons_optimizers_work_or_name_the_install_command(name):
    config = TrainConfig(optimizer=name, training_number_of_steps=10)
    if tf.__version__.startswith("2.15"):
        variable = tf.Variable([1.0, -1.0])
        optimizer = make_optimizer(config)
        for _ in range(3):
            optimizer.apply_gradients([(tf.constant([1.0, 1.0]), variable)])
        assert np.all(variable.numpy() < [1.0, -1.0])
    else:
        with pytest.raises(UserError, match=r"pip install 'tfseg\[addons\]'"):
            make_optimizer(config)


def test_the_rate_is_held_between_updates():
    config = TrainConfig(base_learning_rate=1.0, training_number_of_steps=100, learning_power=1.0)
    held = learning_rate(dataclasses.replace(config, learning_rate_update_steps=10))
    rates = [float(held(step)) for step in (0, 9, 10, 19, 95)]
    np.testing.assert_allclose(rates, [1.0, 1.0, 0.9, 0.9, 0.1], atol=1e-6)
    assert float(learning_rate(config)(9)) < 0.95


def test_a_late_schedule_stays_at_its_start_and_follows_afterwards():
    config = TrainConfig(base_learning_rate=0.1, training_number_of_steps=10)
    late = learning_rate(dataclasses.replace(config, learning_rate_lag_steps=2))
    rates = [float(late(tf.constant(t, tf.int64))) for t in range(10)]
    expected = [0.1 * (1 - max(t - 2, 0) / 10) ** 0.9 for t in range(10)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
