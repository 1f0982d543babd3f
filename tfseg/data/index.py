"""What is known of each record of a split: place, id, size, image-level labels, mask or none."""

import dataclasses

import numpy as np

from tfseg.data import tfexample
from tfseg.data.framing import Location, RecordError
from tfseg.data.specs import DatasetSpec


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the records of a split lie, and what is in them, in file order.

    Attributes:
      shards: file names, without the folder.
      shard_bytes: [number of shards] int64, sizes in bytes.
      shard: [n] int32, position in `shards`.
      offset: [n] int64, byte at which the record's header starts.
      length: [n] int64, bytes of data.
      ids: [n] objects of type str, `image/filename`.
      height, width: [n] int32, pixels.
      image_labels: [n, K] uint8, multi-hot; zero where they are not known.
      has_image_labels: [n] bool.
      has_mask: [n] bool.
      first_image_class: class id of the first column of `image_labels`; not in the file.
    """

    shards: tuple[str, ...]
    shard_bytes: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    ids: np.ndarray
    height: np.ndarray
    width: np.ndarray
    image_labels: np.ndarray
    has_image_labels: np.ndarray
    has_mask: np.ndarray
    first_image_class: int = 1

    @property
    def size(self) -> int:
        """Number of records."""
        return len(self.shard)


class IndexBuilder:
    """Collects the rows of an index."""

    def __init__(self, spec: DatasetSpec):
        self._spec = spec
        self._rows: list[tuple] = []
        self._labels: list[np.ndarray] = []

    def add(self, shard: int, offset: int, length: int, row: "Row") -> None:
        """Adds a record: number of its shard, byte of its header, bytes of its data, the rest."""
        self._rows.append(
            (
                shard,
                offset,
                length,
                row.id,
                row.height,
                row.width,
                row.image_labels is not None,
                row.has_mask,
            )
        )
        hot = np.zeros(self._spec.num_image_classes, np.uint8)
        if row.image_labels is not None:
            hot[np.asarray(row.image_labels, np.int64) - self._spec.first_image_class] = 1
        self._labels.append(hot)

    def build(self, shards: list[str], shard_bytes: list[int]) -> Index:
        """Returns the index of shards with these file names and sizes in bytes."""
        columns = list(zip(*self._rows)) or [()] * 8
        return Index(
            shards=tuple(shards),
            shard_bytes=np.array(shard_bytes, np.int64),
            shard=np.array(columns[0], np.int32),
            offset=np.array(columns[1], np.int64),
            length=np.array(columns[2], np.int64),
            ids=np.array(columns[3], object),
            height=np.array(columns[4], np.int32),
            width=np.array(columns[5], np.int32),
            has_image_labels=np.array(columns[6], np.bool_),
            has_mask=np.array(columns[7], np.bool_),
            image_labels=np.array(self._labels, np.uint8).reshape(
                len(self._labels), self._spec.num_image_classes
            ),
            first_image_class=self._spec.first_image_class,
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """What the index keeps about one record besides its place."""

    id: str
    height: int
    width: int
    image_labels: tuple[int, ...] | None
    has_mask: bool


def row_of(example: tfexample.Example, spec: DatasetSpec, location: Location) -> Row:
    """Returns the index row of a decoded record.

    Raises:
      RecordError: an image-level label is no class of the data set.
    """
    labels = example.image_labels
    if labels is not None:
        wrong = labels[(labels < spec.first_image_class) | (labels >= spec.num_classes)]
        if len(wrong):
            raise RecordError(
                "An image-level label is no class of the data set.",
                location=location,
                key=tfexample.IMAGE_LABELS,
                received=", ".join(map(str, wrong[:8])),
                accepted=f"{spec.first_image_class} to {spec.num_classes - 1}",
                fix="check --dataset or dataset.json, or make the records again",
            )
        labels = tuple(int(i) for i in labels)
    return Row(
        id=example.filename,
        height=example.height,
        width=example.width,
        image_labels=labels,
        has_mask=example.label is not None,
    )
