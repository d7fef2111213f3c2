"""The nested projection: U = F W^T + c and, from the same pass over F, the Gram matrix F F^T.

Floor at N = 64, d = 2048, L = 128, float32: 1.6 MB in, 50 MFLOP. At N = 32768: 268 MB in (134 MB in half
precision), 17 GFLOP: memory-bound on the tensor cores, bound by arithmetic in full float32.
"""

import torch
import triton
import triton.language as tl

from .arithmetic import dot
from .pointwise import LOSSES, as_bytes, launch_options, tile_losses
from .tiles import dot_precision


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, SPLIT: tl.constexpr):
    """acc + a @ b for float32 tiles.

    "half": the features came in half precision, which tf32 holds exactly; the float32 operand named by SPLIT ("a",
    "b", "both" or "none") is taken as the sum of two tf32 numbers, so that nothing is rounded to half precision.
    """
    if PRECISION == "half":
        if SPLIT == "a":
            high = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            acc = tl.dot(high, b, acc, input_precision="tf32")
            return tl.dot(a - high, b, acc, input_precision="tf32")
        elif SPLIT == "b":
            high = (b.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            acc = tl.dot(a, high, acc, input_precision="tf32")
            return tl.dot(a, b - high, acc, input_precision="tf32")
        elif SPLIT == "both":
            return tl.dot(a, b, acc, input_precision="tf32x3")
        else:
            return tl.dot(a, b, acc, input_precision="tf32")
    else:
        return dot(a, b, acc, PRECISION)


@triton.jit
def rows_product(
    a, b, rows, columns, num_rows, num_columns, start, stop, a_row, a_column, b_row, b_column,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """sum over start <= k < stop of a[rows, k] b[columns, k]."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, stop, BLOCK_K):
        ks = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        x = tl.load(
            a + rows[:, None] * a_row + ks[None, :] * a_column,
            mask=(rows < num_rows)[:, None] & (ks < stop)[None, :],
            other=0.0,
        ).to(tl.float32)
        y = tl.load(
            b + columns[:, None] * b_row + ks[None, :] * b_column,
            mask=(columns < num_columns)[:, None] & (ks < stop)[None, :],
            other=0.0,
        ).to(tl.float32)
        acc = multiply(x, tl.trans(y), acc, PRECISION, SPLIT)
    return acc


@triton.jit
def store_outputs(
    tile, rows, columns, bias, u, bits, N, L, PACK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Add the bias and write the outputs, or their signs as packed bits (most significant bit first)."""
    inside = (rows < N)[:, None] & (columns < L)[None, :]
    tile += tl.load(bias + columns, mask=columns < L, other=0.0).to(tl.float32)[None, :]
    if PACK:
        ones = tl.where(inside & (tile > 0), 1, 0)
        worth = 1 << (7 - tl.arange(0, 8))
        packed = tl.sum(tl.reshape(ones, (BLOCK_M, BLOCK_N // 8, 8)) * worth[None, None, :], 2)
        first = tl.min(columns, 0) // 8
        byte = first + tl.arange(0, BLOCK_N // 8)
        width = (L + 7) // 8
        tl.store(
            bits + rows[:, None] * width + byte[None, :],
            packed.to(tl.uint8),
            mask=(rows < N)[:, None] & (byte < width)[None, :],
        )
    else:
        tl.store(u + rows[:, None] * L + columns[None, :], tile, mask=inside)
    return tile


@triton.jit
def project_kernel(
    x, w, bias, u, gram, bits, partial, N, d, L, per_split, x_row, x_column, w_row, w_column,
    GRAM: tl.constexpr, PARTIAL: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of F [W; F]^T over one slice of d: final, or to `partial` (splits, N, L + N)."""
    weight_tiles = tl.cdiv(L, BLOCK_N)
    tiles = weight_tiles
    if GRAM:
        tiles += tl.cdiv(N, BLOCK_N)
    # The tiles of the same rows run side by side, so that F comes from memory once.
    tile, split = tl.program_id(0) % tiles, tl.program_id(1)
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    start = split * per_split
    stop = tl.minimum(start + per_split, d)
    width = L
    if GRAM:
        width += N
    if tile < weight_tiles:
        columns = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = rows_product(
            x, w, rows, columns, N, L, start, stop, x_row, x_column, w_row, w_column, PRECISION, "b",
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if PARTIAL:
            at = partial + (split.to(tl.int64) * N + rows[:, None]) * width + columns[None, :]
            tl.store(at, acc, mask=(rows < N)[:, None] & (columns < L)[None, :])
        else:
            store_outputs(acc, rows, columns, bias, u, bits, N, L, PACK, BLOCK_M, BLOCK_N)
    elif GRAM:
        columns = (tile - weight_tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = rows_product(
            x, x, rows, columns, N, N, start, stop, x_row, x_column, x_row, x_column, PRECISION, "none",
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        mask = (rows < N)[:, None] & (columns < N)[None, :]
        if PARTIAL:
            at = partial + (split.to(tl.int64) * N + rows[:, None]) * width + L + columns[None, :]
            tl.store(at, acc, mask=mask)
        else:
            tl.store(gram + rows[:, None] * N + columns[None, :], acc, mask=mask)


@triton.jit
def finish_kernel(
    partial, bias, u, gram, bits, labels, centers, ties, values, deltas,
    splits, N, L, C, T: tl.constexpr, label_row, label_column, parameter,
    GRAM: tl.constexpr, PACK: tl.constexpr, LENGTHS: tl.constexpr, LOSS: tl.constexpr, MULTI_HOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Add up the slices of a split product in a fixed order; a point-wise loss is taken on the way."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tl.program_id(1)
    weight_tiles = tl.cdiv(L, BLOCK_N)
    width, origin, stop = L, tile * BLOCK_N, L
    if GRAM:
        width += N
        if tile >= weight_tiles:
            origin, stop = L + (tile - weight_tiles) * BLOCK_N, width
    columns = origin + tl.arange(0, BLOCK_N)
    mask = (rows < N)[:, None] & (columns < stop)[None, :]
    at = rows[:, None] * width + columns[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, splits, SLICES):
        slices = first + tl.arange(0, SLICES)
        here = partial + (slices.to(tl.int64) * N * width)[:, None, None] + at[None, :, :]
        acc += tl.sum(tl.load(here, mask=(slices < splits)[:, None, None] & mask[None, :, :], other=0.0), 0)
    if tile < weight_tiles:
        acc = store_outputs(acc, rows, columns, bias, u, bits, N, L, PACK, BLOCK_M, BLOCK_N)
        if LOSS is not None:
            program = tl.program_id(0) * weight_tiles + tile
            tile_losses(
                acc, rows, columns, origin, program, labels, centers, ties, values, deltas,
                N, C, T, label_row, label_column, parameter, LENGTHS, LOSS, MULTI_HOT, BLOCK_M, BLOCK_N, BLOCK_C,
            )  # fmt: skip
    elif GRAM:
        tl.store(gram + rows[:, None] * N + (columns - L)[None, :], acc, mask=mask)


def precision(features: torch.Tensor) -> str:
    """How products with the features are taken: "half", or PyTorch's switch for float32 ("ieee", "tf32")."""
    if features.dtype in (torch.float16, torch.bfloat16):
        return "half"
    return dot_precision() if features.is_cuda else "ieee"


MIN_SPLIT = 128  # columns of F that one program takes at least


def plan(num_rows: int, d: int, longest: int, gram: bool, mode: str) -> dict[str, int]:
    """Block sizes and number of slices of d, a plain function of the shape and the precision."""
    if num_rows <= 1024:
        block = {"BLOCK_M": 16 if num_rows <= 16 else 32 if num_rows <= 64 else 64, "BLOCK_N": 64, "BLOCK_K": 32}
        if mode == "ieee":
            block["BLOCK_K"] = 16
        columns = -(-longest // 64) + (-(-num_rows // 64) if gram else 0)
        tiles = -(-num_rows // block["BLOCK_M"]) * columns
        splits = max(1, min(-(-d // MIN_SPLIT), 132 // tiles))
    else:
        block, splits = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, 1
        if mode != "ieee":
            block["BLOCK_M"] = 128
    per_split = -(-d // splits)
    per_split = -(-per_split // block["BLOCK_K"]) * block["BLOCK_K"]
    return {**block, "per_split": per_split, "splits": -(-d // per_split)}


def warps(block: dict[str, int]) -> int:
    return 8 if block["BLOCK_M"] * block["BLOCK_N"] >= 64 * 64 else 4


FINISH_TILE = {"BLOCK_M": 16, "BLOCK_N": 32}
SLICES = 8  # loaded at once


def finish_programs(num_rows: int, longest: int) -> int:
    """Rows of the partial sums where `project` takes a loss on the way."""
    return -(-num_rows // FINISH_TILE["BLOCK_M"]) * -(-longest // FINISH_TILE["BLOCK_N"])


def is_split(num_rows: int, d: int, longest: int, gram: bool, mode: str) -> bool:
    """Whether `project` runs in two launches, of which the second can take a loss on the way."""
    return plan(num_rows, d, longest, gram, mode)["splits"] > 1


def project(x, w, bias, u=None, gram=None, bits=None, loss=None, partial=None) -> None:
    """Fill u (N, L) or packed bits (N, ceil(L/8)), and the Gram matrix (N, N) where one is given.

    loss: keyword arguments (labels, centers, ties, values, deltas, code_lengths, kind, parameter) of a point-wise
    loss to take on the way, where `is_split`. partial: workspace for the slices, made here unless given.
    """
    (n, d), longest, mode = x.shape, w.shape[0], precision(x)
    chosen = plan(n, d, longest, gram is not None, mode)
    splits, per_split = chosen.pop("splits"), chosen.pop("per_split")
    block, pack = chosen, bits is not None
    width = longest + (n if gram is not None else 0)
    target = u if u is not None else bits
    if splits > 1 and partial is None:
        partial = torch.empty(splits, n, width, device=x.device, dtype=torch.float32)

    def grid(block):
        columns = triton.cdiv(longest, block["BLOCK_N"])
        columns += triton.cdiv(n, block["BLOCK_N"]) if gram is not None else 0
        return triton.cdiv(n, block["BLOCK_M"]), columns

    outputs = [target if t is None else t for t in (u, gram, bits)]
    rows, columns = grid(block)
    project_kernel[(rows * columns, splits)](
        x, w, bias, *outputs, target if partial is None else partial, n, d, longest, per_split,
        *x.stride(), *w.stride(), GRAM=gram is not None, PARTIAL=splits > 1, PACK=pack, PRECISION=mode, **block,
        num_warps=warps(block), num_stages=3, maxnreg=255,
    )  # fmt: skip
    if splits == 1:
        return
    if loss is None:
        tensors, shape, parameter = [target] * 5, (0, 0, 0, 0), 0.0
        constants = {"LENGTHS": (longest,), "LOSS": None, "MULTI_HOT": False}
    else:
        labels, centers = as_bytes(loss["labels"]), loss["centers"]
        tensors = [labels, centers, loss["ties"], loss["values"], loss["deltas"]]
        shape = (*centers.shape, labels.stride(0), labels.stride(1) if labels.ndim == 2 else 1)
        parameter = loss["parameter"]
        constants = {
            "LENGTHS": tuple(loss["code_lengths"]),
            "LOSS": LOSSES[loss["kind"]],
            "MULTI_HOT": labels.ndim == 2,
        }
    finish_kernel[grid(FINISH_TILE)](
        partial, bias, *outputs, *tensors, splits, n, longest, *shape, parameter,
        GRAM=gram is not None, PACK=pack, **constants, **FINISH_TILE, BLOCK_C=32, SLICES=SLICES,
        num_warps=4, num_stages=2, maxnreg=255, **(launch_options(x.device.type) if loss is not None else {}),
    )  # fmt: skip


LENGTHS = (8, 16, 32, 64, 128)


def variants():
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    outputs = {"u": "*fp32", "gram": "*fp32", "bits": "*u8"}
    numbers = dict.fromkeys(("N", "d", "L", "per_split", "x_row", "w_row"), "i32:16")
    found = []
    for dtype, mode in (("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "half"), ("fp16", "half")):
        for rows, gram, pack in ((64, True, False), (32768, False, False), (32768, False, True)):
            if pack and mode == "ieee":
                continue
            block = plan(rows, 2048, 128, gram, mode)
            split = block.pop("splits") > 1
            del block["per_split"]
            types = {"x": f"*{dtype}", "w": "*fp32", "bias": "*fp32", **outputs, "partial": "*fp32", **numbers}
            constants = {"GRAM": gram, "PARTIAL": split, "PACK": pack, "PRECISION": mode, **block}
            constants |= {"x_column": 1, "w_column": 1}
            name = f"{'encode' if pack else 'project'}_{dtype}_{mode}_n{rows}"
            options = {"num_warps": warps(block), "num_stages": 3, "maxnreg": 255}
            found.append((name, project_kernel, types, constants, options))
    types = {"partial": "*fp32", "bias": "*fp32", **outputs, "labels": "*i64", "centers": "*fp32", "ties": "*fp32"}
    types |= {"values": "*fp32", "deltas": "*fp32", "splits": "i32:16", "N": "i32:16", "L": "i32:16"}
    types |= {"C": "i32", "label_row": "i32", "parameter": "fp32"}
    for kind, loss in {"none": None, **LOSSES}.items():
        constants = {"GRAM": True, "PACK": False, "LENGTHS": LENGTHS, "LOSS": loss, "MULTI_HOT": False}
        constants |= {"T": sum(LENGTHS), "label_column": 1, **FINISH_TILE, "BLOCK_C": 32, "SLICES": SLICES}
        options = {"num_warps": 4, "num_stages": 2, "maxnreg": 255, **(launch_options("cuda") if loss else {})}
        found.append((f"finish_{kind}", finish_kernel, types, constants, options))
    return found
