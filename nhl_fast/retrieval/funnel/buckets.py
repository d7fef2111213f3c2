"""Exact search that leaves most items out: by distance of prefixes, until these alone are too far."""

from __future__ import annotations

import numpy as np
import torch

from ... import native
from ...core import backend as backends
from ...core import check
from ...core.arrays import check_output
from .. import codes, hamming
from ..hamming import DEFAULT_CHUNK_BYTES

_ITEMS, _MOST_BITS = 1024, 12  # of a bucket, on average; of a prefix
_STRIDES = (4, 8, 16, 32)
_FEW = 3  # queries; more share what a scan reads
_PART = 256  # a k beyond this part of the items is a scan's


class PrefixBuckets:
    """Codes for exact search of single queries, where near items mostly share their first bits: supervised codes.

    A copy of the rows is sorted by a prefix of up to 12 bits. The distance of the prefixes bounds the whole one from
    below, so buckets are visited in its order until it passes the k-th distance: results are those of
    `nhl_fast.search` to the last id. Where most buckets may matter to a query, they are read in the order of memory
    instead, as by a scan. How much is visited, and so the gain, is a matter of the codes: `visited` tells.

    Searches that gain nothing are plain scans of the codes: those of more than 3 queries (which share what a scan
    reads), of codes of more than 256 bits, of a k above a 256th of the items, of a length below the prefix's, of
    fewer than 1,024 items, and all of them without the C++ library.

    Memory: the copy (rows of 4, 8, 16 or 32 bytes) and 4 bytes an item, beside the codes, which must not change.

    Args:
        database: (n, bytes) packed uint8 rows, tensor or NumPy array in main memory, n below 2**31.

    Raises:
        TypeError, ValueError: `database` does not fit.
    """

    def __init__(self, database):
        database = codes.check_packed(database, "database")
        if database.device.type != "cpu":
            raise ValueError(f"database: expected rows in main memory, got them on {database.device}")
        if len(database) >= 2**31:
            raise ValueError(f"database: expected fewer than 2**31 rows, got {len(database)}")
        self._codes = database
        width = database.shape[1]
        stride = next((s for s in _STRIDES if s >= width), None)
        self._prefix = min(_MOST_BITS, 8 * width, (len(database) // _ITEMS).bit_length())
        self._sorted = None
        if stride is not None and self._prefix and backends.available("cpp"):
            self._sorted = _sorted(database, self._prefix, stride)

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def nbytes(self) -> int:
        """Bytes held beside the codes."""
        return 0 if self._sorted is None else sum(part.nbytes for part in self._sorted)

    @check.memory
    def search(
        self, queries, k: int, length: int | None = None, *, beyond: str = "raise", output: str = "tensor"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest items of every query, by distance, then by ascending id: as `nhl_fast.search`.

        Args:
            queries, k, length, beyond, output: as for `nhl_fast.search`.

        Returns:
            (distances, ids): int32 and int64 (Q, k).

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        queries, _, (length,), one = hamming.check_pair(queries, self._codes, length, "length")
        check_output(output)
        count, width = hamming.check_k(k, len(self), f"n = {len(self)}, the database's items", beyond)
        if self._sorted is None or not self._gains(len(queries), count, length):
            found = hamming.nearest(queries, self._codes, count, length, None, DEFAULT_CHUNK_BYTES, "auto")
        else:
            found = native.topk_buckets(queries, *self._sorted, count, length)
        return hamming.shaped(found, width, one, output)

    def _gains(self, num_queries: int, k: int, length: int) -> bool:
        return num_queries <= _FEW and _PART * k <= len(self) and length >= self._prefix

    def visited(self, queries, k: int, length: int | None = None) -> float:
        """The share of the items whose distance a search of single queries must look at, mean over these queries.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        queries, _, (length,), _ = hamming.check_pair(queries, self._codes, length, "length")
        if len(queries) == 0:
            raise ValueError("queries: expected at least one row, got none")
        k = check.positive_int(k, "k", maximum=len(self))
        furthest = hamming.nearest(queries, self._codes, k, length, None, DEFAULT_CHUNK_BYTES, "auto")[0][:, -1:]
        bits = min(self._prefix, length)
        if self._sorted is None or bits < self._prefix:
            return 1.0
        sizes = self._sorted[2].diff().double()
        own = _prefixes(queries, bits).long()
        counts = torch.tensor([i.bit_count() for i in range(len(sizes))])
        distances = counts[own[:, None] ^ torch.arange(len(sizes))]
        return float((sizes * (distances <= furthest)).sum(1).mean()) / len(self)


def _prefixes(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """The first bits of rows as numbers, int32."""
    first = rows[:, 0].int() << 8
    return (first if bits <= 8 else first | rows[:, 1].int()) >> (16 - bits)


def _sorted(database: torch.Tensor, bits: int, stride: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, ids, starts), as `native.topk_buckets` takes them."""
    prefixes = _prefixes(database, bits).to(torch.int16).numpy()
    ids = torch.from_numpy(np.argsort(prefixes, kind="stable"))
    n, width = database.shape
    rows = torch.from_numpy(np.zeros((n + 64, stride), np.uint8))  # NumPy asks for large pages
    rows[:n, :width] = database[ids]
    sizes = torch.from_numpy(np.bincount(prefixes, minlength=1 << bits))
    return rows, ids.int(), torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
