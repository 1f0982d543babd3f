"""Predicts images on all replicas of a strategy, each image alone on one of them.

A batch of one keeps results independent of what else is predicted, and lets every image have its
own size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.inference.predictor import Prediction, Predictor


class Replicas:
    """A predictor on the replicas of a strategy.

    Args:
      predictor: what is predicted; its network was made under the strategy's scope.
      strategy: None: the default one, of one replica.

    Attributes:
      count: replicas.
    """

    def __init__(self, predictor: Predictor, strategy: tf.distribute.Strategy | None = None):
        self._strategy = tf.distribute.get_strategy() if strategy is None else strategy
        self._predictor = predictor
        self.count = self._strategy.num_replicas_in_sync

        # From the second size on one graph serves them all.
        @tf.function(autograph=False, reduce_retracing=True)
        def run(inputs: tuple[Any, ...]) -> Any:
            return self._strategy.run(predictor, args=inputs)

        self._run = run

    def __call__(
        self, images: Sequence[np.ndarray], present: np.ndarray | None = None
    ) -> list[Prediction]:
        """Predicts images.

        Args:
          images: each float32 RGB 0..255 [1, H, W, 3]; any number, of any sizes.
          present: float [C], 1 for the classes that may be in the images and 0 for the others;
            None: all may.

        Returns:
          Of each image what the predictor gives, as NumPy arrays without the axis of the batch.
        """
        found = []
        for start in range(0, len(images), self.count):
            found += self._predict(images[start : start + self.count], present)
        return found

    def _predict(
        self, images: Sequence[np.ndarray], present: np.ndarray | None
    ) -> list[Prediction]:
        def of_replica(context: Any) -> tf.Tensor:
            # Replicas for which no image is left repeat the last one.
            return tf.constant(images[min(context.replica_id_in_sync_group, len(images) - 1)])

        batch = self._strategy.experimental_distribute_values_from_function(of_replica)
        local = self._strategy.experimental_local_results
        with self._predictor.running():
            found = self._run((batch,) if present is None else (batch, tf.constant(present[None])))
        results = tf.nest.map_structure(
            lambda x: None if x is None else [part.numpy()[0] for part in local(x)], found
        )
        return [_at(results, i) for i in range(len(images))]


def _at(results: Prediction, i: int) -> Prediction:
    """Returns what one replica found, of a structure whose leaves are lists over the replicas."""

    def of(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(x[i] for x in part)
        return None if part is None else part[i]

    return Prediction(*(of(part) for part in results))
