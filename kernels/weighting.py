"""The gradient that given weights combine: dU, and dW and dc where the lengths' own are known; or the report alone.

Bytes: the deltas once, dU once. Small batches need none of it: the backward kernel forms dU for itself.
"""

import triton
import triton.language as tl

from .closed_form import Report, report, slots
from .dots import SMALL


@triton.jit
def pick(vector, slots, k):
    """vector[k], for a vector held in registers."""
    return tl.sum(tl.where(slots == k, vector, 0.0), 0)


@triton.jit
def not_finite(u, rows, columns, N, L):
    """0 where the outputs of a tile are finite, NaN elsewhere."""
    inside = (rows < N)[:, None] & (columns < L)[None, :]
    outputs = tl.load(u + rows[:, None] * L + columns[None, :], mask=inside, other=0.0)
    return outputs - outputs


@triton.jit
def combined_tile(
    weights, deltas, u, rows, columns, N, L, T, LENGTHS: tl.constexpr, NAN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of dU = sum_k a_k pad(delta_k); NAN: NaN where the outputs u are not finite. weights (m,) in memory."""
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    if NAN:
        acc += not_finite(u, rows, columns, N, L)
    offset = 0
    for k in tl.static_range(len(LENGTHS)):
        at = deltas + rows[:, None] * T + offset + columns[None, :]
        delta = tl.load(at, mask=(rows < N)[:, None] & (columns < LENGTHS[k])[None, :], other=0.0)
        acc += tl.load(weights + k).to(tl.float32) * delta
        offset += LENGTHS[k]
    return acc


@triton.jit
def weighted_gradients(
    weights, slots, gradients, sums, dw, db, columns, wide, with_bias, L, T, d, splits,
    LENGTHS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of dW = sum_k a_k pad(delta_k^T F) and, in the first tiles, dc from the deltas' column sums."""
    acc = tl.zeros((BLOCK_L, BLOCK_D), tl.float32)
    bias = tl.zeros((BLOCK_L,), tl.float32)
    offset = 0
    for k in tl.static_range(len(LENGTHS)):
        weight, inside = pick(weights, slots, k), columns < LENGTHS[k]
        at = gradients + (offset + columns)[:, None].to(tl.int64) * d + wide[None, :]
        acc += weight * tl.load(at, mask=inside[:, None] & (wide < d)[None, :], other=0.0)
        if with_bias:
            for split in range(splits):
                bias += weight * tl.load(sums + split * T + offset + columns, mask=inside, other=0.0)
        offset += LENGTHS[k]
    at = dw + columns[:, None].to(tl.int64) * d + wide[None, :]
    tl.store(at, acc, mask=(columns < L)[:, None] & (wide < d)[None, :])
    if with_bias:
        tl.store(db + columns, bias, mask=columns < L)


@triton.jit(do_not_specialize=["N", "losses_count", "distill_count", "sums_count", "row_tiles"])
def combine_kernel(
    deltas, u, fixed, losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count,
    distill_scale, gradients, sums, du, dw, db, N, L, d, sums_count, row_tiles, column_tiles,
    T: tl.constexpr, LENGTHS: tl.constexpr, DISTILL: tl.constexpr, SUMMARY: tl.constexpr,
    READY: tl.constexpr, NAN: tl.constexpr, MP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of dU, or of dW where the gradients are READY; SUMMARY: the first program writes the report."""
    m: tl.constexpr = len(LENGTHS)
    program = tl.program_id(0)
    slots = tl.arange(0, MP)
    weights = tl.load(fixed + slots, mask=slots < m, other=0.0).to(tl.float32)
    if SUMMARY:  # noqa: SIM102 (the first is known when compiled)
        if program == 0:
            report(
                weights, slots, losses, distill, total, weights_out, losses_out, distill_out, losses_count,
                distill_count, distill_scale, m, DISTILL,
            )  # fmt: skip
    if program < row_tiles * column_tiles:
        rows = (program // column_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = (program % column_tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
        acc = combined_tile(fixed, deltas, u, rows, columns, N, L, T, LENGTHS, NAN, BLOCK_N, BLOCK_L)
        tl.store(du + rows[:, None] * L + columns[None, :], acc, mask=(rows < N)[:, None] & (columns < L)[None, :])
    elif READY:
        rest = program - row_tiles * column_tiles
        columns = (rest % column_tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
        wide = (rest // column_tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
        weighted_gradients(
            weights, slots, gradients, sums, dw, db, columns, wide, rest < column_tiles, L, T, d, sums_count,
            LENGTHS, BLOCK_L, BLOCK_D,
        )  # fmt: skip


def combine_block(num_rows: int, longest: int) -> dict[str, int]:
    return {"BLOCK_N": 16 if num_rows <= 1024 else 64, "BLOCK_L": 16 if longest <= 16 else 32, "BLOCK_D": 64}


def combine(
    deltas, u, code_lengths, weights, *, report: Report | None = None, gradients=None, sums=None, du=None, dw=None,
    db=None, nan=False,
) -> None:  # fmt: skip
    """dU (N, L) from the deltas (N, T) and the weights (m,), if `du` is given, and the report of fixed weights.

    gradients (T, d) and sums (splits, T): fill dw (L, d) and db (L,) too.
    nan: where the outputs u are not finite, dU is NaN.
    """
    (n, t), m, longest = deltas.shape, len(code_lengths), code_lengths[-1]
    block = combine_block(n, longest)
    row_tiles = 0 if du is None else triton.cdiv(n, block["BLOCK_N"])
    column_tiles = triton.cdiv(longest, block["BLOCK_L"])
    ready, d = gradients is not None, 1 if gradients is None else gradients.shape[1]
    programs = row_tiles * column_tiles + (column_tiles * triton.cdiv(d, block["BLOCK_D"]) if ready else 0)
    reported = (*[weights] * 6, 0, 0, 0.0) if report is None else report.arguments()
    rest = (weights if tensor is None else tensor for tensor in (gradients, sums, du, dw, db))
    combine_kernel[(max(programs, 1),)](
        deltas, weights if u is None else u, weights, *reported, *rest,
        n, longest, d, 0 if sums is None else sums.shape[0], row_tiles, column_tiles,
        T=t, LENGTHS=tuple(code_lengths), DISTILL=report is not None and report.distill is not None,
        SUMMARY=report is not None, READY=ready, NAN=nan, MP=slots(m)["MP"], **block, **SMALL,
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    floats = "deltas u fixed losses distill gradients sums total weights_out losses_out distill_out du dw db"
    integers = "losses_count distill_count sums_count row_tiles column_tiles N"
    types = dict.fromkeys(floats.split(), "*fp32") | dict.fromkeys(integers.split(), "i32")
    types |= {"L": "i32:16", "d": "i32:16", "distill_scale": "fp32"}
    found = []
    for rows, summary in ((64, True), (32768, False)):
        constants = {"LENGTHS": lengths, "T": sum(lengths), "DISTILL": True, "SUMMARY": summary, "READY": not summary}
        constants |= {"NAN": True, "MP": slots(len(lengths))["MP"], **combine_block(rows, 128)}
        name = f"{'fixed' if summary else 'dominance'}/n{rows}"
        found.append((name, combine_kernel, types, constants, SMALL))
    return found
