"""A step of training and its state: from a method's losses to updates.

Between two steps the host looks for signals, so that SIGTERM saves within a step. Of several
workers each takes the signals that it has got into its next step, and all learn of them at the end
of it: they travel with the losses, in the one exchange that these need anyway.

Source: PseudoSeg specification, section 6.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.data import pipeline
from tfseg.errors import UserError
from tfseg.methods import teacher
from tfseg.methods.base import Method, ParamGroup
from tfseg.monitors import Monitors, summarise
from tfseg.settings.run import TrainConfig
from tfseg.training.agreement import Agreement
from tfseg.training.interruption import Interruption, Stopped
from tfseg.training.optimizers import DECOUPLED, make_optimizer, rate_of_run
from tfseg.weights.checkpoint.names import variable_name


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite; says which, when, and on which images."""

    def __init__(self, what: str, *, step: int, **details: Any):
        super().__init__(what, **details)
        self.step = step


def _part(batch: Any, index: tf.Tensor, parts: int) -> Any:
    """Returns part `index` of `parts` equal parts of every tensor in a nested batch."""
    return tf.nest.map_structure(
        lambda x: tf.reshape(x, [parts, x.shape[0] // parts, *x.shape[1:]])[index], batch
    )


def _counter(name: str, value: int) -> tf.Variable:
    """Returns a number that is the same on all replicas."""
    return tf.Variable(
        value,
        trainable=False,
        dtype=tf.int64,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _variables(optimizer: Any) -> list[tf.Variable]:
    """Returns an optimiser's state; Keras's older interface has a method where it is."""
    variables = optimizer.variables
    return list(variables() if callable(variables) else variables)


def _loss_scale_state(optimizer: Any) -> dict[str, tf.Variable]:
    """Returns the state of dynamic loss scaling, which Keras does not count among the variables."""
    # The property `loss_scale` is a copy of the variable.
    scale = optimizer._loss_scale.current_loss_scale
    return {"loss_scale": scale, "good_steps": optimizer.dynamic_counter}


@dataclasses.dataclass(frozen=True)
class Interval:
    """What some steps measured.

    Attributes:
      losses: mean of each loss.
      figures: of the method's monitors, over all images of these steps.
      histograms: likewise, shares of ten bins of [0, 1].
    """

    losses: dict[str, float]
    figures: dict[str, float]
    histograms: dict[str, np.ndarray]


def method_state(method: Method) -> dict[str, tf.Variable]:
    """Returns what a method remembers besides its networks, by names in checkpoints."""
    of_networks = {id(v) for part in method.stored().values() for v in part.variables}
    return {
        f"method/{i}/{variable_name(variable)}": variable
        for i, variable in enumerate(method.variables)
        if id(variable) not in of_networks
    }


class Trainer:
    """Applies a method's losses to its variables, step by step.

    Args:
      method: losses, networks and parameter groups.
      strategy: where the replicas run.
      config: the run's settings.
      iterator: distributed iterator of batches.
      interruption: looked at after every step; of several workers one may be interrupted.
      mixed_precision: 'float16' adds dynamic loss scaling.
      ema: network of averaged weights that follows the method's model; None: there is none.
    """

    def __init__(
        self,
        *,
        method: Method,
        strategy: tf.distribute.Strategy,
        config: TrainConfig,
        iterator: Any,
        interruption: Interruption | None = None,
        mixed_precision: str = "float32",
        ema: Any = None,
    ):
        self.method, self.strategy, self.config = method, strategy, config
        self.iterator = iterator
        self.ema = ema
        self.agreement = Agreement(strategy)
        self._interruption = interruption
        # Whether this worker got each signal; outside of the scope, for each worker has its own.
        self._signals = tf.Variable(tf.zeros([len(Interruption.SIGNALS)]), trainable=False)
        self._scaled = mixed_precision == "float16"
        with strategy.scope():
            self.global_step = _counter("global_step", 0)
            self._period = config.training_number_of_steps // (method.rounds or 1)
            # The last round that has begun, and the length of rounds.
            self.round = None if method.rounds is None else _counter("round", -1)
            self.round_steps = (
                None if method.rounds is None else _counter("round_steps", self._period)
            )
            self.groups = method.param_groups()
            self.optimizers = [self._make_optimizer(group) for group in self.groups]
        gradients = self._losses_and_gradients
        self._forward_backward = (
            tf.function(gradients, jit_compile=True, autograph=False)
            if config.jit_compile
            else gradients
        )
        self.step_function = tf.function(self._step, autograph=False)
        self._pending: list[dict[str, Any]] = []

    @property
    def _config_of_round(self) -> TrainConfig:
        return dataclasses.replace(self.config, training_number_of_steps=self._period)

    def _make_optimizer(self, group: ParamGroup) -> Any:
        optimizer = make_optimizer(
            self._config_of_round,
            name=group.optimizer,
            schedule=group.schedule,
            lr_multiplier=group.lr_multiplier,
            momentum=group.momentum,
            nesterov=group.nesterov,
            weight_decay=group.weight_decay,
        )
        if self._scaled:
            optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
            # The first group's scales for all groups; of the others Keras would warn.
            optimizer._loss_has_been_scaled = optimizer._gradients_have_been_unscaled = True
        if hasattr(optimizer, "build"):
            optimizer.build(list(group.variables))
        else:  # Optimisers of tensorflow-addons have Keras's older interface.
            optimizer._create_all_weights(list(group.variables))
        return optimizer

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.global_step.numpy())

    @property
    def variables(self) -> list[tf.Variable]:
        """All trained variables, in the order of the groups."""
        return [v for group in self.groups for v in group.variables]

    def state(self) -> dict[str, tf.Variable]:
        """Returns what a resume needs besides the networks, by name."""
        state = {"global_step": self.global_step}
        if self.round is not None:
            state |= {"round": self.round, "round_steps": self.round_steps}
        for group, optimizer in zip(self.groups, self.optimizers):
            for i, variable in enumerate(_variables(optimizer)):
                state[f"optimizer/{group.name}/{i}/{variable_name(variable)}"] = variable
        state |= self.loss_scales()
        return state | method_state(self.method)

    def loss_scales(self) -> dict[str, tf.Variable]:
        """Returns what `state` holds of float16's loss scaling; nothing in other precisions."""
        if not self._scaled:
            return {}
        return {
            f"optimizer/{group.name}/{name}": variable
            for group, optimizer in zip(self.groups, self.optimizers)
            for name, variable in _loss_scale_state(optimizer).items()
        }

    # One step -----------------------------------------------------------------------------------

    def _seed(self, part: tf.Tensor) -> tf.Tensor:
        """Returns the dropout seed of this step, replica and part."""
        context = tf.distribute.get_replica_context()
        fold_in = tf.random.experimental.stateless_fold_in
        seed = fold_in(tf.constant([self.config.seed, 0], tf.int32), self.global_step)
        replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
        return fold_in(seed, replica * self.config.gradient_accumulation_steps + part)

    def _losses_and_gradients(
        self, batch: Any, step: tf.Tensor, seed: tf.Tensor
    ) -> tuple[dict[str, dict[str, tf.Tensor]], list[tf.Tensor]]:
        """Returns the measurements and the gradient of the losses' sum over the replicas' number.

        Measurements are 'losses' and the sums of 'monitors'. The mean over parts and replicas is
        right for both: monitors are ratios of sums.
        """
        replicas = self.strategy.num_replicas_in_sync
        monitors = Monitors()
        with tf.GradientTape() as tape:
            losses = self.method.losses(batch, step, seed, monitors)
            total = tf.add_n(list(losses.values())) / replicas
            if self._scaled:
                total = self.optimizers[0].get_scaled_loss(total)
        gradients = tape.gradient(
            total, self.variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        measured = {"losses": losses, "monitors": monitors.sums}
        return measured, [tf.convert_to_tensor(g) for g in gradients]

    def _accumulate(self, batch: Any) -> tuple[dict[str, dict[str, tf.Tensor]], list[tf.Tensor]]:
        """Means of measurements and gradients over the parts of the replica's batch."""
        parts = self.config.gradient_accumulation_steps
        step = tf.identity(self.global_step)
        if parts == 1:
            return self._forward_backward(batch, step, self._seed(tf.constant(0)))

        def one(i, measured, gradients):
            more = self._forward_backward(_part(batch, i, parts), step, self._seed(i))
            return i + 1, *tf.nest.map_structure(
                lambda a, b: a + b / parts, (measured, gradients), more
            )

        # The first part gives the names of the losses; the others follow in a loop.
        zero = tf.constant(0)
        first = self._forward_backward(_part(batch, zero, parts), step, self._seed(zero))
        start = tf.nest.map_structure(lambda x: x / parts, first)
        if self.strategy.num_replicas_in_sync > 1:
            # Replicas cannot talk to each other (batch norm, counts) inside a loop of the graph, so
            # it is written out; each part waits for the one before, or memory would not be saved.
            state = start
            for i in range(1, parts):
                # Waiting for the number of its part is waiting for all: one edge, not one for each
                # operation.
                with tf.control_dependencies([tf.group(*tf.nest.flatten(state))]):
                    number = tf.identity(i)
                _, *state = one(number, *state)
            return tuple(state)
        _, measured, gradients = tf.while_loop(
            lambda i, *_: i < parts, one, (zero + 1, *start), parallel_iterations=1
        )
        return measured, gradients

    def _decouples(self, group: ParamGroup) -> bool:
        """Whether a group's optimiser decays weights itself."""
        return (group.optimizer or self.config.optimizer) in DECOUPLED

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        """One optimiser application per group; weight decay is part of the gradient of most."""
        replicas = self.strategy.num_replicas_in_sync
        if self._scaled:
            gradients = self.optimizers[0].get_unscaled_gradients(gradients)
            # All groups must agree on skipping the step, so one overflow is everyone's.
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
            gradients = [tf.where(finite, g, np.nan) for g in gradients]
        remaining = iter(gradients)
        for group, optimizer in zip(self.groups, self.optimizers):
            pairs = []
            is_decoupled = self._decouples(group)
            for variable in group.variables:
                gradient = next(remaining)
                if group.weight_decay and not is_decoupled:
                    gradient += (group.weight_decay / replicas) * variable
                if group.gradient_multiplier != 1.0:
                    gradient *= group.gradient_multiplier
                pairs.append((gradient, variable))
            optimizer.apply_gradients(pairs)

    def _replica_step(self, batch: Any, signals: tf.Tensor) -> dict[str, Any]:
        # Widened here and not before: the device does it, not the host.
        measured, gradients = self._accumulate(pipeline.unpacked(batch))
        self._apply(gradients)
        # Of one type, so that a single exchange serves them all.
        wide = tf.nest.map_structure(
            lambda x: tf.cast(x, tf.float64), {**measured, "signals": signals}
        )
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, wide)

    def _step(self, iterator: Any) -> dict[str, Any]:
        """One optimiser step on all replicas; returns the mean of each measurement over them.

        Returns:
          'losses' and 'monitors', by name; 'signals', the share of workers that got each signal
          before the step. All float64.
        """
        inputs = (next(iterator), tf.convert_to_tensor(self._signals))
        per_replica = self.strategy.run(self._replica_step, args=inputs)
        measured = tf.nest.map_structure(
            lambda x: self.strategy.experimental_local_results(x)[0], per_replica
        )
        self.method.after_update(self.global_step)
        self._update_ema()
        self.global_step.assign_add(1)
        return measured

    def _update_ema(self) -> None:
        """Moves the network of averaged weights towards the model, where there is one."""
        if self.ema is not None:
            decay = teacher.warming_up(self.config.ema_decay)
            teacher.follow(self.ema, self.method.model, decay=decay, step=self.global_step)

    # Rounds -------------------------------------------------------------------------------------

    def _begin_round_if_due(self, step: int) -> None:
        """Begins a round before its first step; a run that stopped there resumes with it."""
        if self.round is None or step % self._period:
            return
        number = step // self._period
        if number <= int(self.round.numpy()) or number >= self.method.rounds:
            return
        with self.strategy.scope():
            self.method.begin_round()
            if number > 0:
                for optimizer in self.optimizers:
                    # Loss scaling has state of its own, which stays.
                    inner = getattr(optimizer, "inner_optimizer", optimizer)
                    for variable in _variables(inner):
                        variable.assign(tf.zeros_like(variable))
            self.round.assign(number)

    def check_round(self) -> None:
        """Insists, after a restore, that rounds are as long as they were so far.

        Raises:
          UserError: --rounds or the number of steps changed, so that rounds would begin at other
            steps, and the learning rate fall otherwise.
        """
        if self.round is None:
            return
        stored = int(self.round_steps.numpy())
        if self.step > 0 and stored != self._period:
            raise UserError(
                "The rounds of this run had another length before.",
                where="--rounds, --training_number_of_steps",
                received=f"rounds of {self._period} steps",
                accepted=f"rounds of {stored} steps",
                fix="repeat the flags of the first run; more rounds of the same length may follow",
            )
        with self.strategy.scope():
            self.round_steps.assign(self._period)

    # The inner loop -----------------------------------------------------------------------------

    def train(self, num_steps: int) -> Interval:
        """Runs some steps, and begins the rounds that begin there; returns what they measured.

        Raises:
          Stopped: a signal came; the step in which it came is complete.
          NonFiniteLoss: see `since_last_look`.
        """
        first = self.step
        for step in range(first, first + num_steps):
            if step == 0:
                with self.strategy.scope():
                    self.method.begin()
            self._begin_round_if_due(step)
            if self._interruption is not None and self._interruption.received:
                received = self._interruption.received
                self._signals.assign([float(s == received) for s in Interruption.SIGNALS])
            self._pending.append(self.step_function(self.iterator))
            self._check_signals(step + 1)
        return self.since_last_look()

    def _check_signals(self, steps_done: int) -> None:
        """Raises `Stopped` if a signal has come, here or to another worker; for all at one step."""
        if self._interruption is None:
            return
        received = self._interruption.received
        if not self.agreement.is_alone:
            if steps_done == self.config.training_number_of_steps:
                # No step follows that would take it along.
                received = self.agreement.largest(received)
            else:
                shares = self._pending[-1]["signals"].numpy()
                received = int(np.max(np.where(shares > 0, Interruption.SIGNALS, 0)))
        if received:
            raise Stopped(received)

    def since_last_look(self) -> Interval:
        """Fetches the measurements of the steps since the last call.

        The host does not wait for each step's losses, so that devices never idle; a bad value is
        noticed here, at the latest before the next report or checkpoint, and traced to its step.

        Raises:
          NonFiniteLoss: with the step and all losses of that step.
        """
        pending, self._pending = self._pending, []
        fetched = [
            {name: float(value) for name, value in measured["losses"].items()}
            for measured in pending
        ]
        first = self.step - len(fetched)
        for i, losses in enumerate(fetched):
            if not all(np.isfinite(value) for value in losses.values()):
                raise NonFiniteLoss(
                    "A loss is not finite; training stopped and the last checkpoint was kept.",
                    step=first + i + 1,
                    where=f"step {first + i + 1}",
                    received=", ".join(f"{name}={value}" for name, value in losses.items()),
                    fix="lower --base_learning_rate, add --slow_start_step, or look at the images "
                    "named here",
                )
        losses = {
            name: float(np.mean([losses[name] for losses in fetched]))
            for name in (fetched[0] if fetched else ())
        }
        sums = {
            name: np.sum([measured["monitors"][name].numpy() for measured in pending], axis=0)
            for name in (pending[0]["monitors"] if pending else ())
        }
        return Interval(losses, *summarise(sums))

    def current_learning_rate(self) -> float:
        """Returns the run's rate at the coming step of the round, without factors of groups."""
        rate = rate_of_run(self._config_of_round, self.config.optimizer)
        return float(rate(tf.cast(self._step_of_round(), tf.float32)) if callable(rate) else rate)

    def describe_rates(self) -> str | None:
        """Says which groups learn at other rates than `current_learning_rate`; None: none do."""
        parts = []
        for group in self.groups:
            if group.schedule is not None:
                rate = "a schedule of its own"
                if not callable(group.schedule):
                    rate = f"always {group.schedule * group.lr_multiplier:g}"
                parts.append(f"{group.name}: {rate}")
            elif group.lr_multiplier != 1:
                parts.append(f"{group.name}: {group.lr_multiplier:g} times as much")
        if not parts:
            return None
        return f"the rate in the lines below is the given one on its schedule; {'; '.join(parts)}"

    def _step_of_round(self) -> int:
        if self.round is None:
            return self.step
        return self.step - max(int(self.round.numpy()), 0) * self._period

    def regularization_loss(self) -> float:
        """Returns the sum of weight_decay * 1/2 w^2 over the decayed variables, for the log.

        Decay that is no part of the gradient is no loss.
        """
        return float(
            sum(
                group.weight_decay * tf.nn.l2_loss(tf.convert_to_tensor(v))
                for group in self.groups
                if group.weight_decay and not self._decouples(group)
                for v in group.variables
            )
        )
