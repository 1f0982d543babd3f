"""Measurements that a method takes beside its losses, summed over steps and replicas.

A method adds to a `Monitors` object while its losses are computed; every entry is a tensor of sums,
so that steps, parts of a batch and replicas combine by addition. The host turns the sums of an
interval into figures with `summarise`. No loss depends on any of them.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfseg import metrics

_BINS = 10
_SHARE, _CONFUSION, _HISTOGRAM = "share", "confusion", "histogram"


class Monitors:
    """Collects sums by name while a step is computed.

    Attributes:
      sums: float64 tensors by `<kind>:<name>`. Float32 would stop counting pixels at 2^24.
    """

    def __init__(self):
        self.sums: dict[str, tf.Tensor] = {}

    def share(self, name: str, part: tf.Tensor, whole: tf.Tensor) -> None:
        """Adds a ratio: `part` / `whole`, both scalars of the replica's batch."""
        self.sums[f"{_SHARE}:{name}"] = tf.stack([_float(part), _float(whole)])

    def confusion(
        self,
        name: str,
        label: tf.Tensor,
        prediction: tf.Tensor,
        *,
        num_classes: int,
        weight: tf.Tensor,
    ) -> None:
        """Adds predictions against the truth; reported as pixel accuracy and mIoU.

        Args:
          name: of the predictor.
          label: int32 class ids, any shape; anything where the weight is 0.
          prediction: int32 class ids of the same shape.
          num_classes: number of classes.
          weight: float32, 0 or 1.
        """
        known = (label >= 0) & (label < num_classes)
        cells = tf.where(known, label, 0) * num_classes + prediction
        weight = tf.where(known, weight, 0.0)
        counts = tf.math.unsorted_segment_sum(
            tf.reshape(_float(weight), [-1]), tf.reshape(cells, [-1]), num_classes**2
        )
        self.sums[f"{_CONFUSION}:{name}"] = tf.reshape(counts, [num_classes, num_classes])

    def histogram(self, name: str, values: tf.Tensor, weight: tf.Tensor) -> None:
        """Adds values in [0, 1], each with its weight, to ten equal bins."""
        bins = tf.clip_by_value(tf.cast(values * _BINS, tf.int32), 0, _BINS - 1)
        self.sums[f"{_HISTOGRAM}:{name}"] = tf.math.unsorted_segment_sum(
            tf.reshape(_float(weight), [-1]), tf.reshape(bins, [-1]), _BINS
        )


def _float(x: tf.Tensor) -> tf.Tensor:
    return tf.stop_gradient(tf.cast(x, tf.float64))


def summarise(sums: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Turns the sums of an interval into figures.

    Args:
      sums: of `Monitors.sums`, added up.

    Returns:
      (figures by name, histograms by name): a share; `<name>_accuracy` and `<name>_miou` of a
      confusion matrix; ten shares, from 0.0-0.1 to 0.9-1.0, of a histogram. What has no data is
      left out.
    """
    figures, histograms = {}, {}
    for key, value in sums.items():
        kind, name = key.split(":", 1)
        value = np.asarray(value, np.float64)
        if kind == _SHARE and value[1] > 0:
            figures[name] = float(value[0] / value[1])
        elif kind == _CONFUSION and value.sum() > 0:
            figures[f"{name}_accuracy"] = float(np.trace(value) / value.sum())
            figures[f"{name}_miou"] = float(metrics.mean_iou(value))
        elif kind == _HISTOGRAM and value.sum() > 0:
            histograms[name] = value / value.sum()
    return figures, histograms
