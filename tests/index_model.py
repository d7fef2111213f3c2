"""What an index should do, by a dict and brute force; shared by the tests of the index."""

import numpy as np
import oracle
import torch

from nhl_fast.index import segments as index_segments
from nhl_fast.index.nested_index import NestedIndex


def rows(n, length, seed=0, pool=None):
    """Random packed codes; with `pool`, of that many distinct ones, so full of ties."""
    generator = np.random.default_rng(seed)
    out = np.packbits(generator.integers(0, 2, (pool or n, length), dtype=np.uint8), axis=1)
    return out if pool is None else out[generator.integers(0, pool, n)]


class Model:
    """What an index should do: a dict and brute force."""

    def __init__(self, length):
        self.length, self.rows, self.next_id = length, {}, 0

    def add(self, codes, ids=None):
        ids = range(self.next_id, self.next_id + len(codes)) if ids is None else ids
        ids = [int(i) for i in ids]
        self.rows.update(zip(ids, codes))
        self.next_id = max([self.next_id, *(i + 1 for i in ids)])
        return ids

    def ranking(self, query, length, allow=None):
        """All (distance, id) of one query."""
        ids = sorted(i for i in self.rows if allow is None or i in allow)
        if not ids:
            return []
        table = oracle.distances(query[None], np.array([self.rows[i] for i in ids]), length)
        return sorted(zip(table[0].tolist(), ids))

    def check(self, index, queries, length, k, radius, allow=None, backend="auto"):
        distances, ids = index.search(queries, k, length, allow, backend=backend)
        assert (distances.dtype, ids.dtype) == (torch.int32, torch.int64)
        assert distances.shape == ids.shape == (len(queries), k)
        allowed = None if allow is None else set(map(int, allow))
        rankings = [self.ranking(query, length, allowed) for query in queries]
        padded = [(ranking + [(-1, -1)] * k)[:k] for ranking in rankings]
        assert pairs(distances, ids) == padded
        offsets, distances, ids = index.range_search(queries, radius, length, allow, backend=backend)
        assert (offsets.dtype, distances.dtype, ids.dtype) == (torch.int64, torch.int32, torch.int64)
        wanted = [[pair for pair in ranking if pair[0] <= radius] for ranking in rankings]
        assert offsets.diff().tolist() == list(map(len, wanted))
        assert list(zip(distances.tolist(), ids.tolist())) == [pair for ranking in wanted for pair in ranking]


def pairs(distances, ids):
    return [list(zip(*row)) for row in zip(distances.tolist(), ids.tolist())]


def no_merging(monkeypatch):
    """Nothing is merged but what is half removed."""
    monkeypatch.setattr(index_segments, "_SMALL_ROWS", 0)
    monkeypatch.setattr(index_segments, "_RATIO", 0)


def filled(length, n=150, seed=0, blocks=5):
    """An index and its model, with given ids out of order, full of ties."""
    index, model = NestedIndex(length), Model(length)
    codes, ids = rows(n, length, seed, pool=n // 3), np.random.default_rng(seed).permutation(4 * n)[:n]
    for part in np.array_split(np.arange(n), blocks):
        model.add(codes[part], ids[part])
        index.add(codes[part], ids[part])
    return index, model
