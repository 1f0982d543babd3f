"""Checked reading of a split's records by number."""

import os
import threading
from typing import Any

import numpy as np

from tfseg.data import framing, tfexample
from tfseg.data.framing import Location, RecordError
from tfseg.data.index import Index


def _image_labels(example: tfexample.Example, index: Index, i: int) -> tuple:
    """Returns the image-level labels of record `i` and those of the index, None if unknown."""
    received = accepted = None
    if example.image_labels is not None:
        received = sorted(set(example.image_labels.tolist()))
    if index.has_image_labels[i]:
        columns = np.flatnonzero(index.image_labels[i])
        accepted = (columns + index.first_image_class).tolist()
    return received, accepted


class RecordReader:
    """Reads records of a split by number. Threads may share it.

    Args:
      index: of the split.
      dataset_dir: folder of the shards.
    """

    def __init__(self, index: Index, dataset_dir: str):
        self._index, self._dir = index, str(dataset_dir)
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        # Number within the shard, for messages: records of a shard are consecutive.
        self._first = np.searchsorted(index.shard, np.arange(len(index.shards)))

    def location(self, i: int) -> Location:
        """Returns where record `i` of the split lies."""
        shard = int(self._index.shard[i])
        path = os.path.join(self._dir, self._index.shards[shard])
        return Location(path, int(i - self._first[shard]), int(self._index.offset[i]))

    def _descriptor(self, shard: int) -> int:
        with self._lock:
            if shard not in self._descriptors:
                path = os.path.join(self._dir, self._index.shards[shard])
                self._descriptors[shard] = framing.open_shard(path)
            return self._descriptors[shard]

    def read_bytes(self, i: int) -> bytes:
        """Returns the verified data of record `i`.

        Raises:
          RecordError: a checksum or the length is wrong, or the shard is truncated.
        """
        location = self.location(i)
        try:
            descriptor = self._descriptor(int(self._index.shard[i]))
            return framing.read_at(descriptor, location, length=int(self._index.length[i]))
        except OSError as error:
            raise RecordError(
                f"A shard cannot be read ({error.strerror}).", location=location
            ) from None

    def read(self, i: int) -> tfexample.Example:
        """Returns record `i`, verified and parsed.

        Raises:
          RecordError: the record is damaged, is not an Example, or not the one of the index.
        """
        example = tfexample.decode(self.read_bytes(i), self.location(i))
        row = self._index
        for key, received, accepted in (
            (tfexample.FILENAME, example.filename, row.ids[i]),
            (tfexample.HEIGHT, example.height, row.height[i]),
            (tfexample.WIDTH, example.width, row.width[i]),
            (tfexample.LABEL, example.label is not None, row.has_mask[i]),
            (tfexample.IMAGE_LABELS, *_image_labels(example, row, i)),
        ):
            if received != accepted:
                raise RecordError(
                    "A record is not the one that the index describes.",
                    location=self.location(i),
                    key=key,
                    received=received,
                    accepted=accepted,
                    fix="delete the split's .index.npz: it is made again from the shards",
                )
        return example

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
