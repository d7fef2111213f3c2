"""Searches of an index in stages: candidates by a short prefix, ranked again by more bits, raw outputs or vectors.

A candidate is a row of its part (what a search reads of a segment). Each stage ranks the candidates of every part and
keeps the best of all, by (distance, id) as the exact search does, so that the parts do not show in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ..retrieval import hamming
from ..retrieval.codes import num_bytes
from ..retrieval.funnel.scores import Scores, check_scores, query_vectors
from ..retrieval.funnel.stages import Stages, nearest_among
from ..retrieval.vectors import working_dtype
from . import placed_search
from .ids import on_device
from .placement import Placed
from .segments import Chosen
from .state import State

_CHUNK_BYTES = hamming.DEFAULT_CHUNK_BYTES


class Scored(NamedTuple):
    """`rescore=` of a search, checked, and of vectors the ids of their rows: a run from `first`, or `ids`.

    kept: by the vectors that the index keeps.
    """

    scores: Scores
    first: int | None
    ids: np.ndarray | None
    kept: bool = False

    def rank(self, ids: torch.Tensor, k: int):
        """(scores, ids), the k best of candidates (Q, c) by their vectors."""
        missing = ids < 0
        if self.ids is None:
            rows = ids - self.first
        else:
            rows = torch.from_numpy(np.searchsorted(self.ids, ids.numpy()))
        values, rows = self.scores.rank(rows.masked_fill_(missing, -1), None, k, None, _CHUNK_BYTES)
        found = rows + self.first if self.ids is None else torch.from_numpy(self.ids[rows.numpy()])
        return values, found.masked_fill_(rows < 0, -1)


def check_rescore(
    value, metric: str, num_queries: int, one: bool, state: State, width: int, devices
) -> Scored | None:
    """`rescore=` of a search of `state` on `devices`, whose codes have `width` bytes; what it holds is on the CPU."""
    value = _in_main_memory(value, devices)
    if isinstance(value, (tuple, list)) and len(value) == 2 and value[1] is None:
        kept = state.kept
        if kept is None and state.count:
            raise ValueError(
                "rescore: expected the items' vectors, too: this index keeps none (add(codes, vectors=...))"
            )
        queries = query_vectors(value[0], num_queries, one, None if kept is None else kept.shape[1])
        return Scored(Scores(queries, None, metric), None, None, kept=True)
    like = torch.empty(0, width, dtype=torch.uint8)
    scores = check_scores(value, metric, num_queries, one, state.count, like)
    if scores is None:
        return None
    first = state.run()
    return Scored(scores, first, state.ids() if first is None and scores.vectors is not None else None)


def _in_main_memory(value, devices: Sequence[torch.device]):
    """`rescore=` with the queries' part, which may be on a device of the index, on the CPU."""

    def moved(one):
        if not isinstance(one, torch.Tensor) or one.is_cpu:
            return one
        return on_device(one, "rescore", devices).cpu()

    return [moved(one) for one in value] if isinstance(value, (tuple, list)) else moved(value)


def nearest(
    chosen: Sequence[Chosen], queries, k: int, length: int, stages: Stages, scored: Scored | None, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(distances, or scores, ids), both (Q, c): c = k, or as many as the stages left."""
    parts = [part for part in chosen if part.count]
    if not parts:
        return _nothing(queries, scored)
    bits, count = stages[0]
    _, ids, kept = _best(parts, [_scan(part, queries, count, bits, backend) for part in parts], count)
    return _ranked_again(parts, ids, kept, queries, k, length, stages[1:], scored, backend)


def nearest_placed(
    placed: Placed, places, queries, k: int, length: int, stages: Stages, scored: Scored | None, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`nearest` where the first stage reads `places` on devices; the result is on the first of them."""
    bits, count = stages[0]
    ids = placed_search.nearest(placed, places, queries, count, bits, backend)[1].cpu()
    queries, parts = queries.cpu(), [segment.chosen() for segment in placed.state.segments if segment.count]
    if ids.shape[1]:
        kept = [_places(part, ids) for part in parts]
        backend = backend if backend in ("auto", "reference") else "auto"
        found = _ranked_again(parts, ids, kept, queries, k, length, stages[1:], scored, backend)
    else:
        found = _nothing(queries, scored)
    return tuple(part.to(placed.placement.devices[0]) for part in found)


def _nothing(queries, scored: Scored | None) -> tuple[torch.Tensor, torch.Tensor]:
    kind = torch.int32 if scored is None else working_dtype(scored.scores.queries)
    return torch.empty(len(queries), 0, dtype=kind), torch.empty(len(queries), 0, dtype=torch.int64)


def _places(part: Chosen, ids: torch.Tensor) -> torch.Tensor:
    """The rows of a part that are the candidates `ids` (Q, c), -1 where another part's is."""
    which, positions = part.segment.find(ids.flatten().numpy())
    rows = torch.full((ids.numel(),), -1)
    rows[torch.from_numpy(which)] = torch.from_numpy(positions)
    return rows.view(ids.shape)


def _ranked_again(parts, ids, kept, queries, k: int, length: int, stages, scored: Scored | None, backend: str):
    """(distances, or scores, ids) of the first stage's candidates: their ids (Q, c), and each part's rows of them."""
    for bits, count in stages:
        found = [_again(part, queries, rows, count, bits, backend) for part, rows in zip(parts, kept)]
        _, ids, kept = _best(parts, found, count)
    if scored is not None and scored.scores.vectors is not None:
        return scored.rank(ids, min(k, ids.shape[1]))
    if scored is None:
        found = [_again(part, queries, rows, k, length, backend) for part, rows in zip(parts, kept)]
    elif scored.kept:
        found = [_by_kept(part, scored.scores, rows, k) for part, rows in zip(parts, kept)]
        parts = [replace(part, positions=None) for part in parts]
    else:
        found = [_by_outputs(part, scored.scores, rows, k, length) for part, rows in zip(parts, kept)]
    values, ids, _ = _best(parts, found, k)
    return values, ids


def _scan(part: Chosen, queries, count: int, bits: int, backend: str):
    """(distances, rows), the candidates of a part by its prefixes."""
    rows = part.prefix(num_bytes(bits))
    return hamming.nearest(queries, rows, min(count, part.count), bits, part.mask, _CHUNK_BYTES, backend)


def _again(part: Chosen, queries, candidates, count: int, bits: int, backend: str):
    k = min(count, candidates.shape[1])
    return nearest_among(queries, part.rows, candidates, k, bits, _CHUNK_BYTES, backend)


def _by_outputs(part: Chosen, scores: Scores, candidates, k: int, length: int):
    return scores.rank(candidates, part.rows, min(k, candidates.shape[1]), length, _CHUNK_BYTES)


def _by_kept(part: Chosen, scores: Scores, candidates, k: int):
    """(scores, rows of the segment), the k best candidates by the vectors of the part's segment."""
    if part.positions is not None:
        chosen = torch.from_numpy(part.positions)[candidates.clamp(min=0)]
        candidates = chosen.masked_fill_(candidates < 0, -1)
    given = scores._replace(vectors=part.segment.vectors)
    return given.rank(candidates, None, min(k, candidates.shape[1]), None, _CHUNK_BYTES)


def _best(parts: Sequence[Chosen], found, count: int):
    """The best of all parts: (values, ids) (Q, c) with c at most `count`, and each part's rows among them, -1 else.

    found: a part's (values, rows), distances, or scores, of which more is better; row -1 is none.
    """
    if len(parts) == 1:
        values, rows = found[0]
        return values, _ids(parts[0], rows), [rows]
    values = torch.cat([values for values, _ in found], 1)
    ids = torch.cat([_ids(part, rows) for part, (_, rows) in zip(parts, found)], 1)
    key = -values if values.is_floating_point() else values.masked_fill(ids < 0, 2**31 - 1)
    by_id = ids.argsort(1)
    order = by_id.gather(1, key.gather(1, by_id).argsort(dim=1, stable=True))[:, :count]
    kept, start = [], 0
    for _, rows in found:
        place = order - start
        here = (place >= 0) & (place < rows.shape[1])
        kept.append(rows.gather(1, place.clamp(0, rows.shape[1] - 1)).masked_fill(~here, -1))
        start += rows.shape[1]
    return values.gather(1, order), ids.gather(1, order), kept


def _ids(part: Chosen, rows: torch.Tensor) -> torch.Tensor:
    """The ids of a part's rows, -1 for none."""
    missing = rows < 0
    if not missing.any():
        return part.ids_of(rows)
    return part.ids_of(rows.clamp(min=0)).masked_fill(missing, -1)
