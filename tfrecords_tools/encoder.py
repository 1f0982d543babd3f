"""The step to one record: from an image file and a mask to bytes and an index row."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfrecords_tools.file_finder import FileFinder
from tfrecords_tools.images import Embedded, orient, read_image, size_as_stored
from tfrecords_tools.masks import classes_in, encode_mask, map_ids, read_mask
from tfseg.data import tfexample, writing
from tfseg.data.index import Row
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Where one record comes from.

    Attributes:
      id: `image/filename`.
      image: path, or the image inside another file.
      mask: path, or whatever the converter's mask reader takes; None: written without a mask.
      image_labels: class ids known from elsewhere; None: take those of the mask, if there is one.
      notes: counted over the split.
    """

    id: str
    image: str | Embedded
    mask: Any = None
    image_labels: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


MaskReader = Callable[[Any, tuple[int, int]], tuple[np.ndarray, list[str]]]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns a `ImageSource` into a record; sent to the worker processes.

    Attributes:
      spec: the classes.
      label_map: from -> to of mask ids, or None.
      max_megapixels: cap for images and masks.
      exif_orientation: auto, apply or ignore.
      mask_reader: (mask of a `ImageSource`, (height, width) of the stored image) -> ids and notes;
        None: `read_mask` of a path.
    """

    spec: DatasetSpec
    label_map: Mapping[int, int] | None = None
    max_megapixels: float = 64.0
    exif_orientation: str = "auto"
    mask_reader: MaskReader | None = None

    def __call__(self, source: ImageSource) -> writing.Encoded:
        data, image, notes = read_image(source.image, max_megapixels=self.max_megapixels)
        ids = None
        if source.mask is not None:
            where = source.mask
            if not isinstance(source.mask, str):
                where = getattr(source.mask, "where", f"annotations of {source.id}")
            elif os.path.samefile(source.mask, source.image):
                raise UserError(
                    f"The mask of '{source.id}' is the image itself.",
                    where=source.image,
                    accepted="a mask of the image's name in --masks_dir, a folder of its own",
                    fix=_advice_on_pairs(source.mask),
                )
            ids, mask_notes = self.read_ids(
                source.mask, size_as_stored(image, self.exif_orientation), where=where
            )
            notes += mask_notes
            if self._shows_ignored_alone(ids):
                notes += [
                    f"mask of 0 and {self.spec.ignore_label} alone: {self.spec.ignore_label} is "
                    "ignored (--label_map makes it a class)"
                ]
        data, image, orientation_notes = orient(
            data, image, None if ids is None else ids.shape, self.exif_orientation
        )
        if ids is not None and ids.shape != (image.height, image.width):
            raise UserError(
                f"Image and mask of '{source.id}' differ in size.",
                where=f"{source.image}, {where}",
                received=f"mask {ids.shape[0]}x{ids.shape[1]} (height x width)",
                accepted=f"{image.height}x{image.width}, the image's",
                fix="turn the image or the mask: height and width are swapped"
                if ids.shape == (image.width, image.height)
                else "make the mask again from this image, or resize it with nearest neighbour",
            )
        return make_record(
            source.id,
            data,
            (image.height, image.width),
            ids,
            image_labels=self._image_labels(source, ids),
            spec=self.spec,
            notes=(*source.notes, *notes, *orientation_notes, *self._contradictions(source, ids)),
        )

    def read_ids(
        self, mask: Any, size: tuple[int, int], *, where: str | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """Reads a mask.

        Args:
          mask: of a `ImageSource`.
          size: height and width of the image, for readers that need them.
          where: of messages; None: the mask.

        Returns:
          Class ids after the label map, [H, W] uint8, and notes.

        Raises:
          UserError: it cannot be read, or holds an id that is no class.
        """
        if self.mask_reader is None:
            ids, notes = read_mask(mask, max_megapixels=self.max_megapixels)
        else:
            ids, notes = self.mask_reader(mask, size)
        return map_ids(ids, self.label_map, self.spec, where=where or mask), notes

    def _shows_ignored_alone(self, ids: np.ndarray) -> bool:
        """Says whether a mask of one class has ignored pixels and background only.

        With several classes such masks are usual; with one, 255 may have been meant for it.
        """
        if self.spec.num_classes != 2 or self.label_map or self.mask_reader:
            return False
        ignored = ids == self.spec.ignore_label
        return self.spec.has_background and bool(
            ignored.any() and (ids == 0).any() and (ignored | (ids == 0)).all()
        )

    def _contradictions(self, source: ImageSource, ids: np.ndarray | None) -> list[str]:
        """Notices a mask that shows a class which the image-level labels lack."""
        if ids is None or source.image_labels is None:
            return []
        if set(classes_in(ids, self.spec)) <= set(source.image_labels):
            return []
        return ["mask with a class that the image-level labels lack: the labels were kept as told"]

    def _image_labels(self, source: ImageSource, ids: np.ndarray | None) -> tuple[int, ...] | None:
        if source.image_labels is not None:
            return source.image_labels
        return None if ids is None else classes_in(ids, self.spec)


def _advice_on_pairs(path: str) -> str:
    """Returns the next step where image and mask lie side by side under other names."""
    folder, name = os.path.split(path)
    near = FileFinder(folder).near(os.path.splitext(name)[0])
    beside = f" (beside it lie {', '.join(near)})" if near else ""
    return (
        f"say what follows the image's name in that of a mask{beside} with --mask_suffix; or "
        "copy the masks into a folder of their own and give that folder with --masks_dir"
    )


def make_record(
    record_id: str,
    image: bytes,
    size: tuple[int, int],
    ids: np.ndarray | None,
    *,
    image_labels: tuple[int, ...] | None,
    spec: DatasetSpec,
    notes: tuple[str, ...] = (),
    is_pseudo: bool = False,
) -> writing.Encoded:
    """Assembles one record.

    Args:
      record_id: `image/filename`.
      image: JPEG or PNG.
      size: (height, width), pixels.
      ids: [H, W] uint8 class ids, or None.
      image_labels: class ids, or None if unknown.
      spec: the classes.
      notes: counted over the split.
      is_pseudo: `ids` is a prediction.
    """
    data = tfexample.encode(
        image=image,
        filename=record_id,
        height=size[0],
        width=size[1],
        label=None if ids is None else encode_mask(ids),
        image_labels=image_labels,
        is_pseudo=is_pseudo,
    )
    return writing.Encoded(
        data=data,
        row=Row(record_id, size[0], size[1], image_labels, ids is not None),
        pixels=None if ids is None else writing.count_pixels(ids, spec),
        notes=notes,
        is_pseudo=is_pseudo,
    )
