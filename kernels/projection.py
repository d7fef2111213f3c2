"""The nested projection: U = F W^T + c and, from the same pass over F, the Gram matrix F F^T.

Floor at N = 64, d = 2048, L = 128, float32: 1.6 MB in, 50 MFLOP. At N = 32768: 268 MB in (134 MB in half
precision), 17 GFLOP: memory-bound on the tensor cores, bound by arithmetic in full float32.
"""

import itertools

import torch
import triton
import triton.language as tl

from .arithmetic import dot
from .arrival import arrived_last, counters
from .center import CENTER_FUNCTIONS as LOSSES, tile_losses
from .tiles import as_bytes, launch_options
from .tiles import PRECISIONS, dot_precision


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
    tile, rows, columns, bias, u, bits, N, L, PACK: tl.constexpr, FINITE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the bias and write the outputs, or their signs as packed bits (most significant bit first).

    FINITE: outputs that hold NaN or infinity are a device-side assertion.
    """
    inside = (rows < N)[:, None] & (columns < L)[None, :]
    tile += tl.load(bias + columns, mask=columns < L, other=0.0).to(tl.float32)[None, :]
    if FINITE:
        tl.device_assert(
            (tl.abs(tile) < float("inf")) | (inside == 0),
            "features: the layer's outputs hold NaN or infinity (bad features, or training diverged)",
        )
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
def sum_slices(
    partial, rows, places, mask, splits, N, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SLICES: tl.constexpr
):  # fmt: skip
    """A tile of partial (splits, N, width), its slices added up in their order; they are other programs' stores."""
    stride = tl.cast(N, tl.int64) * width
    at = partial + rows[:, None] * width + places[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, splits, SLICES):
        for k in tl.static_range(SLICES):  # so that their loads are in flight together
            part = tl.zeros((1, 1), tl.int32) + (first + k)
            known = mask & (part < splits)
            acc += tl.load(at + part * stride, mask=known, other=0.0, cache_modifier=".cg")
    return acc


@triton.jit(do_not_specialize=["N", "splits"])
def project_kernel(
    x, w, bias, u, gram, bits, partial, counter, labels, centers, ties, values, deltas,
    N, d, L, gram_row, C, T: tl.constexpr, splits, per_split, x_row, x_column, w_row, w_column, label_row,
    label_column, parameter,
    GRAM: tl.constexpr, PARTIAL: tl.constexpr, PACK: tl.constexpr, FINITE: tl.constexpr, PRECISION: tl.constexpr,
    LENGTHS: tl.constexpr, LOSS: tl.constexpr, MULTI_HOT: tl.constexpr, MP: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr, WIDE: tl.constexpr,
    SLICES: tl.constexpr,
):  # fmt: skip
    """A tile of F [W; F]^T over one slice of d; PARTIAL: the tile's last program adds the slices up.

    A point-wise loss is taken of a finished tile of outputs, a piece of STEP x WIDE at a time. partial is (splits, N,
    L + gram_row); rows of the Gram matrix are gram_row apart, with zeros from the N-th column on.
    """
    weight_tiles = tl.cdiv(L, BLOCK_N)
    tiles = weight_tiles
    width = L
    if GRAM:
        tiles += tl.cdiv(N, BLOCK_N)
        width += gram_row
    # The tiles of the same rows run side by side, so that F comes from memory once.
    tile, row_tile, split = tl.program_id(0) % tiles, tl.program_id(0) // tiles, tl.program_id(1)
    first_row = row_tile.to(tl.int64) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    start = split * per_split
    stop = tl.minimum(start + per_split, d)
    outputs = True
    first_column = tile * BLOCK_N
    place, end = first_column, L  # in a row of the slices
    if GRAM:
        outputs = tile < weight_tiles
        first_column -= tl.where(outputs, 0, weight_tiles * BLOCK_N)
        place, end = first_column + tl.where(outputs, 0, L), tl.where(outputs, L, width)
    columns = first_column.to(tl.int64) + tl.arange(0, BLOCK_N)
    places = place + tl.arange(0, BLOCK_N)
    if outputs:
        acc = rows_product(
            x, w, rows, columns, N, L, start, stop, x_row, x_column, w_row, w_column, PRECISION, "b",
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        acc = rows_product(
            x, x, rows, columns, N, N, start, stop, x_row, x_column, x_row, x_column, PRECISION, "none",
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    if PARTIAL:
        at = partial + (split.to(tl.int64) * N + rows[:, None]) * width + places[None, :]
        tl.store(at, acc, mask=(rows < N)[:, None] & (places < end)[None, :])
        last = arrived_last(counter + tl.program_id(0), splits)
    else:
        last = outputs
        if outputs:
            store_outputs(acc, rows, columns, bias, u, bits, N, L, PACK, FINITE, BLOCK_M, BLOCK_N)
            if LOSS is not None:
                tl.debug_barrier()  # other threads wrote the outputs that are read again below
        else:
            at = gram + rows[:, None] * gram_row + columns[None, :]
            tl.store(at, acc, mask=(rows < N)[:, None] & (columns < gram_row)[None, :])
    if PARTIAL or LOSS is not None:  # noqa: SIM102 (the first is known when compiled)
        if last:
            slots = tl.arange(0, MP)
            sums = slots * 0.0
            for piece in range(0, (BLOCK_M // STEP) * (BLOCK_N // WIDE)):
                some_rows = first_row + (piece // (BLOCK_N // WIDE)) * STEP + tl.arange(0, STEP)
                right = (piece % (BLOCK_N // WIDE)) * WIDE
                some_columns = first_column.to(tl.int64) + right + tl.arange(0, WIDE)
                some_places = place + right + tl.arange(0, WIDE)
                inside = (some_rows < N)[:, None] & (some_places < end)[None, :]
                if PARTIAL:
                    some = sum_slices(partial, some_rows, some_places, inside, splits, N, width, STEP, WIDE, SLICES)
                    if outputs:
                        some = store_outputs(
                            some, some_rows, some_columns, bias, u, bits, N, L, PACK, FINITE, STEP, WIDE
                        )
                    else:
                        tl.store(gram + some_rows[:, None] * gram_row + some_columns[None, :], some, mask=inside)
                else:
                    some = tl.load(u + some_rows[:, None] * L + some_columns[None, :], mask=inside, other=0.0)
                if LOSS is not None:  # noqa: SIM102
                    if outputs:
                        sums += tile_losses(
                            some, some_rows, some_columns, first_column + right, labels, centers, ties, deltas, N, C,
                            T, label_row, label_column, parameter, LENGTHS, LOSS, MULTI_HOT, MP, STEP, WIDE, BLOCK_C,
                        )  # fmt: skip
            if LOSS is not None:  # noqa: SIM102
                if outputs:
                    program = row_tile * weight_tiles + tile
                    tl.store(values + program * len(LENGTHS) + slots, sums, mask=slots < len(LENGTHS))


def precision(features: torch.Tensor) -> str:
    """How products with the features are taken: "half", or as float32 products are (`tiles.dot_precision`)."""
    return "half" if features.dtype in (torch.float16, torch.bfloat16) else dot_precision()


MIN_SPLIT = 128  # columns of F that one program takes at least
PROGRAMS = 132  # tiles and slices of a small batch at most, see `arrival.SLOT`


def plan(num_rows: int, d: int, longest: int, gram: bool, mode: str) -> dict[str, int]:
    """Block sizes and number of slices of d, a plain function of the shape and the precision."""
    if num_rows <= 1024:
        side = 32 if num_rows <= 64 else 64
        block = {"BLOCK_M": side, "BLOCK_N": side, "BLOCK_K": 16 if mode == "ieee" else 32}
        columns = -(-longest // side) + (-(-num_rows // side) if gram else 0)
        tiles = -(-num_rows // side) * columns
        splits = max(1, min(-(-d // MIN_SPLIT), PROGRAMS // tiles))
    else:
        # Tiles as wide as the codes read the features once; fewer rows a tile where they would be too few.
        wide = 128 if longest > 64 and mode != "ieee" else 64
        rows = next(rows for rows in (128, 64, 32) if rows * PROGRAMS <= num_rows or rows == 32)
        rows = 64 if mode == "ieee" else rows
        block, splits = {"BLOCK_M": rows, "BLOCK_N": wide, "BLOCK_K": 32}, 1
    per_split = -(-d // splits)
    per_split = -(-per_split // block["BLOCK_K"]) * block["BLOCK_K"]
    splits = -(-d // per_split)
    return {**block, **piece(block, splits > 1), "per_split": per_split, "splits": splits}


def warps(block: dict[str, int]) -> int:
    return 8


def piece(block: dict[str, int], split: bool) -> dict[str, int]:
    """What a finished tile's sums and losses take at a time: few numbers a thread, so that the code is short.

    What a small batch runs once comes from memory, too. Narrow: short lengths end early in a row.
    """
    wide = min(32, block["BLOCK_N"])
    rows = (4 if split else 8) * 32 * warps(block) // wide
    return {"STEP": min(block["BLOCK_M"], rows), "WIDE": wide}


SLICES = 4  # loaded at once


def loss_programs(num_rows: int, d: int, longest: int, gram: bool, mode: str) -> int:
    """Rows of the partial sums where `project` takes a loss on the way."""
    block = plan(num_rows, d, longest, gram, mode)
    return -(-num_rows // block["BLOCK_M"]) * -(-longest // block["BLOCK_N"])


def gram_row(num_rows: int) -> int:
    """How far apart the rows of a Gram matrix are: a multiple of 16, whatever the batch, for wide loads."""
    return -(-num_rows // 16) * 16


def project(x, w, bias, u=None, gram=None, bits=None, loss=None, finite=False, partial=None) -> None:
    """Fill u (N, L) or packed bits (N, ceil(L/8)), and the Gram matrix (N, N) where one is given, in one launch.

    gram: its rows are `gram_row(N)` apart. loss: keyword arguments (labels, centers, ties, values, deltas,
    code_lengths, kind, parameter) of a point-wise loss of u to take on the way. finite: assert that u is. partial:
    workspace for the slices, made here unless given.
    """
    (n, d), longest, mode = x.shape, w.shape[0], precision(x)
    chosen = plan(n, d, longest, gram is not None, mode)
    splits, per_split = chosen.pop("splits"), chosen.pop("per_split")
    row, target = gram_row(n), u if u is not None else bits
    if gram is not None and (gram.shape != (n, n) or gram.stride() != (row, 1)):
        raise ValueError(f"gram: expected shape ({n}, {n}), strides ({row}, 1), got {gram.shape}, {gram.stride()}")
    if splits > 1 and partial is None:
        width = longest + (row if gram is not None else 0)
        partial = torch.empty(splits, n, width, device=x.device, dtype=torch.float32)
    columns = triton.cdiv(longest, chosen["BLOCK_N"])
    columns += triton.cdiv(n, chosen["BLOCK_N"]) if gram is not None else 0
    tiles = triton.cdiv(n, chosen["BLOCK_M"]) * columns
    if loss is None:
        tensors, shape, labelled, parameter = [target] * 5, (0, 0), (0, 0), 0.0
        constants = {"LENGTHS": (longest,), "LOSS": None, "MULTI_HOT": False, "MP": 1}
    else:
        labels, centers, lengths = as_bytes(loss["labels"]), loss["centers"], tuple(loss["code_lengths"])
        tensors = [labels, centers, loss["ties"], loss["values"], loss["deltas"]]
        shape, parameter = centers.shape, loss["parameter"]
        labelled = (labels.stride(0), labels.stride(1) if labels.ndim == 2 else 1)
        constants = {"LENGTHS": lengths, "LOSS": LOSSES[loss["kind"]], "MULTI_HOT": labels.ndim == 2}
        constants["MP"] = triton.next_power_of_2(len(lengths))
    project_kernel[(tiles, splits)](
        x, w, bias, *(target if t is None else t for t in (u, gram, bits, partial)),
        counters(x.device) if splits > 1 else target, *tensors, n, d, longest, row, *shape, splits, per_split,
        *x.stride(), *w.stride(), *labelled, parameter, GRAM=gram is not None, PARTIAL=splits > 1,
        PACK=bits is not None, FINITE=finite, PRECISION=mode, **constants, BLOCK_C=32, SLICES=SLICES, **chosen,
        num_warps=warps(chosen), num_stages=3, maxnreg=255,
        **(launch_options(x.device.type) if loss is not None or finite else {}),
    )  # fmt: skip


LENGTHS = (8, 16, 32, 64, 128)
# (features' dtype, precision) of what is compiled ahead of time.
MODES = (*(("fp32", mode) for mode in PRECISIONS), ("bf16", "half"), ("fp16", "half"))


def variants():
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    tensors = dict.fromkeys(("w", "bias", "u", "gram", "partial", "centers", "ties", "values", "deltas"), "*fp32")
    tensors |= {"bits": "*u8", "counter": "*i32", "labels": "*i64"}
    numbers = dict.fromkeys(("d", "L", "gram_row", "per_split", "x_row", "w_row"), "i32:16")
    numbers |= dict.fromkeys(("N", "splits", "C", "label_row"), "i32") | {"parameter": "fp32"}
    plain = [(64, True, False, None, False), (32768, False, False, None, False), (32768, False, True, None, False)]
    with_loss = [
        (rows, rows == 64, False, kind, multi_hot)
        for rows, kind, multi_hot in itertools.product((64, 256, 32768), LOSSES, (False, True))
        if kind == "csq" or not multi_hot
    ]
    found = []
    for dtype, mode in MODES:
        for rows, gram, pack, kind, multi_hot in plain + (
            with_loss if (dtype, mode) == ("fp32", PRECISIONS[0]) else []
        ):
            if pack and mode == "ieee":
                continue
            block = plan(rows, 2048, 128, gram, mode)
            split = block.pop("splits") > 1
            del block["per_split"]
            constants = {"GRAM": gram, "PARTIAL": split, "PACK": pack, "FINITE": kind is not None, "PRECISION": mode}
            constants |= {"LENGTHS": LENGTHS if kind else (128,), "LOSS": LOSSES[kind] if kind else None}
            constants |= {
                "MULTI_HOT": multi_hot,
                "MP": 8 if kind else 1,
                "T": sum(LENGTHS) if kind else 0,
                "BLOCK_C": 32,
            }
            constants |= {"SLICES": SLICES, "x_column": 1, "w_column": 1, "label_column": 1, **block}
            name = (
                f"{'encode' if pack else kind or 'project'}_{dtype}_{mode}_n{rows}{'_multi-hot' if multi_hot else ''}"
            )
            options = {"num_warps": warps(block), "num_stages": 3, "maxnreg": 255}
            options |= launch_options("cuda") if kind else {}
            types = {"x": f"*{dtype}", **tensors, **numbers} | ({"labels": "*u8"} if multi_hot else {})
            found.append((name, project_kernel, types, constants, options))
    return found
