"""Golden cases `slrnet/lr` and `slrnet/sgd`: learning rates, and the trainer's updates."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import load
from tfseg.methods.base import Method, ParamGroup
from tfseg.settings.run import TrainConfig
from tfseg.training.optimizers import Scaled, learning_rate
from tfseg.training.trainer import Trainer

# Factors on the rate of the published parameter groups, column by column.
MULTIPLIERS = (1.0, 2.0, 10.0, 20.0)


def _check_rates(path, name):
    assert name == "lr_per_step", f"{path} holds {name}, which no check knows"
    arrays = load(path)
    epochs, pretraining, steps = (
        int(arrays[key]) for key in ("num_epochs", "pretrain_epochs", "steps_per_epoch")
    )
    config = TrainConfig(
        learning_policy="cosine",
        base_learning_rate=float(arrays["base_lr"]),
        training_number_of_steps=epochs * steps,
        constant_steps=(pretraining + 1) * steps,
        decay_steps=(epochs - pretraining) * steps,
    )
    assert arrays[name].shape == (epochs * steps, len(MULTIPLIERS))
    for factor, expected in zip(MULTIPLIERS, arrays[name].T):
        schedule = Scaled(learning_rate(config), factor)
        actual = [float(schedule(tf.constant(step))) for step in range(epochs * steps)]
        # Near the end 1 + cos has few digits left in float32.
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7 * expected[0])


class _GivenRates(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rates):
        self.rates = tf.constant(rates, tf.float32)

    def __call__(self, step):
        return tf.gather(self.rates, tf.cast(step, tf.int32))


class _GivenGradients(Method):
    """One variable, whose gradient is the batch."""

    def __init__(self, start, rates, config):
        self.variable, self.rates = tf.Variable(start), rates
        super().__init__(build_model=lambda: None, spec=None, config=config)

    def losses(self, batch, step, seed, monitors):
        return {"given": tf.reduce_sum(batch["gradient"] * self.variable)}

    def param_groups(self):
        schedule, decay = _GivenRates(self.rates), self.config.weight_decay
        group = ParamGroup(
            "all", [self.variable], weight_decay=decay, schedule=schedule, nesterov=True
        )
        return [group]


def _check_updates(path, name):
    assert name == "p_after", f"{path} holds {name}, which no check knows"
    arrays = load(path)
    config = dataclasses.replace(
        TrainConfig(),
        momentum=float(arrays["momentum"]),
        weight_decay=float(arrays["weight_decay"]),
    )
    method = _GivenGradients(arrays["p0"], arrays["lr"], config)
    batches = iter(tf.data.Dataset.from_tensor_slices({"gradient": arrays["grads"]}))
    trainer = Trainer(
        method=method, strategy=tf.distribute.get_strategy(), config=config, iterator=batches
    )
    for expected in arrays[name]:
        trainer.step_function(batches)
        np.testing.assert_allclose(method.variable, expected, rtol=1e-6, atol=3e-6)


INPUTS = {
    "lr": ("base_lr", "num_epochs", "pretrain_epochs", "steps_per_epoch"),
    "sgd": ("p0", "grads", "lr", "weight_decay", "momentum"),
}


def _quantities(family, path):
    return [name for name in load(path) if name not in INPUTS[family]]


CASES = {
    "slrnet/lr": (functools.partial(_quantities, "lr"), _check_rates),
    "slrnet/sgd": (functools.partial(_quantities, "sgd"), _check_updates),
}
