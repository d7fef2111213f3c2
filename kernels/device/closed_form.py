"""The weights in closed form from partial dots, and what a step reports: by the last program of the dots' kernels.

What other programs of the same launch wrote is read past the first-level cache (".cg"). SHAPE, of the kernel that
calls: its `lengths`, `slots` (their padded number) and `distill`.
"""

import torch
import triton
import triton.language as tl

from .arithmetic import largest
from .arrival import arrived_last


@triton.jit
def _column_totals(partial, count, slots, M: tl.constexpr):
    """Sums over the rows of partial (count, m), in slots."""
    total = slots * 0.0
    for first in range(0, count, 256):
        rows = first + tl.arange(0, 256)
        at = partial + rows[:, None].to(tl.int64) * M + slots[None, :]
        total += tl.sum(tl.load(at, mask=(rows < count)[:, None] & (slots < M)[None, :], other=0.0), 0)
    return total


@triton.jit
def _closed_form(dots, count, out, SHAPE: tl.constexpr):
    """The m weights (in slots) from partial dots (count, m, m), whose sums go to `out` (m, m).

    As `nhl_fast.head.weighting.dominance_weights`: dots that are not numbers end in every weight.
    """
    M: tl.constexpr = len(SHAPE.lengths)
    SLOTS: tl.constexpr = SHAPE.slots
    # 4,096 numbers at most at once.
    PARTS: tl.constexpr = 16 if SLOTS == 16 else 64
    ks, slots = tl.arange(0, SLOTS), tl.arange(0, SLOTS)
    upper = (ks[:, None] <= slots[None, :]) & (slots < M)[None, :]
    total = tl.zeros((SLOTS, SLOTS), tl.float32)
    for start in range(0, count, PARTS):
        p = start + tl.arange(0, PARTS)
        at = dots + p[:, None, None].to(tl.int64) * (M * M) + (ks[:, None] * M + slots[None, :])[None, :, :]
        mask = (p < count)[:, None, None] & upper[None, :, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0, cache_modifier=".cg"), 0)
    tl.store(out + ks[:, None] * M + slots[None, :], total, mask=(ks < M)[:, None] & (slots < M)[None, :])
    diagonal = tl.sum(tl.where(ks[:, None] == slots[None, :], total, 0.0), 1)
    # A norm that rounding took below zero is zero. A pair k < i has k < m - 1: its share is over at least one slot.
    share = largest(diagonal, 0.0) / tl.maximum(M - 1 - ks, 1).to(tl.float32)
    against = (ks[:, None] < slots[None, :]) & (slots < M)[None, :] & ~(total >= 0)
    bounds = tl.where(against, share[:, None] / tl.where(against, tl.abs(total), 1.0), 0.0)
    lost = tl.max(tl.max((bounds != bounds).to(tl.int32), 1), 0) > 0  # minima drop NaN
    bounds = tl.minimum(bounds, 3e38)  # finite, so that 0 times it is 0
    weights = tl.where(ks < M, 1.0, 0.0)
    for i in tl.static_range(1, M):
        chosen = against & (slots == i)[None, :]
        bound = tl.min(tl.min(tl.where(chosen, weights[:, None] * bounds, 1.0), 1), 0)
        weights = tl.where(ks == i, tl.minimum(bound, 1.0), weights)
    return tl.where(lost, float("nan"), weights * (M / tl.sum(weights, 0)))


@triton.jit
def write_report(weights, report, SHAPE: tl.constexpr):
    """Write what a step reports: weights (given in slots), losses and distillation added up, and the total.

    report: what `Report.arguments` gives.
    """
    losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count, distill_scale = report
    M: tl.constexpr = len(SHAPE.lengths)
    slots = tl.arange(0, SHAPE.slots)
    values = _column_totals(losses, losses_count, slots, M)
    tl.store(losses_out + slots, values, mask=slots < M)
    cascade = slots * 0.0
    if SHAPE.distill:
        cascade = _column_totals(distill, distill_count, slots, M)
    tl.store(distill_out + slots, cascade, mask=slots < M)
    tl.store(weights_out + slots, weights, mask=slots < M)
    tl.store(total, tl.sum(tl.where(slots < M, weights * (values + distill_scale * cascade), 0.0), 0))


@triton.jit
def conclude(counter, expected, dots, count, dots_out, report, SHAPE: tl.constexpr):
    """In the last of the `expected` programs: the weights from all partial dots (count, m, m), and the report."""
    if arrived_last(counter, expected):
        write_report(_closed_form(dots, count, dots_out, SHAPE), report, SHAPE)


class Report:
    """Where a step's numbers come from and go to: the arguments of `conclude` and `write_report` on the host.

    losses (P, m) and distill (Q, m) or None are partial sums; outputs are (total (), weights (m,), dots (m, m),
    losses (m,), distill (m,)), which are filled.
    """

    def __init__(self, losses, distill, distill_scale: float, outputs):
        self.losses, self.distill, self.distill_scale, self.outputs = losses, distill, distill_scale, outputs

    @property
    def dots(self) -> torch.Tensor:
        return self.outputs[2]

    def arguments(self) -> tuple:
        """(losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count, scale)."""
        total, weights, _, losses_out, distill_out = self.outputs
        distill = self.losses if self.distill is None else self.distill
        return (
            self.losses, distill, total, weights, losses_out, distill_out, self.losses.shape[0], distill.shape[0],
            self.distill_scale,
        )  # fmt: skip


# Of a kernel that takes such arguments, for ahead-of-time compilation.
SIGNATURE = {
    **dict.fromkeys(("losses", "distill", "total", "weights_out", "losses_out", "distill_out"), "*fp32"),
    "losses_count": "i32", "distill_count": "i32", "distill_scale": "fp32",
}  # fmt: skip
