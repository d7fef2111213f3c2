"""An index of packed binary codes: ids, changes, exact search at every prefix length, a file of its own."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch

from ..core import check, fork
from ..core.arrays import as_tensor
from ..core.backend import check_backend
from ..core.extras import require
from ..retrieval.codes import check_length, check_packed, num_bytes
from . import file
from . import ids as index_ids
from . import segments as index_segments
from .file import IndexFileError
from .ids import check_distinct, check_ids, on_cpu
from .segments import Segment, copy_rows, empty
from .state import State

__all__ = ["IndexFileError", "NestedIndex"]


class NestedIndex:
    """Exact Hamming search over packed codes with ids, at any prefix length.

    Codes are rows of ceil(length / 8) bytes as `pack_codes` and `numpy.packbits` make them: the same bytes as
    the "ubinary" embeddings of sentence-transformers and the rows of a faiss binary index. A code's bits beyond
    `length` are set to zero when it is added. Ids are integers from 0 to 2**63 - 1, given or running; a running
    id is one more than the highest id that ever was in the index, so ids of removed items do not come back.

    Everything lives in main memory (or in the mapped file): arguments are CPU tensors, NumPy arrays or, for
    ids, sequences of integers; results are CPU tensors.

    Memory: the codes, nothing for ids that run without a gap, 8 bytes an item for other ids, and one byte an
    item where some of them were removed or updated. Adding in blocks takes extra memory of at most 64 MiB or
    a sixteenth of the codes, whichever is more, while it lasts. A removal or an update copies the mask of the
    parts it touches (one byte an item), so pass many ids at once; a part that is half removed is compacted.

    Copies: `copy.copy` and `copy.deepcopy` take no time (nothing in an index changes in place, so that both share
    what they hold until they change). `pickle` and joblib hold codes and ids themselves, of a mapped index too: what
    comes back lives in memory and needs no file. A forked child has a copy of its own.

    Threads: any number may search, load and save while others add, remove and update. Writers wait for each
    other; a search holds no lock and sees the index as it was when the search began, each write wholly or not
    at all.

    Args:
        length: code length in bits.

    Raises:
        TypeError, ValueError: length is not an integer from 1 to 2**20.
    """

    def __init__(self, length: int):
        self._length = check.positive_int(length, "length")
        if self._length > file.MAX_LENGTH:
            raise ValueError(f"length: expected at most {file.MAX_LENGTH} bits, got {self._length}")
        self._state = State()
        self._writing = fork.Lock()

    def __getstate__(self) -> dict:
        state = self._state
        return {
            "length": self._length,
            "next_id": state.next_id,
            "segments": [(s.codes.numpy(), s.first, s.ids, s.alive) for s in state.segments],
        }

    def __setstate__(self, stored: dict) -> None:
        self.__init__(stored["length"])
        segments = (Segment(as_tensor(codes), *rest) for codes, *rest in stored["segments"])
        self._state = State(tuple(segments), stored["next_id"])

    def __copy__(self) -> NestedIndex:
        out = type(self)(self._length)
        out._state = self._state
        return out

    def __deepcopy__(self, memo) -> NestedIndex:
        return self.__copy__()

    # ---------------------------------------------------------------------------------------------- what is there

    @property
    def length(self) -> int:
        """Code length in bits."""
        return self._length

    def __len__(self) -> int:
        return self._state.count

    def __contains__(self, id_) -> bool:
        try:
            id_ = operator.index(id_)
        except TypeError:
            return False
        if not 0 <= id_ < index_ids.LIMIT:
            return False
        wanted = np.array([id_], np.int64)
        return any(len(segment.find(wanted)[0]) for segment in self._state.segments)

    def __repr__(self) -> str:
        return f"NestedIndex(length={self._length}, items={len(self)})"

    @property
    def ids(self) -> torch.Tensor:
        """All ids in ascending order, int64 (n,)."""
        parts = [segment.alive_ids() for segment in self._state.segments]
        return torch.from_numpy(np.sort(np.concatenate([np.empty(0, np.int64), *parts])))

    @property
    def nbytes(self) -> int:
        """Bytes held for codes, ids and masks, those in a mapped file and those of removed items included."""
        return self._state.nbytes

    @property
    def bytes_per_item(self) -> float:
        """`nbytes` over the number of items; 0.0 for an empty index."""
        state = self._state
        return state.nbytes / max(1, state.count)

    @check.memory
    def reconstruct(self, ids) -> torch.Tensor:
        """The packed rows of `ids` (any order, repeats allowed): uint8 (len(ids), ceil(length / 8)).

        Raises:
            TypeError, ValueError: ids are not a sequence of integers of at least 0.
            KeyError: an id is not in the index.
        """
        ids = check_ids(ids, "ids")
        out = torch.empty(len(ids), num_bytes(self._length), dtype=torch.uint8)
        state = self._state
        for i, which, positions in state.locate(ids):
            out[torch.from_numpy(which)] = state.segments[i].codes[torch.from_numpy(positions)]
        return out

    # ---------------------------------------------------------------------------------------------------- changes

    @check.memory
    def add(self, codes, ids=None) -> torch.Tensor:
        """Add items.

        Args:
            codes: (n, ceil(length / 8)) packed uint8 rows; they are copied.
            ids: n distinct integers from 0 to 2**63 - 1 in any order, none of them in the index; None for
                running ids.

        Returns:
            The ids, int64 (n,), in the order of the codes.

        Raises:
            TypeError, ValueError: an argument does not fit, or an id is taken; nothing is added.
        """
        rows = self._check_codes(codes)
        if ids is None:
            return self._add_running(copy_rows(rows, self._length))
        ids = check_distinct(ids, len(rows))
        added = self._segments_of(rows, ids)
        with self._writing:
            self._state = self._state.adding(ids, added)
        return torch.from_numpy(ids)

    def _add_running(self, rows: torch.Tensor) -> torch.Tensor:
        with self._writing:
            first = self._state.next_id
            self._state = self._state.running_on(rows)
        ids = torch.from_numpy(empty((len(rows),), np.int64))
        return torch.arange(len(rows), out=ids).add_(first)

    @check.memory
    def remove(self, ids) -> None:
        """Remove the items of `ids` (distinct, any order).

        Raises:
            TypeError, ValueError: ids are not distinct integers of at least 0.
            KeyError: an id is not in the index; nothing is removed.
        """
        ids = check_distinct(ids)
        with self._writing:
            self._state = self._state.replacing(ids)

    @check.memory
    def update(self, ids, codes) -> None:
        """Replace the codes of items that are in the index: row i of `codes` becomes the code of ids[i].

        Args:
            ids: distinct integers, any order.
            codes: (len(ids), ceil(length / 8)) packed uint8 rows; they are copied.

        Raises:
            TypeError, ValueError: an argument does not fit.
            KeyError: an id is not in the index; nothing is changed.
        """
        rows = self._check_codes(codes)
        ids = check_distinct(ids, len(rows))
        added = self._segments_of(rows, ids)
        with self._writing:
            self._state = self._state.replacing(ids, added)

    # ----------------------------------------------------------------------------------------------------- search

    @check.memory
    def search(
        self, queries, k: int, length: int | None = None, allow=None, *, backend: str = "auto"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest items of every query, by distance, then by ascending id.

        Args:
            queries: (Q, bytes) packed uint8 rows, as wide as the index's or, where `length` is given, wide
                enough for it.
            k: neighbours a query, 1 to the number of items.
            length: prefix length in bits; None for the index's.
            allow: ids of the items that may be returned, a sequence of integers in any order; those that are
                not in the index are ignored. None for all.
            backend: as for `nhl_fast.retrieval.hamming.search`.

        Returns:
            (distances, ids): int32 and int64, both (Q, k). Where `allow` leaves fewer than k items, the rest of
            the row is -1 in both.

        Raises:
            TypeError, ValueError: an argument does not fit (k beyond the number of items among them).
        """
        state = self._state
        queries, length = self._check_queries(queries, length)
        check_backend(backend)
        k = check.positive_int(k, "k")
        if k > state.count:
            raise ValueError(f"k: expected at most {state.count}, the items in the index, got {k}")
        distances, ids = index_segments.nearest(state.segments, queries, k, length, _check_allow(allow), backend)
        missing = k - distances.shape[1]
        if missing:
            distances, ids = (np.pad(a, ((0, 0), (0, missing)), constant_values=-1) for a in (distances, ids))
        return torch.from_numpy(distances.astype(np.int32, copy=False)), torch.from_numpy(ids)

    @check.memory
    def range_search(
        self, queries, radius: int, length: int | None = None, allow=None, *, backend: str = "auto"
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All items within a Hamming radius of every query, by distance, then by ascending id.

        Args:
            queries, length, allow, backend: as for `search`.
            radius: largest distance that counts, 0 or more (faiss's `range_search` leaves out the radius itself).

        Returns:
            (offsets, distances, ids): int64 (Q + 1,), int32 (total,), int64 (total,). The neighbours of query q
            are the entries offsets[q] to offsets[q + 1].

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        state = self._state
        queries, length = self._check_queries(queries, length)
        check_backend(backend)
        radius = check.positive_int(radius, "radius", minimum=0)
        counts, distances, ids = index_segments.within(
            state.segments, queries, radius, length, _check_allow(allow), backend
        )
        offsets = np.concatenate([[0], counts]).cumsum()
        return tuple(map(torch.from_numpy, (offsets, distances.astype(np.int32, copy=False), ids)))

    # ------------------------------------------------------------------------------------------- files and faiss

    def save(self, path) -> None:
        """Write the index to a file (format: `nhl_fast.index.file`), in one step.

        On any error, a full disk included, a file that was at `path` stays as it was. The file that this index
        was loaded from may be written too, mapped or not.

        Raises:
            FileNotFoundError: the directory does not exist.
            ValueError: `path` exists and is no regular file.
            OSError: the file cannot be written.
        """
        state = self._state
        first = state.run()
        blocks = index_segments.ordered_blocks(state.segments)
        file.write(path, self._length, state.count, first, state.next_id, blocks)

    @classmethod
    def load(cls, path, mmap: bool = True, verify: bool = True) -> NestedIndex:
        """Read an index from a file that `save` wrote.

        Args:
            path: the file.
            mmap: map the codes rather than read them: they are paged in as searches need them, and out again
                when memory is short. The index can be changed all the same: what is added lives in memory, and
                the file stays as it is. A mapped file must not be changed in place or truncated (a save to
                its path is safe).
            verify: read the whole file once, to check its checksums and the order of its ids. Without, only the
                header and the size of the file are checked, so that a huge file opens at once; a damaged file
                then gives wrong results, but cannot do worse.

        Raises:
            FileNotFoundError: there is no such file.
            IndexFileError: (a ValueError) the file is foreign, truncated, damaged or of another version.
        """
        contents = file.read(path, check.flag(mmap, "mmap"), check.flag(verify, "verify"))
        index = cls(contents.length)
        segments = ()
        if len(contents.codes):
            first = contents.first_id if contents.ids is None else int(contents.ids[0])
            segments = (Segment(as_tensor(contents.codes), first, contents.ids),)
        index._state = State(segments, contents.next_id)
        return index

    def to_faiss(self) -> Any:
        """The same codes and ids as a `faiss.IndexBinaryIDMap` over an `IndexBinaryFlat`.

        A radius counts here and does not in faiss: `range_search(x, r)` here is `range_search(x, r + 1)` there.

        Raises:
            ImportError: faiss is not installed.
            ValueError: the length is not a multiple of 8, which faiss asks for.
        """
        faiss = _faiss("NestedIndex.to_faiss")
        if self._length % 8:
            raise ValueError(f"length: faiss holds multiples of 8 bits, this index has {self._length}")
        flat = faiss.IndexBinaryFlat(self._length)
        out = faiss.IndexBinaryIDMap(flat)
        for ids, rows in index_segments.ordered_blocks(self._state.segments):
            out.add_with_ids(np.ascontiguousarray(rows), np.ascontiguousarray(ids))
        return out

    @classmethod
    def from_faiss(cls, index) -> NestedIndex:
        """An index with the codes and ids of a `faiss.IndexBinaryFlat`, or an `IndexBinaryIDMap` over one.

        The codes are copied. Items of an `IndexBinaryFlat` get the ids 0, 1, ..., their row numbers. A radius counts
        here (distances <= radius) and does not in faiss (distances < radius): take one less.

        Raises:
            ImportError: faiss is not installed.
            TypeError: `index` is something else.
            ValueError: its ids are not distinct numbers of at least 0.
        """
        faiss = _faiss("NestedIndex.from_faiss")
        flat = faiss.downcast_IndexBinary(index) if isinstance(index, faiss.IndexBinary) else index
        ids = None
        if isinstance(flat, (faiss.IndexBinaryIDMap, faiss.IndexBinaryIDMap2)):
            ids = faiss.vector_to_array(flat.id_map)
            flat = faiss.downcast_IndexBinary(flat.index)
        if not isinstance(flat, faiss.IndexBinaryFlat):
            raise TypeError(
                "index: expected a faiss.IndexBinaryFlat or a faiss.IndexBinaryIDMap over one, got "
                f"{check.describe(flat)}"
            )
        out = cls(flat.d)
        if flat.ntotal:
            # A view of faiss's memory; adding copies it.
            rows = faiss.rev_swig_ptr(flat.xb.data(), flat.ntotal * flat.code_size)
            out.add(rows.reshape(flat.ntotal, flat.code_size), ids)
        return out

    # ---------------------------------------------------------------------------------------------- the arguments

    def _check_codes(self, codes) -> torch.Tensor:
        codes = on_cpu(check_packed(codes, "codes"), "codes")
        if codes.shape[1] != num_bytes(self._length):
            raise ValueError(
                f"codes: expected rows of {num_bytes(self._length)} bytes for {self._length} bits, "
                f"got {check.describe(codes)}"
            )
        return codes

    def _check_queries(self, queries, length: int | None) -> tuple[torch.Tensor, int]:
        queries = on_cpu(check_packed(queries, "queries"), "queries")
        width = num_bytes(self._length)
        if length is None:
            if queries.shape[1] != width:
                raise ValueError(
                    f"queries: expected rows of {width} bytes for {self._length} bits, got "
                    f"{check.describe(queries)}; pass length to search by a prefix"
                )
            return queries, self._length
        length = check.positive_int(length, "length")
        if length > self._length:
            raise ValueError(f"length: expected at most {self._length}, the index's, got {length}")
        return queries, check_length(length, queries.shape[1], "length")

    def _segments_of(self, rows: torch.Tensor, ids: np.ndarray) -> tuple[Segment, ...]:
        """Rows with distinct ids as one segment, or none."""
        if not len(rows):
            return ()
        order = None if (ids[1:] > ids[:-1]).all() else ids.argsort()
        rows = copy_rows(rows, self._length, order)
        return (Segment.of(rows, ids.copy() if order is None else ids[order]),)


def _check_allow(allow) -> np.ndarray | None:
    return None if allow is None else np.unique(check_ids(allow, "allow"))


def _faiss(purpose: str):
    require("faiss", "bench", purpose)
    import faiss

    return faiss
