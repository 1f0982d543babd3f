"""Measures a checkpoint on a split: every image once, whatever the batch size and replica count.

Each replica counts its pixels into an integer confusion matrix; the host adds them up as int64.
With a dense CRF, which works outside the graph, the host counts itself. Every record of the split
must have been counted exactly once, or there are no metrics.

A run with seen and unseen classes is measured in several modes, each with a matrix of its own: the
network sees every image once, and its answer is read several times.

Source: STRICT specification 4.7 and 6; ZS3 specification 6.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfseg import checkpoint, inference, metrics, predict
from tfseg.config import DataConfig, EvalConfig
from tfseg.data import pipeline, records
from tfseg.data.framing import write_atomically
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError, check_choice
from tfseg.ops.calibration import Calibration

METRICS_FILE = "metrics.json"
# How a run with seen and unseen classes is measured.
MODES = ("generalised", "zero_label", "vanilla")
_MAX_SWEPT = 1001
# Settings of a training run, or one before it, by which masks of unseen classes acted, and what to
# say of them.
_UNSEEN_MASKS = {
    "oracle_layout": "trained with --oracle_layout, in this run or one before it: masks of unseen "
    "classes were used.",
    "drop_images": "trained with --drop_images, in this run or one before it: a list said which "
    "images to leave out.",
}
# Seconds between progress lines where there is no terminal.
_LINE_INTERVAL_SECS = 10.0


class ImageProgress:
    """Shows how many images are done: a bar on a terminal, now and then a line elsewhere.

    Args:
      what: first words of the line, such as 'evaluating val'.
      total: images in all.
    """

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._start = self._last_line = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, desc=what, unit="image", dynamic_ncols=True) if is_terminal else None
        )

    def add(self, images: int) -> None:
        """Counts images that are done."""
        self._done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(images)
        elif now - self._last_line > _LINE_INTERVAL_SECS and self._done < self._total:
            self._last_line = now
            rate = self._done / (now - self._start)
            left = datetime.timedelta(seconds=int((self._total - self._done) / max(rate, 1e-9)))
            print(
                f"{self._what}: {self._done}/{self._total} images, {rate:.1f} images/s, "
                f"{left} left",
                flush=True,
            )

    def close(self) -> None:
        """Ends the bar, or prints the last line."""
        if self._bar is not None:
            self._bar.close()
        else:
            seconds = time.monotonic() - self._start
            rate = self._done / max(seconds, 1e-9)
            print(
                f"{self._what}: {self._done} images in {seconds:.1f} s, {rate:.1f} images/s",
                flush=True,
            )

    def __enter__(self) -> "ImageProgress":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def require_masks(index: records.Index, split: str) -> None:
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


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to read what the network says, and the pixels by which it is measured.

    Attributes:
      name: mode, or what is swept.
      decision: from probabilities to labels.
      counted: pixels of these classes count; None: of all.
    """

    name: str
    decision: predict.Decision = predict.Decision()
    counted: tuple[int, ...] | None = None


def variants_of(config: EvalConfig, spec: DatasetSpec) -> tuple[Variant, ...]:
    """Returns what is measured, the generalised mode first; swept biases last.

    Raises:
      UserError: settings need a class split, do not go together, or are malformed.
    """
    split, given = spec.split, config.modes
    if split is None:
        for flag in ("modes", "seen_bias_sweep"):
            if getattr(config, flag) is not None:
                raise UserError(
                    f"--{flag} is for runs with seen and unseen classes.",
                    where=f"--{flag}",
                    received=getattr(config, flag),
                    fix=f"leave out --{flag}, or evaluate a run trained with --class_split",
                )
        return (Variant("all"),)
    if config.weakly:
        raise UserError(
            "Networks of zero-label runs give no image-level scores.",
            where="--weakly",
            received=f"class split {split.name}",
            fix="leave out --weakly",
        )
    for mode in given or ():
        check_choice(mode, MODES, flag="modes", what="mode")
    if config.dense_crf and (set(given or ()) - {"generalised"} or config.seen_bias_sweep):
        raise UserError(
            "With the dense CRF only the generalised mode is measured, with one bias.",
            where="--dense_crf",
            received=f"--modes={','.join(given or ())}, --seen_bias_sweep={config.seen_bias_sweep}",
            accepted="--modes=generalised",
            fix="leave out --dense_crf, or the other flags",
        )
    calibration = inference.calibration_of(config, spec)
    unseen = predict.Decision(classes=split.unseen)
    variants = {
        "generalised": Variant("generalised", predict.Decision(calibration=calibration)),
        "zero_label": Variant("zero_label", unseen, counted=split.unseen),
        "vanilla": Variant("vanilla", unseen),
    }
    wanted = given or (("generalised",) if config.dense_crf else MODES)
    # What the top of metrics.json is of is measured always.
    modes = ["generalised", *(mode for mode in MODES[1:] if mode in wanted)]
    return *(variants[mode] for mode in modes), *_swept_variants(config, spec)


def _swept_variants(config: EvalConfig, spec: DatasetSpec) -> list[Variant]:
    if config.seen_bias_sweep is None:
        return []
    if not spec.split.held_out:
        raise UserError(
            "The bias is swept on validation classes, never on the unseen ones.",
            where="--seen_bias_sweep",
            received=f"a run that trained on {len(spec.split.validation)} validation classes"
            if spec.split.validation
            else f"class split {spec.split.name}, which has no validation classes",
            accepted="a run trained with --exclude_validation_classes",
            fix="train one with --exclude_validation_classes and sweep there; then evaluate this "
            "run with the --seen_bias that was found",
        )
    return [
        Variant(
            f"seen_bias {bias:g}",
            predict.Decision(
                calibration=Calibration(spec.split.seen, bias, config.seen_bias_space)
            ),
        )
        for bias in swept_values(config.seen_bias_sweep)
    ]


def swept_values(text: str) -> list[float]:
    """Returns the numbers of 'first:last:step', last included.

    Raises:
      UserError: another form, or more than a thousand numbers.
    """
    try:
        first, last, step = (float(part) for part in text.split(":"))
        # The last number is one of them in spite of what rounding adds up to.
        count = math.floor((last - first) / step + 1e-6) + 1
        if not (step > 0 and first >= 0 and 0 < count <= _MAX_SWEPT):
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            "--seen_bias_sweep is not a range of numbers from 0 on.",
            where="--seen_bias_sweep",
            received=text,
            accepted=f"first:last:step of at most {_MAX_SWEPT} numbers, for example 0:1:0.05",
        ) from None
    return [round(first + i * step, 10) for i in range(count)]


class Evaluator:
    """Evaluates one network, as often as its weights change.

    Args:
      model: network of `build_model`, made under the strategy's scope; with a classifier if
        `config.weakly`, or if classes are filtered by its scores.
      strategy: its replicas share every batch.
      spec: the data set.
      data_config: `dataset_dir`, the resize settings.
      config: split, batch size, crop size, scales, CRF, `weakly`, `eval_logdir`, modes.
      prediction_with_upsampled_logits: see `predict.predict`.
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
        prediction_with_upsampled_logits: bool = True,
        unseen_masks: Mapping[str, Any] | None = None,
    ):
        inference.check(config, spec)
        self._variants = variants_of(config, spec)
        self._unseen_masks = dict(unseen_masks or {})
        if config.eval_batch_size < 1:
            raise UserError(
                "The batch size must be at least 1.",
                where="--eval_batch_size",
                received=config.eval_batch_size,
            )
        self._model, self._strategy, self._spec = model, strategy, spec
        self._config, self._data_config = config, data_config
        self._index = records.load_index(data_config.dataset_dir, config.eval_split, spec)
        require_masks(self._index, config.eval_split)
        self._replicas = strategy.num_replicas_in_sync
        self._present = inference.classes_allowed(
            config,
            self._index,
            spec,
            dataset_dir=data_config.dataset_dir,
            split=config.eval_split,
        )
        self._views = inference.views_of(config, spec)
        # The CRF refines probabilities, at the size of the image.
        self._options = {}
        if not config.dense_crf:
            self._options["prediction_with_upsampled_logits"] = prediction_with_upsampled_logits
        # Every replica gets the same number of images; the surplus has weight 0 in the last batch.
        per_replica = -(-config.eval_batch_size // self._replicas)
        self._dataset = pipeline.make_eval_dataset(
            config.eval_split,
            spec,
            data_config,
            mean_pixel=model.mean_pixel,
            crop_size=tuple(config.eval_crop_size),
            batch_size=per_replica * self._replicas,
            max_side=config.max_side,
            resize_to=inference.resize_of(config),
        )
        # Images larger than the crop come in their own sizes; from the second size on one graph
        # serves them all.
        self._step = tf.function(self._distributed_step, autograph=False, reduce_retracing=True)

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return self._index.size

    def _replica_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        options = {"present": batch.get("present"), "weight": batch["weight"], **self._options}
        arguments = self._model, batch["image"], self._views
        result = {}
        if self._config.dense_crf and self._config.weakly:
            function = predict.predict_probabilities_with_image_logits
            result["probs"], result["image_logits"] = function(*arguments, **options)
        elif self._config.dense_crf:
            result["probs"] = predict.predict_probabilities(*arguments, **options)
        elif self._config.weakly:
            function = predict.predict_with_image_logits
            labels, result["image_logits"] = function(*arguments, **options)
            result |= self._counted(batch, [labels])
        else:
            decisions = list(dict.fromkeys(variant.decision for variant in self._variants))
            found = predict.predict_decisions(*arguments, decisions=decisions, **options)
            labels = dict(zip(decisions, found))
            result |= self._counted(batch, [labels[v.decision] for v in self._variants])
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

    def _measured(self, label: tf.Tensor, variant: Variant) -> tf.Tensor:
        """Returns the label map by which a variant is measured.

        What takes no part in the class split is ignored in it already.
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
        total = np.zeros((len(self._variants), *(self._spec.num_classes,) * 2), np.int64)
        image_level: list[metrics.ImageLevelCounts] = []
        times_counted = np.zeros(self.num_images, np.int64)
        predicted = self._predicted(image_level)
        counts = self._refined_counts if self._config.dense_crf else self._counts
        with (
            ImageProgress(f"evaluating {self._config.eval_split}", self.num_images) as progress,
            contextlib.closing(counts(predicted)) as counted,
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
            results = self._collect(self._step(self._distribute(batch)))
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
        with records.RecordReader(self._index, self._data_config.dataset_dir) as reader:
            for i, labels in inference.refined_labels(
                probs,
                reader,
                self._index,
                self._config,
                self._data_config,
                present=self._present,
            ):
                image_id = str(self._index.ids[i])
                matrix = metrics.confusion_matrix(
                    inference.evaluated_label(
                        inference.decode_label(reader.read(i).label, image_id, reader.location(i)),
                        self._spec,
                    ),
                    labels,
                    self._spec.num_classes,
                    ignore_label=self._spec.ignore_label,
                    where=f"image {image_id} of split '{self._config.eval_split}'",
                )
                yield matrix[np.newaxis], np.array([i])

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
        result = summarize(matrix, self._spec, absent=self._config.absent_classes)
        if self._config.weakly:
            result["cls_overall"] = _or_none(image_level.accuracy)
            result["cls_precision"] = image_level.precision
            result["cls_recall"] = image_level.recall
        result |= {
            "num_images": self.num_images,
            "confusion_matrix": matrix.tolist(),
            "step": int(step),
            "checkpoint": prefix,
            "absent_classes": self._config.absent_classes,
            "prediction": inference.settings_of(self._config),
        }
        if self._spec.split is not None:
            result["zero_label"] = self._zero_label(matrices)
        _write_metrics(self._config.eval_logdir, result)
        _write_summaries(self._config.eval_logdir, result, self._spec)
        return result

    def _zero_label(self, matrices: np.ndarray) -> dict[str, Any]:
        """Returns what metrics.json says of seen and unseen classes."""
        spec, split = self._spec, self._spec.split

        def names(ids: Sequence[int]) -> list[str]:
            return [spec.class_names[c] for c in ids]

        found: dict[str, Any] = {
            "split": split.name,
            "seen": names(split.seen),
            "unseen": names(split.unseen),
            "held_out": names(split.held_out),
            "background": "takes no part" if split.background is None else "seen",
            **self._unseen_masks,
            "seen_bias": self._config.seen_bias,
            "seen_bias_space": self._config.seen_bias_space,
        }
        swept = []
        for variant, matrix in zip(self._variants, matrices):
            scores = metrics.group_scores(
                matrix, seen=split.seen, unseen=split.unseen, absent=self._config.absent_classes
            )
            scores = {
                quantity: {group: _or_none(value) for group, value in values.items()}
                for quantity, values in scores.items()
            }
            if variant.name not in MODES:
                swept.append({"seen_bias": variant.decision.calibration.bias, **scores})
                continue
            if variant.name == "zero_label":
                # No pixel of a seen class counts.
                scores = {quantity: {"unseen": x["unseen"]} for quantity, x in scores.items()}
            class_iou = summarize(matrix, spec, absent=self._config.absent_classes)["class_iou"]
            found[variant.name] = {**scores, "class_iou": class_iou}
        if swept:
            best = max(swept, key=lambda scores: scores["mean_iou"]["harmonic"])
            found |= {"seen_bias_sweep": swept, "best_seen_bias": best["seen_bias"]}
        return found


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


def summarize(matrix: np.ndarray, spec: DatasetSpec, *, absent: str = "skip") -> dict[str, Any]:
    """Returns IoU and errors by class, and 'miou' and 'pixel_accuracy'; None where undefined.

    Args:
      matrix: integers [C, C], rows = truth.
      spec: the data set.
      absent: see `metrics.mean_iou`. Classes that take no part in the data set's split are absent
        in neither sense: they have no value.
    """
    ids = np.arange(spec.num_classes) if spec.split is None else np.array(spec.split.visible)
    matrix = np.asarray(matrix)[np.ix_(ids, ids)]

    def by_name(values: np.ndarray) -> dict[str, float | None]:
        values = dict(zip(ids.tolist(), values))
        return {name: _or_none(values.get(c, math.nan)) for c, name in enumerate(spec.class_names)}

    false_positives, false_negatives = metrics.class_errors(matrix)
    return {
        "miou": _or_none(metrics.mean_iou(matrix, absent=absent)),
        "class_iou": by_name(metrics.class_iou(matrix, absent=absent)),
        "class_false_positives": by_name(false_positives),
        "class_false_negatives": by_name(false_negatives),
        "pixel_accuracy": _or_none(metrics.pixel_accuracy(matrix)),
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise UserError(
            "The output directory is a file.", where=path, fix="choose another directory"
        ) from None


def _write_metrics(folder: str, result: Mapping[str, Any]) -> None:
    _make_folder(folder)
    content = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(os.path.join(folder, METRICS_FILE), content.encode())


def _write_summaries(folder: str, result: Mapping[str, Any], spec: DatasetSpec) -> None:
    """Writes TensorBoard scalars under the published names; undefined ones are left out."""
    scalars = {
        "eval/miou_overall": result["miou"],
        "eval/pixel_accuracy": result["pixel_accuracy"],
    }
    for class_id, name in enumerate(spec.class_names):
        scalars[f"eval/miou_class_{class_id}"] = result["class_iou"][name]
    for key in ("cls_overall", "cls_precision", "cls_recall"):
        scalars[f"eval/{key}"] = result.get(key)
    for mode, scores in _scores_by_mode(result).items():
        for group, value in scores["mean_iou"].items():
            scalars[f"eval/{mode}/miou_{group}"] = value
    writer = tf.summary.create_file_writer(folder)
    with writer.as_default(step=max(result["step"], 0)):
        for name, value in scalars.items():
            if value is not None:
                tf.summary.scalar(name, value)
    writer.close()


def describe(result: Mapping[str, Any]) -> str:
    """Returns a result as a small table: mIoU, pixel accuracy, the IoU of every class."""

    def per_cent(value: float | None) -> str:
        return "   -  " if value is None else f"{100 * value:6.2f}"

    width = max(map(len, ("pixel accuracy", *result["class_iou"])))
    lines = [f"step {result['step']}, {result['num_images']} images, IoU in per cent:"]
    lines += [f"  {name:<{width}} {per_cent(x)}" for name, x in result["class_iou"].items()]
    lines.append(f"  {'mIoU':<{width}} {per_cent(result['miou'])}")
    lines.append(f"  {'pixel accuracy':<{width}} {per_cent(result['pixel_accuracy'])}")
    for key in ("cls_overall", "cls_precision", "cls_recall"):
        if key in result:
            lines.append(f"  {key:<{width}} {per_cent(result[key])}")
    if "zero_label" in result:
        lines += _describe_modes(result, per_cent)
    return "\n".join(lines)


def _scores_by_mode(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scores of each mode that was measured."""
    found = result.get("zero_label", {})
    return {mode: found[mode] for mode in MODES if mode in found}


def _describe_modes(result: Mapping[str, Any], per_cent: Callable) -> list[str]:
    found = result["zero_label"]
    bias = f", seen bias {found['seen_bias']:g}" if found["seen_bias"] else ""
    lines = [f"split {found['split']}{bias}, mIoU in per cent:"]
    lines.append(f"  {'mode':<12}" + "".join(f"{group:>10}" for group in metrics.GROUPS))
    for mode, scores in _scores_by_mode(result).items():
        values = (per_cent(scores["mean_iou"].get(group)) for group in metrics.GROUPS)
        lines.append(f"  {mode:<12}" + "".join(f"{value:>10}" for value in values))
    if "best_seen_bias" in found:
        lines.append(
            f"best harmonic mean of the sweep: --seen_bias={found['best_seen_bias']:g} "
            f"--seen_bias_space={found['seen_bias_space']}"
        )
    for name in [name for name in found if name in _UNSEEN_MASKS and found[name]]:
        lines.append(f"WARNING: {_UNSEEN_MASKS[name]}")
    return lines


def evaluate_checkpoint(
    model: Any,
    strategy: tf.distribute.Strategy,
    spec: DatasetSpec,
    data_config: DataConfig,
    config: EvalConfig,
    *,
    prefix: str,
    prediction_with_upsampled_logits: bool = True,
    unseen_masks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Loads one checkpoint into a network, measures it and writes the result.

    Args:
      model, strategy, spec, data_config, config, prediction_with_upsampled_logits, unseen_masks:
        see `Evaluator`.
      prefix: the checkpoint.

    Returns:
      See `Evaluator.evaluate`.

    Raises:
      UserError: see `Evaluator` and `checkpoint.load_network`.
    """
    evaluator = Evaluator(
        model,
        strategy,
        spec,
        data_config,
        config,
        prediction_with_upsampled_logits=prediction_with_upsampled_logits,
        unseen_masks=unseen_masks,
    )
    step = checkpoint.load_network(model, prefix, config.network)
    return evaluator.evaluate(step=step, prefix=prefix)


def evaluate_repeatedly(
    model: Any,
    strategy: tf.distribute.Strategy,
    spec: DatasetSpec,
    data_config: DataConfig,
    config: EvalConfig,
    *,
    prediction_with_upsampled_logits: bool = True,
    unseen_masks: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Evaluates a prefix once, or the checkpoints of a directory as they appear.

    Args:
      model, strategy, spec, data_config, config, prediction_with_upsampled_logits, unseen_masks:
        see `Evaluator`; `checkpoint_dir`, `eval_interval_secs`, `max_number_of_evaluations` too.

    Returns:
      The last result; None if there was none.

    Raises:
      UserError: see `Evaluator`, `watch_checkpoints` and `checkpoint.load_network`.
      SystemExit: with code 143, on SIGTERM.
    """
    with exiting_on_sigterm():
        evaluator = Evaluator(
            model,
            strategy,
            spec,
            data_config,
            config,
            prediction_with_upsampled_logits=prediction_with_upsampled_logits,
            unseen_masks=unseen_masks,
        )
        result = None
        for prefix in watch_checkpoints(
            config.checkpoint_dir, config.eval_interval_secs, config.max_number_of_evaluations
        ):
            step = checkpoint.load_network(model, prefix, config.network)
            print(f"checkpoint: {prefix}", flush=True)
            result = evaluator.evaluate(step=step, prefix=prefix)
            print(describe(result), flush=True)
            print(f"written: {os.path.join(config.eval_logdir, METRICS_FILE)}", flush=True)
        return result


def watch_checkpoints(
    checkpoint_dir: str,
    interval_secs: float,
    max_evaluations: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yields checkpoints to evaluate.

    Args:
      checkpoint_dir: a prefix, which is yielded once; or a directory, of which the newest is
        yielded, then each newer one as it appears (those in between are passed over).
      interval_secs: seconds between looks into the directory.
      max_evaluations: number of checkpoints after which it ends; 0: it never does.
      sleep: waits that many seconds.

    Yields:
      Checkpoint prefixes.

    Raises:
      UserError: there is no such directory or prefix, or a setting is wrong.
    """
    if interval_secs < 0 or max_evaluations < 0:
        raise UserError(
            "This must not be negative.",
            where="--eval_interval_secs, --max_number_of_evaluations",
            received=f"{interval_secs}, {max_evaluations}",
        )
    if not os.path.isdir(checkpoint_dir):
        yield checkpoint.newest(checkpoint_dir)
        return
    seen, has_said_so = set(), False
    while True:
        prefix = checkpoint.newest(checkpoint_dir)
        # Where the newest one is damaged the one before it comes back, which was seen.
        if prefix is not None and prefix not in seen:
            seen.add(prefix)
            has_said_so = False
            yield prefix
            if len(seen) == max_evaluations:
                return
            continue
        if not has_said_so:
            partial = [] if seen else checkpoint.incomplete(checkpoint_dir)
            if partial:
                print(
                    f"note: {', '.join(partial)}: index or data files are missing, so it cannot "
                    "be read",
                    flush=True,
                )
            print(
                f"waiting for a {'newer' if seen else 'first'} checkpoint in {checkpoint_dir}, "
                f"looking every {interval_secs:g} s; Ctrl-C stops",
                flush=True,
            )
            has_said_so = True
        # A busy loop would be no use to anyone.
        sleep(max(interval_secs, 0.1))


@contextlib.contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into `SystemExit(143)`, so that files are closed and nothing is half-written.

    Ctrl-C needs no such help: Python raises KeyboardInterrupt by itself.
    """

    def leave(signum: int, frame: Any) -> None:
        print("SIGTERM received: stopping.", flush=True)
        sys.exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
