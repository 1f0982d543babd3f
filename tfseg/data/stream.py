"""What a method asks of the data: streams of batches, by name."""

import dataclasses
from typing import Any

from tfseg.errors import UserError

LABELS = ("required", "optional", "hidden", "listed", "seen", "none")
# With these a record without a mask is an error.
NEEDING_MASKS = ("required", "seen")
IMAGE_LABELS = ("none", "record", "crop")
AUGMENT = ("full", "light")
SAMPLING = ("uniform", "class_weighted")


def strong_keys(count: int) -> tuple[str, ...]:
    """Returns the batch's keys of some strong views: 'image_strong', 'image_strong_2', ..."""
    return ("image_strong", *(f"image_strong_{i}" for i in range(2, count + 1)))[:count]


@dataclasses.dataclass(frozen=True)
class Stream:
    """What a method asks of the data; the pipeline obeys.

    Attributes:
      split: name of the split.
      batch_size: examples in a step, over all replicas.
      strong_views: how many strong views there are of each crop, besides the weak one.
      boxes: each strong view has a box of CutMix (`data.cutmix`), as `boxes`; needs strong views.
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
      order_of: another stream, whose order this one's epochs have, with an augmentation of its own:
        with the same split, the same images once more; with another, its records in a circle, so
        that record j of that split always comes with record j modulo n of this one. A split of more
        records than that one keeps an epoch and an order of its own, so that none is left out.
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
    strong_views: int = 0
    boxes: bool = False
    labels: str = "required"
    image_labels: str = "none"
    dataset_dir: str | None = None
    label_split: str | None = None
    epoch_of: str | None = None
    order_of: str | None = None
    augment: str = "full"
    oversample: int = 1
    sampling: str = "uniform"
    epoch_length: int | None = None
    clutter_penalty: float = 1.0
    require_foreground: bool = False

    def __post_init__(self):
        if self.strong_views < 0:
            self._reject("strong_views", self.strong_views, "0 or more")
        if self.boxes and not self.strong_views:
            self._reject("boxes", self.boxes, "boxes of strong views")
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
        follows = self.epoch_of is not None or self.order_of is not None
        if weighted and (self.oversample > 1 or follows):
            self._reject("sampling", self.sampling, "uniform, with oversample, epoch_of, order_of")
        if self.epoch_of is not None and self.order_of is not None:
            self._reject("epoch_of", self.epoch_of, "None, with order_of")
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
