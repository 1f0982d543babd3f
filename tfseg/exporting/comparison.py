"""How far an exported file agrees with the checkpoint that it was made of, on the same images."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg import metrics
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.exporting.pictures import Picture
from tfseg.inference.decisions import Decision
from tfseg.inference.predictor import Predictor
from tfseg.inference.scores import summarize
from tfseg.inference.zero_label import classes_taking_part

# uint8 RGB [H, W, 3] to labels, integers [H, W], and probabilities, float32 [H, W, C].
Segment = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an exported file must keep to.

    Attributes:
      equal_pixels: smallest share of pixels with the checkpoint's label; None: any.
      miou_loss: how far the mIoU may lie below the checkpoint's; None: not asked for.
    """

    equal_pixels: float | None = None
    miou_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
      images: how many there were.
      equal_pixels: share of pixels with the same label.
      largest_difference: of any probability.
      milliseconds, checkpoint_milliseconds: median time of an image.
      miou, checkpoint_miou: over the images; None where some have no mask.
    """

    images: int
    equal_pixels: float
    largest_difference: float
    milliseconds: float
    checkpoint_milliseconds: float
    miou: float | None = None
    checkpoint_miou: float | None = None

    def check(self, limits: Limits, what: str) -> None:
        """Insists on limits.

        Args:
          limits: the limits.
          what: the file, for the message.

        Raises:
          UserError: the file does not keep to them.
        """
        if limits.equal_pixels is not None and self.equal_pixels < limits.equal_pixels:
            raise UserError(
                f"The {what} gives other labels than the checkpoint; nothing was written.",
                received=f"{self.equal_pixels:.6f} of the pixels are equal",
                accepted=f"at least {limits.equal_pixels}",
                fix="export as another --format, and report this network as one that this format "
                "gets wrong",
            )
        if limits.miou_loss is None or self.miou is None:
            return
        if self.miou < self.checkpoint_miou - limits.miou_loss:
            raise UserError(
                f"The {what} is worse than the checkpoint; nothing was written.",
                received=f"mIoU {self.miou:.4f} on {self.images} images, {self.equal_pixels:.4f} "
                "of the pixels equal",
                accepted=f"at least {self.checkpoint_miou - limits.miou_loss:.4f}: the "
                f"checkpoint's {self.checkpoint_miou:.4f} less {limits.miou_loss}",
                fix="take a --tflite_quantization with more bits, raise --int8_agreement, or "
                "compare on more images (--compare_images)",
            )


def of_checkpoint(network: Any, decision: Decision) -> Segment:
    """Returns how the network itself segments an image, as the other programs use it.

    Args:
      network: of `build_model`.
      decision: which classes may be answered.
    """
    predict = tf.function(
        Predictor(network, wanted=("labels", "probs"), decision=decision),
        input_signature=[tf.TensorSpec([1, None, None, 3], tf.float32)],
        autograph=False,
    )

    def segment(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        padded = np.empty([1, *network.valid_size(height, width), 3], np.float32)
        padded[:] = network.mean_pixel
        padded[0, :height, :width] = image
        found = predict(padded)
        return (
            found.labels[0].numpy()[:height, :width],
            found.probs[0].numpy()[:height, :width],
        )

    return segment


def compare(
    checkpoint: Segment, exported: Segment, pictures: Iterable[Picture], spec: DatasetSpec
) -> Comparison:
    """Shows images to the checkpoint and to the exported file, in turns.

    Args:
      checkpoint, exported: both.
      pictures: the images; padding counts nowhere.
      spec: the data set.
    """
    matrices = np.zeros([2, *(spec.num_classes,) * 2], np.int64)
    times: list[tuple[float, float]] = []
    equal = pixels = 0
    largest, have_masks = 0.0, True
    for picture in pictures:
        if not times:
            # Whatever happens on first use is no part of an image's time.
            checkpoint(picture.image), exported(picture.image)
        rows, columns = picture.shown
        found = []
        for segment in (checkpoint, exported):
            start = time.perf_counter()
            labels, probs = segment(picture.image)
            found.append(
                (time.perf_counter() - start, labels[:rows, :columns], probs[:rows, :columns])
            )
        (before, ours, our_probs), (after, theirs, their_probs) = found
        times.append((before, after))
        equal += int((ours == theirs).sum())
        pixels += ours.size
        largest = max(largest, float(np.abs(our_probs - their_probs).max()))
        have_masks &= picture.label is not None
        if picture.label is not None:
            for matrix, labels in zip(matrices, (ours, theirs)):
                matrix += metrics.confusion_matrix(
                    picture.label, labels, spec.num_classes, ignore_label=spec.ignore_label
                )
    milliseconds = 1000.0 * np.median(times, axis=0)
    result = Comparison(
        len(times), equal / pixels, largest, float(milliseconds[1]), float(milliseconds[0])
    )
    if not have_masks:
        return result
    mious = [summarize(m, spec, classes=classes_taking_part(spec))["miou"] for m in matrices]
    return dataclasses.replace(result, checkpoint_miou=mious[0], miou=mious[1])
