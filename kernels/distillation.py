"""Long-short cascade self-distillation: D_k and its gradient from recomputed tiles of the Gram matrices.

Two launches and no N x N matrix in memory. The first gives, per row and length, the norm of the row of G_k, the
component of the difference along it, and the row's part of D_k; the second, from tiles of G_k and G_{k+1}, the
slope of both orders (ij and ji) times the rows. A job is one length (or a slice of a long one's gradient).
Operations per pair of rows: 3 products of b_{k+1} and one of b_k for each k. Bytes: U once a row tile (from L2).
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles
from .device.arithmetic import dot, load_tile, zeros

NORMS = tiles.Tiles(rows=16, columns=64, bits=32, warps=8)
GRADIENT = tiles.Tiles(rows=16, columns=32, bits=32, width=64, warps=4)
# Where that still makes MANY programs, about one a multiprocessor: each column is loaded for more rows.
MANY = 128
MANY_NORMS = tiles.Tiles(rows=64, columns=64, bits=32, warps=4, stages=3)
MANY_GRADIENT = tiles.Tiles(rows=64, columns=32, bits=32, width=64, warps=4, stages=3)
EPSILON = tl.constexpr(1e-12)


class Shape(NamedTuple):
    """What is fixed when a kernel is compiled; of the second also `jobs`."""

    lengths: tuple[int, ...]
    total: int
    slots: int
    tiles: tiles.Tiles
    precision: str
    jobs: tuple[tiles.Job, ...] = ()


@cache
def shape(lengths, tile, precision) -> Shape:
    jobs = tiles.jobs(lengths[:-1], tile.width) if tile.width else ()
    return Shape(lengths, sum(lengths), tiles.power_of_two(len(lengths), 1), tile, precision, jobs)


def many(num_rows: int, num_lengths: int, precision: str) -> bool:
    """Whether the larger tiles make programs enough."""
    return precision != "ieee" and MANY_NORMS.row_tiles(num_rows) * (num_lengths - 1) >= MANY


def norms_tile(num_rows: int, num_lengths: int, precision: str, generation: int = 9) -> tiles.Tiles:
    """Larger where there are columns for it, and registers: the FMA units take more, and cards before Hopper."""
    if precision == "ieee" or num_rows <= 128:
        return NORMS
    return MANY_NORMS if many(num_rows, num_lengths, precision) and generation >= 9 else NORMS._replace(columns=128)


def gradient_tile(num_rows: int, num_lengths: int, precision: str) -> tiles.Tiles:
    return MANY_GRADIENT if many(num_rows, num_lengths, precision) else GRADIENT


@triton.jit
def _gram_pair(u, first_row, first_column, num_rows, K: tl.constexpr, SHAPE: tl.constexpr):
    """A tile of G_k and of G_{k+1}."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    BITS: tl.constexpr = SHAPE.tiles.bits
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[K]
    NEXT: tl.constexpr = SHAPE.lengths[K + 1]
    PRECISION: tl.constexpr = SHAPE.precision
    short = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, B, BITS):
        bits = start + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, L)
        y = load_tile(u, first_column, num_rows, bits, B, COLUMNS, L)
        short = dot(x, tl.trans(y), short, PRECISION)
    long = short
    for start in range(B, NEXT, BITS):
        bits = start + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, NEXT, ROWS, L)
        y = load_tile(u, first_column, num_rows, bits, NEXT, COLUMNS, L)
        long = dot(x, tl.trans(y), long, PRECISION)
    return short, long


@triton.jit
def _inverse(norm):
    return 1 / tl.maximum(norm, EPSILON)


@triton.jit
def _row_statistics(u, norms, alongs, partial, num_rows, K: tl.constexpr, SHAPE: tl.constexpr):
    ROWS: tl.constexpr = SHAPE.tiles.rows
    M: tl.constexpr = len(SHAPE.lengths)
    tile = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, ROWS)
    first_row = tile * ROWS
    inside = rows < num_rows - first_row
    short_square = tl.zeros((ROWS,), tl.float32)
    long_square = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_rows, SHAPE.tiles.columns):
        short, long = _gram_pair(u, first_row, tile * 0 + start, num_rows, K, SHAPE)
        short_square += tl.sum(short * short, axis=1)
        long_square += tl.sum(long * long, axis=1)
    short_norm = tl.sqrt_rn(short_square)
    long_norm = tl.sqrt_rn(long_square)
    short_inverse = _inverse(short_norm)[:, None]
    long_inverse = _inverse(long_norm)[:, None]
    along = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_rows, SHAPE.tiles.columns):
        short, long = _gram_pair(u, first_row, tile * 0 + start, num_rows, K, SHAPE)
        unit = short * short_inverse
        difference = unit - long * long_inverse
        along += tl.sum(unit * difference, axis=1)
        squares += tl.sum(difference * difference, axis=1)
    place = (first_row + rows) * M + K
    tl.store(norms + place, short_norm, mask=inside)
    tl.store(alongs + place, along, mask=inside)
    if K == M - 2:
        tl.store(norms + place + 1, long_norm, mask=inside)
    tl.store(partial + tile * M + K, tl.sum(squares))


@triton.jit(do_not_specialize=["num_rows"])
def statistics_kernel(u, norms, alongs, partial, num_rows, SHAPE: tl.constexpr):
    """Grid (row tiles, m - 1): norms and alongs (N, m), partial sums of ||difference||^2 (row tiles, m)."""
    for k in tl.static_range(len(SHAPE.lengths) - 1):
        if tl.program_id(1) == k:
            _row_statistics(u, norms, alongs, partial, num_rows, k, SHAPE)


@triton.jit
def _gradient(u, norms, alongs, deltas, num_rows, weight, J: tl.constexpr, SHAPE: tl.constexpr):
    JOB: tl.constexpr = SHAPE.jobs[J]
    PRECISION: tl.constexpr = SHAPE.precision
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    ROWS: tl.constexpr = SHAPE.tiles.rows
    K: tl.constexpr = JOB.k
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[K]
    tile = tl.program_id(0).to(tl.int64)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    bits = JOB.first + tl.arange(0, JOB.width)
    own_norm = tl.load(norms + rows * M + K, mask=rows < num_rows, other=0.0)
    own_along = tl.load(alongs + rows * M + K, mask=rows < num_rows, other=0.0)
    own_inverse = _inverse(own_norm)
    own_next = _inverse(tl.load(norms + rows * M + K + 1, mask=rows < num_rows, other=0.0))
    own_scale = tl.where(own_norm > EPSILON, own_inverse, 0.0)
    found = zeros(ROWS, JOB.width)
    for start in range(0, num_rows, COLUMNS):
        columns = tile * 0 + start + tl.arange(0, COLUMNS)
        norm = tl.load(norms + columns * M + K, mask=columns < num_rows, other=0.0)
        along = tl.load(alongs + columns * M + K, mask=columns < num_rows, other=0.0)
        inverse = _inverse(norm)
        following = _inverse(tl.load(norms + columns * M + K + 1, mask=columns < num_rows, other=0.0))
        scale = tl.where(norm > EPSILON, inverse, 0.0)
        short, long = _gram_pair(u, first_row, tile * 0 + start, num_rows, K, SHAPE)
        unit = short * own_inverse[:, None]
        slope = (unit - long * own_next[:, None] - unit * own_along[:, None]) * own_scale[:, None]
        unit = short * inverse[None, :]
        slope += (unit - long * following[None, :] - unit * along[None, :]) * scale[None, :]
        y = load_tile(u, tile * 0 + start, num_rows, bits, B, COLUMNS, L)
        found = dot(slope, y, found, PRECISION)
    size = num_rows * 1.0
    place = rows[:, None] * SHAPE.total + JOB.offset + bits[None, :]
    mask = (rows[:, None] < num_rows) & (bits[None, :] < B)
    found = tl.load(deltas + place, mask=mask, other=0.0) + weight * (2 / (size * size)) * found
    tl.store(deltas + place, found, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "row_tiles"])
def gradient_kernel(
    u, norms, alongs, partial, values, deltas, num_rows, row_tiles, weight, SHAPE: tl.constexpr
):  # fmt: skip
    """Grid (row tiles, jobs): deltas += weight * dD/du; the first program adds up the values."""
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(1) == j:
            _gradient(u, norms, alongs, deltas, num_rows, weight, j, SHAPE)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        M: tl.constexpr = len(SHAPE.lengths)
        slots = tl.arange(0, SHAPE.slots)
        total = slots * 0.0
        for start in range(0, row_tiles, 32):
            at = start + tl.arange(0, 32)
            mask = (at[:, None] < row_tiles) & (slots[None, :] < M - 1)
            total += tl.sum(tl.load(partial + at[:, None] * M + slots[None, :], mask=mask, other=0.0), axis=0)
        size = num_rows * 1.0
        tl.store(values + slots, total / (size * size), mask=slots < M)


def launch(u: torch.Tensor, lengths, weight: float, values: torch.Tensor, deltas: torch.Tensor) -> None:
    """Fill `values` (m,) with D_k and add weight * dD_k/du_k to `deltas` (N, sum of the lengths); u float32."""
    lengths = tiles.check_lengths(lengths)
    n, m = u.shape[0], len(lengths)
    if m == 1:
        values.zero_()
        return
    precision = tiles.dot_precision()
    norms, alongs = u.new_empty(n, m), u.new_empty(n, m)
    tile = norms_tile(n, m, precision, tiles.generation(u.device))
    row_tiles = tile.row_tiles(n)
    partial = u.new_empty(row_tiles, m)
    statistics_kernel[(row_tiles, m - 1)](
        u, norms, alongs, partial, n, SHAPE=shape(lengths, tile, precision), **tile.options()
    )
    tile = gradient_tile(n, m, precision)
    fixed = shape(lengths, tile, precision)
    gradient_kernel[(tile.row_tiles(n), len(fixed.jobs))](
        u, norms, alongs, partial, values, deltas, n, row_tiles, float(weight), SHAPE=fixed, **tile.options()
    )


def variants(lengths=(8, 16, 32, 64, 128), generation: int = 9):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    made = []
    signature = {**dict.fromkeys(("u", "norms", "alongs", "partial"), "*fp32"), "num_rows": "i32"}
    gradient = {**signature, "values": "*fp32", "deltas": "*fp32", "row_tiles": "i32", "weight": "fp32"}
    for precision in tiles.PRECISIONS:
        seen = set()
        for rows in (64, 256, 4096):
            for name, kernel, types, tile in (
                ("statistics", statistics_kernel, signature, norms_tile(rows, len(lengths), precision, generation)),
                ("gradient", gradient_kernel, gradient, gradient_tile(rows, len(lengths), precision)),
            ):
                if (name, tile) in seen:
                    continue
                seen.add((name, tile))
                constants = {"SHAPE": shape(lengths, tile, precision)}
                made.append((f"{name}_n{rows}/{precision}", kernel, types, constants, tile.options()))
    return made
