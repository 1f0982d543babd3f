"""From records on disk to batches: `tf.data` pipelines whose every position is arithmetic.

The order of a stream is a function of (seed, split, epoch) (`tfseg.data.sampling`), and the
augmentation of an example one of (seed, split, epoch, record). Where two streams read one split, or
splits of one name, the second has its own name beside the split's (`drawn_by`). Batch g of a stream
covers positions g B .. (g + 1) B - 1 of the endless sequence of epochs, so a run resumes exactly by
starting at its step; nothing about the data is stored in checkpoints. Records are read by offset: a
damaged one never hides the rest of its shard.

The batch vocabulary, `batch[stream][key]`:

| key | shape, dtype | meaning |
|---|---|---|
| `image`, `image_strong` | [B, H, W, 3] float32, RGB 0-255 | one crop, its weak and strong view |
| `label` | [B, H, W] int32 | class id or ignore label; absent where the stream has labels='none' |
| `image_label` | [B, K] float32 | multi-hot over the K image-level classes |
| `hidden_label` | [B, H, W] int32 | every mask, for monitors (labels='hidden', 'listed', 'seen') |
| `candidate` | [B, H, W] bool | may get a pseudo label of an unseen class (labels='seen') |
| `valid` | [B, H, W] float32 | 1 = image, 0 = padding, cut out, or brought in by a warp |
| `has_label` | [B] bool | whether the record has a mask (labels='listed': one that may be used) |
| `index` | [B] int64 | record number in the split |

With labels='seen' `label` went through the training table of the data set's class split after the
augmentation: seen classes stay, pixels of unseen ones are background where that is a seen class,
else ignored as unlabelled ones. `candidate` are the pixels that the table made background, or left
unlabelled, without void and padding; `hidden_label` went through the evaluation table. No id of an
unseen class reaches `label`, for the training table holds none (`tfseg.data.class_splits`).

Evaluation batches have `image`, `label`, `valid`, `has_label`, `index`, and `weight` [B] float32:
0 for rows that only fill the last batch up; where the data set has a class split their `label` went
through its evaluation table.

Source: PseudoSeg specification 2.5 and 3.
"""

import collections
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.config import DataConfig
from tfseg.data import (
    augment,
    pixels,
    records,
    sampling,
    short_side_crop,
    tfexample,
    warped_crop,
)
from tfseg.data.class_splits import UNLABELLED
from tfseg.data.framing import RecordError
from tfseg.data.specs import DatasetSpec, load_spec
from tfseg.errors import UserError
from tfseg.ops import resize

VIEWS = ("weak", "strong")
LABELS = ("required", "optional", "hidden", "listed", "seen", "none")
# A record without a mask is an error.
_NEEDING_MASKS = ("required", "seen")
IMAGE_LABELS = ("none", "record", "crop")
AUGMENT = ("full", "light")
SAMPLING = ("uniform", "class_weighted")
# Enough for what is decoded ahead of the step that meets a bad image.
_RECENT_RECORDS = 4096
_MANY = np.iinfo(np.int64).max // 2
# Byte 25 of a PNG file is its colour type.
_PNG_SIGNATURE, _PNG_PALETTE = b"\x89PNG\r\n\x1a\n", 3


@dataclasses.dataclass(frozen=True)
class Stream:
    """What a method asks of the data; the pipeline obeys.

    Attributes:
      split: name of the split.
      batch_size: examples in a step, over all replicas.
      views: ('weak',) or ('weak', 'strong').
      labels: 'required' (a record without a mask is an error), 'optional' (the ignore label stands
        in), 'hidden' (as optional, and delivered as `hidden_label`), 'listed' (as hidden, and
        those of images that `label_split` holds too as `label`), 'seen' (as required, without what
        the data set's class split hides; see above), or 'none' (masks are not read).
      image_labels: 'none', 'record' (those of the record, which must have them), or 'crop' (the
        classes found in the augmented crop's label map, behind the cut-out, as published; a record
        without a mask is an error). With labels='seen' only 'none': they would name unseen classes.
      dataset_dir: where the split is; None: the configuration's directory.
      label_split: with labels='listed', the split of the configuration's directory that names the
        images with usable masks; where no stream reads it, all of them must be in this one.
      epoch_of: another stream; an epoch then has as many positions as that one's, in which this
        split's records follow each other in a circle before they are shuffled. None: each record
        once.
      augment: 'full', or 'light': with --augmentation=composition no operations, the crop only;
        with the others the same as 'full'.
      oversample: with labels='listed', how often the records with usable masks stand in an epoch;
        all others stand in it once.
      sampling: 'uniform', or 'class_weighted': draws with replacement that prefer rare image-level
        classes (`sampling.class_weighted`; needs image_labels='record').
      epoch_length: with sampling='class_weighted', the draws of an epoch; None: as many as records.
      clutter_penalty: with sampling='class_weighted', how much images of many classes are avoided.
      require_foreground: an image whose image-level labels name no class is an error (needs
        image_labels='record').

    Raises:
      UserError: a value that is none of these.
    """

    split: str
    batch_size: int
    views: tuple[str, ...] = ("weak",)
    labels: str = "required"
    image_labels: str = "none"
    dataset_dir: str | None = None
    label_split: str | None = None
    epoch_of: str | None = None
    augment: str = "full"
    oversample: int = 1
    sampling: str = "uniform"
    epoch_length: int | None = None
    clutter_penalty: float = 1.0
    require_foreground: bool = False

    def __post_init__(self):
        if tuple(self.views) not in (VIEWS[:1], VIEWS):
            self._reject("views", self.views, f"{VIEWS[:1]} or {VIEWS}")
        if self.labels not in LABELS:
            self._reject("labels", self.labels, ", ".join(LABELS))
        if self.image_labels not in IMAGE_LABELS:
            self._reject("image_labels", self.image_labels, ", ".join(IMAGE_LABELS))
        if self.augment not in AUGMENT:
            self._reject("augment", self.augment, ", ".join(AUGMENT))
        if self.image_labels == "crop" and self.labels == "none":
            self._reject("image_labels", "'crop' with labels='none'", "labels that are read")
        if self.image_labels != "none" and self.labels == "seen":
            self._reject("image_labels", self.image_labels, "'none' with labels='seen'")
        if (self.labels == "listed") != (self.label_split is not None):
            self._reject("label_split", self.label_split, "a split, with labels='listed' only")
        if self.batch_size < 1:
            self._reject("batch_size", self.batch_size, "at least 1")
        self._check_sampling()

    def _check_sampling(self) -> None:
        if self.sampling not in SAMPLING:
            self._reject("sampling", self.sampling, ", ".join(SAMPLING))
        if self.oversample < 1 or (self.oversample > 1 and self.labels != "listed"):
            self._reject("oversample", self.oversample, "at least 1, and 1 without labels='listed'")
        weighted = self.sampling == "class_weighted"
        if weighted and (self.oversample > 1 or self.epoch_of is not None):
            self._reject("sampling", self.sampling, "uniform, with oversample or epoch_of")
        if self.epoch_length is not None and not (weighted and self.epoch_length > 0):
            self._reject(
                "epoch_length", self.epoch_length, "at least 1, with sampling='class_weighted' only"
            )
        if self.image_labels != "record":
            needing = {"sampling": weighted, "require_foreground": self.require_foreground}
            for name in [name for name, needs in needing.items() if needs]:
                self._reject(name, getattr(self, name), "image_labels='record' with it")

    def _reject(self, name: str, received: Any, accepted: str) -> None:
        raise UserError(
            f"The stream of split '{self.split}' is declared wrongly.",
            where=f"Stream.{name}",
            received=received,
            accepted=accepted,
        )


# Reading ----------------------------------------------------------------------------------------


class Source:
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
        index: records.Index,
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
        self._reader = records.RecordReader(index, dataset_dir or config.dataset_dir)
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
            if example.label[:8] == _PNG_SIGNATURE and example.label[25] == _PNG_PALETTE:
                raise RecordError(
                    f"The mask of {example.filename} is a palette image: decoding would give grey "
                    "values, not class ids.",
                    location=location,
                    key=tfexample.LABEL,
                    fix="make the records again with one of tfrecords_tools/build_*.py",
                )
        if self._labels in _NEEDING_MASKS and example.label is None:
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


def _decode(data: tf.Tensor, channels: int) -> tf.Tensor:
    # decode_image looks at the content: published records hold JPEG and PNG under one key.
    pixels = tf.io.decode_image(data, channels, expand_animations=False)
    return tf.ensure_shape(pixels, [None, None, channels])


def _decode_label(
    data: tf.Tensor, has_label: tf.Tensor, image: tf.Tensor, spec: DatasetSpec, labels: str
) -> tf.Tensor | None:
    """Returns the label map uint8 [H, W], ignored throughout where there is none."""
    if labels == "none":
        return None

    def decoded():
        return _decode(data, 1)[..., 0]

    if labels in _NEEDING_MASKS:
        label = decoded()
    else:
        ignored = tf.cast(spec.ignore_label, tf.uint8)
        label = tf.cond(has_label, decoded, lambda: tf.fill(tf.shape(image)[:2], ignored))
        label = tf.ensure_shape(label, [None, None])
    if spec.num_classes < 256:
        # On a GPU the cross entropy of an id beyond the classes is a silent NaN.
        wrong = (label >= spec.num_classes) & (label != spec.ignore_label)
        check = tf.debugging.Assert(
            ~tf.reduce_any(wrong), ["a mask holds an id beyond the class count"]
        )
        with tf.control_dependencies([check] if check is not None else []):
            label = tf.identity(label)
    return label


def _agreeing_label(
    label: tf.Tensor, may_use: tf.Tensor, image_label: tf.Tensor, spec: DatasetSpec
) -> tf.Tensor:
    """Returns a label map that may be used, after comparing it with the image-level labels."""
    found = augment.image_label_of(
        tf.cast(label, tf.int32),
        num_classes=spec.num_classes,
        first_class=spec.first_image_class,
        ignore_label=spec.ignore_label,
    )
    agrees = tf.reduce_all(found <= image_label) | ~may_use
    check = tf.debugging.Assert(agrees, ["a mask holds a class that the image-level labels lack"])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(label)


def _table_lookup(label: tf.Tensor, table: np.ndarray) -> tf.Tensor:
    """Returns what a table of 256 entries makes of label values, in the label's dtype."""
    return tf.cast(tf.gather(tf.constant(table, tf.int32), tf.cast(label, tf.int32)), label.dtype)


def _seen_labels(example: Mapping[str, tf.Tensor], spec: DatasetSpec) -> dict[str, tf.Tensor]:
    """Returns what an example with labels='seen' has instead of its whole label map."""
    split, ignore = spec.split, spec.ignore_label
    training = _table_lookup(example["label"], split.training_table(spec.num_classes, ignore))
    hole = UNLABELLED if split.background is None else split.background
    return {
        "label": tf.where(training == UNLABELLED, ignore, training),
        "candidate": (training == hole) & (example["valid"] > 0),
        "hidden_label": _table_lookup(
            example["label"], split.evaluation_table(spec.num_classes, ignore)
        ),
    }


def _resized(
    image: tf.Tensor, label: tf.Tensor | None, size: tf.Tensor, config: DataConfig
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The optional resize before augmentation: align corners, nearest for labels."""
    if config.min_resize_value is None:
        return image, label
    image = resize.resize_bilinear(tf.cast(image, tf.float32)[None], size)[0]
    if label is not None:
        label = resize.resize_nearest_align_corners(label[None], size)[0]
    return image, label


def _resized_size(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    return augment.resize_to_range_size(
        height,
        width,
        min_size=config.min_resize_value,
        max_size=config.max_resize_value,
        factor=config.resize_factor,
    )


def _threads(config: DataConfig) -> int:
    return config.data_threads or os.cpu_count() or 1


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # The files are ours to position; TensorFlow must not shard them again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


# Training ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slice:
    """Which part of each global batch an input pipeline delivers, and how.

    Attributes:
      pipeline: number of this input pipeline (worker).
      num_pipelines: how many there are.
      replicas: replicas that this one feeds; each takes a consecutive part.
    """

    pipeline: int = 0
    num_pipelines: int = 1
    replicas: int = 1


def _deeplab_views(source: Source, stream: Stream, config: DataConfig, mean_pixel):
    """Returns the function (image, label, size, seed) -> views of --augmentation=deeplab."""
    scales = augment.scale_factors(
        config.min_scale_factor, config.max_scale_factor, config.scale_factor_step_size
    )

    def views(image, label, size, seed):
        draws = augment.draw(
            seed,
            size,
            crop_size=config.train_crop_size,
            scales=scales,
            scale_range=(config.min_scale_factor, config.max_scale_factor),
            flip_probability=config.flip_probability,
            jitter_strength=config.jitter_strength,
        )
        return augment.training_views(
            image,
            label,
            draws,
            crop_size=config.train_crop_size,
            mean_pixel=mean_pixel,
            ignore_label=source.spec.ignore_label,
            strong="strong" in stream.views,
            cutout_half_size=config.cutout_half_size,
        )

    return views


def _composed_views(source: Source, stream: Stream, config: DataConfig, mean_pixel):
    """Returns the function (image, label, size, seed) -> views of --augmentation=composition."""
    # Here, because the other augmentations need neither OpenCV nor its time to load.
    from tfseg.data import composition

    composition.use_one_thread_per_call()
    scale_range = (config.min_scale_factor, config.max_scale_factor)
    augment.scale_factors(*scale_range, step=0)  # refuses wrong ones
    ops = config.augmentation_ops if stream.augment == "full" else 0
    if ops:
        _check_sides(source, config, composition.MAX_SIDE_PX)

    def compose(rng, image, label):
        draws = composition.draw(
            rng, ops=ops, scale_range=scale_range, flip_probability=config.flip_probability
        )
        return composition.compose(
            image,
            label,
            draws,
            crop_size=config.train_crop_size,
            mean_pixel=mean_pixel,
            ignore_label=source.spec.ignore_label,
            max_pixels=config.max_image_megapixels * 1e6,
        )

    return _numpy_views(source, config, compose)


def _resized_crop_views(source: Source, stream: Stream, config: DataConfig, mean_pixel):
    """Returns the function (image, label, size, seed) -> views of --augmentation=resized_crop."""
    from tfseg.data import resized_crop

    area = tuple(config.crop_area)
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise UserError(
            "The random areas of the crop are wrong.",
            where="--crop_area",
            received=",".join(map(str, area)),
            accepted="smallest,largest share of the image's area, above 0 and up to 1",
        )

    def crop(rng, image, label):
        draws = resized_crop.draw(
            rng,
            image.shape[:2],
            area=area,
            flip_probability=config.flip_probability,
            jitter_strength=config.jitter_strength,
        )
        return resized_crop.apply(image, label, draws, crop_size=config.train_crop_size)

    return _numpy_views(source, config, crop)


def _warped_crop_views(source: Source, stream: Stream, config: DataConfig, mean_pixel):
    """Returns the function (image, label, size, seed) -> views of --augmentation=warped_crop."""
    scale_range = (config.min_scale_factor, config.max_scale_factor)
    augment.scale_factors(*scale_range, step=0)  # refuses wrong ones
    crop_size = tuple(config.train_crop_size)
    size = warped_crop.warped_size(crop_size, config.augmentation_size)
    if min(size) < max(crop_size):
        raise UserError(
            "Images must be warped to no less than the crop.",
            where="--augmentation_size",
            received=config.augmentation_size,
            accepted=f"at least {max(crop_size)}, the longer side of --train_crop_size",
        )
    common = {"crop_size": crop_size, "size": size}
    filling = _padding(source, config, mean_pixel)

    def crop(rng, image, label):
        draws = warped_crop.draw(
            rng, scale_range=scale_range, flip_probability=config.flip_probability, **common
        )
        return warped_crop.apply(image, label, draws, **common, **filling)

    return _numpy_views(source, config, crop)


def _short_side_crop_views(source: Source, stream: Stream, config: DataConfig, mean_pixel):
    """Returns (image, label, size, seed) -> views of --augmentation=short_side_crop."""
    scale_range = (config.min_scale_factor, config.max_scale_factor)
    augment.scale_factors(*scale_range, step=0)  # refuses wrong ones
    crop_size = tuple(config.train_crop_size)
    filling = _padding(source, config, mean_pixel)

    def crop(rng, image, label):
        draws = short_side_crop.draw(
            rng,
            image.shape[:2],
            crop_size=crop_size,
            base_size=config.augmentation_size or min(crop_size),
            scale_range=scale_range,
            flip_probability=config.flip_probability,
            max_pixels=config.max_image_megapixels * 1e6,
        )
        return short_side_crop.apply(image, label, draws, crop_size=crop_size, **filling)

    return _numpy_views(source, config, crop)


def _padding(source: Source, config: DataConfig, mean_pixel: Sequence[float]) -> dict[str, Any]:
    """Returns what the two augmentations above fill padding with."""
    color = (0.0, 0.0, 0.0) if config.padding_color == "black" else tuple(mean_pixel)
    return {"padding_color": color, "ignore_label": source.spec.ignore_label}


_VIEWS_OF = {
    "deeplab": _deeplab_views,
    "composition": _composed_views,
    "resized_crop": _resized_crop_views,
    "warped_crop": _warped_crop_views,
    "short_side_crop": _short_side_crop_views,
}


def _numpy_views(source: Source, config: DataConfig, make: Callable):
    """Returns the function (image, label, size, seed) -> views of an augmentation on arrays.

    Args:
      source: keeps the errors.
      config: crop size.
      make: (NumPy generator, image uint8 [H, W, 3], label uint8 [H, W] or None) -> 'image',
        'valid', and 'label' where there is one.
    """
    crop_size = tuple(config.train_crop_size)
    types = {"image": tf.float32, "valid": tf.float32, "label": tf.int32}

    def made(seed, image, label=None):
        views = make(np.random.default_rng(seed), image, label)
        return [views[name] for name in types if name in views]

    def views(image, label, size, seed):
        if image.dtype != tf.uint8:  # after --min_resize_value
            image = tf.cast(tf.round(image), tf.uint8)
        given = [seed, image] if label is None else [seed, image, label]
        names = list(types)[: len(given)]
        arrays = tf.numpy_function(
            source.keeping_errors(made), given, [types[name] for name in names], stateful=False
        )
        shapes = {"image": [*crop_size, 3], "valid": crop_size, "label": crop_size}
        return {name: tf.ensure_shape(x, shapes[name]) for name, x in zip(names, arrays)}

    return views


def _check_sides(source: Source, config: DataConfig, max_side: int) -> None:
    """Refuses images that are too long to be warped.

    Raises:
      UserError: there is one; names it.
    """
    for height, width, name in zip(source.index.height, source.index.width, source.index.ids):
        size = _resized_size(int(height), int(width), config)
        if max(size) > max_side:
            raise UserError(
                f"Image {name} of split '{source.split}' is too long to be rotated.",
                where="--augmentation=composition",
                received=f"{size[0]}x{size[1]} pixels",
                accepted=f"sides of at most {max_side} pixels",
                fix="make the records from smaller images, or set --min_resize_value and "
                "--max_resize_value",
            )


def _training_example(source: Source, stream: Stream, config: DataConfig, settings: dict):
    """Returns the function position -> example of one stream."""
    spec, order = source.spec, settings["order"]
    views = _VIEWS_OF[config.augmentation](source, stream, config, settings["mean_pixel"])

    def read(position):
        epoch, _, repeat = order.at(int(position))
        i = source.good_record(lambda k: order.at(int(position) + k)[1])
        height, width = int(source.index.height[i]), int(source.index.width[i])
        size = np.array(_resized_size(height, width, config), np.int32)
        # Each time that a record comes round in an epoch it is augmented differently.
        number = i + repeat * source.index.size
        seed = sampling.generator(
            settings["seed"], settings["drawn_by"], epoch, number, 1
        ).integers(np.iinfo(np.int64).max, size=2)
        return (*source.fetch(i), np.int64(i), size, seed)

    types = (tf.string, tf.string, tf.bool, tf.bool, tf.float32, tf.int64, tf.int32, tf.int64)

    def make(position):
        image, label, has_label, may_use, image_label, index, size, seed = tf.numpy_function(
            source.keeping_errors(read), [position], types, stateful=False
        )
        size, seed = tf.ensure_shape(size, [2]), tf.ensure_shape(seed, [2])
        image = _decode(image, 3)
        label = _decode_label(label, has_label, image, spec, stream.labels)
        if stream.image_labels == "record" and stream.labels in ("required", "optional", "listed"):
            label = _agreeing_label(label, may_use, image_label, spec)
        image, label = _resized(image, label, size, config)
        example = views(image, label, size, seed)
        example["index"] = tf.ensure_shape(index, [])
        example["has_label"] = tf.ensure_shape(has_label, [])
        if stream.image_labels == "record":
            example["image_label"] = tf.ensure_shape(image_label, [spec.num_image_classes])
        elif stream.image_labels == "crop":
            example["image_label"] = augment.image_label_of(
                example["label"],
                num_classes=spec.num_classes,
                first_class=spec.first_image_class,
                ignore_label=spec.ignore_label,
            )
        if stream.labels in ("hidden", "listed"):
            example["hidden_label"] = example.pop("label")
        if stream.labels == "seen":
            example |= _seen_labels(example, spec)
        if stream.labels == "listed":
            may_use = tf.ensure_shape(may_use, [])
            example["has_label"] = may_use
            example["label"] = tf.where(may_use, example["hidden_label"], spec.ignore_label)
        return example

    # Plain graph code: converting it would only take time.
    return tf.autograph.experimental.do_not_convert(make)


def _positions(stream: Stream, part: Slice, start_step: int) -> tf.data.Dataset:
    """Positions of this pipeline's share of each global batch, from a step on."""
    share = stream.batch_size // part.num_pipelines

    def position(k):
        return (k // share) * stream.batch_size + part.pipeline * share + k % share

    numbers = tf.data.Dataset.range(start_step * share, _MANY)
    return numbers.map(tf.autograph.experimental.do_not_convert(position))


def drawn_by(streams: Mapping[str, Stream]) -> dict[str, str]:
    """Returns, by stream, the name that its order and augmentation are drawn by, beside the seed.

    The name of its split. Where an earlier stream has that name, the stream's own name is added:
    two streams on one split would else have the same images in every step, with the same crop.
    """
    names: dict[str, str] = {}
    for name, stream in streams.items():
        drawn = stream.split
        while drawn in names.values():
            drawn += f"/{name}"
        names[name] = drawn
    return names


def make_train_dataset(
    streams: Mapping[str, Stream],
    sources: Mapping[str, Source],
    config: DataConfig,
    *,
    mean_pixel: Sequence[float],
    seed: int,
    start_step: int = 0,
    part: Slice = Slice(),
) -> tf.data.Dataset:
    """Makes the endless data set of a training run.

    Args:
      streams: what the method wants.
      sources: where each stream is read from, by the same names; they keep errors.
      config: crop size, scales, threads.
      mean_pixel: fills padding.
      seed: of order and augmentation.
      start_step: the first step whose batch is delivered.
      part: this input pipeline's part of every batch.

    Returns:
      Elements `{stream: {key: tensor}}`, one for each replica and step, in turn.

    Raises:
      UserError: a batch cannot be divided among the replicas, the scales are out of order, or an
        image is too long for the augmentation.
    """
    datasets, names = {}, drawn_by(streams)
    for name, stream in streams.items():
        replicas = part.num_pipelines * part.replicas
        if stream.batch_size % replicas:
            raise UserError(
                f"The batch of stream '{name}' cannot be divided among {replicas} replicas.",
                where="--train_batch_size",
                received=stream.batch_size,
                accepted=f"a multiple of {replicas}",
            )
        settings = {
            "order": sampling.Order(names[name], sources[name].epoch, seed),
            "drawn_by": names[name],
            "seed": seed,
            "mean_pixel": mean_pixel,
        }
        try:
            make = _training_example(sources[name], stream, config, settings)
        except ValueError as error:
            raise UserError(
                f"The random scales are wrong: {error}.",
                where="--min_scale_factor, --max_scale_factor",
            ) from None
        datasets[name] = (
            _positions(stream, part, start_step)
            .map(make, num_parallel_calls=_threads(config), deterministic=True)
            .batch(stream.batch_size // replicas, drop_remainder=True)
        )
    dataset = tf.data.Dataset.zip(datasets).prefetch(2 * part.replicas)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return dataset.with_options(_options())


def _usable_masks(
    stream: Stream,
    index: records.Index,
    streams: Mapping[str, Stream],
    spec: DatasetSpec,
    config: DataConfig,
) -> np.ndarray:
    """Returns which records of a stream with labels='listed' have a usable mask, bool [n].

    Raises:
      UserError: images of `label_split` would be in no stream at all.
    """
    listed = records.load_index(config.dataset_dir, stream.label_split, spec).ids
    usable = _is_among(index.ids, listed) & index.has_mask
    missing = listed[~_is_among(listed, index.ids[usable])]
    if missing.size and all(other.split != stream.label_split for other in streams.values()):
        raise UserError(
            f"{missing.size} of {listed.size} images of split '{stream.label_split}' are not in "
            f"split '{stream.split}' with their masks, which would not be used.",
            where=f"--train_split={stream.label_split}, --train_split_cls={stream.split}",
            received=f"{', '.join(missing[:3])}{' ...' if missing.size > 3 else ''}",
            accepted="a second split whose records hold the images of the first, masks included",
        )
    return usable


def _is_among(ids: np.ndarray, wanted: Iterable[str]) -> np.ndarray:
    """Returns which ids are in a collection, bool [n]; np.isin compares every two objects."""
    wanted = set(wanted)
    return np.fromiter((image_id in wanted for image_id in ids), np.bool_, len(ids))


def make_sources(
    streams: Mapping[str, Stream], spec: DatasetSpec, config: DataConfig
) -> dict[str, Source]:
    """Opens the split of every stream.

    Raises:
      UserError: a split is not there, empty or truncated, or lacks masks, image-level labels or
        classes in them; a stream wants views that the augmentation does not make, or the labels of
        seen classes of a data set without a class split; --drop_images names no image or all.
    """
    indexes, all_lost = {}, {}
    for name, stream in streams.items():
        _check_views(name, stream, config)
        _check_has_split(name, stream, spec)
        lost: list[RecordError] = []
        if stream.dataset_dir is not None:
            _check_same_classes(stream.dataset_dir, spec, config)
        index = records.load_index(
            stream.dataset_dir or config.dataset_dir,
            stream.split,
            spec,
            on_damage=lost.append if config.skip_bad_records else None,
        )
        _check_masks(name, stream, index)
        if stream.image_labels == "record":
            _check_image_level_labels(name, stream, index, config)
        indexes[name], all_lost[name] = index, lost
    usable = {
        name: _usable_masks(stream, indexes[name], streams, spec, config)
        for name, stream in streams.items()
        if stream.label_split is not None
    }
    dropped = _dropped_records(indexes, config)
    return {
        name: Source(
            stream.split,
            indexes[name],
            spec,
            config,
            labels=stream.labels,
            image_labels=stream.image_labels,
            dataset_dir=stream.dataset_dir,
            lost=all_lost[name],
            usable_masks=usable.get(name),
            epoch=_epoch(name, streams, indexes, usable, dropped, spec),
        )
        for name, stream in streams.items()
    }


def _dropped_records(
    indexes: Mapping[str, records.Index], config: DataConfig
) -> dict[str, np.ndarray]:
    """Returns the numbers of the records of each stream that --drop_images leaves out.

    Raises:
      UserError: there is no such file, it names no image of any stream, or all of one.
    """
    if config.drop_images is None:
        return {name: np.zeros(0, np.int64) for name in indexes}
    where = f"--drop_images={config.drop_images}"
    try:
        with open(config.drop_images, encoding="utf-8-sig") as file:
            ids = [line.strip() for line in file if line.strip()]
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise UserError(
            "The list of images to leave out cannot be read.",
            where=where,
            accepted="a text file with one id in a line",
        ) from None
    dropped = {name: np.flatnonzero(_is_among(index.ids, ids)) for name, index in indexes.items()}
    if not any(numbers.size for numbers in dropped.values()):
        raise UserError(
            "None of the images to leave out is in the training split.",
            where=where,
            received=f"{', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''}",
            accepted=f"ids such as {next(iter(indexes.values())).ids[0]}",
        )
    for name, numbers in dropped.items():
        if numbers.size == indexes[name].size:
            raise UserError(f"Every image of stream '{name}' is to be left out.", where=where)
    return dropped


def _epoch(name: str, streams, indexes, usable, dropped, spec: DatasetSpec) -> sampling.Epoch:
    """Returns what an epoch of a stream is drawn from.

    Raises:
      UserError: class weights leave no image.
    """
    stream, index = streams[name], indexes[name]
    if stream.sampling == "class_weighted":
        return _class_weighted_epoch(name, stream, index, dropped[name], spec)
    epoch = sampling.uniform(index.size)
    if stream.oversample > 1:
        epoch = sampling.oversampled(usable[name], stream.oversample)
    epoch = sampling.without(epoch, dropped[name])
    if stream.epoch_of is not None:
        other = _epoch(stream.epoch_of, streams, indexes, usable, dropped, spec)
        epoch = dataclasses.replace(epoch, length=other.length)
    return epoch


def _class_weighted_epoch(
    name: str, stream: Stream, index: records.Index, dropped: np.ndarray, spec: DatasetSpec
) -> sampling.Epoch:
    """Returns the epoch of draws that prefer rare classes.

    Raises:
      UserError: no image can be drawn.
    """
    known = spec.class_names[spec.first_image_class :]
    person = sampling.UNCOUNTED_CLASS
    # An image without labels is never drawn.
    image_labels = index.image_labels.copy()
    image_labels[dropped] = 0
    try:
        return sampling.class_weighted(
            image_labels,
            length=stream.epoch_length or index.size - dropped.size,
            clutter_penalty=stream.clutter_penalty,
            uncounted=known.index(person) if person in known else None,
        )
    except ValueError:
        raise UserError(
            f"No image of split '{stream.split}' can be drawn by its classes.",
            where=f"stream '{name}'",
            received="image-level labels that name no class, or only "
            f"'{person}', which counts for nothing with a clutter penalty above 1",
            fix="sample uniformly, or check the records with tfrecords_tools/check.py",
        ) from None


def _check_masks(name: str, stream: Stream, index: records.Index) -> None:
    """Insists on masks where the stream needs them.

    Raises:
      UserError: there is none.
    """
    if stream.labels in _NEEDING_MASKS and not index.has_mask.any():
        raise UserError(
            f"No image of split '{stream.split}' has a mask.",
            where=f"stream '{name}'",
            accepted="a split with masks",
            fix="choose another --train_split, or make the records with --masks_dir",
        )
    if stream.image_labels == "crop" and not index.has_mask.any():
        raise UserError(
            f"No image of split '{stream.split}' has a mask to take image-level labels from.",
            where=f"stream '{name}', --image_label_source=crop",
            accepted="a split with masks",
            fix="use --image_label_source=record, with image-level labels in the records",
        )


def _check_image_level_labels(
    name: str, stream: Stream, index: records.Index, config: DataConfig
) -> None:
    """Insists on image-level labels, and on a class in them where the stream wants one.

    Raises:
      UserError: images lack them; names the first and counts them. With --skip_bad_records some
        may: they are left out as they come.
    """
    known = index.has_image_labels
    if not known.all() and not (config.skip_bad_records and known.any()):
        from_masks = ", or take the labels from the masks as published: "
        from_masks += "--image_label_source=crop"
        raise UserError(
            f"{_first_of(~known, index, stream.split)} no image-level labels.",
            where=f"stream '{name}'",
            accepted="a split with image-level labels",
            fix="make the records with --image_labels, choose another --train_split_cls, or, for "
            "PseudoSeg, leave out --weakly" + (from_masks if index.has_mask.any() else ""),
        )
    empty = known & ~index.image_labels.any(1)
    if stream.require_foreground and empty.any():
        raise UserError(
            f"{_first_of(empty, index, stream.split)} image-level labels that name no class.",
            where=f"stream '{name}'",
            received=", ".join(index.ids[empty][:8]) + (" ..." if empty.sum() > 8 else ""),
            accepted="images that show at least one class besides the background",
            fix="take these ids out of the split's list, or correct their labels, and make its "
            "records again",
        )


def _first_of(which: np.ndarray, index: records.Index, split: str) -> str:
    """Returns the beginning of a sentence about some records: 'Image x of split y has'."""
    first, count = index.ids[np.argmax(which)], int(which.sum())
    if count == index.size:
        return f"Every image of split '{split}' has"
    if count == 1:
        return f"Image {first} of split '{split}' has"
    return f"{count} of {index.size} images of split '{split}', the first of them {first}, have"


def _check_views(name: str, stream: Stream, config: DataConfig) -> None:
    """Insists on one view where the augmentation makes one.

    Raises:
      UserError: the stream wants two.
    """
    if config.augmentation != "deeplab" and "strong" in stream.views:
        raise UserError(
            f"The method needs a weak and a strong view of the images of stream '{name}'; "
            f"--augmentation={config.augmentation} makes one view.",
            where="--augmentation",
            received=config.augmentation,
            accepted="deeplab, with this method",
            fix="leave out --augmentation, or choose a --method that takes one view of each image, "
            "such as supervised",
        )


def _check_has_split(name: str, stream: Stream, spec: DatasetSpec) -> None:
    """Insists on a class split where the stream wants the labels of seen classes.

    Raises:
      UserError: the data set has none.
    """
    if stream.labels == "seen" and spec.split is None:
        raise UserError(
            f"Stream '{name}' needs to know which classes are seen.",
            where="--class_split",
            accepted="the name of a published split, or a JSON file",
        )


def _check_same_classes(dataset_dir: str, spec: DatasetSpec, config: DataConfig) -> None:
    """Compares the classes of a second directory with those of the first.

    Raises:
      UserError: they differ.
    """
    other = load_spec(dataset_dir, config.dataset)
    if (other.class_names, other.ignore_label) != (spec.class_names, spec.ignore_label):
        raise UserError(
            "The two splits have different classes.",
            where=f"--dataset_dir={config.dataset_dir}, --dataset_dir_cls={dataset_dir}",
            received=f"{other.num_classes} classes: {', '.join(other.class_names[:8])} ...",
            accepted=f"{spec.num_classes} classes: {', '.join(spec.class_names[:8])} ...",
            fix="make the second split's records with the class names of the first",
        )


# Evaluation -------------------------------------------------------------------------------------


# Crop size with which images are evaluated as they are.
UNPADDED = (0, 0)


def padded_size(size: tuple[int, int], crop_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size at which an image is evaluated.

    The crop size where the image fits in; else each longer side is rounded up to a multiple of 32,
    plus 1, which every output stride accepts. With a crop size of `UNPADDED` its own size.
    """
    if crop_size == UNPADDED:
        return size
    return tuple(
        crop if side <= crop else -(-(side - 1) // 32) * 32 + 1
        for side, crop in zip(size, crop_size)
    )


def make_eval_dataset(
    split: str,
    spec: DatasetSpec,
    config: DataConfig,
    *,
    mean_pixel: Sequence[float],
    crop_size: tuple[int, int],
    batch_size: int,
    max_side: int | None = None,
    resize_to: tuple[str, int] | None = None,
) -> "EvalDataset":
    """Makes the data set of one pass over a split, every record exactly once.

    Images of one padded size share batches; the last batch of each size is filled up with rows of
    weight 0, so that all batches are full. So no image's prediction depends on its neighbours.

    Args:
      split: name of the split.
      spec: the data set.
      config: directory, resize settings, limits, threads.
      mean_pixel: fills padding.
      crop_size: images are padded to this, see `padded_size`; larger ones are taken whole.
      batch_size: rows of a batch.
      max_side: images are halved while a side has more pixels than this; None: they are not.
      resize_to: ('warp', pixels): images and masks are brought to this many pixels on both sides;
        ('short_side', pixels): on the shorter side. None: they are not.

    Returns:
      An iterable of batches (vocabulary above).

    Raises:
      UserError: the split is not there, empty or truncated, or images are to be resized in two
        ways; on iterating, a damaged record.

    Source: `resize_to`: STRICT specification 2.4; ZS3 specification 2.6.
    """
    if resize_to is not None and (max_side, config.min_resize_value) != (None, None):
        raise UserError(
            "Images are to be resized in two ways.",
            where="--eval_resize, --max_side, --min_resize_value",
            accepted="one of them",
        )
    index = records.load_index(config.dataset_dir, split, spec)
    strict = dataclasses.replace(config, skip_bad_records=False)
    source = Source(split, index, spec, strict, labels="optional")
    groups: dict[tuple[int, int], list[int]] = collections.defaultdict(list)

    def size_of(height: int, width: int) -> tuple[int, int]:
        if resize_to is None:
            return _halved_size(_resized_size(height, width, config), max_side)
        kind, side = resize_to
        return (
            (side, side) if kind == "warp" else short_side_crop.scaled_size((height, width), side)
        )

    sizes = [size_of(int(height), int(width)) for height, width in zip(index.height, index.width)]
    for i, size in enumerate(sizes):
        groups[padded_size(size, crop_size)].append(i)

    def resized(image, label, size):
        if resize_to is not None:
            return _resized_on_host(image, label, size)
        if max_side is None:
            return _resized(image, label, size, config)
        label = resize.resize_nearest_align_corners(label[None], size)[0]
        return resize.resize_pillow(image[None], size)[0], label

    batches = _eval_batches(source, config, mean_pixel, groups, batch_size, sizes, resized)
    return EvalDataset(source, batches)


def _resized_on_host(
    image: tf.Tensor, label: tf.Tensor, size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Resizes uint8 [H, W, 3] and uint8 [H, W] as Pillow does, for testing as published."""

    def resized(image, label, size):
        return pixels.resize_image(image, size), pixels.resize_label(label, size)

    image, label = tf.numpy_function(
        resized, [image, label, size], (tf.uint8, tf.uint8), stateful=False
    )
    return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None])


def _halved_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Returns a size after halving both sides until none is above `max_side`, None: as it is."""
    while max_side is not None and max(size) > max_side:
        size = tuple(max(1, side // 2) for side in size)
    return size


def _eval_batches(
    source, config, mean_pixel, groups, batch_size, image_sizes, resized
) -> tf.data.Dataset:
    """Batches of the images of each group, all padded to the size that is the group's key."""
    numbers, weights, sizes = [], [], []
    for size, members in groups.items():
        surplus = -len(members) % batch_size
        numbers += members + members[:1] * surplus
        weights += [1.0] * len(members) + [0.0] * surplus
        sizes += [size] * (len(members) + surplus)
    only_size = sizes[0] if len(groups) == 1 else None
    spec = source.spec
    table = spec.split and spec.split.evaluation_table(spec.num_classes, spec.ignore_label)

    def read(i):
        i = int(i)
        image, label, has_label, *_ = source.fetch(i)
        return image, label, has_label, np.array(image_sizes[i], np.int32)

    def make(i, weight, size):
        image, label, has_label, shape = tf.numpy_function(
            source.keeping_errors(read), [i], (tf.string, tf.string, tf.bool, tf.int32)
        )
        image = _decode(image, 3)
        label = _decode_label(label, has_label, image, source.spec, "optional")
        if table is not None:
            label = _table_lookup(label, table)
        image, label = resized(image, label, tf.ensure_shape(shape, [2]))
        example = augment.padded_view(
            image,
            label,
            size=size if only_size is None else only_size,
            mean_pixel=mean_pixel,
            ignore_label=source.spec.ignore_label,
        )
        has_label = tf.ensure_shape(has_label, [])
        return {**example, "index": i, "weight": weight, "has_label": has_label}

    columns = (np.array(numbers), np.array(weights, np.float32), np.array(sizes, np.int32))
    return (
        tf.data.Dataset.from_tensor_slices(columns)
        .map(
            tf.autograph.experimental.do_not_convert(make),
            num_parallel_calls=_threads(config),
            deterministic=True,
        )
        .batch(batch_size, drop_remainder=True)
        .prefetch(2)
        .with_options(_options())
    )


class EvalDataset:
    """One pass over a split; errors of its records are raised as the user's."""

    def __init__(self, source: Source, batches: tf.data.Dataset):
        self._source, self._batches = source, batches

    def __iter__(self):
        try:
            yield from self._batches
        except tf.errors.OpError:
            self._source.explain()
            raise
