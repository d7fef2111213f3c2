"""The weights in closed form from partial dots, and what a step reports: by the last program of the dots' kernels.

What other programs of the same launch wrote is read past the first-level cache (".cg").
"""

import triton
import triton.language as tl

from .arrival import arrived_last


@triton.jit
def column_totals(partial, count, ks, m: tl.constexpr, BLOCK_P: tl.constexpr):
    """Sums over the rows of partial (count, m), for the entries ks."""
    total = ks * 0.0
    for first in range(0, count, BLOCK_P):
        rows = first + tl.arange(0, BLOCK_P)
        at = partial + rows[:, None].to(tl.int64) * m + ks[None, :]
        total += tl.sum(tl.load(at, mask=(rows < count)[:, None] & (ks < m)[None, :], other=0.0), 0)
    return total


@triton.jit
def closed_form(dots, count, out, m: tl.constexpr, MP: tl.constexpr, BLOCK_P: tl.constexpr):
    """The m weights (in MP slots) from partial dots (count, m, m), whose sums go to `out` (m, m)."""
    ks, slots = tl.arange(0, MP), tl.arange(0, MP)
    upper = (ks[:, None] <= slots[None, :]) & (slots < m)[None, :]
    total = tl.zeros((MP, MP), tl.float32)
    for start in range(0, count, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        at = dots + p[:, None, None].to(tl.int64) * (m * m) + (ks[:, None] * m + slots[None, :])[None, :, :]
        mask = (p < count)[:, None, None] & upper[None, :, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0, cache_modifier=".cg"), 0)
    tl.store(out + ks[:, None] * m + slots[None, :], total, mask=(ks < m)[:, None] & (slots < m)[None, :])
    diagonal = tl.sum(tl.where(ks[:, None] == slots[None, :], total, 0.0), 1)
    # A pair k < i has k < m - 1, so its share is over at least one slot.
    share = diagonal / tl.maximum(m - 1 - ks, 1).to(tl.float32)
    against = (total < 0) & (ks[:, None] < slots[None, :])
    bounds = tl.where(against, share[:, None] / tl.where(against, -total, 1.0), 0.0)
    weights = tl.where(ks < m, 1.0, 0.0)
    for i in tl.static_range(1, m):
        chosen = against & (slots == i)[None, :]
        bound = tl.min(tl.min(tl.where(chosen, weights[:, None] * bounds, float("inf")), 1), 0)
        weights = tl.where(ks == i, tl.minimum(bound, 1.0), weights)
    return weights * (m / tl.sum(weights, 0))


@triton.jit
def report(
    weights, slots, losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count,
    distill_scale, m: tl.constexpr, DISTILL: tl.constexpr,
):  # fmt: skip
    """Write what a step reports: weights, losses and distillation (partial sums added up), and the total."""
    values = column_totals(losses, losses_count, slots, m, 256)
    tl.store(losses_out + slots, values, mask=slots < m)
    cascade = slots * 0.0
    if DISTILL:
        cascade = column_totals(distill, distill_count, slots, m, 256)
    tl.store(distill_out + slots, cascade, mask=slots < m)
    tl.store(weights_out + slots, weights, mask=slots < m)
    tl.store(total, tl.sum(tl.where(slots < m, weights * (values + distill_scale * cascade), 0.0), 0))


@triton.jit
def conclude(
    counter, expected, dots, count, dots_out, losses, distill, total, weights_out, losses_out, distill_out,
    losses_count, distill_count, distill_scale, m: tl.constexpr, DISTILL: tl.constexpr, MP: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """In the last of the `expected` programs: the weights from all partial dots (count, m, m), and the report."""
    if arrived_last(counter, expected):
        slots = tl.arange(0, MP)
        weights = closed_form(dots, count, dots_out, m, MP, BLOCK_P)
        report(
            weights, slots, losses, distill, total, weights_out, losses_out, distill_out, losses_count,
            distill_count, distill_scale, m, DISTILL,
        )  # fmt: skip


class Report:
    """Where a step's numbers come from and go to: the arguments of `conclude` and `report` on the host.

    losses (P, m) and distill (Q, m) or None are partial sums; outputs are (total (), weights (m,), dots (m, m),
    losses (m,), distill (m,)), which are filled.
    """

    def __init__(self, losses, distill, distill_scale: float, outputs):
        self.losses, self.distill, self.distill_scale, self.outputs = losses, distill, distill_scale, outputs

    def arguments(self) -> tuple:
        """(losses, distill, total, weights_out, losses_out, distill_out, losses_count, distill_count, scale)."""
        total, weights, _, losses_out, distill_out = self.outputs
        distill = self.losses if self.distill is None else self.distill
        return (
            self.losses, distill, total, weights, losses_out, distill_out, self.losses.shape[0], distill.shape[0],
            self.distill_scale,
        )  # fmt: skip


def slots(m: int) -> dict[str, int]:
    """Padded number of lengths, and of partial dots loaded at once (4,096 numbers at most)."""
    padded = triton.next_power_of_2(m)
    return {"MP": padded, "BLOCK_P": max(16, min(64, 4096 // padded**2))}
