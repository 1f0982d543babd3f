"""Batch norm on one and several replicas, and statistics over several batches."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfseg.models import kernels
from tfseg.models.layers import recomputation
from tfseg.models.layers.initial_values import constant
from tfseg.models.layers.settings import Layer, Settings


class PooledStatistics:
    """Mean and variance of each channel over all pixels of several batches.

    Args:
      channels: of the batches.
    """

    def __init__(self, channels: int):
        def zeros(shape):
            return tf.Variable(tf.zeros(shape, tf.float64), trainable=False)

        self._count, self._sum, self._squares = zeros([]), zeros([channels]), zeros([channels])

    def add(self, mean: tf.Tensor, unbiased_variance: tf.Tensor, count: tf.Tensor) -> None:
        """Adds a batch of `count` pixels, with float [channels] statistics."""
        count = tf.cast(count, tf.float64)
        mean, variance = tf.cast(mean, tf.float64), tf.cast(unbiased_variance, tf.float64)
        biased = variance * (count - 1.0) / count
        self._count.assign_add(count)
        self._sum.assign_add(count * mean)
        self._squares.assign_add(count * (biased + tf.square(mean)))

    def result(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns mean and unbiased variance, float32 [channels]; None where nothing was added."""
        count = self._count.numpy()
        if count == 0:
            return None
        mean = self._sum.numpy() / count
        biased = np.maximum(self._squares.numpy() / count - np.square(mean), 0.0)
        variance = biased * (count / max(count - 1.0, 1.0))
        return mean.astype(np.float32), variance.astype(np.float32)


@dataclasses.dataclass(eq=False)
class Affine:
    """What a batch norm does in evaluation: by what it multiplies each channel, what it adds.

    Attributes:
      scale, shift: float32 [channels].
    """

    scale: tf.Variable
    shift: tf.Variable


class BatchNorm(Layer):
    """Batch norm over N, h, w with float32 parameters and statistics.

    It has three modes. In training the batch is normalised with its biased variance, and the moving
    variance follows the unbiased one, n / (n - 1), as the fused kernel of TF1 does: m := d m +
    (1 - d) batch. In evaluation the moving statistics normalise. While `pooled` is set, batch
    statistics normalise as in training and are added up there, whatever `training` says; the moving
    ones stay as they are. Layers that do not learn statistics (`learns_statistics`) always
    normalise with the moving ones.

    Args:
      settings: decay, epsilon, whether and over what batch statistics are taken.
      name: scope of `gamma`, `beta`, `moving_mean`, `moving_variance`.
      channels: channels of the input.
      use_gamma, use_beta: scale and shift after normalising; without them there is no variable.
      decay: of the moving statistics; None: the settings'.
      epsilon: added to the variance; None: the settings'.

    Attributes:
      affine: what normalises while it is set; see `models.folding`.
    """

    affine: Affine | None = None

    def __init__(
        self,
        settings: Settings,
        name: str,
        channels: int,
        *,
        use_gamma: bool = True,
        use_beta: bool = True,
        decay: float | None = None,
        epsilon: float | None = None,
    ):
        super().__init__(name)
        published = settings.decay if decay is None else decay
        self._decay = published if settings.momentum is None else settings.momentum
        self._epsilon = settings.epsilon if epsilon is None else epsilon
        self.learns_statistics = settings.fine_tune_batch_norm
        self.pooled: PooledStatistics | None = None
        self._sync = settings.sync_batch_norm
        ones, zeros = constant(1.0), constant(0.0)
        shape = [channels]
        self._channels = channels
        self.gamma = settings.variable(f"{name}/gamma", shape, ones) if use_gamma else None
        self.beta = settings.variable(f"{name}/beta", shape, zeros) if use_beta else None
        moving = {"trainable": False}
        self.moving_mean = settings.variable(f"{name}/moving_mean", shape, zeros, **moving)
        self.moving_variance = settings.variable(f"{name}/moving_variance", shape, ones, **moving)

    def call(
        self, x: tf.Tensor, training: bool = False, step: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalises [N, h, w, channels]; the result has the type of `x`.

        Args:
          x: float tensor.
          training: use and record batch statistics (where the settings fine-tune batch norm).
          step: int64 scalar, steps done so far: the decay of the moving statistics is at most
            (1 + step) / (10 + step), so that they are of use from the first steps on; None: the
            decay alone, as published.
        """
        if self.affine is not None:
            scale, shift = self.affine.scale, self.affine.shift
            return x * tf.cast(scale, x.dtype) + tf.cast(shift, x.dtype)
        decay = self._decay
        if step is not None:
            done = tf.cast(step, tf.float32)
            decay = tf.minimum(decay, (1.0 + done) / (10.0 + done))
        gamma = tf.ones([self._channels]) if self.gamma is None else self.gamma
        beta = tf.zeros([self._channels]) if self.beta is None else self.beta
        wide = tf.cast(x, kernels.batch_norm_type(x.dtype, *x.shape[1:3]))
        # The moving statistics that the training kernel takes are not used by it.
        none = tf.zeros([0])
        if self.pooled is not None:
            result, mean, variance = self._fused(wide, gamma, beta, none, none, True)
            self.pooled.add(mean, variance, tf.reduce_prod(tf.shape(x)[:3]))
        elif not (training and self.learns_statistics):
            result = self._fused(wide, gamma, beta, self.moving_mean, self.moving_variance, False)[
                0
            ]
        elif self._sync and _replicas() > 1:
            result = self._synchronised(wide, gamma, beta, decay)
        else:
            result, mean, variance = self._fused(wide, gamma, beta, none, none, True)
            self._record(mean, variance, decay)
        return tf.cast(result, x.dtype)

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns by what evaluation multiplies each channel, and what it adds; float32."""
        scale = tf.math.rsqrt(self.moving_variance + self._epsilon)
        if self.gamma is not None:
            scale *= self.gamma
        shift = -self.moving_mean * scale
        return scale, shift if self.beta is None else shift + self.beta

    def _fused(self, x, gamma, beta, mean, variance, is_training):
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=mean,
            variance=variance,
            epsilon=self._epsilon,
            is_training=is_training,
        )[:3]

    def _synchronised(
        self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, decay: float | tf.Tensor
    ) -> tf.Tensor:
        """The same over all replicas, whose parts of the batch may differ in size."""
        wide = tf.cast(x, tf.float32)
        axes = [0, 1, 2]
        local = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
        total = _sum_over_replicas(tf.concat([tf.reduce_sum(wide, axes), [local]], 0))
        count = tf.stop_gradient(total[-1])
        mean = total[:-1] / count
        # A second pass about the mean: E[x^2] - E[x]^2 would cancel where the mean is large.
        variance = _sum_over_replicas(tf.reduce_sum(tf.square(wide - mean), axes)) / count
        self._record(mean, variance * (count / tf.maximum(count - 1.0, 1.0)), decay)
        scale = gamma * tf.math.rsqrt(variance + self._epsilon)
        return tf.cast((wide - mean) * scale + beta, x.dtype)

    def _record(
        self, mean: tf.Tensor, unbiased_variance: tf.Tensor, decay: float | tf.Tensor
    ) -> None:
        if recomputation.is_again():
            return
        rate = 1.0 - decay
        self.moving_mean.assign_sub((self.moving_mean - tf.stop_gradient(mean)) * rate)
        difference = self.moving_variance - tf.stop_gradient(unbiased_variance)
        self.moving_variance.assign_sub(difference * rate)


def _replicas() -> int:
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def _sum_over_replicas(x: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)
