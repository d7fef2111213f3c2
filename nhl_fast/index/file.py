"""The file of a NestedIndex: one versioned header, the ids where they are no run, the packed codes, the vectors.

All numbers are little-endian. Version 1, and version 2 where the items have vectors:

    offset  bytes  field
         0      8  magic: 89 4E 48 4C 49 0D 0A 1A
         8      4  version, 1 or 2
        12      4  bytes of the header, 128
        16      8  flags: bit 0 set where there is an ids section, bit 1 in version 2, the rest 0
        24      8  code length in bits
        32      8  number of items
        40      8  id of the first item where the ids are the run first, first + 1, ...; else 0
        48      8  next running id
        56     16  ids section: offset 128 and 8 bytes an item; both 0 where the ids are a run
        72     16  codes section: offset, a multiple of 64, and ceil(length / 8) bytes an item
        88      8  bytes of the file, which ends with the codes section, or with that of the vectors
        96      8  CRC-32 of the ids section, CRC-32 of the codes section
       104     20  version 1: zeros; version 2: offset of the vectors section, a multiple of 64 (8 bytes), numbers a
                   vector (4), what they are (4: 1 float32, 2 float16, 3 int8), CRC-32 of the section (4)
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
import torch

from ..core import files
from ..retrieval import codes
from . import ids as index_ids

MAGIC = b"\x89NHLI\r\n\x1a"
VERSIONS = (1, 2)
HEADER_BYTES = 128
_ALIGNMENT = 64
_EXPLICIT_IDS, _VECTORS = 1, 2
_HEADER = struct.Struct("<8sIIQQQQQQQQQQIIQIIII")
_ID = np.dtype("<i8")
_NUMBERS = {1: np.dtype("<f4"), 2: np.dtype("<f2"), 3: np.dtype("i1")}

# What vectors may be made of, as the file names them, and the numbers of one.
VECTOR_KINDS = {torch.float32: 1, torch.float16: 2, torch.int8: 3}
MAX_WIDTH = 2**20

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
    starts at `first_id`; `vectors` is (n, d), or None.
    """

    length: int
    first_id: int
    next_id: int
    ids: np.ndarray | None
    codes: np.ndarray
    vectors: np.ndarray | None


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
    vectors_offset: int
    vectors_width: int
    vectors_kind: int
    vectors_crc: int
    crc: int

    @property
    def explicit(self) -> bool:
        return bool(self.flags & _EXPLICIT_IDS)

    @property
    def codes_end(self) -> int:
        return self.codes_offset + self.codes_bytes

    def pack(self) -> bytes:
        """The header with its checksum filled in."""
        body = _HEADER.pack(*self)[:-4]
        return body + struct.pack("<I", zlib.crc32(body))


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _layout(
    explicit: bool, length: int, count: int, first_id: int, next_id: int, ids_crc: int, codes_crc: int,
    vectors: tuple[int, int, int] = (0, 0, 0),
):  # fmt: skip
    """The header for these contents: everything else follows from them. vectors: their width, kind and checksum."""
    width, kind, vectors_crc = vectors
    ids_bytes = count * _ID.itemsize if explicit else 0
    codes_offset = _aligned(HEADER_BYTES + ids_bytes)
    codes_bytes = count * codes.num_bytes(length)
    codes_end = codes_offset + codes_bytes
    vectors_offset = _aligned(codes_end) if kind else 0
    vectors_bytes = count * width * _NUMBERS[kind].itemsize if kind else 0
    return _Header(
        magic=MAGIC,
        version=2 if kind else 1,
        header_bytes=HEADER_BYTES,
        flags=(_EXPLICIT_IDS if explicit else 0) | (_VECTORS if kind else 0),
        length=length,
        count=count,
        first_id=0 if explicit else first_id,
        next_id=next_id,
        ids_offset=HEADER_BYTES if explicit else 0,
        ids_bytes=ids_bytes,
        codes_offset=codes_offset,
        codes_bytes=codes_bytes,
        file_bytes=vectors_offset + vectors_bytes if kind else codes_end,
        ids_crc=ids_crc if explicit else 0,
        codes_crc=codes_crc,
        vectors_offset=vectors_offset,
        vectors_width=width,
        vectors_kind=kind,
        vectors_crc=vectors_crc,
        crc=0,
    )


def write(
    path,
    length: int,
    count: int,
    first_id: int | None,
    next_id: int,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    vectors: tuple[np.ndarray, Iterable[tuple[np.ndarray, np.ndarray]]] | None = None,
) -> None:
    """Write an index file, in one step: on any error a file that was at `path` stays as it was.

    Args:
        length: code length in bits.
        count: number of items.
        first_id: first of a run of ids, or None to store them one by one.
        next_id: next running id.
        blocks: (ids, packed rows) by ascending id, `count` items in all.
        vectors: an array (0, d) of their kind, and blocks of them like those of the rows; None for none.
    """
    explicit = first_id is None
    kind = (0, 0) if vectors is None else (vectors[0].shape[1], _kind_of(vectors[0].dtype))
    header = _layout(explicit, length, count, first_id, next_id, 0, 0, (*kind, 0))
    written = ids_crc = codes_crc = vectors_crc = 0
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
        if vectors is not None:
            vectors_crc = _write_vectors(handle, header, vectors[1])
        handle.seek(0)
        crcs = ids_crc, codes_crc
        handle.write(_layout(explicit, length, count, first_id, next_id, *crcs, (*kind, vectors_crc)).pack())


def _kind_of(dtype: np.dtype) -> int:
    return next(kind for kind, known in _NUMBERS.items() if known == dtype)


def _write_vectors(handle, header: _Header, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """The checksum of the section."""
    handle.seek(header.codes_end)
    handle.write(bytes(header.vectors_offset - header.codes_end))
    crc = written = 0
    for _, rows in blocks:
        rows = np.ascontiguousarray(rows, dtype=_NUMBERS[header.vectors_kind])
        crc = zlib.crc32(rows, crc)
        handle.write(rows)
        written += len(rows)
    if written != header.count:
        raise RuntimeError(f"vectors: expected {header.count}, got {written}")
    return crc


def read(path, mmap: bool, verify: bool) -> Contents:
    """Read an index file.

    The header (checksum, version, every field against the others and against the size of the file) is always
    checked, before anything is mapped or allocated.

    Args:
        mmap: map the sections (read-only) rather than read them into memory.
        verify: read all sections once, to check their checksums, that the ids ascend and that the codes' bits
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
    rows = whole[header.codes_offset : header.codes_end].reshape(header.count, codes.num_bytes(header.length))
    vectors = None
    if header.vectors_kind:
        if whole[header.codes_end : header.vectors_offset].any():
            raise IndexFileError(f"{path}: damaged: the padding before the vectors is not zero")
        numbers = whole[header.vectors_offset :].view(_NUMBERS[header.vectors_kind])
        vectors = numbers.reshape(header.count, header.vectors_width)
    if whole[end_of_ids : header.codes_offset].any():
        raise IndexFileError(f"{path}: damaged: the padding before the codes is not zero")
    if header.explicit and header.count and not 0 <= int(ids[0]) <= int(ids[-1]) < header.next_id:
        raise IndexFileError(f"{path}: damaged: the ids are not ascending numbers below {header.next_id}")
    if verify:
        if header.explicit:
            _verify_ids(path, ids, header.ids_crc)
        _verify_codes(path, rows, header.length, header.codes_crc)
        if vectors is not None:
            _verify_vectors(path, whole[header.vectors_offset :], header.vectors_crc)
    return Contents(header.length, header.first_id, header.next_id, ids, rows, vectors)


def _check_header(path, raw: bytes, size: int) -> _Header:
    """The header of a file of `size` bytes; every field is checked."""
    if not raw or raw[: len(MAGIC)] != MAGIC[: len(raw)]:
        raise IndexFileError(f"{path}: not an index file of nhl_fast (it does not start with the magic bytes)")
    if len(raw) < HEADER_BYTES:
        raise IndexFileError(f"{path}: truncated: {size} bytes, fewer than the {HEADER_BYTES} of the header")
    header = _Header(*_HEADER.unpack(raw))
    if header.version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise IndexFileError(f"{path}: file format {header.version}; this release of nhl_fast reads {known}")
    if header.pack() != raw:
        raise IndexFileError(f"{path}: damaged: the checksum of the header does not match")
    if header.vectors_kind not in (0, *_NUMBERS) or (
        header.vectors_kind and not 1 <= header.vectors_width <= MAX_WIDTH
    ):
        raise IndexFileError(
            f"{path}: damaged: vectors of {header.vectors_width} numbers of kind {header.vectors_kind} in the header"
        )
    expected = _layout(
        header.explicit,
        header.length,
        header.count,
        header.first_id,
        header.next_id,
        header.ids_crc,
        header.codes_crc,
        (header.vectors_width, header.vectors_kind, header.vectors_crc) if header.vectors_kind else (0, 0, 0),
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


def _verify_vectors(path, section: np.ndarray, expected: int) -> None:
    crc = 0
    for start in range(0, len(section), _BLOCK_BYTES):
        crc = zlib.crc32(section[start : start + _BLOCK_BYTES], crc)
    if crc != expected:
        raise IndexFileError(f"{path}: damaged: the checksum of the vectors does not match")


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
