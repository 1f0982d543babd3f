"""Checked reading of a split's records by number."""

import collections
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from tfseg import storage
from tfseg.data import framing, tfexample
from tfseg.data.framing import Location, RecordError
from tfseg.data.index import Index
from tfseg.storage import LocalFile, RemoteFile

# Requests under way at a time, and records that are asked for before they are needed. A request
# takes 20 to 100 ms: 32 at a time are some hundreds of records a second.
READS_AHEAD = 32


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

    Attributes:
      is_remote: it lies far away, where reading ahead (`start`) pays.
    """

    def __init__(self, index: Index, dataset_dir: str):
        self._index, self._dir = index, str(dataset_dir)
        self.is_remote = storage.is_remote(self._dir)
        self._files: dict[int, LocalFile | RemoteFile] = {}
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._started: collections.OrderedDict[int, Future] = collections.OrderedDict()
        # Number within the shard, for messages: records of a shard are consecutive.
        self._first = np.searchsorted(index.shard, np.arange(len(index.shards)))

    def location(self, i: int) -> Location:
        """Returns where record `i` of the split lies."""
        shard = int(self._index.shard[i])
        path = os.path.join(self._dir, self._index.shards[shard])
        return Location(path, int(i - self._first[shard]), int(self._index.offset[i]))

    def _file(self, shard: int) -> LocalFile | RemoteFile:
        with self._lock:
            if shard not in self._files:
                path = os.path.join(self._dir, self._index.shards[shard])
                self._files[shard] = framing.open_shard(path)
            return self._files[shard]

    def start(self, i: int, *, kept: int) -> None:
        """Begins to read record `i` in a thread, for a `read_bytes` that comes soon.

        Args:
          i: its number.
          kept: how many of the records that were begun last are kept, those in use among them.
        """
        with self._lock:
            before = self._started.get(i)
            if before is not None and not (before.done() and before.exception()):
                self._started.move_to_end(i)
                return
            if self._threads is None:
                self._threads = ThreadPoolExecutor(READS_AHEAD, "records far away")
            self._started[i] = self._threads.submit(self._read_now, i)
            while len(self._started) > kept:
                self._started.popitem(last=False)

    def read_bytes(self, i: int) -> bytes:
        """Returns the verified data of record `i`.

        Raises:
          RecordError: a checksum or the length is wrong, or the shard is truncated.
          UserError: the shard lies far away and cannot be reached.
        """
        if self.is_remote:
            with self._lock:
                started = self._started.get(i)
            if started is not None:
                return started.result()
        return self._read_now(i)

    def _read_now(self, i: int) -> bytes:
        location = self.location(i)
        try:
            file = self._file(int(self._index.shard[i]))
            return framing.read_at(file, location, length=int(self._index.length[i]))
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
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None
            self._started.clear()
            for file in self._files.values():
                file.close()
            self._files.clear()

    def __enter__(self) -> "RecordReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
