"""Calibrated stacking: the scores of classes with labels are lowered before the arg max.

A network that saw labels of some classes only is too sure of these classes.

Source: STRICT specification 1.6 and 8.14.
"""

import dataclasses

import tensorflow as tf

from tfseg.errors import check_choice

BIAS_SPACES = ("prob", "logit")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How much the scores of seen classes are lowered; see `calibrated`.

    Attributes:
      seen: ids of the classes with labels.
      bias: number that is subtracted from their scores.
      space: these scores: 'prob': probabilities; 'logit': logits.

    Raises:
      UserError: an unknown space.

    Source: STRICT specification 1.6 and 8.14 (calibrated stacking).
    """

    seen: tuple[int, ...]
    bias: float = 0.0
    space: str = "prob"

    def __post_init__(self):
        check_choice(self.space, BIAS_SPACES, flag="seen_bias_space", what="space")


def calibrated(probs: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Returns probabilities with those of seen classes lowered, for an arg max.

    Args:
      probs: float [..., C].
      calibration: in space 'prob' its bias is subtracted; in space 'logit' the probability is
        multiplied by exp(-bias), which is the softmax of lowered logits but for a factor that all
        classes of a pixel share.

    Returns:
      Float [..., C]; not probabilities.

    Source: STRICT specification 1.6 and 8.14.
    """
    classes = probs.shape[-1]
    is_seen = tf.reduce_sum(tf.one_hot(calibration.seen, classes, dtype=probs.dtype), 0)
    if calibration.space == "prob":
        return probs - calibration.bias * is_seen
    return probs * tf.exp(-calibration.bias * is_seen)
