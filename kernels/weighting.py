"""Dominance dots, closed-form weights, the combined gradient dU, and what follows from it: dW, dc, dF.

Small batches go through the Gram matrix, G = F F^T: dots[k, i] = sum delta_k * (G delta_i)[:, :b_k]. Large ones
form every length's gradient delta_k^T F once (split over the rows), take the dots from these, and dW as their
weighted sum, so that F is not read again. Sums over programs are taken in a fixed order; there are no atomics.
"""

import torch
import triton
import triton.language as tl

from .pointwise import launch_options
from .projection import multiply, precision


@triton.jit
def segment(LENGTHS: tl.constexpr, which):
    """(offset, length) of code length number `which` in the expanded form."""
    offset, length, before = 0, 0, 0
    for k in tl.static_range(len(LENGTHS)):
        offset = tl.where(which == k, before, offset)
        length = tl.where(which == k, LENGTHS[k], length)
        before += LENGTHS[k]
    return offset, length


@triton.jit
def gram_dots_kernel(
    gram, deltas, dots, N, T, LENGTHS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Column i of the dots, from one tile of G delta_i; dots is (programs, m, m), every entry written once."""
    m: tl.constexpr = len(LENGTHS)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_column = tl.program_id(1) * BLOCK_L
    columns = first_column + tl.arange(0, BLOCK_L)
    i = tl.program_id(2)
    out = dots + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * m * m + i
    offset, length = segment(LENGTHS, i)
    here = rows < N
    product = tl.zeros((BLOCK_N, BLOCK_L), tl.float32)
    if first_column < length:
        for first in range(0, N, BLOCK_K):
            ks = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
            g = tl.load(gram + rows[:, None] * N + ks[None, :], mask=here[:, None] & (ks < N)[None, :], other=0.0)
            delta = tl.load(
                deltas + ks[:, None] * T + offset + columns[None, :],
                mask=(ks < N)[:, None] & (columns < length)[None, :],
                other=0.0,
            )
            product = tl.dot(g, delta, product, input_precision="ieee")
    before = 0
    for k in tl.static_range(m):
        value = 0.0
        if (k <= i) & (first_column < LENGTHS[k]):
            delta = tl.load(
                deltas + rows[:, None] * T + before + columns[None, :],
                mask=here[:, None] & (columns < LENGTHS[k])[None, :],
                other=0.0,
            )
            value = tl.sum(tl.sum(delta * product, 1), 0)
        tl.store(out + k * m, value)
        before += LENGTHS[k]


@triton.jit
def transposed_product_kernel(
    a, f, product, sums, N, A, d, per_split, f_row, f_column, PRECISION: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """a^T F (splits, A, d) over slices of the rows, and a's column sums (splits, A); a (N, A) is contiguous."""
    columns = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    wide = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(2).to(tl.int64)
    start = split * per_split
    stop = tl.minimum(start + per_split, N)
    acc = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_A,), tl.float32)
    for first in range(start, stop, BLOCK_K):
        ks = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        x = tl.load(
            a + ks[:, None] * A + columns[None, :], mask=(ks < stop)[:, None] & (columns < A)[None, :], other=0.0
        )
        y = tl.load(
            f + ks[:, None] * f_row + wide[None, :] * f_column,
            mask=(ks < stop)[:, None] & (wide < d)[None, :],
            other=0.0,
        ).to(tl.float32)
        acc = multiply(tl.trans(x), y, acc, PRECISION, "a")
        total += tl.sum(x, 0)
    at = product + (split * A + columns[:, None]) * d + wide[None, :]
    tl.store(at, acc, mask=(columns < A)[:, None] & (wide < d)[None, :])
    if tl.program_id(1) == 0:
        tl.store(sums + split * A + columns, total, mask=columns < A)


@triton.jit
def sum_splits(product, rows, wide, mask, splits, num_rows, d):
    """The tile (rows, wide) of a product (splits, num_rows, d), its slices added up in their order."""
    at = product + rows[:, None].to(tl.int64) * d + wide[None, :]
    acc = tl.load(at, mask=mask, other=0.0)
    for _ in range(1, splits):
        at += tl.cast(num_rows, tl.int64) * d
        acc += tl.load(at, mask=mask, other=0.0)
    return acc


@triton.jit
def product_dots_kernel(
    product, gradients, dots, splits, T, d, LENGTHS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Gradients delta_k^T F (T, d) from their slices, and the dots (programs, m, m) of one tile of them."""
    m: tl.constexpr = len(LENGTHS)
    first_column = tl.program_id(0) * BLOCK_L
    columns = first_column + tl.arange(0, BLOCK_L)
    wide = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    out = dots + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * m * m
    offset = 0
    for i in tl.static_range(m):
        mask = (columns < LENGTHS[i])[:, None] & (wide < d)[None, :]
        longer = sum_splits(product, offset + columns, wide, mask, splits, T, d)
        tl.store(gradients + (offset + columns)[:, None].to(tl.int64) * d + wide[None, :], longer, mask=mask)
        before = 0
        for k in tl.static_range(m):
            value = 0.0
            if k <= i:
                inside = (columns < LENGTHS[k])[:, None] & (wide < d)[None, :]
                own = sum_splits(product, before + columns, wide, inside, splits, T, d)
                value = tl.sum(tl.sum(own * longer, 1), 0)
            tl.store(out + k * m + i, value)
            before += LENGTHS[k]
        offset += LENGTHS[i]


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
def check_finite(u, rows, columns, N, L):
    """A device-side assertion on a tile of the outputs."""
    inside = (rows < N)[:, None] & (columns < L)[None, :]
    outputs = tl.load(u + rows[:, None] * L + columns[None, :], mask=inside, other=0.0)
    tl.device_assert(
        tl.abs(outputs) < float("inf"),
        "features: the layer's outputs hold NaN or infinity (bad features, or training diverged)",
    )


@triton.jit
def weighted_deltas(
    weights, slots, deltas, du, rows, columns, N, L, T,
    LENGTHS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A tile of dU = sum_k a_k pad(delta_k)."""
    acc = tl.zeros((BLOCK_N, BLOCK_L), tl.float32)
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
    N, L, T, d, dots_count, losses_count, distill_count, sums_count, distill_scale, row_tiles, column_tiles,
    LENGTHS: tl.constexpr, FIXED: tl.constexpr, DISTILL: tl.constexpr, SUMMARY: tl.constexpr, READY: tl.constexpr,
    CHECK: tl.constexpr, MP: tl.constexpr, BLOCK_P: tl.constexpr,
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
        if CHECK:
            check_finite(u, rows, columns, N, L)
        weighted_deltas(weights, slots, deltas, du, rows, columns, N, L, T, LENGTHS, BLOCK_N, BLOCK_L)
    elif READY:
        rest = program - row_tiles * column_tiles
        columns = (rest % column_tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
        wide = (rest // column_tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
        weighted_gradients(
            weights, slots, gradients, sums, dw, db, columns, wide, rest < column_tiles, L, T, d, sums_count,
            LENGTHS, BLOCK_L, BLOCK_D,
        )  # fmt: skip


@triton.jit
def backward_kernel(
    scale, du, features, w, product, sums, df, dw, db,
    N, L, d, splits, x_row, x_column, w_row, w_column, first_weight, wide_tiles,
    SCALED: tl.constexpr, READY: tl.constexpr, NEED_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dF = dU W in the first programs, dW = dU^T F and dc = sum dU in the rest, times the incoming 0-d gradient.

    READY: dW and dc are there, as slices to add up, and want the factor alone.
    """
    program = tl.program_id(0)
    wide = (program % wide_tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    factor = 1.0
    if SCALED:
        factor = tl.load(scale).to(tl.float32)
    if program < first_weight:
        rows = (program // wide_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for first in range(0, L, BLOCK_K):
            ks = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
            x = tl.load(du + rows[:, None] * L + ks[None, :], mask=(rows < N)[:, None] & (ks < L)[None, :], other=0.0)
            y = tl.load(
                w + ks[:, None] * w_row + wide[None, :] * w_column,
                mask=(ks < L)[:, None] & (wide < d)[None, :],
                other=0.0,
            ).to(tl.float32)
            acc = multiply(x, y, acc, PRECISION, "none")
        at = df + rows[:, None] * d + wide[None, :]
        tl.store(at, (acc * factor).to(df.dtype.element_ty), mask=(rows < N)[:, None] & (wide < d)[None, :])
    elif NEED_W:
        rest = program - first_weight
        rows = (rest // wide_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < L)[:, None] & (wide < d)[None, :]
        bias = tl.zeros((BLOCK_M,), tl.float32)
        if READY:
            acc = sum_splits(product, rows, wide, mask, splits, L, d)
            for split in range(splits):
                bias += tl.load(sums + split * L + rows, mask=rows < L, other=0.0)
        else:
            acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for first in range(0, N, BLOCK_K):
                ks = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
                x = tl.load(
                    du + ks[:, None] * L + rows[None, :], mask=(ks < N)[:, None] & (rows < L)[None, :], other=0.0
                )
                y = tl.load(
                    features + ks[:, None] * x_row + wide[None, :] * x_column,
                    mask=(ks < N)[:, None] & (wide < d)[None, :],
                    other=0.0,
                ).to(tl.float32)
                acc = multiply(tl.trans(x), y, acc, PRECISION, "a")
                bias += tl.sum(x, 0)
        tl.store(dw + rows[:, None] * d + wide[None, :], (acc * factor).to(dw.dtype.element_ty), mask=mask)
        if rest % wide_tiles == 0:
            tl.store(db + rows, (bias * factor).to(db.dtype.element_ty), mask=rows < L)


def uses_gram(num_rows: int, d: int, code_lengths) -> bool:
    """Whether the dots of such a batch come from the Gram matrix (the smaller products of the two)."""
    m, longest = len(code_lengths), code_lengths[-1]
    return num_rows * (d + m * longest) <= d * sum(code_lengths)


def gram_block(num_rows: int, longest: int) -> dict[str, int]:
    return {"BLOCK_N": 16 if num_rows <= 64 else 32, "BLOCK_L": 16 if longest <= 16 else 32, "BLOCK_K": 32}


def gram_dots(gram, deltas, code_lengths) -> torch.Tensor:
    """Partial dots (programs, m, m), whose sum over the programs is the dots (zeros below the diagonal)."""
    (n, t), m, longest = deltas.shape, len(code_lengths), code_lengths[-1]
    block = gram_block(n, longest)
    grid = (triton.cdiv(n, block["BLOCK_N"]), triton.cdiv(longest, block["BLOCK_L"]), m)
    dots = torch.empty(grid[0] * grid[1], m, m, device=deltas.device, dtype=torch.float32)
    gram_dots_kernel[grid](gram, deltas, dots, n, t, LENGTHS=tuple(code_lengths), **block, num_warps=4, num_stages=2)
    return dots


def row_splits(num_rows: int, columns: int, d: int, block: dict[str, int]) -> tuple[int, int]:
    """(slices of the rows, rows a slice) of a product a^T F."""
    tiles = -(-columns // block["BLOCK_A"]) * -(-d // block["BLOCK_D"])
    splits = max(1, min(-(-num_rows // 512), 264 // tiles))
    per_split = -(-num_rows // splits)
    per_split = -(-per_split // block["BLOCK_K"]) * block["BLOCK_K"]
    return -(-num_rows // per_split), per_split


def product_block(mode: str) -> dict[str, int]:
    if mode == "ieee":
        return {"BLOCK_A": 64, "BLOCK_D": 64, "BLOCK_K": 16}
    return {"BLOCK_A": 64, "BLOCK_D": 64 if mode == "tf32" else 128, "BLOCK_K": 32}


def transposed_product(a, features) -> tuple[torch.Tensor, torch.Tensor]:
    """a^T F and the column sums of a (N, A), in slices: (splits, A, d) and (splits, A)."""
    (n, columns), d, mode = a.shape, features.shape[1], precision(features)
    block = product_block(mode)
    splits, per_split = row_splits(n, columns, d, block)
    product = torch.empty(splits, columns, d, device=a.device, dtype=torch.float32)
    sums = torch.empty(splits, columns, device=a.device, dtype=torch.float32)
    grid = (triton.cdiv(columns, block["BLOCK_A"]), triton.cdiv(d, block["BLOCK_D"]), splits)
    transposed_product_kernel[grid](
        a, features, product, sums, n, columns, d, per_split, *features.stride(), PRECISION=mode, **block,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return product, sums


DOTS_TILE = {"BLOCK_L": 16, "BLOCK_D": 32}


def product_dots(product, code_lengths) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-length gradients (T, d) from slices of deltas^T F, and partial dots (programs, m, m)."""
    splits, t, d = product.shape
    m, block = len(code_lengths), DOTS_TILE
    grid = (triton.cdiv(code_lengths[-1], block["BLOCK_L"]), triton.cdiv(d, block["BLOCK_D"]))
    gradients = torch.empty(t, d, device=product.device, dtype=torch.float32)
    dots = torch.empty(grid[0] * grid[1], m, m, device=product.device, dtype=torch.float32)
    product_dots_kernel[grid](
        product, gradients, dots, splits, t, d, LENGTHS=tuple(code_lengths), **block, num_warps=4, num_stages=2
    )
    return gradients, dots


def combine_block(num_rows: int, longest: int) -> dict[str, int]:
    return {"BLOCK_N": 16 if num_rows <= 1024 else 64, "BLOCK_L": 16 if longest <= 16 else 32, "BLOCK_D": 64}


def combine(
    deltas, u, code_lengths, *, dots=None, fixed=None, losses=None, distill=None, distill_scale=0.0,
    gradients=None, sums=None, outputs=None, du=None, dw=None, db=None, check=False,
) -> None:  # fmt: skip
    """dU (N, L) from the deltas (N, T), weighted by partial `dots` in closed form or by `fixed` numbers (m,).

    outputs: (total (), weights (m,), dots (m, m), losses (m,), distill (m,)) to fill from partial `losses` (P, m)
    and `distill` (Q, m) or None. gradients (T, d) and sums (splits, T): fill dw (L, d) and db (L,) too.
    check: a device-side assertion that u is finite.
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
        n, longest, t, d, *total, distill_scale, row_tiles, column_tiles,
        LENGTHS=tuple(code_lengths), FIXED=fixed is not None, DISTILL=distill is not None, SUMMARY=summary,
        READY=ready, CHECK=check, MP=triton.next_power_of_2(m), BLOCK_P=16, **block, num_warps=4, num_stages=2,
        **(launch_options(u.device.type) if check else {}),
    )  # fmt: skip


def backward_block(num_rows: int, longest: int, mode: str) -> dict[str, int]:
    rows = 64 if max(num_rows, longest) > 32 else 32
    return {"BLOCK_M": rows, "BLOCK_D": 64, "BLOCK_K": 16 if mode == "ieee" else 32}


def backward(scale, du, features, w, product=None, sums=None, *, df=None, dw=None, db=None) -> None:
    """Fill df (N, d) if given, and dw (L, d) with db (L,) if given, times the 0-d `scale` (None: 1).

    product (splits, L, d) and sums (splits, L): dW and dc, unscaled, in slices; computed here if None.
    """
    (n, longest), (_, d), mode = du.shape, features.shape, precision(features)
    block = backward_block(n, longest, mode)
    rows = block["BLOCK_M"]
    wide_tiles = triton.cdiv(d, block["BLOCK_D"])
    first_weight = triton.cdiv(n, rows) * wide_tiles if df is not None else 0
    programs = first_weight + (triton.cdiv(longest, rows) * wide_tiles if dw is not None else 0)
    ready = product is not None
    tensors = (product, sums, df, dw, db)
    backward_kernel[(programs,)](
        du if scale is None else scale, du, features, w, *(du if t is None else t for t in tensors),
        n, longest, d, product.shape[0] if ready else 1, *features.stride(), *w.stride(), first_weight, wide_tiles,
        SCALED=scale is not None, READY=ready, NEED_W=dw is not None, PRECISION=mode, **block,
        num_warps=8, num_stages=3,
    )  # fmt: skip


LENGTHS = (8, 16, 32, 64, 128)


def variants():
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    small = {"num_warps": 4, "num_stages": 2}
    types = {"gram": "*fp32", "deltas": "*fp32", "dots": "*fp32", "N": "i32", "T": "i32"}
    found = [("gram_dots", gram_dots_kernel, types, {"LENGTHS": LENGTHS, **gram_block(64, 128)}, small)]
    types = {"product": "*fp32", "gradients": "*fp32", "dots": "*fp32", "splits": "i32", "T": "i32", "d": "i32"}
    found.append(("product_dots", product_dots_kernel, types, {"LENGTHS": LENGTHS, **DOTS_TILE}, small))
    for dtype, mode in (("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "half"), ("fp16", "half")):
        block = product_block(mode)
        types = {"a": "*fp32", "f": f"*{dtype}", "product": "*fp32", "sums": "*fp32", "N": "i32", "A": "i32"}
        types |= {"d": "i32", "per_split": "i32", "f_row": "i32", "f_column": "constexpr"}
        constants = {"PRECISION": mode, **block, "f_column": 1}
        options = {"num_warps": 8, "num_stages": 3}
        found.append((f"transposed_product_{dtype}_{mode}", transposed_product_kernel, types, constants, options))
        types = {"scale": "*fp32", "du": "*fp32", "features": f"*{dtype}", "w": "*fp32", "product": "*fp32"}
        types |= {"sums": "*fp32", "df": f"*{dtype}", "dw": "*fp32", "db": "*fp32", "N": "i32", "L": "i32"}
        types |= {"d": "i32", "splits": "i32", "x_row": "i32", "x_column": "constexpr", "w_row": "i32"}
        types |= {"w_column": "constexpr", "first_weight": "i32", "wide_tiles": "i32"}
        for ready in (False, True):
            constants = {
                "SCALED": True,
                "READY": ready,
                "NEED_W": True,
                "PRECISION": mode,
                **backward_block(64, 128, mode),
            }
            constants |= {"x_column": 1, "w_column": 1}
            name = f"backward_{dtype}_{mode}{'_ready' if ready else ''}"
            found.append((name, backward_kernel, types, constants, {"num_warps": 8, "num_stages": 3}))
    floats = ("deltas u dots fixed losses distill gradients sums total weights_out dots_out losses_out distill_out "
              "du dw db")  # fmt: skip
    integers = "N L T d dots_count losses_count distill_count sums_count"
    types = dict.fromkeys(floats.split(), "*fp32") | dict.fromkeys(integers.split(), "i32")
    types |= {"distill_scale": "fp32", "row_tiles": "i32", "column_tiles": "i32"}
    for rows, fixed, ready in ((64, False, False), (32768, False, True), (64, True, False), (32768, True, False)):
        constants = {"LENGTHS": LENGTHS, "FIXED": fixed, "DISTILL": True, "SUMMARY": True, "READY": ready}
        constants |= {"CHECK": True, "MP": 8, "BLOCK_P": 16, **combine_block(rows, 128)}
        name = f"combine_{'fixed' if fixed else 'dominance'}_n{rows}"
        found.append((name, combine_kernel, types, constants, {**small, **launch_options("cuda")}))
    return found
