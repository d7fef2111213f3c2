"""Centre softmax (MDSH, SHCIR, OrthoHash): every length's likelihood over the classes and its gradient.

One launch.

A program owns a tile of rows at one length (or a slice of a long one's gradient) and goes through the classes
three times: the largest logit and the log of the sum of the others, which also gives log(1 - p) of the likeliest
class without cancellation; the value and the sum of the slopes; the gradient. Logits are computed again each time,
so any number of classes is served and nothing of size rows x classes leaves the program.
Operations per row, class and bit: four multiply-adds. Bytes: the centres once a row tile (from L2).
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles
from .device import penalties
from .device.arithmetic import cosine_and_sine, dot, inverse_norm, largest, load_tile, log1m, log_add_exp, zeros
from .device.classes import present

CONFIG = tiles.Tiles(rows=16, columns=32, bits=32, width=128, warps=8, stages=1)
LOWEST = tl.constexpr(-1e30)
# Logits lie within +-sqrt(b), or +-sqrt(reference): two may be 64 apart, and exp(-64) is still a normal number.
MAX_REFERENCE = 1024
# likelihood: c[0] is the weight of log(1 - p). The others take -log p alone, at its mean over a row's classes, whose
# cosines count c[0] less ("cosine"), or whose angles c[0] more ("angle").
FUNCTIONS = ("likelihood", "cosine", "angle")


class Shape(NamedTuple):
    """What is fixed when the kernel is compiled; a tile's columns are classes."""

    lengths: tuple[int, ...]
    total: int
    jobs: tuple[tiles.Job, ...]
    tiles: tiles.Tiles
    function: str
    multi: bool
    one_hot: bool  # assert that every multi-hot row has one class
    precision: str
    weighed: bool = False  # rows have weights
    soft: bool = False  # labels are weights, not zeros and ones


@cache
def shape(lengths, tile, function, multi, one_hot, precision, weighed=False, soft=False) -> Shape:
    return Shape(
        lengths, sum(lengths), tiles.jobs(lengths, tile.width), tile, function, multi, one_hot and multi, precision,
        weighed, soft,
    )  # fmt: skip


@triton.jit
def _logits(
    u, centers, inverse, first_row, start, num_rows, num_classes, JOB: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    """inverse <u, centre> of a tile of rows and classes; very low outside the classes."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    PRECISION: tl.constexpr = SHAPE.precision
    product = zeros(ROWS, COLUMNS)
    for first in range(0, B, SHAPE.tiles.bits):
        bits = first + tl.arange(0, SHAPE.tiles.bits)
        x = load_tile(u, first_row, num_rows, bits, B, ROWS, SHAPE.lengths[-1])
        c = load_tile(centers + JOB.offset, start, num_classes, bits, B, COLUMNS, SHAPE.total)
        product = dot(x, tl.trans(c), product, PRECISION)
    classes = start + tl.arange(0, COLUMNS)
    return tl.where(classes[None, :] < num_classes, product * inverse[:, None], LOWEST)


@triton.jit
def _with_margin(logits, y, sharpness, margin, SHAPE: tl.constexpr):
    """Logits sharpness * cosine, those of a row's own classes with the margin; and the derivative in the logits.

    margin: itself, its cosine and its sine (taken on the host, but where y is soft).
    """
    if SHAPE.function == "cosine":
        return logits - y * (sharpness * margin[0]), logits * 0 + 1
    else:
        cosine = largest(logits / sharpness, -1.0)  # outside the classes logits are very low
        square = (1 - cosine) * (1 + cosine)
        sine = tl.sqrt_rn(largest(square, 1e-4))
        along, across = margin[1], margin[2]
        if SHAPE.soft:
            along, across = cosine_and_sine(y * margin[0])
        turned = sharpness * (cosine * along - sine * across)
        slope = along + tl.where(square > 1e-4, across * cosine / sine, 0.0)
        return tl.where(y > 0, turned, logits), tl.where(y > 0, slope, 1.0)


@triton.jit
def _terms(
    u, centers, labels, found, first_row, start, num_rows, num_classes, constant, sharp, JOB: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """Of a tile of rows and classes: logits without margin, the slope of those with it, y, the weight of
    log(1 - p), log p, p, log(1 - p), whether likeliest.

    found: what the first pass gave, (inverse, top, total, rest).
    """
    inverse, top, total, rest = found
    logits = _logits(u, centers, inverse, first_row, start, num_rows, num_classes, JOB, SHAPE)
    y = present(labels, first_row, start, num_rows, num_classes, SHAPE)
    shifted = logits
    slope = logits * 0 + 1
    negative_weight = constant[0]
    if SHAPE.function != "likelihood":
        shifted, slope = _with_margin(logits, y, sharp, constant, SHAPE)
        negative_weight = 0.0
    classes = start + tl.arange(0, SHAPE.tiles.columns)
    is_top = classes[None, :] == top[:, None]
    log_p = shifted - total[:, None]
    p = tl.exp(log_p)
    log_rest = tl.where(is_top, (rest - total)[:, None], log1m(p))
    absent = tl.where(classes[None, :] < num_classes, negative_weight * (1 - y), 0.0)
    return logits, slope, y, absent, log_p, p, log_rest, is_top


@triton.jit
def _slope(y, absent, log_p, log_rest):
    """Derivative of the loss with respect to the log-probability, log(1 - p) taken along."""
    return absent * tl.exp(tl.where(absent > 0, log_p - log_rest, 0.0)) - y


@triton.jit
def _likeliest(
    u, centers, labels, inverse, first_row, num_rows, num_classes, margin, sharp, JOB: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """Every row's class of the largest logit, the log of the sum over all classes, and over all but that one."""
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    best = tl.full((ROWS,), LOWEST, tl.float32)
    rest = tl.full((ROWS,), LOWEST, tl.float32)
    top = tl.zeros((ROWS,), tl.int32)
    for begin in range(0, num_classes, COLUMNS):
        start = first_row * 0 + begin
        logits = _logits(u, centers, inverse, first_row, start, num_rows, num_classes, JOB, SHAPE)
        if SHAPE.function != "likelihood":
            y = present(labels, first_row, start, num_rows, num_classes, SHAPE)
            logits, _ = _with_margin(logits, y, sharp, margin, SHAPE)
        here = tl.max(logits, axis=1)
        at = tl.argmax(logits, axis=1)
        places = tl.arange(0, COLUMNS)
        lower = tl.where(places[None, :] == at[:, None], 0.0, tl.exp(logits - here[:, None]))
        sums = tl.sum(lower, axis=1)
        lower_log = tl.where(sums > 0, here + tl.log(tl.maximum(sums, 1e-30)), LOWEST)
        rest = log_add_exp(log_add_exp(rest, lower_log), tl.minimum(best, here))
        top = tl.where(here > best, begin + at, top)
        best = tl.maximum(best, here)
    return top, log_add_exp(best, rest), rest


@triton.jit
def _job(
    u, centers, labels, weights, values, deltas, num_rows, num_classes, c, J: tl.constexpr, SHAPE: tl.constexpr
):  # fmt: skip
    weight, scale, quantization, reference, cosine, sine = c
    constant = (weight, cosine, sine)
    JOB: tl.constexpr = SHAPE.jobs[J]
    PRECISION: tl.constexpr = SHAPE.precision
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    tile = tl.program_id(0).to(tl.int64)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < num_rows
    penalty, squares = penalties.row_sums(u, first_row, num_rows, B, "square", L, ROWS, SHAPE.tiles.bits)
    plain = inverse_norm(squares)
    sharpness = tl.sqrt_rn(tl.where(reference > 0, reference / B, 1.0))
    inverse = sharpness * plain
    sharp = sharpness * tl.sqrt_rn(B * 1.0)
    top, total, rest = _likeliest(
        u, centers, labels, inverse, first_row, num_rows, num_classes, constant, sharp, JOB, SHAPE
    )
    first_pass = (inverse, top, total, rest)

    value = tl.zeros((ROWS,), tl.float32)
    others = tl.zeros((ROWS,), tl.float32)  # sum of the slopes of all classes but the likeliest
    highest = tl.zeros((ROWS,), tl.float32)
    present_sums = zeros(ROWS, COLUMNS)  # added up after the loop: Triton 3.6 fails on a sum of float32 labels in it
    for begin in range(0, num_classes, COLUMNS):
        _, _, y, absent, log_p, p, log_rest, is_top = _terms(
            u, centers, labels, first_pass, first_row, tile * 0 + begin, num_rows, num_classes, constant, sharp, JOB,
            SHAPE,
        )  # fmt: skip
        value -= tl.sum(y * tl.where(y > 0, log_p, 0.0) + absent * log_rest, axis=1)
        slope = _slope(y, absent, log_p, log_rest)
        others += tl.sum(tl.where(is_top, 0.0, slope), axis=1)
        highest += tl.sum(tl.where(is_top, slope, 0.0), axis=1)
        present_sums += y
    number = tl.sum(present_sums, axis=1)
    if SHAPE.one_hot:
        tl.device_assert((number == 1) | (rows >= num_rows), "labels: expected exactly one class in every row")

    share = scale + number * 0
    if SHAPE.function != "likelihood":
        if SHAPE.soft:
            share = scale / tl.where(number > 0, number, 1.0)
        else:
            share = scale / largest(number, 1.0)
    size = num_rows * 1.0
    spread = quantization / size + number * 0
    if SHAPE.weighed:
        weight = tl.load(weights + rows, mask=inside, other=0.0)
        share *= weight
        spread *= weight
    along = tl.zeros((ROWS,), tl.float32)
    found = zeros(ROWS, JOB.width)
    bits = JOB.first + tl.arange(0, JOB.width)
    for begin in range(0, num_classes, COLUMNS):
        start = tile * 0 + begin
        known = (start + tl.arange(0, COLUMNS))[None, :] < num_classes
        logits, bend, y, absent, log_p, p, log_rest, is_top = _terms(
            u, centers, labels, first_pass, first_row, start, num_rows, num_classes, constant, sharp, JOB, SHAPE
        )
        # For the likeliest class the plain form, slope - p * sum(slopes), would cancel.
        own = absent * p - y * tl.exp(log_rest) - p * others[:, None]
        slope = tl.where(is_top, own, _slope(y, absent, log_p, log_rest) - p * (others + highest)[:, None])
        slope = tl.where(known, slope * bend, 0.0)
        along += tl.sum(tl.where(known, slope * logits, 0.0), axis=1)
        center = load_tile(centers + JOB.offset, start, num_classes, bits, B, COLUMNS, SHAPE.total)
        found = dot(slope, center, found, PRECISION)

    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L)
    found = (share * inverse)[:, None] * (found - (along / sharpness)[:, None] * (x * plain[:, None]))
    found += spread[:, None] * penalties.slope(x, 0.0, 0.0, B * 1.0, c, "square")
    mask = inside[:, None] & (bits[None, :] < B)
    tl.store(deltas + rows[:, None] * SHAPE.total + JOB.offset + bits[None, :], found, mask=mask)
    if JOB.first == 0:
        value = share * value + spread * (penalty / B)
        tl.store(values + tile * len(SHAPE.lengths) + JOB.k, tl.sum(tl.where(inside, value, 0.0)))


@triton.jit(do_not_specialize=["num_rows"])
def softmax_kernel(
    u, centers, labels, values, deltas, num_rows, num_classes, c, SHAPE: tl.constexpr, weights=None
):  # fmt: skip
    """Grid (row tiles, jobs); c = (constant, scale, quantization, reference, cos constant, sin constant)."""
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(1) == j:
            _job(u, centers, labels, weights, values, deltas, num_rows, num_classes, c, j, SHAPE)


def launch(
    u: torch.Tensor,
    centers: torch.Tensor,
    labels: torch.Tensor,
    lengths,
    function: str,
    constant: float,
    scale: float,
    quantization: float,
    values: torch.Tensor,
    deltas: torch.Tensor,
    *,
    reference: float = 0.0,
    one_hot: bool = False,
    weights: torch.Tensor | None = None,
    soft: bool = False,
) -> None:
    """Fill `values` (CONFIG.row_tiles(N), m), whose sum over the rows is the losses, and `deltas` (N, T).

    The loss is scale * sum of a function of the rows (of `FUNCTIONS`) + quantization * mean (|u| - 1)^2, the function
    "likelihood" being -[y log p + constant (1 - y) log(1 - p)], summed over the classes.
    u (N, L) and centers (C, sum of lengths) float32 contiguous; labels int64 ids or multi-hot rows; logits are
    sqrt(reference) cos(u, centre) (0: sqrt(b)); `one_hot` asserts that every multi-hot row has one class.
    weights (N,): how much each row counts, or None for 1; `soft`: labels are rows of weights.
    """
    lengths, labels, reference = tiles.check_lengths(lengths), labels.contiguous(), tiles.check_reference(reference)
    if reference > MAX_REFERENCE:
        raise ValueError(f"reference: the kernel takes at most {MAX_REFERENCE}, got {reference}")
    if too_sharp(function, (constant,), reference):
        raise ValueError(f"margin: the kernel takes logits at most 64 apart, got a margin of {constant}")
    kind = (labels.ndim == 2, one_hot, tiles.dot_precision(), weights is not None, soft)
    fixed, given = shape(lengths, CONFIG, function, *kind), {} if weights is None else {"weights": weights}
    turn = (math.cos(constant), math.sin(constant))
    c = (float(constant), float(scale), float(quantization), reference, *turn)
    softmax_kernel[(CONFIG.row_tiles(u.shape[0]), len(fixed.jobs))](
        u, centers, tiles.as_bytes(labels), values, deltas, u.shape[0], centers.shape[0], c, SHAPE=fixed,
        **given, **CONFIG.options(), **tiles.launch_options(u.device.type),
    )  # fmt: skip


def too_sharp(function: str, constants, reference: float) -> bool:
    """Whether a margin takes logits too far apart."""
    return function == "cosine" and (2 + abs(constants[0])) * reference**0.5 > 2 * MAX_REFERENCE**0.5


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    signature = {
        **dict.fromkeys(("u", "centers", "values", "deltas"), "*fp32"), "num_rows": "i32", "num_classes": "i32",
        "c": ("fp32",) * 6,
    }  # fmt: skip
    options = {**CONFIG.options(), **tiles.launch_options("cuda")}
    return [
        (
            f"{'' if function == 'likelihood' else function + '/'}{form}{'/weighed' * weighed}/{precision}",
            softmax_kernel, {**signature, "labels": labels, **({"weights": "*fp32"} if weighed else {})},
            {
                "SHAPE": shape(
                    lengths, CONFIG, function, form != "ids", form == "multi-hot", precision, weighed, form == "soft"
                )
            },
            options,
        )
        for function in FUNCTIONS
        for form, labels, weighed in (
            ("ids", "*i64", False), ("multi-hot", "*fp32", False), ("ids", "*i64", True), ("multi-hot", "*u8", True),
            ("soft", "*fp32", True),
        )
        for precision in tiles.PRECISIONS
    ]  # fmt: skip
