"""The dominance dots of the per-length gradients: from the feature Gram matrix, or from the gradients themselves.

Small batches go through the Gram matrix, G = F F^T: dots[k, i] = sum delta_k * (G delta_i)[:, :b_k]. Large ones
form every length's gradient delta_k^T F once (split over the rows) and take the dots from these. Sums over programs
are taken in a fixed order; only who is last is counted by an atomic. Floor of the second: F once, 2 N d T operations.

Launches: `gram_dots`; or `transposed_product` and `product_dots`. A program owns a tile of G delta_i, of the products
over a slice of the rows, of every length's gradient; the last one of a launch of dots makes the weights.
"""

import itertools
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles
from .device import closed_form
from .device.arithmetic import dot, multiply, zeros
from .device.arrival import counters
from .device.closed_form import Report, conclude


class Shape(NamedTuple):
    """What is fixed when a kernel of dots is compiled."""

    lengths: tuple[int, ...]
    total: int
    slots: int
    tiles: tiles.Tiles
    distill: bool
    precision: str


class ProductShape(NamedTuple):
    """What is fixed when the product of the deltas with the features is compiled."""

    total: int
    tiles: tiles.Tiles
    precision: str


@cache
def shape(lengths, tile, distill, precision) -> Shape:
    return Shape(lengths, sum(lengths), tiles.power_of_two(len(lengths), 1), tile, distill, precision)


@triton.jit
def _segment(which, SHAPE: tl.constexpr):
    """(offset, length) of code length number `which` in the expanded form."""
    offset, length, before = 0, 0, 0
    for k in tl.static_range(len(SHAPE.lengths)):
        offset = tl.where(which == k, before, offset)
        length = tl.where(which == k, SHAPE.lengths[k], length)
        before += SHAPE.lengths[k]
    return offset, length


@triton.jit(do_not_specialize=["num_rows", "losses_count", "distill_count"])
def gram_dots_kernel(
    gram, deltas, dots, counter, dots_out, losses, distill, total, weights_out, losses_out, distill_out,
    losses_count, distill_count, distill_scale, num_rows, gram_row, SHAPE: tl.constexpr,
):  # fmt: skip
    """Column i of the dots, from one tile of G delta_i; dots is (programs, m, m), every entry written once.

    The last program makes the weights. Rows of gram are gram_row apart and 0 beyond the N-th column. Grid (row tiles,
    column tiles, m).
    """
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    DEPTH: tl.constexpr = SHAPE.tiles.depth
    PRECISION: tl.constexpr = SHAPE.precision
    M: tl.constexpr = len(SHAPE.lengths)
    T: tl.constexpr = SHAPE.total
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first_column = tl.program_id(1) * COLUMNS
    columns = first_column + tl.arange(0, COLUMNS)
    i = tl.program_id(2)
    out = dots + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * M * M + i
    offset, length = _segment(i, SHAPE)
    here = rows < num_rows
    product = zeros(ROWS, COLUMNS)
    if first_column < length:
        for first in range(0, num_rows, DEPTH):
            ks = (first + tl.arange(0, DEPTH)).to(tl.int64)
            g = tl.load(
                gram + rows[:, None] * gram_row + ks[None, :],
                mask=here[:, None] & (ks < gram_row)[None, :],
                other=0.0,
            )
            delta = tl.load(
                deltas + ks[:, None] * T + offset + columns[None, :],
                mask=(ks < num_rows)[:, None] & (columns < length)[None, :],
                other=0.0,
            )
            product = dot(g, delta, product, PRECISION)
    before = 0
    for k in tl.static_range(M):
        value = 0.0
        if (k <= i) & (first_column < SHAPE.lengths[k]):
            delta = tl.load(
                deltas + rows[:, None] * T + before + columns[None, :],
                mask=here[:, None] & (columns < SHAPE.lengths[k])[None, :],
                other=0.0,
            )
            value = tl.sum(tl.sum(delta * product, 1), 0)
        tl.store(out + k * M, value)
        before += SHAPE.lengths[k]
    count = tl.num_programs(0) * tl.num_programs(1)
    report = (
        losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count, distill_scale
    )  # fmt: skip
    conclude(counter, count * M, dots, count, dots_out, report, SHAPE)


@triton.jit(do_not_specialize=["num_rows"])
def transposed_product_kernel(
    deltas, features, product, sums, num_rows, num_features, per_split, strides, SHAPE: tl.constexpr
):  # fmt: skip
    """deltas^T F (splits, T, d) over slices of the rows, and the deltas' column sums (splits, T).

    deltas (N, T) contiguous. Grid (tiles of T, tiles of d, splits).
    """
    ROWS: tl.constexpr = SHAPE.tiles.rows
    WIDTH: tl.constexpr = SHAPE.tiles.width
    DEPTH: tl.constexpr = SHAPE.tiles.depth
    PRECISION: tl.constexpr = SHAPE.precision
    T: tl.constexpr = SHAPE.total
    columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wide = tl.program_id(1).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    split = tl.program_id(2).to(tl.int64)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_rows)
    acc = zeros(ROWS, WIDTH)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(start, stop, DEPTH):
        ks = (first + tl.arange(0, DEPTH)).to(tl.int64)
        x = tl.load(
            deltas + ks[:, None] * T + columns[None, :],
            mask=(ks < stop)[:, None] & (columns < T)[None, :],
            other=0.0,
        )
        y = tl.load(
            features + ks[:, None] * strides[0] + wide[None, :] * strides[1],
            mask=(ks < stop)[:, None] & (wide < num_features)[None, :],
            other=0.0,
        ).to(tl.float32)
        if tl.program_id(1) == 0:
            total += tl.sum(x, 0)
        acc = multiply(tl.trans(x), y, acc, PRECISION, "a")
    at = product + (split * T + columns[:, None]) * num_features + wide[None, :]
    tl.store(at, acc, mask=(columns < T)[:, None] & (wide < num_features)[None, :])
    if tl.program_id(1) == 0:
        tl.store(sums + split * T + columns, total, mask=columns < T)


@triton.jit
def sum_splits(product, rows, wide, mask, splits, num_rows, num_features):
    """The tile (rows, wide) of a product (splits, num_rows, d), its slices added up in their order."""
    at = product + rows[:, None].to(tl.int64) * num_features + wide[None, :]
    acc = tl.load(at, mask=mask, other=0.0)
    for _ in range(1, splits):
        at += tl.cast(num_rows, tl.int64) * num_features
        acc += tl.load(at, mask=mask, other=0.0)
    return acc


@triton.jit(do_not_specialize=["splits", "losses_count", "distill_count"])
def product_dots_kernel(
    product, gradients, dots, counter, dots_out, losses, distill, total, weights_out, losses_out, distill_out,
    losses_count, distill_count, distill_scale, splits, num_features, SHAPE: tl.constexpr,
):  # fmt: skip
    """Gradients delta_k^T F (T, d) from their slices, and the dots (programs, m, m) of one tile of them.

    The last program makes the weights. Grid (row tiles, tiles of d).
    """
    ROWS: tl.constexpr = SHAPE.tiles.rows
    WIDTH: tl.constexpr = SHAPE.tiles.width
    M: tl.constexpr = len(SHAPE.lengths)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wide = tl.program_id(1).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    out = dots + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * M * M
    offset = 0
    kept = ()
    for i in tl.static_range(M):
        mask = (rows < SHAPE.lengths[i])[:, None] & (wide < num_features)[None, :]
        own = sum_splits(product, offset + rows, wide, mask, splits, SHAPE.total, num_features)
        at = gradients + (offset + rows)[:, None].to(tl.int64) * num_features + wide[None, :]
        tl.store(at, own, mask=mask)
        kept += (own,)
        for k in tl.static_range(M):
            value = 0.0
            if k <= i:
                # Zero beyond its own length, so that the product is over the shorter of the two.
                value = tl.sum(tl.sum(kept[k] * own, 1), 0)
            tl.store(out + k * M + i, value)
        offset += SHAPE.lengths[i]
    programs = tl.num_programs(0) * tl.num_programs(1)
    report = (
        losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count, distill_scale
    )  # fmt: skip
    conclude(counter, programs, dots, programs, dots_out, report, SHAPE)


def uses_gram(num_rows: int, num_features: int, code_lengths) -> bool:
    """Whether the dots of such a batch come from the Gram matrix (the smaller products of the two)."""
    m, longest = len(code_lengths), code_lengths[-1]
    return num_rows * (num_features + m * longest) <= num_features * sum(code_lengths)


def gram_config(num_rows: int, longest: int) -> tiles.Tiles:
    """A batch of at most sum(lengths) rows goes this way: small tiles, for the number of programs."""
    return tiles.Tiles(rows=16 if num_rows <= 64 else 32, columns=16 if longest <= 16 else 32, depth=32)


def gram_dots(gram, deltas, code_lengths, report: Report) -> None:
    """The dots (zeros below the diagonal), the weights and what else a step reports, into `report.outputs`.

    gram (N, N): its rows may be further apart, with zeros between them.
    """
    n, m, longest = deltas.shape[0], len(code_lengths), code_lengths[-1]
    tile = gram_config(n, longest)
    grid = (tile.row_tiles(n), triton.cdiv(longest, tile.columns), m)
    dots = torch.empty(grid[0] * grid[1], m, m, device=deltas.device, dtype=torch.float32)
    gram_dots_kernel[grid](
        gram, deltas, dots, counters(deltas.device), report.dots, *report.arguments(), n, gram.stride(0),
        SHAPE=shape(tuple(code_lengths), tile, report.distill is not None, tiles.dot_precision()),
        **tile.options(spend=False),
    )  # fmt: skip


def row_splits(num_rows: int, columns: int, num_features: int, tile: tiles.Tiles) -> tuple[int, int]:
    """(slices of the rows, rows a slice) of a product a^T F, a (N, columns)."""
    programs = tile.row_tiles(columns) * -(-num_features // tile.width)
    splits = max(1, min(-(-num_rows // 512), 264 // programs))
    per_split = -(-num_rows // splits)
    per_split = -(-per_split // tile.depth) * tile.depth
    return -(-num_rows // per_split), per_split


def product_config(num_rows: int, mode: str) -> tiles.Tiles:
    if mode == "ieee":
        return tiles.Tiles(rows=64, width=64, depth=16, warps=8, stages=3)
    if mode == "tf32x3":  # its operands take twice the registers: wide, not tall (the fastest of 18 on an H200)
        return tiles.Tiles(rows=32, width=128, depth=32, stages=3)
    return tiles.Tiles(rows=128 if num_rows > 1024 else 64, width=64, depth=32, stages=3)


def transposed_product(deltas, features) -> tuple[torch.Tensor, torch.Tensor]:
    """deltas^T F and the column sums of deltas (N, T), in slices: (splits, T, d) and (splits, T)."""
    (n, total), d, mode = deltas.shape, features.shape[1], tiles.feature_precision(features)
    tile = product_config(n, mode)
    splits, per_split = row_splits(n, total, d, tile)
    product = torch.empty(splits, total, d, device=deltas.device, dtype=torch.float32)
    sums = torch.empty(splits, total, device=deltas.device, dtype=torch.float32)
    transposed_product_kernel[(tile.row_tiles(total), triton.cdiv(d, tile.width), splits)](
        deltas, features, product, sums, n, d, per_split, features.stride(), SHAPE=ProductShape(total, tile, mode),
        **tile.options(),
    )  # fmt: skip
    return product, sums


def dots_config(code_lengths) -> tiles.Tiles:
    """A tile of every length's gradient is held in registers."""
    return tiles.Tiles(rows=16, width=64 if len(code_lengths) <= 8 else 32)


def product_dots(product, code_lengths, report: Report) -> torch.Tensor:
    """Per-length gradients (T, d) from slices of deltas^T F; the rest as `gram_dots`."""
    splits, total, d = product.shape
    m, tile = len(code_lengths), dots_config(code_lengths)
    grid = (tile.row_tiles(code_lengths[-1]), triton.cdiv(d, tile.width))
    gradients = torch.empty(total, d, device=product.device, dtype=torch.float32)
    dots = torch.empty(grid[0] * grid[1], m, m, device=product.device, dtype=torch.float32)
    product_dots_kernel[grid](
        product, gradients, dots, counters(product.device), report.dots, *report.arguments(), splits, d,
        SHAPE=shape(tuple(code_lengths), tile, report.distill is not None, ""), **tile.options(spend=False),
    )  # fmt: skip
    return gradients


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    shared = {**closed_form.SIGNATURE, "dots": "*fp32", "dots_out": "*fp32", "counter": "*i32"}
    types = {**shared, "gram": "*fp32", "deltas": "*fp32", "num_rows": "i32", "gram_row": "i32:16"}
    found = []
    for mode in tiles.PRECISIONS:
        tile = gram_config(64, lengths[-1])
        fixed = {"SHAPE": shape(lengths, tile, True, mode)}
        found.append((f"gram/{mode}", gram_dots_kernel, types, fixed, tile.options(spend=False)))
    types = {**shared, "product": "*fp32", "gradients": "*fp32", "splits": "i32", "num_features": "i32:16"}
    for chosen in (lengths, tuple(range(8, 129, 8))):
        tile = dots_config(chosen)
        fixed = {"SHAPE": shape(chosen, tile, True, "")}
        found.append((f"product/{len(chosen)}_lengths", product_dots_kernel, types, fixed, tile.options(spend=False)))
    for (dtype, mode), rows in itertools.product(tiles.MODES, (256, 32768)):
        types = {
            **dict.fromkeys(("deltas", "product", "sums"), "*fp32"), "features": f"*{dtype}", "num_rows": "i32",
            "num_features": "i32:16", "per_split": "i32:16", "strides": ("i32:16", "1"),
        }  # fmt: skip
        tile = product_config(rows, mode)
        fixed = {"SHAPE": ProductShape(sum(lengths), tile, mode)}
        if rows == 256 or tile != product_config(256, mode):
            name = f"transposed_product/{dtype}_{mode}_n{rows}"
            found.append((name, transposed_product_kernel, types, fixed, tile.options()))
    return found
