"""SPNet's head: pixels are projected into the space of word vectors, where classes are points.

DeepLab's head makes features as wide as the word vectors; a logit is the product of a pixel's
features with the vector of a class. The vectors are constants, so a class that has no pixel labels
has logits too. The published head is `--aspp_with_batch_norm=false --logits_kernel_size=3` with
`--atrous_rates` 6, 12, 18, 24: the sum of four convolutions of DeepLabv2.

Source: Xian et al., "Semantic projection network for zero- and few-label semantic segmentation",
CVPR 2019; STRICT specification 3. Neither bias nor temperature; pixels are not normalised.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.models.backbones.base import EndPoints
from tfseg.models.heads.deeplab import DeepLab
from tfseg.settings.network import ModelConfig

# Name of the variable that holds the word vectors, in checkpoints.
CLASS_VECTORS = "class_vectors"


class ProjectionNet(DeepLab):
    """DeepLab whose logits are products with word vectors. Use `tfseg.models.build_model`.

    Args: as for `DeepLab`, and
      class_vectors: float [C, D], one row a class; None: of --projection_dim columns, which a
        checkpoint fills.

    Attributes:
      class_vectors: float32 [C, D], not trainable; part of every checkpoint, so that evaluation
        needs no file of vectors.

    Raises:
      UserError: neither the vectors nor their width are known, or they contradict each other.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        class_vectors: np.ndarray | None = None,
        **options: Any,
    ):
        width = _width(config, class_vectors)
        super().__init__(config, num_classes=width, **options)
        self.num_classes = num_classes
        if class_vectors is None:
            class_vectors = np.zeros([num_classes, width])
        self.class_vectors = tf.Variable(
            np.asarray(class_vectors, np.float32), trainable=False, name=CLASS_VECTORS
        )

    def decode(self, *args: Any, **options: Any) -> EndPoints:
        """Maps end points to logits; arguments and result are those of `DeepLab.decode`.

        Returns:
          'logits' float32 [N, h, w, C], 'features' float32 [N, h, w, D], and the stages between.
        """
        ends = super().decode(*args, **options)
        features = ends["logits"]
        logits = tf.tensordot(features, tf.transpose(self.class_vectors), 1)
        return {**ends, "logits": logits, "features": features}


def _width(config: ModelConfig, class_vectors: np.ndarray | None) -> int:
    """Returns D."""
    if class_vectors is None:
        if config.head_settings.projection_dim is None:
            raise UserError(
                "--head=projection needs word vectors of the classes.",
                where="--class_embeddings",
                fix="add --class_embeddings=FILE.npz (tfrecords_tools/build_class_embeddings.py "
                "makes such files), or --head=deeplab, which learns nothing of unseen classes",
            )
        return config.head_settings.projection_dim
    width = class_vectors.shape[1]
    if config.head_settings.projection_dim not in (None, width):
        raise UserError(
            "The word vectors are of another width than the head.",
            where="--class_embeddings",
            received=f"{width} numbers for each class",
            accepted=f"{config.head_settings.projection_dim}, of --projection_dim",
            fix="give the vectors that the network was trained with, or leave out --projection_dim",
        )
    return width
