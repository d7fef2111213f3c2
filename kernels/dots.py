"""The dominance dots of the per-length gradients: from the feature Gram matrix, or from the gradients themselves.

Small batches go through the Gram matrix, G = F F^T: dots[k, i] = sum delta_k * (G delta_i)[:, :b_k]. Large ones
form every length's gradient delta_k^T F once (split over the rows) and take the dots from these. Sums over programs
are taken in a fixed order; there are no atomics. Floor of the second: F once, 2 N d T operations.
"""

import itertools

import torch
import triton
import triton.language as tl

from .arithmetic import dot
from .arrival import counters
from .closed_form import Report, conclude, slots
from .projection import MODES, multiply, precision
from .tiles import PRECISIONS, dot_precision

SMALL = {"num_warps": 4, "num_stages": 2}


@triton.jit
def segment(LENGTHS: tl.constexpr, which):
    """(offset, length) of code length number `which` in the expanded form."""
    offset, length, before = 0, 0, 0
    for k in tl.static_range(len(LENGTHS)):
        offset = tl.where(which == k, before, offset)
        length = tl.where(which == k, LENGTHS[k], length)
        before += LENGTHS[k]
    return offset, length


@triton.jit(do_not_specialize=["N", "losses_count", "distill_count"])
def gram_dots_kernel(
    gram, deltas, dots, counter, dots_out, losses, distill, total, weights_out, losses_out, distill_out,
    losses_count, distill_count, distill_scale, N, gram_row, T: tl.constexpr, LENGTHS: tl.constexpr,
    DISTILL: tl.constexpr, PRECISION: tl.constexpr, MP: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Column i of the dots, from one tile of G delta_i; dots is (programs, m, m), every entry written once.

    The last program makes the weights. Rows of gram are gram_row apart and 0 beyond the N-th column.
    """
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
            g = tl.load(
                gram + rows[:, None] * gram_row + ks[None, :],
                mask=here[:, None] & (ks < gram_row)[None, :],
                other=0.0,
            )
            delta = tl.load(
                deltas + ks[:, None] * T + offset + columns[None, :],
                mask=(ks < N)[:, None] & (columns < length)[None, :],
                other=0.0,
            )
            product = dot(g, delta, product, PRECISION)
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
    tiles = tl.num_programs(0) * tl.num_programs(1)
    conclude(
        counter, tiles * m, dots, tiles, dots_out, losses, distill, total, weights_out, losses_out, distill_out,
        losses_count, distill_count, distill_scale, m, DISTILL, MP, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=["N"])
def transposed_product_kernel(
    a, f, product, sums, N, A: tl.constexpr, d, per_split, f_row, f_column, PRECISION: tl.constexpr,
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
        if tl.program_id(1) == 0:
            total += tl.sum(x, 0)
        acc = multiply(tl.trans(x), y, acc, PRECISION, "a")
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


@triton.jit(do_not_specialize=["splits", "losses_count", "distill_count"])
def product_dots_kernel(
    product, gradients, dots, counter, dots_out, losses, distill, total, weights_out, losses_out, distill_out,
    losses_count, distill_count, distill_scale, splits, T, d, LENGTHS: tl.constexpr, DISTILL: tl.constexpr,
    MP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients delta_k^T F (T, d) from their slices, and the dots (programs, m, m) of one tile of them.

    The last program makes the weights.
    """
    m: tl.constexpr = len(LENGTHS)
    first_column = tl.program_id(0) * BLOCK_L
    columns = first_column + tl.arange(0, BLOCK_L)
    wide = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    out = dots + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * m * m
    offset = 0
    kept = ()
    for i in tl.static_range(m):
        mask = (columns < LENGTHS[i])[:, None] & (wide < d)[None, :]
        own = sum_splits(product, offset + columns, wide, mask, splits, T, d)
        tl.store(gradients + (offset + columns)[:, None].to(tl.int64) * d + wide[None, :], own, mask=mask)
        kept += (own,)
        for k in tl.static_range(m):
            value = 0.0
            if k <= i:
                # Zero beyond its own length, so that the product is over the shorter of the two.
                value = tl.sum(tl.sum(kept[k] * own, 1), 0)
            tl.store(out + k * m + i, value)
        offset += LENGTHS[i]
    programs = tl.num_programs(0) * tl.num_programs(1)
    conclude(
        counter, programs, dots, programs, dots_out, losses, distill, total, weights_out, losses_out, distill_out,
        losses_count, distill_count, distill_scale, m, DISTILL, MP, BLOCK_P,
    )  # fmt: skip


def uses_gram(num_rows: int, d: int, code_lengths) -> bool:
    """Whether the dots of such a batch come from the Gram matrix (the smaller products of the two)."""
    m, longest = len(code_lengths), code_lengths[-1]
    return num_rows * (d + m * longest) <= d * sum(code_lengths)


def gram_block(num_rows: int, longest: int) -> dict[str, int]:
    """A batch of at most sum(lengths) rows goes this way: small tiles, for the number of programs."""
    return {"BLOCK_N": 16 if num_rows <= 64 else 32, "BLOCK_L": 16 if longest <= 16 else 32, "BLOCK_K": 32}


def gram_dots(gram, deltas, code_lengths, report: Report) -> None:
    """The dots (zeros below the diagonal), the weights and what else a step reports, into `report.outputs`.

    gram (N, N): its rows may be further apart, with zeros between them.
    """
    (n, t), m, longest = deltas.shape, len(code_lengths), code_lengths[-1]
    block = gram_block(n, longest)
    grid = (triton.cdiv(n, block["BLOCK_N"]), triton.cdiv(longest, block["BLOCK_L"]), m)
    dots = torch.empty(grid[0] * grid[1], m, m, device=deltas.device, dtype=torch.float32)
    gram_dots_kernel[grid](
        gram, deltas, dots, counters(deltas.device), report.outputs[2], *report.arguments(), n, gram.stride(0), T=t,
        LENGTHS=tuple(code_lengths), DISTILL=report.distill is not None, PRECISION=dot_precision(), **slots(m),
        **block, **SMALL,
    )  # fmt: skip


def row_splits(num_rows: int, columns: int, d: int, block: dict[str, int]) -> tuple[int, int]:
    """(slices of the rows, rows a slice) of a product a^T F."""
    tiles = -(-columns // block["BLOCK_A"]) * -(-d // block["BLOCK_D"])
    splits = max(1, min(-(-num_rows // 512), 264 // tiles))
    per_split = -(-num_rows // splits)
    per_split = -(-per_split // block["BLOCK_K"]) * block["BLOCK_K"]
    return -(-num_rows // per_split), per_split


def product_block(num_rows: int, mode: str) -> dict[str, int]:
    if mode == "ieee":
        return {"BLOCK_A": 64, "BLOCK_D": 64, "BLOCK_K": 16}
    if mode == "tf32x3":  # its operands take twice the registers: wide, not tall (the fastest of 18 on an H200)
        return {"BLOCK_A": 32, "BLOCK_D": 128, "BLOCK_K": 32}
    return {"BLOCK_A": 128 if num_rows > 1024 else 64, "BLOCK_D": 64, "BLOCK_K": 32}


def product_options(mode: str) -> dict:
    return {"num_warps": 8 if mode == "ieee" else 4, "num_stages": 3, "maxnreg": 255}


def transposed_product(a, features) -> tuple[torch.Tensor, torch.Tensor]:
    """a^T F and the column sums of a (N, A), in slices: (splits, A, d) and (splits, A)."""
    (n, columns), d, mode = a.shape, features.shape[1], precision(features)
    block = product_block(n, mode)
    splits, per_split = row_splits(n, columns, d, block)
    product = torch.empty(splits, columns, d, device=a.device, dtype=torch.float32)
    sums = torch.empty(splits, columns, device=a.device, dtype=torch.float32)
    grid = (triton.cdiv(columns, block["BLOCK_A"]), triton.cdiv(d, block["BLOCK_D"]), splits)
    transposed_product_kernel[grid](
        a, features, product, sums, n, columns, d, per_split, *features.stride(), PRECISION=mode, **block,
        **product_options(mode),
    )  # fmt: skip
    return product, sums


def dots_tile(code_lengths) -> dict[str, int]:
    """A tile of every length's gradient is held in registers."""
    return {"BLOCK_L": 16, "BLOCK_D": 64 if len(code_lengths) <= 8 else 32}


def product_dots(product, code_lengths, report: Report) -> torch.Tensor:
    """Per-length gradients (T, d) from slices of deltas^T F; the rest as `gram_dots`."""
    splits, t, d = product.shape
    m, block = len(code_lengths), dots_tile(code_lengths)
    grid = (triton.cdiv(code_lengths[-1], block["BLOCK_L"]), triton.cdiv(d, block["BLOCK_D"]))
    gradients = torch.empty(t, d, device=product.device, dtype=torch.float32)
    dots = torch.empty(grid[0] * grid[1], m, m, device=product.device, dtype=torch.float32)
    product_dots_kernel[grid](
        product, gradients, dots, counters(product.device), report.outputs[2], *report.arguments(), splits, t, d,
        LENGTHS=tuple(code_lengths), DISTILL=report.distill is not None, **slots(m), **block, **SMALL,
    )  # fmt: skip
    return gradients


def variants(lengths=(8, 16, 32, 64, 128)):
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    floats = "losses distill total weights_out dots_out losses_out distill_out dots"
    shared = dict.fromkeys(floats.split(), "*fp32") | {"counter": "*i32", "distill_scale": "fp32"}
    shared |= {"losses_count": "i32", "distill_count": "i32"}
    types = {**shared, "gram": "*fp32", "deltas": "*fp32", "N": "i32", "gram_row": "i32:16"}
    found = []
    for mode in PRECISIONS:
        constants = {"LENGTHS": lengths, "T": sum(lengths), "DISTILL": True, "PRECISION": mode, **slots(len(lengths))}
        constants |= gram_block(64, 128)
        found.append((f"gram/{mode}", gram_dots_kernel, types, constants, SMALL))
    types = {**shared, "product": "*fp32", "gradients": "*fp32", "splits": "i32", "T": "i32", "d": "i32:16"}
    for chosen in (lengths, tuple(range(8, 129, 8))):
        constants = {"LENGTHS": chosen, "DISTILL": True, **slots(len(chosen)), **dots_tile(chosen)}
        found.append((f"product/{len(chosen)}_lengths", product_dots_kernel, types, constants, SMALL))
    for (dtype, mode), rows in itertools.product(MODES, (256, 32768)):
        types = {"a": "*fp32", "f": f"*{dtype}", "product": "*fp32", "sums": "*fp32", "N": "i32", "d": "i32:16"}
        types |= {"per_split": "i32:16", "f_row": "i32:16"}
        block = product_block(rows, mode)
        constants = {"PRECISION": mode, "A": sum(lengths), "f_column": 1, **block}
        name = f"transposed_product/{dtype}_{mode}_n{rows}"
        if rows == 256 or block != product_block(256, mode):
            found.append((name, transposed_product_kernel, types, constants, product_options(mode)))
    return found
