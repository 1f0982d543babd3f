"""Networks: images in, logits out."""

import functools
from collections.abc import Callable

import numpy as np

from tfseg.data.specs import DatasetSpec
from tfseg.models.backbones import BACKBONES
from tfseg.models.kernels import avoid_slow_fusions
from tfseg.models.layers.convolutions import decayed_variables
from tfseg.models.network import Network
from tfseg.settings.heads import HEADS
from tfseg.settings.network import ModelConfig

__all__ = [
    "BACKBONES",
    "Network",
    "build_model",
    "decayed_variables",
    "model_builder",
]


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    num_image_classes: int,
    crop_size: tuple[int, int],
    name: str = "model",
    seed: int = 0,
    with_classifier: bool = False,
    class_vectors: np.ndarray | None = None,
) -> Network:
    """Builds a network with all its variables.

    Args:
      config: architecture and arithmetic.
      num_classes: channels of the segmentation logits.
      num_image_classes: outputs of the image-level classifier.
      crop_size: training crop (height, width) in pixels; inputs of other sizes are accepted.
      name: of the network; networks of different names start with different values.
      seed: of the initial values.
      with_classifier: add the image-level classifier.
      class_vectors: float [num_classes, D], word vectors for --head=projection; None: a checkpoint
        will bring them.

    Returns:
      `model(image, training=False, dropout_seed=None)` gives a dictionary with 'logits' (and
      'image_logits' with a classifier, or where the head gives class scores); the files of
      `models.heads` describe it and its parts. Variables carry their TF1
      checkpoint names, the same for every `name`.

    Raises:
      UserError: a setting is unknown or contradicts another.

    Example:
      >>> model = build_model(ModelConfig(), num_classes=21, num_image_classes=20,
      ...                     crop_size=(65, 65))
      >>> model(tf.zeros([1, 65, 65, 3]))["logits"].shape
      TensorShape([1, 5, 5, 21])
    """
    avoid_slow_fusions()
    options = {
        "num_classes": num_classes,
        "num_image_classes": num_image_classes,
        "crop_size": crop_size,
        "name": name,
        "seed": seed,
    }
    head = HEADS[config.head].load()
    return head(config, with_classifier=with_classifier, class_vectors=class_vectors, **options)


def model_builder(
    config: ModelConfig, spec: DatasetSpec, crop_size: tuple[int, int], *, seed: int = 0
) -> Callable[..., Network]:
    """Returns what methods call for their networks: `build_model` but for their names and parts.

    Args:
      config: architecture and arithmetic.
      spec: gives the numbers of classes, and their word vectors where it has them.
      crop_size, seed: as in `build_model`.

    Returns:
      `build(name='model', with_classifier=False)`.
    """
    return functools.partial(
        build_model,
        config,
        num_classes=spec.num_classes,
        num_image_classes=spec.num_image_classes,
        crop_size=crop_size,
        seed=seed,
        class_vectors=None if spec.vectors is None else spec.vectors.values,
    )
