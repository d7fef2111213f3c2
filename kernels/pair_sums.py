"""What follows the pairs: the parts of the columns added up in a fixed order, scaled, with the penalty.

Bytes: parts x rows x sum(lengths) floats in, as much as one part out. A program loads several parts at once.
"""

import triton
import triton.language as tl

from . import penalties, tiles
from .arithmetic import clamp_unit
from .pair_functions import PAIR_LOSSES

ROWS, COLUMNS, PARTS = 16, 64, 8
OPTIONS = {"num_warps": 4, "num_stages": 2, "maxnreg": 255}


@triton.jit(do_not_specialize=["num_rows", "num_parts", "row_tiles"])
def finish_kernel(
    u, gradients, values, counts, statistics, squares, penalty_values, out_values, deltas, num_rows, num_parts,
    row_tiles, penalty_weight, c0, c1, LENGTHS: tl.constexpr, T: tl.constexpr, PENALTY: tl.constexpr,
    CLAMP: tl.constexpr, ADD: tl.constexpr, MP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Sums the parts in order, scales by 1 / count, adds the penalty; ADD: to what out_values and deltas hold."""
    M: tl.constexpr = len(LENGTHS)
    L: tl.constexpr = LENGTHS[M - 1]
    tile = tl.program_id(0).to(tl.int64)
    total = tile * 0
    for start in range(0, row_tiles * num_parts, 512):
        at = start + tl.arange(0, 512)
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
    stride = tl.cast(num_rows, tl.int64) * T
    for first_part in range(0, num_parts, PARTS):
        part = first_part + tl.arange(0, PARTS)
        here = gradients + part[:, None, None] * stride + at[None, :, :]
        known = (part < num_parts)[:, None, None] & mask[None, :, :]
        gathered += tl.sum(tl.load(here, mask=known, other=0.0), axis=0)
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
        for start in range(0, row_tiles * num_parts, 128):
            p = start + tl.arange(0, 128)
            inside = (p[:, None] < row_tiles * num_parts) & (lengths[None, :] < M)
            loss += tl.sum(tl.load(values + p[:, None] * M + lengths[None, :], mask=inside, other=0.0), axis=0)
        loss *= scale
        if PENALTY != 0:
            extra = tl.zeros((MP,), tl.float32)
            for start in range(0, row_tiles, 128):
                p = start + tl.arange(0, 128)
                inside = (p[:, None] < row_tiles) & (lengths[None, :] < M)
                extra += tl.sum(
                    tl.load(penalty_values + p[:, None] * M + lengths[None, :], mask=inside, other=0.0), axis=0
                )
            loss += spread * extra
        if ADD:
            loss += tl.load(out_values + lengths, mask=lengths < M, other=0.0)
        tl.store(out_values + lengths, loss, mask=lengths < M)


def _constants(loss, lengths, add: bool) -> dict:
    return {
        "LENGTHS": lengths, "T": sum(lengths), "PENALTY": loss.penalty, "CLAMP": loss.clamp, "ADD": add,
        "MP": tiles.power_of_two(len(lengths), 1), "ROWS": ROWS, "COLUMNS": COLUMNS, "PARTS": PARTS,
    }  # fmt: skip


def add_up(
    loss, u, gradients, sums, counts, statistics, squares, penalty_values, lengths, c0, c1, penalty_weight, values,
    deltas, add,
) -> None:  # fmt: skip
    """Fill (or, with `add`, add to) `values` (m,) and `deltas` (N, T) from what the parts gave.

    gradients (parts, N, T), sums (row tiles * parts, m), counts (row tiles * parts,) int64 of the pairs that the
    mean is over; statistics and squares (N, m) and penalty_values (row tiles, m) where `loss` has a penalty.
    """
    parts, n, total = gradients.shape
    finish_kernel[(triton.cdiv(n, ROWS), triton.cdiv(total, COLUMNS))](
        u, gradients, sums, counts, statistics, squares, penalty_values, values, deltas, n, parts,
        len(counts) // parts, float(penalty_weight), float(c0), float(c1), **_constants(loss, lengths, add),
        **OPTIONS,
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    names = ["u", "gradients", "values", "statistics", "squares", "penalty_values", "out_values", "deltas"]
    signature = {
        **dict.fromkeys(names, "*fp32"), "counts": "*i64", "num_rows": "i32", "num_parts": "i32",
        "row_tiles": "i32", "penalty_weight": "fp32", "c0": "fp32", "c1": "fp32",
    }  # fmt: skip
    return [
        (name, finish_kernel, signature, _constants(loss, lengths, loss.count_similar), OPTIONS)
        for name, loss in PAIR_LOSSES.items()
    ]
