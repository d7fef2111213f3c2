"""The file of a NestedIndex: one versioned header, the ids where they are no run, the packed codes.

All numbers are little-endian. Version 1:

    offset  bytes  field
         0      8  magic: 89 4E 48 4C 49 0D 0A 1A
         8      4  version, 1
        12      4  bytes of the header, 128
        16      8  flags: bit 0 set where there is an ids section, the rest 0
        24      8  code length in bits
        32      8  number of items
        40      8  id of the first item where the ids are the run first, first + 1, ...; else 0
        48      8  next running id
        56     16  ids section: offset 128 and 8 bytes an item; both 0 where the ids are a run
        72     16  codes section: offset, a multiple of 64, and ceil(length / 8) bytes an item
        88      8  bytes of the file, which ends with the codes section
        96      8  CRC-32 of the ids section, CRC-32 of the codes section
       104     20  zeros
       124      4  CRC-32 of the 124 bytes before

Items come by ascending id; ids are int64. A code's bits beyond the length are zero, and so is the padding
between the sections.
"""

from __future__ import annotations

import mmap as memory_map
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core import files
from ..retrieval import codes
from . import ids as index_ids

MAGIC = b"\x89NHLI\r\n\x1a"
VERSION = 1
HEADER_BYTES = 128
_ALIGNMENT = 64
_EXPLICIT_IDS = 1
_HEADER = struct.Struct("<8sIIQQQQQQQQQQII20sI")
_ID = np.dtype("<i8")

# More than any code has; keeps the arithmetic on a header's numbers within what arrays can express.
MAX_LENGTH = 2**20

# Checked at a time; keeps the working memory small whatever the size of the file.
_BLOCK_BYTES = 2**20


class IndexFileError(ValueError):
    """A file is no index file, is damaged, or is of a version that this release does not read."""


@dataclass(frozen=True)
class Contents:
    """What an index file holds.

    `codes` is (n, bytes) uint8 by ascending id; `ids` is (n,) int64, or None where the ids are the run that
    starts at `first_id`.
    """

    length: int
    first_id: int
    next_id: int
    ids: np.ndarray | None
    codes: np.ndarray


class _Header(NamedTuple):
    magic: bytes
    version: int
    header_bytes: int
    flags: int
    length: int
    count: int
    first_id: int
    next_id: int
    ids_offset: int
    ids_bytes: int
    codes_offset: int
    codes_bytes: int
    file_bytes: int
    ids_crc: int
    codes_crc: int
    reserved: bytes
    crc: int

    @property
    def explicit(self) -> bool:
        return self.flags == _EXPLICIT_IDS

    def pack(self) -> bytes:
        """The header with its checksum filled in."""
        body = _HEADER.pack(*self)[:-4]
        return body + struct.pack("<I", zlib.crc32(body))


def _layout(explicit: bool, length: int, count: int, first_id: int, next_id: int, ids_crc: int, codes_crc: int):
    """The header of version 1 for these contents: everything else follows from them."""
    ids_bytes = count * _ID.itemsize if explicit else 0
    codes_offset = -(-(HEADER_BYTES + ids_bytes) // _ALIGNMENT) * _ALIGNMENT
    codes_bytes = count * codes.num_bytes(length)
    return _Header(
        magic=MAGIC,
        version=VERSION,
        header_bytes=HEADER_BYTES,
        flags=_EXPLICIT_IDS if explicit else 0,
        length=length,
        count=count,
        first_id=0 if explicit else first_id,
        next_id=next_id,
        ids_offset=HEADER_BYTES if explicit else 0,
        ids_bytes=ids_bytes,
        codes_offset=codes_offset,
        codes_bytes=codes_bytes,
        file_bytes=codes_offset + codes_bytes,
        ids_crc=ids_crc if explicit else 0,
        codes_crc=codes_crc,
        reserved=bytes(20),
        crc=0,
    )


def write(
    path,
    length: int,
    count: int,
    first_id: int | None,
    next_id: int,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Write an index file, in one step: on any error a file that was at `path` stays as it was.

    Args:
        length: code length in bits.
        count: number of items.
        first_id: first of a run of ids, or None to store them one by one.
        next_id: next running id.
        blocks: (ids, packed rows) by ascending id, `count` items in all.
    """
    explicit = first_id is None
    header = _layout(explicit, length, count, first_id, next_id, 0, 0)
    written = ids_crc = codes_crc = 0
    with files.atomic_write(path) as handle:
        handle.write(bytes(HEADER_BYTES))
        for ids, rows in blocks:
            if explicit:
                ids = np.ascontiguousarray(ids, dtype=_ID)
                ids_crc = zlib.crc32(ids, ids_crc)
                handle.seek(header.ids_offset + written * _ID.itemsize)
                handle.write(ids)
                handle.seek(header.codes_offset + written * codes.num_bytes(length))
            rows = np.ascontiguousarray(rows)
            codes_crc = zlib.crc32(rows, codes_crc)
            handle.write(rows)
            written += len(rows)
        if written != count:
            raise RuntimeError(f"blocks: expected {count} items, got {written}")
        handle.seek(0)
        handle.write(_layout(explicit, length, count, first_id, next_id, ids_crc, codes_crc).pack())


def read(path, mmap: bool, verify: bool) -> Contents:
    """Read an index file.

    The header (checksum, version, every field against the others and against the size of the file) is always
    checked, before anything is mapped or allocated.

    Args:
        mmap: map the sections (read-only) rather than read them into memory.
        verify: read both sections once, to check their checksums, that the ids ascend and that the codes' bits
            beyond the length are zero.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `path` is no regular file.
        IndexFileError: (a ValueError) the file is foreign, truncated, longer, damaged or of another version.
    """
    path = files.existing_file(path)
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        header = _check_header(path, handle.read(HEADER_BYTES), size)
        if mmap:
            whole = np.frombuffer(memory_map.mmap(handle.fileno(), size, access=memory_map.ACCESS_READ), np.uint8)
        else:
            whole = np.empty(size, np.uint8)
            handle.seek(0)
            if handle.readinto(whole) != size:
                raise IndexFileError(f"{path}: truncated while it was read")
    end_of_ids = HEADER_BYTES + header.ids_bytes
    ids = whole[HEADER_BYTES:end_of_ids].view(_ID) if header.explicit else None
    rows = whole[header.codes_offset :].reshape(header.count, codes.num_bytes(header.length))
    if whole[end_of_ids : header.codes_offset].any():
        raise IndexFileError(f"{path}: damaged: the padding before the codes is not zero")
    if header.explicit and header.count and not 0 <= int(ids[0]) <= int(ids[-1]) < header.next_id:
        raise IndexFileError(f"{path}: damaged: the ids are not ascending numbers below {header.next_id}")
    if verify:
        if header.explicit:
            _verify_ids(path, ids, header.ids_crc)
        _verify_codes(path, rows, header.length, header.codes_crc)
    return Contents(header.length, header.first_id, header.next_id, ids, rows)


def _check_header(path, raw: bytes, size: int) -> _Header:
    """The header of a file of `size` bytes; every field is checked."""
    if not raw or raw[: len(MAGIC)] != MAGIC[: len(raw)]:
        raise IndexFileError(f"{path}: not an index file of nhl_fast (it does not start with the magic bytes)")
    if len(raw) < HEADER_BYTES:
        raise IndexFileError(f"{path}: truncated: {size} bytes, fewer than the {HEADER_BYTES} of the header")
    header = _Header(*_HEADER.unpack(raw))
    if header.version != VERSION:
        raise IndexFileError(f"{path}: file format {header.version}; this release of nhl_fast reads {VERSION}")
    if header.pack() != raw:
        raise IndexFileError(f"{path}: damaged: the checksum of the header does not match")
    expected = _layout(
        header.explicit,
        header.length,
        header.count,
        header.first_id,
        header.next_id,
        header.ids_crc,
        header.codes_crc,
    )
    for name, value, right in zip(_Header._fields[:-1], header, expected):
        if value != right:
            raise IndexFileError(f"{path}: damaged: {name} in the header is {value}, expected {right}")
    if not 1 <= header.length <= MAX_LENGTH:
        raise IndexFileError(f"{path}: damaged: length in the header is {header.length}, expected 1 to {MAX_LENGTH}")
    if not header.first_id + (0 if header.explicit else header.count) <= header.next_id <= index_ids.LIMIT:
        raise IndexFileError(f"{path}: damaged: the ids in the header do not fit {header.count} codes")
    if size != header.file_bytes:
        state = "truncated" if size < header.file_bytes else "longer than it should be"
        raise IndexFileError(f"{path}: {state}: {size} bytes, the header says {header.file_bytes}")
    return header


def _verify_ids(path, ids: np.ndarray, expected: int) -> None:
    crc, step = 0, _BLOCK_BYTES // _ID.itemsize
    for start in range(0, len(ids), step):
        block = ids[start : start + step]
        crc = zlib.crc32(block, crc)
        # One id of the next block too, so that every neighbouring pair is compared.
        block = ids[start : start + step + 1]
        if (block[1:] <= block[:-1]).any():
            raise IndexFileError(f"{path}: damaged: the ids are not strictly ascending")
    if crc != expected:
        raise IndexFileError(f"{path}: damaged: the checksum of the ids does not match")


def _verify_codes(path, rows: np.ndarray, length: int, expected: int) -> None:
    crc, step = 0, max(1, _BLOCK_BYTES // rows.shape[1])
    beyond = 0xFF >> (length % 8 or 8)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        crc = zlib.crc32(block, crc)
        if beyond and (block[:, -1] & beyond).any():
            raise IndexFileError(f"{path}: damaged: a code has bits set beyond its {length} bits")
    if crc != expected:
        raise IndexFileError(f"{path}: damaged: the checksum of the codes does not match")
