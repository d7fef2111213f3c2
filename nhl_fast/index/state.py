"""What an index holds at one moment: a value; a change makes another, which shares what stays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from .ids import LIMIT, some
from .segments import Segment, tidy


@dataclass(frozen=True, eq=False)
class State:
    """Segments in no order of ids, and the next running id; a search works on one of these from start to end."""

    segments: tuple[Segment, ...] = ()
    next_id: int = 0
    count: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "count", sum(segment.count for segment in self.segments))

    @property
    def nbytes(self) -> int:
        return sum(segment.nbytes for segment in self.segments)

    def run(self) -> int | None:
        """The first id where the ids are a run without a gap (0 where there are none), else None."""
        if not self.segments:
            return 0
        lows, highs = zip(*(segment.ends() for segment in self.segments))
        return min(lows) if max(highs) - min(lows) + 1 == self.count else None

    def ids(self) -> np.ndarray:
        """All ids in ascending order, int64."""
        parts = [segment.alive_ids() for segment in self.segments]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def rows(self, ids: np.ndarray, width: int) -> torch.Tensor:
        """The packed rows of ids, uint8 (len(ids), width); KeyError where some are nowhere."""
        return self._gathered(ids, torch.empty(len(ids), width, dtype=torch.uint8), False)

    def vectors(self, ids: np.ndarray) -> torch.Tensor:
        """The vectors of ids, of which there are some; KeyError where some are nowhere."""
        like = self.segments[0].vectors
        return self._gathered(ids, torch.empty(len(ids), like.shape[1], dtype=like.dtype), True)

    def _gathered(self, ids: np.ndarray, out: torch.Tensor, vectors: bool) -> torch.Tensor:
        for i, which, positions in self.locate(ids):
            out[torch.from_numpy(which)] = self.segments[i].stored(vectors)[torch.from_numpy(positions)]
        return out

    @property
    def kept(self) -> torch.Tensor | None:
        """No rows of the kind of the vectors that are kept, (0, d), or None where none are."""
        vectors = self.segments[0].vectors if self.segments else None
        return None if vectors is None else vectors[:0]

    def check_kept(self, vectors: torch.Tensor | None, name: str) -> None:
        """ValueError unless items that come with `vectors` fit those that are here; an empty index takes any."""
        if self.segments and _kind(vectors) != _kind(self.kept):
            raise ValueError(
                f"{name}: expected {_kind(self.kept)}, as the items have that are there, got {_kind(vectors)}"
            )

    def held(self, ids: np.ndarray) -> np.ndarray:
        """Those of `ids` that are here."""
        here = np.zeros(len(ids), dtype=bool)
        for segment in self.segments:
            here[segment.find(ids)[0]] = True
        return ids[here]

    def locate(self, ids: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(segment number, which of `ids` it holds, their positions) for all ids; KeyError where some are nowhere."""
        found = [(i, *segment.find(ids)) for i, segment in enumerate(self.segments)]
        missing = np.ones(len(ids), dtype=bool)
        for _, which, _ in found:
            missing[which] = False
        if missing.any():
            raise KeyError(f"ids: not in the index: {some(ids[missing])}")
        return [part for part in found if len(part[1])]

    def adding(
        self, ids: np.ndarray, added: tuple[Segment, ...], next_id: int = 0, name: str = "vectors"
    ) -> State:  # fmt: skip
        """With segments of new ids, and running ids from `next_id` on at least; ValueError where an id is taken.

        name: of the argument that they came in, should their vectors not fit.
        """
        if added:
            self.check_kept(added[0].vectors, name)
        taken = [ids[segment.find(ids)[0]] for segment in self.segments]
        if any(map(len, taken)):
            raise ValueError(f"ids: expected new ids, but the index holds {some(np.concatenate(taken))}")
        return State(tidy(self.segments + added), max(self.next_id, next_id, int(ids.max(initial=-1)) + 1))

    def running_on(self, rows: torch.Tensor, vectors: torch.Tensor | None = None, name: str = "vectors") -> State:
        """With rows under running ids; ValueError where those would end."""
        if len(rows):
            self.check_kept(vectors, name)
        next_id = self.next_id + len(rows)
        if next_id > LIMIT:
            raise ValueError(f"ids: running ids would pass 2**63 - 1 (the next is {self.next_id}): pass ids")
        added = (Segment(rows, self.next_id, vectors=vectors),) if len(rows) else ()
        return State(tidy(self.segments + added), next_id)

    def replacing(self, ids: np.ndarray, added: tuple[Segment, ...] = ()) -> State:
        """Without `ids`, which must all be there, and with `added`."""
        if added:
            self.check_kept(added[0].vectors, "vectors")
        segments = list(self.segments)
        for i, _, positions in self.locate(ids):
            segments[i] = segments[i].without(positions)
        return State(tidy((*segments, *added)), self.next_id)


def _kind(vectors: torch.Tensor | None) -> str:
    return (
        "no vectors"
        if vectors is None
        else f"{vectors.dtype} vectors of {vectors.shape[1]} numbers".removeprefix("torch.")
    )
