"""Running figures: what a method remembers of its batches, the same on all replicas."""

from typing import Any

import tensorflow as tf


def variable(initial: Any, *, name: str) -> tf.Variable:
    """Makes the variable of a running figure, which checkpoints hold.

    Replicas give it the same values, so each keeps its own copy; any one may be saved.

    Args:
      initial: float32 tensor.
      name: of the variable.
    """
    return tf.Variable(
        initial,
        trainable=False,
        name=name,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def over_replicas(x: tf.Tensor, op: tf.distribute.ReduceOp) -> tf.Tensor:
    """Returns the sum or the mean of a tensor over the replicas; one replica exchanges nothing."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return x
    return tf.distribute.get_replica_context().all_reduce(op, x)


def kept_by_part(momentum: float, parts: int) -> float:
    """Returns the share of a running figure that one part of an accumulated batch keeps.

    Args:
      momentum: the share that a step keeps; its parts keep it together.
      parts: of a step (`--gradient_accumulation_steps`).
    """
    return momentum ** (1.0 / parts)
