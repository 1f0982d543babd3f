"""Walking over a whole shard in spite of damage.

TensorFlow's own reader gives up the rest of a shard at the first damage; here damage is reported
with file, record and offset, and `scan` finds the next record.
"""

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfseg.data.framing import (
    BLOCK_BYTES,
    HEADER_BYTES,
    MASK_DELTA,
    OVERHEAD_BYTES,
    Location,
    RecordError,
    masked_crc,
    open_shard,
    read_at,
)
from tfseg.storage import LocalFile, RemoteFile


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
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(MASK_DELTA)
    stored = np.zeros(len(positions), np.uint32)
    for k in range(4):
        stored |= block[positions + 8 + k].astype(np.uint32) << np.uint32(8 * k)
    return positions[masked == stored]


class _HeaderSearch:
    """Finds believable record headers in a file; every block is looked at once, in order.

    Args:
      file: an open one.
      file_bytes: its size.
    """

    def __init__(self, file: LocalFile | RemoteFile, file_bytes: int):
        self._file, self._file_bytes = file, file_bytes
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
            block = self._file.read(BLOCK_BYTES + HEADER_BYTES - 1, begin)
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
      UserError: the shard lies far away and cannot be reached.
    """
    with contextlib.closing(open_shard(path, in_order=True)) as file:
        file_bytes = file.size()
        search, offset = _HeaderSearch(file, file_bytes), 0
        while offset < file_bytes:
            try:
                data = read_at(file, Location(str(path), None, offset), file_bytes=file_bytes)
            except RecordError as error:
                following = _after_damage(file, offset, file_bytes, search)
                yield Damage(offset, error.what, following - offset)
                offset = following
                continue
            found = Found(offset, len(data))
            yield (found, data) if with_data else found
            offset += OVERHEAD_BYTES + len(data)


def damage_error(damage: Damage, path: str, record: int) -> RecordError:
    """Returns the error that names a damaged stretch; `record` is its number within the file."""
    return RecordError(
        damage.reason,
        location=Location(path, record, damage.offset),
        received=f"{damage.skipped_bytes} bytes up to the next readable record",
    )


def _after_damage(
    file: LocalFile | RemoteFile, offset: int, file_bytes: int, search: _HeaderSearch
) -> int:
    """Returns where reading goes on after a damaged record at `offset`."""
    header = file.read(HEADER_BYTES, offset)
    if len(header) == HEADER_BYTES and masked_crc(header[:8]) == struct.unpack("<I", header[8:])[0]:
        end = offset + OVERHEAD_BYTES + struct.unpack("<Q", header[:8])[0]
        if end <= file_bytes:
            return end
    following = search.first_from(offset + 1)
    return file_bytes if following is None else following
