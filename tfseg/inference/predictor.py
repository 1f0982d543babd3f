"""From images to predictions: labels, probabilities, image-level logits.

Evaluation, pictures and exported networks use the same `Predictor`. Calling it is plain graph code
for any batch and image size: no loop over images, and nothing that depends on devices.
"""

import contextlib
from collections.abc import Collection
from typing import Any, NamedTuple

import tensorflow as tf

from tfseg.errors import UserError
from tfseg.inference.decisions import ARG_MAX, Decided, Decision, restriction
from tfseg.inference.merge import ONE_VIEW, Views, image_logits_of, look
from tfseg.models.kernels import fusing
from tfseg.ops.resize import resize_nearest_align_corners
from tfseg.ops.shapes import sides


class Prediction(NamedTuple):
    """A network's prediction for a batch; parts that are not wanted are None.

    A named tuple, so that it may leave a `tf.function` and a SavedModel.

    Attributes:
      labels: class of every pixel, int32 [N, H, W]; a tuple of them where the predictor has a
        tuple of decisions.
      probs: probability of every class, float32 [N, H, W, C]; a tuple of them likewise. The sum
        over the classes that may be predicted is 1. It is less where merge_scales='masks' filters
        classes, or where a calibration in space 'prob' subtracts its bias.
      image_logits: image-level logits of all classes, float32 [N, K].
    """

    labels: Any = None
    probs: Any = None
    image_logits: Any = None


class Predictor:
    """A network, the views of an image that it sees, and the wanted parts of a prediction.

    Args:
      model: network of `build_model`, folded or not; with a classifier where image-level logits are
        asked for.
      views: the views of an image, and how their scores are merged.
      wanted: any of 'labels', 'probs', 'image_logits'.
      decision: how labels and probabilities come from the merged scores. A tuple of decisions gives
        labels and probabilities for each of them; the network still sees every view once.
      prediction_with_upsampled_logits: upsample the logits and take the arg max; False: the
        reverse; None: as the network's settings say. With several views, merged masks or
        probabilities it is always the former.

    Raises:
      UserError: something else is wanted, or nothing.

    Example:
      >>> import tfseg, tensorflow as tf
      >>> from tfseg.models import build_model
      >>> from tfseg.settings.network import ModelConfig
      >>> model = build_model(ModelConfig(model_variant="mobilenet_v2"), num_classes=21,
      ...                     num_image_classes=20, crop_size=(65, 65))
      >>> predictor = Predictor(model, Views(flip=True), wanted=("labels", "probs"))
      >>> prediction = predictor(tf.zeros([2, 65, 97, 3]))
      >>> prediction.labels.shape, prediction.probs.shape
      (TensorShape([2, 65, 97]), TensorShape([2, 65, 97, 21]))
      >>> prediction.image_logits is None
      True

    Source: mean probabilities over scales and mirror images: PseudoSeg specification 7 (its
      programs store a softmax of the mean probability; the arg max is the same); the others: see
      `merge.Views`, `decisions.Decision`.
    """

    def __init__(
        self,
        model: Any,
        views: Views = ONE_VIEW,
        *,
        wanted: Collection[str] = ("labels",),
        decision: Decision | tuple[Decision, ...] = ARG_MAX,
        prediction_with_upsampled_logits: bool | None = None,
    ):
        if not wanted or set(wanted) - set(Prediction._fields):
            raise UserError(
                "A network does not compute this.",
                where="wanted",
                received=", ".join(map(str, wanted)) or "nothing",
                accepted=", ".join(Prediction._fields),
            )
        self._model, self._views, self._decision = model, views, decision
        self._wanted = frozenset(wanted)
        if views.are_merged or "probs" in self._wanted:
            self._upsampled = True
        elif prediction_with_upsampled_logits is None:
            self._upsampled = model.config.prediction_with_upsampled_logits
        else:
            self._upsampled = prediction_with_upsampled_logits

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which functions that call this one are fastest."""
        is_folded = getattr(self._model, "is_folded", False)
        return fusing() if is_folded else contextlib.nullcontext()

    @property
    def dtypes(self) -> Prediction:
        """The types of what a call returns, in its structure."""
        types = {"labels": tf.int32, "probs": tf.float32}
        found = {
            name: tf.nest.map_structure(lambda _, dtype=dtype: dtype, self._decision)
            for name, dtype in types.items()
            if name in self._wanted
        }
        if "image_logits" in self._wanted:
            found["image_logits"] = tf.float32
        return Prediction(**found)

    def __call__(self, image: tf.Tensor, present: tf.Tensor | None = None) -> Prediction:
        """Predicts a batch.

        Args:
          image: RGB 0..255 [N, H, W, 3], any float or integer type, any size.
          present: float [N, C], 1 for the classes that may be in an image and 0 for the others, of
            `ops.class_aware.present_classes`; None: all may. A softmax runs over those alone.

        Returns:
          The wanted parts. Image-level logits are those of the image itself; with
          merge_scales='masks' they are the mean over the views.

        Raises:
          UserError: image-level scores are needed, and the network gives none.

        Source: `present`: Learning Pseudo Labels specification 4.3.
        """
        image = tf.cast(image, tf.float32)
        decisions = tf.nest.flatten(self._decision)
        restrictions = {d.classes: restriction(present, d.classes) for d in decisions}
        merged = look(
            self._model,
            self._views,
            image,
            present=present,
            restrictions=tuple(restrictions.values()),
            upsampled=self._upsampled,
        )
        decided = Decided(
            dict(zip(restrictions, merged.scores)),
            are_logits=merged.are_logits,
            restrictions=restrictions,
        )
        found = {}
        if "labels" in self._wanted:
            found["labels"] = tf.nest.map_structure(decided.labels, self._decision)
            if not self._upsampled:
                found["labels"] = tf.nest.map_structure(
                    lambda x: resize_nearest_align_corners(x, sides(image)), found["labels"]
                )
        if "probs" in self._wanted:
            found["probs"] = tf.nest.map_structure(decided.probs, self._decision)
        if "image_logits" in self._wanted:
            known = merged.image_logits
            found["image_logits"] = image_logits_of(self._model, image) if known is None else known
        return Prediction(**found)
