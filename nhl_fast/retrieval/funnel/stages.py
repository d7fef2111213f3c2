"""The stages of a funnel: what callers pass, and the nearest of the candidates that a stage was left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ... import native
from ...core import check
from ...core.operation import Operation
from .. import codes
from ..hamming import too_long
from ..rescore import rescore

Stages = list[tuple[int, int]]


def check_stages(funnel, bits: int, k: int, num_items: int, whole_bytes: bool = True) -> Stages:
    """`funnel` as pairs (bits, candidates); more candidates than there are items mean all of them.

    Args:
        bits: of the last ranking; no stage has more.
        k: neighbours a query; no stage leaves fewer.
        num_items: of the database.
        whole_bytes: lengths are multiples of 8.
    """
    if isinstance(funnel, str) or not isinstance(funnel, Sequence) or len(funnel) == 0:
        raise TypeError(f"funnel: expected pairs (bits, candidates), got {check.describe(funnel)}")
    stages: Stages = []
    for stage in funnel:
        if isinstance(stage, str) or not isinstance(stage, Sequence) or len(stage) != 2:
            raise TypeError(f"funnel: expected pairs (bits, candidates), got {check.describe(stage)}")
        length = check.positive_int(stage[0], "funnel")
        if length > bits:
            raise ValueError(f"funnel: expected at most {bits} bits, those of the last ranking, got {length}")
        if whole_bytes and length % 8:
            raise ValueError(f"funnel: expected whole bytes, a multiple of 8 bits, got {length}")
        count = min(check.positive_int(stage[1], "funnel", minimum=k), num_items)
        if stages and (length <= stages[-1][0] or count > stages[-1][1]):
            raise ValueError(
                f"funnel: expected more bits and no more candidates than {stages[-1]}, got {(length, count)}"
            )
        stages.append((length, count))
    return stages


def nearest_among(
    queries: torch.Tensor,
    rows: torch.Tensor,
    candidates: torch.Tensor,
    k: int,
    length: int,
    chunk_bytes: int,
    backend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k candidates nearest in the first `length` bits: int32 and int64 (Q, k), by distance, then row.

    Args:
        queries, rows: packed uint8 rows (Q, bytes), (n, bytes), checked.
        candidates: (Q, c) int64 rows, in any order, each once; -1 stands for none, in the result too.
        backend: of the search; what it does not serve here is left to "auto".
    """
    backend = backend if backend in ("reference", "cpp") else "auto"
    return AMONG(queries, rows, candidates, k, length, chunk_bytes, backend=backend)


def _among_reference(queries, rows, candidates, k, length, chunk_bytes) -> tuple[torch.Tensor, torch.Tensor]:
    signs = codes.unpack_codes(queries, length).float()  # their product is length - 2 distances, exactly
    prefixes = rows[:, : codes.num_bytes(length)]
    products, ids = rescore(signs, candidates, codes=prefixes, k=k, chunk_bytes=chunk_bytes, backend="reference")
    return products.sub_(length).div_(-2).masked_fill_(ids < 0, -1).to(torch.int32), ids


AMONG = Operation("funnel_search", _among_reference)


@AMONG.serves("cpp", on="cpu", refuses=too_long("cpp", 4))
def _among_native(queries, rows, candidates, k, length, chunk_bytes) -> tuple[torch.Tensor, torch.Tensor]:
    return native.topk_among(queries, rows, candidates, k, length)
