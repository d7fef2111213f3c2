"""What the tests of the native engine share: instruction levels, rows, and top-k by brute force."""

import numpy as np
import oracle
import pytest
import torch

from nhl_fast import native

AVAILABLE, DETAIL = native.cpu_status()


def levels():
    """The instruction levels that this processor has."""
    with pytest.MonkeyPatch.context() as patch:
        for level in ("scalar", "avx2", "avx512", "neon"):
            patch.setenv("NHL_FAST_CPU_ISA", level)
            try:
                yield torch.ops.nhl_fast.cpu_isa()
            except RuntimeError:
                return


@pytest.fixture(name="isa", params=list(levels()) if AVAILABLE else ["none"])
def each_isa(request, monkeypatch):
    monkeypatch.setenv("NHL_FAST_CPU_ISA", request.param)
    assert torch.ops.nhl_fast.cpu_isa() == request.param
    return request.param


@pytest.fixture(name="threads", params=[1, 2])
def one_and_two_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_rows(n, num_bytes, kind="random", seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 256, (n, num_bytes), dtype=np.uint8)
    if kind == "equal":
        rows[:] = rows[:1]
    elif kind == "ties":  # few distinct rows
        rows = rows[: max(1, n // 50)][generator.integers(0, max(1, n // 50), n)] if n else rows
    elif kind == "sorted" and n:  # the nearest to the all-zero query come last
        rows = rows[np.argsort(-np.unpackbits(rows, axis=1).sum(1), kind="stable")]
    return rows


def brute_topk(distances, k, allow=None, base=0):
    """(distances, ids) (Q, k) by a stable sort of all distances."""
    out = np.full((2, len(distances), k), -1, dtype=np.int64)
    for q, row in enumerate(distances):
        ids = np.argsort(row, kind="stable")
        ids = (ids if allow is None else ids[allow[ids]])[:k]
        out[0, q, : len(ids)], out[1, q, : len(ids)] = row[ids], ids + base
    return out


def assert_topk(queries, database, k, length, allow=None, base=0):
    expected = brute_topk(oracle.distances(queries, database, length), k, allow, base)
    mask = None if allow is None else torch.from_numpy(allow)
    found = native.topk(torch.from_numpy(queries), torch.from_numpy(database), k, length, mask, base)
    assert found[0].dtype == torch.int32
    assert found[1].dtype == torch.int64
    assert np.array_equal(found[0].numpy(), expected[0])
    assert np.array_equal(found[1].numpy(), expected[1])
