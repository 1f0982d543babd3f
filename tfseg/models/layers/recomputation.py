"""Layers whose activations are not kept for the backward pass, but computed again in it.

Only a layer's input is kept. The second computation must find what the first one found and leave
nothing behind: batch norm takes the statistics of the same batch and does not record them again,
and dropout is a function of its seed anyway.

Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

# Scopes of the two computations in a graph, and the name of what is kept; `training.memory` reads
# them.
FIRST_SCOPE, AGAIN_SCOPE, KEPT = "recomputed_later", "gradient_recomputed", "kept"


class _Thread(threading.local):
    """What a replica, which has a thread of its own, is about."""

    is_again = False


_THREAD = _Thread()


def is_again() -> bool:
    """Whether a layer is being computed for the second time: nothing may be recorded then."""
    return _THREAD.is_again


@contextlib.contextmanager
def _again() -> Iterator[None]:
    before, _THREAD.is_again = _THREAD.is_again, True
    try:
        yield
    finally:
        _THREAD.is_again = before


def recomputed(layer: Callable[[tf.Tensor], Any], x: tf.Tensor) -> Any:
    """Returns `layer(x)`; where a gradient is asked for, it is computed once more then.

    As `tf.recompute_grad`, but that `is_again()` is true the second time, and that the gradient of
    `x` waits for those of the variables: else the activations of two layers would be there at once.

    Args:
      layer: a function of `x` and of variables; its result may be nested.
      x: float tensor, the only one of the layer that is kept.
    """

    @tf.custom_gradient
    def compute(x: tf.Tensor) -> tuple[Any, Callable]:
        with tf.name_scope(FIRST_SCOPE):
            result = layer(tf.identity(x, name=KEPT))

        def gradient(*dresult: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            with tf.name_scope(AGAIN_SCOPE), _again(), tf.GradientTape() as tape:
                later = _after(x, dresult)
                tape.watch(later)
                again = layer(later)
            dx, *dvariables = tape.gradient(
                again,
                [later, *variables],
                output_gradients=dresult,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            with tf.control_dependencies(dvariables):
                dx = tf.identity(dx)
            return (dx, dvariables) if variables else dx

        return result, gradient

    return compute(x)


def _after(x: tf.Tensor, others: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns `x` as a tensor that cannot be there before `others` are.

    Else what is computed from it would be found equal to what the forward pass computed, and that
    be kept. XLA forgets control dependencies, hence the sum: with 0, or NaN where there is one.
    """
    first = tf.reshape(others[0], [-1])[0]
    nothing = tf.where(tf.math.is_nan(first), first, tf.zeros_like(first))
    with tf.control_dependencies(others):
        return x + tf.cast(nothing, x.dtype)
