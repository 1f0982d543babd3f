"""Networks that follow another one: copies, and moving averages of its weights.

Variables are matched by name, for Keras orders them by whether they are trained. All of them
follow, the moving statistics of batch norm like weights.
"""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

# The decay at a step, a float32 scalar of a float32 scalar.
Schedule = Callable[[tf.Tensor], tf.Tensor]


def _pairs(teacher: Any, student: Any) -> Iterator[tuple[tf.Variable, tf.Variable]]:
    """Yields the teacher's variables, each with the student's of the same name."""
    students = {variable.name: variable for variable in student.variables}
    for variable in teacher.variables:
        yield variable, students[variable.name]


def copy(student: Any, *, to: Any) -> None:
    """Gives every variable of a network the value that another network's has.

    Args:
      student: network, or any module, whose values are taken.
      to: network with variables of the same names and shapes; it may have fewer of them.

    Raises:
      KeyError: it has a variable that the student lacks.
    """
    for target, source in _pairs(to, student):
        target.assign(tf.convert_to_tensor(source))


def follow(teacher: Any, student: Any, *, decay: float | Schedule, step: tf.Tensor) -> None:
    """Moves a teacher towards its student: teacher := d teacher + (1 - d) student.

    Args:
      teacher: network with variables of the same names and shapes as the student; it may have
        fewer of them.
      student: network.
      decay: d in [0, 1]: a number, or a function of the step, such as
        `lambda t: tf.minimum(1 - 1 / (t + 1), 0.996)`.
      step: integer scalar, optimiser steps done before the one that the student has just made.

    Raises:
      KeyError: the teacher has a variable that the student lacks.
    """
    d = decay(tf.cast(step, tf.float32)) if callable(decay) else None
    for variable, source in _pairs(teacher, student):
        old, new = tf.convert_to_tensor(variable), tf.convert_to_tensor(source)
        if d is None:
            # In this form constants stay what they are, to the last digit.
            variable.assign(old + (1.0 - decay) * (new - old))
        else:
            # The two round differently; --ema_decay has this one, and its runs must repeat.
            variable.assign(d * old + (1.0 - d) * new)


def warming_up(decay: float) -> Schedule:
    """Returns the usual schedule min(decay, (1 + t) / (10 + t)): early weights are soon forgotten.

    Args:
      decay: where it ends, in [0, 1].
    """
    return lambda step: tf.minimum(decay, (1.0 + step) / (10.0 + step))


def running_mean_up_to(decay: float) -> Schedule:
    """Returns the schedule min(1 - 1 / (t + 1), decay): the mean of all weights, then of the last.

    After the first step the teacher is its student.

    Args:
      decay: where it ends, in [0, 1].

    Source: UniMatch specification 4.8.
    """
    return lambda step: tf.minimum(1.0 - 1.0 / (step + 1.0), decay)
