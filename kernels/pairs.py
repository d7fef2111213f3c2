"""Pairwise losses: every length's values and gradients, from recomputed tiles of inner products.

A program owns a tile of rows at one length (or a slice of a long one's gradient) and goes through tiles of columns
(rows of the bank, or of the batch). For each it forms the inner products and of them the pairs' geometry, a function
(`pair_functions`) gives losses and slopes, and the slopes times the column rows add to the gradient. Nothing of size
rows x columns leaves the program.

Launches: the pairs (grid: row tiles, parts of the columns, jobs), then the sum of the parts in a fixed order, with
the penalty (`pair_sums`); before them the count of similar pairs where pairs are weighed, and the packing of
multi-hot labels. Multiply-adds per pair: the length of every job for the inner products, its columns for the gradient
(632 in all for 8 to 128 bits). Bytes: the bank once a row tile and job, from L2.
"""

import itertools
import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import pair_sums, tiles
from .device import penalties
from .device.arithmetic import bit_sign, dot, inverse_norm, load_tile, zeros
from .pair_functions import PAIR_FUNCTIONS, PairFunction
from .similarity import comparable, count_pairs, similar_tile

# One stage: pipelined with more, Triton 3.6 gives wrong gradients on a card (docs/kernels.md).
SMALL = tiles.Tiles(rows=32, columns=16, bits=16, width=64, warps=4, stages=1)
LARGE = tiles.Tiles(rows=64, columns=32, bits=32, width=64, warps=4, stages=1)
SHARES = {"no": 0.0, "rarity": 1.0, "halves": 0.5}  # how pairs weigh: this share of N / n, n of N being of their kind
MEANS = ("pairs", "similar")  # what the mean is over


class Shape(NamedTuple):
    """What is fixed when the kernel is compiled."""

    lengths: tuple[int, ...]
    total: int
    jobs: tuple[tiles.Job, ...]
    tiles: tiles.Tiles
    geometry: str
    signs: bool
    of_zero: float
    penalty: str
    clamp: float  # outputs and columns to +-clamp first
    share: float
    over: str
    both: bool  # the columns are the rows themselves, and both orders of a pair count
    multi: bool
    masked: bool
    precision: str
    weighed: bool = False  # rows and columns have weights, S is given
    graded: bool = False  # the function is one of S itself
    by_length: bool = False  # c has a constant for every length


@cache
def shape(
    function, lengths, tile, penalty, clamp, weigh, over, both, multi, masked, precision, weighed=False
) -> Shape:  # fmt: skip
    f = PAIR_FUNCTIONS[function]
    return Shape(
        lengths, sum(lengths), tiles.jobs(lengths, tile.width), tile, f.geometry, f.signs, f.of_zero, penalty, clamp,
        SHARES[weigh], over, both, multi, masked, precision, weighed, f.graded, f.by_length,
    )  # fmt: skip


def config(
    function: PairFunction, weighed: bool, num_columns: int, precision: str, generation: int = 9
) -> tiles.Tiles:
    """A bank's pairs give many programs, so that each may be large; a small batch's own are spread over more.

    On the FMA units ("ieee") a large tile needs more registers than there are; so it does in three products
    ("tf32x3") before Hopper.
    """
    fits = precision != "ieee" and (function.large == "always" or (function.large == "unweighed" and not weighed))
    large = LARGE._replace(rows=32) if generation < 9 and precision == "tf32x3" else LARGE
    return large if fits and num_columns >= 1024 else SMALL


@triton.jit
def _products(
    u, others, first_row, first_column, num_rows, num_columns, B: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """Over B bits of a tile of pairs: inner products, those of the signs, and the columns' squared norms."""
    L: tl.constexpr = SHAPE.lengths[-1]
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    BITS: tl.constexpr = SHAPE.tiles.bits
    PRECISION: tl.constexpr = SHAPE.precision
    inner = zeros(ROWS, COLUMNS)
    coded = zeros(ROWS, COLUMNS)
    squares = zeros(COLUMNS, BITS)
    for start in range(0, B, BITS):
        bits = start + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, SHAPE.clamp)
        y = load_tile(others, first_column, num_columns, bits, B, COLUMNS, L, SHAPE.clamp)
        inner = dot(x, tl.trans(y), inner, PRECISION)
        if SHAPE.geometry != "product":
            squares += y * y
        if SHAPE.signs:
            x = tl.where(bits[None, :] < B, bit_sign(x), 0.0)
            y = tl.where(bits[None, :] < B, bit_sign(y), 0.0)
            # Of +-1 and 0 one product in tf32 is exact.
            coded = tl.dot(x, tl.trans(y), coded, input_precision="ieee" if PRECISION == "ieee" else "tf32")
    return inner, coded, tl.sum(squares, axis=1)


@triton.jit
def _pair_weights(number, num_parts, SHARE: tl.constexpr):
    """Weights of similar and of other pairs: SHARE times how rare they are; 1 where there is only one kind.

    number (num_parts, 2): similar pairs and all pairs, to be added up.
    """
    similar_pairs = tl.sum(tl.zeros((32,), tl.int64))
    all_pairs = tl.sum(tl.zeros((32,), tl.int64))
    for start in range(0, num_parts, 32):
        at = start + tl.arange(0, 32)
        similar_pairs += tl.sum(tl.load(number + 2 * at, mask=at < num_parts, other=0))
        all_pairs += tl.sum(tl.load(number + 2 * at + 1, mask=at < num_parts, other=0))
    other_pairs = all_pairs - similar_pairs
    both = (similar_pairs > 0) & (other_pairs > 0)
    amount = SHARE * all_pairs.to(tl.float32)
    weight_similar = tl.where(both, amount / tl.maximum(similar_pairs, 1).to(tl.float32), 1.0)
    weight_other = tl.where(both, amount / tl.maximum(other_pairs, 1).to(tl.float32), 1.0)
    return weight_similar, weight_other


@triton.jit
def _geometry(inner, own, theirs, SHAPE: tl.constexpr):
    """The pairs' numbers x from inner products; own and theirs: squared norms, or for cosines 1 / norms."""
    if SHAPE.geometry == "distance":
        return own[:, None] + theirs[None, :] - 2 * inner
    elif SHAPE.geometry == "cosine":
        known = (own != 0)[:, None] & (theirs != 0)[None, :]
        return tl.where(known, inner * own[:, None] * theirs[None, :], 0.0)
    else:
        return inner


@triton.jit
def _gradient(found, kept, x, own, ratio, SHAPE: tl.constexpr):
    """Rows' gradients from `found`, slopes times columns, and `kept`, what falls to the rows x themselves."""
    if SHAPE.geometry == "distance":
        found = 2 * (kept[:, None] * x - found)
    elif SHAPE.geometry == "cosine":
        kept = tl.where(own < 1e12, kept * own, 0.0)  # the norm of a row without a direction is a constant
        found = own[:, None] * (found - kept[:, None] * x)
    else:
        found *= ratio
    return 2 * found if SHAPE.both else found


@triton.jit
def _amounts(given, rows, columns, num_rows, num_columns):
    """S of a tile, and how much its pairs count as similar ones, and as others; given: see `launch`."""
    grades, row_weights, column_weights, kinds = given
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    grade = tl.load(grades + rows[:, None] * num_columns + columns[None, :], mask=inside, other=0.0)
    row = tl.load(row_weights + rows, mask=rows < num_rows, other=0.0)
    column = tl.load(column_weights + columns, mask=columns < num_columns, other=0.0)
    amount = row[:, None] * column[None, :]
    return grade, amount * grade * tl.load(kinds), amount * (1 - grade) * tl.load(kinds + 1)


@triton.jit
def _job(
    u, others, labels, out, weights, num_rows, num_columns, words, tiles_per_part, reference, c,
    FUNCTION: tl.constexpr, J: tl.constexpr, SHAPE: tl.constexpr, given,
):  # fmt: skip
    row_labels, column_labels, written = labels
    gradients, values, counts, statistics = out
    JOB: tl.constexpr = SHAPE.jobs[J]
    PENALTY: tl.constexpr = SHAPE.penalty
    PRECISION: tl.constexpr = SHAPE.precision
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    BITS: tl.constexpr = SHAPE.tiles.bits
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    tile = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    bits = JOB.first + tl.arange(0, JOB.width)
    ratio = tl.where(reference > 0, reference / B, 1.0)
    own = tl.zeros((ROWS,), tl.float32)
    if SHAPE.geometry != "product":
        _, own = penalties.row_sums(u, first_row, num_rows, B, "none", L, ROWS, BITS, SHAPE.clamp)
    if SHAPE.geometry == "cosine":
        own = inverse_norm(own, SHAPE.of_zero)
    found = zeros(ROWS, JOB.width)
    value = zeros(ROWS, COLUMNS)
    kept = zeros(ROWS, COLUMNS)
    count = tl.zeros((ROWS, COLUMNS), tl.int32)
    c0, c1 = c[0], c[1]
    if SHAPE.by_length:
        c0 = c[JOB.k]
    first_column = part * tiles_per_part * COLUMNS
    for start in range(first_column, min(first_column + tiles_per_part * COLUMNS, num_columns), COLUMNS):
        columns = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        inner, coded, theirs = _products(u, others, first_row, tile * 0 + start, num_rows, num_columns, B, SHAPE)
        similar = similar_tile(row_labels, column_labels, rows, columns, num_rows, num_columns, words, SHAPE.multi)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
        if SHAPE.masked:
            inside = inside & (tl.load(written + columns, mask=columns < num_columns, other=0)[None, :] != 0)
        if JOB.k == 0 and JOB.first == 0:
            count += ((inside & similar) if SHAPE.over == "similar" else inside).to(tl.int32)
        if SHAPE.geometry == "product":
            inner *= ratio
            coded *= ratio
        if SHAPE.geometry == "cosine":
            theirs = inverse_norm(theirs, SHAPE.of_zero)
        x = _geometry(inner, own, theirs, SHAPE)
        if SHAPE.weighed:
            # A pair of similarity S is S of a similar and 1 - S of another one.
            grade, near, far = _amounts(given, rows, columns, num_rows, num_columns)
            if SHAPE.graded:
                loss, slope = FUNCTION(x, coded, grade, B * 1.0, c0, c1)
                loss *= near + far
                slope *= near + far
            else:
                loss, slope = FUNCTION(x, coded, (rows >= 0)[:, None] | inside, B * 1.0, c0, c1)
                other, falls = FUNCTION(x, coded, (rows < 0)[:, None] & inside, B * 1.0, c0, c1)
                loss = near * loss + far * other
                slope = near * slope + far * falls
        elif SHAPE.graded:
            loss, slope = FUNCTION(x, coded, similar.to(tl.float32), B * 1.0, c0, c1)
        else:
            loss, slope = FUNCTION(x, coded, similar, B * 1.0, c0, c1)
        if SHAPE.share > 0:
            weight = tl.where(similar, weights[0], weights[1])
            loss *= weight
            slope *= weight
        value += tl.where(inside, loss, 0.0)
        slope = tl.where(inside, slope, 0.0)
        if SHAPE.geometry == "distance":
            kept += slope
        elif SHAPE.geometry == "cosine":
            kept += slope * x
            slope *= theirs[None, :]
        y = load_tile(others, tile * 0 + start, num_columns, bits, B, COLUMNS, L, SHAPE.clamp)
        found = dot(slope, y, found, PRECISION)
    place = tile * tl.num_programs(1) + part
    if JOB.k == 0 and JOB.first == 0:
        tl.store(counts + place, tl.sum(count.to(tl.int64)))
    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, SHAPE.clamp)
    found = _gradient(found, tl.sum(kept, axis=1), x, own, ratio, SHAPE)
    at = (part.to(tl.int64) * num_rows + rows[:, None]) * SHAPE.total + JOB.offset + bits[None, :]
    tl.store(gradients + at, found, mask=(rows[:, None] < num_rows) & (bits[None, :] < B))
    if JOB.first == 0:
        tl.store(values + place * M + JOB.k, tl.sum(value))
        if PENALTY != "none":  # noqa: SIM102 (one is for the compiler, one for the device)
            if part == 0:
                total, squares = penalties.row_sums(u, first_row, num_rows, B, PENALTY, L, ROWS, BITS, SHAPE.clamp)
                amount = penalties.value(total, squares, B * 1.0, c, PENALTY)
                if SHAPE.weighed:
                    amount *= tl.load(given[1] + rows, mask=rows < num_rows, other=0.0)
                after = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) + tile
                tl.store(values + after * M + JOB.k, tl.sum(tl.where(rows < num_rows, amount, 0.0)))
                row = 2 * (rows * M + JOB.k)
                tl.store(statistics + row, total, mask=rows < num_rows)
                tl.store(statistics + row + 1, squares, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_columns", "tiles_per_part", "num_number_parts"])
def pair_kernel(
    u, others, row_labels, column_labels, written, number, gradients, values, counts, statistics, num_rows,
    num_columns, words, tiles_per_part, num_number_parts, reference, c, FUNCTION: tl.constexpr, SHAPE: tl.constexpr,
    given=None,
):  # fmt: skip
    """Grid (row tiles, parts, jobs)."""
    weights = (1.0, 1.0)
    if SHAPE.share > 0:
        weights = _pair_weights(number, num_number_parts, SHAPE.share)
    labels = (row_labels, column_labels, written)
    out = (gradients, values, counts, statistics)
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(2) == j:
            _job(
                u, others, labels, out, weights, num_rows, num_columns, words, tiles_per_part, reference, c, FUNCTION,
                j, SHAPE, given,
            )  # fmt: skip


def launch(
    function: str,
    u: torch.Tensor,
    labels: torch.Tensor,
    lengths,
    constants,
    values: torch.Tensor,
    deltas: torch.Tensor,
    *,
    bank: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None,
    penalty: tuple[str, float] = ("none", 0.0),
    reference: float = 0.0,
    clamp: float = math.inf,
    weigh: str = "no",
    over: str = "pairs",
    add: bool = False,
    given: tuple[torch.Tensor, ...] | None = None,
) -> None:
    """Fill (or, with `add`, add to) `values` (m,) and `deltas` (N, sum of the lengths).

    u (N, L) float32 contiguous, labels as ids or multi-hot rows. bank: rows (M, L) float32 contiguous, their labels,
    and (M,) bool of those that count (None: all); without a bank the rows are compared with one another, each pair in
    both orders. constants: at most two numbers, or one for every length. penalty: its kind and weight. reference:
    products of b bits count reference / b times (0: as they are). clamp: outputs and bank to +-clamp first. weigh:
    how pairs weigh ("no", "rarity", "halves"; 1 where all are of one kind); over: the mean is over all "pairs" or the
    "similar" ones.
    given: (S (N, M), weights of the rows (N,) and of the columns (M,), what similar and other pairs count (2,)), all
    float32 and contiguous, in place of what labels, `weigh` and `over` say.
    """
    if given is not None:
        weigh, over = "no", "pairs"
    known, lengths, reference = check(function, lengths, constants, penalty, reference, clamp, weigh, over)
    c = (*map(float, constants), 0.0, 0.0)[: max(2, len(constants))]
    others, other_labels, written = bank or (u, labels, None)
    n, m = u.shape[0], others.shape[0]
    product, weighed = tiles.dot_precision(), weigh != "no"
    tile = SMALL if given is not None else config(known, weighed, m, product, tiles.generation(u.device))
    row_tiles, column_tiles = tile.row_tiles(n), triton.cdiv(m, tile.columns)
    labels, other_labels, words = comparable(labels, other_labels)
    number = count_pairs(labels, other_labels, written, words) if weighed else u
    fixed = shape(
        function, lengths, tile, penalty[0], clamp, weigh, over, bank is None, words > 0, written is not None,
        product, given is not None,
    )  # fmt: skip
    parts = tiles.splits(row_tiles * len(fixed.jobs), column_tiles, u.device)
    gradients = u.new_empty(parts, n, fixed.total)
    # The values of the programs, then the penalties of the row tiles.
    sums = u.new_empty(row_tiles * (parts + (penalty[0] != "none")), len(lengths))
    counts = u.new_empty(row_tiles * parts, dtype=torch.int64)
    statistics = u.new_empty(n, len(lengths), 2) if penalty[0] != "none" else u
    pair_kernel[(row_tiles, parts, len(fixed.jobs))](
        u, others, labels, other_labels, u if written is None else written.view(torch.uint8), number, gradients,
        sums, counts, statistics, n, m, words, triton.cdiv(column_tiles, parts), len(number) if weighed else 0,
        reference, c, FUNCTION=known.code, SHAPE=fixed, **({} if given is None else {"given": given}),
        **tile.options(),
    )  # fmt: skip
    weights = None if given is None else given[1]
    pair_sums.launch(
        u, gradients, sums, counts, statistics, lengths, c[:2], penalty, clamp, values, deltas, add, weights
    )  # fmt: skip


def scales(function: str) -> bool:
    """Whether a function looks at products, which a reference length scales."""
    return function not in PAIR_FUNCTIONS or PAIR_FUNCTIONS[function].geometry == "product"


def check(function: str, lengths, constants, penalty, reference: float, clamp: float, weigh: str, over: str):
    """(the function, lengths, reference) of a launch, or ValueError for what it cannot do."""
    for name, value, known in (
        ("function", function, PAIR_FUNCTIONS), ("penalty", penalty[0], penalties.KINDS), ("weigh", weigh, SHARES),
        ("over", over, MEANS),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if not clamp > 0:
        raise ValueError(f"clamp: expected a number above 0, got {clamp}")
    found = PAIR_FUNCTIONS[function]
    if found.by_length and len(constants) != len(lengths):
        raise ValueError(f"constants: {function} takes one for every length, got {len(constants)}")
    if not found.by_length and len(constants) > 2:
        raise ValueError(f"constants: a function of pairs takes at most 2, got {len(constants)}")
    reference = tiles.check_reference(reference)
    if reference and not scales(function):
        raise ValueError(f"reference: {function} takes none, got {reference} (it is for products)")
    return found, tiles.check_lengths(lengths), reference


def variants(lengths=(8, 16, 32, 64, 128), generation: int = 9):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    made = []
    floats = ("u", "others", "gradients", "values", "statistics")
    integers = ("num_rows", "num_columns", "words", "tiles_per_part", "num_number_parts")
    signature = {
        **dict.fromkeys(floats, "*fp32"), **dict.fromkeys(integers, "i32"), "written": "*u8", "reference": "fp32",
        **dict.fromkeys(("row_labels", "column_labels", "number", "counts"), "*i64"), "c": ("fp32", "fp32"),
    }  # fmt: skip
    for function, known in PAIR_FUNCTIONS.items():
        unweighed = dict.fromkeys(
            (penalty, clamp, bank, "given", "pairs") for penalty, clamp, bank, *_ in known.ships
        )
        cases = itertools.product((*known.ships, *unweighed), tiles.PRECISIONS, (64, 13_000))
        for (penalty, clamp, bank, weigh, over), precision, columns in cases:
            given = weigh == "given"
            tile = SMALL if given else config(known, weigh != "no", columns, precision, generation)
            if columns > 64 and tile is SMALL:
                continue
            form = "-".join([function] + [penalty] * (penalty != "none") + ["clamped"] * (clamp < math.inf))
            kind = (penalty, clamp, "no" if given else weigh, over, not bank, False, bank, precision, given)
            name = f"{form}/{precision}/m{columns}" + f"/{weigh}" * (weigh in ("halves", "given"))
            constants = {"FUNCTION": known.code, "SHAPE": shape(function, lengths, tile, *kind)}
            types = {**signature, **({"given": ("*fp32",) * 4} if given else {})}
            if known.by_length:
                types["c"] = ("fp32",) * len(lengths)
            made.append((name, pair_kernel, types, constants, tile.options()))
    return made
