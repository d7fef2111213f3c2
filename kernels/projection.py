"""The nested projection: U = F W^T + c and, from the same pass over F, the Gram matrix F F^T.

A program owns a tile of U or of the Gram matrix, or a slice of it over the features. One launch: the last program of
a tile that is sliced adds the slices up, and a point-wise loss is taken of a finished tile.

Floor at N = 64, d = 2048, L = 128, float32: 1.6 MB in, 50 MFLOP. At N = 32768: 268 MB in (134 MB in half
precision), 17 GFLOP: memory-bound on the tensor cores, bound by arithmetic in full float32.
"""

import itertools
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import center, tiles
from .center import Loss, tile_losses
from .device.arithmetic import multiply, zeros
from .device.arrival import arrived_last, counters

MIN_SPLIT = 128  # columns of F that one program takes at least
PROGRAMS = 132  # tiles and slices of a small batch at most, see `arrival.SLOT`
SLICES = tl.constexpr(4)  # loaded at once


class Shape(NamedTuple):
    """What is fixed when the kernel is compiled; a tile's depth is features."""

    longest: int
    tiles: tiles.Tiles
    piece: tiles.Tiles
    gram: bool
    partial: bool
    pack: bool
    finite: bool
    precision: str
    loss: center.Shape | None


class Plan(NamedTuple):
    """How a launch is cut up.

    Attributes:
        tiles: of a product. piece: of what is made of a finished tile at a time.
        splits, per_split: slices of the features, and features a slice.
    """

    tiles: tiles.Tiles
    piece: tiles.Tiles
    splits: int
    per_split: int


def small_tile(num_rows: int, mode: str) -> tiles.Tiles:
    side = 32 if num_rows <= 64 else 64
    return tiles.Tiles(rows=side, columns=side, depth=16 if mode == "ieee" else 32, warps=8, stages=3)


def large_tile(num_rows: int, longest: int, mode: str, generation: int = 9) -> tiles.Tiles:
    """As wide as the codes, to read the features once; fewer rows where there would be too few tiles."""
    wide = 128 if longest > 64 and mode != "ieee" else 64
    rows = next(rows for rows in (128, 64, 32) if rows * PROGRAMS <= num_rows or rows == 32)
    if mode == "ieee":
        rows = 64
    elif mode == "tf32x3" and generation < 9:
        rows = min(64, rows)
    return tiles.Tiles(rows=rows, columns=wide, depth=32, warps=8, stages=3)


def plan(num_rows: int, num_features: int, longest: int, gram: bool, mode: str, generation: int = 9) -> Plan:
    """A plain function of the shape, the precision and the card's `tiles.generation`."""
    splits = 1
    if num_rows <= 1024:
        tile = small_tile(num_rows, mode)
        columns = -(-longest // tile.columns) + (-(-num_rows // tile.columns) if gram else 0)
        splits = max(1, min(-(-num_features // MIN_SPLIT), PROGRAMS // (tile.row_tiles(num_rows) * columns)))
    else:
        tile = large_tile(num_rows, longest, mode, generation)
    per_split = -(-num_features // splits)
    per_split = -(-per_split // tile.depth) * tile.depth
    splits = -(-num_features // per_split)
    return Plan(tile, piece(tile, splits > 1), splits, per_split)


def piece(tile: tiles.Tiles, split: bool) -> tiles.Tiles:
    """What a finished tile's sums and losses take at a time: few numbers a thread, so that the code is short.

    What a small batch runs once comes from memory, too. Narrow: short lengths end early in a row. Depth: classes.
    """
    wide = min(32, tile.columns)
    rows = (4 if split else 8) * 32 * tile.warps // wide
    return tiles.Tiles(rows=min(tile.rows, rows), columns=wide, depth=32, warps=tile.warps)


def loss_programs(num_rows: int, num_features: int, longest: int, gram: bool, mode: str, generation: int = 9) -> int:
    """Rows of the partial sums where a launch takes a loss on the way."""
    tile = plan(num_rows, num_features, longest, gram, mode, generation).tiles
    return tile.row_tiles(num_rows) * -(-longest // tile.columns)


def gram_row(num_rows: int) -> int:
    """How far apart the rows of a Gram matrix are: a multiple of 16, whatever the batch, for wide loads."""
    return -(-num_rows // 16) * 16


@cache
def shape(longest, tile, piece, gram, partial, pack, finite, mode, loss) -> Shape:
    return Shape(longest, tile, piece, gram, partial, pack, finite, mode, loss)


@triton.jit
def _rows_product(
    a, b, rows, columns, num_rows, num_columns, start, stop, a_strides, b_strides, SPLIT: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """sum over start <= k < stop of a[rows, k] b[columns, k]."""
    PRECISION: tl.constexpr = SHAPE.precision
    acc = zeros(SHAPE.tiles.rows, SHAPE.tiles.columns)
    for first in range(start, stop, SHAPE.tiles.depth):
        ks = (first + tl.arange(0, SHAPE.tiles.depth)).to(tl.int64)
        x = tl.load(
            a + rows[:, None] * a_strides[0] + ks[None, :] * a_strides[1],
            mask=(rows < num_rows)[:, None] & (ks < stop)[None, :],
            other=0.0,
        ).to(tl.float32)
        y = tl.load(
            b + columns[:, None] * b_strides[0] + ks[None, :] * b_strides[1],
            mask=(columns < num_columns)[:, None] & (ks < stop)[None, :],
            other=0.0,
        ).to(tl.float32)
        acc = multiply(x, tl.trans(y), acc, PRECISION, SPLIT)
    return acc


@triton.jit
def _store_outputs(
    tile, rows, columns, bias, out, num_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """Add the bias and write the outputs, or their signs as packed bits (most significant bit first).

    `finite`: outputs that hold NaN or infinity are a device-side assertion.
    """
    L: tl.constexpr = SHAPE.longest
    inside = (rows < num_rows)[:, None] & (columns < L)[None, :]
    tile += tl.load(bias + columns, mask=columns < L, other=0.0).to(tl.float32)[None, :]
    if SHAPE.finite:
        tl.device_assert(
            (tl.abs(tile) < float("inf")) | (inside == 0),
            "features: the layer's outputs hold NaN or infinity (bad features, or training diverged)",
        )
    if SHAPE.pack:
        ones = tl.where(inside & (tile > 0), 1, 0)
        worth = 1 << (7 - tl.arange(0, 8))
        packed = tl.sum(tl.reshape(ones, (ROWS, COLUMNS // 8, 8)) * worth[None, None, :], 2)
        byte = tl.min(columns, 0) // 8 + tl.arange(0, COLUMNS // 8)
        width = (L + 7) // 8
        tl.store(
            out + rows[:, None] * width + byte[None, :],
            packed.to(tl.uint8),
            mask=(rows < num_rows)[:, None] & (byte < width)[None, :],
        )
    else:
        tl.store(out + rows[:, None] * L + columns[None, :], tile, mask=inside)
    return tile


@triton.jit
def _sum_slices(partial, rows, places, mask, splits, num_rows, width, SHAPE: tl.constexpr):
    """A piece of partial (splits, N, width), its slices added up in their order; they are other programs' stores."""
    stride = tl.cast(num_rows, tl.int64) * width
    at = partial + rows[:, None] * width + places[None, :]
    acc = zeros(SHAPE.piece.rows, SHAPE.piece.columns)
    for first in range(0, splits, SLICES):
        for k in tl.static_range(SLICES):  # so that their loads are in flight together
            part = tl.zeros((1, 1), tl.int32) + (first + k)
            known = mask & (part < splits)
            acc += tl.load(at + part * stride, mask=known, other=0.0, cache_modifier=".cg")
    return acc


@triton.jit(do_not_specialize=["num_rows", "splits"])
def project_kernel(
    x, w, bias, out, gram, partial, counter, labels, centers, ties, values, deltas, num_rows, num_features, gram_row,
    num_classes, splits, per_split, x_strides, w_strides, label_strides, c, FUNCTION: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """A tile of F [W; F]^T over one slice of the features; `partial`: the tile's last program adds the slices up.

    out: outputs, or packed bits. A point-wise loss is taken of a finished tile of outputs, a piece at a time.
    partial is (splits, N, L + gram_row); rows of the Gram matrix are gram_row apart, zeros from the N-th column on.
    """
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    STEP: tl.constexpr = SHAPE.piece.rows
    WIDE: tl.constexpr = SHAPE.piece.columns
    L: tl.constexpr = SHAPE.longest
    LOSS: tl.constexpr = SHAPE.loss
    weight_tiles: tl.constexpr = (L + COLUMNS - 1) // COLUMNS
    tiles = weight_tiles
    width = L
    if SHAPE.gram:
        tiles = weight_tiles + tl.cdiv(num_rows, COLUMNS)
        width = L + gram_row
    # The tiles of the same rows run side by side, so that F comes from memory once.
    tile, row_tile, split = tl.program_id(0) % tiles, tl.program_id(0) // tiles, tl.program_id(1)
    first_row = row_tile.to(tl.int64) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_features)
    outputs = True
    first_column = tile * COLUMNS
    place, end = first_column, L  # in a row of the slices
    if SHAPE.gram:
        outputs = tile < weight_tiles
        first_column -= tl.where(outputs, 0, weight_tiles * COLUMNS)
        place, end = first_column + tl.where(outputs, 0, L), tl.where(outputs, L, width)
    columns = first_column.to(tl.int64) + tl.arange(0, COLUMNS)
    places = place + tl.arange(0, COLUMNS)
    if outputs:
        acc = _rows_product(x, w, rows, columns, num_rows, L, start, stop, x_strides, w_strides, "b", SHAPE)
    else:
        acc = _rows_product(x, x, rows, columns, num_rows, num_rows, start, stop, x_strides, x_strides, "none", SHAPE)
    if SHAPE.partial:
        at = partial + (split.to(tl.int64) * num_rows + rows[:, None]) * width + places[None, :]
        tl.store(at, acc, mask=(rows < num_rows)[:, None] & (places < end)[None, :])
        last = arrived_last(counter + tl.program_id(0), splits)
    else:
        last = outputs
        if outputs:
            _store_outputs(acc, rows, columns, bias, out, num_rows, ROWS, COLUMNS, SHAPE)
            if FUNCTION is not None:
                tl.debug_barrier()  # other threads wrote the outputs that are read again below
        else:
            at = gram + rows[:, None] * gram_row + columns[None, :]
            tl.store(at, acc, mask=(rows < num_rows)[:, None] & (columns < gram_row)[None, :])
    if SHAPE.partial or FUNCTION is not None:  # noqa: SIM102 (the first is known when compiled)
        if last:
            slots = tl.arange(0, 1 if FUNCTION is None else LOSS.slots)
            sums = slots * 0.0
            target = (labels, label_strides, centers, ties, num_classes)
            for piece in range(0, (ROWS // STEP) * (COLUMNS // WIDE)):
                some_rows = first_row + (piece // (COLUMNS // WIDE)) * STEP + tl.arange(0, STEP)
                right = (piece % (COLUMNS // WIDE)) * WIDE
                some_columns = first_column.to(tl.int64) + right + tl.arange(0, WIDE)
                some_places = place + right + tl.arange(0, WIDE)
                inside = (some_rows < num_rows)[:, None] & (some_places < end)[None, :]
                if SHAPE.partial:
                    some = _sum_slices(partial, some_rows, some_places, inside, splits, num_rows, width, SHAPE)
                    if outputs:
                        some = _store_outputs(some, some_rows, some_columns, bias, out, num_rows, STEP, WIDE, SHAPE)
                    else:
                        tl.store(gram + some_rows[:, None] * gram_row + some_columns[None, :], some, mask=inside)
                else:
                    some = tl.load(out + some_rows[:, None] * L + some_columns[None, :], mask=inside, other=0.0)
                if FUNCTION is not None:  # noqa: SIM102
                    if outputs:
                        sums += tile_losses(
                            some, some_rows, some_columns, first_column + right, target, deltas, num_rows, c,
                            FUNCTION, LOSS,
                        )  # fmt: skip
            if FUNCTION is not None:  # noqa: SIM102
                if outputs:
                    program = row_tile * weight_tiles + tile
                    M: tl.constexpr = len(LOSS.lengths)
                    tl.store(values + program * M + slots, sums, mask=slots < M)


def launch(
    x, w, bias, u=None, gram=None, bits=None, loss: Loss | None = None, finite=False, partial=None
) -> None:  # fmt: skip
    """Fill u (N, L) or packed bits (N, ceil(L/8)), and the Gram matrix (N, N) where one is given, in one launch.

    gram: its rows are `gram_row(N)` apart. loss: a point-wise loss of u to take on the way, values for
    `loss_programs`. finite: assert that u is. partial: workspace for the slices, made here unless given.
    """
    (n, d), longest, mode = x.shape, w.shape[0], tiles.feature_precision(x)
    tile, some, splits, per_split = plan(n, d, longest, gram is not None, mode, tiles.generation(x.device))
    row, target = gram_row(n), u if u is not None else bits
    if gram is not None and (gram.shape != (n, n) or gram.stride() != (row, 1)):
        raise ValueError(f"gram: expected shape ({n}, {n}), strides ({row}, 1), got {gram.shape}, {gram.stride()}")
    columns = -(-longest // tile.columns)
    if gram is not None:
        columns += -(-n // tile.columns)
    if splits > 1 and partial is None:
        width = longest + (row if gram is not None else 0)
        partial = torch.empty(splits, n, width, device=x.device, dtype=torch.float32)
    if loss is None:
        labelled, strides, c, classes, function, fixed = (target,) * 5, (0, 0), (0.0,), 0, None, None
    else:
        ties = loss.ties.contiguous()
        labelled = (tiles.as_bytes(loss.labels), loss.centers, ties, loss.values, loss.deltas)
        strides, c, classes = loss.strides(), tuple(loss.constants), loss.centers.shape[0]
        function, fixed = loss.constexprs(some)
    project_kernel[(tile.row_tiles(n) * columns, splits)](
        x, w, bias.contiguous(), target, target if gram is None else gram, target if partial is None else partial,
        counters(x.device) if splits > 1 else target, *labelled, n, d, row, classes, splits, per_split, x.stride(),
        w.stride(), strides, c, FUNCTION=function,
        SHAPE=shape(longest, tile, some, gram is not None, splits > 1, bits is not None, finite, mode, fixed),
        **tile.options(), **(tiles.launch_options(x.device.type) if loss is not None or finite else {}),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128), generation: int = 9):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    tensors = dict.fromkeys(("w", "bias", "gram", "partial", "centers", "ties", "values", "deltas"), "*fp32")
    numbers = dict.fromkeys(("num_features", "gram_row", "per_split"), "i32:16")
    numbers |= dict.fromkeys(("num_rows", "splits", "num_classes"), "i32")
    numbers |= dict.fromkeys(("x_strides", "w_strides"), ("i32:16", "1"))
    plain = [(64, True, False, None, False), (32768, False, False, None, False), (32768, False, True, None, False)]
    with_loss = [
        (rows, rows == 64, False, function, multi)
        for rows, function, multi in itertools.product((64, 256, 32768), center.CENTER_FUNCTIONS, (False, True))
        if function == "csq" or not multi
    ]
    found = []
    for dtype, mode in tiles.MODES:
        for rows, gram, pack, function, multi in plain + (with_loss if mode == tiles.PRECISIONS[0] else []):
            if pack and mode == "ieee":
                continue
            tile, some, splits, _ = plan(rows, 2048, lengths[-1], gram, mode, generation)
            fixed = center.shape(lengths, some, multi) if function else None
            constants = {
                "FUNCTION": center.CENTER_FUNCTIONS.get(function),
                "SHAPE": shape(lengths[-1], tile, some, gram, splits > 1, pack, function is not None, mode, fixed),
            }
            types = {
                **tensors, **numbers, "x": f"*{dtype}", "out": "*u8" if pack else "*fp32", "counter": "*i32",
                "labels": "*u8" if multi else "*i64", "label_strides": ("i32", "1") if multi else ("1", "1"),
                "c": ("fp32",),
            }  # fmt: skip
            name = f"{'encode' if pack else function or 'project'}_{dtype}_{mode}_n{rows}{'_multi-hot' * multi}"
            options = {**tile.options(), **(tiles.launch_options("cuda") if function else {})}
            found.append((name, project_kernel, types, constants, options))
    return found
