"""Point-wise centre losses: every length's loss and gradient of one tile of outputs, in one pass over it.

A program owns a tile of outputs at all lengths. One launch, or none: the projection takes `tile_losses` of a tile
that it has finished. Bytes: outputs and labels once, deltas once.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tiles
from .device.arithmetic import largest, log_of_sum, sign, zeros


@triton.jit
def csq(u, center, c0):
    """Cross-entropy of tanh(u) with the centre plus c0 * (|tanh u| - 1)^2, and the derivative in u."""
    e = tl.exp(-2 * tl.abs(u))
    one = 1 + e
    x = -2 * u * center
    sigmoid = tl.where(x >= 0, 1 / one, e / one)
    gap = 2 * e / one  # 1 - |tanh u|
    loss = tl.maximum(x, 0.0) + log_of_sum(e, one) + c0 * gap * gap
    # d|tanh u|/du = sign(u) (1 - tanh^2 u), 1 - tanh^2 u = 4 e / (1 + e)^2
    slope = -2 * center * sigmoid - c0 * gap * sign(u) * (8 * e / (one * one))
    return loss, slope


@triton.jit
def dpn(u, center, c0):
    """Hinge max(c0 - u c, 0)."""
    short = c0 - u * center
    return largest(short, 0.0), tl.where(short > 0, -center, 0.0)


@triton.jit
def dpn_ternary(u, center, c0):
    """`dpn` of u rounded to -1, 0, 1; the gradient is passed straight through."""
    return dpn(tl.where(u > c0, 1.0, tl.where(u < -c0, -1.0, 0.0 * u)), center, c0)  # NaN stays


CENTER_FUNCTIONS = {"csq": csq, "dpn": dpn, "dpn_ternary": dpn_ternary}


class Shape(NamedTuple):
    """What is fixed when a kernel that takes such a loss is compiled; a tile's depth is classes."""

    lengths: tuple[int, ...]
    total: int
    slots: int
    tiles: tiles.Tiles
    multi: bool
    weighed: bool = False  # rows have weights, and centres lie between -1 and 1


@cache
def shape(lengths, tile, multi, weighed=False) -> Shape:
    return Shape(lengths, sum(lengths), tiles.power_of_two(len(lengths), 1), tile, multi, weighed)


def config(num_rows: int, longest: int) -> tiles.Tiles:
    """At most four elements a thread: five lengths of them are in flight at once."""
    most = 32 if num_rows <= 1024 else 64
    columns = min(most, tiles.power_of_two(longest))
    return tiles.Tiles(rows=16, columns=columns, warps=8 if 16 * columns >= 1024 else 4, depth=32)


@triton.jit
def _multi_hot_centers(target, rows, columns, inside, offset, num_rows, SHAPE: tl.constexpr):
    """Sign of the sum of each row's class centres; the tie centre where it is 0."""
    labels, label_strides, centers, ties, num_classes = target
    total = zeros(SHAPE.tiles.rows, SHAPE.tiles.columns)
    for start in range(0, num_classes, SHAPE.tiles.depth):
        classes = start + tl.arange(0, SHAPE.tiles.depth)
        known = classes < num_classes
        y = tl.load(
            labels + rows[:, None] * label_strides[0] + classes[None, :].to(tl.int64) * label_strides[1],
            mask=(rows < num_rows)[:, None] & known[None, :],
            other=0,
        ).to(tl.float32)
        tl.device_assert((y == 0) | (y == 1), "labels: expected multi-hot rows of zeros and ones")
        c = tl.load(
            centers + classes[:, None].to(tl.int64) * SHAPE.total + offset + columns[None, :],
            mask=known[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        # Zeros, ones and minus ones are exact in tf32, and so are their sums in float32.
        total = tl.dot(y, c, total, input_precision="tf32")
    tie = tl.load(ties + offset + columns, mask=inside, other=1.0).to(tl.float32)
    return tl.where(total > 0, 1.0, tl.where(total < 0, -1.0, tie[None, :] + total * 0))


@triton.jit
def tile_losses(
    u, rows, columns, first_column, target, deltas, num_rows, c, FUNCTION: tl.constexpr, SHAPE: tl.constexpr,
    weights=None,
):  # fmt: skip
    """Deltas of a tile u (rows, columns) at all lengths, and the sums of its losses in slots.

    target: (labels, their strides, centers (C, T), ties (T,), C). weights (N,): where the shape is `weighed`.
    """
    labels, label_strides, centers, _, num_classes = target
    M: tl.constexpr = len(SHAPE.lengths)
    here = rows < num_rows
    if not SHAPE.multi:
        ids = tl.load(labels + rows * label_strides[0], mask=here, other=0)
        known = (ids >= 0) & (ids < num_classes)
        tl.device_assert(known, "labels: expected class ids from 0 to num_classes - 1")
    loaded = ()
    if not SHAPE.multi:  # every length's centres first: one wait for memory
        offset = 0
        for k in tl.static_range(M):
            mask = (here & known)[:, None] & (columns < SHAPE.lengths[k])[None, :]
            at = centers + ids[:, None] * SHAPE.total + offset + columns[None, :]
            loaded += (tl.load(at, mask=mask, other=1.0).to(tl.float32),)
            offset += SHAPE.lengths[k]
    row_sums = ()
    offset = 0
    for k in tl.static_range(M):  # no branches: what a loss makes of u alone is made once for all lengths
        inside = columns < SHAPE.lengths[k]
        mask = here[:, None] & inside[None, :]
        if SHAPE.multi:
            center = zeros(SHAPE.tiles.rows, SHAPE.tiles.columns)
            if first_column < SHAPE.lengths[k]:
                center = _multi_hot_centers(target, rows, columns, inside, offset, num_rows, SHAPE)
        else:
            center = loaded[k]
        if SHAPE.weighed:
            # A bit c of a centre is (1 + c) / 2 of +1 and (1 - c) / 2 of -1.
            near, near_slope = FUNCTION(u, center * 0 + 1, c[0])
            far, far_slope = FUNCTION(u, center * 0 - 1, c[0])
            weight = tl.load(weights + rows, mask=here, other=0.0)[:, None]
            loss = weight * ((0.5 + 0.5 * center) * near + (0.5 - 0.5 * center) * far)
            slope = weight * ((0.5 + 0.5 * center) * near_slope + (0.5 - 0.5 * center) * far_slope)
        else:
            loss, slope = FUNCTION(u, center, c[0])
        scale = 1.0 / num_rows / SHAPE.lengths[k]
        tl.store(deltas + rows[:, None] * SHAPE.total + offset + columns[None, :], slope * scale, mask=mask)
        row_sums += (tl.sum(tl.where(mask, loss, 0.0), 1) * scale,)
        offset += SHAPE.lengths[k]
    slots = tl.arange(0, SHAPE.slots)
    values = slots * 0.0
    for k in tl.static_range(M):
        values += tl.where(slots == k, tl.sum(row_sums[k], 0), 0.0)
    return values


@triton.jit(do_not_specialize=["num_rows", "num_classes"])  # rows with weights have each a centre of its own
def center_kernel(
    u, labels, centers, ties, values, deltas, num_rows, num_classes, label_strides, c, FUNCTION: tl.constexpr,
    SHAPE: tl.constexpr, weights=None,
):  # fmt: skip
    """Grid (row tiles, column tiles)."""
    L: tl.constexpr = SHAPE.lengths[-1]
    M: tl.constexpr = len(SHAPE.lengths)
    rows = tl.program_id(0).to(tl.int64) * SHAPE.tiles.rows + tl.arange(0, SHAPE.tiles.rows)
    first_column = tl.program_id(1) * SHAPE.tiles.columns
    columns = first_column + tl.arange(0, SHAPE.tiles.columns)
    mask = (rows < num_rows)[:, None] & (columns < L)[None, :]
    x = tl.load(u + rows[:, None] * L + columns[None, :], mask=mask, other=0.0)
    target = (labels, label_strides, centers, ties, num_classes)
    sums = tile_losses(x, rows, columns, first_column, target, deltas, num_rows, c, FUNCTION, SHAPE, weights)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    slots = tl.arange(0, SHAPE.slots)
    tl.store(values + program * M + slots, sums, mask=slots < M)


def num_programs(num_rows: int, longest: int) -> int:
    """Rows of the partial sums that a launch gives."""
    tile = config(num_rows, longest)
    return tile.row_tiles(num_rows) * -(-longest // tile.columns)


class Loss(NamedTuple):
    """A loss of the outputs, and where its values and deltas go.

    Attributes:
        function: one of `CENTER_FUNCTIONS`; constants: one number.
        labels: int64 ids or multi-hot rows.
        centers, ties: (C, T) contiguous and (T,) of +-1.
        values: (programs, m), whose sum over the rows is the losses. deltas: (N, T).
        weights: (N,) of the rows, or None for 1; `launch` alone takes them, and then centres from -1 to 1.
    """

    function: str
    constants: tuple[float, ...]
    labels: torch.Tensor
    centers: torch.Tensor
    ties: torch.Tensor
    lengths: tuple[int, ...]
    values: torch.Tensor
    deltas: torch.Tensor
    weights: torch.Tensor | None = None

    def strides(self) -> tuple[int, int]:
        """Of the labels."""
        return self.labels.stride() if self.labels.ndim == 2 else (self.labels.stride(0), 1)

    def constexprs(self, tile) -> tuple:
        """FUNCTION and the shape, taken of such tiles."""
        return CENTER_FUNCTIONS[self.function], shape(
            tuple(self.lengths), tile, self.labels.ndim == 2, self.weights is not None
        )


def launch(u: torch.Tensor, loss: Loss) -> None:
    """Fill what `loss` says, values for `num_programs`; u (N, L) contiguous."""
    n, longest = u.shape
    tile = config(n, longest)
    function, fixed = loss.constexprs(tile)
    center_kernel[(tile.row_tiles(n), triton.cdiv(longest, tile.columns))](
        u, tiles.as_bytes(loss.labels), loss.centers, loss.ties.contiguous(), loss.values, loss.deltas, n,
        loss.centers.shape[0], loss.strides(), tuple(loss.constants), FUNCTION=function, SHAPE=fixed,
        **({} if loss.weights is None else {"weights": loss.weights}), **tile.options(),
        **tiles.launch_options(u.device.type),
    )  # fmt: skip


def variants(lengths=(8, 16, 32, 64, 128)):
    """What ships, for ahead-of-time compilation: (name, kernel, signature, constants, options)."""
    signature = {
        **dict.fromkeys(("u", "centers", "ties", "values", "deltas"), "*fp32"), "num_rows": "i32",
        "num_classes": "i32", "c": ("fp32",),
    }  # fmt: skip
    found = []
    for name, function in CENTER_FUNCTIONS.items():
        for rows in (64, 32768):
            for multi, labels, stride in ((False, "*i64", "1"), (True, "*fp32", "i32")):
                tile = config(rows, 128)
                types = {**signature, "labels": labels, "label_strides": (stride, "1")}
                constants = {"FUNCTION": function, "SHAPE": shape(lengths, tile, multi)}
                options = {**tile.options(), **tiles.launch_options("cuda")}
                made = f"{name}/{'multi-hot' if multi else 'ids'}/n{rows}"
                found.append((made, center_kernel, types, constants, options))
                if not multi:  # rows with weights have each its own centre
                    constants = {**constants, "SHAPE": shape(lengths, tile, multi, True)}
                    types = {**types, "weights": "*fp32"}
                    found.append((f"{made}/weighed", center_kernel, types, constants, options))
    return found
