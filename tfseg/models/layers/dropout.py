"""Dropout that is a function of its seed, and the folding of seeds."""

import hashlib

import tensorflow as tf

from tfseg.errors import UserError
from tfseg.models.layers.settings import Layer


def fold_seed(seed: tf.Tensor | None, number: int) -> tf.Tensor | None:
    """Returns the seed of one of several uses of the same layers; None stays None.

    Args:
      seed: int32 [2].
      number: of the use. (Adding it to a seed would give the seed of another replica.)
    """
    return None if seed is None else tf.random.experimental.stateless_fold_in(seed, number)


def dropout_key(name: str) -> int:
    """Returns what a layer of this name folds into the seeds that it is given."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1


class Dropout(Layer):
    """Dropout that is a function of its seed.

    Args:
      name: unique in the network; two layers drop different entries for the same seed.
      rate: share of entries that become 0, in [0, 1).
      whole_channels: of [N, h, w, C], drop all of a channel of an image or nothing.
    """

    def __init__(self, name: str, rate: float, *, whole_channels: bool = False):
        super().__init__(name)
        self._whole_channels = whole_channels
        if not 0.0 <= rate < 1.0:
            raise UserError("A dropout rate is in [0, 1).", where=name, received=rate)
        self._rate = rate
        self._key = dropout_key(name)

    def call(
        self, x: tf.Tensor, training: bool = False, dropout_seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Drops entries in training and scales the others by 1 / (1 - rate).

        Args:
          x: float tensor.
          training: False, or a rate of 0, returns `x`.
          dropout_seed: int32 [2]; the same seed drops the same entries, on any device.

        Raises:
          ValueError: training with a rate above 0 and no seed.
        """
        if not training or self._rate == 0.0:
            return x
        if dropout_seed is None:
            raise ValueError(f"{self.name}: dropout in training needs dropout_seed (int32 [2])")
        seed = tf.random.experimental.stateless_fold_in(dropout_seed, self._key)
        # Philox by name: the automatic choice differs between devices.
        shape = tf.shape(x)
        if self._whole_channels:
            shape = tf.stack([shape[0], 1, 1, shape[3]])
        draw = tf.random.stateless_uniform(shape, seed, alg="philox")
        scale = tf.cast(1.0 / (1.0 - self._rate), x.dtype)
        return tf.where(draw >= self._rate, x * scale, tf.zeros_like(x))
