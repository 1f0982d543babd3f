"""Predicts image files and writes the wanted files of each.

Images are decoded by a thread, predicted here, and encoded by other threads. An image is entered
into the manifest once all its files are there. So a run that was stopped in any way goes on where
it was.
"""

import collections
import concurrent.futures
import contextlib
import filecmp
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from tfseg.models.folding import FoldedNetwork
from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.data.image_input import ImageInput
from tfseg.errors import UserError, check_choice
from tfseg.inference import zero_label
from tfseg.inference.coloring import colors_of
from tfseg.inference.crf import refined
from tfseg.inference.decoding import decode_file
from tfseg.inference.image_predictor import ImagePredictor
from tfseg.inference.image_progress import ImageProgress
from tfseg.inference.images import manifest, summary
from tfseg.inference.images.ahead import decoded_ahead
from tfseg.inference.images.finding import Found, ImageFile, output_names, part_of, share
from tfseg.inference.images.image_watch import ImageWatch
from tfseg.inference.images.trained import Trained, image_input_of
from tfseg.inference.images.writing import EXTENSIONS, ImageWriter, classes_in, relative_path
from tfseg.inference.predictor import Prediction
from tfseg.inference.settings import check, facts_of, settings_of, tiling_of, views_of
from tfseg.settings.prediction import ImagesConfig

GALLERY, COCO, FAILED = "index", "coco", "failed"
_WRITER_THREADS = 4
# Predictions that wait to be written hold at most so many pixels, or are one.
_MAX_PENDING_PIXELS = 32_000_000
# JPEG has no longer sides.
_MAX_JPEG_SIDE = 65_500


def predict_images(
    trained: Trained,
    config: ImagesConfig,
    found: Found,
    *,
    strategy: tf.distribute.Strategy | None = None,
) -> dict[str, Any]:
    """Predicts images; those that are predicted already are left as they are.

    Args:
      trained: the network.
      config: what is written, where and how.
      found: of `find_images`.
      strategy: under whose scope the network was made; None: the default one.

    Returns:
      'images': how many this share has; 'predicted' and 'skipped': how many of them were
      predicted now and before; 'failed': what is wrong with the others, by key.

    Raises:
      UserError: a setting is wrong, the directory holds other predictions, or the only image is
        damaged.
    """
    job = _Job(trained, config, found)
    print(job.describe(), flush=True)
    predictor = job.predictor(strategy)
    os.makedirs(config.output_dir, exist_ok=True)
    with manifest.Writer(config.output_dir, job.part, job.header) as entered:
        failed = job.run(predictor, entered)
    job.write_summaries(failed)
    return {
        "images": len(job.taken),
        "predicted": len(job.todo) - len(failed),
        "skipped": len(job.taken) - len(job.todo),
        "failed": failed,
    }


class _Job:
    """The work to be done. It is checked before anything is written.

    Attributes:
      part: (k, n), or None.
      taken: images of this share.
      todo: those of them that are not predicted yet.
      header: of the manifest.
    """

    def __init__(self, trained: Trained, config: ImagesConfig, found: Found):
        self._trained, self._config = trained, config
        spec = trained.spec
        check(config, spec)
        self._kinds = _checked_kinds(config)
        self.part = None if config.part is None else part_of(config.part)
        self._colors = colors_of(spec, config.colormap_type)
        self._tiling = tiling_of(config, trained.model)
        self._input = image_input_of(trained, config)
        self.header = _header(trained, config, self._input)
        self._entries = _read_entries(config.output_dir, self.header, spec.num_classes)
        known = {key: entry.name for key, entry in self._entries.items()}
        self._names = output_names([image.key for image in found.images], known)
        self.taken = share(found.images, self.part)
        # As they are before any is decoded: a file that changes later is predicted again next time.
        self._states = {image.key: manifest.state_of(image.path) for image in self.taken}
        self.todo = [image for image in self.taken if not self._is_done(image)]
        if "probabilities" in self._kinds:
            self._check_probabilities()
        if len(found.images) == 1 and self.todo:
            # A damaged one leaves nothing to do.
            decode_file(self.todo[0].path, max_megapixels=config.max_image_megapixels)

    def _is_done(self, image: ImageFile) -> bool:
        """Whether an image is predicted already.

        Raises:
          UserError: another image of its name is.
        """
        entry, folder = self._entries.get(image.key), self._config.output_dir
        if entry is None:
            return False
        same = entry.state == self._states[image.key]
        if entry.path != os.path.abspath(image.path):
            # Images of one camera may be alike in bytes and time.
            if same and os.path.isfile(entry.path):
                same = filecmp.cmp(entry.path, image.path, shallow=False)
            if not same:
                raise UserError(
                    "The output directory holds the mask of another image of the same name.",
                    where=f"--output_dir={folder}",
                    received=image.path,
                    accepted=entry.path,
                    fix="choose another --output_dir",
                )
        if not same:
            return False
        return set(self._kinds) <= set(entry.saved) and all(
            os.path.isfile(os.path.join(folder, relative_path(kind, entry.name)))
            for kind in self._kinds
        )

    def _check_probabilities(self) -> None:
        """Refuses probabilities that would take too much memory; reads the files' headers only.

        Raises:
          UserError: names the image.
        """
        limit, classes = self._config.max_probability_megabytes, self._trained.spec.num_classes
        for image in self.todo:
            pixels = 0
            # A file that cannot be read is reported when its turn comes.
            with contextlib.suppress(Exception), Image.open(image.path) as file:
                pixels = file.width * file.height
            if 2e-6 * pixels * classes > limit:
                raise UserError(
                    "The probabilities of an image would be too large.",
                    where=f"--save=probabilities, {image.path}",
                    received=f"{2e-6 * pixels * classes:.0f} MB",
                    accepted=f"--max_probability_megabytes={limit:g} at most",
                    fix="leave out probabilities, or raise --max_probability_megabytes; they are "
                    "held in memory",
                )

    def describe(self) -> str:
        """Returns one line on the images."""
        done = len(self.taken) - len(self.todo)
        parts = [f"images: {len(self.taken)}"]
        if self.part is not None:
            parts[0] += f" in share {self.part[0]} of {self.part[1]}"
        if done:
            parts.append(f"{done} of them are predicted already")
        return ", ".join(parts)

    def predictor(self, strategy: tf.distribute.Strategy | None) -> ImagePredictor:
        """Returns what predicts them."""
        config, spec = self._config, self._trained.spec
        wanted = [] if config.dense_crf else ["labels"]
        if config.dense_crf or "probabilities" in self._kinds:
            wanted.append("probs")
        with (strategy or tf.distribute.get_strategy()).scope():
            network = FoldedNetwork(self._trained.model)
        return ImagePredictor(
            network,
            self._input,
            views=views_of(config, spec),
            decision=zero_label.decision_among_visible(config, spec),
            wanted=wanted,
            tiling=self._tiling,
            strategy=strategy,
        )

    def run(self, predictor: ImagePredictor, entered: manifest.Writer) -> dict[str, str]:
        """Predicts and writes; returns what is wrong with damaged images, by key.

        Args:
          predictor: of `predictor`.
          entered: the manifest.
        """
        failed: dict[str, str] = {}
        if not self.todo:
            return failed
        writer = ImageWriter(self._config.output_dir, self._kinds, self._trained.spec, self._colors)
        pending: collections.deque = collections.deque()
        with (
            ImageProgress("predicting", len(self.todo)) as progress,
            concurrent.futures.ThreadPoolExecutor(_WRITER_THREADS) as executor,
            contextlib.closing(self._predicted(predictor, failed, progress)) as predicted,
        ):

            def take() -> None:
                _, future = pending.popleft()
                entry = future.result()
                entered.add(entry)
                self._entries[entry.image] = entry
                progress.add(1)

            try:
                for image, pixels, found in predicted:
                    size = pixels.shape[0] * pixels.shape[1]
                    while pending and (
                        pending[0][1].done()
                        or sum(n for n, _ in pending) + size > _MAX_PENDING_PIXELS
                    ):
                        take()
                    pending.append(
                        (size, executor.submit(self._write, writer, image, pixels, found))
                    )
                while pending:
                    take()
            except BaseException:
                executor.shutdown(wait=True, cancel_futures=True)
                raise
        return failed

    def _predicted(
        self, predictor: ImagePredictor, failed: dict[str, str], progress: ImageProgress
    ) -> Iterator[tuple[ImageFile, np.ndarray, Prediction]]:
        """Yields images, their pixels and what was found; adds damaged ones to `failed`."""
        watch = ImageWatch(self._trained, self._input)

        def decoded() -> Iterator[tuple[ImageFile, np.ndarray]]:
            limit = self._config.max_image_megapixels
            for image, pixels in decoded_ahead(self.todo, max_megapixels=limit):
                error = pixels if isinstance(pixels, UserError) else self._fault(image, pixels)
                if error is None:
                    watch.look(image, pixels)
                    yield image, pixels
                    continue
                failed[image.key] = str(error)
                print(f"damaged, left out: {error}", flush=True)
                progress.add(1)

        predicted = _in_groups(decoded(), predictor)
        yield from self._refined(predicted) if self._config.dense_crf else predicted
        watch.tell()

    def _fault(self, image: ImageFile, pixels: np.ndarray) -> UserError | None:
        if "overlay" in self._kinds and max(pixels.shape) > _MAX_JPEG_SIDE:
            return UserError(
                "The image is too large for an overlay, which is a JPEG.",
                where=image.path,
                received=f"{pixels.shape[0]}x{pixels.shape[1]}",
                accepted=f"at most {_MAX_JPEG_SIDE}",
                fix="leave overlay out of --save",
            )
        return None

    def _refined(
        self, predicted: Iterable[tuple[ImageFile, np.ndarray, Prediction]]
    ) -> Iterator[tuple[ImageFile, np.ndarray, Prediction]]:
        """Yields what was predicted with the labels of the dense CRF."""
        spec, waiting = self._trained.spec, collections.deque()
        visible = np.zeros(spec.num_classes, np.float32)
        visible[zero_label.classes_taking_part(spec)] = 1.0
        present = None if visible.all() else visible

        def tasks() -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]:
            for number, (image, pixels, found) in enumerate(predicted):
                keeps = found.probs if "probabilities" in self._kinds else None
                waiting.append((image, pixels, keeps))
                yield number, np.ascontiguousarray(found.probs), pixels, present

        for _, labels in refined(tasks(), self._config, num_images=len(self.todo)):
            image, pixels, probs = waiting.popleft()
            yield image, pixels, Prediction(labels, probs)

    def _write(
        self, writer: ImageWriter, image: ImageFile, pixels: np.ndarray, found: Prediction
    ) -> manifest.Entry:
        """Writes an image's files; returns its entry."""
        name, state = self._names[image.key], self._states[image.key]
        writer.write(name, pixels, found)
        before = self._entries.get(image.key)
        kept = before.saved if before is not None and before.state == state else ()
        return manifest.Entry(
            image=image.key,
            path=os.path.abspath(image.path),
            name=name,
            bytes=state[0],
            modified=state[1],
            height=pixels.shape[0],
            width=pixels.shape[1],
            classes=tuple(classes_in(found.labels)),
            saved=tuple(sorted({*kept, *self._kinds})),
        )

    def write_summaries(self, failed: Mapping[str, str]) -> None:
        """Writes the gallery, coco.json and the list of damaged images of this share."""
        folder, spec, trained = self._config.output_dir, self._trained.spec, self._trained
        suffix = manifest.suffix_of(self.part)
        entries = {
            image.key: self._entries[image.key]
            for image in self.taken
            if image.key in self._entries and image.key not in failed
        }

        def path(name: str, extension: str) -> str:
            return os.path.join(folder, name + suffix + extension)

        if "coco" in self._kinds:
            summary.write_coco(path(COCO, ".json"), folder, self.taken, entries, spec)
        if summary.has_page(self._kinds):
            facts = {"checkpoint": trained.prefix, "step": str(trained.step)}
            summary.write_page(
                path(GALLERY, ".html"),
                self.taken,
                entries,
                kinds=self._kinds,
                spec=spec,
                colors=self._colors,
                prefix=trained.prefix,
                facts=facts | facts_of(self._config, spec),
            )
            print(f"open in a browser: {path(GALLERY, '.html')}", flush=True)
        summary.write_failed(path(FAILED, ".txt"), failed)
        if failed:
            print(f"{len(failed)} damaged images: {path(FAILED, '.txt')}", flush=True)


def _checked_kinds(config: ImagesConfig) -> tuple[str, ...]:
    """Returns the kinds of files to write, each once.

    Raises:
      UserError: nothing, or an unknown kind.
    """
    for kind in config.save:
        check_choice(kind, tuple(EXTENSIONS), flag="save", what="kind of file")
    if not config.save:
        raise UserError("Nothing is to be written.", where="--save", accepted=", ".join(EXTENSIONS))
    return tuple(kind for kind in EXTENSIONS if kind in config.save)


def _header(trained: Trained, config: ImagesConfig, image_input: ImageInput) -> dict[str, Any]:
    """Returns the first line of the manifest: weights and settings, and their fingerprint."""
    with open(trained.prefix + ".index", "rb") as file:
        # It holds a checksum of every variable.
        weights = hashlib.sha256(file.read()).hexdigest()
    resize = image_input.resize_to
    facts = {
        "weights": weights,
        "network": config.network,
        "resize_to": None if resize is None else list(resize),
        # Folders from before there were distinct colours have the others.
        "colormap_type": config.colormap_type
        or ("distinct" if trained.spec.colormap_name == "distinct" else None),
        "seen_bias": [config.seen_bias, config.seen_bias_space],
        **settings_of(config, trained.data_config, None),
    }
    return {
        "fingerprint": manifest.fingerprint(facts),
        "checkpoint": trained.prefix,
        "step": trained.step,
        "settings": facts,
    }


def _read_entries(
    folder: str, header: Mapping[str, Any], num_classes: int
) -> dict[str, manifest.Entry]:
    """Returns what the output directory holds already.

    Raises:
      UserError: it is a file, or holds other predictions.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(
            "The output directory is a file.",
            where=f"--output_dir={folder}",
            fix="choose another --output_dir",
        )
    entries = manifest.read_all(folder, header, num_classes=num_classes)
    if os.path.isdir(folder) and not manifest.exists(folder):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            of_kind = name in EXTENSIONS and os.path.isdir(path) and os.listdir(path)
            # Masks or photographs of the user's; a log may lie there.
            if of_kind or os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                raise UserError(
                    "The output directory holds files that no manifest lists.",
                    where=f"--output_dir={folder}",
                    received=path,
                    accepted="an empty folder, or one that predict.py has written",
                    fix="choose another --output_dir",
                )
    return entries


def _in_groups(
    decoded: Iterable[tuple[ImageFile, np.ndarray]], predictor: ImagePredictor
) -> Iterator[tuple[ImageFile, np.ndarray, Prediction]]:
    """Predicts as many images at a time as the predictor takes."""
    decoded = iter(decoded)
    while group := list(itertools.islice(decoded, predictor.count)):
        try:
            found = predictor([pixels for _, pixels in group])
        except tf.errors.ResourceExhaustedError:
            image, pixels = group[0]
            raise UserError(
                "There is not enough memory to predict an image.",
                where=image.path,
                received=f"{pixels.shape[0]}x{pixels.shape[1]} pixels",
                fix="add --tile_size, for example the size of the training crops, or --scale=auto",
            ) from None
        for (image, pixels), prediction in zip(group, found):
            yield image, pixels, prediction
