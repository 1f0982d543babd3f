"""How far confidence can be trusted: calibration error, and precision over coverage.

A prediction has a confidence, the probability of its class, and is right or wrong. It is calibrated
where of those with confidence p a share of p is right; it ranks well where the surer ones are right
more often, whatever their confidence says.
"""

import dataclasses

import numpy as np

BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Predictions by confidence, in bins of equal width from 0 to 1.

    Attributes:
      count: predictions in each bin, int64 [bins].
      confidence: their mean confidence, float64 [bins]; NaN in an empty bin.
      accuracy: the share of them that is right, float64 [bins]; NaN in an empty bin.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of accuracy and confidence, bins weighted by their predictions.

        NaN without a prediction.

        Source: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
        """
        if not self.count.sum():
            return float("nan")
        distance = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.count * distance) / self.count.sum())


def reliability(confidence: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> Reliability:
    """Sorts predictions into bins by their confidence.

    Args:
      confidence: float [P], 0 to 1.
      right: bool [P].
      bins: number of bins; bin m holds confidences above m / bins up to (m + 1) / bins, the first
        one 0 too.
    """
    confidence = np.asarray(confidence, np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    whole = np.where(count > 0, count, np.nan)
    return Reliability(
        count=count,
        confidence=np.bincount(bin_of, confidence, bins) / whole,
        accuracy=np.bincount(bin_of, np.asarray(right, np.float64), bins) / whole,
    )


def precision_over_coverage(
    confidence: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what thresholds of confidence keep and how much of that is right.

    Args:
      confidence: float [P], P at least 1.
      right: bool [P].

    Returns:
      (coverage, precision), float64 [T] each, one for every confidence that occurs, the highest
      first: the share of predictions with at least that confidence, and the share of these that is
      right.
    """
    confidence, right = np.asarray(confidence), np.asarray(right, bool)
    order = np.argsort(confidence)[::-1]
    ordered = confidence[order]
    # The last one of each confidence.
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)
    kept = ends + 1
    return kept / ordered.size, np.cumsum(right[order])[ends] / kept


def area_under_precision(coverage: np.ndarray, precision: np.ndarray) -> float:
    """Returns the area under precision over coverage, from coverage 0 to 1.

    1 where every prediction is right; equal to the accuracy where confidence says nothing. Within
    predictions of one confidence, which no threshold tells apart, any order is as likely: from
    coverage a to b the number of right ones grows in a straight line, and the integral of their
    share is exact.

    Args:
      coverage, precision: of `precision_over_coverage`.

    Source: 1 minus the area under the risk-coverage curve of Geifman et al., "Bias-reduced
      uncertainty estimation for deep neural classifiers", ICLR 2019; the treatment of ties is ours.
    """
    right = coverage * precision
    before = np.concatenate([[0.0], coverage[:-1]])
    slope = np.diff(right, prepend=0.0) / (coverage - before)
    offset = np.concatenate([[0.0], right[:-1]]) - slope * before
    # The integral of (offset + slope c) / c; the first piece starts at the origin.
    logs = np.log(coverage[1:] / before[1:])
    return float(np.sum(slope * (coverage - before)) + np.sum(offset[1:] * logs))


def best_area(accuracy: float) -> float:
    """Returns the area under precision over coverage where all right predictions come first.

    Args:
      accuracy: the share of predictions that is right, 0 to 1.
    """
    return accuracy - accuracy * float(np.log(accuracy)) if accuracy > 0 else 0.0
