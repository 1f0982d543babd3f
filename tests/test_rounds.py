"""Rounds of a method: each starts as a run of its own would, and resumes exactly."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.toy import ToyMethod, ToyNetwork, batches
from tfseg.errors import UserError
from tfseg.methods.base import ParamGroup
from tfseg.settings.run import TrainConfig
from tfseg.training.loop import run
from tfseg.training.trainer import Trainer
from tfseg.weights.checkpoint.store import Store

ROUNDS, PERIOD = 3, 4
STEPS = ROUNDS * PERIOD


class Rounds(ToyMethod):
    """Is drawn to what it was at the start of the round."""

    rounds = ROUNDS

    def __init__(self, **options):
        super().__init__(**options)
        self.teacher = ToyNetwork(seed=1)
        self.teacher.trainable = False
        self.begun = []

    def networks(self):
        return {"model": self.model, "teacher": self.teacher}

    def begin_round(self):
        for teacher, student in zip(
            (self.teacher.kernel, self.teacher.bias), (self.model.kernel, self.model.bias)
        ):
            teacher.assign(tf.convert_to_tensor(student))
        self.begun.append(self.model.kernel.numpy())

    def losses(self, batch, step, seed, monitors):
        losses = super().losses(batch, step, None, monitors)
        difference = self.model.kernel - self.teacher.kernel
        return {**losses, "teacher": 10.0 * tf.reduce_sum(tf.square(difference))}


class OneRound(Rounds):
    rounds = 1


def make(folder, method=Rounds, *, strategy=None, start=0, mixed_precision="float32", **options):
    """Returns a trainer and what `run` needs besides."""
    defaults = dict(
        train_logdir=str(folder),
        training_number_of_steps=PERIOD * method.rounds,
        train_batch_size=4,
        base_learning_rate=0.1,
        log_steps=5,
        save_interval_secs=1000,
    )
    config = dataclasses.replace(TrainConfig(), **{**defaults, **options})
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        made = method(build_model=ToyNetwork, spec=None, config=config)
    trainer = Trainer(
        method=made,
        strategy=strategy,
        config=config,
        iterator=None,
        mixed_precision=mixed_precision,
    )
    dataset = batches(4 // strategy.num_replicas_in_sync)

    def start_at(step):
        source = lambda context: dataset(start + step)  # noqa: E731
        trainer.iterator = iter(strategy.distribute_datasets_from_function(source))

    return trainer, config, start_at


def finish(trainer, config, start_at):
    code = run(
        trainer=trainer,
        config=config,
        images_per_step=4,
        describe_batch=str,
        start_at=start_at,
    )
    assert code == 0
    return trainer


def weights(trainer):
    return [v.numpy() for n in trainer.method.networks().values() for v in n.variables]


def assert_same(first, second):
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_round_is_a_run_of_its_own(tmp_path, optimizer):
    trainer, config, start_at = make(tmp_path, optimizer=optimizer)
    start_at(0)
    trainer.train(PERIOD)
    student = [v.numpy() for v in trainer.method.model.variables]
    other, _, other_start = make(tmp_path, OneRound, start=PERIOD, optimizer=optimizer)
    for variable, value in zip(other.method.model.variables, student):
        variable.assign(value)
    other_start(0)
    trainer.train(PERIOD)
    other.train(PERIOD)
    assert_same(weights(trainer), weights(other))
    assert trainer.step == 2 * PERIOD and other.step == PERIOD


def test_the_teacher_is_the_network_at_the_start_of_each_round(tmp_path):
    trainer, config, start_at = make(tmp_path)
    start = trainer.method.model.kernel.numpy()
    finish(trainer, config, start_at)
    begun = trainer.method.begun
    assert len(begun) == ROUNDS
    np.testing.assert_array_equal(begun[0], start)
    assert np.abs(begun[1] - begun[0]).max() > 0 and np.abs(begun[2] - begun[1]).max() > 0
    np.testing.assert_array_equal(trainer.method.teacher.kernel, begun[-1])


def test_the_learning_rate_falls_in_every_round(tmp_path):
    trainer, _, start_at = make(tmp_path, log_steps=1)
    start_at(0)
    rates = []
    for _ in range(2 * PERIOD):
        rates.append(trainer.current_learning_rate())
        trainer.train(1)
    # (Looked at before the first step of the second round, the first one has come to its end.)
    expected = [0.1 * (1 - i / PERIOD) ** 0.9 for i in range(PERIOD + 1)]
    np.testing.assert_allclose(rates[: PERIOD + 1], expected, atol=1e-7)
    np.testing.assert_allclose(rates[PERIOD + 1 :], expected[1:PERIOD], atol=1e-7)


def test_the_rate_that_is_told_is_the_given_one(tmp_path):
    class Grouped(Rounds):
        def param_groups(self):
            return [
                ParamGroup("kernels", [self.model.kernel], lr_multiplier=10.0),
                ParamGroup("biases", [self.model.bias], schedule=0.02, lr_multiplier=2.0),
            ]

    trainer, _, _ = make(tmp_path, Grouped)
    assert trainer.current_learning_rate() == pytest.approx(0.1)
    told = trainer.describe_rates()
    assert "kernels: 10 times as much" in told and "biases: always 0.04" in told
    assert make(tmp_path)[0].describe_rates() is None


@pytest.mark.parametrize("stop", [0, 1, PERIOD - 1, PERIOD, PERIOD + 1, 2 * PERIOD])
def test_a_run_resumes_before_on_and_after_a_boundary(tmp_path, stop):
    whole = finish(*make(tmp_path / "whole"))
    first, _, start_at = make(tmp_path / "parts")
    start_at(0)
    store = Store(str(tmp_path / "parts"), first.method.networks(), first.state(), max_to_keep=1)
    if stop:
        first.train(stop)
    store.save(stop)
    second = finish(*make(tmp_path / "parts"))
    assert_same(weights(whole), weights(second))
    assert len(first.method.begun) + len(second.method.begun) == ROUNDS


def test_a_finished_run_begins_no_further_round(tmp_path):
    finish(*make(tmp_path))
    again = finish(*make(tmp_path))
    assert again.method.begun == []


def test_rounds_may_follow_but_not_change(tmp_path):
    finish(*make(tmp_path))

    class Four(Rounds):
        rounds = ROUNDS + 1

    with pytest.raises(UserError, match=r"rounds of 6 steps(.|\n)*rounds of 4 steps"):
        finish(*make(tmp_path, training_number_of_steps=ROUNDS * 6))
    longer = finish(*make(tmp_path, Four))
    assert longer.step == STEPS + PERIOD and len(longer.method.begun) == 1


@pytest.mark.parametrize("stop", [1, PERIOD, PERIOD + 1])
def test_rounds_keep_their_length_inside_a_round_too(tmp_path, stop):
    first, _, start_at = make(tmp_path)
    start_at(0)
    first.train(stop)
    networks, state = first.method.networks(), first.state()
    Store(str(tmp_path), networks, state, max_to_keep=1).save(stop)
    with pytest.raises(UserError, match=r"rounds of 5 steps(.|\n)*rounds of 4 steps"):
        finish(*make(tmp_path, training_number_of_steps=ROUNDS * (PERIOD + 1)))


def test_before_the_first_step_any_length_will_do(tmp_path):
    first, _, _ = make(tmp_path)
    networks = first.method.networks()
    Store(str(tmp_path), networks, first.state(), max_to_keep=1).save(0)
    longer = finish(*make(tmp_path, training_number_of_steps=ROUNDS * (PERIOD + 1)))
    assert longer.step == ROUNDS * (PERIOD + 1) and len(longer.method.begun) == ROUNDS
    assert int(longer.state()["round_steps"]) == PERIOD + 1


def test_loss_scaling_goes_on_over_rounds(tmp_path):
    trainer, _, start_at = make(tmp_path, mixed_precision="float16")
    start_at(0)
    trainer.train(PERIOD)
    scale = float(trainer.optimizers[0].loss_scale)
    assert int(trainer.optimizers[0].iterations) == PERIOD
    trainer.train(1)
    assert float(trainer.optimizers[0].loss_scale) == scale > 1
    assert int(trainer.optimizers[0].iterations) == 1


def test_rounds_on_two_replicas(tmp_path, two_replicas):
    trainer = finish(*make(tmp_path, strategy=two_replicas))
    assert len(trainer.method.begun) == ROUNDS
    np.testing.assert_array_equal(trainer.method.teacher.kernel.numpy(), trainer.method.begun[-1])


def test_other_methods_have_no_round_in_their_checkpoints(tmp_path):
    class Plain(ToyMethod):
        rounds = None

    config = TrainConfig(train_batch_size=4)
    method = Plain(build_model=ToyNetwork, spec=None, config=config)
    trainer = Trainer(
        method=method, strategy=tf.distribute.get_strategy(), config=config, iterator=None
    )
    assert trainer.round is None
    assert not {"round", "round_steps"} & trainer.state().keys()
