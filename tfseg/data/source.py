"""The records of one split, read for TensorFlow, and what went wrong with them."""

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.data import sampling, tfexample
from tfseg.data.encoded_image import PNG_SIGNATURE
from tfseg.data.framing import RecordError
from tfseg.data.index import Index
from tfseg.data.reading import num_threads
from tfseg.data.record_reader import READS_AHEAD, RecordReader
from tfseg.data.specs import DatasetSpec
from tfseg.data.stream import NEEDING_MASKS
from tfseg.errors import UserError
from tfseg.settings.data import DataConfig

# Enough for what is decoded ahead of the step that meets a bad image.
_RECENT_RECORDS = 4096
# Byte 25 of a PNG file is its colour type.
_PNG_PALETTE = 3


class RecordSource:
    """Reads the records of a split for TensorFlow, and keeps what went wrong.

    Errors that leave a `tf.numpy_function` reach TensorFlow as text; the original is in `errors`.

    Args:
      split: name of the split.
      index: of the split.
      spec: the data set.
      config: directory, limits, what to do with damaged records.
      labels: as in `Stream`.
      image_labels: as in `Stream`.
      dataset_dir: as in `Stream`.
      lost: damage that was met while the index was made; these records are not in it.
      usable_masks: bool for each record, whether losses may see its mask (labels='listed').
      epoch: what an epoch is drawn from; None: each record once.
    """

    def __init__(
        self,
        split: str,
        index: Index,
        spec: DatasetSpec,
        config: DataConfig,
        *,
        labels: str,
        image_labels: str = "none",
        dataset_dir: str | None = None,
        lost: Sequence[RecordError] = (),
        usable_masks: np.ndarray | None = None,
        epoch: sampling.Epoch | None = None,
    ):
        self.split, self.index, self.spec, self._config = split, index, spec, config
        self._labels, self._image_labels = labels, image_labels
        self._usable_masks = usable_masks
        self.epoch = epoch or sampling.uniform(index.size)
        self._reader = RecordReader(index, dataset_dir or config.dataset_dir)
        self.errors: list[UserError] = []
        self.bad: dict[int, UserError] = {}
        self._lost = tuple(lost)
        self._check_share()
        self._known_good = np.zeros(index.size, bool)
        self._lock = threading.Lock()
        self._recent: collections.deque[int] = collections.deque(maxlen=_RECENT_RECORDS)

    def _checked(self, i: int) -> tfexample.Example:
        """Returns record `i` with what the stream needs.

        Raises:
          RecordError: it is damaged, too big, or lacks a mask or image-level labels.
        """
        example = self._reader.read(i)
        location = self._reader.location(i)
        limit = self._config.max_image_megapixels
        tfexample.check_pixels(example.image, max_megapixels=limit, location=location)
        if self._labels != "none" and example.label is not None:
            tfexample.check_pixels(
                example.label, max_megapixels=limit, location=location, key=tfexample.LABEL
            )
            if example.label[:8] == PNG_SIGNATURE and example.label[25] == _PNG_PALETTE:
                raise RecordError(
                    f"The mask of {example.filename} is a palette image: decoding would give grey "
                    "values, not class ids.",
                    location=location,
                    key=tfexample.LABEL,
                    fix="make the records again with one of tfrecords_tools/build_*.py (tfseg "
                    "convert)",
                )
        if self._labels in NEEDING_MASKS and example.label is None:
            raise RecordError(
                f"Image {example.filename} of split '{self.split}' has no mask.",
                location=location,
                key=tfexample.LABEL,
                fix="use the split as the unlabelled one, or make its records with the masks",
            )
        if self._image_labels == "crop" and example.label is None:
            raise RecordError(
                f"Image {example.filename} of split '{self.split}' has no mask to take image-level "
                "labels from.",
                location=location,
                key=tfexample.LABEL,
                fix="use --image_label_source=record with image-level labels in the records",
            )
        if self._image_labels == "record" and example.image_labels is None:
            raise RecordError(
                f"Image {example.filename} of split '{self.split}' has no image-level labels.",
                location=location,
                key=tfexample.IMAGE_LABELS,
                fix="make the records with --image_labels; or leave out --weakly (PseudoSeg), or "
                "set --supervision=pixel_labels (SLRNet)",
            )
        return example

    def check_decoding(self, i: int) -> None:
        """Decodes record `i` and checks the ids of its mask.

        Raises:
          RecordError: it cannot be used; names file, record and key.
        """
        example = self._checked(i)
        location = self._reader.location(i)
        encoded = [(tfexample.IMAGE, example.image, 3)]
        if self._labels != "none" and example.label is not None:
            encoded.append((tfexample.LABEL, example.label, 1))
        for key, data, channels in encoded:
            try:
                pixels = tf.io.decode_image(data, channels, expand_animations=False).numpy()
            except tf.errors.OpError as error:
                raise RecordError(
                    f"{'The image' if channels == 3 else 'The mask'} of {example.filename} cannot "
                    "be decoded.",
                    location=location,
                    key=key,
                    received=error.message.split("\n")[0][:200],
                    fix="repair or remove the image and make the records again",
                ) from None
        if len(encoded) == 2:
            self._check_ids(pixels, example, location)
            if self._image_labels == "record" and self.may_use_mask(i, example):
                self._check_image_labels(pixels, example, location)

    def _check_ids(self, label: np.ndarray, example: tfexample.Example, location: Any) -> None:
        spec = self.spec
        wrong = np.unique(label[(label >= spec.num_classes) & (label != spec.ignore_label)])
        if wrong.size:
            raise RecordError(
                f"The mask of {example.filename} holds ids beyond the class count.",
                location=location,
                key=tfexample.LABEL,
                received=", ".join(map(str, wrong[:8])),
                accepted=f"0 to {spec.num_classes - 1}, and {spec.ignore_label} for ignored pixels",
                fix="make the records again with a --label_map, or with all class names",
            )

    def may_use_mask(self, i: int, example: tfexample.Example) -> bool:
        """Says whether losses may see the mask of record `i`."""
        if self._labels in ("none", "hidden") or example.label is None:
            return False
        return self._usable_masks is None or bool(self._usable_masks[i])

    def _check_image_labels(self, label: np.ndarray, example: tfexample.Example, location) -> None:
        present = set(np.unique(label)) - {self.spec.ignore_label}
        named = set(example.image_labels.tolist()) | set(range(self.spec.first_image_class))
        denied = present - named
        if denied:
            names = self.spec.class_names
            raise RecordError(
                f"The mask of {example.filename} holds classes that its image-level labels lack.",
                location=location,
                key=tfexample.IMAGE_LABELS,
                received=", ".join(names[c] for c in sorted(denied)),
                accepted="masks of classes that the image-level labels name (they may name more)",
                fix="correct the labels or the mask and make the records again "
                "(tfrecords_tools/check.py lists all such images)",
            )

    def _note_bad(self, i: int, error: UserError) -> None:
        with self._lock:
            self.bad[i] = error
        self._check_share()

    def _check_share(self) -> None:
        bad, total = len(self.bad) + len(self._lost), self.index.size + len(self._lost)
        share = bad / total
        if share > self._config.max_bad_record_fraction:
            raise UserError(
                f"{bad} of {total} records of split '{self.split}' are damaged.",
                where="--max_bad_record_fraction",
                received=f"{share:.3f}",
                accepted=f"at most {self._config.max_bad_record_fraction}",
                fix="run tfrecords_tools/check.py on the data set and repair it",
            )

    def good_record(self, candidates: Callable[[int], int]) -> int:
        """Returns the first usable record of `candidates(0)`, `candidates(1)`, ...

        Only with --skip_bad_records; without it the first is taken and errors are raised on use.
        A bad record is replaced and not left out, so that positions stay arithmetic.
        """
        if not self._config.skip_bad_records:
            return candidates(0)
        # Twice, because only a whole epoch is sure to hold every record.
        for k in range(2 * self.epoch.length):
            i = candidates(k)
            if self._known_good[i]:
                return i
            if i in self.bad:
                continue
            try:
                self.check_decoding(i)
            except RecordError as error:
                self._note_bad(i, error)
            else:
                self._known_good[i] = True
                return i
        raise UserError(f"Every record of split '{self.split}' is damaged.")

    def fetch(self, i: int) -> tuple[np.ndarray, ...]:
        """Returns (image, label, has_label, may_use, image_label) of record `i` as NumPy values.

        `has_label` says whether there is a mask, `may_use` whether losses may see it.
        """
        with self._lock:
            self._recent.append(i)
        example = self._checked(i)
        multi_hot = np.zeros(self.spec.num_image_classes, np.float32)
        if self._image_labels == "record":
            multi_hot[example.image_labels - self.spec.first_image_class] = 1.0
        has_label = example.label is not None
        return (
            np.array(example.image, object),
            np.array(example.label if has_label else b"", object),
            np.bool_(has_label),
            np.bool_(self.may_use_mask(i, example)),
            multi_hot,
        )

    def reading_ahead(
        self, dataset: tf.data.Dataset, record_of: Callable[[int], int]
    ) -> tf.data.Dataset:
        """Returns a data set whose elements' records are asked for before the elements come.

        On a disk it is the same data set: reading takes less time than a thread.

        Args:
          dataset: of numbers, or of tuples that begin with one; int64.
          record_of: what record a number stands for.
        """
        if not self._reader.is_remote:
            return dataset

        # Those ahead, those that threads have taken, and some that --skip_bad_records reads again.
        kept = 2 * READS_AHEAD + num_threads(self._config)

        def begin(number):
            self._reader.start(record_of(int(number)), kept=kept)
            return number

        def make(number, *more):
            number = tf.numpy_function(self.keeping_errors(begin), [number], tf.int64)
            number = tf.ensure_shape(number, [])
            return (number, *more) if more else number

        return dataset.map(tf.autograph.experimental.do_not_convert(make)).prefetch(READS_AHEAD)

    def keeping_errors(self, function: Callable) -> Callable:
        """Wraps a function for `tf.numpy_function` so that its user errors are kept."""

        def wrapped(*arguments):
            try:
                return function(*arguments)
            except UserError as error:
                self.errors.append(error)
                raise

        return wrapped

    def explain(self) -> None:
        """Raises the user's error behind a failed pipeline, if there is one.

        An image that TensorFlow could not decode is found by decoding again what was read last.
        """
        if self.errors:
            raise self.errors[0]
        for i in dict.fromkeys(reversed(self._recent)):
            self.check_decoding(i)

    def bad_records(self) -> list[str]:
        """Returns one line for each record that was replaced or could not be reached.

        Each holds file, record number in it, byte offset, id and reason, separated by tabs; '?'
        where damage hides one.
        """
        named = [("?", error) for error in self._lost]
        named += [(self.index.ids[i], error) for i, error in sorted(self.bad.items())]
        return ["\t".join((*_place(error), str(name), _reason(error))) for name, error in named]


def _place(error: RecordError) -> tuple[str, str, str]:
    location = error.location
    numbers = (location.record, location.offset)
    return (location.path, *("?" if number is None else str(number) for number in numbers))


def _reason(error: RecordError) -> str:
    parts = [error.what, f"key {error.key}" if error.key else "", str(error.received or "")]
    return " | ".join(" ".join(part.split()) for part in parts if part)
