"""What ranks the candidates of a funnel at its end, in place of their codes: queries' raw outputs, or vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ...core import check
from ...core.arrays import as_tensor
from ..outputs import check_outputs
from ..rescore import rescore
from ..vectors import check_vectors


class Scores(NamedTuple):
    """`rescore=` of a search, checked: raw outputs of the queries (vectors None), or their vectors and the items'."""

    queries: torch.Tensor
    vectors: torch.Tensor | None
    metric: str

    def rank(self, ids: torch.Tensor, rows: torch.Tensor, k: int, length: int, chunk_bytes: int):
        """(scores, ids), the k best of candidates (Q, c): see `nhl_fast.rescore`. rows: the items' packed codes."""
        if self.vectors is not None:
            options = {"vectors": self.vectors, "metric": self.metric}
        else:
            options = {"codes": rows, "length": length}
        return rescore(self.queries, ids, k=k, chunk_bytes=chunk_bytes, **options)


def check_scores(
    value, metric: str, num_queries: int, one: bool, num_items: int, rows: torch.Tensor
) -> Scores | None:
    """`rescore=` of a search for `num_queries` queries (`one`: a single code, which may have a single row here).

    rows: packed codes as wide as the items', on their device.
    """
    if value is None:
        return None
    if not isinstance(value, (tuple, list)):
        return Scores(_as_many(check_outputs(_rows(value, one), "rescore", rows), num_queries), None, metric)
    if len(value) != 2:
        raise ValueError(f"rescore: expected raw outputs, or a pair (queries' vectors, vectors), got {len(value)}")
    vectors = check_vectors(value[1], "rescore")
    if len(vectors) != num_items:
        raise ValueError(f"rescore: expected {num_items} vectors, one an item, got {check.describe(vectors)}")
    return Scores(query_vectors(value[0], num_queries, one, vectors.shape[1]), vectors, metric)


def query_vectors(value, num_queries: int, one: bool, width: int | None) -> torch.Tensor:
    """The queries' vectors (Q, width) of `rescore=`."""
    return _as_many(check_vectors(_rows(value, one), "rescore", width), num_queries)


def _rows(value, one: bool):
    single = one and isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 1
    return as_tensor(value[None] if single else value, "rescore")


def _as_many(rows: torch.Tensor, num_queries: int) -> torch.Tensor:
    if len(rows) != num_queries:
        raise ValueError(f"rescore: expected {num_queries} rows, one a query, got {check.describe(rows)}")
    return rows
