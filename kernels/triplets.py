"""Triplet likelihood (DTSH): all positives against all negatives of every anchor, at every length, in two launches.

The first launch gives dL/d theta, an (m, N, N) workspace: a program takes one anchor, a tile of rows j and one
length, and meets j with every row o of the other kind (positive with negatives, negative with positives), so the
N^3 terms are formed and summed in registers and each entry is written once. The second turns it into dL/du,
both orders (ij and ji) at once, with the penalty and the values.
Operations: m N^3 softplus with their slope. Bytes: 8 m N^2 for the workspace, the rows from L2.
"""

import torch
import triton
import triton.language as tl

from . import penalties, tiles
from .arithmetic import dot, load_tile, sigmoid, softplus, zeros
from .similarity import comparable

ANCHOR_TILE, ANCHOR_BITS = 64, 32
ANCHOR_OPTIONS = {"num_warps": 8, "num_stages": 2, "maxnreg": 255}
CONFIG = tiles.Tiles(rows=16, columns=32, bits=16, width=64, warps=4, stages=1)
SIGN_GAP = tl.constexpr(penalties.SIGN_GAP.value)


@triton.jit
def _like_anchor(labels, anchor, others, num_rows, words, MULTI: tl.constexpr):
    """Whether each of the rows `others` is similar to the row `anchor`."""
    inside = others < num_rows
    if MULTI:
        shared = others.to(tl.int32) * 0
        for w in range(words):
            shared = shared | (
                tl.load(labels + anchor * words + w) & tl.load(labels + others * words + w, mask=inside, other=0)
            )
        return (shared != 0) & inside
    else:
        return (tl.load(labels + others, mask=inside, other=0) == tl.load(labels + anchor)) & inside


@triton.jit
def _theta(
    u, anchor, first, num_rows, B: tl.constexpr, L: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    """Inner products of the row `anchor` with TILE rows from `first`, over B bits."""
    theta = tl.zeros((TILE,), tl.float32)
    for start in range(0, B, BITS):
        bits = start + tl.arange(0, BITS)
        x = tl.load(u + anchor * L + bits, mask=bits < B, other=0.0)
        theta += tl.sum(load_tile(u, first, num_rows, bits, B, TILE, L, False) * x[None, :], axis=1)
    return theta


@triton.jit
def _anchor(
    u, labels, slopes, values, usable, num_rows, words, margin, low, high, reference, K: tl.constexpr,
    LENGTHS: tl.constexpr, MULTI: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = len(LENGTHS)
    L: tl.constexpr = LENGTHS[M - 1]
    anchor = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * TILE
    rows = first + tl.arange(0, TILE)
    positive = _like_anchor(labels, anchor, rows, num_rows, words, MULTI)
    side = tl.where(positive, 1.0, -1.0)
    ratio = tl.where(reference > 0, reference / LENGTHS[K], 1.0)
    theta = ratio * _theta(u, anchor, first, num_rows, LENGTHS[K], L, TILE, BITS)
    sums = tl.zeros((TILE,), tl.float32)
    loss = tl.zeros((TILE,), tl.float32)
    positives = tl.zeros((TILE,), tl.int32)
    for start in range(0, num_rows, TILE):
        others = anchor * 0 + start + tl.arange(0, TILE)
        like = _like_anchor(labels, anchor, others, num_rows, words, MULTI)
        positives += like.to(tl.int32)
        other = ratio * _theta(u, anchor, anchor * 0 + start, num_rows, LENGTHS[K], L, TILE, BITS)
        flipped = side[:, None] * (other[None, :] - theta[:, None]) + margin  # -t
        pair = (positive[:, None] != like[None, :]) & (others < num_rows)[None, :]
        inside = (flipped >= -high) & (flipped <= -low)
        flipped = tl.minimum(tl.maximum(flipped, -high), -low)
        sums += tl.sum(tl.where(pair & inside, sigmoid(flipped), 0.0), axis=1)
        loss += tl.sum(tl.where(pair & positive[:, None], softplus(flipped), 0.0), axis=1)
    number = tl.sum(positives).to(tl.float32)
    pairs = number * (num_rows - number)
    scale = tl.where(pairs > 0, 1 / tl.maximum(pairs, 1.0), 0.0)
    place = ((anchor * 0 + K) * num_rows + anchor) * num_rows + rows
    tl.store(slopes + place, -side * sums * (ratio * scale), mask=rows < num_rows)
    part = anchor * tl.num_programs(1) + tl.program_id(1)
    tl.store(values + part * M + K, tl.sum(loss) * scale)
    if K == 0:
        tl.store(usable + anchor, (pairs > 0).to(tl.int32))


@triton.jit(do_not_specialize=["num_rows"])
def anchor_kernel(
    u, labels, slopes, values, usable, num_rows, words, margin, low, high, reference, LENGTHS: tl.constexpr,
    MULTI: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Grid (anchors, tiles of rows, m)."""
    for k in tl.static_range(len(LENGTHS)):
        if tl.program_id(2) == k:
            _anchor(
                u, labels, slopes, values, usable, num_rows, words, margin, low, high, reference, k, LENGTHS, MULTI,
                TILE, BITS,
            )  # fmt: skip


@triton.jit
def _gradient(
    u, slopes, values, usable, out_values, deltas, num_rows, anchor_tiles, quantization, K: tl.constexpr,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, OFFSET: tl.constexpr, LENGTHS: tl.constexpr, T: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = len(LENGTHS)
    L: tl.constexpr = LENGTHS[M - 1]
    B: tl.constexpr = LENGTHS[K]
    tile = tl.program_id(0).to(tl.int64)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < num_rows
    bits = FIRST + tl.arange(0, WIDTH)
    counted = tl.zeros((COLUMNS,), tl.int32)
    found = zeros(ROWS, WIDTH)
    for start in range(0, num_rows, COLUMNS):
        columns = tile * 0 + start + tl.arange(0, COLUMNS)
        known = columns < num_rows
        counted += tl.load(usable + columns, mask=known, other=0)
        mask = inside[:, None] & known[None, :]
        row_place = ((tile * 0 + K) * num_rows + rows) * num_rows
        column_place = ((tile * 0 + K) * num_rows + columns) * num_rows
        slope = tl.load(slopes + row_place[:, None] + columns[None, :], mask=mask, other=0.0)
        slope += tl.load(slopes + column_place[None, :] + rows[:, None], mask=mask, other=0.0)
        y = load_tile(u, tile * 0 + start, num_rows, bits, B, COLUMNS, L, False)
        found = dot(slope, y, found, PRECISION)
    share = 1.0 / tl.maximum(tl.sum(counted), 1).to(tl.float32)
    weight = quantization / (num_rows * 1.0)
    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L, False)
    found = share * found + weight * penalties.slope(x, 0.0, 0.0, B * 1.0, 0.0, 0.0, SIGN_GAP)
    mask = inside[:, None] & (bits[None, :] < B)
    tl.store(deltas + rows[:, None] * T + OFFSET + bits[None, :], found, mask=mask)
    if FIRST == 0:
        penalty, _ = penalties.row_sums(u, first_row, num_rows, B, SIGN_GAP, L, ROWS, BITS, False)
        value = tl.zeros((ROWS,), tl.float32)
        for t in range(anchor_tiles):
            value += tl.load(values + (rows * anchor_tiles + t) * M + K, mask=inside, other=0.0)
        value = share * value + weight * (penalty / B)
        tl.store(out_values + tile * M + K, tl.sum(tl.where(inside, value, 0.0)))


@triton.jit(do_not_specialize=["num_rows", "anchor_tiles"])
def gradient_kernel(
    u, slopes, values, usable, out_values, deltas, num_rows, anchor_tiles, quantization, LENGTHS: tl.constexpr,
    JOBS: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, jobs)."""
    for j in tl.static_range(len(JOBS) // 4):
        if tl.program_id(1) == j:
            _gradient(
                u, slopes, values, usable, out_values, deltas, num_rows, anchor_tiles, quantization, JOBS[4 * j],
                JOBS[4 * j + 1], JOBS[4 * j + 2], JOBS[4 * j + 3], LENGTHS, T, PRECISION, ROWS, COLUMNS, BITS,
            )  # fmt: skip


def launch(
    u: torch.Tensor,
    labels: torch.Tensor,
    lengths,
    margin: float,
    low: float,
    high: float,
    quantization: float,
    values: torch.Tensor,
    deltas: torch.Tensor,
    *,
    reference: float = 0.0,
) -> None:
    """Fill `values` (CONFIG.row_tiles(N), m), whose sum over the rows is the losses, and `deltas` (N, T).

    u (N, L) float32 contiguous, labels ids or multi-hot rows; t is clamped to [low, high]. Inner products of b
    bits count reference / b times (0: as they are). Takes 4 m N^2 bytes.
    """
    lengths, reference = tiles.check_lengths(lengths), tiles.check_reference(reference)
    n, m, total = u.shape[0], len(lengths), sum(lengths)
    labels, _, words = comparable(labels, labels)
    anchor_tiles = triton.cdiv(n, ANCHOR_TILE)
    slopes, sums = u.new_empty(m, n, n), u.new_empty(n * anchor_tiles, m)
    usable = u.new_empty(n, dtype=torch.int32)
    anchor_kernel[(n, anchor_tiles, m)](
        u, labels, slopes, sums, usable, n, words, float(margin), float(low), float(high), reference,
        LENGTHS=lengths, MULTI=words > 0, TILE=ANCHOR_TILE, BITS=ANCHOR_BITS, **ANCHOR_OPTIONS,
    )  # fmt: skip
    jobs = tiles.jobs(lengths, CONFIG.width)
    gradient_kernel[(CONFIG.row_tiles(n), len(jobs) // 4)](
        u, slopes, sums, usable, values, deltas, n, anchor_tiles, float(quantization), LENGTHS=lengths, JOBS=jobs,
        T=total, PRECISION=tiles.dot_precision(), ROWS=CONFIG.rows, COLUMNS=CONFIG.columns, BITS=CONFIG.bits,
        **CONFIG.options(),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    tensors = dict.fromkeys(("u", "slopes", "values"), "*fp32")
    made = []
    for form, labels in (("ids", "*i64"), ("multi-hot", "*i32")):
        signature = {
            **tensors, "labels": labels, "usable": "*i32", "num_rows": "i32", "words": "i32", "margin": "fp32",
            "low": "fp32", "high": "fp32", "reference": "fp32",
        }  # fmt: skip
        constants = {"LENGTHS": lengths, "MULTI": form != "ids", "TILE": ANCHOR_TILE, "BITS": ANCHOR_BITS}
        made.append((f"anchors/{form}", anchor_kernel, signature, constants, ANCHOR_OPTIONS))
    for precision in tiles.PRECISIONS:
        signature = {
            **tensors, "usable": "*i32", "out_values": "*fp32", "deltas": "*fp32", "num_rows": "i32",
            "anchor_tiles": "i32", "quantization": "fp32",
        }  # fmt: skip
        constants = {
            "LENGTHS": lengths, "JOBS": tiles.jobs(lengths, CONFIG.width), "T": sum(lengths), "PRECISION": precision,
            "ROWS": CONFIG.rows, "COLUMNS": CONFIG.columns, "BITS": CONFIG.bits,
        }  # fmt: skip
        options = CONFIG.options()
        made.append((f"gradient/{precision}", gradient_kernel, signature, constants, options))
    return made
