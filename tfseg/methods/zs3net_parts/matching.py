"""Generators that learn to match features by maximum mean discrepancy.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019, section 3.2; ZS3
specification 4.1, 4.2.
"""

from collections.abc import Callable

import tensorflow as tf

from tfseg.models import gmmn
from tfseg.models.layers.settings import Settings
from tfseg.ops import adam
from tfseg.ops.mmd import mmd
from tfseg.settings.methods.zs3net import ZS3NetConfig


class MatchingGenerator(tf.Module):
    """A generator's weights, how far its features are from real ones, and its updates.

    With `generator_updates='per_class'` it is updated within a step, many times: Adam's memory of
    that is kept here, and no optimiser of the run knows of its weights.

    Args:
      name: of the network; two generators of different names start differently.
      settings: of the method, complete.
      seed: of the run.
      inputs: width of a word vector and its noise together.
      outputs: channels of a feature.
    """

    def __init__(self, name: str, settings: ZS3NetConfig, *, seed: int, inputs: int, outputs: int):
        super().__init__(name=name)
        self._settings = settings
        self.sequential = settings.generator_updates == "per_class"
        self._generator = gmmn.Generator(
            Settings(network=name, seed=seed),
            inputs=inputs,
            hidden=settings.generator_hidden,
            outputs=outputs,
            trainable=not self.sequential,
        )
        self.weights = self._generator.weights
        if not self.sequential:
            return
        self._first, self._second = (
            [
                tf.Variable(tf.zeros(w.shape), trainable=False, name=f"{name}/{kind}_moment{i}")
                for i, w in enumerate(self.weights)
            ]
            for kind in ("first", "second")
        )
        self._count = tf.Variable(0.0, trainable=False, name=f"{name}/updates")

    def state(self) -> adam.State:
        """Returns the weights and Adam's memory as values; of sequential updates."""
        parts = (self.weights, self._first, self._second)
        return *([tf.identity(v) for v in part] for part in parts), tf.identity(self._count)

    def assign(self, state: adam.State) -> None:
        """Keeps these values for the next step."""
        variables = (self.weights, self._first, self._second, self._count)
        for variable, value in zip(tf.nest.flatten(variables), tf.nest.flatten(state)):
            variable.assign(value)

    def update(
        self, state: adam.State, loss_of: Callable[[gmmn.Weights], tf.Tensor]
    ) -> tuple[adam.State, tf.Tensor]:
        """Does one of Adam's updates on weights that are values.

        Returns:
          The state after it, and the loss before it.
        """
        weights = state[0]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = loss_of(weights)
        gradients = tape.gradient(loss, weights)
        rate = self._settings.generator_learning_rate
        return adam.adam_update(state, gradients, rate=rate), loss

    def discrepancy(self, generated: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        """Returns how far generated features are from real ones, [...] for [..., M, D] each."""
        settings = self._settings
        return mmd(
            generated, real, bandwidths=settings.mmd_bandwidths, weights=settings.mmd_weights
        )
