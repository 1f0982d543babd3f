"""What networks have in common that make logits of a backbone's features, image by image.

Around the decoder: an image-level classifier, and several scales of the image merged inside the
network.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.models.backbones.base import EndPoints
from tfseg.models.heads.parts import Classifier, scaled_size
from tfseg.models.network import Network
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.network import ModelConfig


class EncoderDecoder(Network):
    """A backbone and a decoder, which subclasses make.

    Args: as for `Network`, and
      with_classifier: add the image-level classifier.
      class_vectors: word vectors of the classes, which few heads take.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        with_classifier: bool = False,
        class_vectors: np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(config, **options)
        # Optimisers number their state by the order of the layers: the classifier is the last.
        self.make_decoder()
        self.classifier = None
        if with_classifier:
            self.classifier = Classifier(
                self.settings,
                self.backbone,
                self.num_image_classes,
                dropout_rate=config.classifier_dropout_rate,
            )

    def make_decoder(self) -> None:
        """Makes the layers between the backbone and the logits."""
        raise NotImplementedError(f"{type(self).__name__} makes no decoder")

    def decode(
        self,
        end_points: EndPoints,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> EndPoints:
        """Maps end points to 'logits', 'features' and named stages; see the subclasses."""
        raise NotImplementedError(f"{type(self).__name__} has no decoder")

    def classify(
        self,
        end_points: EndPoints,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Maps end points to image-level logits, float32 [N, num_image_classes].

        Args:
          end_points: of `encode`.
          training: dropout is on (where batch norm is fine-tuned).
          dropout_seed: int32 [2]; needed in training while the dropout rate is > 0.

        Raises:
          ValueError: the model was built without classifier.
        """
        if self.classifier is None:
            raise ValueError(f"{self.name} was built without classifier (with_classifier=True)")
        return self.classifier(end_points, training=training, dropout_seed=dropout_seed)

    def call(
        self,
        image: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> dict[str, tf.Tensor]:
        """Segments images.

        Args:
          image: RGB 0..255 [N, H, W, 3], any size.
          training: batch norm and dropout are in training mode.
          dropout_seed: int32 [2]; needed in training while a dropout rate is > 0.
          input_scale: see `decode`.

        Returns:
          'logits' float32 [N, h, w, num_classes]; 'features' [N, h, w, D]; and, if the model has a
          classifier, 'image_logits' float32 [N, num_image_classes]. With --image_pyramid the
          logits of all scales are merged, and the others are those of its last scale.
        """
        scales = self.config.image_pyramid or (1.0,)
        if tuple(scales) == (1.0,):
            return self._single_scale(image, training, dropout_seed, input_scale)
        return self._pyramid(image, scales, training, dropout_seed, input_scale)

    def _single_scale(self, image, training, dropout_seed, input_scale) -> dict[str, tf.Tensor]:
        ends = self.encode(image, training=training, dropout_seed=dropout_seed)
        outputs = self.decode(
            ends, training=training, dropout_seed=dropout_seed, input_scale=input_scale
        )
        result = {"logits": outputs["logits"], "features": outputs["features"]}
        if self.classifier is not None:
            result["image_logits"] = self.classify(
                ends, training=training, dropout_seed=dropout_seed
            )
        return result

    def _pyramid(self, image, scales, training, dropout_seed, input_scale):
        """Resizes the image to every scale and merges the logits at the largest one."""
        image = tf.cast(image, tf.float32)
        size = _scaled_sides(image, max(1.0, *scales) / self.logits_stride)
        logits = []
        for scale in scales:
            part = resize_bilinear(image, _scaled_sides(image, scale))
            result = self._single_scale(part, training, dropout_seed, input_scale * scale)
            logits.append(resize_bilinear(result["logits"], size))
        stacked = tf.stack(logits)
        merge = tf.reduce_max if self.config.merge_method == "max" else tf.reduce_mean
        return {**result, "logits": merge(stacked, axis=0)}


def _scaled_sides(image: tf.Tensor, scale: float) -> list[int | tf.Tensor]:
    """Returns trunc((side - 1) scale + 1) of height and width."""
    sides = []
    for axis in (1, 2):
        side = image.shape[axis]
        if side is not None:
            sides.append(scaled_size(side, scale))
        else:
            dynamic = tf.cast(tf.shape(image)[axis] - 1, tf.float64)
            sides.append(tf.cast(dynamic * scale + 1.0 + 1e-9, tf.int32))
    return sides
