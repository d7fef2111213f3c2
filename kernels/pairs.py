"""Pairwise losses: every length's values and gradients, from recomputed tiles of inner products.

A program owns a tile of rows at one length (or a slice of a long one's gradient) and goes through tiles of columns
(rows of the bank, or of the batch). For each it forms the inner products, the loss function (`pair_losses`) turns
them into values and pulls, and the pulls times the column rows add to the gradient. Nothing of size rows x columns
leaves the program.

Launches: the pairs (grid: row tiles, parts of the columns, jobs), then the sum of the parts in a fixed order, with
the penalty; before them the count of similar pairs where a loss weighs by it, and the packing of multi-hot labels.
Multiply-adds per pair: the length of every job for the inner products, its columns for the gradient (632 in all for
8 to 128 bits). Bytes: the bank once a row tile and job, from L2.
"""

import itertools

import torch
import triton
import triton.language as tl

from . import penalties, tiles
from .arithmetic import bit_sign, dot, load_tile, zeros
from .pair_functions import PAIR_LOSSES
from .pair_sums import add_up
from .similarity import comparable, count_pairs, similar_tile

BALANCING = ("dsh", "dhn", "dbdh", "dbdh_unclamped")  # the losses with the option `balance`
SMALL = tiles.Tiles(rows=32, columns=16, bits=16, width=64, warps=4, stages=1)
LARGE = tiles.Tiles(rows=64, columns=32, bits=32, width=64, warps=4, stages=1)


def config(kind: str, balanced: bool, num_columns: int, precision: str) -> tiles.Tiles:
    """A bank's pairs give many programs, so that each may be large; a small batch's own are spread over more.

    On the FMA units ("ieee"), for LCDSH and DCH, and for a balanced DSH a large tile needs more registers than there
    are.
    """
    fits = kind in BALANCING and precision != "ieee" and not (kind == "dsh" and balanced)
    return LARGE if fits and num_columns >= 1024 else SMALL


@triton.jit
def _products(
    u, others, first_row, first_column, num_rows, num_columns, B: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BITS: tl.constexpr, SQUARES: tl.constexpr, SIGNS: tl.constexpr, CLAMP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Over B bits of a tile of pairs: inner products, those of the signs, and the columns' squared norms."""
    inner = zeros(ROWS, COLUMNS)
    coded = zeros(ROWS, COLUMNS)
    squares = zeros(COLUMNS, BITS)
    for start in range(0, B, BITS):
        bits = start + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, CLAMP)
        y = load_tile(others, first_column, num_columns, bits, B, COLUMNS, L, CLAMP)
        inner = dot(x, tl.trans(y), inner, PRECISION)
        if SQUARES:
            squares += y * y
        if SIGNS:
            x = tl.where(bits[None, :] < B, bit_sign(x), 0.0)
            y = tl.where(bits[None, :] < B, bit_sign(y), 0.0)
            # Of +-1 and 0 one product in tf32 is exact.
            coded = tl.dot(x, tl.trans(y), coded, input_precision="ieee" if PRECISION == "ieee" else "tf32")
    return inner, coded, tl.sum(squares, axis=1)


@triton.jit
def _pair_weights(number, num_parts, share):
    """Weights of similar and of other pairs: `share` times how rare they are; 1 where there is only one kind.

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
    amount = share * all_pairs.to(tl.float32)
    weight_similar = tl.where(both, amount / tl.maximum(similar_pairs, 1).to(tl.float32), 1.0)
    weight_other = tl.where(both, amount / tl.maximum(other_pairs, 1).to(tl.float32), 1.0)
    return weight_similar, weight_other


@triton.jit
def _job(
    u, others, row_labels, column_labels, written, gradients, values, counts, statistics, squares, penalty_values,
    num_rows, num_columns, words, tiles_per_part, weight_similar, weight_other, reference, c0, c1,
    FUNCTION: tl.constexpr, PENALTY: tl.constexpr, K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr,
    OFFSET: tl.constexpr, LENGTHS: tl.constexpr, T: tl.constexpr, COUNTS: tl.constexpr, MULTI: tl.constexpr,
    MASKED: tl.constexpr, SQUARES: tl.constexpr, SIGNS: tl.constexpr, CLAMP: tl.constexpr, BALANCED: tl.constexpr,
    SCALES: tl.constexpr, COUNT_SIMILAR: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = len(LENGTHS)
    L: tl.constexpr = LENGTHS[M - 1]
    B: tl.constexpr = LENGTHS[K]
    tile = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    kept_bits = FIRST + tl.arange(0, WIDTH)
    ratio = tl.where(reference > 0, reference / B, 1.0)
    own = tl.zeros((ROWS,), tl.float32)
    if SQUARES:
        _, own = penalties.row_sums(u, first_row, num_rows, B, 0, L, ROWS, BITS, CLAMP)
    found = zeros(ROWS, WIDTH)
    value = zeros(ROWS, COLUMNS)
    keep = zeros(ROWS, COLUMNS)
    count = tl.zeros((ROWS, COLUMNS), tl.int32)
    first_column = part * tiles_per_part * COLUMNS
    for start in range(first_column, min(first_column + tiles_per_part * COLUMNS, num_columns), COLUMNS):
        columns = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        inner, coded, other = _products(
            u, others, first_row, tile * 0 + start, num_rows, num_columns, B, L, ROWS, COLUMNS, BITS, SQUARES, SIGNS,
            CLAMP, PRECISION,
        )  # fmt: skip
        similar = similar_tile(row_labels, column_labels, rows, columns, num_rows, num_columns, words, MULTI)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
        if MASKED:
            inside = inside & (tl.load(written + columns, mask=columns < num_columns, other=0)[None, :] != 0)
        if COUNTS:
            count += ((inside & similar) if COUNT_SIMILAR else inside).to(tl.int32)
        if SCALES:
            inner *= ratio
            coded *= ratio
        loss, pull, kept = FUNCTION(inner, coded, own[:, None], other[None, :], similar, B * 1.0, c0, c1)
        if BALANCED:
            weights = tl.where(similar, weight_similar, weight_other)
            loss *= weights
            pull *= weights
            kept *= weights
        if SCALES:
            pull *= ratio
        value += tl.where(inside, loss, 0.0)
        if SQUARES:
            keep += tl.where(inside, kept, 0.0)
        y = load_tile(others, tile * 0 + start, num_columns, kept_bits, B, COLUMNS, L, CLAMP)
        found = dot(tl.where(inside, pull, 0.0), y, found, PRECISION)
    if COUNTS:
        tl.store(counts + tile * tl.num_programs(1) + part, tl.sum(count.to(tl.int64)))
    if SQUARES:
        x = load_tile(u, first_row, num_rows, kept_bits, B, ROWS, L, CLAMP)
        found += tl.sum(keep, axis=1)[:, None] * x
    place = (part.to(tl.int64) * num_rows + rows[:, None]) * T + OFFSET + kept_bits[None, :]
    tl.store(gradients + place, found, mask=(rows[:, None] < num_rows) & (kept_bits[None, :] < B))
    if FIRST == 0:
        tl.store(values + (tile * tl.num_programs(1) + part) * M + K, tl.sum(value))
        if PENALTY != 0:  # noqa: SIM102 (one is for the compiler, one for the device)
            if part == 0:
                total, square = penalties.row_sums(u, first_row, num_rows, B, PENALTY, L, ROWS, BITS, CLAMP)
                amount = penalties.value(total, square, B * 1.0, c0, c1, PENALTY)
                tl.store(penalty_values + tile * M + K, tl.sum(tl.where(rows < num_rows, amount, 0.0)))
                tl.store(statistics + rows * M + K, total, mask=rows < num_rows)
                tl.store(squares + rows * M + K, square, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_columns", "tiles_per_part", "num_number_parts"])
def pair_kernel(
    u, others, row_labels, column_labels, written, number, gradients, values, counts, statistics, squares,
    penalty_values, num_rows, num_columns, words, tiles_per_part, num_number_parts, share, reference, c0, c1,
    FUNCTION: tl.constexpr, PENALTY: tl.constexpr, LENGTHS: tl.constexpr, JOBS: tl.constexpr, T: tl.constexpr,
    MULTI: tl.constexpr, MASKED: tl.constexpr, SQUARES: tl.constexpr, SIGNS: tl.constexpr, CLAMP: tl.constexpr,
    BALANCED: tl.constexpr, SCALES: tl.constexpr, COUNT_SIMILAR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, parts, jobs)."""
    weight_similar = 1.0
    weight_other = 1.0
    if BALANCED:
        weight_similar, weight_other = _pair_weights(number, num_number_parts, share)
    for j in tl.static_range(len(JOBS) // 4):
        if tl.program_id(2) == j:
            _job(
                u, others, row_labels, column_labels, written, gradients, values, counts, statistics, squares,
                penalty_values, num_rows, num_columns, words, tiles_per_part, weight_similar, weight_other,
                reference, c0, c1, FUNCTION, PENALTY, JOBS[4 * j], JOBS[4 * j + 1], JOBS[4 * j + 2], JOBS[4 * j + 3],
                LENGTHS, T, j == len(JOBS) // 4 - 1, MULTI, MASKED, SQUARES, SIGNS, CLAMP, BALANCED, SCALES,
                COUNT_SIMILAR, PRECISION, ROWS, COLUMNS, BITS,
            )  # fmt: skip


def launch(
    kind: str,
    u: torch.Tensor,
    others: torch.Tensor,
    labels: torch.Tensor,
    other_labels: torch.Tensor,
    written: torch.Tensor | None,
    lengths,
    c0: float,
    c1: float,
    penalty_weight: float,
    values: torch.Tensor,
    deltas: torch.Tensor,
    *,
    reference: float = 0.0,
    balance: bool = False,
    add: bool = False,
) -> None:
    """Fill (or, with `add`, add to) `values` (m,) and `deltas` (N, sum of the lengths).

    u (N, L) and others (M, L) float32 contiguous, labels as ids or multi-hot rows, written (M,) bool or None.
    reference: inner products of b bits count reference / b times (0: as they are); balance: similar and other pairs
    weigh half each.
    """
    loss, lengths, reference = PAIR_LOSSES[kind], tiles.check_lengths(lengths), tiles.check_reference(reference)
    if reference and not loss.scales:
        raise ValueError(f"reference: {kind} takes none, got {reference}")
    if balance and kind not in BALANCING:
        raise ValueError(f"balance: it is an option of {', '.join(BALANCING)}, not of {kind}")
    n, m, num_lengths, total = u.shape[0], others.shape[0], len(lengths), sum(lengths)
    product = tiles.dot_precision()
    balanced = loss.balanced or balance
    tile = config(kind, balanced, m, product)
    row_tiles, column_tiles = tile.row_tiles(n), triton.cdiv(m, tile.columns)
    jobs = tiles.jobs(lengths, tile.width)
    parts = tiles.splits(row_tiles * len(jobs) // 4, column_tiles, u.device)
    labels, other_labels, words = comparable(labels, other_labels)
    number = count_pairs(labels, other_labels, written, words) if balanced else u
    gradients = u.new_empty(parts, n, total)
    sums = u.new_empty(row_tiles * parts, num_lengths)
    counts = u.new_empty(row_tiles * parts, dtype=torch.int64)
    statistics, squares, penalty_values = (
        (u.new_empty(n, num_lengths), u.new_empty(n, num_lengths), u.new_empty(row_tiles, num_lengths))
        if loss.penalty
        else (u, u, u)
    )
    pair_kernel[(row_tiles, parts, len(jobs) // 4)](
        u, others, labels, other_labels, u if written is None else written.view(torch.uint8), number, gradients,
        sums, counts, statistics, squares, penalty_values, n, m, words, triton.cdiv(column_tiles, parts),
        len(number) if balanced else 0, 1.0 if loss.balanced else 0.5, reference, float(c0), float(c1),
        FUNCTION=loss.function, PENALTY=loss.penalty, LENGTHS=lengths, JOBS=jobs, T=total, MULTI=words > 0,
        MASKED=written is not None, SQUARES=loss.squares, SIGNS=loss.signs, CLAMP=loss.clamp,
        BALANCED=balanced, SCALES=loss.scales, COUNT_SIMILAR=loss.count_similar, PRECISION=product,
        ROWS=tile.rows, COLUMNS=tile.columns, BITS=tile.bits, **tile.options(),
    )  # fmt: skip
    add_up(
        loss, u, gradients, sums, counts, statistics, squares, penalty_values, lengths, c0, c1, penalty_weight,
        values, deltas, add,
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    made = []
    names = ("u", "others", "gradients", "values", "statistics", "squares", "penalty_values")
    for name, loss in PAIR_LOSSES.items():
        signature = {
            **dict.fromkeys(names, "*fp32"), "row_labels": "*i64", "column_labels": "*i64", "written": "*u8",
            "number": "*i64", "counts": "*i64", "num_rows": "i32", "num_columns": "i32", "words": "i32",
            "tiles_per_part": "i32", "num_number_parts": "i32",
            **dict.fromkeys(("share", "reference", "c0", "c1"), "fp32"),
        }  # fmt: skip
        weighed = (False, True) if name in BALANCING else (loss.balanced,)
        for kind, balanced, columns in itertools.product(tiles.PRECISIONS, weighed, (64, 13_000)):
            tile = config(name, balanced, columns, kind)
            if columns > 64 and tile is SMALL:
                continue
            constants = {
                "FUNCTION": loss.function, "PENALTY": loss.penalty, "LENGTHS": lengths,
                "JOBS": tiles.jobs(lengths, tile.width), "T": sum(lengths), "MULTI": False,
                "MASKED": name not in ("dch", "lcdsh"), "SQUARES": loss.squares, "SIGNS": loss.signs,
                "CLAMP": loss.clamp, "BALANCED": balanced, "SCALES": loss.scales,
                "COUNT_SIMILAR": loss.count_similar, "PRECISION": kind, "ROWS": tile.rows,
                "COLUMNS": tile.columns, "BITS": tile.bits,
            }  # fmt: skip
            form = f"pairs/{name}/{kind}/m{columns}" + ("/balanced" if balanced and not loss.balanced else "")
            made.append((form, pair_kernel, signature, constants, tile.options()))
    return made
