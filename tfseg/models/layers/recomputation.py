"""Layers whose activations are not kept for the backward pass, but computed again in it.

Only a layer's input is kept. The second computation must find what the first one found and leave
nothing behind: batch norm takes the statistics of the same batch and does not record them again,
and dropout is a function of its seed anyway.

Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
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

    Args:
      layer: a function of `x` and of variables; its result may be nested. The second time
        `is_again()` is true inside.
      x: float tensor, the only one of the layer that is kept.
    """
    calls = itertools.count()

    def compute(x: tf.Tensor) -> Any:
        if next(calls) == 0:
            with tf.name_scope(FIRST_SCOPE):
                return layer(tf.identity(x, name=KEPT))
        with tf.name_scope(AGAIN_SCOPE), _again():
            return layer(x)

    return tf.recompute_grad(compute)(x)
