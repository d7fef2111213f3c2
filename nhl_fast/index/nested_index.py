"""An index of packed binary codes: ids, changes, exact search at every prefix length, a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_output, as_tensor, check_output
from ..core.backend import check_backend
from ..retrieval.codes import check_length, num_bytes
from ..retrieval.funnel.search import shaped as shaped_scores
from ..retrieval.funnel.stages import check_stages
from ..retrieval.hamming import check_k, shaped
from ..retrieval.vectors import METRICS
from . import direct, file, placed_search, staged
from . import segments as index_segments
from .arguments import check_queries
from .exchange import files, libraries
from .file import IndexFileError
from .filter import Filter, check_allow, choose, choose_placed
from .items import Items, place_of
from .placement import Placed
from .segments import Segment
from .state import State

__all__ = ["IndexFileError", "NestedIndex"]


class NestedIndex(Items):
    """Exact Hamming search over packed codes with ids, at any prefix length.

    Codes are rows of ceil(length / 8) bytes as `pack_codes` and `numpy.packbits` make them: the same bytes as
    the "ubinary" embeddings of sentence-transformers and the rows of a faiss binary index; its "binary" ones (int8,
    the bytes less 128) are taken, too. A code's bits beyond `length` are set to zero when it is added. Ids are
    integers from 0 to 2**63 - 1, given or running; a running id is one more than the highest id that ever was in the
    index, so ids of removed items do not come back.

    Everything lives in main memory (or in the mapped file): arguments are CPU tensors, NumPy arrays or, for
    ids, sequences of integers; results are CPU tensors. `to("cuda")`, or `device`, adds copies on devices, where
    searches run then: queries and codes to add may be there, and what searches find is; ids and masks are CPU
    tensors all the same.

    Vectors may be kept beside the codes (`add(codes, vectors=...)`): a search reads those of its funnel's last
    candidates alone, and changes, copies and files take them along.

    Memory: the codes and vectors, nothing for ids that run without a gap, 8 bytes an item for other ids, and one byte
    an item where some of them were removed or updated. Adding in blocks takes extra memory of at most 64 MiB or
    a sixteenth of the codes, whichever is more, while it lasts. A removal or an update copies the mask of the
    parts it touches (one byte an item), so pass many ids at once; a part that is half removed is compacted.

    Copies: `copy.copy` and `copy.deepcopy` take no time (nothing in an index changes in place, so that both share
    what they hold until they change). `pickle` and joblib hold codes and ids themselves, of a mapped index too: what
    comes back lives in main memory and needs no file and no device. A forked child has a copy of its own.

    Threads: any number may search, load and save while others add, remove and update. Writers wait for each
    other; a search holds no lock and sees the index as it was when the search began, each write wholly or not
    at all.

    Args:
        length: code length in bits.
        device, device_bytes: where it is searched, as for `to`; None for main memory.

    Raises:
        TypeError, ValueError: length is not an integer from 1 to 2**20, or a device does not fit.
        RuntimeError: PyTorch sees no CUDA device.
    """

    # ----------------------------------------------------------------------------------------------------- search

    @check.memory
    def filter(self, allow) -> Filter:
        """`allow` (ids or a mask, see `search`) made ready for any number of searches.

        It holds until the index changes; a search after that refuses it.

        Raises:
            TypeError, ValueError: `allow` is neither.
        """
        state, placed = self._held
        allow = check_allow(allow, state)
        if allow is None or isinstance(allow, Filter):
            raise TypeError(f"allow: expected ids or a bool mask, got {check.describe(allow)}")
        return Filter(state, allow.copy(), placed)

    @check.memory
    def search(
        self,
        queries,
        k: int,
        length: int | None = None,
        allow=None,
        *,
        funnel: Sequence[tuple[int, int]] | None = None,
        rescore=None,
        metric: str = "cosine",
        beyond: str = "raise",
        output: str = "tensor",
        backend: str = "auto",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest items of every query, by distance, then by ascending id.

        Args:
            queries: (Q, bytes) packed uint8 rows, as wide as the index's or, where `length` is given, wide
                enough for it; one code (bytes,) gives results (k,).
            k: neighbours a query, 1 to the number of items.
            length: prefix length in bits; None for the index's.
            allow: the items that may be returned: their ids, a sequence of integers in any order, of which those that
                are not in the index are ignored; a bool mask (array or tensor) of one value an item, by ascending
                id; or what `filter` made of either, for many searches. None for all.
            funnel: stages (bits, candidates), as for `nhl_fast.search`. The prefixes that the first stage reads are
                copied at its first search: 8 bytes an item for 64 bits, kept with the codes, counted in `nbytes`.
            rescore: what ranks the funnel's last candidates in place of the distance: the queries' raw outputs (Q, L)
                against the codes, or a pair (vectors of the queries (Q, d), vectors of the items (n, d) by ascending
                id, in memory or mapped, or None for those that the index keeps); see `nhl_fast.rescore`. On devices
                the first stage is searched there, and its candidates are ranked again in main memory.
            metric: "cosine" or "product", of vectors.
            beyond: what a k beyond the number of items does: "raise", "cut" (k is that number) or "pad" (as where
                `allow` leaves too few).
            output: "tensor", or "numpy" for arrays.
            backend: as for `nhl_fast.search`.

        Returns:
            (distances, ids): int32 and int64, both (Q, k); with `rescore` (scores, ids), by descending score. Where
            `allow` leaves fewer than k items, the rest of the row is -1 in both (scores: -inf).

        Raises:
            TypeError, ValueError: an argument does not fit (k beyond the number of items among them).
        """
        if funnel is None and rescore is None and isinstance(metric, str) and metric == "cosine":
            held = self._held
            if allow is None and held[1] is None:
                found = direct.search(held[0], queries, k, length, self._length, beyond, output, backend)
                if found is not None:
                    return found
            return self._search(held, queries, k, length, allow, beyond, output, backend)
        with torch.no_grad():
            return self._staged(queries, k, length, allow, funnel, rescore, metric, beyond, output, backend)

    def _staged(self, queries, k, length, allow, funnel, rescore, metric, beyond, output, backend):
        state, placed = self._held
        check.one_of(metric, "metric", METRICS)
        if funnel is None and rescore is None:
            return self._search((state, placed), queries, k, length, allow, beyond, output, backend)
        queries, length, one = check_queries(queries, length, self._length, self.devices)
        check_backend(backend)
        check_output(output)
        count, width = check_k(k, state.count, f"{state.count}, the items in the index", beyond)
        stages = check_stages(funnel, length, count, state.count)
        scores = staged.check_rescore(
            rescore, metric, len(queries), one, state, num_bytes(self._length), self.devices
        )
        allow = check_allow(allow, state)
        if placed is None:
            found = staged.nearest(choose(state, allow), queries, count, length, stages, scores, backend)
        else:
            parts = choose_placed(placed, allow)
            found = staged.nearest_placed(placed, parts, queries, count, length, stages, scores, backend)
        return shaped_scores(found, width, one, output)

    def _search(self, held: tuple[State, Placed | None], queries, k, length, allow, beyond, output, backend):
        state, placed = held
        queries, length, one = check_queries(queries, length, self._length, self.devices)
        check_backend(backend)
        check_output(output)
        count, width = check_k(k, state.count, f"{state.count}, the items in the index", beyond)
        allow = check_allow(allow, state)
        if placed is None:
            found = index_segments.nearest(choose(state, allow), queries, count, length, backend)
        else:
            parts = choose_placed(placed, allow)
            found = placed_search.nearest(placed, parts, queries, count, length, backend)
        return shaped(found, width, one, output)

    @check.memory
    def search_and_reconstruct(
        self,
        queries,
        k: int,
        length: int | None = None,
        allow=None,
        *,
        beyond: str = "raise",
        output: str = "tensor",
        backend: str = "auto",
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`search`, and the codes of what it found.

        Returns:
            (distances, ids, codes): as `search`, and uint8 (Q, k, ceil(length of the index / 8)), zeros where the id
            is -1.
        """
        held, width = self._held, num_bytes(self._length)
        check_output(output)
        distances, ids = self._search(held, queries, k, length, allow, beyond, "tensor", backend)
        here = ids.cpu()
        codes = torch.zeros(*here.shape, width, dtype=torch.uint8)
        codes[here >= 0] = held[0].rows(here[here >= 0].numpy(), width)
        return as_output((distances, ids, codes.to(ids.device)), output)

    @check.memory
    def range_search(
        self,
        queries,
        radius: int,
        length: int | None = None,
        allow=None,
        *,
        output: str = "tensor",
        backend: str = "auto",
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All items within a Hamming radius of every query, by distance, then by ascending id.

        Args:
            queries, length, allow, output, backend: as for `search`; one code as `queries` is Q = 1.
            radius: largest distance that counts, 0 or more (faiss's `range_search` leaves out the radius itself).

        Returns:
            (offsets, distances, ids): int64 (Q + 1,), int32 (total,), int64 (total,). The neighbours of query q
            are the entries offsets[q] to offsets[q + 1].

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        state, placed = self._held
        queries, length, _ = check_queries(queries, length, self._length, self.devices)
        check_backend(backend)
        check_output(output)
        radius = check.positive_int(radius, "radius", minimum=0)
        allow = check_allow(allow, state)
        if placed is not None:
            found = placed_search.within(placed, choose_placed(placed, allow), queries, radius, length, backend)
            return as_output(found, output)
        counts, distances, ids = index_segments.within(choose(state, allow), queries, radius, length, backend)
        offsets = np.concatenate([[0], counts]).cumsum()
        found = tuple(map(torch.from_numpy, (offsets, distances.astype(np.int32, copy=False), ids)))
        return as_output(found, output)

    # ------------------------------------------------------------------------------------------- files and others

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
        blocks, vectors = index_segments.ordered_blocks(state.segments), None
        if state.kept is not None:
            vectors = state.kept.numpy(), index_segments.ordered_blocks(state.segments, vectors=True)
        file.write(path, self._length, state.count, first, state.next_id, blocks, vectors)

    @classmethod
    def load(
        cls, path, mmap: bool = True, verify: bool = True, *, device=None, device_bytes: int | None = None
    ) -> NestedIndex:
        """Read an index from a file that `save` wrote.

        Args:
            path: the file.
            mmap: map codes and vectors rather than read them: they are paged in as searches need them, and out again
                when memory is short. The index can be changed all the same: what is added lives in memory, and
                the file stays as it is. A mapped file must not be changed in place or truncated (a save to
                its path is safe).
            verify: read the whole file once, to check its checksums and the order of its ids. Without, only the
                header and the size of the file are checked, so that a huge file opens at once; a damaged file
                then gives wrong results, but cannot do worse.
            device, device_bytes: where it is searched, as for `to`; None for main memory.

        Raises:
            FileNotFoundError: there is no such file.
            IndexFileError: (a ValueError) the file is foreign, truncated, damaged or of another version.
            RuntimeError: PyTorch sees no CUDA device.
        """
        place_of(device, device_bytes, 8)  # a wrong device is told before anything is read
        contents = file.read(path, check.flag(mmap, "mmap"), check.flag(verify, "verify"))
        index = cls(contents.length, device, device_bytes=device_bytes)
        segments = ()
        if len(contents.codes):
            first = contents.first_id if contents.ids is None else int(contents.ids[0])
            vectors = as_tensor(contents.vectors)
            segments = (Segment(as_tensor(contents.codes), first, contents.ids, vectors=vectors),)
        index._state = State(segments, contents.next_id)
        return index

    @check.memory
    def export(self, path, format: str | None = None, length: int | None = None) -> None:
        """Write ids and codes (no vectors), by ascending id, to a file that other programs read, in one step.

        - "parquet", "arrow" (`.parquet`; `.arrow`, `.feather`): columns `id` (int64) and `code` (fixed-size binary,
          ceil(length / 8) bytes); the schema's metadata has the length as `bits`. Read by Arrow, DuckDB, LanceDB,
          Polars, Spark.
        - "npz" (`.npz`): arrays `ids` (n,) int64, `codes` (n, bytes) uint8 and `bits`.
        - "pgvector" (`.tsv`, `.copy`): lines `id`, tab, one digit a bit, for
          `COPY items (id, code) FROM ...` into `(id bigint, code bit(length))`.

        Args:
            path: the file; on any error one that was there stays as it was.
            format: None to tell it from the suffix of the path.
            length: bits of each code, a prefix; None for all.

        Raises:
            TypeError, ValueError: an argument does not fit, or no format has the path's suffix.
            ImportError: "parquet" and "arrow" need pyarrow (`pip install 'nhl-fast[arrow]'`).
            OSError: the file cannot be written.
        """
        length = self._length if length is None else check_length(length, num_bytes(self._length))
        if length > self._length:
            raise ValueError(f"length: expected at most {self._length}, the index's, got {length}")
        files.write(path, format, length, self._state)

    def to_faiss(self) -> Any:
        """The same codes and ids as a `faiss.IndexBinaryIDMap` over an `IndexBinaryFlat`.

        A radius counts here and does not in faiss: `range_search(x, r)` here is `range_search(x, r + 1)` there.

        Raises:
            ImportError: faiss is not installed.
            ValueError: the length is not a multiple of 8, which faiss asks for.
        """
        return libraries.to_faiss(self._length, self._state)

    def to_lancedb(self, connection, name: str) -> Any:
        """The same codes and ids as a new LanceDB table: `id`, and `vector` (uint8 lists) for `hamming` searches.

        Args:
            connection: what `lancedb.connect` gives.
            name: of the table.

        Returns:
            The table.

        Raises:
            ImportError: pyarrow is not installed.
            TypeError: an argument does not fit.
        """
        return libraries.to_lancedb(self._length, self._state, connection, name)

    def to_milvus(self, client, name: str) -> None:
        """The same codes and ids as a new Milvus collection: `id`, and `vector` (binary), indexed by BIN_FLAT.

        Args:
            client: a `pymilvus.MilvusClient`, of a server or of a file (milvus-lite).
            name: of the collection.

        Raises:
            ImportError: pymilvus is not installed.
            TypeError: an argument does not fit.
            ValueError: the length is not a multiple of 8, which Milvus asks for.
        """
        libraries.to_milvus(self._length, self._state, client, name)

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
        length, rows, ids = libraries.read_faiss(index)
        out = cls(length)
        if len(rows):
            out.add(rows, ids)
        return out
