"""From scores to labels: which classes may be predicted, and whether seen ones get lower scores.

Classes that an image is known not to hold are left out of every arg max and softmax, or removed
from the masks after the softmax, depending on how the network is evaluated. Networks that never saw
labels of some classes can be calibrated: the scores of the other classes are lowered.

Source: Learning Pseudo Labels specification 4.3; STRICT specification 1.6.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfseg.ops.calibration import Calibration, calibrated
from tfseg.ops.class_aware import mask_absent_logits

Classes = tuple[int, ...] | None
Restriction = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Decision:
    """One of several ways to get labels and probabilities from a network's scores.

    Attributes:
      classes: ids of the only classes that may be predicted; None: all that may be in the image.
      calibration: of the probabilities of these; None: none.
    """

    classes: Classes = None
    calibration: Calibration | None = None


ARG_MAX = Decision()


def restriction(present: tf.Tensor | None, classes: Sequence[int] | None = None) -> Restriction:
    """Returns a function of logits (or scores) after which only some classes can win.

    Args:
      present: float [N, C], 1 for the classes that may be in an image and 0 for others; None: all.
      classes: ids of the only classes that may be predicted; None: all.

    Returns:
      A function from [N, H, W, C] to the same shape.
    """

    def restricted(logits: tf.Tensor) -> tf.Tensor:
        allowed = present
        if classes is not None:
            only = tf.reduce_sum(tf.one_hot(classes, logits.shape[-1]), 0, keepdims=True)
            allowed = only if present is None else present * only
        return logits if allowed is None else mask_absent_logits(logits, allowed)

    return restricted


class Decided:
    """The labels and probabilities of one batch, by several decisions.

    Args:
      scores: float32 [N, H, W, C] by the `classes` of the decisions, restricted to them.
      are_logits: the scores are logits; else they are probabilities or masks.
      restrictions: by the same `classes`.
    """

    def __init__(
        self,
        scores: Mapping[Classes, tf.Tensor],
        *,
        are_logits: bool,
        restrictions: Mapping[Classes, Restriction],
    ):
        self._scores, self._are_logits = scores, are_logits
        self._restrictions = restrictions
        # By classes and seen classes: decisions that differ in the bias alone share them.
        self._pairs: dict[Any, tuple[tf.Tensor, tf.Tensor]] = {}

    def labels(self, decision: Decision) -> tf.Tensor:
        """Returns the class of every pixel, int32 [N, H, W]."""
        calibration = decision.calibration
        if calibration is None or not calibration.bias:
            return _arg_max(self._scores[decision.classes])
        key = decision.classes, calibration.seen
        if key not in self._pairs:
            # A class that may not be there must not win by the bias.
            probs = self._restrictions[decision.classes](self._uncalibrated(decision.classes))
            self._pairs[key] = _best_two(probs, calibration.seen)
        probs, classes = self._pairs[key]
        # Of the seen classes the best stays the best, and of the others too.
        chosen = _arg_max(calibrated(probs, dataclasses.replace(calibration, seen=(0,))))
        return tf.where(tf.equal(chosen, 0), classes[..., 0], classes[..., 1])

    def probs(self, decision: Decision) -> tf.Tensor:
        """Returns the probability of every class at every pixel, float32 [N, H, W, C].

        Calibrated ones sum to 1 again where the calibration's space is 'logit'.
        """
        probs, calibration = self._uncalibrated(decision.classes), decision.calibration
        if calibration is None:
            return probs
        probs = calibrated(probs, calibration)
        if calibration.space == "logit":
            probs /= tf.reduce_sum(probs, -1, keepdims=True)
        return probs

    def _uncalibrated(self, classes: Classes) -> tf.Tensor:
        scores = self._scores[classes]
        return tf.nn.softmax(scores) if self._are_logits else scores


def _best_two(probs: tf.Tensor, seen: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the best seen and the best other class of each pixel.

    Args:
      probs: float32 [N, H, W, C].
      seen: class ids; some, but not all.

    Returns:
      Their probabilities, float32 [N, H, W, 2], and their ids, int32 [N, H, W, 2].
    """
    groups = tuple(seen), tuple(c for c in range(probs.shape[-1]) if c not in seen)
    values, ids = [], []
    for group in groups:
        of_group = tf.gather(probs, group, axis=-1)
        values.append(tf.reduce_max(of_group, -1))
        ids.append(tf.gather(tf.constant(group, tf.int32), _arg_max(of_group)))
    return tf.stack(values, -1), tf.stack(ids, -1)


def _arg_max(x: tf.Tensor) -> tf.Tensor:
    return tf.argmax(x, axis=-1, output_type=tf.int32)
