"""The TFRecord file format: how a record is framed, and checked reads at an offset.

A record is: uint64 length, masked CRC32C of those 8 bytes, the data, masked CRC32C of the data;
all little-endian.

Source: the format is that of TensorFlow's `record_writer.cc` (masking: rotate right by 15, add a
constant, so that a checksum over data that holds checksums is not degenerate).
"""

import dataclasses
import functools
import hashlib
import os
import struct
from typing import Any

import google_crc32c

from tfseg import files
from tfseg.errors import UserError

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


def sha256(path: str) -> str:
    """Returns the SHA-256 of a shard in hexadecimal; see `open_shard` for errors."""
    digest = hashlib.sha256()
    with os.fdopen(open_shard(path), "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
