"""Which items a search may return: ids or a mask, worked out for each segment of an index."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from ..core import check
from .ids import check_ids, on_cpu
from .placement import Part, Placed
from .segments import Chosen, Segment, without_repeats
from .state import State


class Filter:
    """The items that searches of an index may return, worked out once: `NestedIndex.filter` makes it.

    It belongs to the index as it was then: a search of an index that has changed since (or of another one, but for a
    copy) refuses it. It holds one byte an item, or copies of the codes where it leaves at most one in 16, and keeps
    the codes of its index alive.
    """

    def __init__(self, state: State, allow: np.ndarray, placed: Placed | None = None):
        """`placed`: where the state lies on devices; the filter is made ready there."""
        self._state, self._chosen = state, tuple(choose(state, allow))
        self._parts = None if placed is None else (placed, placed.choose(self._chosen))

    def __len__(self) -> int:
        """How many items it leaves."""
        return sum(chosen.count for chosen in self._chosen)

    def __repr__(self) -> str:
        return f"Filter({len(self)} of {self._state.count} items)"

    def chosen(self, state: State) -> tuple[Chosen, ...]:
        """What a search of `state` reads; ValueError where it is not the one that the filter was made for."""
        if state is not self._state:
            raise ValueError(
                "allow: this filter is of another index, or of this one before it changed: make it again"
            )
        return self._chosen

    def parts(self, placed: Placed) -> tuple[tuple[Part, ...], ...]:
        """What a search of `placed` reads; worked out here where the filter was made ready for other devices."""
        if self._parts is not None and self._parts[0] is placed:
            return self._parts[1]
        return placed.choose(self.chosen(placed.state))


def check_allow(allow, state: State) -> Filter | np.ndarray | None:
    """None, a filter of `state`, a bool mask (n,) over its items by ascending id, or int64 ids as they came.

    Raises:
        TypeError, ValueError: anything else.
    """
    if allow is None:
        return None
    if isinstance(allow, Filter):
        allow.chosen(state)
        return allow
    if not (isinstance(allow, (np.ndarray, torch.Tensor)) and allow.dtype in (np.bool_, torch.bool)):
        return check_ids(allow, "allow", copy=False)
    if isinstance(allow, torch.Tensor):
        allow = check.present(on_cpu(check.tensor(allow, "allow"), "allow"), "allow").detach().numpy()
    if isinstance(allow, np.ma.MaskedArray):
        raise TypeError(f"allow: expected a mask that is not masked itself, got {check.describe(allow)}")
    if allow.shape != (state.count,):
        raise ValueError(
            f"allow: expected a mask of shape ({state.count},), one value an item by ascending id, got "
            f"{check.describe(allow)}"
        )
    return allow


def choose(state: State, allow: Filter | np.ndarray | None) -> Sequence[Chosen]:
    """What a search of `state` reads of each segment, for what `check_allow` returned."""
    if allow is None:
        return [segment.chosen() for segment in state.segments]
    if isinstance(allow, Filter):
        return allow.chosen(state)
    if allow.dtype == np.bool_:
        return [segment.masked(mask) for segment, mask in zip(state.segments, _masks(state.segments, allow))]
    ascending = None
    out = []
    for segment in state.segments:
        if segment.ids is not None and ascending is None:
            # What is searched for in order is found several times as fast.
            ascending = allow = without_repeats(allow)
        out.append(segment.holding(allow))
    return out


def choose_placed(placed: Placed, allow: Filter | np.ndarray | None) -> Sequence[Sequence[Part]]:
    """`choose` for a state that lies on devices."""
    if allow is None:
        return placed.parts
    return allow.parts(placed) if isinstance(allow, Filter) else placed.choose(choose(placed.state, allow))


def _masks(segments: Sequence[Segment], mask: np.ndarray) -> list[np.ndarray]:
    """The parts of a mask over all items by ascending id that belong to each segment's, by ascending id."""
    if len(segments) == 1:
        return [mask]
    stops = np.cumsum([segment.count for segment in segments])
    ends = [segment.ends() for segment in segments]
    if any(later[0] < earlier[1] for earlier, later in itertools.pairwise(ends)):
        # A stable sort merges what is in order already.
        order = np.concatenate([segment.alive_ids() for segment in segments]).argsort(kind="stable")
        here = np.empty_like(mask)
        here[order] = mask
        mask = here
    return np.split(mask, stops[:-1])
