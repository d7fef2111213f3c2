"""What others offer for the same results: functions of one shape, whose libraries are imported when they are made.

A searcher is made from the database (rows of packed bytes) and a number of threads, and called with (queries, k);
it returns the (Q, k) distances. Which of several items at one distance comes first differs between libraries, so
distances are what is compared.
"""

from __future__ import annotations

import numpy as np
import torch


def faiss_searcher(database: np.ndarray, threads: int):
    """faiss-cpu IndexBinaryFlat, exact."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(8 * database.shape[1])
    index.add(database)
    return lambda queries, k: index.search(queries, k)[0]


def usearch_searcher(database: np.ndarray, threads: int):
    """usearch's exact search over bits."""
    from usearch.index import MetricKind, search

    def run(queries, k):
        found = search(database, queries, k, MetricKind.Hamming, exact=True, threads=threads)
        return np.atleast_2d(found.distances).astype(np.int32)

    return run


def numpy_searcher(database: np.ndarray, threads: int):
    """NumPy 2's bitwise_count, a query at a time, and argpartition; one thread whatever `threads` says."""
    words = database.view(np.uint64) if database.shape[1] % 8 == 0 else database.view(np.uint32)

    def run(queries, k):
        out = np.empty((len(queries), k), dtype=np.int32)
        for row, query in zip(out, queries.view(words.dtype)):
            distances = np.bitwise_count(words ^ query).sum(1, dtype=np.int32)
            row[:] = np.sort(np.partition(distances, k - 1)[:k])
        return out

    return run


def torch_searcher(database: np.ndarray, threads: int):
    """A product of +-1 codes in float32, then topk: what a PyTorch script does. Codes are expanded beforehand."""
    torch.set_num_threads(threads)

    def signs(rows):
        return torch.from_numpy(np.unpackbits(rows, axis=1)).float().mul_(2).sub_(1)

    columns, bits = signs(database).T.contiguous(), 8 * database.shape[1]

    def run(queries, k):
        parts = [
            (signs(part) @ columns).topk(k, dim=1).values for part in np.array_split(queries, -(-len(queries) // 16))
        ]
        return ((bits - torch.cat(parts)) / 2).int().numpy()

    return run


SEARCHERS = {"faiss": faiss_searcher, "usearch": usearch_searcher, "numpy": numpy_searcher, "torch": torch_searcher}


def usual_map(q_codes, db_codes, q_labels, db_labels, length: int, topk: int) -> np.ndarray:
    """AP@topk of every query at one length, as the field's scripts compute it: a loop over the queries with the
    distances of +-1 codes, an argsort, and a mean. Stable, so that ties come by id and results can be compared.

    Args:
        q_codes, db_codes: (N, L) float32 +-1 codes, expanded beforehand.
        q_labels, db_labels: multi-hot float32 rows.
    """
    result = np.zeros(len(q_codes))
    database = np.ascontiguousarray(db_codes[:, :length])
    for i, (code, label) in enumerate(zip(q_codes[:, :length], q_labels)):
        relevant = db_labels @ label > 0
        distances = 0.5 * (length - database @ code)
        relevant = relevant[np.argsort(distances, kind="stable")][:topk]
        found = int(relevant.sum())
        if found:
            ranks = np.flatnonzero(relevant) + 1.0
            result[i] = np.mean(np.arange(1, found + 1) / ranks)
    return result
