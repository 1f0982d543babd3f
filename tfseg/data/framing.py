"""The TFRecord file format: how a record is framed, and checked reads at an offset.

A record is: uint64 length, masked CRC32C of those 8 bytes, the data, masked CRC32C of the data;
all little-endian.

Source: the format is that of TensorFlow's `record_writer.cc` (masking: rotate right by 15, add a
constant, so that a checksum over data that holds checksums is not degenerate).
"""

import contextlib
import dataclasses
import functools
import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c

from tfseg import storage
from tfseg.errors import UserError
from tfseg.storage import LocalFile, RemoteFile

HEADER_BYTES = 12
FOOTER_BYTES = 4
OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
MASK_DELTA = 0xA282EAD8
# Block of the search for the next record, and of checksums over whole files.
BLOCK_BYTES = 1 << 20


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


def masked_crc(data: bytes) -> int:
    """Returns the masked CRC32C of `data` as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Returns one record, ready to be appended to a file."""
    header = struct.pack("<Q", len(data))
    return b"".join(
        (header, struct.pack("<I", masked_crc(header)), data, struct.pack("<I", masked_crc(data)))
    )


def read_at(
    file: LocalFile | RemoteFile,
    location: Location,
    *,
    length: int | None = None,
    file_bytes: int | None = None,
) -> bytes:
    """Reads and verifies one record of an open file.

    Args:
      file: of `open_shard`; threads may share it.
      location: where the record's header starts, and what errors call it.
      length: bytes of data that the index promises: the record is then read at once. Or None.
      file_bytes: size of the file where the caller knows it.

    Returns:
      The record's data.

    Raises:
      RecordError: either checksum is wrong, the file ends early or the length is another.
      OSError: the file cannot be read.
      UserError: it lies far away and cannot be reached.
    """

    def bad(what: str, **details: Any) -> RecordError:
        return RecordError(what, location=location, **details)

    start = file.read(HEADER_BYTES if length is None else OVERHEAD_BYTES + length, location.offset)
    if len(start) < HEADER_BYTES:
        raise bad("The file ends inside a record's header: the shard is truncated.")
    stored, crc = struct.unpack_from("<QI", start)
    if masked_crc(start[:8]) != crc:
        raise bad("The checksum of a record's length is wrong.")
    if length is not None and stored != length:
        raise bad(
            "A record has another length than the index says.",
            received=f"{stored} bytes",
            accepted=f"{length} bytes",
            fix="if the shard was replaced, delete the split's .index.npz: it is made again",
        )
    end = location.offset + OVERHEAD_BYTES + stored
    body, begin = start, HEADER_BYTES
    if length is None:
        # Compared before anything is allocated: the length may be absurd.
        is_there = end <= (file.size() if file_bytes is None else file_bytes)
        body = file.read(stored + FOOTER_BYTES, end - stored - FOOTER_BYTES) if is_there else b""
        begin = 0
    if len(body) < begin + stored + FOOTER_BYTES:
        raise bad(
            "The file ends inside a record: the shard is truncated.",
            received=f"{file.size() if file_bytes is None else file_bytes} bytes",
            accepted=f"at least {end} bytes",
        )
    data = body[begin : begin + stored]
    (crc,) = struct.unpack_from("<I", body, begin + stored)
    if masked_crc(data) != crc:
        raise bad("The checksum of a record's data is wrong.")
    return data


@contextlib.contextmanager
def _naming_shard(path: str) -> Iterator[None]:
    """Turns what opening a file raises into a `RecordError`."""
    fix = "make the split again"
    try:
        yield
    except UserError as error:
        # What lies far away and cannot be reached is not damaged.
        if storage.is_remote(path):
            raise
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


def open_shard(path: str, *, in_order: bool = False) -> LocalFile | RemoteFile:
    """Opens a shard.

    Args:
      path: the file.
      in_order: it will be read from its beginning to its end.

    Raises:
      RecordError: a folder, a named pipe or the like stands in its place, or nothing that can be
        opened.
      UserError: it lies far away and cannot be reached.
    """
    with _naming_shard(path):
        return storage.open_file(path, in_order=in_order)


def shard_bytes(path: str) -> int:
    """Returns the size of a shard in bytes; see `open_shard` for errors."""
    with _naming_shard(path):
        return storage.file_bytes(path)


def read_record(path: str, offset: int, length: int | None = None) -> bytes:
    """Reads and verifies the record whose header starts at byte `offset` of a file.

    Raises:
      RecordError: see `read_at` and `open_shard`.
    """
    with contextlib.closing(open_shard(path)) as file:
        return read_at(file, Location(str(path), None, offset), length=length)


def sha256(path: str) -> str:
    """Returns the SHA-256 of a shard in hexadecimal; see `open_shard` for errors."""
    digest, position = hashlib.sha256(), 0
    with contextlib.closing(open_shard(path, in_order=True)) as file:
        while block := file.read(BLOCK_BYTES, position):
            digest.update(block)
            position += len(block)
    return digest.hexdigest()
