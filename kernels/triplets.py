"""Triplet likelihood (DTSH): all positives against all negatives of every anchor, at every length, in two launches.

The first launch gives dL/d theta, an (m, N, N) workspace: a program takes one anchor, a tile of rows j and one
length, and meets j with every row o of the other kind (positive with negatives, negative with positives), so the
N^3 terms are formed and summed in registers and each entry is written once. The second turns it into dL/du,
both orders (ij and ji) at once, with the penalty and the values.
Where rows have weights and S is given, j meets every row twice: as a positive, and as a negative.
Operations: m N^3 softplus with their slope. Bytes: 8 m N^2 for the workspace, the rows from L2.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles
from .device import penalties
from .device.arithmetic import dot, load_tile, sigmoid, softplus, within, zeros
from .similarity import comparable

ANCHORS = tiles.Tiles(rows=64, columns=64, bits=32, warps=8)
CONFIG = tiles.Tiles(rows=16, columns=32, bits=16, width=64, warps=4, stages=1)


class Shape(NamedTuple):
    """What is fixed when a kernel is compiled; of the second, `jobs` and `precision`, of the first, `multi`.

    weighed: rows have weights, and in place of labels S is given.
    """

    lengths: tuple[int, ...]
    total: int
    tiles: tiles.Tiles
    multi: bool = False
    jobs: tuple[tiles.Job, ...] = ()
    precision: str = ""
    weighed: bool = False


@cache
def anchor_shape(lengths, tile, multi, weighed=False) -> Shape:
    return Shape(lengths, sum(lengths), tile, multi=multi, weighed=weighed)


@cache
def gradient_shape(lengths, tile, precision, weighed=False) -> Shape:
    jobs = tiles.jobs(lengths, tile.width)
    return Shape(lengths, sum(lengths), tile, jobs=jobs, precision=precision, weighed=weighed)


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
def _amounts(grades, weights, anchor, others, num_rows):
    """What the rows `others` count as positives and as negatives of the row `anchor`; grades: S (N, N)."""
    inside = others < num_rows
    grade = tl.load(grades + anchor * num_rows + others, mask=inside, other=0.0)
    weight = tl.load(weights + others, mask=inside, other=0.0)
    return grade * weight, (1 - grade) * weight


@triton.jit
def _met(theta, other, side, margin, low, high):
    """-t of rows with others, clamped, and its slope: side is 1 where the row is the positive, else -1."""
    flipped = side[:, None] * (other[None, :] - theta[:, None]) + margin
    inside = (flipped >= -high) & (flipped <= -low)
    flipped = within(flipped, -high, -low)
    return flipped, tl.where(inside, sigmoid(flipped), 0.0)


@triton.jit
def _theta(u, anchor, first, num_rows, B: tl.constexpr, ROWS: tl.constexpr, SHAPE: tl.constexpr):
    """Inner products of the row `anchor` with ROWS rows from `first`, over B bits."""
    L: tl.constexpr = SHAPE.lengths[-1]
    theta = tl.zeros((ROWS,), tl.float32)
    for start in range(0, B, SHAPE.tiles.bits):
        bits = start + tl.arange(0, SHAPE.tiles.bits)
        x = tl.load(u + anchor * L + bits, mask=bits < B, other=0.0)
        theta += tl.sum(load_tile(u, first, num_rows, bits, B, ROWS, L) * x[None, :], axis=1)
    return theta


@triton.jit
def _anchor(u, labels, weights, slopes, values, usable, num_rows, words, c, K: tl.constexpr, SHAPE: tl.constexpr):
    margin, low, high, reference = c
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    M: tl.constexpr = len(SHAPE.lengths)
    B: tl.constexpr = SHAPE.lengths[K]
    anchor = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * ROWS
    rows = first + tl.arange(0, ROWS)
    ratio = tl.where(reference > 0, reference / B, 1.0)
    theta = ratio * _theta(u, anchor, first, num_rows, B, ROWS, SHAPE)
    lost = tl.zeros((ROWS,), tl.float32)
    won = tl.zeros((ROWS,), tl.float32)
    loss = tl.zeros((ROWS,), tl.float32)
    positives = tl.zeros((COLUMNS,), tl.float32)
    negatives = tl.zeros((COLUMNS,), tl.float32)
    if SHAPE.weighed:
        near, far = _amounts(labels, weights, anchor, rows, num_rows)
        side = near * 0 + 1
    else:
        positive = _like_anchor(labels, anchor, rows, num_rows, words, SHAPE.multi)
        side = tl.where(positive, 1.0, -1.0)
    for start in range(0, num_rows, COLUMNS):
        others = anchor * 0 + start + tl.arange(0, COLUMNS)
        other = ratio * _theta(u, anchor, anchor * 0 + start, num_rows, B, COLUMNS, SHAPE)
        flipped, slope = _met(theta, other, side, margin, low, high)
        if SHAPE.weighed:
            like, unlike = _amounts(labels, weights, anchor, others, num_rows)
            lost += tl.sum(unlike[None, :] * slope, axis=1)
            loss += tl.sum(unlike[None, :] * softplus(flipped), axis=1)
            _, slope = _met(theta, other, -side, margin, low, high)
            won += tl.sum(like[None, :] * slope, axis=1)
            positives += like
            negatives += unlike
        else:
            like = _like_anchor(labels, anchor, others, num_rows, words, SHAPE.multi)
            pair = (positive[:, None] != like[None, :]) & (others < num_rows)[None, :]
            lost += tl.sum(tl.where(pair, slope, 0.0), axis=1)
            loss += tl.sum(tl.where(pair & positive[:, None], softplus(flipped), 0.0), axis=1)
            positives += like.to(tl.float32)
    number = tl.sum(positives)
    pairs = number * (num_rows - number)
    counted = tl.where(pairs > 0, 1.0, 0.0)
    if SHAPE.weighed:
        pairs = number * tl.sum(negatives)
        counted = tl.where(pairs > 0, tl.load(weights + anchor), 0.0)
        found = far * won - near * lost
        loss = near * loss
    else:
        found = -side * lost
    scale = counted / tl.where(pairs > 0, pairs, 1.0)
    place = ((anchor * 0 + K) * num_rows + anchor) * num_rows + rows
    tl.store(slopes + place, found * (ratio * scale), mask=rows < num_rows)
    part = anchor * tl.num_programs(1) + tl.program_id(1)
    tl.store(values + part * M + K, tl.sum(loss) * scale)
    if K == 0:
        tl.store(usable + anchor, counted)


@triton.jit(do_not_specialize=["num_rows"])
def anchor_kernel(
    u, labels, slopes, values, usable, num_rows, words, c, SHAPE: tl.constexpr, weights=None
):  # fmt: skip
    """Grid (anchors, tiles of rows, m); c = (margin, low, high, reference); usable: what each anchor counts."""
    for k in tl.static_range(len(SHAPE.lengths)):
        if tl.program_id(2) == k:
            _anchor(u, labels, weights, slopes, values, usable, num_rows, words, c, k, SHAPE)


@triton.jit
def _gradient(
    u, weights, slopes, values, usable, out_values, deltas, num_rows, anchor_tiles, quantization, J: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    JOB: tl.constexpr = SHAPE.jobs[J]
    PRECISION: tl.constexpr = SHAPE.precision
    ROWS: tl.constexpr = SHAPE.tiles.rows
    COLUMNS: tl.constexpr = SHAPE.tiles.columns
    M: tl.constexpr = len(SHAPE.lengths)
    L: tl.constexpr = SHAPE.lengths[-1]
    B: tl.constexpr = SHAPE.lengths[JOB.k]
    tile = tl.program_id(0).to(tl.int64)
    first_row = tile * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < num_rows
    bits = JOB.first + tl.arange(0, JOB.width)
    counted = tl.zeros((COLUMNS,), tl.float32)
    found = zeros(ROWS, JOB.width)
    for start in range(0, num_rows, COLUMNS):
        columns = tile * 0 + start + tl.arange(0, COLUMNS)
        known = columns < num_rows
        counted += tl.load(usable + columns, mask=known, other=0.0)
        mask = inside[:, None] & known[None, :]
        row_place = ((tile * 0 + JOB.k) * num_rows + rows) * num_rows
        column_place = ((tile * 0 + JOB.k) * num_rows + columns) * num_rows
        slope = tl.load(slopes + row_place[:, None] + columns[None, :], mask=mask, other=0.0)
        slope += tl.load(slopes + column_place[None, :] + rows[:, None], mask=mask, other=0.0)
        y = load_tile(u, tile * 0 + start, num_rows, bits, B, COLUMNS, L)
        found = dot(slope, y, found, PRECISION)
    total = tl.sum(counted)
    share = tl.where(total > 0, 1 / tl.where(total > 0, total, 1.0), 0.0)
    weight = quantization / (num_rows * 1.0) + tl.zeros((ROWS,), tl.float32)
    if SHAPE.weighed:
        weight *= tl.load(weights + rows, mask=inside, other=0.0)
    x = load_tile(u, first_row, num_rows, bits, B, ROWS, L)
    found = share * found + weight[:, None] * penalties.slope(x, 0.0, 0.0, B * 1.0, (0.0, 0.0), "sign")
    mask = inside[:, None] & (bits[None, :] < B)
    tl.store(deltas + rows[:, None] * SHAPE.total + JOB.offset + bits[None, :], found, mask=mask)
    if JOB.first == 0:
        penalty, _ = penalties.row_sums(u, first_row, num_rows, B, "sign", L, ROWS, SHAPE.tiles.bits)
        value = tl.zeros((ROWS,), tl.float32)
        for t in range(anchor_tiles):
            value += tl.load(values + (rows * anchor_tiles + t) * M + JOB.k, mask=inside, other=0.0)
        value = share * value + weight * (penalty / B)
        tl.store(out_values + tile * M + JOB.k, tl.sum(tl.where(inside, value, 0.0)))


@triton.jit(do_not_specialize=["num_rows", "anchor_tiles"])
def gradient_kernel(
    u, slopes, values, usable, out_values, deltas, num_rows, anchor_tiles, quantization, SHAPE: tl.constexpr,
    weights=None,
):  # fmt: skip
    """Grid (row tiles, jobs)."""
    for j in tl.static_range(len(SHAPE.jobs)):
        if tl.program_id(1) == j:
            _gradient(
                u, weights, slopes, values, usable, out_values, deltas, num_rows, anchor_tiles, quantization, j,
                SHAPE,
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
    given: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Fill `values` (CONFIG.row_tiles(N), m), whose sum over the rows is the losses, and `deltas` (N, T).

    u (N, L) float32 contiguous, labels ids or multi-hot rows; t is clamped to [low, high]. Inner products of b
    bits count reference / b times (0: as they are). Takes 4 m N^2 bytes.
    given: (S (N, N), weights of the rows (N,)), float32 and contiguous, in place of labels.
    """
    lengths, reference = tiles.check_lengths(lengths), tiles.check_reference(reference)
    n, m = u.shape[0], len(lengths)
    weighed = given is not None
    compared, words = (given[0], 0) if weighed else comparable(labels, labels)[::2]
    more = {"weights": given[1]} if weighed else {}
    anchor_tiles = ANCHORS.row_tiles(n)
    slopes, sums, usable = u.new_empty(m, n, n), u.new_empty(n * anchor_tiles, m), u.new_empty(n)
    c = (float(margin), float(low), float(high), reference)
    anchor_kernel[(n, anchor_tiles, m)](
        u, compared, slopes, sums, usable, n, words, c,
        SHAPE=anchor_shape(lengths, ANCHORS, words > 0, weighed), **more, **ANCHORS.options(),
    )  # fmt: skip
    fixed = gradient_shape(lengths, CONFIG, tiles.dot_precision(), weighed)
    gradient_kernel[(CONFIG.row_tiles(n), len(fixed.jobs))](
        u, slopes, sums, usable, values, deltas, n, anchor_tiles, float(quantization), SHAPE=fixed, **more,
        **CONFIG.options(),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    shared = {**dict.fromkeys(("u", "slopes", "values", "usable"), "*fp32"), "num_rows": "i32"}
    anchors = {**shared, "words": "i32", "c": ("fp32",) * 4}
    gradient = {
        **shared, "out_values": "*fp32", "deltas": "*fp32", "anchor_tiles": "i32", "quantization": "fp32",
    }  # fmt: skip
    weights = {"weights": "*fp32"}
    made = []
    for form, labels in (("ids", "*i64"), ("multi-hot", "*i32"), ("given", "*fp32")):
        weighed = form == "given"
        fixed = {"SHAPE": anchor_shape(lengths, ANCHORS, form == "multi-hot", weighed)}
        types = {**anchors, "labels": labels, **(weights if weighed else {})}
        made.append((f"anchors/{form}", anchor_kernel, types, fixed, ANCHORS.options()))
    for weighed in (False, True):
        for precision in tiles.PRECISIONS:
            fixed = {"SHAPE": gradient_shape(lengths, CONFIG, precision, weighed)}
            types = {**gradient, **(weights if weighed else {})}
            name = f"gradient/{precision}" + "/given" * weighed
            made.append((name, gradient_kernel, types, fixed, CONFIG.options()))
    return made
