"""Measures a checkpoint on a split: every image once, whatever the batch size and replica count.

Each replica counts its pixels into an integer confusion matrix; the host adds them up as int64.
With a dense CRF, which works outside the graph, the host counts itself. Every record of the split
must have been counted exactly once, or there are no metrics.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg import metrics
from tfseg.models.folding import FoldedNetwork
from tfseg.data.evaluation_batches import make_eval_dataset
from tfseg.data.index import Index
from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError
from tfseg.inference import zero_label
from tfseg.inference.classes import classes_allowed
from tfseg.inference.crf import refined_labels
from tfseg.inference.image_progress import ImageProgress
from tfseg.inference.one_by_one import batch_predictor
from tfseg.inference.pictures import decode_label
from tfseg.inference.predictor import Predictor
from tfseg.inference.protocols import wrapped
from tfseg.inference.replicas import Replicas
from tfseg.inference.report import write_metrics, write_summaries
from tfseg.inference.scores import or_none, summarize
from tfseg.inference.settings import (
    check,
    image_input_of,
    settings_of,
    tiling_of,
    views_of,
)
from tfseg.inference.tiles import tiled_labels
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import EvalConfig


def require_masks(index: Index, split: str) -> None:
    """Insists that every image of a split has a mask.

    Raises:
      UserError: some have none; names the first.
    """
    without = np.flatnonzero(~index.has_mask)
    if without.size:
        shown = ", ".join(str(i) for i in index.ids[without[: metrics.MAX_NAMED]])
        raise UserError(
            f"{without.size} of {index.size} images of split '{split}' have no mask.",
            where=f"--eval_split={split}",
            received=shown + (", ..." if without.size > metrics.MAX_NAMED else ""),
            accepted="a split in which every image has a mask",
            fix="choose another split, or make this one again with the masks",
        )


class Evaluator:
    """Evaluates one network, as often as its weights change.

    Args:
      model: network of `build_model`, made under the strategy's scope; with a classifier if
        `config.weakly`, or if classes are filtered by its scores.
      strategy: its replicas share every batch.
      spec: the data set.
      data_config: `dataset_dir`, the resize settings.
      config: split, batch size, crop size, scales, CRF, `weakly`, `eval_logdir`, modes.
      unseen_masks: settings of the training run by which masks of unseen classes acted, for the
        record, by name.

    Raises:
      UserError: the split is not there or has images without masks, or a setting is wrong.
    """

    def __init__(
        self,
        model: Any,
        strategy: tf.distribute.Strategy,
        spec: DatasetSpec,
        data_config: DataConfig,
        config: EvalConfig,
        *,
        unseen_masks: Mapping[str, Any] | None = None,
    ):
        check(config, spec)
        self._variants = zero_label.variants_of(config, spec)
        self._unseen_masks = dict(unseen_masks or {})
        if config.eval_batch_size < 1:
            raise UserError(
                "The batch size must be at least 1.",
                where="--eval_batch_size",
                received=config.eval_batch_size,
            )
        self._strategy, self._spec = strategy, spec
        self._config, self._data_config = config, data_config
        self._index = load_index(data_config.dataset_dir, config.eval_split, spec)
        require_masks(self._index, config.eval_split)
        self._replicas = strategy.num_replicas_in_sync
        self._present = classes_allowed(
            config,
            self._index,
            spec,
            dataset_dir=data_config.dataset_dir,
            split=config.eval_split,
        )
        # One of each: modes may share a decision.
        self._decisions = tuple(dict.fromkeys(variant.decision for variant in self._variants))
        # The CRF refines probabilities, at the size of the image.
        tiling = tiling_of(config, model)
        wanted = ["labels" if tiling is None and not config.dense_crf else "probs"]
        wanted += ["image_logits"] if config.weakly else []
        with strategy.scope():
            self._network = FoldedNetwork(model)
        self._predictor = predictor = Predictor(
            wrapped(self._network, config),
            views_of(config, spec, config.eval_crop_size),
            wanted=wanted,
            decision=self._decisions,
        )
        self._predict = batch_predictor(predictor)
        image_input = image_input_of(config, data_config, model, config.eval_crop_size)
        self._tiled_labels = None
        if tiling is not None:
            replicas = Replicas(predictor, strategy)
            self._tiled_labels = functools.partial(
                tiled_labels, tiling=tiling, replicas=replicas, image_input=image_input
            )
        # Every replica gets the same number of images; the surplus has weight 0 in the last batch.
        per_replica = -(-config.eval_batch_size // self._replicas)
        self._dataset = make_eval_dataset(
            config.eval_split,
            spec,
            data_config,
            image_input,
            # The replicas share the tiles of an image.
            batch_size=per_replica * self._replicas if tiling is None else 1,
        )
        # Images come in several sizes; from the second size on one graph serves them all.
        self._step = tf.function(self._distributed_step, autograph=False, reduce_retracing=True)

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return self._index.size

    def _replica_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        found = self._predict(batch["image"], batch.get("present"), batch["weight"])
        result = {}
        if found.labels is not None:
            labels = dict(zip(self._decisions, found.labels))
            result |= self._counted(batch, [labels[v.decision] for v in self._variants])
        if found.probs is not None:
            (result["probs"],) = found.probs
        if found.image_logits is not None:
            result["image_logits"] = found.image_logits
        return result

    def _counted(
        self, batch: Mapping[str, tf.Tensor], labels: Sequence[tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns the confusion matrix of each variant, and labels that are no class."""
        matrices = []
        for variant, prediction in zip(self._variants, labels):
            matrix, wrong_label = metrics.batch_confusion_matrix(
                self._measured(batch["label"], variant),
                prediction,
                self._spec.num_classes,
                ignore_label=self._spec.ignore_label,
                weight=batch["weight"],
            )
            matrices.append(matrix)
        return {"matrix": tf.stack(matrices), "wrong_label": wrong_label}

    def _measured(self, label: tf.Tensor, variant: zero_label.Variant) -> tf.Tensor:
        """Returns the label map by which a variant is measured.

        Classes that take no part in the class split are ignored in it already.
        """
        if variant.counted is None:
            return label
        table = np.full(256, self._spec.ignore_label, np.int32)
        table[list(variant.counted)] = variant.counted
        return tf.gather(tf.constant(table), tf.cast(label, tf.int32))

    def _distributed_step(self, batch: Any) -> Any:
        return self._strategy.run(self._replica_step, args=(batch,))

    def _distribute(self, batch: Mapping[str, tf.Tensor]) -> Any:
        """Gives each replica its slice of a global batch."""
        needed = {key: batch[key] for key in ("image", "label", "weight")}
        if self._present is not None:
            needed["present"] = tf.gather(self._present, batch["index"])
        size = needed["weight"].shape[0] // self._replicas

        def of_replica(context: Any) -> dict[str, tf.Tensor]:
            start = context.replica_id_in_sync_group * size
            return {key: value[start : start + size] for key, value in needed.items()}

        return self._strategy.experimental_distribute_values_from_function(of_replica)

    def _collect(self, results: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
        """Returns the arrays of every replica, in the order of the batch."""
        return {
            key: [x.numpy() for x in self._strategy.experimental_local_results(value)]
            for key, value in results.items()
        }

    def confusion_matrix(self) -> tuple[np.ndarray, metrics.ImageLevelCounts]:
        """Returns int64 [C, C] over the split, and with `weakly` the image-level counts.

        With seen and unseen classes it is that of the generalised mode; see `confusion_matrices`.
        """
        matrices, image_level = self.confusion_matrices()
        return matrices[0], image_level

    def confusion_matrices(self) -> tuple[np.ndarray, metrics.ImageLevelCounts]:
        """Returns int64 [variants, C, C] over the split, and with `weakly` image-level counts.

        With the dense CRF pixels are counted at the original size of the images, else at the size
        at which the network saw them (they differ with --min_resize_value, --max_side and
        --eval_resize alone).

        Raises:
          UserError: a mask holds a label that is no class; names the image.
        """
        self._network.refresh()
        total = np.zeros((len(self._variants), *(self._spec.num_classes,) * 2), np.int64)
        image_level: list[metrics.ImageLevelCounts] = []
        times_counted = np.zeros(self.num_images, np.int64)
        if self._tiled_labels is not None:
            counts = self._tiled_counts()
        elif self._config.dense_crf:
            counts = self._refined_counts(self._predicted(image_level))
        else:
            counts = self._counts(self._predicted(image_level))
        with (
            ImageProgress(f"evaluating {self._config.eval_split}", self.num_images) as progress,
            contextlib.closing(counts) as counted,
        ):
            for matrix, numbers in counted:
                total += matrix
                np.add.at(times_counted, numbers, 1)
                progress.add(len(numbers))
        self._check_count(times_counted)
        return total, sum(image_level, start=metrics.ImageLevelCounts())

    def _predicted(
        self, image_level: list[metrics.ImageLevelCounts]
    ) -> Iterator[tuple[Mapping[str, tf.Tensor], dict[str, list[np.ndarray]]]]:
        """Yields batches and what the replicas found; with `weakly` adds to `image_level`."""
        for batch in self._dataset:
            with self._predictor.running():
                found = self._step(self._distribute(batch))
            results = self._collect(found)
            if self._config.weakly:
                counted = batch["weight"].numpy() != 0
                truth = image_labels_of(batch["label"].numpy(), self._spec)
                logits = np.concatenate(results["image_logits"])
                image_level.append(metrics.image_level_counts(logits[counted], truth[counted]))
            yield batch, results

    def _counts(self, predicted: Iterator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields confusion matrices that the replicas counted, and the records in each."""
        for batch, results in predicted:
            index = batch["index"].numpy()
            self._check_labels(np.concatenate(results["wrong_label"]), index)
            yield sum(results["matrix"]), index[batch["weight"].numpy() != 0]

    def _refined_counts(self, predicted: Iterator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the confusion matrix of each image after the dense CRF, and its record."""
        probs = ((batch, np.concatenate(results["probs"])) for batch, results in predicted)
        with RecordReader(self._index, self._data_config.dataset_dir) as reader:
            for i, labels in refined_labels(
                probs,
                reader,
                self._index,
                self._config,
                self._data_config,
                present=self._present,
            ):
                image_id = str(self._index.ids[i])
                matrix = metrics.confusion_matrix(
                    zero_label.evaluated_label(
                        decode_label(reader.read(i).label, image_id, reader.location(i)),
                        self._spec,
                    ),
                    labels,
                    self._spec.num_classes,
                    ignore_label=self._spec.ignore_label,
                    where=f"image {image_id} of split '{self._config.eval_split}'",
                )
                yield matrix[np.newaxis], np.array([i])

    def _tiled_counts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the confusion matrices of each image, which is cut into tiles, and its record."""
        for batch in self._dataset:
            i = int(batch["index"][0])
            present = None if self._present is None else self._present[i]
            found = self._tiled_labels(batch["image"][0].numpy(), present=present)
            labels = dict(zip(self._decisions, found))
            matrices = [
                metrics.confusion_matrix(
                    self._measured(batch["label"][0], variant).numpy(),
                    labels[variant.decision],
                    self._spec.num_classes,
                    ignore_label=self._spec.ignore_label,
                    where=f"image {self._index.ids[i]} of split '{self._config.eval_split}'",
                )
                for variant in self._variants
            ]
            yield np.stack(matrices), np.array([i])

    def _check_labels(self, wrong_label: np.ndarray, index: np.ndarray) -> None:
        for row in np.flatnonzero(wrong_label >= 0):
            image_id = self._index.ids[index[row]]
            where = f"image {image_id} of split '{self._config.eval_split}'"
            raise metrics.label_error(wrong_label[row], self._spec.num_classes, where)

    def _check_count(self, times_counted: np.ndarray) -> None:
        wrong = np.flatnonzero(times_counted != 1)
        if wrong.size:
            # Not a mistake of the user: a metric over other images than those of the split.
            raise RuntimeError(
                f"{wrong.size} of {self.num_images} images were not counted exactly once, first "
                f"{self._index.ids[wrong[0]]} ({times_counted[wrong[0]]} times)"
            )

    def evaluate(self, *, step: int, prefix: str) -> dict[str, Any]:
        """Measures the network's present weights and writes the result.

        Args:
          step: training step of the weights.
          prefix: checkpoint from which they came, for the record.

        Returns:
          The content of `<eval_logdir>/metrics.json`, which is written atomically: 'miou',
          'class_iou' by class name (None where no pixel has the class), 'class_false_positives'
          and 'class_false_negatives' (shares of the union; they and the IoU sum to 1),
          'pixel_accuracy', 'num_images', 'confusion_matrix' (rows = truth), 'step', 'checkpoint',
          'absent_classes', 'prediction' (how it was made: scales, classes, CRF), and with `weakly`
          'cls_overall', 'cls_precision', 'cls_recall'. Fractions, not per cent. With seen and
          unseen classes these are of the generalised mode, and 'zero_label' has the scores of
          `metrics.group_scores` in each mode.
        """
        matrices, image_level = self.confusion_matrices()
        matrix = matrices[0]
        result = summarize(
            matrix,
            self._spec,
            classes=zero_label.classes_taking_part(self._spec),
            absent=self._config.absent_classes,
        )
        if self._config.weakly:
            result["cls_overall"] = or_none(image_level.accuracy)
            result["cls_precision"] = image_level.precision
            result["cls_recall"] = image_level.recall
        result |= {
            "num_images": self.num_images,
            "confusion_matrix": matrix.tolist(),
            "step": int(step),
            "checkpoint": prefix,
            "absent_classes": self._config.absent_classes,
            "prediction": settings_of(self._config, self._data_config, self._config.eval_crop_size),
        }
        result |= zero_label.results(
            self._variants,
            matrices,
            self._config,
            self._spec,
            unseen_masks=self._unseen_masks,
        )
        write_metrics(self._config.eval_logdir, result)
        write_summaries(self._config.eval_logdir, result, self._spec)
        return result


def image_labels_of(label: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Returns which image-level classes occur in each mask.

    Args:
      label: integers [N, H, W].
      spec: the data set.

    Returns:
      Multi-hot uint8 [N, K].

    Source: the published evaluation takes image-level truth from the mask too.
    """
    result = np.zeros((len(label), spec.num_image_classes), np.uint8)
    for row, mask in zip(result, label):
        ids = np.unique(mask)
        is_class = (ids >= spec.first_image_class) & (ids < spec.num_classes)
        row[ids[is_class & (ids != spec.ignore_label)] - spec.first_image_class] = 1
    return result
