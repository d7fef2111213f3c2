"""The gradient that given weights combine: dU, and dW and dc where the lengths' own are known; or the report alone.

A program owns a tile of dU, or of dW; the first also writes the report. One launch. Bytes: the deltas once, dU once.
Small batches need none of it: the backward kernel forms dU for itself.
"""

from functools import cache
from typing import NamedTuple

import triton
import triton.language as tl

from . import tiles
from .device import closed_form
from .device.arithmetic import zeros
from .device.closed_form import Report, write_report


class Shape(NamedTuple):
    """What is fixed when the kernel is compiled.

    Attributes:
        ready: the lengths' own gradients are there. report: the first program writes it.
        nan: dU is NaN where the outputs are not finite.
    """

    lengths: tuple[int, ...]
    total: int
    slots: int
    tiles: tiles.Tiles
    distill: bool
    report: bool
    ready: bool
    nan: bool


@cache
def shape(lengths, tile, distill, report, ready, nan) -> Shape:
    slots = tiles.power_of_two(len(lengths), 1)
    return Shape(lengths, sum(lengths), slots, tile, distill, report, ready, nan)


@triton.jit
def combined_tile(
    weights, deltas, u, rows, columns, num_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """A tile of dU = sum_k a_k pad(delta_k), weights (m,) in memory; `nan`: NaN where outputs u are not finite."""
    L: tl.constexpr = SHAPE.lengths[-1]
    acc = zeros(ROWS, COLUMNS)
    if SHAPE.nan:
        inside = (rows < num_rows)[:, None] & (columns < L)[None, :]
        outputs = tl.load(u + rows[:, None] * L + columns[None, :], mask=inside, other=0.0)
        acc += outputs - outputs
    offset = 0
    for k in tl.static_range(len(SHAPE.lengths)):
        at = deltas + rows[:, None] * SHAPE.total + offset + columns[None, :]
        delta = tl.load(at, mask=(rows < num_rows)[:, None] & (columns < SHAPE.lengths[k])[None, :], other=0.0)
        acc += tl.load(weights + k).to(tl.float32) * delta
        offset += SHAPE.lengths[k]
    return acc


@triton.jit
def _weighted_gradients(
    weights, gradients, sums, dw, db, columns, wide, with_bias, num_features, splits, SHAPE: tl.constexpr
):  # fmt: skip
    """A tile of dW = sum_k a_k pad(delta_k^T F) and, in the first tiles, dc from the deltas' column sums."""
    L: tl.constexpr = SHAPE.lengths[-1]
    slots = tl.arange(0, SHAPE.slots)
    acc = zeros(SHAPE.tiles.columns, SHAPE.tiles.width)
    bias = columns * 0.0
    offset = 0
    for k in tl.static_range(len(SHAPE.lengths)):
        weight, inside = tl.sum(tl.where(slots == k, weights, 0.0), 0), columns < SHAPE.lengths[k]
        at = gradients + (offset + columns)[:, None].to(tl.int64) * num_features + wide[None, :]
        acc += weight * tl.load(at, mask=inside[:, None] & (wide < num_features)[None, :], other=0.0)
        if with_bias:
            for split in range(splits):
                bias += weight * tl.load(sums + split * SHAPE.total + offset + columns, mask=inside, other=0.0)
        offset += SHAPE.lengths[k]
    at = dw + columns[:, None].to(tl.int64) * num_features + wide[None, :]
    tl.store(at, acc, mask=(columns < L)[:, None] & (wide < num_features)[None, :])
    if with_bias:
        tl.store(db + columns, bias, mask=columns < L)


@triton.jit(do_not_specialize=["num_rows", "losses_count", "distill_count", "splits", "row_tiles"])
def combine_kernel(
    deltas, u, fixed, losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count,
    distill_scale, gradients, sums, du, dw, db, num_rows, num_features, splits, row_tiles, SHAPE: tl.constexpr,
):  # fmt: skip
    """A tile of dU, or of dW where the lengths' own gradients are there."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    column_tiles: tl.constexpr = (L + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    slots = tl.arange(0, SHAPE.slots)
    weights = tl.load(fixed + slots, mask=slots < M, other=0.0).to(tl.float32)
    if SHAPE.report:  # noqa: SIM102 (the first is known when compiled)
        if program == 0:
            report = (
                losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count,
                distill_scale,
            )  # fmt: skip
            write_report(weights, report, SHAPE)
    if program < row_tiles * column_tiles:
        rows = (program // column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        columns = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
        acc = combined_tile(fixed, deltas, u, rows, columns, num_rows, ROWS, COLUMNS, SHAPE)
        mask = (rows < num_rows)[:, None] & (columns < L)[None, :]
        tl.store(du + rows[:, None] * L + columns[None, :], acc, mask=mask)
    elif SHAPE.ready:
        rest = program - row_tiles * column_tiles
        columns = (rest % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
        wide = (rest // column_tiles).to(tl.int64) * SHAPE.tiles.width + tl.arange(0, SHAPE.tiles.width)
        with_bias = rest < column_tiles
        _weighted_gradients(
            weights, gradients, sums, dw, db, columns, wide, with_bias, num_features, splits, SHAPE
        )  # fmt: skip


def config(num_rows: int, longest: int) -> tiles.Tiles:
    return tiles.Tiles(rows=16 if num_rows <= 1024 else 64, columns=16 if longest <= 16 else 32, width=64)


def launch(
    deltas, u, code_lengths, weights, *, report: Report | None = None, gradients=None, sums=None, du=None, dw=None,
    db=None, nan=False,
) -> None:  # fmt: skip
    """dU (N, L) from the deltas (N, T) and the weights (m,), if `du` is given, and the report of fixed weights.

    gradients (T, d) and sums (splits, T): fill dw (L, d) and db (L,) too.
    nan: where the outputs u are not finite, dU is NaN.
    """
    n, longest, weights = deltas.shape[0], code_lengths[-1], weights.contiguous()
    tile = config(n, longest)
    row_tiles = 0 if du is None else tile.row_tiles(n)
    column_tiles = triton.cdiv(longest, tile.columns)
    ready, d = gradients is not None, 1 if gradients is None else gradients.shape[1]
    programs = row_tiles * column_tiles + (column_tiles * triton.cdiv(d, tile.width) if ready else 0)
    reported = (*[weights] * 6, 0, 0, 0.0) if report is None else report.arguments()
    rest = (weights if tensor is None else tensor for tensor in (gradients, sums, du, dw, db))
    distill = report is not None and report.distill is not None
    combine_kernel[(max(programs, 1),)](
        deltas, weights if u is None else u, weights, *reported, *rest, n, d, 0 if sums is None else sums.shape[0],
        row_tiles, SHAPE=shape(tuple(code_lengths), tile, distill, report is not None, ready, nan),
        **tile.options(spend=False),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    floats = ("deltas", "u", "fixed", "gradients", "sums", "du", "dw", "db")
    types = closed_form.SIGNATURE | dict.fromkeys(floats, "*fp32")
    types |= dict.fromkeys(("num_rows", "splits", "row_tiles"), "i32") | {"num_features": "i32:16"}
    found = []
    for rows, report in ((64, True), (32768, False)):
        tile = config(rows, 128)
        fixed = {"SHAPE": shape(lengths, tile, True, report, not report, True)}
        found.append(
            (f"{'fixed' if report else 'dominance'}/n{rows}", combine_kernel, types, fixed, tile.options(spend=False))
        )
    return found
