"""What follows the pairs: the parts of the columns added up in a fixed order, scaled, with the penalty.

A program owns a tile of the gradient; the first also adds up the values. One launch. Bytes: parts x rows x
sum(lengths) floats in, as much as one part out. A program loads several parts at once.
"""

import math
from functools import cache
from typing import NamedTuple

import triton
import triton.language as tl

from . import tiles
from .device import penalties
from .device.arithmetic import clamped, zeros

CONFIG = tiles.Tiles(rows=16, columns=64)
PARTS = tl.constexpr(8)  # loaded at once


class Shape(NamedTuple):
    """What is fixed when the kernel is compiled."""

    lengths: tuple[int, ...]
    total: int
    slots: int
    tiles: tiles.Tiles
    penalty: str
    clamp: float
    add: bool
    weighed: bool = False


@cache
def shape(lengths, tile, penalty, clamp, add, weighed=False) -> Shape:
    return Shape(lengths, sum(lengths), tiles.power_of_two(len(lengths), 1), tile, penalty, clamp, add, weighed)


@triton.jit
def _sums(values, count, SHAPE: tl.constexpr):
    """Sums over the rows of values (count, m), in slots."""
    M: tl.constexpr = len(SHAPE.lengths)
    slots = tl.arange(0, SHAPE.slots)
    found = slots * 0.0
    for start in range(0, count, 128):
        at = start + tl.arange(0, 128)
        inside = (at[:, None] < count) & (slots[None, :] < M)
        found += tl.sum(tl.load(values + at[:, None] * M + slots[None, :], mask=inside, other=0.0), axis=0)
    return found


@triton.jit
def _sum_parts(gradients, at, mask, num_rows, num_parts, SHAPE: tl.constexpr):
    """A tile of gradients (parts, N, T), its parts added up."""
    found = zeros(SHAPE.tiles.rows, SHAPE.tiles.columns)
    stride = tl.cast(num_rows, tl.int64) * SHAPE.total
    for first in range(0, num_parts, PARTS):
        part = first + tl.arange(0, PARTS)
        known = (part < num_parts)[:, None, None] & mask[None, :, :]
        here = gradients + part[:, None, None] * stride + at[None, :, :]
        found += tl.sum(tl.load(here, mask=known, other=0.0), axis=0)
    return found


@triton.jit(do_not_specialize=["num_rows", "num_parts", "row_tiles"])
def finish_kernel(
    u, gradients, values, counts, statistics, out_values, deltas, num_rows, num_parts, row_tiles, penalty_weight, c,
    SHAPE: tl.constexpr, weights=None,
):  # fmt: skip
    """Sums the parts in order, scales by 1 / count, adds the penalty; with `add` to what the outputs hold.

    values (row tiles * parts, then row tiles for the penalty; m).
    """
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    PENALTY: tl.constexpr = SHAPE.penalty
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    tile = tl.program_id(0).to(tl.int64)
    programs = row_tiles * num_parts
    total = tile * 0
    for start in range(0, programs, 512):
        at = start + tl.arange(0, 512)
        total += tl.sum(tl.load(counts + at, mask=at < programs, other=0))
    scale = 1.0 / tl.maximum(total, 1).to(tl.float32)
    spread = penalty_weight / (num_rows * 1.0)

    rows = tile * ROWS + tl.arange(0, ROWS)
    places = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = places * 0
    first = places * 0
    b = places * 0 + SHAPE.lengths[0]
    passed = 0
    for i in tl.static_range(M - 1):
        passed += SHAPE.lengths[i]
        k = tl.where(places >= passed, i + 1, k)
        first = tl.where(places >= passed, passed, first)
        b = tl.where(places >= passed, SHAPE.lengths[i + 1], b)
    mask = (rows[:, None] < num_rows) & (places[None, :] < SHAPE.total)
    at = rows[:, None] * SHAPE.total + places[None, :]
    found = scale * _sum_parts(gradients, at, mask, num_rows, num_parts, SHAPE)
    if PENALTY != "none" or SHAPE.clamp < float("inf"):
        x = tl.load(u + rows[:, None] * L + (places - first)[None, :], mask=mask, other=0.0)
        passes = tl.abs(x) <= SHAPE.clamp
        x = clamped(x, SHAPE.clamp)
        if PENALTY != "none":
            row = 2 * (rows[:, None] * M + k[None, :])
            sums = tl.load(statistics + row, mask=mask, other=0.0)
            squares = tl.load(statistics + row + 1, mask=mask, other=0.0)
            bent = spread * penalties.slope(x, sums, squares, b[None, :].to(tl.float32), c, PENALTY)
            if SHAPE.weighed:
                bent *= tl.load(weights + rows, mask=rows < num_rows, other=0.0)[:, None]
            found += bent
        if SHAPE.clamp < float("inf"):
            found = tl.where(passes, found, 0.0)
    if SHAPE.add:
        found += tl.load(deltas + at, mask=mask, other=0.0)
    tl.store(deltas + at, found, mask=mask)

    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        slots = tl.arange(0, SHAPE.slots)
        loss = scale * _sums(values, programs, SHAPE)
        if PENALTY != "none":
            loss += spread * _sums(values + programs.to(tl.int64) * M, row_tiles, SHAPE)
        if SHAPE.add:
            loss += tl.load(out_values + slots, mask=slots < M, other=0.0)
        tl.store(out_values + slots, loss, mask=slots < M)


def launch(
    u,
    gradients,
    sums,
    counts,
    statistics,
    lengths,
    c,
    penalty,
    clamp: float,
    values,
    deltas,
    add: bool,
    weights=None,
) -> None:
    """Fill (or, with `add`, add to) `values` (m,) and `deltas` (N, T) from what the parts gave.

    gradients (parts, N, T); sums (row tiles * parts, m), with a penalty (row tiles more, m); counts (row tiles *
    parts,) int64 of the pairs that the mean is over; statistics (N, m, 2) where there is a penalty; c two constants;
    weights (N,) of the rows in the penalty, or None for 1.
    """
    parts, n, total = gradients.shape
    finish_kernel[(CONFIG.row_tiles(n), triton.cdiv(total, CONFIG.columns))](
        u, gradients, sums, counts, statistics, values, deltas, n, parts, len(counts) // parts, float(penalty[1]), c,
        SHAPE=shape(lengths, CONFIG, penalty[0], clamp, add, weights is not None),
        **({} if weights is None else {"weights": weights}), **CONFIG.options(),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    names = ("u", "gradients", "values", "statistics", "out_values", "deltas")
    signature = {
        **dict.fromkeys(names, "*fp32"), "counts": "*i64", "num_rows": "i32", "num_parts": "i32",
        "row_tiles": "i32", "penalty_weight": "fp32", "c": ("fp32", "fp32"),
    }  # fmt: skip
    kinds = (("absolute", math.inf), ("log_cosh", math.inf), ("balance", 1.0), ("balance", math.inf),
             ("cauchy", math.inf), ("sign", math.inf), ("none", math.inf))  # fmt: skip
    return [
        (
            penalty + ("-clamped" if clamp < math.inf else "") + ("/weighed" if weights else ""), finish_kernel,
            {**signature, **weights},
            {"SHAPE": shape(lengths, CONFIG, penalty, clamp, penalty == "none", bool(weights))},
            CONFIG.options(),
        )
        for penalty, clamp in kinds
        for weights in ({}, {"weights": "*fp32"})
        if penalty != "none" or not weights
    ]  # fmt: skip
