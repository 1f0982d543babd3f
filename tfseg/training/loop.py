"""The loop of a run: from the newest checkpoint to the last step, whatever happens between.

It is written out here and not orbit's Controller: that one prints lines of its own beside the
progress bar, saves through a CheckpointManager that neither verifies nor falls back, and looks at
nothing between the steps of an interval.
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfseg import machine, sharing
from tfseg.errors import UserError
from tfseg.settings.run import TrainConfig
from tfseg.training import memory
from tfseg.training.interruption import Stopped
from tfseg.training.progress import Progress
from tfseg.training.trainer import Interval, NonFiniteLoss, Trainer
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.checkpoint.writing import writing_events


class _Saver:
    """Decides when to save: by the clock, by the step, and at the end."""

    def __init__(self, store: Store, config: TrainConfig):
        self._store, self._config = store, config
        self._last_time = time.monotonic()
        self.last_step: int | None = None

    def is_due(self, step: int) -> bool:
        every = self._config.save_interval_steps
        by_step = every > 0 and step % every == 0
        by_clock = time.monotonic() - self._last_time >= self._config.save_interval_secs
        return by_step or by_clock

    def prefix(self, step: int) -> str:
        """Returns the checkpoint of a step."""
        return os.path.join(self._config.train_logdir, f"model.ckpt-{step}")

    def save(self, step: int) -> None:
        if step != self.last_step:
            self._store.save(step)
            self._last_time, self.last_step = time.monotonic(), step


def _steps_to_next_event(config: TrainConfig, step: int) -> int:
    """Steps up to the next report, checkpoint by step, or end."""
    periods = [max(1, config.log_steps)]
    if config.save_interval_steps > 0:
        periods.append(config.save_interval_steps)
    steps = [period - step % period for period in periods]
    return min([*steps, config.training_number_of_steps - step])


def _open_store(trainer: Trainer, config: TrainConfig, is_chief: bool) -> Store:
    """Makes the run's folder, tidies it up, and returns the store of its checkpoints."""
    start = time.time()
    networks = dict(trainer.method.stored())
    if trainer.ema is not None:
        networks["ema"] = trainer.ema
    store = Store(
        config.train_logdir,
        networks,
        trainer.state(),
        config.max_to_keep,
        is_chief,
        may_lack=trainer.loss_scales(),
    )
    os.makedirs(config.train_logdir, exist_ok=True)
    if is_chief:
        sharing.remove_leftovers(config.train_logdir, before=start)
    return store


def check_room(folder: str, needed: int) -> None:
    """Insists on room for two checkpoints: a new one is written before an old one is deleted.

    Args:
      folder: of the checkpoints.
      needed: bytes of one.

    Raises:
      UserError: the disk has not that much left.
    """
    free = machine.free_disk_bytes(folder)
    if free < 2 * needed:
        raise UserError(
            "The disk has no room for two checkpoints.",
            where=f"--train_logdir={folder}",
            received=f"{free / 2**20:.0f} MiB free",
            accepted=f"at least {2 * needed / 2**20:.0f} MiB; a checkpoint has "
            f"{needed / 2**20:.0f} MiB",
            fix="free some space, or choose a --train_logdir on another disk",
        )


def _tell_start(trainer: Trainer, store: Store, restored: str | None) -> None:
    """Says where a run goes on, what its checkpoint did not hold, and what rates it has."""
    if restored:
        print(f"resuming from {restored} (step {trainer.step})", flush=True)
    if store.lacking:
        initial = trainer.optimizers[0].initial_scale
        print(
            "note: the checkpoint does not hold the loss scale of float16: an earlier version "
            f"wrote it, or it was trained in another precision. The scale starts at {initial:g} "
            "and is saved from now on.",
            flush=True,
        )
    rates = trainer.describe_rates()
    if rates:
        print(rates, flush=True)


class _Reports:
    """Tells what a run's intervals gave: as lines, in a log, and in TensorBoard.

    Args:
      trainer: at the step from which the run goes on.
      config: of the run.
      images_per_step: images of all streams in one step, for the rate.
      is_chief: whether this worker writes files.
    """

    def __init__(self, trainer: Trainer, config: TrainConfig, images_per_step: int, is_chief: bool):
        self._trainer = trainer
        self._progress = Progress(
            total_steps=config.training_number_of_steps,
            start_step=trainer.step,
            images_per_step=images_per_step,
            log_path=os.path.join(config.train_logdir, "train_log.jsonl") if is_chief else None,
        )
        self._writer = _SummaryWriter(config.train_logdir if is_chief else None)

    def write(self, interval: Interval) -> None:
        """Tells an interval.

        Raises:
          NonFiniteLoss: the weights are not finite.
        """
        trainer = self._trainer
        step, rate = trainer.step, trainer.current_learning_rate()
        losses = {**interval.losses, "l2": trainer.regularization_loss()}
        if not np.isfinite(losses["l2"]):
            raise NonFiniteLoss(
                "The weights are not finite; training stopped and the last checkpoint was kept.",
                step=step,
                where=f"step {step}",
                received=f"sum of their squares, l2={losses['l2']}",
                fix="lower --base_learning_rate; if this is the first report, look at the initial "
                "weights",
            )
        images_per_second = self._progress.report(step, losses, rate, interval.figures)
        interval = dataclasses.replace(interval, losses=losses)
        self._writer.write(step, interval, rate, images_per_second)

    def close(self) -> None:
        """Ends the line of progress."""
        self._progress.close()


def run(
    *,
    trainer: Trainer,
    config: TrainConfig,
    images_per_step: int,
    describe_batch: Callable[[int], str],
    write_panels: Callable[[int], None] | None = None,
    start_at: Callable[[int], None],
    begin: Callable[[], None] = lambda: None,
    is_chief: bool = True,
) -> int:
    """Trains to `training_number_of_steps`, resuming where an earlier run stopped.

    Args:
      trainer: one step and its state.
      config: the run's settings.
      images_per_step: images of all streams in one step, for the rate.
      describe_batch: names the images of a step's global batch, for error messages.
      write_panels: writes image summaries at a step.
      start_at: called with the first step before any batch is read; positions the data there.
      begin: called once nothing stands in the way of the first step; before, nothing is written.
      is_chief: whether this worker keeps checkpoints and logs.

    Returns:
      Exit code: 0, or 128 + signal when a signal stopped the run after saving.

    Raises:
      UserError: disk or memory do not suffice, or a checkpoint cannot be read or written.
    """
    store = _open_store(trainer, config, is_chief)
    restored = store.restore()
    first_step = trainer.step
    trainer.check_round()
    if restored and first_step >= config.training_number_of_steps:
        tell_complete(restored, first_step, config)
        return 0
    check_room(config.train_logdir, store.num_bytes())
    _tell_start(trainer, store, restored)
    start_at(first_step)
    print(memory.describe(trainer.step_function, trainer.iterator, trainer.variables), flush=True)
    begin()
    saver = _Saver(store, config)
    saver.last_step = first_step if restored else None
    reports = _Reports(trainer, config, images_per_step, is_chief)
    # The clock may be younger than any interval: it often counts from the machine's start.
    last_panels = -math.inf
    try:
        with Profile(config.profile_logdir, first_step) as profile:
            while trainer.step < config.training_number_of_steps:
                steps = min(_steps_to_next_event(config, trainer.step), profile.look(trainer.step))
                reports.write(trainer.train(steps))
                is_late = time.monotonic() - last_panels > config.save_summaries_secs
                draws, saves = trainer.agreement.any(is_late, saver.is_due(trainer.step))
                if write_panels and draws:
                    write_panels(trainer.step)
                    last_panels = time.monotonic()
                if saves:
                    saver.save(trainer.step)
    except Stopped as stopped:
        reports.write(trainer.since_last_look())
        saver.save(trainer.step)
        if trainer.step < config.training_number_of_steps:
            print(f"saved at step {trainer.step}; run the same command again to go on", flush=True)
        else:
            tell_complete(saver.prefix(trainer.step), trainer.step, config)
        return stopped.exit_code
    except NonFiniteLoss as error:
        raise NonFiniteLoss(
            error.what,
            where=f"{error.where}, images {describe_batch(error.step - 1)}",
            received=error.received,
            fix=error.fix,
            step=error.step,
        ) from None
    finally:
        reports.close()
    saver.save(trainer.step)
    tell_complete(saver.prefix(trainer.step), trainer.step, config)
    return 0


def tell_complete(where: str, step: int, config: TrainConfig) -> None:
    """Prints that a run has all its steps.

    Args:
      where: its folder or checkpoint.
      step: that it reached.
      config: of the run; it may ask for fewer steps.
    """
    asked = config.training_number_of_steps
    more = f", --training_number_of_steps={asked}" if step > asked else ""
    print(f"the run is complete: {where} (step {step}{more})", flush=True)


class _SummaryWriter:
    """Writes TensorBoard scalars and histograms; on workers other than the chief nothing."""

    def __init__(self, logdir: str | None):
        self._folder = logdir or ""
        if logdir is None:
            self._writer = tf.summary.create_noop_writer()
            return
        with writing_events(logdir):
            self._writer = tf.summary.create_file_writer(logdir)

    def write(self, step: int, interval: Interval, rate: float, images_per_second: float) -> None:
        with writing_events(self._folder), self._writer.as_default(step=step):
            for name, value in interval.losses.items():
                tf.summary.scalar(f"losses/{name}", value)
            for name, value in interval.figures.items():
                tf.summary.scalar(f"monitors/{name}", value)
            for name, shares in interval.histograms.items():
                # TensorBoard bins samples itself: a thousand of them, at the middle of each bin.
                middles = (np.arange(len(shares)) + 0.5) / len(shares)
                samples = np.repeat(middles, np.rint(shares * 1000).astype(int))
                tf.summary.histogram(f"monitors/{name}", samples, buckets=len(shares))
            tf.summary.scalar("learning_rate", rate)
            tf.summary.scalar("images_per_second", images_per_second)
            self._writer.flush()


class Profile:
    """Writes a TensorFlow profile of ten steps where asked to; the ten before them compile.

    A profile of a whole run would outgrow memory and disk.

    Args:
      logdir: folder; None: nothing is written.
      first_step: from which the run goes on.
    """

    def __init__(self, logdir: str | None, first_step: int):
        self._logdir, self._is_on, self._has_begun = logdir, False, False
        self._start, self._end = first_step + 10, first_step + 20

    def __enter__(self):
        if self._logdir:
            os.makedirs(self._logdir, exist_ok=True)
        return self

    def look(self, step: int) -> int:
        """Starts or stops where that is due; returns the number of steps until it is again."""
        if not self._logdir or step >= self._end:
            if self._is_on:
                self._stop()
            return sys.maxsize
        if step < self._start:
            return self._start - step
        if not self._is_on:
            tf.profiler.experimental.start(self._logdir)
            self._is_on = self._has_begun = True
        return self._end - step

    def _stop(self) -> None:
        """Writes the profile; a training does not end for one that cannot be written."""
        self._is_on = False
        try:
            tf.profiler.experimental.stop()
        except tf.errors.OpError as error:
            print(f"warning: the profile is not in {self._logdir}: {error.message}", flush=True)

    def __exit__(self, *exception):
        if self._is_on:
            self._stop()
        elif self._logdir and not self._has_begun:
            print(
                f"note: no profile in {self._logdir}: it is of ten steps after the first ten, and "
                "the run ended before them",
                flush=True,
            )
