"""A learned classifier of the bits (GreedyHash): every length's cross-entropy, its gradients in codes and weights.

Logits are products of a row's signs with the classes' weights; signs pass gradients to the outputs as they are.
Launches: over the rows, where a program owns a tile of them at one length (or a slice of a long one's gradient) and
goes through the classes twice, for the softmax's sum and for value and gradient; and, where the weights learn, over
the classes, where it owns a tile of these and goes through a part of the rows with the sums of the first. Logits are
computed again each time, so that nothing of size rows x classes leaves a program.
Operations per row, class and bit: five multiply-adds, of which three with signs, one tf32 number. Bytes: the weights
once a row tile (from L2), U once a class tile, the weights' gradient once a part.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles
from .device import penalties
from .device.arithmetic import dot, dot_of_signs, load_tile, log1p, signs, zeros
from .device.classes import present

GRADIENT = tiles.Tiles(rows=16, columns=32, bits=32, width=128, warps=8, stages=1)
SLOPES = tiles.Tiles(rows=32, columns=16, bits=32, width=128, warps=4, stages=1)
LOWEST = tl.constexpr(-1e30)
FUNCTIONS = ("cross_entropy",)


class Shape(NamedTuple):
    """What is fixed when a kernel is compiled; a tile's columns are classes."""

    lengths: tuple[int, ...]
    total: int
    jobs: tuple[tiles.Job, ...]
    tiles: tiles.Tiles
    multi: bool
    precision: str
    weighed: bool = False  # rows have weights
    soft: bool = False  # labels are weights, not zeros and ones


@cache
def shape(lengths, tile, multi, precision, weighed=False, soft=False) -> Shape:
    return Shape(lengths, sum(lengths), tiles.jobs(lengths, tile.width), tile, multi, precision, weighed, soft)


def parts(num_rows: int, num_classes: int, lengths) -> tuple[int, int]:
    """(how many sums of the weights' gradient `launch` writes, each of how many rows)."""
    programs = -(-num_classes // SLOPES.columns) * len(tiles.jobs(tuple(lengths), SLOPES.width))
    wanted = max(1, min(-(-num_rows // 256), 264 // programs))
    rows = SLOPES.rows * -(-num_rows // (wanted * SLOPES.rows))
    return -(-num_rows // rows), rows


@triton.jit
def _logits(u, weights, first_row, start, num_rows, num_classes, JOB: tl.constexpr, SHAPE: tl.constexpr):
    """Products of a tile of rows and classes; very low outside the classes."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    PRECISION: tl.constexpr = SHAPE.precision
    product = zeros(ROWS, COLUMNS)
    for first in range(0, B, SHAPE.tiles.bits):
        bits = first + tl.arange(0, SHAPE.tiles.bits)
        x = signs(load_tile(u, first_row, num_rows, bits, B, ROWS, SHAPE.lengths[-1]), bits, B)
        w = load_tile(weights + JOB.offset, start, num_classes, bits, B, COLUMNS, SHAPE.total)
        product = dot_of_signs(x, tl.trans(w), product, PRECISION, "b")
    classes = start + tl.arange(0, COLUMNS)
    return tl.where(classes[None, :] < num_classes, product, LOWEST)


@triton.jit
def _sums(u, weights, labels, first_row, num_rows, num_classes, JOB: tl.constexpr, SHAPE: tl.constexpr):
    """Of every row: the largest logit, its class, the others' sum of exp(logit - it), 1 / the sum of y (or 0)."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    rest = tl.zeros((ROWS,), tl.float32)
    top = tl.zeros((ROWS,), tl.int32)
    present_sums = zeros(ROWS, COLUMNS)  # added up after the loop: Triton 3.6 fails on a sum of float32 labels in it
    for begin in range(0, num_classes, COLUMNS):
        start = first_row * 0 + begin
        logits = _logits(u, weights, first_row, start, num_rows, num_classes, JOB, SHAPE)
        here = tl.max(logits, axis=1)
        at = tl.argmax(logits, axis=1)
        lower = tl.where(tl.arange(0, COLUMNS)[None, :] == at[:, None], 0.0, tl.exp(logits - here[:, None]))
        now = tl.maximum(highest, here)
        # The lower of both maxima joins the others.
        rest = rest * tl.exp(highest - now) + tl.sum(lower, axis=1) * tl.exp(here - now)
        rest += tl.exp(tl.minimum(highest, here) - now)
        top = tl.where(here > highest, begin + at, top)
        highest = now
        present_sums += present(labels, first_row, start, num_rows, num_classes, SHAPE)
    number = tl.sum(present_sums, axis=1)
    return highest, top, rest, tl.where(number > 0, 1 / tl.where(number > 0, number, 1.0), 0.0)


@triton.jit
def _terms(
    u, weights, labels, sums, first_row, start, num_rows, num_classes, JOB: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """Of a tile: what is wanted of the probabilities, their logarithms, and the loss's slopes in the logits."""
    highest, top, rest, inverse = sums
    logits = _logits(u, weights, first_row, start, num_rows, num_classes, JOB, SHAPE)
    wanted = present(labels, first_row, start, num_rows, num_classes, SHAPE) * inverse[:, None]
    classes = start + tl.arange(0, SHAPE.tiles.columns)
    total = 1 + rest
    some = tl.where(inverse > 0, 1.0, 0.0)
    p = tl.exp(logits - highest[:, None]) / total[:, None]
    # 1 - p of the likeliest class, which would cancel.
    at_top = (some[:, None] - wanted) - (some * (rest / total))[:, None]
    slope = tl.where(classes[None, :] == top[:, None], at_top, some[:, None] * p - wanted)
    log_p = (logits - highest[:, None]) - log1p(rest)[:, None]
    return wanted, log_p, tl.where(classes[None, :] < num_classes, slope, 0.0)


@triton.jit
def _amounts(row_weights, rows, num_rows, scale, SHAPE: tl.constexpr):
    """How much each row counts in the mean; 0 outside."""
    inside = rows < num_rows
    if SHAPE.weighed:
        return scale * tl.load(row_weights + rows, mask=inside, other=0.0)
    else:
        return tl.where(inside, scale, 0.0)


@triton.jit
def _rows_job(
    u, weights, labels, row_weights, values, statistics, deltas, num_rows, num_classes, c, J: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    scale, penalty_weight = c
    JOB: tl.constexpr = SHAPE.jobs[J]
    PRECISION: tl.constexpr = SHAPE.precision
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    tile = tl.program_id(0).to(tl.int64)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < num_rows
    bits = JOB.first + tl.arange(0, JOB.width)
    amount = _amounts(row_weights, rows, num_rows, scale, SHAPE)
    sums = _sums(u, weights, labels, first_row, num_rows, num_classes, JOB, SHAPE)
    value = tl.zeros((ROWS,), tl.float32)
    found = zeros(ROWS, JOB.width)
    for begin in range(0, num_classes, COLUMNS):
        start = tile * 0 + begin
        wanted, log_p, slope = _terms(u, weights, labels, sums, first_row, start, num_rows, num_classes, JOB, SHAPE)
        value -= tl.sum(tl.where(wanted > 0, wanted * log_p, 0.0), axis=1)
        w = load_tile(weights + JOB.offset, start, num_classes, bits, B, COLUMNS, SHAPE.total)
        found = dot(slope, w, found, PRECISION)
    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L)
    found = amount[:, None] * (found + penalty_weight * penalties.slope(x, 0.0, 0.0, B * 1.0, c, "cube"))
    mask = inside[:, None] & (bits[None, :] < B)
    tl.store(deltas + rows[:, None] * SHAPE.total + JOB.offset + bits[None, :], found, mask=mask)
    if JOB.first == 0:
        penalty, _ = penalties.row_sums(u, first_row, num_rows, B, "cube", L, ROWS, SHAPE.tiles.bits)
        value = amount * (value + penalty_weight * (penalty / B))
        tl.store(values + tile * M + JOB.k, tl.sum(tl.where(inside, value, 0.0)))
        highest, top, rest, inverse = sums
        place = statistics + 4 * (rows * M + JOB.k)
        tl.store(place, highest, mask=inside)
        tl.store(place + 1, top.to(tl.float32), mask=inside)
        tl.store(place + 2, rest, mask=inside)
        tl.store(place + 3, inverse, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def rows_kernel(
    u, weights, labels, values, statistics, deltas, num_rows, num_classes, c, SHAPE: tl.constexpr, row_weights=None
):  # fmt: skip
    """Grid (row tiles, jobs); statistics (N, m, 4), see `_sums`; c = (scale, weight of the penalty)."""
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(1) == j:
            _rows_job(
                u, weights, labels, row_weights, values, statistics, deltas, num_rows, num_classes, c, j, SHAPE,
            )  # fmt: skip


@triton.jit
def _classes_job(
    u, weights, labels, row_weights, statistics, slopes, num_rows, num_classes, rows_per_part, scale,
    J: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    JOB: tl.constexpr = SHAPE.jobs[J]
    PRECISION: tl.constexpr = SHAPE.precision
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    start = tl.program_id(0).to(tl.int64) * COLUMNS
    part = tl.program_id(2).to(tl.int64)
    classes = start + tl.arange(0, COLUMNS)
    bits = JOB.first + tl.arange(0, JOB.width)
    found = zeros(COLUMNS, JOB.width)
    first = part * rows_per_part
    for begin in range(first, tl.minimum(first + rows_per_part, num_rows), ROWS):
        first_row = start * 0 + begin
        rows = first_row + tl.arange(0, ROWS)
        inside = rows < num_rows
        place = statistics + 4 * (rows * len(SHAPE.lengths) + JOB.k)
        highest = tl.load(place, mask=inside, other=0.0)
        top = tl.load(place + 1, mask=inside, other=0.0).to(tl.int32)
        rest = tl.load(place + 2, mask=inside, other=0.0)
        inverse = tl.load(place + 3, mask=inside, other=0.0)
        sums = (highest, top, rest, inverse)
        _, _, slope = _terms(u, weights, labels, sums, first_row, start, num_rows, num_classes, JOB, SHAPE)
        amount = _amounts(row_weights, rows, num_rows, scale, SHAPE)
        slope = tl.where(inside[:, None], amount[:, None] * slope, 0.0)
        z = signs(load_tile(u, first_row, num_rows, bits, B, ROWS, L), bits, B)
        found = dot_of_signs(tl.trans(slope), z, found, PRECISION, "a")
    at = slopes + (part * num_classes + classes[:, None]) * SHAPE.total + JOB.offset + bits[None, :]
    tl.store(at, found, mask=(classes < num_classes)[:, None] & (bits < B)[None, :])


@triton.jit(do_not_specialize=["num_rows", "rows_per_part"])
def classes_kernel(
    u, weights, labels, statistics, slopes, num_rows, num_classes, rows_per_part, scale, SHAPE: tl.constexpr,
    row_weights=None,
):  # fmt: skip
    """Grid (class tiles, jobs, parts): the gradient in the weights, (parts, C, T)."""
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(1) == j:
            _classes_job(
                u, weights, labels, row_weights, statistics, slopes, num_rows, num_classes, rows_per_part, scale, j,
                SHAPE,
            )  # fmt: skip


def launch(
    u: torch.Tensor,
    weights: torch.Tensor,
    labels: torch.Tensor,
    lengths,
    scale: float,
    penalty_weight: float,
    values: torch.Tensor,
    deltas: torch.Tensor,
    slopes: torch.Tensor | None,
    *,
    row_weights: torch.Tensor | None = None,
    soft: bool = False,
) -> None:
    """Fill `values` (GRADIENT.row_tiles(N), m) and `slopes` (`parts`, C, T), to be added up, and `deltas` (N, T).

    The loss is scale * sum over the rows of [the mean over their classes of -log p + penalty_weight * the mean over
    the bits of ||u| - 1|^3], p the softmax of the products with the weights; slopes are those in the weights (None:
    not wanted). u (N, L) and weights (C, T) float32 contiguous; labels int64 ids or multi-hot rows, or `soft`: rows
    of weights; row_weights (N,): how much each row counts, or None for 1.
    """
    lengths, labels = tiles.check_lengths(lengths), tiles.as_bytes(labels.contiguous())
    n, classes, m = u.shape[0], weights.shape[0], len(lengths)
    kind = (labels.ndim == 2, tiles.dot_precision(), row_weights is not None, soft)
    given = {} if row_weights is None else {"row_weights": row_weights}
    statistics = u.new_empty(n, m, 4)
    fixed = shape(lengths, GRADIENT, *kind)
    rows_kernel[(GRADIENT.row_tiles(n), len(fixed.jobs))](
        u, weights, labels, values, statistics, deltas, n, classes, (float(scale), float(penalty_weight)),
        SHAPE=fixed, **given, **GRADIENT.options(), **tiles.launch_options(u.device.type),
    )  # fmt: skip
    if slopes is None:
        return
    fixed = shape(lengths, SLOPES, *kind)
    number, rows_per_part = parts(n, classes, lengths)
    classes_kernel[(triton.cdiv(classes, SLOPES.columns), len(fixed.jobs), number)](
        u, weights, labels, statistics, slopes, n, classes, rows_per_part, float(scale), SHAPE=fixed, **given,
        **SLOPES.options(), **tiles.launch_options(u.device.type),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    floats = ("u", "weights", "values", "statistics", "deltas", "slopes")
    signature = {
        **dict.fromkeys(floats, "*fp32"), "num_rows": "i32", "num_classes": "i32", "rows_per_part": "i32",
        "scale": "fp32", "c": ("fp32",) * 2,
    }  # fmt: skip
    made = []
    for form, labels, weighed in (
        ("ids", "*i64", False), ("multi-hot", "*fp32", False), ("ids", "*i64", True), ("multi-hot", "*u8", True),
        ("soft", "*fp32", True),
    ):  # fmt: skip
        types = {**signature, "labels": labels, **({"row_weights": "*fp32"} if weighed else {})}
        for which, kernel, tile in (("rows", rows_kernel, GRADIENT), ("classes", classes_kernel, SLOPES)):
            options = {**tile.options(), **tiles.launch_options("cuda")}
            for precision in tiles.PRECISIONS:
                fixed = {"SHAPE": shape(lengths, tile, form != "ids", precision, weighed, form == "soft")}
                name = f"{which}/{form}{'/weighed' * weighed}/{precision}"
                made.append((name, kernel, types, fixed, options))
    return made
