"""A trained run that predicts."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from tfseg.inference.predictor import Prediction
from tfseg.models.folding import FoldedNetwork
from tfseg.data.class_splits import ClassSplit
from tfseg.data.image_input import ImageInput
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.inference.decoding import decode_file
from tfseg.inference.image_predictor import ImagePredictor
from tfseg.inference.zero_label import decision_among_visible
from tfseg.models import model_builder
from tfseg.runs import record as run_record
from tfseg.runs.load import resizing_of
from tfseg.settings.data import DataConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import PredictionConfig
from tfseg.settings.reading import check_saved, read
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.stored_networks import load_network


class Run:
    """A trained network with what its run knows of it.

    Attributes:
      network: its weights are loaded.
      spec: the data set's classes; `spec.class_names[id]` names a value of a mask.
      prefix: the checkpoint.
      step: its training step.
      record: content of the run's config.json.
    """

    def __init__(
        self, network: Any, spec: DatasetSpec, prefix: str, step: int, record: dict[str, Any]
    ):
        self.network, self.spec, self.prefix, self.step = network, spec, prefix, step
        self.record = record

    @functools.cached_property
    def _folded(self) -> FoldedNetwork:
        return FoldedNetwork(self.network)

    @functools.cached_property
    def _predictors(self) -> dict[str, ImagePredictor]:
        image_input = ImageInput(
            self.network.mean_pixel,
            self.network.valid_size,
            config=dataclasses.replace(DataConfig(), **resizing_of(self.record)),
        )
        decision = decision_among_visible(PredictionConfig(), self.spec)
        return {
            wanted: ImagePredictor(self._folded, image_input, decision=decision, wanted=(wanted,))
            for wanted in ("labels", "probs")
        }

    def predict(self, image: str | os.PathLike | np.ndarray) -> np.ndarray:
        """Returns the class of every pixel of an image, as `predict.py` writes it.

        Args:
          image: path of an image file, which is turned upright by its EXIF tag; or uint8 RGB
            [H, W, 3].

        Returns:
          int32 [H, W], class ids.

        Raises:
          UserError: the file is not there or is no image, or the array has another form.

        Example:
          >>> run = tfseg.load("run")
          >>> mask = run.predict("photo.jpg")
          >>> [run.spec.class_names[c] for c in np.unique(mask)]
          ['background', 'dog']
        """
        return self._predicted("labels", image).labels

    def predict_probabilities(self, image: str | os.PathLike | np.ndarray) -> np.ndarray:
        """Returns the probability of every class at every pixel of an image.

        Args:
          image: see `predict`.

        Returns:
          float32 [H, W, C], sums to 1 over the classes.

        Raises:
          UserError: see `predict`.
        """
        return self._predicted("probs", image).probs

    def _predicted(self, wanted: str, image: str | os.PathLike | np.ndarray) -> Prediction:
        pixels = _pixels(image)
        # Whoever has the network may have changed its weights.
        self._folded.refresh()
        (found,) = self._predictors[wanted]([pixels])
        return found


def _pixels(image: str | os.PathLike | np.ndarray) -> np.ndarray:
    """Returns an image as uint8 RGB [H, W, 3]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                "The array is no image.",
                where="image",
                received=f"{image.dtype} {list(image.shape)}",
                accepted="uint8 [height, width, 3], RGB",
            )
        return image
    if not isinstance(image, str | os.PathLike):
        raise UserError(
            "An image is a path or an array.",
            where="image",
            received=f"an object of type {type(image).__name__}",
            accepted="the path of an image file, or a NumPy array, uint8 [height, width, 3], RGB",
            fix="for a picture of Pillow: numpy.asarray(picture.convert('RGB'))",
        )
    return decode_file(os.fspath(image), max_megapixels=DataConfig().max_image_megapixels)


def load_run(
    checkpoint_dir: str, network: str | None = None, *, with_classifier: bool = False
) -> Run:
    """Loads a trained run.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      network: which network of the checkpoint, such as 'ema'; None: the deployable one.
      with_classifier: the image-level classifier is needed.

    Raises:
      UserError: there is no checkpoint or no config.json, or they cannot be read.
    """
    prefix = find.newest(checkpoint_dir)
    if prefix is None:
        raise UserError(
            "The directory holds no checkpoint.",
            where=checkpoint_dir,
            received="damaged checkpoints alone" if find.written(checkpoint_dir) else None,
            fix="train first, or give the directory of a training run",
        )
    record = run_record.read(prefix, of_run=True)
    where = run_record.path_of(prefix)
    if record is None:
        raise UserError(
            f"The checkpoint has no {run_record.NAME}, which says what its network is.",
            where=where,
            fix="give a directory that one of the training programs has written",
        )
    config = read(ModelConfig, {}, saved=run_record.settings_in(record, ModelConfig), where=where)
    check_saved(DataConfig, record["data"], where=where)
    crop_size = run_record.settings_in(record, DataConfig)["train_crop_size"]
    dataset = record["dataset"]
    spec = DatasetSpec.from_json(dataset, where=where)
    if dataset.get("split") is not None:
        spec = dataclasses.replace(spec, seen_unseen=ClassSplit.from_json(dataset["split"]))
    model = model_builder(config, spec, tuple(crop_size))(with_classifier=with_classifier)
    step = load_network(model, prefix, network)
    return Run(model, spec, prefix, step, record)
