"""Listwise losses: every row's softmax over the other rows of its batch, against a wanted one, at every length.

The rows' signs z give logits scale_k <z_i, z_j> / b_k; a function (`FUNCTIONS`) says of a tile which are wanted.
Signs pass gradients straight through to tanh u. Launches: the wanted cosines of vectors, an (N, N) workspace (ids are
compared where they are needed); per row and length the log of the softmax's sum; values and gradients, where a
program owns a tile of rows at one length (or a slice of a long one's gradient) and takes both orders (ij and ji) at
once; and, of ids, what is between the bits of a row and of its targets, which is added to them.
Operations: 2 N^2 multiply-adds a bit for products of signs, exact in tf32, and 1 for the gradient; N^2 d once for
vectors. Bytes: U once a row tile, and 4 N^2 for the workspace, from L2.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles
from .device.arithmetic import dot, dot_of_signs, largest, load_tile, sigmoid, signs, softplus, zeros

COSINES = tiles.Tiles(rows=32, columns=32, depth=32, warps=4)
STATISTICS = tiles.Tiles(rows=16, columns=64, bits=32, warps=4, stages=1)
GRADIENT = tiles.Tiles(rows=16, columns=32, bits=32, width=64, warps=4, stages=1)
LOWEST = tl.constexpr(-1e30)  # a logit that counts for nothing: finite, so that 0 times it is 0


@triton.jit
def divergence(targets, rows, columns, num_rows):
    """Logits in memory, (N, N)."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_rows)
    return tl.load(targets + rows[:, None] * num_rows + columns[None, :], mask=inside, other=0.0)


@triton.jit
def views(targets, rows, columns, num_rows):
    """All rows of the same id (N,) alike, and no other."""
    own = tl.load(targets + rows, mask=rows < num_rows, other=0)
    theirs = tl.load(targets + columns, mask=columns < num_rows, other=0)
    return tl.where(own[:, None] == theirs[None, :], 0.0, LOWEST)


class Function(NamedTuple):
    """What wants which logits.

    Attributes:
        code: the function of a tile.
        vectors: the targets are vectors, whose cosines over the constant are wanted, and the wanted softmax's own
            entropy counts; else they are ids, and the constant weighs what is between the bits of rows.
    """

    code: Any
    vectors: bool


FUNCTIONS = {"divergence": Function(divergence, vectors=True), "views": Function(views, vectors=False)}


class Shape(NamedTuple):
    """What is fixed when a kernel is compiled; `jobs` of what gives gradients, `entropy` of the first of these."""

    lengths: tuple[int, ...]
    total: int
    tiles: tiles.Tiles
    precision: str
    jobs: tuple[tiles.Job, ...] = ()
    slices: int = 1  # of the longest length's gradient
    entropy: bool = False


@cache
def shape(lengths, tile, precision, entropy=False) -> Shape:
    jobs = tiles.jobs(lengths, tile.width) if tile.width else ()
    return Shape(lengths, sum(lengths), tile, precision, jobs, _slices(lengths), entropy)


def _slices(lengths) -> int:
    return -(-lengths[-1] // GRADIENT.width)


def parts(num_rows: int, lengths, function: str, constant: float) -> tuple[int, int]:
    """How many partial sums of the values and of the slopes `launch` writes."""
    row_tiles = GRADIENT.row_tiles(num_rows)
    return row_tiles * (1 + _slices(lengths) * _with_gaps(function, constant)), row_tiles


def _with_gaps(function: str, constant: float) -> bool:
    return not FUNCTIONS[function].vectors and constant > 0


@triton.jit(do_not_specialize=["num_rows"])
def cosine_kernel(vectors, cosines, num_rows, width, temperature, SHAPE: tl.constexpr):
    """Grid (row tiles, column tiles): cosines (N, N) of the vectors (N, width), over the temperature."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    DEPTH: tl.constexpr = SHAPE.tiles.depth
    PRECISION: tl.constexpr = SHAPE.precision
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    product = zeros(ROWS, COLUMNS)
    own = zeros(ROWS, DEPTH)
    theirs = zeros(COLUMNS, DEPTH)
    for start in range(0, width, DEPTH):
        at = start + tl.arange(0, DEPTH)
        inside = (at < width)[None, :]
        x = tl.load(
            vectors + rows[:, None] * width + at[None, :], mask=(rows < num_rows)[:, None] & inside, other=0.0
        )
        known = (columns < num_rows)[:, None] & inside
        y = tl.load(vectors + columns[:, None] * width + at[None, :], mask=known, other=0.0)
        product = dot(x, tl.trans(y), product, PRECISION)
        own += x * x
        theirs += y * y
    inverse = 1 / (temperature * largest(tl.sqrt_rn(tl.sum(own, axis=1)), 1e-12))
    product = product * inverse[:, None] / largest(tl.sqrt_rn(tl.sum(theirs, axis=1)), 1e-12)[None, :]
    mask = (rows < num_rows)[:, None] & (columns < num_rows)[None, :]
    tl.store(cosines + rows[:, None] * num_rows + columns[None, :], product, mask=mask)


@triton.jit
def _products(u, first_row, first_column, num_rows, B: tl.constexpr, SHAPE: tl.constexpr):
    """Inner products of a tile's signs over B bits."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    L: tl.constexpr = SHAPE.lengths[-1]
    PRECISION: tl.constexpr = "ieee" if SHAPE.precision == "ieee" else "tf32"
    found = zeros(ROWS, COLUMNS)
    for start in range(0, B, SHAPE.tiles.bits):
        bits = start + tl.arange(0, SHAPE.tiles.bits)
        x = signs(load_tile(u, first_row, num_rows, bits, B, ROWS, L), bits, B)
        y = signs(load_tile(u, first_column, num_rows, bits, B, COLUMNS, L), bits, B)
        found = tl.dot(x, tl.trans(y), found, input_precision=PRECISION)  # of +-1 and 0: exact
    return found


@triton.jit
def _own_rows(SHAPE: tl.constexpr):
    """(number of the row tile, its first row, its rows) of a program, int64."""
    tile = tl.program_id(0).to(tl.int64)
    first_row = tile * SHAPE.tiles.rows
    return tile, first_row, first_row + tl.arange(0, SHAPE.tiles.rows)


@triton.jit
def _others(rows, columns, num_rows):
    """Which pairs of a tile are two different rows of the batch."""
    inside = (rows < num_rows)[:, None] & (columns < num_rows)[None, :]
    return inside & (rows[:, None] != columns[None, :])


@triton.jit
def _row_statistics(
    u, targets, scales, statistics, num_rows, K: tl.constexpr, FUNCTION: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    M: tl.constexpr = len(SHAPE.lengths)
    tile, first_row, rows = _own_rows(SHAPE)
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_rows, COLUMNS):
        columns = tile * 0 + start + tl.arange(0, COLUMNS)
        others = _others(rows, columns, num_rows)
        if K < M:
            factor = tl.load(scales + K) / SHAPE.lengths[K]
            logits = factor * _products(u, first_row, tile * 0 + start, num_rows, SHAPE.lengths[K], SHAPE)
        else:
            logits = FUNCTION(targets, rows, columns, num_rows)
        logits = tl.where(others, logits, LOWEST)
        top = tl.maximum(highest, tl.max(logits, axis=1))
        here = tl.where(others, tl.exp(logits - top[:, None]), 0.0)
        total = total * tl.exp(highest - top) + tl.sum(here, axis=1)
        highest = top
    place, inside = statistics + 2 * (rows * (M + 1) + K), rows < num_rows
    tl.store(place, highest, mask=inside)
    tl.store(place + 1, tl.log(tl.where(inside, total, 1.0)), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def statistics_kernel(
    u, targets, scales, statistics, num_rows, FUNCTION: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """Grid (row tiles, m + 1): (N, m + 1, 2), the largest logit of a row and the log of the sum of exp(logit - it).

    The last of the m + 1 is of the wanted logits; a largest one of LOWEST: the row has no target.
    """
    for k in tl.static_range(len(SHAPE.lengths) + 1):
        if tl.program_id(1) == k:
            _row_statistics(u, targets, scales, statistics, num_rows, k, FUNCTION, SHAPE)


@triton.jit
def _statistics_of(statistics, rows, num_rows, K: tl.constexpr, SHAPE: tl.constexpr):
    place = statistics + 2 * (rows * (len(SHAPE.lengths) + 1) + K)
    mask = rows < num_rows
    return tl.load(place, mask=mask, other=0.0), tl.load(place + 1, mask=mask, other=0.0)


@triton.jit
def _wanted_of(statistics, rows, num_rows, SHAPE: tl.constexpr):
    """The statistics of the rows' wanted logits, and 1 for a row of the batch that has a target, else 0."""
    highest, log_sum = _statistics_of(statistics, rows, num_rows, len(SHAPE.lengths), SHAPE)
    return highest, log_sum, tl.where((rows >= num_rows) | (highest <= 0.5 * LOWEST), 0.0, 1.0)


@triton.jit
def _log_shares(logits, highest, log_sum, others):
    """Logarithms of a softmax over the others, from the largest logit and the log of the sum of exp(logit - it)."""
    return tl.where(others, (logits - highest) - log_sum, LOWEST)


@triton.jit
def _place(deltas, rows, bits, num_rows, J: tl.constexpr, SHAPE: tl.constexpr):
    """Where a job's gradient lies, and which of its tile are there."""
    JOB: tl.constexpr = SHAPE.jobs[J]
    at = deltas + rows[:, None] * SHAPE.total + JOB.offset + bits[None, :]
    return at, (rows < num_rows)[:, None] & (bits < SHAPE.lengths[JOB.k])[None, :]


@triton.jit
def _job(
    u, targets, scales, statistics, values, slopes, deltas, num_rows, FUNCTION: tl.constexpr,
    J: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    JOB: tl.constexpr = SHAPE.jobs[J]
    PRECISION: tl.constexpr = SHAPE.precision
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    tile, first_row, rows = _own_rows(SHAPE)
    bits = JOB.first + tl.arange(0, JOB.width)
    factor = tl.load(scales + JOB.k) / B
    own_highest, own_sum = _statistics_of(statistics, rows, num_rows, JOB.k, SHAPE)
    own_wanted, own_wanted_sum, own_counts = _wanted_of(statistics, rows, num_rows, SHAPE)
    found = zeros(ROWS, JOB.width)
    value = tl.zeros((ROWS,), tl.float32)
    along = tl.zeros((ROWS,), tl.float32)
    counted = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, num_rows, COLUMNS):
        first_column = tile * 0 + start
        columns = first_column + tl.arange(0, COLUMNS)
        highest, log_sum = _statistics_of(statistics, columns, num_rows, JOB.k, SHAPE)
        wanted, wanted_sum, counts = _wanted_of(statistics, columns, num_rows, SHAPE)
        counted += counts
        others = _others(rows, columns, num_rows)
        products = _products(u, first_row, first_column, num_rows, B, SHAPE)
        logits = factor * products
        targeted = FUNCTION(targets, rows, columns, num_rows)
        log_p = _log_shares(logits, own_highest[:, None], own_sum[:, None], others)
        log_t = _log_shares(targeted, own_wanted[:, None], own_wanted_sum[:, None], others)
        share = own_counts[:, None] * tl.exp(log_t)
        slope = own_counts[:, None] * tl.exp(log_p) - share
        if JOB.first == 0:
            along += tl.sum(slope * tl.where(others, products, 0.0), axis=1)
            gap = -log_p
            if SHAPE.entropy:
                gap += log_t
            value += tl.sum(tl.where(others, share * gap, 0.0), axis=1)
        # The product of two rows is there twice: in the softmax of one, and of the other.
        other_p = _log_shares(logits, highest[None, :], log_sum[None, :], others)
        other_t = _log_shares(targeted, wanted[None, :], wanted_sum[None, :], others)
        slope += counts[None, :] * (tl.exp(other_p) - tl.exp(other_t))
        y = load_tile(u, first_column, num_rows, bits, B, COLUMNS, L)
        found = dot_of_signs(slope, signs(y, bits, B), found, PRECISION, "a")
    scale = 1 / largest(tl.sum(counted), 1.0)
    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L)
    fall = tl.exp(-2 * tl.abs(x))
    found = factor * found * (4 * fall / ((1 + fall) * (1 + fall)))  # 1 - tanh^2, which keeps its digits
    at, inside = _place(deltas, rows, bits, num_rows, J, SHAPE)
    tl.store(at, scale * found, mask=inside)
    if JOB.first == 0:
        tl.store(values + tile * M + JOB.k, scale * tl.sum(value))
        tl.store(slopes + tile * M + JOB.k, scale * tl.sum(along) / B)


@triton.jit(do_not_specialize=["num_rows"])
def gradient_kernel(
    u, targets, scales, statistics, values, slopes, deltas, num_rows, FUNCTION: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, jobs)."""
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(1) == j:
            _job(
                u, targets, scales, statistics, values, slopes, deltas, num_rows, FUNCTION, j, SHAPE,
            )  # fmt: skip


@triton.jit
def _gap(
    u, targets, statistics, values, deltas, num_rows, constant, FUNCTION: tl.constexpr, J: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    JOB: tl.constexpr = SHAPE.jobs[J]
    PRECISION: tl.constexpr = SHAPE.precision
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    tile, first_row, rows = _own_rows(SHAPE)
    bits = JOB.first + tl.arange(0, JOB.width)
    highest, log_sum, own = _wanted_of(statistics, rows, num_rows, SHAPE)
    # Of a row's targets: their outputs, and the softplus of these, by their shares.
    mean = zeros(ROWS, JOB.width)
    above = zeros(ROWS, JOB.width)
    shares = tl.zeros((ROWS,), tl.float32)
    counted = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, num_rows, COLUMNS):
        first_column = tile * 0 + start
        columns = first_column + tl.arange(0, COLUMNS)
        _, _, counts = _wanted_of(statistics, columns, num_rows, SHAPE)
        counted += counts
        others = _others(rows, columns, num_rows)
        targeted = FUNCTION(targets, rows, columns, num_rows)
        share = own[:, None] * tl.exp(_log_shares(targeted, highest[:, None], log_sum[:, None], others))
        y = load_tile(u, first_column, num_rows, bits, B, COLUMNS, L)
        shares += tl.sum(share, axis=1)
        mean = dot(share, y, mean, PRECISION)
        above = dot(share, softplus(y), above, PRECISION)
    scale = constant / largest(tl.sum(counted), 1.0)
    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L)
    apart = shares[:, None] * x - mean
    between = sigmoid(x) * apart - shares[:, None] * softplus(x) + above
    fall = tl.exp(-tl.abs(x))
    at, inside = _place(deltas, rows, bits, num_rows, J, SHAPE)
    before = tl.load(at, mask=inside, other=0.0)
    tl.store(at, before + scale * (fall / ((1 + fall) * (1 + fall))) * apart, mask=inside)
    # Every slice of a length has a part of its value; those past its last are zero.
    place = values + (tl.num_programs(0).to(tl.int64) + tile * SHAPE.slices) * M + JOB.k
    tl.store(place + (JOB.first // SHAPE.tiles.width) * M, scale * tl.sum(tl.where(inside, between, 0.0)))
    if JOB.first == 0:
        SLICES: tl.constexpr = SHAPE.slices
        for none in tl.static_range(SLICES):
            if none * SHAPE.tiles.width >= B:
                tl.store(place + none * M, 0.0)


@triton.jit(do_not_specialize=["num_rows"])
def gap_kernel(
    u, targets, statistics, values, deltas, num_rows, constant, FUNCTION: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """Grid (row tiles, jobs): KL(Bernoulli(sigmoid u_i) || Bernoulli(sigmoid u_j)), by shares, added to the deltas.

    Its parts of the values come after those of the row tiles.
    """
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(1) == j:
            _gap(u, targets, statistics, values, deltas, num_rows, constant, FUNCTION, j, SHAPE)


def launch(
    function: str,
    u: torch.Tensor,
    targets: torch.Tensor,
    scales: torch.Tensor,
    lengths,
    constant: float,
    values: torch.Tensor,
    slopes: torch.Tensor,
    deltas: torch.Tensor,
) -> None:
    """Fill `values` and `slopes` (`parts`; m), to be summed over their rows, and `deltas` (N, T).

    With T_i the wanted softmax of row i, p_i that of scale_k <z_i, z_j> / b_k, j over the other rows, means over the
    rows that have a target: "divergence": KL(T_i || p_i), T_i from cosines / constant of the targets (N, d) float32;
    "views": T_i alike for rows of equal id (N,) int64, mean over T_i of -log p_ij + constant KL(bits of i || of j).

    u (N, L) and scales (m,) float32 contiguous; slopes are those in the scales. Takes 4 N^2 bytes of vectors.
    """
    known, lengths, precision = FUNCTIONS[function], tiles.check_lengths(lengths), tiles.dot_precision()
    n, m = u.shape[0], len(lengths)
    if known.vectors:
        vectors, targets = targets.contiguous(), u.new_empty(n, n)
        cosine_kernel[(COSINES.row_tiles(n), triton.cdiv(n, COSINES.columns))](
            vectors, targets, n, vectors.shape[1], float(constant), SHAPE=shape(lengths, COSINES, precision),
            **COSINES.options(),
        )  # fmt: skip
    statistics = u.new_empty(n, m + 1, 2)
    statistics_kernel[(STATISTICS.row_tiles(n), m + 1)](
        u, targets.contiguous(), scales, statistics, n, FUNCTION=known.code,
        SHAPE=shape(lengths, STATISTICS, exact(precision)), **STATISTICS.options(),
    )  # fmt: skip
    fixed = shape(lengths, GRADIENT, precision, known.vectors)
    grid = (GRADIENT.row_tiles(n), len(fixed.jobs))
    gradient_kernel[grid](
        u, targets.contiguous(), scales, statistics, values, slopes, deltas, n, FUNCTION=known.code, SHAPE=fixed,
        **GRADIENT.options(),
    )  # fmt: skip
    if _with_gaps(function, constant):
        gap_kernel[grid](
            u, targets.contiguous(), statistics, values, deltas, n, float(constant), FUNCTION=known.code,
            SHAPE=shape(lengths, GRADIENT, precision), **GRADIENT.options(),
        )  # fmt: skip


def exact(precision: str) -> str:
    """The precision of a kernel that multiplies signs alone."""
    return "ieee" if precision == "ieee" else "tf32"


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    floats = ("u", "scales", "statistics", "values", "slopes", "deltas", "vectors", "cosines")
    signature = {**dict.fromkeys(floats, "*fp32"), "num_rows": "i32", "constant": "fp32"}
    vectors = {**signature, "width": "i32:16", "temperature": "fp32"}
    made = [
        (f"cosines/{p}", cosine_kernel, vectors, {"SHAPE": shape(lengths, COSINES, p)}, COSINES.options())
        for p in tiles.PRECISIONS
    ]
    for name, known in FUNCTIONS.items():
        types = {**signature, "targets": "*fp32" if known.vectors else "*i64"}
        for precision in ("tf32", "ieee"):
            constants = {"FUNCTION": known.code, "SHAPE": shape(lengths, STATISTICS, precision)}
            made.append((f"statistics/{name}/{precision}", statistics_kernel, types, constants, STATISTICS.options()))
        for precision in tiles.PRECISIONS:
            constants = {"FUNCTION": known.code, "SHAPE": shape(lengths, GRADIENT, precision, known.vectors)}
            made.append((f"gradient/{name}/{precision}", gradient_kernel, types, constants, GRADIENT.options()))
    for precision in tiles.PRECISIONS:
        constants = {"FUNCTION": views, "SHAPE": shape(lengths, GRADIENT, precision)}
        made.append((f"gaps/views/{precision}", gap_kernel, types, constants, GRADIENT.options()))
    return made
