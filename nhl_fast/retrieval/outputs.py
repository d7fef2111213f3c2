"""Raw outputs of queries against packed codes: the inner product <u, code> over a prefix, with no sign taken."""

from __future__ import annotations

import torch

from ..core import check
from ..core.arrays import as_tensor
from . import codes
from .hamming import signs, spans
from .vectors import Best


def check_outputs(value, name: str, database: torch.Tensor) -> torch.Tensor:
    """`value` as finite raw outputs (Q, L), float32 or float64, of codes as wide as those of the database."""
    value = check.present(check.tensor(as_tensor(value, name), name, ndim=2, floating=True), name)
    if codes.num_bytes(value.shape[1]) != database.shape[1]:
        raise ValueError(
            f"{name}: expected raw outputs of {8 * database.shape[1] - 7} to {8 * database.shape[1]} numbers a row, "
            f"one a bit of the codes, got {check.describe(value)}"
        )
    if value.device != database.device:
        raise ValueError(f"{name}: expected device {database.device}, that of the codes, got {value.device}")
    return check.finite(value if value.dtype == torch.float64 else value.float(), name)


def nearest_by_outputs(
    outputs: torch.Tensor, database: torch.Tensor, k: int, length: int, chunk_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k items of largest <u, code>, (scores, ids): by descending score, then ascending id. Arguments checked."""
    outputs = outputs[:, :length]
    size = outputs.element_size()
    items = min(len(database), max(k, chunk_bytes // 2 // (length * (5 + size)), 1))
    step = max(1, chunk_bytes // 2 // (items * (2 * size + 1)))
    best = Best(len(outputs), k, outputs)
    for tile in spans(len(database), items):
        columns = signs(database[tile], length).to(outputs.dtype).T
        for span in spans(len(outputs), step):
            best.add(span, outputs[span] @ columns, tile.start)
        best.end_tile()
    return best.scores, best.ids


def scores_of(outputs: torch.Tensor, rows: torch.Tensor, length: int) -> torch.Tensor:
    """<u, code> of each query (Q, L) with its own candidates' packed rows (Q, c, bytes): (Q, c)."""
    bits = signs(rows.flatten(0, 1), length).to(outputs.dtype).view(*rows.shape[:2], length)
    return torch.bmm(bits, outputs[:, :length, None]).squeeze(2)
