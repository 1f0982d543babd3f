"""Pictures of predictions, and a gallery that opens from disk.

For every image of a split `draw` writes, under `<vis_logdir>`:

| file | content |
|---|---|
| `segmentation_results/<name>.png` | prediction in colour, RGB, original size |
| `raw_segmentation_results/<name>.png` | class ids; with --also_save_raw_predictions |
| `overlays/<name>.jpg` | prediction over the image; background is left clear |
| `images/<name>.<jpg or png>` | the image, the very bytes of the record |
| `truth/<name>.png` | the mask in colour, where there is one |
| `index.html` | all of them with per-image IoU, worst first; needs no network |

Class ids are written as evaluation ids where the data set has them (Cityscapes), in 8 bits, or 16
where 8 are too few.

`<name>` is the last component of the image's id, as published. If two ids of the split share
it, all names keep their folders. Names never lead out of the output directory. Each file appears
whole under its name, so running again is safe. Pictures that other runs left in the folder stay; a
warning counts them.

Source: PseudoSeg specification 7.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg import metrics
from tfseg.models.folding import FoldedNetwork
from tfseg.data import tfexample
from tfseg.data.encoded_image import image_size
from tfseg.data.evaluation_batches import EvalDataset, make_eval_dataset
from tfseg.data.folders import check_holds_no_images
from tfseg.data.image_input import ImageInput
from tfseg.data.index import Index
from tfseg.data.prediction_files import RAW_FOLDER, output_names, raw_ids
from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError
from tfseg.inference import gallery, zero_label
from tfseg.inference.classes import classes_allowed
from tfseg.inference.coloring import colors_of, overlay
from tfseg.inference.crf import refined_labels
from tfseg.inference.files import jpeg, png, write
from tfseg.inference.image_progress import ImageProgress
from tfseg.inference.one_by_one import batch_predictor
from tfseg.inference.pictures import decode_image, decode_label, original_labels
from tfseg.inference.predictor import Predictor
from tfseg.inference.protocols import wrapped
from tfseg.inference.replicas import Replicas
from tfseg.inference.scores import summarize
from tfseg.inference.settings import (
    check,
    facts_of,
    image_input_of,
    tiling_of,
    views_of,
)
from tfseg.inference.tiles import Tiling, tiled_labels
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import VisConfig
from tfseg.sharing import TEMPORARY_PREFIX

_IMAGES = "images"
_TRUTH = "truth"
_OVERLAYS = "overlays"
_PREDICTIONS = "segmentation_results"
GALLERY_FILE = "index.html"

# Pictures are compressed while the next batch is predicted; zlib lets go of Python's lock.
_WRITER_THREADS = 4
_MAX_PENDING = 64
# Names in a warning.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """The result for one image: its entry on the page, and its counts if it has a mask."""

    entry: gallery.Entry
    matrix: np.ndarray | None


class _Painter:
    """Writes the pictures of one image at a time; threads may share it, and its `reader`."""

    def __init__(
        self,
        index: Index,
        spec: DatasetSpec,
        data_config: DataConfig,
        config: VisConfig,
    ):
        self._index, self._spec, self._config = index, spec, config
        self._max_megapixels = data_config.max_image_megapixels
        self.reader = RecordReader(index, data_config.dataset_dir)
        self._names = output_names(index.ids)
        self._colors = colors_of(spec, config.colormap_type)

    def paint(self, i: int, prediction: np.ndarray) -> _Drawn:
        """Writes the pictures of record `i`.

        Args:
          i: record number.
          prediction: class ids [height, width] of the original image.
        """
        location = self.reader.location(i)
        example = self.reader.read(i)
        tfexample.check_pixels(
            example.image, max_megapixels=self._max_megapixels, location=location
        )
        name = self._names[i]
        image = decode_image(example.image, location)
        extension = "jpg" if image_size(example.image)[0] == "jpeg" else "png"
        label = None
        pictures = {"image": self._write(_IMAGES, name, extension, example.image)}
        if example.label is not None:
            label = decode_label(example.label, str(self._index.ids[i]), location)
            pictures["truth"] = self._write(_TRUTH, name, "png", png(self._colors[label]))
        pictures["prediction"] = self._write(
            _PREDICTIONS, name, "png", png(self._colors[prediction])
        )
        pictures["overlay"] = self._write(
            _OVERLAYS,
            name,
            "jpg",
            jpeg(overlay(image, prediction, self._spec, self._colors)),
        )
        if self._config.also_save_raw_predictions:
            self._write(RAW_FOLDER, name, "png", png(raw_ids(prediction, self._spec)))
        return self._measure(i, prediction, label, pictures)

    def _measure(
        self,
        i: int,
        prediction: np.ndarray,
        label: np.ndarray | None,
        pictures: Mapping[str, str],
    ) -> _Drawn:
        spec, image_id = self._spec, str(self._index.ids[i])
        present = set(np.unique(prediction).tolist())
        matrix, iou, class_iou = None, None, {}
        if label is not None:
            matrix = metrics.confusion_matrix(
                zero_label.evaluated_label(label, spec),
                prediction,
                spec.num_classes,
                ignore_label=spec.ignore_label,
                where=f"image {image_id}",
            )
            union = matrix.sum(0) + matrix.sum(1) - np.diagonal(matrix)
            present = set(np.flatnonzero(union).tolist())
            class_iou = {c: float(matrix[c, c] / union[c]) for c in sorted(present)}
            # A mask of nothing but void has no IoU.
            iou = metrics.mean_iou(matrix) if present else None
        entry = gallery.Entry(image_id, dict(pictures), iou, class_iou, tuple(sorted(present)))
        return _Drawn(entry, matrix)

    def _write(self, folder: str, name: str, extension: str, content: bytes) -> str:
        """Writes a file atomically; returns its path relative to the output directory."""
        relative = f"{folder}/{name}.{extension}"
        write(os.path.join(self._config.vis_logdir, relative), content)
        return relative

    def close(self) -> None:
        self.reader.close()


def draw(
    model: Any,
    spec: DatasetSpec,
    data_config: DataConfig,
    config: VisConfig,
    *,
    prefix: str,
    step: int,
) -> dict[str, Any] | None:
    """Draws the predictions of a whole split.

    Args:
      model: network of `build_model` with its weights.
      spec: the data set.
      data_config: `dataset_dir`, the resize settings.
      config: split, output directory, crop size, scales, CRF, colours.
      prefix: checkpoint of the weights, for the record.
      step: its training step.

    Returns:
      'miou', 'class_iou', 'pixel_accuracy' and the rest of `scores.summarize`, over the images with
      masks at their original size; None if there are none.

    Raises:
      UserError: the split is not there, a record is damaged, a setting is wrong.
    """
    check(config, spec)
    if config.vis_batch_size < 1:
        raise UserError(
            "The batch size must be at least 1.",
            where="--vis_batch_size",
            received=config.vis_batch_size,
        )
    index = load_index(data_config.dataset_dir, config.vis_split, spec)
    present = classes_allowed(
        config, index, spec, dataset_dir=data_config.dataset_dir, split=config.vis_split
    )
    painter = _Painter(index, spec, data_config, config)
    _prepare(config)
    _tell_of_others(index, config)
    tiling = tiling_of(config, model)
    image_input = image_input_of(config, data_config, model, config.vis_crop_size)
    dataset = make_eval_dataset(
        config.vis_split,
        spec,
        data_config,
        image_input,
        batch_size=config.vis_batch_size if tiling is None else 1,
    )
    predictor = _predictor(model, config, spec)
    if tiling is None:
        predicted = _predicted(predictor, dataset, present)
    else:
        predicted = _predicted_in_tiles(predictor, dataset, present, tiling, image_input)
    if config.dense_crf:
        found = refined_labels(
            predicted, painter.reader, index, config, data_config, present=present
        )
    else:
        found = _at_original_size(predicted, index)
    try:
        with contextlib.closing(found):
            drawn = _paint_all(painter, found, f"drawing {config.vis_split}", index.size)
    finally:
        painter.close()
    return _write_gallery(drawn, spec, config, prefix=prefix, step=step)


def _predictor(model: Any, config: VisConfig, spec: DatasetSpec) -> Predictor:
    """Returns what is drawn: labels, or the probabilities that the CRF refines."""
    return Predictor(
        wrapped(FoldedNetwork(model), config),
        views_of(config, spec, config.vis_crop_size),
        wanted=["labels" if config.tile_size is None and not config.dense_crf else "probs"],
        decision=zero_label.decision_of(config, spec),
    )


def _predicted(
    predictor: Predictor, dataset: EvalDataset, present: np.ndarray | None
) -> Iterator[tuple[Mapping[str, tf.Tensor], np.ndarray]]:
    """Yields batches, each with its labels or probabilities."""
    predict_batch = batch_predictor(predictor)

    @tf.function(autograph=False, reduce_retracing=True)
    def run(image, allowed, weight):
        found = predict_batch(image, allowed, weight)
        return found.labels if found.probs is None else found.probs

    for batch in dataset:
        allowed = None if present is None else tf.gather(present, batch["index"])
        with predictor.running():
            found = run(batch["image"], allowed, batch["weight"])
        yield batch, found.numpy()


def _predicted_in_tiles(
    predictor: Predictor,
    dataset: EvalDataset,
    present: np.ndarray | None,
    tiling: Tiling,
    image_input: ImageInput,
) -> Iterator[tuple[Mapping[str, tf.Tensor], np.ndarray]]:
    """Yields batches of one image, each with its labels."""
    replicas = Replicas(predictor)
    for batch in dataset:
        allowed = None if present is None else present[int(batch["index"][0])]
        image = batch["image"][0].numpy()
        (labels,) = tiled_labels(image, tiling, replicas, image_input, present=allowed)
        yield batch, labels[np.newaxis]


def _at_original_size(
    predicted: Iterable[tuple[Mapping[str, tf.Tensor], np.ndarray]], index: Index
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields record numbers and labels [height, width]; rows that fill a batch up are left out."""
    for batch, labels in predicted:
        valid, weight = batch["valid"].numpy() > 0, batch["weight"].numpy()
        for row, i in enumerate(batch["index"].numpy()):
            if weight[row]:
                size = int(index.height[i]), int(index.width[i])
                yield int(i), original_labels(labels[row], valid[row], *size)


def _prepare(config: VisConfig) -> None:
    """Makes the folders, so that a directory that cannot be written fails before any work.

    The page of an earlier run goes: its numbers would stand above new pictures.

    Raises:
      UserError: a folder cannot be made, or the directory holds files of the user's.
    """
    if not os.path.isdir(os.path.join(config.vis_logdir, _PREDICTIONS)):
        check_holds_no_images(config.vis_logdir, "vis_logdir")
        for name in (GALLERY_FILE, _IMAGES, _TRUTH, _OVERLAYS):
            path = os.path.join(config.vis_logdir, name)
            if os.path.exists(path) and (os.path.isfile(path) or os.listdir(path)):
                raise UserError(
                    "The output directory holds files that are not of vis.py.",
                    where=f"--vis_logdir={config.vis_logdir}",
                    received=path,
                    accepted="an empty folder, or one that vis.py has written",
                    fix="choose another --vis_logdir",
                )
    # The first one tells the next run that the folder is of this program.
    folders = [_PREDICTIONS, _IMAGES, _TRUTH, _OVERLAYS]
    folders += [RAW_FOLDER] if config.also_save_raw_predictions else []
    for folder in folders:
        try:
            os.makedirs(os.path.join(config.vis_logdir, folder), exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                "The output directory is a file, or holds a file where a folder belongs.",
                where=os.path.join(config.vis_logdir, folder),
                fix="choose another --vis_logdir",
            ) from None
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(config.vis_logdir, GALLERY_FILE))


def _tell_of_others(index: Index, config: VisConfig) -> None:
    """Warns of predictions in the folder that this run does not write again."""
    written = {f"{name}.png" for name in output_names(index.ids)}
    raw = written if config.also_save_raw_predictions else set()
    for kind, here in ((_PREDICTIONS, written), (RAW_FOLDER, raw)):
        folder = os.path.join(config.vis_logdir, kind)
        there = {
            os.path.relpath(os.path.join(path, name), folder)
            for path, _, names in os.walk(folder)
            for name in names
            if name.endswith(".png") and not name.startswith(TEMPORARY_PREFIX)
        }
        if others := sorted(there - here):
            print(
                f"warning: {folder} holds {len(others)} files of an earlier run, which this run "
                f"does not write again ({', '.join(others[:_NAMED])}). Give another --vis_logdir "
                "to keep runs apart",
                flush=True,
            )


def _paint_all(painter: _Painter, predictions: Any, what: str, total: int) -> list[_Drawn]:
    """Paints predictions on a few threads while the next ones are computed."""
    drawn: list[_Drawn] = []
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    with (
        ImageProgress(what, total) as progress,
        concurrent.futures.ThreadPoolExecutor(_WRITER_THREADS) as executor,
    ):

        def take() -> None:
            drawn.append(pending.popleft().result())
            progress.add(1)

        try:
            for i, prediction in predictions:
                pending.append(executor.submit(painter.paint, i, prediction))
                while len(pending) > _MAX_PENDING or (pending and pending[0].done()):
                    take()
            while pending:
                take()
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise
    return drawn


def _write_gallery(
    drawn: Sequence[_Drawn], spec: DatasetSpec, config: VisConfig, *, prefix: str, step: int
) -> dict[str, Any] | None:
    matrices = [d.matrix for d in drawn if d.matrix is not None]
    summary = None
    if matrices:
        classes = zero_label.classes_taking_part(spec)
        summary = summarize(sum(matrices), spec, classes=classes)
    facts = {"checkpoint": prefix, "step": str(step), "images": str(len(drawn))}
    facts |= facts_of(config, spec)
    if summary is not None:
        for text, key in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy")):
            facts[text] = "–" if summary[key] is None else f"{100 * summary[key]:.2f} %"
    text = gallery.page(
        [d.entry for d in drawn],
        title=f"{gallery.run_name(prefix)}: {spec.name}, {config.vis_split}",
        class_names=spec.class_names,
        colors=colors_of(spec, config.colormap_type),
        facts=facts,
        class_iou=None if summary is None else summary["class_iou"],
        ignore_label=spec.ignore_label,
    )
    path = os.path.join(config.vis_logdir, GALLERY_FILE)
    write(path, text.encode())
    print(f"open in a browser: {path}", flush=True)
    return summary
