"""Centre softmax (MDSH, SHCIR): every length's likelihood over the classes and its gradient, in one launch.

A program owns a tile of rows at one length (or a slice of a long one's gradient) and goes through the classes
three times: the largest logit and the log of the sum of the others, which also gives log(1 - p) of the likeliest
class without cancellation; the value and the sum of the slopes; the gradient. Logits are computed again each time,
so any number of classes is served and nothing of size rows x classes leaves the program.
Operations per row, class and bit: four multiply-adds. Bytes: the centres once a row tile (from L2).
"""

import torch
import triton
import triton.language as tl

from . import penalties, tiles
from .arithmetic import dot, inverse_norm, load_tile, log1m, log_add_exp, zeros
from .center import as_bytes, launch_options

CONFIG = tiles.Tiles(rows=16, columns=32, bits=32, width=128, warps=8, stages=1)
SQUARE = tl.constexpr(penalties.SQUARE.value)
LOWEST = tl.constexpr(-1e30)
# Logits lie within +-sqrt(b), or +-sqrt(reference): two may be 64 apart, and exp(-64) is still a normal number.
MAX_REFERENCE = 1024


@triton.jit
def _logits(
    u, centers, inverse, first_row, start, num_rows, num_classes, B: tl.constexpr, OFFSET: tl.constexpr,
    L: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """inverse <u, centre> of a tile of rows and classes; very low outside the classes."""
    product = zeros(ROWS, CLASSES)
    for first in range(0, B, BITS):
        bits = first + tl.arange(0, BITS)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, False)
        c = load_tile(centers + OFFSET, start, num_classes, bits, B, CLASSES, T, False)
        product = dot(x, tl.trans(c), product, PRECISION)
    classes = start + tl.arange(0, CLASSES)
    return tl.where(classes[None, :] < num_classes, product * inverse[:, None], LOWEST)


@triton.jit
def _present(
    labels, first_row, start, num_rows, num_classes, MULTI_HOT: tl.constexpr, ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):  # fmt: skip
    """y of a tile, 0 or 1; labels are int64 ids, or contiguous multi-hot rows."""
    rows = first_row + tl.arange(0, ROWS)
    classes = start + tl.arange(0, CLASSES)
    if MULTI_HOT:
        inside = (rows[:, None] < num_rows) & (classes[None, :] < num_classes)
        y = tl.load(labels + rows[:, None] * num_classes + classes[None, :], mask=inside, other=0).to(tl.float32)
        tl.device_assert((y == 0) | (y == 1), "labels: expected multi-hot rows of zeros and ones")
    else:
        ids = tl.load(labels + rows, mask=rows < num_rows, other=0)
        tl.device_assert((ids >= 0) & (ids < num_classes), "labels: expected class ids below the number of classes")
        y = tl.where(ids[:, None] == classes[None, :], 1.0, 0.0)
    return y


@triton.jit
def _terms(
    u, centers, labels, inverse, top, total, rest, first_row, start, num_rows, num_classes, negative_weight,
    B: tl.constexpr, OFFSET: tl.constexpr, L: tl.constexpr, T: tl.constexpr, MULTI_HOT: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Of a tile of rows and classes: logits, y, the weight of log(1 - p), log p, p, log(1 - p), whether likeliest."""
    logits = _logits(
        u, centers, inverse, first_row, start, num_rows, num_classes, B, OFFSET, L, T, PRECISION, ROWS, CLASSES, BITS
    )
    y = _present(labels, first_row, start, num_rows, num_classes, MULTI_HOT, ROWS, CLASSES)
    classes = start + tl.arange(0, CLASSES)
    is_top = classes[None, :] == top[:, None]
    log_p = logits - total[:, None]
    p = tl.exp(log_p)
    log_rest = tl.where(is_top, (rest - total)[:, None], log1m(p))
    absent = tl.where(classes[None, :] < num_classes, negative_weight * (1 - y), 0.0)
    return logits, y, absent, log_p, p, log_rest, is_top


@triton.jit
def _slope(y, absent, log_p, log_rest):
    """Derivative of the loss with respect to the log-probability, log(1 - p) taken along."""
    return absent * tl.exp(tl.where(absent > 0, log_p - log_rest, 0.0)) - y


@triton.jit
def _rows(
    u, centers, labels, values, deltas, num_rows, num_classes, negative_weight, scale, quantization, reference,
    K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, OFFSET: tl.constexpr, LENGTHS: tl.constexpr,
    T: tl.constexpr, MULTI_HOT: tl.constexpr, ONE_HOT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    CLASSES: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = len(LENGTHS)
    L: tl.constexpr = LENGTHS[M - 1]
    B: tl.constexpr = LENGTHS[K]
    tile = tl.program_id(0).to(tl.int64)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < num_rows
    penalty, squares = penalties.row_sums(u, first_row, num_rows, B, SQUARE, L, ROWS, BITS, False)
    plain = inverse_norm(squares)
    sharpness = tl.sqrt_rn(tl.where(reference > 0, reference / B, 1.0))
    inverse = sharpness * plain

    best = tl.full((ROWS,), LOWEST, tl.float32)
    rest = tl.full((ROWS,), LOWEST, tl.float32)
    top = tl.zeros((ROWS,), tl.int32)
    for begin in range(0, num_classes, CLASSES):
        start = tile * 0 + begin
        logits = _logits(
            u, centers, inverse, first_row, start, num_rows, num_classes, B, OFFSET, L, T, PRECISION, ROWS, CLASSES,
            BITS,
        )  # fmt: skip
        here = tl.max(logits, axis=1)
        at = tl.argmax(logits, axis=1)
        places = tl.arange(0, CLASSES)
        lower = tl.where(places[None, :] == at[:, None], 0.0, tl.exp(logits - here[:, None]))
        sums = tl.sum(lower, axis=1)
        lower_log = tl.where(sums > 0, here + tl.log(tl.maximum(sums, 1e-30)), LOWEST)
        rest = log_add_exp(log_add_exp(rest, lower_log), tl.minimum(best, here))
        top = tl.where(here > best, begin + at, top)
        best = tl.maximum(best, here)
    total = log_add_exp(best, rest)

    value = tl.zeros((ROWS,), tl.float32)
    others = tl.zeros((ROWS,), tl.float32)  # sum of the slopes of all classes but the likeliest
    highest = tl.zeros((ROWS,), tl.float32)
    number = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, num_classes, CLASSES):
        _, y, absent, log_p, p, log_rest, is_top = _terms(
            u, centers, labels, inverse, top, total, rest, first_row, tile * 0 + begin, num_rows, num_classes,
            negative_weight, B, OFFSET, L, T, MULTI_HOT, PRECISION, ROWS, CLASSES, BITS,
        )  # fmt: skip
        value -= tl.sum(y * tl.where(y > 0, log_p, 0.0) + absent * log_rest, axis=1)
        slope = _slope(y, absent, log_p, log_rest)
        others += tl.sum(tl.where(is_top, 0.0, slope), axis=1)
        highest += tl.sum(tl.where(is_top, slope, 0.0), axis=1)
        number += tl.sum(y, axis=1)
    if ONE_HOT:
        tl.device_assert((number == 1) | (rows >= num_rows), "labels: expected exactly one class in every row")

    along = tl.zeros((ROWS,), tl.float32)
    found = zeros(ROWS, WIDTH)
    columns = FIRST + tl.arange(0, WIDTH)
    for begin in range(0, num_classes, CLASSES):
        start = tile * 0 + begin
        known = (start + tl.arange(0, CLASSES))[None, :] < num_classes
        logits, y, absent, log_p, p, log_rest, is_top = _terms(
            u, centers, labels, inverse, top, total, rest, first_row, start, num_rows, num_classes,
            negative_weight, B, OFFSET, L, T, MULTI_HOT, PRECISION, ROWS, CLASSES, BITS,
        )  # fmt: skip
        # For the likeliest class the plain form, slope - p * sum(slopes), would cancel.
        own = absent * p - y * tl.exp(log_rest) - p * others[:, None]
        slope = tl.where(is_top, own, _slope(y, absent, log_p, log_rest) - p * (others + highest)[:, None])
        slope = tl.where(known, slope, 0.0)
        along += tl.sum(tl.where(known, slope * logits, 0.0), axis=1)
        c = load_tile(centers + OFFSET, start, num_classes, columns, B, CLASSES, T, False)
        found = dot(slope, c, found, PRECISION)

    size = num_rows * 1.0
    x = load_tile(u, first_row, num_rows, columns, B, ROWS, L, False)
    found = scale * inverse[:, None] * (found - (along / sharpness)[:, None] * (x * plain[:, None]))
    found += (quantization / size) * penalties.slope(x, 0.0, 0.0, B * 1.0, 0.0, 0.0, SQUARE)
    mask = inside[:, None] & (columns[None, :] < B)
    tl.store(deltas + rows[:, None] * T + OFFSET + columns[None, :], found, mask=mask)
    if FIRST == 0:
        value = scale * value + (quantization / size) * (penalty / B)
        tl.store(values + tile * M + K, tl.sum(tl.where(inside, value, 0.0)))


@triton.jit(do_not_specialize=["num_rows"])
def softmax_kernel(
    u, centers, labels, values, deltas, num_rows, num_classes, negative_weight, scale, quantization, reference,
    LENGTHS: tl.constexpr, JOBS: tl.constexpr, T: tl.constexpr, MULTI_HOT: tl.constexpr, ONE_HOT: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, jobs)."""
    for j in tl.static_range(len(JOBS) // 4):
        if tl.program_id(1) == j:
            _rows(
                u, centers, labels, values, deltas, num_rows, num_classes, negative_weight, scale, quantization,
                reference, JOBS[4 * j], JOBS[4 * j + 1], JOBS[4 * j + 2], JOBS[4 * j + 3], LENGTHS, T, MULTI_HOT,
                ONE_HOT, PRECISION, ROWS, CLASSES, BITS,
            )  # fmt: skip


def launch(
    u: torch.Tensor,
    centers: torch.Tensor,
    labels: torch.Tensor,
    lengths,
    negative_weight: float,
    scale: float,
    quantization: float,
    values: torch.Tensor,
    deltas: torch.Tensor,
    *,
    reference: float = 0.0,
    one_hot: bool = False,
) -> None:
    """Fill `values` (CONFIG.row_tiles(N), m), whose sum over the rows is the losses, and `deltas` (N, T).

    The loss is scale * sum of -[y log p + negative_weight (1 - y) log(1 - p)] + quantization * mean (|u| - 1)^2.
    u (N, L) and centers (C, sum of lengths) float32 contiguous; labels int64 ids or multi-hot rows; logits are
    sqrt(reference) cos(u, centre) (0: sqrt(b)); `one_hot` asserts that every multi-hot row has one class.
    """
    lengths, labels, reference = tiles.check_lengths(lengths), labels.contiguous(), tiles.check_reference(reference)
    if reference > MAX_REFERENCE:
        raise ValueError(f"reference: the kernel takes at most {MAX_REFERENCE}, got {reference}")
    n, total = u.shape[0], sum(lengths)
    jobs = tiles.jobs(lengths, CONFIG.width)
    softmax_kernel[(CONFIG.row_tiles(n), len(jobs) // 4)](
        u, centers, as_bytes(labels), values, deltas, n, centers.shape[0], float(negative_weight), float(scale),
        float(quantization), reference, LENGTHS=lengths, JOBS=jobs, T=total, MULTI_HOT=labels.ndim == 2,
        ONE_HOT=one_hot and labels.ndim == 2, PRECISION=tiles.dot_precision(), ROWS=CONFIG.rows,
        CLASSES=CONFIG.columns, BITS=CONFIG.bits,
        **CONFIG.options(), **launch_options(u.device.type),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    scalars = dict.fromkeys(("negative_weight", "scale", "quantization", "reference"), "fp32")
    made = []
    for form, labels in (("ids", "*i64"), ("multi-hot", "*fp32")):
        for precision in tiles.PRECISIONS:
            signature = {
                "u": "*fp32", "centers": "*fp32", "labels": labels, "values": "*fp32", "deltas": "*fp32",
                "num_rows": "i32", "num_classes": "i32", **scalars,
            }  # fmt: skip
            constants = {
                "LENGTHS": lengths, "JOBS": tiles.jobs(lengths, CONFIG.width), "T": sum(lengths),
                "MULTI_HOT": form != "ids", "ONE_HOT": False, "PRECISION": precision, "ROWS": CONFIG.rows,
                "CLASSES": CONFIG.columns, "BITS": CONFIG.bits,
            }  # fmt: skip
            options = {**CONFIG.options(), **launch_options("cuda")}
            made.append((f"{form}/{precision}", softmax_kernel, signature, constants, options))
    return made
