"""The head's backward pass: dF = dU W, dW = dU^T F and dc = sum dU, in one launch, times the incoming gradient.

A program owns a tile of dF or of dW. Floor: F and dF once, dU and W from L2; 4 N d L operations.
"""

from functools import cache
from typing import NamedTuple

import triton
import triton.language as tl

from . import tiles
from .device.arithmetic import multiply, zeros
from .dots import sum_splits
from .weighting import combined_tile


class Shape(NamedTuple):
    """What is fixed when the kernel is compiled.

    Attributes:
        lengths: the code lengths, or the longest alone where dU is given. form: it is formed here from the deltas.
        nan: dU is NaN where the outputs are not finite. scaled: there is an incoming gradient.
        ready: dW and dc are there, in slices. need_w: they are asked for.
    """

    lengths: tuple[int, ...]
    total: int
    tiles: tiles.Tiles
    form: bool
    nan: bool
    scaled: bool
    ready: bool
    need_w: bool
    precision: str


@cache
def shape(lengths, tile, form, nan, scaled, ready, need_w, precision) -> Shape:
    return Shape(lengths, sum(lengths), tile, form, nan, scaled, ready, need_w, precision)


@triton.jit
def _gradient_tile(
    du, weights, u, rows, columns, num_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """A tile of dU; `form`: `du` holds the lengths' deltas (N, T), which the weights combine here."""
    L: tl.constexpr = SHAPE.lengths[-1]
    if SHAPE.form:
        return combined_tile(weights, du, u, rows, columns, num_rows, ROWS, COLUMNS, SHAPE)
    else:
        mask = (rows < num_rows)[:, None] & (columns < L)[None, :]
        return tl.load(du + rows[:, None] * L + columns[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["num_rows", "splits", "first_weight"])
def backward_kernel(
    scale, du, weights, u, features, w, product, sums, df, dw, db, num_rows, num_features, splits, x_strides,
    w_strides, first_weight, SHAPE: tl.constexpr,
):  # fmt: skip
    """dF = dU W in the first programs, dW = dU^T F and dc = sum dU in the rest, times the incoming 0-d gradient."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    WIDTH: tl.constexpr = SHAPE.tiles.width
    DEPTH: tl.constexpr = SHAPE.tiles.depth
    PRECISION: tl.constexpr = SHAPE.precision
    L: tl.constexpr = SHAPE.lengths[-1]
    program = tl.program_id(0)
    wide_tiles = tl.cdiv(num_features, WIDTH)
    wide = (program % wide_tiles).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    factor = 1.0
    if SHAPE.scaled:
        factor = tl.load(scale).to(tl.float32)
    if program < first_weight:
        rows = (program // wide_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        acc = zeros(ROWS, WIDTH)
        for first in range(0, L, DEPTH):
            ks = (first + tl.arange(0, DEPTH)).to(tl.int64)
            x = _gradient_tile(du, weights, u, rows, ks, num_rows, ROWS, DEPTH, SHAPE)
            y = tl.load(
                w + ks[:, None] * w_strides[0] + wide[None, :] * w_strides[1],
                mask=(ks < L)[:, None] & (wide < num_features)[None, :],
                other=0.0,
            ).to(tl.float32)
            acc = multiply(x, y, acc, PRECISION, "both")
        tl.store(
            df + rows[:, None] * num_features + wide[None, :],
            (acc * factor).to(df.dtype.element_ty),
            mask=(rows < num_rows)[:, None] & (wide < num_features)[None, :],
        )
    elif SHAPE.need_w:
        rest = program - first_weight
        rows = (rest // wide_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (rows < L)[:, None] & (wide < num_features)[None, :]
        bias = tl.zeros((ROWS,), tl.float32)
        if SHAPE.ready:
            acc = sum_splits(product, rows, wide, mask, splits, L, num_features)
            for split in range(splits):
                bias += tl.load(sums + split * L + rows, mask=rows < L, other=0.0)
        else:
            acc = zeros(ROWS, WIDTH)
            for first in range(0, num_rows, DEPTH):
                ks = (first + tl.arange(0, DEPTH)).to(tl.int64)
                x = _gradient_tile(du, weights, u, ks, rows, num_rows, DEPTH, ROWS, SHAPE)
                y = tl.load(
                    features + ks[:, None] * x_strides[0] + wide[None, :] * x_strides[1],
                    mask=(ks < num_rows)[:, None] & (wide < num_features)[None, :],
                    other=0.0,
                ).to(tl.float32)
                acc = multiply(tl.trans(x), y, acc, PRECISION, "a")
                bias += tl.sum(x, 0)
        tl.store(dw + rows[:, None] * num_features + wide[None, :], (acc * factor).to(dw.dtype.element_ty), mask=mask)
        if rest % wide_tiles == 0:
            tl.store(db + rows, (bias * factor).to(db.dtype.element_ty), mask=rows < L)


def config(num_rows: int, longest: int, form: bool, mode: str, generation: int = 9) -> tiles.Tiles:
    """Small batches: many small tiles, two or three a multiprocessor.

    Five lengths' deltas in three stages would take more shared memory than some devices have.
    """
    stages = 2 if form else 3
    if mode == "ieee":
        rows = 64 if max(num_rows, longest) > 32 else 32
        return tiles.Tiles(rows=rows, width=64, depth=16, warps=8, stages=stages)
    large = num_rows > 1024
    warps = 8 if large and generation < 9 else 4
    return tiles.Tiles(rows=128 if large else 32, width=64, depth=32, warps=warps, stages=stages)


def launch(
    scale, du, features, w, product=None, sums=None, *, df=None, dw=None, db=None, form=None, nan=None
) -> None:  # fmt: skip
    """Fill df (N, d) if given, and dw (L, d) with db (L,) if given, times the 0-d `scale` (None: 1).

    product (splits, L, d) and sums (splits, L): dW and dc, unscaled, in slices; computed here if None.
    form: (weights (m,), code lengths), where `du` holds the lengths' deltas (N, T); nan: outputs (N, L), which make
    dU NaN where they are not finite.
    """
    (n, d), longest, mode = features.shape, w.shape[0], tiles.feature_precision(features)
    tile = config(n, longest, form is not None, mode, tiles.generation(features.device))
    wide_tiles = triton.cdiv(d, tile.width)
    first_weight = tile.row_tiles(n) * wide_tiles if df is not None else 0
    programs = first_weight + (tile.row_tiles(longest) * wide_tiles if dw is not None else 0)
    ready = product is not None
    weights, lengths = form if form is not None else (du, (longest,))
    tensors = (du if t is None else t for t in (product, sums, df, dw, db))
    fixed = shape(
        tuple(lengths), tile, form is not None, nan is not None, scale is not None, ready, dw is not None, mode
    )
    backward_kernel[(programs,)](
        du if scale is None else scale, du, weights, du if nan is None else nan, features, w, *tensors, n, d,
        product.shape[0] if ready else 1, features.stride(), w.stride(), first_weight, SHAPE=fixed, **tile.options(),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128), generation: int = 9):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    found = []
    for dtype, mode in tiles.MODES:
        types = dict.fromkeys(("scale", "du", "weights", "u", "w", "product", "sums", "dw", "db"), "*fp32")
        types |= {"features": f"*{dtype}", "df": f"*{dtype}", "num_features": "i32:16"}
        types |= dict.fromkeys(("splits", "num_rows", "first_weight"), "i32")
        types |= dict.fromkeys(("x_strides", "w_strides"), ("i32:16", "1"))
        for form, ready, rows in ((True, False, 64), (False, False, 64), (False, True, 256), (False, True, 32768)):
            tile = config(rows, 128, form, mode, generation)
            fixed = shape(lengths if form else (128,), tile, form, form, True, ready, True, mode)
            name = f"{dtype}_{mode}{'_form' if form else '_ready' if ready else ''}_n{rows}"
            found.append((name, backward_kernel, types, {"SHAPE": fixed}, tile.options()))
    return found
