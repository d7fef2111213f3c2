"""Functions of other code bases, by their names and order of arguments."""

from __future__ import annotations

from .core import check
from .core.arrays import as_tensor
from .retrieval.metrics import evaluate_retrieval


def calc_top_map(rB, qB, retrievalL, queryL, topk: int = -1, *, ties: str = "id") -> float:
    """mAP@topk of binary codes, called as DeepHash-pytorch's CalcTopMap: the database comes first.

    Args:
        rB, qB: (n, L) and (Q, L), -1 and +1, tensors or arrays: codes of database and queries.
        retrievalL, queryL: their labels, ids or multi-hot rows.
        topk: -1, and what is beyond n, is the whole ranking (theirs leaves out the last item at -1).
        ties: see `evaluate_retrieval`; theirs leaves the order of ties to the sort.
    """
    database, queries = as_tensor(rB, "rB"), as_tensor(qB, "qB")
    for rows, name in ((database, "rB"), (queries, "qB")):
        if rows.ndim != 2 or rows.shape[1] != database.shape[-1]:
            raise ValueError(f"{name}: expected codes of -1 and +1, one width in both, got {check.describe(rows)}")
    bits = int(database.shape[1])
    whole = isinstance(topk, int) and topk == -1
    result = evaluate_retrieval(
        queries, database, queryL, retrievalL, lengths=(bits,), topk=None if whole else topk, ties=ties
    )
    return result.mean_average_precision[bits]
