"""Files that appear under their names whole or not at all: shards and small ones."""

import contextlib
import hashlib
import os
from typing import Any

from tfseg import sharing, storage
from tfseg.data.framing import frame
from tfseg.errors import naming_file


def write_atomically(path: str, content: bytes) -> None:
    """Writes a file under a temporary name beside it and renames it when it is safe on disk.

    Far away it is one request, which succeeds as a whole or not at all.
    """
    if storage.is_remote(path):
        storage.write(path, content)
        return
    temporary = sharing.temporary_path(path)
    try:
        with naming_file(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


class ShardWriter:
    """Writes one shard; until `publish` nothing is visible under its name.

    A shard that goes far away lies on the disk of this machine until then.

    As a context manager it publishes at the end of the block, and leaves nothing behind when the
    block raises.

    Attributes:
      offsets, lengths: int lists, one entry per record written.
      sha256: hexadecimal digest of the file, once closed.
      num_bytes: bytes written.
    """

    def __init__(self, path: str):
        self.path = str(path)
        self._temporary = storage.temporary_path(self.path)
        self._file = open(self._temporary, "wb")
        self._digest = hashlib.sha256()
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Appends one record."""
        framed = frame(data)
        with naming_file(self.path):
            self._file.write(framed)
        self._digest.update(framed)
        self.offsets.append(self.num_bytes)
        self.lengths.append(len(data))
        self.num_bytes += len(framed)

    def finish(self) -> None:
        """Brings everything to the disk, still under the temporary name."""
        with naming_file(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Gives the finished shard its name."""
        storage.publish(self._temporary, self.path)

    def discard(self) -> None:
        """Removes what was written."""
        try:
            self._file.close()
        except OSError:  # no space left for the last buffer; the file goes anyway
            pass
        if os.path.exists(self._temporary):
            os.remove(self._temporary)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.finish()
            self.publish()
        except BaseException:
            self.discard()
            raise
