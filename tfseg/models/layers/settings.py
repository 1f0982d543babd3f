"""What a network's layers have in common: types, seeds, initial values, batch norm's settings."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.models.layers.initial_values import Initializer, truncated_normal
from tfseg.models.layers.recomputation import recomputed

Activation = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the layers of one network, or one part of it, have in common.

    Attributes:
      network: name of the network; part of every variable's seed, not of its name.
      seed: the run's seed.
      compute_dtype: type of activations; variables and statistics are float32 always.
      fine_tune_batch_norm: training uses batch statistics and updates the moving ones.
      sync_batch_norm: those statistics are taken over all replicas.
      momentum: decay of the moving statistics that the user asks for; None: `decay`.
      head_momentum: the same for what is built on the backbone; None: `momentum`.
      decay: of the moving statistics, as published.
      epsilon: added to the variance.
      kernel_init: initial values of convolution kernels.
      depthwise_init: initial values of depthwise kernels.
      pointwise_init: initial values of the other part of separable convolutions in the heads.
      activation: what "ReLU" means in this network.
      init_by_fan_in: makes the initial values of every kernel and bias from its number of inputs,
        whatever the layer would choose; None: the layers choose.
    """

    network: str = "model"
    seed: int = 0
    compute_dtype: str = "float32"
    fine_tune_batch_norm: bool = True
    sync_batch_norm: bool = False
    momentum: float | None = None
    head_momentum: float | None = None
    decay: float = 0.9997
    epsilon: float = 1e-3
    kernel_init: Initializer = truncated_normal(0.09)
    depthwise_init: Initializer = truncated_normal(0.09)
    pointwise_init: Initializer = truncated_normal(0.06)
    activation: Activation = tf.nn.relu
    init_by_fan_in: Callable[[int], Initializer] | None = None

    def replace(self, **changes: Any) -> "Settings":
        """Returns a copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def choose_init(self, fan_in: int, own: Initializer) -> Initializer:
        """Returns a layer's own initialiser, or what `init_by_fan_in` puts in its place."""
        return own if self.init_by_fan_in is None else self.init_by_fan_in(fan_in)

    def variable(
        self, name: str, shape: Sequence[int], init: Initializer, *, trainable: bool = True
    ) -> tf.Variable:
        """Makes a float32 variable with a value drawn from (seed, network, name)."""
        text = f"{self.seed}/{self.network}/{name}".encode()
        rng = np.random.Generator(
            np.random.Philox(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))
        )
        # Moving statistics differ between replicas until they are read: then they are averaged.
        placement: dict[str, Any] = (
            {}
            if trainable
            else {
                "synchronization": tf.VariableSynchronization.ON_READ,
                "aggregation": tf.VariableAggregation.MEAN,
            }
        )
        return tf.Variable(init(rng, shape), trainable=trainable, name=name, **placement)


class Layer(tf.keras.layers.Layer):
    """Base of the layers: a Keras layer that leaves types to itself.

    Attributes:
      decayed: whether its `kernel` is part of the weight decay.
      recompute: in training its activations are computed again in the backward pass, not kept.
    """

    decayed = False
    recompute = False

    def __init__(self, name: str):
        super().__init__(name=name, autocast=False)

    def __call__(self, *inputs: Any, **how: Any) -> Any:
        """Computes the layer's result; see `call`."""
        if self.recompute and how.get("training"):
            return recomputed(functools.partial(super().__call__, **how), *inputs)
        return super().__call__(*inputs, **how)
