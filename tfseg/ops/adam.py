"""Adam's update as a pure function, for updates inside a step.

The optimiser of a run is applied once in a step, after all gradients are there. Where updates
follow one another within a step, weights and moments are values that are carried along.

Source: Kingma and Ba, "Adam", ICLR 2015; ZS3 specification 4.2, 5.
"""

from collections.abc import Sequence

import tensorflow as tf

_BETA1, _BETA2 = 0.9, 0.999

# (weights, first moments, second moments, updates done): three equal structures and a float32.
State = tuple[Sequence[tf.Tensor], Sequence[tf.Tensor], Sequence[tf.Tensor], tf.Tensor]


def adam_update(
    state: State, gradients: Sequence[tf.Tensor], *, rate: float, epsilon: float = 1e-8
) -> State:
    """Does one update.

    Args:
      state: weights, first and second moments (float32, of the same shapes; at first 0), and the
        number of updates done, a float32 scalar.
      gradients: one for each of the weights.
      rate: learning rate.
      epsilon: added to the root of the second moment after its bias was corrected, as PyTorch does
        (Keras adds it before).

    Returns:
      The state after the update.

    Source: ZS3 specification 5.
    """
    weights, first, second, count = state
    count = count + 1.0
    first = [_BETA1 * m + (1.0 - _BETA1) * g for m, g in zip(first, gradients)]
    second = [_BETA2 * v + (1.0 - _BETA2) * tf.square(g) for v, g in zip(second, gradients)]
    step = rate / (1.0 - tf.pow(_BETA1, count))
    scale = tf.math.rsqrt(1.0 - tf.pow(_BETA2, count))
    weights = [
        w - step * m / (tf.sqrt(v) * scale + epsilon) for w, m, v in zip(weights, first, second)
    ]
    return weights, first, second, count
