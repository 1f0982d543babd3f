import concurrent.futures
import dataclasses
import json
import os
import signal
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.toy import ToyMethod, ToyNetwork, batches
from tfseg import machine
from tfseg.errors import UserError
from tfseg.monitors import Monitors
from tfseg.settings.run import TrainConfig
from tfseg.training import loop, memory
from tfseg.training.interruption import Interruption
from tfseg.training.loop import run
from tfseg.training.trainer import Interval, NonFiniteLoss, Trainer
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.checkpoint.stored_networks import stored_variables


def make_trainer(
    tmp_path, strategy=None, interruption=None, ema=False, precision="float32", **options
):
    defaults = dict(
        train_logdir=str(tmp_path),
        training_number_of_steps=6,
        train_batch_size=4,
        base_learning_rate=0.1,
        log_steps=2,
        save_interval_secs=1000,
    )
    config = dataclasses.replace(TrainConfig(), **{**defaults, **options})
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        method = ToyMethod(build_model=ToyNetwork, spec=None, config=config)
        average = ToyNetwork() if ema else None
    trainer = Trainer(
        method=method,
        strategy=strategy,
        config=config,
        iterator=None,
        interruption=interruption,
        mixed_precision=precision,
        ema=average,
    )
    per_replica = config.train_batch_size // strategy.num_replicas_in_sync
    make = batches(per_replica)

    def start_at(step):
        trainer.iterator = iter(strategy.distribute_datasets_from_function(lambda c: make(step)))

    return trainer, config, start_at


def train(trainer, config, start_at, **options):
    return run(
        trainer=trainer,
        config=config,
        images_per_step=4,
        describe_batch=lambda step: f"images of step {step}",
        start_at=start_at,
        **options,
    )


def weights(trainer):
    return [v.numpy() for v in trainer.method.model.variables]


def log_of(folder):
    with open(os.path.join(folder, "train_log.jsonl")) as file:
        return [json.loads(line) for line in file]


def test_loss_falls_and_log_and_checkpoint_are_written(tmp_path):
    parts = make_trainer(tmp_path, training_number_of_steps=20)
    assert train(*parts) == 0
    log = log_of(tmp_path)
    assert [entry["step"] for entry in log] == list(range(2, 21, 2))
    assert log[-1]["segmentation"] < log[0]["segmentation"]
    assert find.newest(str(tmp_path)).endswith("model.ckpt-20")


def test_one_step_is_the_published_update(tmp_path):
    trainer, config, start_at = make_trainer(tmp_path, weight_decay=0.1, log_steps=1)
    kernel, bias = trainer.method.model.kernel.numpy(), trainer.method.model.bias.numpy()
    batch = next(iter(batches(4)(0)))
    start_at(0)
    with tf.GradientTape() as tape:
        seed = tf.random.experimental.stateless_fold_in(
            tf.random.experimental.stateless_fold_in(tf.constant([0, 0]), tf.constant(0, tf.int64)),
            tf.constant(0),
        )
        losses = trainer.method.losses(batch, tf.constant(0, tf.int64), seed, Monitors())
    model = trainer.method.model
    to_kernel, to_bias = tape.gradient(losses["segmentation"], [model.kernel, model.bias])
    trainer.train(1)
    expected_kernel = kernel - 0.1 * (to_kernel.numpy() + 0.1 * kernel)
    np.testing.assert_allclose(model.kernel.numpy(), expected_kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.bias.numpy(), bias - 0.1 * 2 * to_bias.numpy(), rtol=1e-5)


def test_decoupled_weight_decay_is_no_part_of_the_gradient(tmp_path):
    """The first step of AdamW has the length of the rate, however large the weights are."""
    trainer, _, start_at = make_trainer(tmp_path, weight_decay=0.1, optimizer="adamw")
    kernel = trainer.method.model.kernel
    kernel.assign(kernel * 10.0)
    before = kernel.numpy()
    start_at(0)
    trainer.train(1)
    moved = np.abs(kernel.numpy() - before * (1 - 0.1 * 0.1))
    # The toy's rate is 0.1; where the gradient is tiny, the step is shorter.
    assert moved.max() <= 0.1001 and np.median(moved) > 0.0999
    assert trainer.regularization_loss() == 0.0


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "lamb", "lars"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, optimizer):
    options = {"training_number_of_steps": 9, "optimizer": optimizer}
    whole, config, start_at = make_trainer(tmp_path / "whole", **options)
    train(whole, config, start_at)
    first = make_trainer(tmp_path / "parts", **options)
    first[2](0)
    store = Store(str(tmp_path / "parts"), first[0].method.networks(), first[0].state())
    first[0].train(5)
    store.save(5)
    second = make_trainer(tmp_path / "parts", **options)
    assert train(*second) == 0
    for a, b in zip(weights(whole), weights(second[0])):
        np.testing.assert_array_equal(a, b)


def scales_of(trainer):
    return [(float(o.loss_scale), int(o.dynamic_counter)) for o in trainer.optimizers]


@pytest.mark.parametrize("name", ["momentum", "adamw", "lamb"])
def test_the_loss_scale_of_float16_resumes_exactly(tmp_path, name):
    first, config, start_at = make_trainer(tmp_path, precision="float16", optimizer=name)
    start_at(0)
    for optimizer in first.optimizers:
        optimizer.dynamic_counter.assign(optimizer.dynamic_growth_steps - 2)
    first.train(3)
    initial = first.optimizers[0].initial_scale
    assert scales_of(first) == [(2 * initial, 1)] * 2
    Store(str(tmp_path), first.method.networks(), first.state()).save(3)
    second = make_trainer(tmp_path, precision="float16", training_number_of_steps=4, optimizer=name)
    assert train(*second) == 0
    assert scales_of(second[0]) == [(2 * initial, 2)] * 2


def test_keras_does_not_warn_of_the_loss_scale_of_float16(tmp_path, caplog):
    trainer, _, start_at = make_trainer(tmp_path, precision="float16")
    start_at(0)
    trainer.train(1)
    assert len(trainer.optimizers) == 2 and caplog.text == ""


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_checkpoint_without_the_loss_scale_is_resumed_and_that_is_told(
    tmp_path, capsys, precision
):
    """Such as an earlier version wrote in float16, and every one in float32."""
    first = make_trainer(tmp_path, precision=precision)
    first[2](0)
    first[0].train(3)
    state = {
        name: variable
        for name, variable in first[0].state().items()
        if name not in first[0].loss_scales()
    }
    Store(str(tmp_path), first[0].method.networks(), state).save(3)
    second = make_trainer(tmp_path, precision="float16", training_number_of_steps=4)
    assert train(*second) == 0
    initial = second[0].optimizers[0].initial_scale
    assert scales_of(second[0]) == [(initial, 1)] * 2
    assert f"starts at {initial:g}" in capsys.readouterr().out
    # Now it is there, and nothing is told.
    assert train(*make_trainer(tmp_path, precision="float16", training_number_of_steps=5)) == 0
    assert "loss scale" not in capsys.readouterr().out


def test_an_event_file_that_finds_no_space_is_a_user_error(tmp_path, full_disk):
    interval = Interval(losses={"segmentation": 1.0}, figures={}, histograms={})
    with pytest.raises(UserError, match="(?s)event file.*larger.*EFBIG"):
        loop._SummaryWriter(str(tmp_path)).write(1, interval, 0.1, 2.0)


def test_ten_steps_are_profiled(tmp_path, monkeypatch):
    """The whole of a long run would outgrow memory and disk."""
    at = []
    for name in ("start", "stop"):
        monkeypatch.setattr(
            tf.profiler.experimental, name, lambda *_, name=name: at.append((name, trainer.step))
        )
    options = {"profile_logdir": str(tmp_path / "profile"), "training_number_of_steps": 31}
    trainer, config, start_at = make_trainer(tmp_path / "run", log_steps=7, **options)
    assert train(trainer, config, start_at) == 0
    assert at == [("start", 10), ("stop", 20)] and trainer.step == 31


def test_a_profile_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    trainer, config, start_at = make_trainer(
        tmp_path / "run", profile_logdir=str(tmp_path / "file" / "profile")
    )
    with pytest.raises(NotADirectoryError):
        train(trainer, config, start_at)
    assert trainer.step == 0


def test_a_profile_that_the_disk_refuses_ends_no_training(tmp_path, monkeypatch, capsys):
    def refuse():
        raise tf.errors.ResourceExhaustedError(None, None, "no space")

    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: None)
    monkeypatch.setattr(tf.profiler.experimental, "stop", refuse)
    options = {"profile_logdir": str(tmp_path / "profile"), "training_number_of_steps": 21}
    trainer, config, start_at = make_trainer(tmp_path / "run", **options)
    assert train(trainer, config, start_at) == 0 and trainer.step == 21
    assert "warning: the profile is not in" in capsys.readouterr().out


def test_a_run_too_short_for_a_profile_says_so(tmp_path, capsys):
    options = {"profile_logdir": str(tmp_path / "profile"), "training_number_of_steps": 5}
    assert train(*make_trainer(tmp_path / "run", **options)) == 0
    assert "no profile in" in capsys.readouterr().out


def test_a_run_may_be_trained_outside_the_main_thread():
    def work():
        with Interruption() as interruption:
            return interruption.received

    before = signal.getsignal(signal.SIGTERM)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_saves_within_the_step_and_says_how_to_go_on(tmp_path, capsys):
    with Interruption() as interruption:
        trainer, config, start_at = make_trainer(
            tmp_path, interruption=interruption, training_number_of_steps=1000, log_steps=500
        )
        step_function, calls = trainer.step_function, []

        def step(iterator):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return step_function(iterator)

        step.get_concrete_function = step_function.get_concrete_function
        trainer.step_function = step
        assert train(trainer, config, start_at) == 128 + signal.SIGTERM
    assert find.newest(str(tmp_path)).endswith("model.ckpt-3")
    assert "run the same command again" in capsys.readouterr().out


class OfTwo:
    """What the trainer asks of `Agreement` where there is another worker, which hears the same."""

    is_alone = False

    def __init__(self):
        self.questions = []

    def largest(self, value):
        self.questions.append(value)
        return value

    def any(self, *values):
        return list(values)


@pytest.mark.parametrize("last, questions", [(1000, []), (4, [signal.SIGTERM])])
def test_of_several_workers_a_signal_goes_along_with_the_next_step(tmp_path, last, questions):
    """The step after the signal tells it; after the last one there is none, and all are asked."""
    with Interruption() as interruption:
        trainer, config, start_at = make_trainer(
            tmp_path, interruption=interruption, training_number_of_steps=last, log_steps=500
        )
        trainer.agreement = OfTwo()
        step_function, calls = trainer.step_function, []

        def step(iterator):
            measured = step_function(iterator)
            calls.append(measured["signals"].numpy().tolist())
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return measured

        step.get_concrete_function = step_function.get_concrete_function
        trainer.step_function = step
        assert train(trainer, config, start_at) == 128 + signal.SIGTERM
    assert calls == [[0.0, 0.0]] * 3 + [[1.0, 0.0]]
    assert trainer.agreement.questions == questions
    assert find.newest(str(tmp_path)).endswith("model.ckpt-4")


def test_a_non_finite_loss_stops_with_losses_step_and_images(tmp_path):
    trainer, config, start_at = make_trainer(tmp_path, save_interval_steps=2)
    trainer.method.poison_step = 3
    with pytest.raises(NonFiniteLoss, match=r"step 4, images images of step 3(.|\n)*nan"):
        train(trainer, config, start_at)
    assert find.newest(str(tmp_path)).endswith("model.ckpt-2")


def test_weights_that_are_not_finite_stop_the_run_even_if_its_losses_are(tmp_path):
    trainer, config, start_at = make_trainer(tmp_path, log_steps=1)
    # Its square is beyond float32; the method's own loss does not see this variable.
    trainer.method.model.bias.assign([1e30, 0.0, 0.0])
    trainer.groups = [dataclasses.replace(group, weight_decay=1e-4) for group in trainer.groups]
    trainer.method.losses = lambda *batch: {
        "zero": tf.reduce_sum(trainer.method.model.kernel) * 0.0
    }
    with pytest.raises(NonFiniteLoss, match=r"weights are not finite(.|\n)*step 1, images"):
        train(trainer, config, start_at)
    assert find.newest(str(tmp_path)) is None


def test_the_chief_removes_what_killed_runs_left_and_nothing_newer(tmp_path):
    coming = time.time() + 1000
    for name, age in ((".writing", 0), (".writing-worker1-x.a", 0), (".writing-y.b", coming)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / ".writing-file").touch()
    os.utime(tmp_path / ".writing-file", (0, 0))
    train(*make_trainer(tmp_path, training_number_of_steps=1), is_chief=False)
    assert (tmp_path / ".writing-file").exists() and (tmp_path / ".writing").exists()
    train(*make_trainer(tmp_path, training_number_of_steps=1))
    assert [n for n in os.listdir(tmp_path) if n.startswith(".writing")] == [".writing-y.b"]


def test_a_step_for_which_memory_is_tight_is_told_and_a_hopeless_one_refused():
    gib = 2**30
    assert memory.warn_or_refuse(23 * gib, 24 * gib) is None
    assert "warning: this machine has 24.0 GiB" in memory.warn_or_refuse(30 * gib, 24 * gib)
    with pytest.raises(UserError, match="(?s)about 832.0 GiB.*24.0 GiB.*--train_batch_size"):
        memory.warn_or_refuse(832 * gib, 24 * gib)


@pytest.mark.parametrize(
    "function, value, message",
    [("memory_bytes", 10, "far more memory"), ("free_disk_bytes", 700, "two checkpoints")],
)
def test_what_cannot_be_done_leaves_nothing(tmp_path, monkeypatch, function, value, message):
    # The memory of a GPU is its own: without one, whatever this machine has.
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [])
    monkeypatch.setattr(machine, function, lambda *_: value)
    with pytest.raises(UserError, match=message):
        train(*make_trainer(tmp_path / "run"), begin=lambda: pytest.fail("the run has begun"))
    assert not list((tmp_path / "run").iterdir())


def test_a_checkpoint_is_as_large_as_its_values(tmp_path):
    trainer, _, _ = make_trainer(tmp_path)
    store = Store(str(tmp_path), trainer.method.networks(), trainer.state())
    values = sum(v.numpy().nbytes for v in (*trainer.state().values(), *trainer.variables))
    assert store.num_bytes() == values
    store.save(1)
    stored = sum(p.stat().st_size for p in tmp_path.iterdir() if ".data-" in p.name)
    # Names of variables and the like.
    assert values <= stored < values + 4096


def test_gradient_accumulation_equals_the_whole_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ToyNetwork,
        "call",
        lambda self, image, training=False, dropout_seed=None: {
            "logits": tf.nn.conv2d(image / 255.0, self.kernel, 1, "SAME") + self.bias
        },
    )
    results = []
    for parts in (1, 2, 4):
        pieces = make_trainer(tmp_path / str(parts), gradient_accumulation_steps=parts)
        train(*pieces)
        results.append(weights(pieces[0]))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_two_replicas_take_the_mean_of_their_losses(tmp_path, two_replicas):
    pieces = make_trainer(tmp_path, strategy=two_replicas, ema=True, ema_decay=0.5)
    assert train(*pieces) == 0
    trainer = pieces[0]
    assert log_of(tmp_path)[-1]["segmentation"] > 0
    stored = stored_variables(find.newest(str(tmp_path)))
    assert set(stored) == {"model", "ema"}
    assert not np.allclose(trainer.ema.kernel.numpy(), trainer.method.model.kernel.numpy())


def test_ema_follows_the_weights(tmp_path):
    trainer, config, start_at = make_trainer(tmp_path, ema=True, ema_decay=0.9)
    start_at(0)
    before = trainer.ema.kernel.numpy()
    trainer.train(1)
    decay = min(0.9, 1 / 10)
    expected = decay * before + (1 - decay) * trainer.method.model.kernel.numpy()
    np.testing.assert_allclose(trainer.ema.kernel.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_image_panels_come_at_once_and_then_by_the_clock_however_young_it_is(tmp_path, monkeypatch):
    trainer, *rest = make_trainer(tmp_path, save_summaries_secs=100, log_steps=1)
    clock = types.SimpleNamespace(monotonic=lambda: 5.0 + 40.0 * trainer.step, time=time.time)
    monkeypatch.setattr(loop, "time", clock)
    drawn = []
    train(trainer, *rest, write_panels=drawn.append)
    assert drawn == [1, 4]


def test_checkpoints_come_at_the_asked_steps(tmp_path):
    pieces = make_trainer(tmp_path, training_number_of_steps=7, save_interval_steps=3, log_steps=5)
    train(*pieces)
    steps = [find.step_of(p) for p in find.written(str(tmp_path))]
    assert steps == [3, 6, 7]


def test_log_forgets_steps_that_were_not_saved(tmp_path):
    pieces = make_trainer(tmp_path, training_number_of_steps=4)
    train(*pieces)
    with open(tmp_path / "train_log.jsonl", "a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0}) + "\n" + '{"step": 8, "lo')
    train(*make_trainer(tmp_path, training_number_of_steps=8))
    assert [entry["step"] for entry in log_of(tmp_path)] == [2, 4, 6, 8]
