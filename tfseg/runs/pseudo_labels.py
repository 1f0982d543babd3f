"""The pseudo labels of a trained run, held against masks that no loss has seen."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.data import pipeline
from tfseg.data.sources import make_sources
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError
from tfseg.methods.base import Method
from tfseg.models import model_builder
from tfseg.ops.resize import resize_nearest
from tfseg.runs import classes
from tfseg.runs import record as run_record
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import METHODS
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import read
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import method_state
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.store import load_state
from tfseg.weights.checkpoint.stored_networks import load_network

_HIDING = ("hidden", "listed")


@dataclasses.dataclass(frozen=True)
class Judged:
    """The pixels of one kind of pseudo label whose truth is known.

    Attributes:
      label: what it says, uint8 [P].
      confidence: the probability of that class, float32 [P].
      right: whether the truth is the same, bool [P].
    """

    label: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def _makes_pseudo_labels(method_class: type[Method]) -> bool:
    return method_class.pseudo_labels is not Method.pseudo_labels


class PseudoLabels:
    """The pseudo labels that the method of a run makes of its images without masks.

    Images, crops and weak views are those of the run's first steps, without what is padded or cut
    out of strong views; networks and batch norm are as in evaluation, without dropout.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      dataset_dir: folder of the records, of both splits; None: the run's.

    Attributes:
      spec: the data set's classes.
      config: the run's `TrainConfig`.
      data: its `DataConfig`.
      prefix: the checkpoint.

    Raises:
      UserError: there is no run of ours, its method makes no such pseudo labels, or data or weights
        cannot be used.
    """

    def __init__(self, checkpoint_dir: str, dataset_dir: str | None = None):
        self.prefix = find.newest(checkpoint_dir)
        record = None if self.prefix is None else run_record.read(self.prefix, of_run=True)
        if record is None:
            raise UserError(
                f"The directory holds no checkpoint with a {run_record.NAME}.",
                where=checkpoint_dir,
                fix="give the directory of a training run",
            )
        given = {} if dataset_dir is None else {"dataset_dir": dataset_dir, "dataset_dir_cls": None}
        network, self.data, self.config = (
            read(cls, given, saved=run_record.settings_in(record, cls))
            for cls in (ModelConfig, DataConfig, TrainConfig)
        )
        self.spec: DatasetSpec = classes.spec_of(self.data, given, record)
        method_class = METHODS[self.config.method].load()
        self._streams = method_class.streams(self.data, self.config, self.config.method_settings)
        self._name = self._hiding_stream(method_class)
        self._method = method_class(
            build_model=model_builder(network, self.spec, self.data.train_crop_size),
            spec=self.spec,
            config=self.config,
            settings=self.config.method_settings,
        )
        for name, stored in self._method.stored().items():
            load_network(stored, self.prefix, name)
        load_state(method_state(self._method), self.prefix)

    def _hiding_stream(self, method_class: Any) -> str:
        """Returns the name of the stream of images whose masks are hidden."""
        for name, stream in self._streams.items():
            if stream.labels in _HIDING and _makes_pseudo_labels(method_class):
                return name
        raise UserError(
            f"--method={self.config.method} makes no pseudo labels that could be looked at.",
            where=self.prefix,
            accepted=", ".join(
                name for name, method in METHODS.items() if _makes_pseudo_labels(method.load())
            ),
        )

    def judged(self, num_images: int) -> dict[str, Judged]:
        """Returns the pixels of each kind of pseudo label, by its name.

        Args:
          num_images: crops to look at; whole batches, so a few more may be.

        Raises:
          UserError: none of them has a mask.
        """
        found: dict[str, list[list[np.ndarray]]] = {}
        for kinds in self._batches(num_images):
            for kind, (label, confidence, right, known) in kinds.items():
                known = known.numpy()
                parts = (label.numpy()[known], confidence.numpy()[known], right.numpy()[known])
                found.setdefault(kind, []).append(list(parts))
        result = {
            kind: Judged(*(np.concatenate(parts) for parts in zip(*batches)))
            for kind, batches in found.items()
        }
        if not any(judged.label.size for judged in result.values()):
            raise UserError(
                f"None of the images of split '{self._streams[self._name].split}' that were looked "
                "at has a mask.",
                where=self.data.dataset_dir,
                accepted="records in which images outside of --train_split have masks, "
                "which training then hides",
            )
        return result

    def _batches(self, num_images: int) -> Iterator[dict[str, tuple[tf.Tensor, ...]]]:
        # All streams, as in training: one that is left out may change what the others hold.
        sources = make_sources(self._streams, self.spec, self.data)
        dataset = pipeline.make_train_dataset(
            self._streams,
            sources,
            self.data,
            mean_pixel=self._method.model.mean_pixel,
            seed=self.config.seed,
        )
        trained = load_index(self.data.dataset_dir, self.data.train_split, self.spec).ids
        ids = sources[self._name].index.ids
        secret = tf.constant(~np.isin(ids.astype(str), trained.astype(str)))
        for batch in dataset.take(-(-num_images // self._streams[self._name].batch_size)):
            yield self._judge(pipeline.unpacked(batch), secret)

    def _judge(self, batch: dict[str, Any], secret: tf.Tensor) -> dict[str, tuple[tf.Tensor, ...]]:
        """Returns label, confidence, whether it is right and whether that is known, by kind.

        Args:
          batch: of all streams.
          secret: by record of the stream whose masks are hidden, whether no loss saw its mask.
        """
        of_stream = batch[self._name]
        truth, valid = of_stream["hidden_label"], of_stream["valid"]
        known = (valid > 0) & (truth >= 0) & (truth < self.spec.num_classes)
        known &= truth != self.spec.ignore_label
        known &= tf.gather(secret, of_stream["index"])[:, None, None]
        truth = tf.where(known, truth, -1)[..., None]
        result = {}
        for kind, probs in self._method.pseudo_labels(batch).items():
            label = tf.argmax(probs, -1, output_type=tf.int32)
            seen = resize_nearest(truth, probs.shape[1:3])[..., 0]
            result[kind] = (
                tf.cast(label, tf.uint8),
                tf.reduce_max(probs, -1),
                label == seen,
                seen >= 0,
            )
        return result
