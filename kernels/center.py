"""Point-wise centre losses: every length's loss and gradient of one tile of outputs, in one pass over it."""

import torch
import triton
import triton.language as tl


@triton.jit
def csq(u, center, weight):
    """Cross-entropy of tanh(u) with the centre plus weight * (|tanh u| - 1)^2, and the derivative in u."""
    e = tl.exp(-2 * tl.abs(u))
    one = 1 + e
    # log1p(e): the rounding of 1 + e cancels in the quotient.
    log1p = tl.where(one == 1, e, tl.log(one) * (e / tl.where(one == 1, 1.0, one - 1)))
    x = -2 * u * center
    sigmoid = tl.where(x >= 0, 1 / one, e / one)
    gap = 2 * e / one  # 1 - |tanh u|
    sign = tl.where(u > 0, 1.0, tl.where(u < 0, -1.0, 0.0))
    loss = tl.maximum(x, 0.0) + log1p + weight * gap * gap
    # d|tanh u|/du = sign(u) (1 - tanh^2 u), 1 - tanh^2 u = 4 e / (1 + e)^2
    slope = -2 * center * sigmoid - weight * gap * sign * (8 * e / (one * one))
    return loss, slope


@triton.jit
def dpn(u, center, margin):
    """Hinge max(margin - u c, 0)."""
    short = margin - u * center
    return tl.maximum(short, 0.0), tl.where(short > 0, -center, 0.0)


@triton.jit
def dpn_ternary(u, center, margin):
    """`dpn` of u rounded to -1, 0, 1; the gradient is passed straight through."""
    return dpn(tl.where(u > margin, 1.0, tl.where(u < -margin, -1.0, 0.0)), center, margin)


LOSSES = {"csq": csq, "dpn": dpn, "dpn_ternary": dpn_ternary}


@triton.jit
def multi_hot_targets(
    labels, centers, rows, columns, inside, tie, offset, N, C, T, label_row, label_column,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sign of the sum of each row's class centres; `tie` where it is 0."""
    total = tl.zeros((BLOCK_N, BLOCK_L), tl.float32)
    for start in range(0, C, BLOCK_C):
        classes = start + tl.arange(0, BLOCK_C)
        known = classes < C
        y = tl.load(
            labels + rows[:, None] * label_row + classes[None, :].to(tl.int64) * label_column,
            mask=(rows < N)[:, None] & known[None, :],
            other=0,
        ).to(tl.float32)
        tl.device_assert((y == 0) | (y == 1), "labels: expected multi-hot rows of zeros and ones")
        c = tl.load(
            centers + classes[:, None].to(tl.int64) * T + offset + columns[None, :],
            mask=known[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        # Zeros, ones and minus ones are exact in tf32, and so are their sums in float32.
        total = tl.dot(y, c, total, input_precision="tf32")
    return tl.where(total > 0, 1.0, tl.where(total < 0, -1.0, tie[None, :] + total * 0))


@triton.jit
def tile_losses(
    u, rows, columns, first_column, labels, centers, ties, deltas, N, C, T, label_row, label_column, parameter,
    LENGTHS: tl.constexpr, LOSS: tl.constexpr, MULTI_HOT: tl.constexpr, MP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Deltas of a tile u (BLOCK_N, BLOCK_L) at all lengths, and the sums of its losses in MP slots."""
    here = rows < N
    if not MULTI_HOT:
        ids = tl.load(labels + rows * label_row, mask=here, other=0)
        known = (ids >= 0) & (ids < C)
        tl.device_assert(known, "labels: expected class ids from 0 to num_classes - 1")
    loaded = ()
    if not MULTI_HOT:  # every length's centres first: one wait for memory
        offset = 0
        for k in tl.static_range(len(LENGTHS)):
            mask = (here & known)[:, None] & (columns < LENGTHS[k])[None, :]
            at = centers + ids[:, None] * T + offset + columns[None, :]
            loaded += (tl.load(at, mask=mask, other=1.0).to(tl.float32),)
            offset += LENGTHS[k]
    row_sums = ()
    offset = 0
    for k in tl.static_range(len(LENGTHS)):  # no branches: what a loss makes of u alone is made once for all lengths
        inside = columns < LENGTHS[k]
        mask = here[:, None] & inside[None, :]
        if MULTI_HOT:
            center = tl.zeros((BLOCK_N, BLOCK_L), tl.float32)
            if first_column < LENGTHS[k]:
                tie = tl.load(ties + offset + columns, mask=inside, other=1.0).to(tl.float32)
                center = multi_hot_targets(
                    labels, centers, rows, columns, inside, tie, offset, N, C, T, label_row, label_column,
                    BLOCK_N, BLOCK_L, BLOCK_C,
                )  # fmt: skip
        else:
            center = loaded[k]
        loss, slope = LOSS(u, center, parameter)
        scale = 1.0 / N / LENGTHS[k]
        tl.store(deltas + rows[:, None] * T + offset + columns[None, :], slope * scale, mask=mask)
        row_sums += (tl.sum(tl.where(mask, loss, 0.0), 1) * scale,)
        offset += LENGTHS[k]
    slots = tl.arange(0, MP)
    values = slots * 0.0
    for k in tl.static_range(len(LENGTHS)):
        values += tl.where(slots == k, tl.sum(row_sums[k], 0), 0.0)
    return values


@triton.jit(do_not_specialize=["N"])
def pointwise_kernel(
    u, labels, centers, ties, values, deltas, N, L, C, T: tl.constexpr, label_row, label_column, parameter,
    LENGTHS: tl.constexpr, LOSS: tl.constexpr, MULTI_HOT: tl.constexpr, MP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_column = tl.program_id(1) * BLOCK_L
    columns = first_column + tl.arange(0, BLOCK_L)
    mask = (rows < N)[:, None] & (columns < L)[None, :]
    tile = tl.load(u + rows[:, None] * L + columns[None, :], mask=mask, other=0.0)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    sums = tile_losses(
        tile, rows, columns, first_column, labels, centers, ties, deltas,
        N, C, T, label_row, label_column, parameter, LENGTHS, LOSS, MULTI_HOT, MP, BLOCK_N, BLOCK_L, BLOCK_C,
    )  # fmt: skip
    slots = tl.arange(0, MP)
    tl.store(values + program * len(LENGTHS) + slots, sums, mask=slots < len(LENGTHS))


def tiles(num_rows: int, longest: int) -> dict[str, int]:
    """Block sizes of a launch, a plain function of the shape."""
    if num_rows <= 1024:
        return {"BLOCK_N": 16, "BLOCK_L": 32 if longest > 16 else 16}
    return {"BLOCK_N": 16, "BLOCK_L": min(64, max(16, triton.next_power_of_2(longest)))}


def options(block: dict[str, int], device_type: str) -> dict:
    """At most four elements a thread: five lengths of them are in flight at once."""
    warps = 8 if block["BLOCK_N"] * block["BLOCK_L"] >= 1024 else 4
    return {"num_warps": warps, "num_stages": 2, "maxnreg": 255, **launch_options(device_type)}


def num_programs(num_rows: int, longest: int) -> int:
    """Rows of the partial sums that a launch gives."""
    block = tiles(num_rows, longest)
    return -(-num_rows // block["BLOCK_N"]) * -(-longest // block["BLOCK_L"])


def launch_options(device_type: str) -> dict:
    """Options of a launch whose kernel checks values: assertions on the device, but none on integer overflow."""
    return {"debug": True, "sanitize_overflow": False} if device_type == "cuda" else {}


def as_bytes(labels: torch.Tensor) -> torch.Tensor:
    """Bool labels as the bytes they are."""
    return labels.view(torch.uint8) if labels.dtype == torch.bool else labels


def pointwise(u, labels, centers, ties, values, deltas, code_lengths, kind: str, parameter: float) -> None:
    """Fill values (num_programs, m), whose sum over the rows is the losses, and deltas (N, T)."""
    (n, longest), labels = u.shape, as_bytes(labels)
    block = tiles(n, longest)
    grid = (triton.cdiv(n, block["BLOCK_N"]), triton.cdiv(longest, block["BLOCK_L"]))
    pointwise_kernel[grid](
        u, labels, centers, ties, values, deltas, n, longest, centers.shape[0], centers.shape[1],
        labels.stride(0), labels.stride(1) if labels.ndim == 2 else 1, parameter,
        LENGTHS=tuple(code_lengths), LOSS=LOSSES[kind], MULTI_HOT=labels.ndim == 2,
        MP=triton.next_power_of_2(len(code_lengths)), **block, BLOCK_C=32,
        **options(block, u.device.type),
    )  # fmt: skip


def variants():
    """What is compiled ahead of time: (name, kernel, signature, constants, options)."""
    signature = {
        "u": "*fp32", "labels": "*i64", "centers": "*fp32", "ties": "*fp32", "values": "*fp32", "deltas": "*fp32",
        "N": "i32", "L": "i32:16", "C": "i32", "label_row": "i32", "parameter": "fp32",
    }  # fmt: skip
    found = []
    for kind, loss in LOSSES.items():
        for rows in (64, 32768):
            for multi_hot in (False, True):
                constants = {"LENGTHS": (8, 16, 32, 64, 128), "T": 248, "LOSS": loss, "MULTI_HOT": multi_hot}
                constants |= {"BLOCK_C": 32, "MP": 8, "label_column": 1}
                name = f"{kind}/{'multi-hot' if multi_hot else 'ids'}/n{rows}"
                types = {**signature, "labels": "*fp32"} if multi_hot else signature
                block = tiles(rows, 128)
                found.append((name, pointwise_kernel, types, {**constants, **block}, options(block, "cuda")))
    return found
