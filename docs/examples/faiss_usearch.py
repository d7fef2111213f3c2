"""Codes handed over to faiss and usearch, and back: the same rows, the same distances."""

import faiss
import numpy as np
from usearch.index import Index, MetricKind

import nhl_fast as nhl

codes = np.random.default_rng(0).integers(0, 256, (2000, 16), dtype=np.uint8)
queries = codes[:5]
index = nhl.NestedIndex(length=128)
index.add(codes)
distances, ids = index.search(queries, k=10)

flat = faiss.IndexBinaryFlat(128)
flat.add(codes)
theirs, _ = flat.search(queries, 10)
assert np.array_equal(np.asarray(distances), theirs)
back = nhl.NestedIndex.from_faiss(index.to_faiss())
assert np.array_equal(np.asarray(back.search(queries, k=10)[1]), np.asarray(ids))

graph = Index(ndim=128, metric=MetricKind.Hamming, dtype="b1")
graph.add(np.arange(len(codes)), codes)
found = graph.search(queries, 10, exact=True)
assert np.array_equal(np.asarray(found.distances, dtype=int), theirs)
print("faiss and usearch: equal distances")
