"""Results of a database searched in parts, as one: by distance, then by ascending id; on any device, in its stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def nearest(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], k: int, ascending: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of parts (distances, ids), both (Q, c); as many as there are, if fewer.

    Args:
        ascending: every id of a part is above those of the parts before it, and each part is in order.
    """
    distances, ids = (torch.cat(columns, 1) for columns in zip(*parts))
    if not ascending:
        ids, order = ids.sort(dim=1)
        distances = distances.gather(1, order)
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k], ids.gather(1, order[:, :k])


def within(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One (offsets (Q + 1,), distances, ids) of those of the parts, for codes of `length` bits."""
    rows = [torch.repeat_interleave(offsets.diff(), output_size=len(found)) for offsets, found, _ in parts]
    distances, ids = (torch.cat(column) for column in list(zip(*parts))[1:])
    ids, order = ids.sort()
    distances = distances[order]
    keys = torch.cat(rows)[order] * (length + 1) + distances
    order = keys.argsort(stable=True)
    return sum(offsets for offsets, _, _ in parts), distances[order], ids[order]
