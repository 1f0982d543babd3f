"""What is wrong with one record: its image, mask and image-level labels."""

import dataclasses
import hashlib

import numpy as np
from PIL import Image

from tfrecords_tools.masks import classes_in
from tfseg.data import colormap, framing, tfexample, writing
from tfseg.data.encoded_image import open_image
from tfseg.data.framing import Location, RecordError
from tfseg.data.index import Row
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """A record to be looked at."""

    path: str
    record: int
    offset: int
    length: int

    @property
    def location(self) -> Location:
        return Location(self.path, self.record, self.offset)


@dataclasses.dataclass
class Finding:
    """What was found in one record."""

    row: Row | None = None
    picture: bytes = b""
    pixels: np.ndarray | None = None
    is_pseudo: bool = False
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def one_line(error: UserError) -> str:
    """Returns an error without the next step, for a list of problems."""
    parts = [str(error.where or ""), error.what.rstrip(".")]
    if error.received is not None:
        parts.append(f"received {error.received}")
    if error.accepted is not None:
        parts.append(f"accepted {error.accepted}")
    return ": ".join(p for p in parts[:2] if p) + "".join(f"; {p}" for p in parts[2:])


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Looks at one record; sent to the worker processes."""

    spec: DatasetSpec
    max_megapixels: float

    def __call__(self, task: Task) -> Finding:
        finding = Finding()
        try:
            data = framing.read_record(task.path, task.offset, task.length)
            example = tfexample.decode(data, task.location)
        except RecordError as error:
            finding.problems.append(("unusable record", one_line(error)))
            return finding
        where = f"{task.location}, id {example.filename}"
        finding.picture = hashlib.blake2b(example.image, digest_size=16).digest()
        labels = self._image_labels(example, where, finding)
        finding.is_pseudo = example.is_pseudo
        if example.is_pseudo and example.label is None:
            finding.problems.append(("pseudo label without a mask", where))
        finding.row = Row(
            example.filename, example.height, example.width, labels, example.label is not None
        )
        image = self._decode(example.image, "image", task, where, finding)
        if image is not None and image.mode != "RGB":
            finding.notes.append(f"image of mode {image.mode} (decoders make it RGB)")
        if example.label is not None:
            mask = self._decode(example.label, "mask", task, where, finding)
            if mask is not None:
                self._check_mask(mask, example, labels, where, finding)
        return finding

    def _image_labels(
        self, example: tfexample.Example, where: str, finding: Finding
    ) -> tuple[int, ...] | None:
        if example.image_labels is None:
            return None
        spec = self.spec
        valid = range(spec.first_image_class, spec.num_classes)
        wrong = [int(i) for i in example.image_labels if int(i) not in valid]
        if wrong:
            finding.problems.append(
                (
                    "image-level label out of range",
                    f"{where}: {', '.join(map(str, wrong))}; accepted {valid[0]} to {valid[-1]}",
                )
            )
        return tuple(int(i) for i in example.image_labels if int(i) in valid)

    def _decode(
        self, data: bytes, what: str, task: Task, where: str, finding: Finding
    ) -> Image.Image | None:
        key = tfexample.IMAGE if what == "image" else tfexample.LABEL
        try:
            tfexample.check_pixels(
                data, max_megapixels=self.max_megapixels, location=task.location, key=key
            )
            image = open_image(data)
            image.load()
            return image
        except RecordError as error:
            finding.problems.append((f"{what} too big", one_line(error)))
        except Exception as error:  # Pillow's decoders raise many kinds
            finding.problems.append(
                (f"{what} cannot be decoded", f"{where}: {type(error).__name__}: {error}")
            )
        return None

    def _check_mask(
        self,
        mask: Image.Image,
        example: tfexample.Example,
        labels: tuple[int, ...] | None,
        where: str,
        finding: Finding,
    ) -> None:
        bits = example.label[24] if mask.format == "PNG" else 8
        if mask.mode != "L" or bits != 8:
            kind = {"P": "palette mask"}.get(mask.mode, "mask that is not one 8-bit channel")
            finding.problems.append(
                (
                    kind,
                    f"{where}: {mask.format} of mode {mask.mode}, {bits} bits; decoders turn it "
                    "into grey values, not class ids: store class ids in one 8-bit channel",
                )
            )
            return
        if mask.format != "PNG":
            finding.notes.append(f"mask stored as {mask.format}: compression may change ids")
        ids = np.asarray(mask)
        finding.pixels = writing.count_pixels(ids, self.spec)
        values = np.unique(ids)
        wrong = values[(values >= self.spec.num_classes) & (values != self.spec.ignore_label)]
        if len(wrong):
            hint = ""
            if set(values.tolist()) <= _grey_of_palette(self.spec):
                hint = "; they are grey values of palette colours: the mask was read as a picture"
            finding.problems.append(
                (
                    "mask ids out of range",
                    f"{where}: {', '.join(map(str, wrong[:20]))}; accepted 0 to "
                    f"{self.spec.num_classes - 1} and {self.spec.ignore_label}{hint}",
                )
            )
        if labels is not None:
            in_mask = set(classes_in(ids, self.spec))
            absent = sorted(in_mask - set(labels))
            if absent:
                names = ", ".join(self.spec.class_names[i] for i in absent)
                hint = " (pseudo label: predict with --use_image_labels)"
                finding.problems.append(
                    (
                        "class in the mask but not in the image-level labels",
                        f"{where}: {names}{hint if example.is_pseudo else ''}",
                    )
                )
            if set(labels) - in_mask:
                finding.notes.append("image-level label without a pixel in the mask (not wrong)")


def _grey_of_palette(spec: DatasetSpec) -> set[int]:
    """Returns the grey values that a picture of the mask in its colours would have.

    Masks without a palette in dataset.json mostly have that of PASCAL VOC.
    """
    colors = colormap.table(spec.palette or ())
    colors = np.concatenate([colors[: spec.num_classes], [colormap.VOID]])
    return set(np.asarray(Image.fromarray(colors[None].astype(np.uint8)).convert("L"))[0].tolist())
