"""Hamming distances, top-k search and radius search over packed codes.

The reference bodies define the results. With bits as +-1 values, the b-bit distance is (b - <q, d>_b) / 2,
and the inner product over a longer prefix is the one over the shorter plus the new columns; the sums are
small integers, exact in float32 whatever matmul precision torch is set to. Work goes in tiles of queries x
database items, so that the extra memory is bounded by `chunk_bytes` whatever the size of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from .. import native
from ..core import check
from ..core.arrays import as_output, as_tensor, check_output
from ..core.operation import Operation
from . import codes

DEFAULT_CHUNK_BYTES = 256 * 2**20

# On a CPU larger tiles gain nothing: their passes leave the cache.
_CPU_TILE_BYTES = 32 * 2**20


# --------------------------------------------------------------------------------------------- public calls


@check.memory
@torch.no_grad()
def hamming_distances(
    queries,
    database,
    lengths=None,
    *,
    output: str = "tensor",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> torch.Tensor:
    """Hamming distances between all queries and all database items.

    Args:
        queries: (Q, bytes) packed uint8 rows (see `pack_codes`), tensor or NumPy array; bits as bool or as -1 and +1,
            (Q, L), are packed. One code (bytes,) gives results without the dimension Q.
        database: (n, bytes) packed uint8 rows on the same device. Rows of unequal width may meet where a
            length is given that both hold.
        lengths: None for all bits of the rows; an int for one prefix; a strictly increasing sequence for
            several.
        output: "tensor", or "numpy" for an array.
        chunk_bytes: bound on the memory taken beyond the result (at least one item's worth is used).
        backend: "auto", "reference", "cpp" or "cuda".

    Returns:
        int32 tensor, (Q, n), or (m, Q, n) for a sequence of m lengths.

    Raises:
        TypeError, ValueError: a dtype, shape, device or length that does not fit, naming the argument.
    """
    several = lengths is not None and hasattr(lengths, "__iter__")
    queries, database, lengths, one = check_pair(queries, database, lengths, "lengths")
    check_output(output)
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    distances = DISTANCES(*_cut(queries, database, lengths[-1]), lengths, chunk_bytes, backend=backend)
    distances = distances[:, 0] if one else distances
    return as_output((distances if several else distances[0],), output)[0]


@check.memory  # no torch.no_grad: packed rows have no gradient, and it takes two microseconds
def search(
    queries,
    database,
    k: int,
    length: int | None = None,
    *,
    allow=None,
    beyond: str = "raise",
    output: str = "tensor",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact search of all items: `nhl_fast.search`, which see, without a funnel."""
    queries, database, lengths, one = check_pair(queries, database, length, "length")
    check_output(output)
    count, width = check_k(k, len(database), f"n = {len(database)}, the database's items", beyond)
    allow = check_allow(allow, database)
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    found = nearest(queries, database, count, lengths[0], allow, chunk_bytes, backend)
    return shaped(found, width, one, output)


def check_k(k, available: int, what: str, beyond: str) -> tuple[int, int]:
    """(neighbours to look for, columns of the result) for a k that may go beyond the items there are."""
    k = check.positive_int(k, "k")
    check.one_of(beyond, "beyond", ("raise", "cut", "pad"))
    if k <= available:
        return k, k
    if beyond == "raise":
        raise ValueError(f"k: expected at most {what}, got {k}")
    return available, available if beyond == "cut" else k


def shaped(found, width: int, one: bool, output: str):
    """Results (Q, c) as they are asked for: padded with -1 to a width, without Q, as arrays."""
    missing = width - found[0].shape[1]
    if missing:
        found = tuple(torch.nn.functional.pad(result, (0, missing), value=-1) for result in found)
    if one:
        found = tuple(result[0] for result in found)
    return as_output(found, output)


def nearest(queries, database, k, length, allow, chunk_bytes, backend) -> tuple[torch.Tensor, torch.Tensor]:
    """`search` with checked arguments; rows may be wider than the length."""
    return SEARCH(*_cut(queries, database, length), k, length, allow, chunk_bytes, backend=backend)


@check.memory
@torch.no_grad()
def radius_search(
    queries,
    database,
    radius: int,
    length: int | None = None,
    *,
    allow=None,
    output: str = "tensor",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All database items within a Hamming radius of every query, by distance, then by ascending id.

    Args:
        queries, database, length, allow, output, backend: as for `search`; one code as `queries` is Q = 1.
        radius: largest distance that counts, 0 or more (faiss's `range_search` leaves out the radius itself).
        chunk_bytes: bound on the memory taken beyond a small multiple of the result.

    Returns:
        (offsets, distances, ids): int64 (Q + 1,), int32 (total,), int64 (total,). The neighbours of query q
        are the entries offsets[q] to offsets[q + 1].

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    queries, database, lengths, _ = check_pair(queries, database, length, "length")
    check_output(output)
    radius = check.positive_int(radius, "radius", minimum=0)
    allow = check_allow(allow, database)
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    return as_output(within(queries, database, radius, lengths[0], allow, chunk_bytes, backend), output)


def within(queries, database, radius, length, allow, chunk_bytes, backend):
    """`radius_search` with checked arguments; rows may be wider than the length."""
    radius = min(radius, length)
    return RADIUS(*_cut(queries, database, length), radius, length, allow, chunk_bytes, backend=backend)


def check_pair(queries, database, lengths, name: str) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...], bool]:
    """Checked rows, the lengths as a tuple, and whether `queries` was one code."""
    queries, one = codes.check_rows(queries, "queries")
    database = codes.check_packed(database, "database")
    if queries.device != database.device:
        raise ValueError(f"database: expected device {queries.device}, that of queries, got {database.device}")
    width = min(queries.shape[1], database.shape[1])
    if lengths is None:
        if queries.shape[1] != database.shape[1]:
            raise ValueError(
                f"database: expected rows of {queries.shape[1]} bytes, as queries, got "
                f"{check.describe(database)}; pass {name} to compare a prefix"
            )
        lengths = (8 * width,)
    elif name == "lengths" and hasattr(lengths, "__iter__"):
        lengths = codes.check_lengths(lengths, width, name)
    else:
        lengths = (codes.check_length(lengths, width, name),)
    return queries, database, lengths, one


def _cut(queries: torch.Tensor, database: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both cut to the bytes that the length uses."""
    used = codes.num_bytes(length)
    # A view takes a microsecond, which counts where one query takes ten.
    if queries.shape[1] != used:
        queries = queries[:, :used]
    return queries, database if database.shape[1] == used else database[:, :used]


def check_allow(allow, database: torch.Tensor) -> torch.Tensor | None:
    if allow is None:
        return None
    allow = check.tensor(as_tensor(allow, "allow"), "allow")
    if allow.dtype != torch.bool:
        raise TypeError(f"allow: expected a bool mask, got {check.describe(allow)}")
    if allow.shape != (len(database),):
        raise ValueError(f"allow: expected shape ({len(database)},), one value an item, got {check.describe(allow)}")
    return check.present(allow, "allow").to(database.device)


# ------------------------------------------------------------------------------------------ results of parts


def merge_nearest(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], k: int, ascending: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of parts (distances, ids), both (Q, c), by distance, then by ascending id; all, if fewer.

    Args:
        ascending: every id of a part is above those of the parts before it, and each part is in order.
    """
    distances, ids = (torch.cat(columns, 1) for columns in zip(*parts))
    if not ascending:
        ids, order = ids.sort(dim=1)
        distances = distances.gather(1, order)
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k], ids.gather(1, order[:, :k])


def merge_within(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The (offsets (Q + 1,), distances, ids) of radius searches of parts as those of one, for codes of a length."""
    rows = [torch.repeat_interleave(offsets.diff(), output_size=len(found)) for offsets, found, _ in parts]
    distances, ids = (torch.cat(column) for column in list(zip(*parts))[1:])
    ids, order = ids.sort()
    distances = distances[order]
    keys = torch.cat(rows)[order] * (length + 1) + distances
    order = keys.argsort(stable=True)
    return sum(offsets for offsets, _, _ in parts), distances[order], ids[order]


# ------------------------------------------------------------------------------------------------- the tiles


def signs(rows: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` bits of packed rows as +-1.0, (N, length) float32."""
    return codes.unpack_codes(rows, length).to(torch.float32)


def spans(total: int, step: int) -> list[slice]:
    """Consecutive slices of at most `step` that cover range(total)."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def tile_shape(
    num_queries: int,
    num_database: int,
    row_bytes: int,
    pair_bytes: int,
    chunk_bytes: int,
    device: torch.device,
) -> tuple[int, int]:
    """(queries, items) of a tile, from the bytes that a query or item alone and a pair of them need.

    Half of `chunk_bytes` is for the items alone, half for the queries and the pairs.
    """
    half = max(1, chunk_bytes // 2)
    items = max(1, min(num_database, half // (row_bytes + pair_bytes)))
    tile = min(half, _CPU_TILE_BYTES) if device.type == "cpu" else half
    return max(1, min(num_queries, tile // (items * pair_bytes + row_bytes))), items


def prefix_products(queries: torch.Tensor, items: torch.Tensor, lengths) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (b, <q, d>_b) for every length b, shortest first: one (Q, n) float32 tensor, updated in place.

    Args:
        queries: (Q, L) of +-1.
        items: (L, n) of +-1: a column an item, so that the columns of a prefix are contiguous memory.
    """
    product = queries.new_zeros(len(queries), items.shape[1])
    start = 0
    for b in lengths:
        product.addmm_(queries[:, start:b], items[start:b])
        start = b
        yield b, product


def _distance_tiles(
    queries: torch.Tensor, database: torch.Tensor, lengths, pair_bytes: int, chunk_bytes: int
) -> Iterator[tuple[slice, slice, int, torch.Tensor]]:
    """Yield (query slice, item slice, index of the length, int32 distances), items outermost."""
    longest = lengths[-1]
    # A row's signs: the bits, as int8, float32, and float32 transposed.
    rows, items = tile_shape(len(queries), len(database), 10 * longest, 12 + pair_bytes, chunk_bytes, queries.device)
    for item_span in spans(len(database), items):
        columns = signs(database[item_span], longest).T.contiguous()
        for query_span in spans(len(queries), rows):
            products = prefix_products(signs(queries[query_span], longest), columns, lengths)
            for j, (b, product) in enumerate(products):
                yield query_span, item_span, j, (b - product).mul_(0.5).to(torch.int32)


# ---------------------------------------------------------------------------------------- reference bodies


def _distances_reference(queries, database, lengths, chunk_bytes) -> torch.Tensor:
    out = torch.empty(len(lengths), len(queries), len(database), dtype=torch.int32, device=queries.device)
    for query_span, item_span, j, distances in _distance_tiles(queries, database, lengths, 4, chunk_bytes):
        out[j, query_span, item_span] = distances
    return out


def _search_reference(queries, database, k, length, allow, chunk_bytes) -> tuple[torch.Tensor, torch.Tensor]:
    # One int64 key orders by (distance, id) and has no ties, so any exact top-k of the keys is the answer.
    n = len(database)
    absent = (length + 1) * n
    best = torch.full((len(queries), k), absent, dtype=torch.int64, device=queries.device)
    ids = torch.arange(n, device=queries.device)
    for query_span, item_span, _, distances in _distance_tiles(queries, database, (length,), 40, chunk_bytes):
        keys = distances.long() * n + ids[item_span]
        if allow is not None:
            keys.masked_fill_(~allow[item_span], absent)
        if keys.shape[1] > k:
            keys = keys.topk(k, dim=1, largest=False).values
        keys = torch.cat([best[query_span], keys], dim=1)
        best[query_span] = keys.topk(k, dim=1, largest=False).values
    missing = best == absent
    return (best // n).to(torch.int32).masked_fill_(missing, -1), (best % n).masked_fill_(missing, -1)


def _radius_reference(queries, database, radius, length, allow, chunk_bytes):
    device = queries.device
    rows = [torch.empty(0, dtype=torch.int64, device=device)]
    ids, found = [rows[0]], [rows[0].to(torch.int32)]
    for query_span, item_span, _, distances in _distance_tiles(queries, database, (length,), 40, chunk_bytes):
        inside = distances <= radius
        if allow is not None:
            inside &= allow[item_span]
        row, item = inside.nonzero(as_tuple=True)
        rows.append(row + query_span.start)
        ids.append(item + item_span.start)
        found.append(distances[row, item])
    rows, ids, found = torch.cat(rows), torch.cat(ids), torch.cat(found)
    # Item spans come in ascending order, so a stable sort by (query, distance) leaves the ids ascending.
    order = (rows * (length + 1) + found).argsort(stable=True)
    offsets = torch.zeros(len(queries) + 1, dtype=torch.int64, device=device)
    torch.cumsum(torch.bincount(rows, minlength=len(queries)), 0, out=offsets[1:])
    return offsets, found[order], ids[order]


# ----------------------------------------------------------------------------------------------- operations
# The native bodies bound their own memory: `chunk_bytes` is the reference's.

DISTANCES = Operation("hamming_distances", _distances_reference, strict=True)
SEARCH = Operation("search", _search_reference, strict=True)
RADIUS = Operation("radius_search", _radius_reference, strict=True)


def too_long(engine: str, place: int) -> Callable[..., str | None]:
    """`refuses` of a native engine: codes beyond its bits. The length, or the lengths, are argument `place`."""
    most = native.MAX_BITS[engine]

    def refuses(*args) -> str | None:
        length = args[place] if isinstance(args[place], int) else args[place][-1]
        return None if length <= most else f"codes of {length} bits, the engine takes at most {most}"

    return refuses


@DISTANCES.serves("cuda", on="cuda", refuses=too_long("cuda", 2))
@DISTANCES.serves("cpp", on="cpu", refuses=too_long("cpp", 2))
def _distances_native(queries, database, lengths, chunk_bytes) -> torch.Tensor:
    return native.distances(queries, database, lengths)


@SEARCH.serves("cuda", on="cuda", refuses=too_long("cuda", 3))
@SEARCH.serves("cpp", on="cpu", refuses=too_long("cpp", 3))
def _search_native(queries, database, k, length, allow, chunk_bytes) -> tuple[torch.Tensor, torch.Tensor]:
    return native.topk(queries, database, k, length, allow)


@RADIUS.serves("cuda", on="cuda", refuses=too_long("cuda", 3))
@RADIUS.serves("cpp", on="cpu", refuses=too_long("cpp", 3))
def _radius_native(queries, database, radius, length, allow, chunk_bytes):
    return native.radius(queries, database, radius, length, allow)
