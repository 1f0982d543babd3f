"""Optimisers and learning-rate schedules of the published systems, as Keras objects."""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfseg.errors import UserError, check_choice
from tfseg.ops.adam import adam_update
from tfseg.settings.run import TrainConfig


class Momentum(tf.keras.optimizers.Optimizer):
    """Momentum with the learning rate outside the velocity: v := m v + g; w := w - rate v.

    Keras's SGD keeps rate * v in its slot. Under a constant rate the two agree; under a schedule
    Keras goes on applying the old rate to old gradients.

    Args:
      learning_rate: float or schedule.
      momentum: factor on the velocity.
      nesterov: w := w - rate (g + m v).

    Source: PseudoSeg specification, section 6; TF1's MomentumOptimizer.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        name: str = "Momentum",
    ):
        # Weight decay is part of the gradient; Keras takes its own default of 0 as "decay by 0".
        super().__init__(name=name, weight_decay=None, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, var_list):
        super().build(var_list)
        if getattr(self, "_slots", None) is None:
            self._slots = [
                self.add_variable_from_reference(model_variable=v, variable_name="Momentum")
                for v in var_list
            ]
        self._built = True

    def update_step(self, gradient, variable):
        slot = self._slots[self._index_dict[self._var_key(variable)]]
        rate = tf.cast(self.learning_rate, variable.dtype)
        if isinstance(gradient, tf.IndexedSlices):
            gradient = tf.convert_to_tensor(gradient)
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=slot.handle,
            lr=rate,
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self):
        config = super().get_config()
        config.update(
            learning_rate=self._serialize_hyperparameter(self._learning_rate),
            momentum=self.momentum,
            nesterov=self.nesterov,
        )
        return config


class AdamW(tf.keras.optimizers.Optimizer):
    """Adam with decoupled weight decay, as PyTorch has it.

    w := w (1 - rate decay), then w := w - rate m / (sqrt(v) + epsilon), both moments corrected for
    their bias. Keras and Model Garden add epsilon to the uncorrected root, which after one step is
    another update where gradients are small.

    Args:
      learning_rate: float or schedule.
      decay: factor on every weight.
      epsilon: added after the root.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019; UniMatch
      specification 4.6.
    """

    def __init__(
        self, learning_rate: Any, *, decay: float = 0.0, epsilon: float = 1e-8, name: str = "AdamW"
    ):
        # Keras's own decay would be another one.
        super().__init__(name=name, weight_decay=None, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.decay = decay
        self.epsilon = epsilon

    def build(self, var_list):
        super().build(var_list)
        if getattr(self, "_momentums", None) is None:
            self._momentums, self._velocities = (
                [
                    self.add_variable_from_reference(model_variable=v, variable_name=name)
                    for v in var_list
                ]
                for name in ("m", "v")
            )
        self._built = True

    def update_step(self, gradient, variable):
        index = self._index_dict[self._var_key(variable)]
        first, second = self._momentums[index], self._velocities[index]
        rate = tf.cast(self.learning_rate, variable.dtype)
        done = tf.cast(self.iterations, variable.dtype)
        decayed = variable * (1.0 - rate * self.decay)
        state = [decayed], [tf.identity(first)], [tf.identity(second)], done
        gradient = tf.convert_to_tensor(gradient)
        (new,), (m,), (v,), _ = adam_update(state, [gradient], rate=rate, epsilon=self.epsilon)
        variable.assign(new)
        first.assign(m)
        second.assign(v)

    def get_config(self):
        config = super().get_config()
        config.update(
            learning_rate=self._serialize_hyperparameter(self._learning_rate),
            decay=self.decay,
            epsilon=self.epsilon,
        )
        return config


class SlowStart(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A constant rate for the first steps, then another schedule.

    Args:
      schedule: called with the steps since the slow start.
      steps: length of the slow start.
      rate: its rate.
      offset: whether `schedule` counts from the end of the slow start (poly, cosine) or from 0
        (step).

    Source: PseudoSeg specification, section 6.
    """

    def __init__(self, schedule: Any, *, steps: int, rate: float, offset: bool = True):
        self.schedule, self.steps, self.rate, self.offset = schedule, steps, rate, offset

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        after = tf.maximum(step - self.steps, 0.0) if self.offset else step
        return tf.where(step < self.steps, self.rate, self.schedule(after))

    def get_config(self):
        return dict(schedule=self.schedule, steps=self.steps, rate=self.rate, offset=self.offset)


class Held(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is looked at every so many steps, and constant in between.

    Source: STRICT specification 5.
    """

    def __init__(self, schedule: Any, steps: int):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        return self.schedule(tf.cast(step, tf.int64) // self.steps * self.steps)

    def get_config(self):
        return dict(schedule=self.schedule, steps=self.steps)


class Late(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is followed some steps late, and stays at its start before.

    Source: UniMatch specification 3.9: the rate of a step is set after it.
    """

    def __init__(self, schedule: Any, steps: int):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        step = tf.convert_to_tensor(step)
        return self.schedule(tf.maximum(step - tf.cast(self.steps, step.dtype), 0))

    def get_config(self):
        return dict(schedule=self.schedule, steps=self.steps)


def learning_rate(config: TrainConfig) -> Any:
    """Returns the run's schedule: steps done -> float32 rate.

    poly: (base - end) (1 - min(t, D) / D)^power + end with t = steps after the slow start and
    D = decay_steps, or all steps after the slow start; step: base * factor^floor(t / period);
    cosine: base for constant_steps, then base (1 + cos(pi k / D)) / 2 with k = steps since and
    D = decay_steps, or all steps that remain. All are looked at every learning_rate_update_steps,
    and followed learning_rate_lag_steps late.

    Source: PseudoSeg specification, section 6; SLRNet specification 5 (cosine). SLRNet's published
      rates are had with constant_steps = (P + 1) S and decay_steps = (E - P) S for E epochs of S
      steps, P of them named pretraining; they end one epoch before the cosine reaches 0.
    """
    schedules = tf.keras.optimizers.schedules
    after_slow_start = config.training_number_of_steps - config.slow_start_step
    if config.learning_policy == "poly":
        length = config.decay_steps or after_slow_start
        schedule = schedules.PolynomialDecay(
            config.base_learning_rate,
            decay_steps=max(length, 1),
            end_learning_rate=config.end_learning_rate,
            power=config.learning_power,
        )
    elif config.learning_policy == "cosine":
        length = config.decay_steps or (after_slow_start - config.constant_steps)
        schedule = SlowStart(
            schedules.CosineDecay(config.base_learning_rate, decay_steps=max(length, 1)),
            steps=config.constant_steps,
            rate=config.base_learning_rate,
        )
    else:
        schedule = schedules.ExponentialDecay(
            config.base_learning_rate,
            decay_steps=config.learning_rate_decay_step,
            decay_rate=config.learning_rate_decay_factor,
            staircase=True,
        )
    if config.slow_start_step:
        schedule = SlowStart(
            schedule,
            steps=config.slow_start_step,
            rate=config.slow_start_learning_rate,
            offset=config.learning_policy != "step",
        )
    if config.learning_rate_update_steps > 1:
        schedule = Held(schedule, config.learning_rate_update_steps)
    lag = config.learning_rate_lag_steps
    return Late(schedule, lag) if lag else schedule


def _addons() -> Any:
    """Imports tensorflow-addons, or says how to get it."""
    try:
        with warnings.catch_warnings():
            # Its end of life, of which docs/train.md tells; a user can do nothing about it here.
            warnings.simplefilter("ignore")
            import tensorflow_addons as tfa
    except Exception as error:  # It fails with several exception types on TensorFlow >= 2.16.
        raise UserError(
            "This optimiser needs tensorflow-addons, which cannot be imported here.",
            where="--optimizer",
            received=f"Python {sys.version_info.major}.{sys.version_info.minor}, "
            f"TensorFlow {tf.__version__}: {type(error).__name__}",
            accepted=", ".join(_BUILT_IN),
            fix="in a fresh environment with Python <= 3.11: pip install 'tfseg[addons]'",
        ) from None
    return tfa


@dataclasses.dataclass(frozen=True)
class _How:
    """What a parameter group asks of its optimiser.

    Attributes:
      config: the run's settings.
      momentum, nesterov: of the SGD family.
      weight_decay: for optimisers that decay weights themselves.
    """

    config: TrainConfig
    momentum: float
    nesterov: bool
    weight_decay: float


def _sgd(rate: Any, how: _How) -> Any:
    return Momentum(rate, momentum=how.momentum, nesterov=how.nesterov)


def _adam(rate: Any, how: _How) -> Any:
    return tf.keras.optimizers.Adam(rate, epsilon=how.config.adam_epsilon, jit_compile=False)


def _adamw(rate: Any, how: _How) -> Any:
    return AdamW(rate, decay=how.weight_decay, epsilon=how.config.adam_epsilon)


# Model Garden's optimisers are plain Python, imported in a tenth of a second where one is chosen.
def _lamb(rate: Any, how: _How) -> Any:
    """You et al., "Large batch optimization for deep learning", ICLR 2020.

    The same code as tensorflow-addons has, from which Model Garden took it over.
    """
    from official.modeling.optimization.lamb import LAMB

    return LAMB(rate)


# Biases and batch norm, which would hardly move: their rate would follow their own small norm.
_NOT_ADAPTED = r"(^|/)(gamma|beta|bias|biases)([:/]|$)"


def _lars(rate: Any, how: _How) -> Any:
    """You et al., "Large batch training of convolutional networks", 2017; rates of 1 to 10."""
    from official.modeling.optimization.lars import LARS

    return LARS(
        rate,
        momentum=how.momentum,
        nesterov=how.nesterov,
        exclude_from_layer_adaptation=[_NOT_ADAPTED],
    )


def _from_addons(make: Callable[[Any, Any, float], Any]) -> Callable[..., Any]:
    return lambda rate, how: make(_addons(), rate, how.momentum)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "momentum": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    # Weight decay stays in the gradient for all of them, so the decoupled factors are 0 here.
    "lamb": _lamb,
    "lars": _lars,
    "sgdw": _from_addons(lambda tfa, rate, m: tfa.optimizers.SGDW(0.0, rate, momentum=m)),
    "novograd": _from_addons(lambda tfa, rate, m: tfa.optimizers.NovoGrad(rate)),
    "rectified_adam": _from_addons(lambda tfa, rate, m: tfa.optimizers.RectifiedAdam(rate)),
    "lookahead": _from_addons(
        lambda tfa, rate, m: tfa.optimizers.Lookahead(
            tf.keras.optimizers.legacy.SGD(rate, momentum=m)
        )
    ),
    "swa": _from_addons(
        lambda tfa, rate, m: tfa.optimizers.SWA(tf.keras.optimizers.legacy.SGD(rate, momentum=m))
    ),
}
_BUILT_IN = ("momentum", "adam", "adamw", "lamb", "lars")
# Those that decay weights themselves, by the factor that they are given.
DECOUPLED = ("adamw",)


def rate_of_run(config: TrainConfig, optimizer: str) -> Any:
    """Returns the rate before the factors of parameter groups: a schedule, or adam's constant.

    Args:
      config: the run's settings.
      optimizer: a key of `OPTIMIZERS`.
    """
    # The published programs ignore the schedule under adam.
    return config.adam_learning_rate if optimizer == "adam" else learning_rate(config)


def make_optimizer(
    config: TrainConfig,
    *,
    name: str | None = None,
    schedule: Any = None,
    lr_multiplier: float = 1.0,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Any:
    """Makes one parameter group's optimiser.

    Args:
      config: the run's settings; what the other arguments leave out is taken from it.
      name: a key of `OPTIMIZERS`.
      schedule: learning rate or schedule.
      lr_multiplier: factor on the rate.
      momentum: momentum of the SGD family.
      nesterov: Nesterov's form.
      weight_decay: factor of those that decay weights themselves (`DECOUPLED`); others leave it to
        the gradient.

    Raises:
      UserError: unknown name, or tensorflow-addons is needed and cannot be imported.
    """
    name = name or config.optimizer
    check_choice(name, OPTIMIZERS, flag="optimizer", what="optimiser")
    if schedule is None:
        schedule = rate_of_run(config, name)
    if lr_multiplier != 1.0:
        schedule = Scaled(schedule, lr_multiplier)
    rate_momentum = config.momentum if momentum is None else momentum
    return OPTIMIZERS[name](schedule, _How(config, rate_momentum, nesterov, weight_decay))


class Scaled(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A schedule or constant times a factor."""

    def __init__(self, schedule: Any, factor: float):
        self.schedule, self.factor = schedule, factor

    def __call__(self, step):
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        return rate * self.factor

    def get_config(self):
        return dict(schedule=self.schedule, factor=self.factor)
