"""From the pixels of images to labels and probabilities at their own size."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.data.image_input import ImageInput
from tfseg.inference.decisions import ARG_MAX, Decision
from tfseg.inference.merge import ONE_VIEW, Views
from tfseg.inference.pictures import resized_labels, resized_probabilities
from tfseg.inference.predictor import Prediction, Predictor
from tfseg.inference.replicas import Replicas
from tfseg.inference.tiles import Tiling, blended


class ImagePredictor:
    """One way from an image to a prediction, for plain images and arrays.

    Args:
      model: network of `build_model`.
      image_input: how images enter it.
      views, decision: see `Predictor`.
      wanted: 'labels', 'probs' or both.
      tiling: predict in tiles; None: every image whole.
      strategy: under whose scope the network was made; None: the default one.

    Attributes:
      count: images that are predicted at a time, one on each replica; with tiles 1.
    """

    def __init__(
        self,
        model: Any,
        image_input: ImageInput,
        *,
        views: Views = ONE_VIEW,
        decision: Decision = ARG_MAX,
        wanted: Collection[str] = ("labels",),
        tiling: Tiling | None = None,
        strategy: tf.distribute.Strategy | None = None,
    ):
        asked = wanted if tiling is None else ("probs",)
        predictor = Predictor(model, views, wanted=asked, decision=decision)
        self._replicas = Replicas(predictor, strategy)
        self._input, self._tiling, self._wanted = image_input, tiling, frozenset(wanted)
        self.count = self._replicas.count if tiling is None else 1

    def __call__(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predicts images.

        Args:
          images: each uint8 RGB [H, W, 3].

        Returns:
          Of each image what is wanted, as NumPy arrays: labels, integers [H, W]; probabilities,
          float32 [H, W, C], float16 where they come from tiles.
        """
        seen = [self._input.seen(image) for image in images]
        if self._tiling is not None:
            found = [self._in_tiles(image) for image in seen]
        else:
            found = self._replicas([self._input.padded(image) for image in seen])
        return [
            _at_original_size(prediction, small.shape[:2], image.shape[:2])
            for prediction, small, image in zip(found, seen, images)
        ]

    def _in_tiles(self, image: np.ndarray) -> Prediction:
        labels = probs = None
        for top, (band,) in blended(image, self._tiling, self._replicas, self._input):
            rows, classes = slice(top, top + len(band)), band.shape[-1]
            if "labels" in self._wanted:
                if labels is None:
                    labels = np.empty(image.shape[:2], np.uint8 if classes <= 256 else np.int32)
                labels[rows] = band.argmax(-1)
            if "probs" in self._wanted:
                if probs is None:
                    probs = np.empty((*image.shape[:2], classes), np.float16)
                probs[rows] = band
        return Prediction(labels, probs)


def _at_original_size(
    found: Prediction, seen: tuple[int, int], size: tuple[int, int]
) -> Prediction:
    """Cuts the padding off and undoes the resizing."""
    height, width = seen
    labels, probs = found.labels, found.probs
    if labels is not None:
        labels = resized_labels(labels[:height, :width], *size)
    if probs is not None:
        probs = resized_probabilities(probs[:height, :width], *size)
    return Prediction(labels, probs)
