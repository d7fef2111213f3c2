"""The weights in closed form and the gradient they combine: dU, and dW and dc where the lengths' own are known.

One launch: every program works the weights out for itself from the partial dots. Bytes: the deltas once, dU once.
"""

import triton
import triton.language as tl

from .dots import SMALL
from .pointwise import launch_options


@triton.jit
def column_totals(partial, count, ks, m: tl.constexpr, BLOCK_P: tl.constexpr):
    """Sums over the rows of partial (count, m), for the entries ks."""
    total = ks * 0.0
    for first in range(0, count, BLOCK_P):
        rows = first + tl.arange(0, BLOCK_P)
        at = partial + rows[:, None].to(tl.int64) * m + ks[None, :]
        total += tl.sum(tl.load(at, mask=(rows < count)[:, None] & (ks < m)[None, :], other=0.0), 0)
    return total


@triton.jit
def closed_form(dots, count, out, first, m: tl.constexpr, MP: tl.constexpr, BLOCK_P: tl.constexpr):
    """The m weights (in MP slots) from partial dots (count, m, m); the first program writes the dots' sums."""
    ks, slots = tl.arange(0, MP), tl.arange(0, MP)
    upper = (ks[:, None] <= slots[None, :]) & (slots < m)[None, :]
    total = tl.zeros((MP, MP), tl.float32)
    for start in range(0, count, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        at = dots + p[:, None, None].to(tl.int64) * (m * m) + (ks[:, None] * m + slots[None, :])[None, :, :]
        total += tl.sum(tl.load(at, mask=(p < count)[:, None, None] & upper[None, :, :], other=0.0), 0)
    if first:
        tl.store(out + ks[:, None] * m + slots[None, :], total, mask=(ks < m)[:, None] & (slots < m)[None, :])
    diagonal = tl.sum(tl.where(ks[:, None] == slots[None, :], total, 0.0), 1)
    # A pair k < i has k < m - 1, so its share is over at least one slot.
    share = diagonal / tl.maximum(m - 1 - ks, 1).to(tl.float32)
    against = (total < 0) & (ks[:, None] < slots[None, :])
    bounds = tl.where(against, share[:, None] / tl.where(against, -total, 1.0), 0.0)
    weights = tl.where(ks < m, 1.0, 0.0)
    for i in tl.static_range(1, m):
        chosen = against & (slots == i)[None, :]
        bound = tl.min(tl.min(tl.where(chosen, weights[:, None] * bounds, float("inf")), 1), 0)
        weights = tl.where(ks == i, tl.minimum(bound, 1.0), weights)
    return weights * (m / tl.sum(weights, 0))


@triton.jit
def pick(vector, slots, k):
    """vector[k], for a vector held in registers."""
    return tl.sum(tl.where(slots == k, vector, 0.0), 0)


@triton.jit
def not_finite(u, rows, columns, N, L, CHECK: tl.constexpr):
    """0 where the outputs of a tile are finite; elsewhere a device-side assertion ("raise"), or NaN ("nan")."""
    inside = (rows < N)[:, None] & (columns < L)[None, :]
    outputs = tl.load(u + rows[:, None] * L + columns[None, :], mask=inside, other=0.0)
    if CHECK == "raise":
        tl.device_assert(
            tl.abs(outputs) < float("inf"),
            "features: the layer's outputs hold NaN or infinity (bad features, or training diverged)",
        )
    return outputs - outputs


@triton.jit
def weighted_deltas(
    weights, slots, deltas, du, u, rows, columns, N, L, T,
    LENGTHS: tl.constexpr, CHECK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A tile of dU = sum_k a_k pad(delta_k), of finite outputs (see `not_finite`)."""
    acc = tl.zeros((BLOCK_N, BLOCK_L), tl.float32)
    if CHECK != "no":
        acc += not_finite(u, rows, columns, N, L, CHECK)
    offset = 0
    for k in tl.static_range(len(LENGTHS)):
        at = deltas + rows[:, None] * T + offset + columns[None, :]
        delta = tl.load(at, mask=(rows < N)[:, None] & (columns < LENGTHS[k])[None, :], other=0.0)
        acc += pick(weights, slots, k) * delta
        offset += LENGTHS[k]
    tl.store(du + rows[:, None] * L + columns[None, :], acc, mask=(rows < N)[:, None] & (columns < L)[None, :])


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


@triton.jit
def combine_kernel(
    deltas, u, dots, fixed, losses, distill, gradients, sums,
    total, weights_out, dots_out, losses_out, distill_out, du, dw, db,
    N, L, d, dots_count, losses_count, distill_count, sums_count, distill_scale, row_tiles, column_tiles,
    T: tl.constexpr, LENGTHS: tl.constexpr, FIXED: tl.constexpr, DISTILL: tl.constexpr, SUMMARY: tl.constexpr,
    READY: tl.constexpr, CHECK: tl.constexpr, MP: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The weights (in every program), then a tile of dU, or of dW where the gradients are READY.

    The first program also writes what the step reports.
    """
    m: tl.constexpr = len(LENGTHS)
    program = tl.program_id(0)
    slots = tl.arange(0, MP)
    if FIXED:
        weights = tl.load(fixed + slots, mask=slots < m, other=0.0).to(tl.float32)
    else:
        weights = closed_form(dots, dots_count, dots_out, program == 0, m, MP, BLOCK_P)
    if SUMMARY:  # noqa: SIM102 (the first is known when compiled)
        if program == 0:
            values = column_totals(losses, losses_count, slots, m, 256)
            tl.store(losses_out + slots, values, mask=slots < m)
            cascade = slots * 0.0
            if DISTILL:
                cascade = column_totals(distill, distill_count, slots, m, 256)
            tl.store(distill_out + slots, cascade, mask=slots < m)
            tl.store(weights_out + slots, weights, mask=slots < m)
            tl.store(total, tl.sum(tl.where(slots < m, weights * (values + distill_scale * cascade), 0.0), 0))
    if program < row_tiles * column_tiles:
        rows = (program // column_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = (program % column_tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
        weighted_deltas(weights, slots, deltas, du, u, rows, columns, N, L, T, LENGTHS, CHECK, BLOCK_N, BLOCK_L)
    elif READY:
        rest = program - row_tiles * column_tiles
        columns = (rest % column_tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
        wide = (rest // column_tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
        weighted_gradients(
            weights, slots, gradients, sums, dw, db, columns, wide, rest < column_tiles, L, T, d, sums_count,
            LENGTHS, BLOCK_L, BLOCK_D,
        )  # fmt: skip


def slots(m: int) -> dict[str, int]:
    """Padded number of lengths, and of partial dots loaded at once (4,096 numbers at most)."""
    padded = triton.next_power_of_2(m)
    return {"MP": padded, "BLOCK_P": max(16, min(64, 4096 // padded**2))}


def combine_block(num_rows: int, longest: int) -> dict[str, int]:
    return {"BLOCK_N": 16 if num_rows <= 1024 else 64, "BLOCK_L": 16 if longest <= 16 else 32, "BLOCK_D": 64}


def combine(
    deltas, u, code_lengths, *, dots=None, fixed=None, losses=None, distill=None, distill_scale=0.0,
    gradients=None, sums=None, outputs=None, du=None, dw=None, db=None, check="no",
) -> None:  # fmt: skip
    """dU (N, L) from the deltas (N, T), weighted by partial `dots` in closed form or by `fixed` numbers (m,).

    outputs: (total (), weights (m,), dots (m, m), losses (m,), distill (m,)) to fill from partial `losses` (P, m)
    and `distill` (Q, m) or None. gradients (T, d) and sums (splits, T): fill dw (L, d) and db (L,) too.
    check: what becomes of outputs u that are not finite: "no" (nothing), "raise" (a device-side assertion) or "nan"
    (NaN in dU).
    """
    (n, t), m, longest = deltas.shape, len(code_lengths), code_lengths[-1]
    block = combine_block(n, longest)
    row_tiles, column_tiles = triton.cdiv(n, block["BLOCK_N"]), triton.cdiv(longest, block["BLOCK_L"])
    ready, d = gradients is not None, 1 if gradients is None else gradients.shape[1]
    programs = row_tiles * column_tiles + (column_tiles * triton.cdiv(d, block["BLOCK_D"]) if ready else 0)
    summary = outputs is not None
    tensors = [u, dots, fixed, losses, distill, gradients, sums, *(outputs or [None] * 5), du, dw, db]
    total = [0 if t is None else t.shape[0] for t in (dots, losses, distill, sums)]
    combine_kernel[(programs,)](
        deltas, *(deltas if tensor is None else tensor for tensor in tensors),
        n, longest, d, *total, distill_scale, row_tiles, column_tiles,
        T=t, LENGTHS=tuple(code_lengths), FIXED=fixed is not None, DISTILL=distill is not None, SUMMARY=summary,
        READY=ready, CHECK=check, **slots(m), **block, **SMALL,
        **(launch_options(u.device.type) if check == "raise" else {}),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    floats = ("deltas u dots fixed losses distill gradients sums total weights_out dots_out losses_out distill_out "
              "du dw db")  # fmt: skip
    integers = "dots_count losses_count distill_count sums_count row_tiles column_tiles"
    types = dict.fromkeys(floats.split(), "*fp32") | dict.fromkeys(integers.split(), "i32")
    types |= {"N": "i32:16", "L": "i32:16", "d": "i32:16", "distill_scale": "fp32"}
    found = []
    for rows, fixed, ready in ((64, False, False), (32768, False, True), (64, True, False), (32768, True, False)):
        constants = {"LENGTHS": lengths, "T": sum(lengths), "FIXED": fixed, "DISTILL": True, "SUMMARY": True}
        constants |= {"READY": ready, "CHECK": "raise", **slots(len(lengths)), **combine_block(rows, 128)}
        name = f"{'fixed' if fixed else 'dominance'}/n{rows}"
        found.append((name, combine_kernel, types, constants, {**SMALL, **launch_options("cuda")}))
    return found
