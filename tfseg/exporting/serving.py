"""What an exported file computes: from the pixels of an image to labels and probabilities."""

from typing import Any

import tensorflow as tf

from tfseg.inference.decisions import ARG_MAX, Decision
from tfseg.inference.predictor import Predictor
from tfseg.ops.shapes import sides

IMAGE, LABELS, PROBABILITIES = "image", "labels", "probabilities"


class Serving:
    """A network with all that stands around it, as plain graph code.

    Args:
      network: of `build_model`.
      decision: which classes may be answered.
    """

    def __init__(self, network: Any, decision: Decision = ARG_MAX):
        self.network = network
        self._predict = Predictor(network, wanted=("labels", "probs"), decision=decision)

    def __call__(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Segments images of one size.

        Args:
          image: uint8 RGB [N, H, W, 3], any size; it is padded to the next one that the network
            takes with the mean pixel.

        Returns:
          'labels': uint8 [N, H, W], class ids. 'probabilities': float32 [N, H, W, C], sum 1 over
          the classes; the labels are their arg max.
        """
        height, width = sides(image)
        found = self._predict(self._padded(image))
        labels = tf.cast(found.labels, tf.uint8)
        return {
            LABELS: tf.identity(labels[:, :height, :width], LABELS),
            PROBABILITIES: tf.identity(found.probs[:, :height, :width], PROBABILITIES),
        }

    def _padded(self, image: tf.Tensor) -> tf.Tensor:
        """Returns float32 [N, H', W', 3]."""
        size = sides(image)
        below, right = (
            to - side for to, side in zip(self.network.valid_size(*size), size, strict=True)
        )
        image = tf.cast(image, tf.float32)
        if isinstance(below, int) and isinstance(right, int) and below == right == 0:
            return image
        margins = [[0, 0], [0, below], [0, right], [0, 0]]
        # The mean pixel times 1 outside and 0 inside: pixels of the image stay what they are.
        outside = tf.pad(tf.zeros([1, *size, 1]), margins, constant_values=1.0)
        return tf.pad(image, margins) + outside * tf.constant(self.network.mean_pixel, tf.float32)

    def function(self, size: tuple[int | None, int | None], batch: int | None) -> Any:
        """Returns the `tf.function` of images uint8 [batch, *size, 3]."""
        spec = tf.TensorSpec([batch, *size, 3], tf.uint8, IMAGE)
        return tf.function(self.__call__, input_signature=[spec], autograph=False)
