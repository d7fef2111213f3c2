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
    """usearch's exact search, which takes rows of bytes as bits; any k up to n, and one query too."""
    from usearch.index import MetricKind, search

    def run(queries, k):
        found = search(database, queries, k, MetricKind.Hamming, exact=True, threads=threads)
        # A single query's distances come without their first dimension.
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
    run = device_searcher(torch.from_numpy(database), torch.float32, 2**26)
    return lambda queries, k: run(torch.from_numpy(queries), k).numpy()


def signs(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, 8 * bytes) +-1 of packed rows."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=rows.device)
    return (rows[:, :, None] >> places & 1).flatten(1).to(dtype).mul_(2).sub_(1)


def columns_of(database: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(8 * bytes, n) +-1 codes, a column an item."""
    columns = torch.empty(8 * database.shape[1], len(database), dtype=dtype, device=database.device)
    for start in range(0, len(database), 2**20):
        columns[:, start : start + 2**20] = signs(database[start : start + 2**20], dtype).T
    return columns


def device_searcher(database: torch.Tensor, dtype: torch.dtype, chunk_bytes: int):
    """As `torch_searcher`, for packed rows on any device and as many queries at once as `chunk_bytes` of products
    allow. Half precision is exact here: products are integers up to the number of bits."""
    columns = columns_of(database, dtype)
    bits, n = columns.shape
    step = max(1, chunk_bytes // (n * columns.element_size()))

    def run(queries, k):
        parts = [(signs(part, dtype) @ columns).topk(k, dim=1).values for part in queries.split(step)]
        return ((bits - torch.cat(parts).float()) / 2).int()

    return run


def table_searcher(database: torch.Tensor, chunk_bytes: int):
    """As `device_searcher`, by XOR and a table of the ones in a byte, a byte at a time."""
    n, width = database.shape
    ones = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.int16, device=database.device)
    step = max(1, chunk_bytes // (16 * n))  # about what a pair takes on its way

    def distances(queries):
        found = torch.zeros(len(queries), n, dtype=torch.int16, device=database.device)
        for byte in range(width):
            found += ones[(queries[:, None, byte] ^ database[None, :, byte]).int()]
        return found

    def run(queries, k):
        parts = [distances(part).topk(k, dim=1, largest=False).values for part in queries.split(step)]
        return torch.cat(parts).int()

    return run


def faiss_device_searcher(database: torch.Tensor):
    """faiss's GpuIndexBinaryFlat, exact, codes and results of the host as it takes and gives them.

    ImportError where faiss is missing or was built without GPUs.
    """
    import faiss

    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        raise ImportError("this faiss was built without GPUs")
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexBinaryFlat(resources, 8 * database.shape[1])
    index.add(database.cpu().numpy())

    def run(queries, k):
        _ = resources  # kept as long as the index is
        return torch.from_numpy(index.search(queries.cpu().numpy(), k)[0]).to(database.device, torch.int32)

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


def device_map(q_codes, db_codes, q_labels, db_labels, lengths, topk: int, dtype: torch.dtype, chunk_bytes: int):
    """The same with PyTorch on any device, all queries of a chunk at once; (m, Q) float64.

    Args:
        q_codes, db_codes: packed uint8 rows; they are expanded here, once.
        q_labels, db_labels: class ids (N,) or multi-hot rows (N, C).
    """
    columns, queries = columns_of(db_codes, dtype), signs(q_codes, dtype)
    step = max(1, chunk_bytes // (32 * len(db_codes)))
    ranks = torch.arange(1, topk + 1, dtype=torch.float64, device=db_codes.device)
    out = torch.zeros(len(lengths), len(queries), dtype=torch.float64, device=db_codes.device)
    for start in range(0, len(queries), step):
        span = slice(start, start + step)
        if q_labels.ndim == 1:
            relevant = q_labels[span, None] == db_labels
        else:
            relevant = q_labels[span].float() @ db_labels.T.float() > 0
        for row, length in zip(out, lengths):
            products = queries[span, :length] @ columns[:length]
            order = products.neg_().argsort(dim=1, stable=True)[:, :topk]
            hit = relevant.gather(1, order).to(torch.float64)
            found = hit.cumsum(1)
            row[span] = (hit * found / ranks).sum(1) / found[:, -1].clamp(min=1)
    return out
