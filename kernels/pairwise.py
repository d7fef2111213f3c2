"""Pairwise losses: every length's values and gradients in one walk over the bits of each pair of rows.

A program owns a tile of rows and goes through tiles of columns (rows of the bank, or of the batch). For each it
walks the bits length by length, the inner products accumulating; at each code length the loss function
(`pair_losses`) turns them into values and pulls, and the pulls times the column rows add to that length's gradient.
Nothing of size rows x columns leaves the program.

Launches: the pairs (grid: row tiles, parts of the columns, jobs), then the sum of the parts in a fixed order, with
the penalty; before them the count of similar pairs where a loss weighs by it, and the packing of multi-hot labels.
Multiply-adds per pair: sum(lengths) for the gradients, and for the inner products the longest length of every job
(608 in all for 8 to 128 bits with shared programs, 632 without). Bytes: the bank once a row tile and job, from L2.
"""

import torch
import triton
import triton.language as tl

from . import penalties, tiles
from .arithmetic import bit_sign, clamp_unit, load_tile, zeros
from .pair_losses import PAIR_LOSSES
from .similarity import comparable, count_similar, similar_tile

FEW_ROWS = tiles.Tiles(rows=16, columns=16, bits=16, width=64, warps=4, stages=1)
MANY_ROWS = tiles.Tiles(rows=32, columns=32, bits=16, width=64, warps=8, stages=1, shared=False)
SUM_ROWS, SUM_COLUMNS = 16, 64


@triton.jit
def _length(
    u, others, inner, coded, own, other, similar, inside, weights, gradient, value, keep, first_row, first_column,
    num_rows, num_columns, c0, c1, FUNCTION: tl.constexpr, PREVIOUS: tl.constexpr, B: tl.constexpr,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BITS: tl.constexpr, SQUARES: tl.constexpr, SIGNS: tl.constexpr, CLAMP: tl.constexpr, BALANCED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The bits from PREVIOUS to B of a tile of pairs, then the loss at length B."""
    for start in range(PREVIOUS, B, BITS):
        bits = start + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, CLAMP)
        y = load_tile(others, first_column, num_columns, bits, B, COLUMNS, L, CLAMP)
        inner = tl.dot(x, tl.trans(y), inner, input_precision=PRECISION)
        if SQUARES:
            own += tl.sum(x * x, axis=1)
            other += tl.sum(y * y, axis=1)
        if SIGNS:
            x = tl.where(bits[None, :] < B, bit_sign(x), 0.0)
            y = tl.where(bits[None, :] < B, bit_sign(y), 0.0)
            coded = tl.dot(x, tl.trans(y), coded, input_precision=PRECISION)
    loss, pull, kept = FUNCTION(inner, coded, own[:, None], other[None, :], similar, B * 1.0, c0, c1)
    if BALANCED:
        loss *= weights
        pull *= weights
        kept *= weights
    value += tl.sum(tl.where(inside, loss, 0.0), axis=1)
    if SQUARES:
        keep += tl.sum(tl.where(inside, kept, 0.0), axis=1)
    kept_columns = FIRST + tl.arange(0, WIDTH)
    y = load_tile(others, first_column, num_columns, kept_columns, B, COLUMNS, L, CLAMP)
    gradient = tl.dot(tl.where(inside, pull, 0.0), y, gradient, input_precision=PRECISION)
    return inner, coded, own, other, gradient, value, keep


@triton.jit
def _finish(
    u, gradients, values, statistics, squares, penalty_values, gradient, value, keep, num_rows, part, tile, c0, c1,
    K: tl.constexpr, B: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, OFFSET: tl.constexpr,
    LENGTHS: tl.constexpr, T: tl.constexpr, SQUARES: tl.constexpr, CLAMP: tl.constexpr, PENALTY: tl.constexpr,
    ROWS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Store what one length of the job gathered; where it is this program's, also the row sums of the penalty."""
    M: tl.constexpr = len(LENGTHS)
    L: tl.constexpr = LENGTHS[M - 1]
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    columns = FIRST + tl.arange(0, WIDTH)
    mask = (rows[:, None] < num_rows) & (columns[None, :] < B)
    if SQUARES:
        gradient += keep[:, None] * load_tile(u, first_row, num_rows, columns, B, ROWS, L, CLAMP)
    place = (part.to(tl.int64) * num_rows + rows[:, None]) * T + OFFSET + columns[None, :]
    tl.store(gradients + place, gradient, mask=mask)
    if FIRST == 0:
        tl.store(values + (tile * tl.num_programs(1) + part) * M + K, tl.sum(value))
        if PENALTY != 0:  # noqa: SIM102 (one is for the compiler, one for the device)
            if part == 0:
                total = tl.zeros_like(value)
                square = tl.zeros_like(value)
                for start in range(0, B, BITS):
                    bits = start + tl.arange(0, BITS)
                    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, CLAMP)
                    total += tl.sum(tl.where(bits[None, :] < B, penalties.statistic(x, PENALTY), 0.0), axis=1)
                    square += tl.sum(x * x, axis=1)
                amount = penalties.value(total, square, B * 1.0, c0, c1, PENALTY)
                tl.store(penalty_values + tile * M + K, tl.sum(tl.where(rows < num_rows, amount, 0.0)))
                tl.store(statistics + rows * M + K, total, mask=rows < num_rows)
                tl.store(squares + rows * M + K, square, mask=rows < num_rows)


@triton.jit
def _job(
    u, others, row_labels, column_labels, written, positives, gradients, values, counts, statistics, squares,
    penalty_values, num_rows, num_columns, words, tiles_per_part, num_positive_parts, c0, c1,
    FUNCTION: tl.constexpr, PENALTY: tl.constexpr, LENGTHS: tl.constexpr, ENTRIES: tl.constexpr, START: tl.constexpr,
    END: tl.constexpr, T: tl.constexpr, COUNTS: tl.constexpr, MULTI: tl.constexpr, MASKED: tl.constexpr,
    SQUARES: tl.constexpr, SIGNS: tl.constexpr, CLAMP: tl.constexpr, BALANCED: tl.constexpr,
    COUNT_SIMILAR: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    L: tl.constexpr = LENGTHS[len(LENGTHS) - 1]
    tile = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    rows = tile * ROWS + tl.arange(0, ROWS)
    weight_similar = 1.0
    weight_other = 1.0
    if BALANCED:
        similar_pairs = tl.sum(tl.zeros((32,), tl.int64))
        for start in range(0, num_positive_parts, 32):
            at = start + tl.arange(0, 32)
            similar_pairs += tl.sum(tl.load(positives + at, mask=at < num_positive_parts, other=0))
        all_pairs = (num_rows * 1.0) * num_columns
        other_pairs = (tile * 0 + num_rows) * num_columns - similar_pairs
        both = (similar_pairs > 0) & (other_pairs > 0)
        weight_similar = tl.where(both, all_pairs / tl.maximum(similar_pairs, 1).to(tl.float32), 1.0)
        weight_other = tl.where(both, all_pairs / tl.maximum(other_pairs, 1).to(tl.float32), 1.0)
    found = ()
    row_values = ()
    keeps = ()
    for e in tl.static_range(START, END):
        found += (zeros(ROWS, ENTRIES[4 * e + 2]),)
        row_values += (tl.zeros((ROWS,), tl.float32),)
        keeps += (tl.zeros((ROWS,), tl.float32),)
    count = tl.zeros((ROWS,), tl.int32)
    first_column = part * tiles_per_part * COLUMNS
    for start in range(first_column, min(first_column + tiles_per_part * COLUMNS, num_columns), COLUMNS):
        columns = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        similar = similar_tile(row_labels, column_labels, rows, columns, num_rows, num_columns, words, MULTI)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
        if MASKED:
            inside = inside & (tl.load(written + columns, mask=columns < num_columns, other=0)[None, :] != 0)
        if COUNTS:
            count += tl.sum(((inside & similar) if COUNT_SIMILAR else inside).to(tl.int32), axis=1)
        weights = tl.where(similar, weight_similar, weight_other)
        inner = tl.zeros((ROWS, COLUMNS), tl.float32)
        coded = tl.zeros((ROWS, COLUMNS), tl.float32)
        own = tl.zeros((ROWS,), tl.float32)
        other = tl.zeros((COLUMNS,), tl.float32)
        next_found = ()
        next_values = ()
        next_keeps = ()
        for e in tl.static_range(START, END):
            inner, coded, own, other, gradient, value, keep = _length(
                u, others, inner, coded, own, other, similar, inside, weights, found[e - START],
                row_values[e - START], keeps[e - START], tile * ROWS, tile * 0 + start, num_rows, num_columns,
                c0, c1, FUNCTION,
                0 if e == START else LENGTHS[ENTRIES[4 * e - 4]], LENGTHS[ENTRIES[4 * e]], ENTRIES[4 * e + 1],
                ENTRIES[4 * e + 2], L, ROWS, COLUMNS, BITS, SQUARES, SIGNS, CLAMP, BALANCED, PRECISION,
            )  # fmt: skip
            next_found += (gradient,)
            next_values += (value,)
            next_keeps += (keep,)
        found = next_found
        row_values = next_values
        keeps = next_keeps
    if COUNTS:
        tl.store(counts + tile * tl.num_programs(1) + part, tl.sum(count.to(tl.int64)))
    for e in tl.static_range(START, END):
        _finish(
            u, gradients, values, statistics, squares, penalty_values, found[e - START], row_values[e - START],
            keeps[e - START], num_rows, part, tile, c0, c1, ENTRIES[4 * e], LENGTHS[ENTRIES[4 * e]],
            ENTRIES[4 * e + 1], ENTRIES[4 * e + 2], ENTRIES[4 * e + 3], LENGTHS, T, SQUARES, CLAMP, PENALTY, ROWS,
            BITS,
        )  # fmt: skip


@triton.jit
def pair_kernel(
    u, others, row_labels, column_labels, written, positives, gradients, values, counts, statistics, squares,
    penalty_values, num_rows, num_columns, words, tiles_per_part, num_positive_parts, c0, c1,
    FUNCTION: tl.constexpr, PENALTY: tl.constexpr, LENGTHS: tl.constexpr, JOBS: tl.constexpr, ENDS: tl.constexpr,
    T: tl.constexpr, MULTI: tl.constexpr, MASKED: tl.constexpr, SQUARES: tl.constexpr, SIGNS: tl.constexpr,
    CLAMP: tl.constexpr, BALANCED: tl.constexpr, COUNT_SIMILAR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, parts, jobs). JOBS holds the jobs' entries one after the other, ENDS which ends each."""
    job = tl.program_id(2)
    for j in tl.static_range(len(ENDS)):
        if job == j:
            _job(
                u, others, row_labels, column_labels, written, positives, gradients, values, counts, statistics,
                squares, penalty_values, num_rows, num_columns, words, tiles_per_part, num_positive_parts, c0, c1,
                FUNCTION, PENALTY, LENGTHS, JOBS, 0 if j == 0 else ENDS[j - 1], ENDS[j], T, j == 0,
                MULTI, MASKED, SQUARES, SIGNS, CLAMP, BALANCED, COUNT_SIMILAR, PRECISION, ROWS, COLUMNS, BITS,
            )  # fmt: skip


@triton.jit
def finish_kernel(
    u, gradients, values, counts, statistics, squares, penalty_values, out_values, deltas, num_rows, num_parts,
    row_tiles, penalty_weight, c0, c1, LENGTHS: tl.constexpr, T: tl.constexpr, PENALTY: tl.constexpr,
    CLAMP: tl.constexpr, ADD: tl.constexpr, MP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums the parts in order, scales by 1 / count, adds the penalty; ADD: to what out_values and deltas hold."""
    M: tl.constexpr = len(LENGTHS)
    L: tl.constexpr = LENGTHS[M - 1]
    tile = tl.program_id(0).to(tl.int64)
    total = tl.sum(tl.zeros((64,), tl.int64))
    for start in range(0, row_tiles * num_parts, 64):
        at = start + tl.arange(0, 64)
        total += tl.sum(tl.load(counts + at, mask=at < row_tiles * num_parts, other=0))
    scale = 1.0 / tl.maximum(total, 1).to(tl.float32)
    spread = penalty_weight / (num_rows * 1.0)

    rows = tile * ROWS + tl.arange(0, ROWS)
    places = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = places * 0
    first = places * 0
    b = places * 0 + LENGTHS[0]
    passed = 0
    for i in tl.static_range(M - 1):
        passed += LENGTHS[i]
        k = tl.where(places >= passed, i + 1, k)
        first = tl.where(places >= passed, passed, first)
        b = tl.where(places >= passed, LENGTHS[i + 1], b)
    mask = (rows[:, None] < num_rows) & (places[None, :] < T)
    at = rows[:, None] * T + places[None, :]
    gathered = tl.zeros((ROWS, COLUMNS), tl.float32)
    stride = (tile * 0 + num_rows) * T  # int64
    for part in range(num_parts):
        gathered += tl.load(gradients + part * stride + at, mask=mask, other=0.0)
    gathered *= scale
    if PENALTY != 0 or CLAMP:
        x = tl.load(u + rows[:, None] * L + (places - first)[None, :], mask=mask, other=0.0)
        passes = tl.abs(x) <= 1
        if CLAMP:
            x = clamp_unit(x)
        if PENALTY != 0:
            row = rows[:, None] * M + k[None, :]
            sums = tl.load(statistics + row, mask=mask, other=0.0)
            square = tl.load(squares + row, mask=mask, other=0.0)
            bits = b[None, :].to(tl.float32)
            gathered += spread * penalties.slope(x, sums, square, bits, c0, c1, PENALTY)
        if CLAMP:
            gathered = tl.where(passes, gathered, 0.0)
    if ADD:
        gathered += tl.load(deltas + at, mask=mask, other=0.0)
    tl.store(deltas + at, gathered, mask=mask)

    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        lengths = tl.arange(0, MP)
        loss = tl.zeros((MP,), tl.float32)
        for start in range(0, row_tiles * num_parts, 32):
            p = start + tl.arange(0, 32)
            inside = (p[:, None] < row_tiles * num_parts) & (lengths[None, :] < M)
            loss += tl.sum(tl.load(values + p[:, None] * M + lengths[None, :], mask=inside, other=0.0), axis=0)
        loss *= scale
        if PENALTY != 0:
            extra = tl.zeros((MP,), tl.float32)
            for start in range(0, row_tiles, 32):
                p = start + tl.arange(0, 32)
                inside = (p[:, None] < row_tiles) & (lengths[None, :] < M)
                extra += tl.sum(
                    tl.load(penalty_values + p[:, None] * M + lengths[None, :], mask=inside, other=0.0), axis=0
                )
            loss += spread * extra
        if ADD:
            loss += tl.load(out_values + lengths, mask=lengths < M, other=0.0)
        tl.store(out_values + lengths, loss, mask=lengths < M)


def configuration(num_rows: int, device: torch.device) -> tiles.Tiles:
    """Small tiles that share a program until the rows alone fill the device."""
    return FEW_ROWS if num_rows < 32 * tiles.multiprocessors(device) else MANY_ROWS


def precision(loss) -> str:
    """Of the products; with a second product, of the signs, tf32 would spill registers."""
    return "ieee" if loss.signs else tiles.dot_precision()


def _flat(lengths, config):
    parts = tiles.jobs(lengths, config.width, config.shared)
    ends = [sum(map(len, parts[: j + 1])) // 4 for j in range(len(parts))]
    return tuple(x for part in parts for x in part), tuple(ends)


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
    add: bool = False,
) -> None:
    """Fill (or, with `add`, add to) `values` (m,) and `deltas` (N, sum of the lengths).

    u (N, L) and others (M, L) float32 contiguous, labels as ids or multi-hot rows, written (M,) bool or None.
    """
    loss, lengths = PAIR_LOSSES[kind], tiles.check_lengths(lengths)
    n, m, num_lengths, total = u.shape[0], others.shape[0], len(lengths), sum(lengths)
    config = configuration(n, u.device)
    row_tiles, column_tiles = triton.cdiv(n, config.rows), triton.cdiv(m, config.columns)
    entries, ends = _flat(lengths, config)
    parts = tiles.splits(row_tiles * len(ends), column_tiles, u.device)
    labels, other_labels, words = comparable(labels, other_labels)
    positives = count_similar(labels, words) if loss.balanced else u
    gradients = u.new_empty(parts, n, total)
    sums = u.new_empty(row_tiles * parts, num_lengths)
    counts = u.new_empty(row_tiles * parts, dtype=torch.int64)
    statistics, squares, penalty_values = (
        (u.new_empty(n, num_lengths), u.new_empty(n, num_lengths), u.new_empty(row_tiles, num_lengths))
        if loss.penalty
        else (u, u, u)
    )
    pair_kernel[(row_tiles, parts, len(ends))](
        u, others, labels, other_labels, u if written is None else written.view(torch.uint8), positives, gradients,
        sums, counts, statistics, squares, penalty_values, n, m, words, triton.cdiv(column_tiles, parts),
        len(positives) if loss.balanced else 0, float(c0), float(c1),
        FUNCTION=loss.function, PENALTY=loss.penalty, LENGTHS=lengths, JOBS=entries, ENDS=ends, T=total,
        MULTI=words > 0, MASKED=written is not None, SQUARES=loss.squares, SIGNS=loss.signs, CLAMP=loss.clamp,
        BALANCED=loss.balanced, COUNT_SIMILAR=loss.count_similar, PRECISION=precision(loss), ROWS=config.rows,
        COLUMNS=config.columns, BITS=config.bits, **config.options(),
    )  # fmt: skip
    finish_kernel[(triton.cdiv(n, SUM_ROWS), triton.cdiv(total, SUM_COLUMNS))](
        u, gradients, sums, counts, statistics, squares, penalty_values, values, deltas, n, parts, row_tiles,
        float(penalty_weight), float(c0), float(c1), LENGTHS=lengths, T=total, PENALTY=loss.penalty, CLAMP=loss.clamp,
        ADD=add, MP=tiles.power_of_two(num_lengths, 1), ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, num_warps=4,
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    made = []
    f32 = dict.fromkeys(("gradients", "values", "statistics", "squares", "penalty_values"), "*fp32")
    for name, loss in PAIR_LOSSES.items():
        flags = {"SQUARES": loss.squares, "SIGNS": loss.signs, "CLAMP": loss.clamp}
        for size, rows in (("few", 1), ("many", 1 << 20)):
            config = configuration(rows, torch.device("cpu"))
            for kind in ("ieee",) if loss.signs else ("ieee", "tf32"):
                entries, ends = _flat(lengths, config)
                in_bank = name not in ("dch", "lcdsh")
                signature = {
                    "u": "*fp32", "others": "*fp32", "row_labels": "*i64", "column_labels": "*i64", "written": "*u8",
                    "positives": "*i64", "counts": "*i64", **f32, "num_rows": "i32", "num_columns": "i32",
                    "words": "i32", "tiles_per_part": "i32", "num_positive_parts": "i32", "c0": "fp32", "c1": "fp32",
                }  # fmt: skip
                constants = {
                    "FUNCTION": loss.function, "PENALTY": loss.penalty, "LENGTHS": lengths, "JOBS": entries,
                    "ENDS": ends, "T": sum(lengths), "MULTI": False, "MASKED": in_bank, **flags,
                    "BALANCED": loss.balanced, "COUNT_SIMILAR": loss.count_similar, "PRECISION": kind,
                    "ROWS": config.rows, "COLUMNS": config.columns, "BITS": config.bits,
                }  # fmt: skip
                options = config.options()
                made.append((f"pairs/{name}/{size}/{kind}", pair_kernel, signature, constants, options))
        signature = {
            "u": "*fp32", "counts": "*i64", "out_values": "*fp32", "deltas": "*fp32", **f32, "num_rows": "i32",
            "num_parts": "i32", "row_tiles": "i32", "penalty_weight": "fp32", "c0": "fp32", "c1": "fp32",
        }  # fmt: skip
        constants = {
            "LENGTHS": lengths, "T": sum(lengths), "PENALTY": loss.penalty, "CLAMP": loss.clamp,
            "ADD": loss.count_similar, "MP": tiles.power_of_two(len(lengths), 1), "ROWS": SUM_ROWS,
            "COLUMNS": SUM_COLUMNS,
        }  # fmt: skip
        made.append((f"finish/{name}", finish_kernel, signature, constants, {"num_warps": 4, "num_stages": 2}))
    return made
