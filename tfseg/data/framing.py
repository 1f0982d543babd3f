"""The TFRecord file format: checked reads at an offset, scans that survive damage, safe writes.

A record is: uint64 length, masked CRC32C of those 8 bytes, the data, masked CRC32C of the data;
all little-endian. TensorFlow's own reader gives up the rest of a shard at the first damage; here
damage is reported with file, record and offset, and `scan` finds the next record.

Source: the format is that of TensorFlow's `record_writer.cc` (masking: rotate right by 15, add a
constant, so that a checksum over data that holds checksums is not degenerate).
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np

from tfseg import files, sharing
from tfseg.errors import UserError

HEADER_BYTES = 12
FOOTER_BYTES = 4
OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
_MASK_DELTA = 0xA282EAD8
# Block of the search for the next record, and of checksums over whole files.
_BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a record lies: file, number within the file (or None) and byte offset."""

    path: str
    record: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        parts = [self.path]
        if self.record is not None:
            parts.append(f"record {self.record}")
        if self.offset is not None:
            parts.append(f"byte {self.offset}")
        return ", ".join(parts)


class RecordError(UserError):
    """A record that cannot be used; names the file, the record, the offset and the key.

    Args:
      what: one sentence on what is wrong.
      location: file, record number within the file and byte offset.
      key: the feature concerned, if it is one.
      received, accepted, fix: as in `UserError`.
    """

    def __init__(
        self,
        what: str,
        *,
        location: Location | None = None,
        key: str | None = None,
        received: Any = None,
        accepted: Any = None,
        fix: str | None = None,
    ):
        self.location, self.key = location, key
        where = None if location is None else str(location) + (f", key {key}" if key else "")
        if fix is None:
            fix = (
                "make the shard again from its source; --skip_bad_records of the training "
                "programs leaves damaged records out"
            )
        super().__init__(what, where=where, received=received, accepted=accepted, fix=fix)

    def __reduce__(self) -> tuple:
        # Worker processes hand their errors to the parent by pickling.
        details = {
            "location": self.location,
            "key": self.key,
            "received": None if self.received is None else str(self.received),
            "accepted": None if self.accepted is None else str(self.accepted),
            "fix": self.fix,
        }
        return functools.partial(RecordError, **details), (self.what,)


@dataclasses.dataclass(frozen=True)
class Found:
    """A whole record: offset of its header in the file and length of its data, in bytes."""

    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Damage:
    """A stretch of a file that holds no readable record."""

    offset: int
    reason: str
    skipped_bytes: int


def masked_crc(data: bytes) -> int:
    """Returns the masked CRC32C of `data` as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Returns one record, ready to be appended to a file."""
    header = struct.pack("<Q", len(data))
    return b"".join(
        (header, struct.pack("<I", masked_crc(header)), data, struct.pack("<I", masked_crc(data)))
    )


def read_at(
    descriptor: int, location: Location, *, length: int | None = None, file_bytes: int | None = None
) -> bytes:
    """Reads and verifies one record through an open file descriptor.

    Args:
      descriptor: an open file; its position is neither used nor moved, so threads may share it.
      location: where the record's header starts, and what errors call it.
      length: bytes of data that the index promises, or None.
      file_bytes: size of the file where the caller knows it.

    Returns:
      The record's data.

    Raises:
      RecordError: either checksum is wrong, the file ends early or the length is another.
    """

    def bad(what: str, **details: Any) -> RecordError:
        return RecordError(what, location=location, **details)

    header = os.pread(descriptor, HEADER_BYTES, location.offset)
    if len(header) < HEADER_BYTES:
        raise bad("The file ends inside a record's header: the shard is truncated.")
    (stored,) = struct.unpack_from("<Q", header)
    (crc,) = struct.unpack_from("<I", header, 8)
    if masked_crc(header[:8]) != crc:
        raise bad("The checksum of a record's length is wrong.")
    if length is not None and stored != length:
        raise bad(
            "A record has another length than the index says.",
            received=f"{stored} bytes",
            accepted=f"{length} bytes",
            fix="if the shard was replaced, delete the split's .index.npz: it is made again",
        )
    if file_bytes is None:
        file_bytes = os.fstat(descriptor).st_size
    # Compared before anything is allocated: the length may be absurd.
    if location.offset + OVERHEAD_BYTES + stored > file_bytes:
        raise bad(
            "The file ends inside a record: the shard is truncated.",
            received=f"{file_bytes} bytes",
            accepted=f"at least {location.offset + OVERHEAD_BYTES + stored} bytes",
        )
    body = os.pread(descriptor, stored + FOOTER_BYTES, location.offset + HEADER_BYTES)
    while len(body) < stored + FOOTER_BYTES:  # one pread returns at most 2 GiB
        more = os.pread(
            descriptor,
            stored + FOOTER_BYTES - len(body),
            location.offset + HEADER_BYTES + len(body),
        )
        if not more:
            raise bad("The file became shorter while it was read.")
        body += more
    data, (crc,) = body[:stored], struct.unpack("<I", body[stored:])
    if masked_crc(data) != crc:
        raise bad("The checksum of a record's data is wrong.")
    return data


def open_shard(path: str) -> int:
    """Opens a shard and returns its descriptor.

    Raises:
      RecordError: a folder, a named pipe or the like stands in its place, or nothing that can be
        opened.
    """
    fix = "make the split again"
    try:
        return files.open_descriptor(path)
    except UserError as error:
        raise RecordError(
            "A shard is not a file.",
            location=Location(str(path)),
            received=error.received,
            accepted=error.accepted,
            fix=fix,
        ) from None
    except OSError as error:
        raise RecordError(
            f"A shard cannot be opened ({error.strerror}).", location=Location(str(path)), fix=fix
        ) from None


def shard_bytes(path: str) -> int:
    """Returns the size of a shard in bytes.

    Raises:
      RecordError: see `open_shard`.
    """
    descriptor = open_shard(path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def read_record(path: str, offset: int, length: int | None = None) -> bytes:
    """Reads and verifies the record whose header starts at byte `offset` of a file.

    Raises:
      RecordError: see `read_at` and `open_shard`.
    """
    descriptor = open_shard(path)
    try:
        return read_at(descriptor, Location(str(path), None, offset), length=length)
    finally:
        os.close(descriptor)


def _crc_table() -> np.ndarray:
    """The 256-entry table of CRC32C (reflected polynomial 0x82F63B78)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_TABLE = _crc_table()


def _headers_in(block: np.ndarray, remaining: int) -> np.ndarray:
    """Finds where a believable record header starts within a block.

    Args:
      block: [n] uint8.
      remaining: bytes from the block's start to the end of the file.

    Returns:
      Ascending positions whose length checksum is right and whose record, not empty, ends
      within the file.
    """
    n = len(block) - HEADER_BYTES + 1
    if n <= 0:
        return np.zeros(0, np.int64)
    # A file is shorter than 2**40 bytes, which leaves one position in 2**24 of random data.
    high = block[5 : 5 + n] | block[6 : 6 + n] | block[7 : 7 + n]
    positions = np.flatnonzero(high == 0)
    length = np.zeros(len(positions), np.int64)
    for k in range(5):
        length |= block[positions + k].astype(np.int64) << (8 * k)
    fits = (length > 0) & (positions + OVERHEAD_BYTES + length <= remaining)
    positions = positions[fits]
    crc = np.full(len(positions), 0xFFFFFFFF, np.uint32)
    for k in range(8):
        crc = _TABLE[(crc ^ block[positions + k]) & 0xFF] ^ (crc >> np.uint32(8))
    crc = ~crc
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)
    stored = np.zeros(len(positions), np.uint32)
    for k in range(4):
        stored |= block[positions + 8 + k].astype(np.uint32) << np.uint32(8 * k)
    return positions[masked == stored]


class _HeaderSearch:
    """Finds believable record headers in a file; every block is looked at once, in order.

    Args:
      descriptor: an open file.
      file_bytes: its size.
    """

    def __init__(self, descriptor: int, file_bytes: int):
        self._descriptor, self._file_bytes = descriptor, file_bytes
        self._end = 0  # headers that begin before it and behind earlier answers are in `_found`
        self._found = np.zeros(0, np.int64)

    def first_from(self, start: int) -> int | None:
        """Returns the first offset >= `start` at which a record plausibly begins, or None.

        Args:
          start: at least as large as in the call before.
        """
        while True:
            k = np.searchsorted(self._found, start)
            if k < len(self._found):
                return int(self._found[k])
            begin = max(start, self._end)
            if begin + OVERHEAD_BYTES >= self._file_bytes:
                return None
            block = os.pread(self._descriptor, _BLOCK_BYTES + HEADER_BYTES - 1, begin)
            if len(block) < HEADER_BYTES:
                return None
            found = _headers_in(np.frombuffer(block, np.uint8), self._file_bytes - begin)
            self._found, self._end = begin + found, begin + len(block) - HEADER_BYTES + 1


def scan(path: str, *, with_data: bool = False) -> Iterator[Any]:
    """Walks over a shard and verifies every checksum; damage in it is yielded, never raised.

    After a damaged data part the next record follows where the length says; after a damaged
    length it is searched for: the next offset whose 8-byte length has a valid checksum and fits
    the file. A search over 500 MB takes seconds.

    Args:
      path: a TFRecord file.
      with_data: also yield the data.

    Yields:
      `Found` (with `with_data`: `(Found, data)`) and `Damage`, in file order.

    Raises:
      RecordError: see `open_shard`.
      OSError: the disk fails.
    """
    descriptor = open_shard(path)
    try:
        file_bytes = os.fstat(descriptor).st_size
        search, offset = _HeaderSearch(descriptor, file_bytes), 0
        while offset < file_bytes:
            try:
                data = read_at(descriptor, Location(str(path), None, offset), file_bytes=file_bytes)
            except RecordError as error:
                following = _after_damage(descriptor, offset, file_bytes, search)
                yield Damage(offset, error.what, following - offset)
                offset = following
                continue
            found = Found(offset, len(data))
            yield (found, data) if with_data else found
            offset += OVERHEAD_BYTES + len(data)
    finally:
        os.close(descriptor)


def _after_damage(descriptor: int, offset: int, file_bytes: int, search: _HeaderSearch) -> int:
    """Returns where reading goes on after a damaged record at `offset`."""
    header = os.pread(descriptor, HEADER_BYTES, offset)
    if len(header) == HEADER_BYTES and masked_crc(header[:8]) == struct.unpack("<I", header[8:])[0]:
        end = offset + OVERHEAD_BYTES + struct.unpack("<Q", header[:8])[0]
        if end <= file_bytes:
            return end
    following = search.first_from(offset + 1)
    return file_bytes if following is None else following


def sha256(path: str) -> str:
    """Returns the SHA-256 of a shard in hexadecimal; see `open_shard` for errors."""
    digest = hashlib.sha256()
    with os.fdopen(open_shard(path), "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: str, content: bytes) -> None:
    """Writes a file under a temporary name beside it and renames it when it is safe on disk."""
    temporary = sharing.temporary_path(path)
    try:
        with _naming(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Gives errors of writing, which name no file, the file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


class ShardWriter:
    """Writes one shard; until `publish` nothing is visible under its name.

    As a context manager it publishes at the end of the block, and leaves nothing behind when the
    block raises.

    Attributes:
      offsets, lengths: int lists, one entry per record written.
      sha256: hexadecimal digest of the file, once closed.
      num_bytes: bytes written.
    """

    def __init__(self, path: str):
        self.path = str(path)
        self._temporary = sharing.temporary_path(self.path)
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
        with _naming(self.path):
            self._file.write(framed)
        self._digest.update(framed)
        self.offsets.append(self.num_bytes)
        self.lengths.append(len(data))
        self.num_bytes += len(framed)

    def finish(self) -> None:
        """Brings everything to the disk, still under the temporary name."""
        with _naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Gives the finished shard its name."""
        os.replace(self._temporary, self.path)

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
