"""The short way of one query of few items gives what the long way does, and takes no case that is not its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_model import rows

import nhl_fast as nhl
from nhl_fast.core.backend import probe
from nhl_fast.index import direct

needs_native = pytest.mark.skipif(not probe("cpp").available, reason="needs the C++ library")


@pytest.fixture
def answers(monkeypatch):
    """What the short way gave, call by call."""
    given, search = [], direct.search
    monkeypatch.setattr(direct, "search", lambda *arguments: given.append(search(*arguments)) or given[-1])
    return given


def long_way(index, query, k, length=None):
    """The same search by the reference, which the short way leaves alone."""
    return index.search(query, k, length, backend="reference")


def equal(ours, right):
    return all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(map(torch.as_tensor, ours), right, strict=True)
    )


@needs_native
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_results_are_those_of_the_long_way(data):
    length = data.draw(st.sampled_from([1, 5, 12, 48, 100, 128, 256, 504]))
    n = data.draw(st.integers(1, 300))
    codes = rows(n, length, data.draw(st.integers(0, 99)), pool=data.draw(st.sampled_from([3, 300])))
    first, step = data.draw(st.sampled_from([(0, 1), (7, 1), (2**62, 1), (3, 5)]))
    index = nhl.NestedIndex(length)
    index.add(codes, first + step * np.arange(n))
    k, prefix = data.draw(st.integers(1, n)), data.draw(st.none() | st.integers(1, length))
    query = codes[0] if data.draw(st.booleans()) else rows(1, length, 1)[0]
    query = query if data.draw(st.booleans()) else query[None]
    right = long_way(index, query, k, prefix)
    assert direct.search(index._state, query, k, prefix, length, "raise", "tensor", "auto") is not None
    assert equal(index.search(query, k, prefix), right)
    assert equal(index.search(torch.from_numpy(query), k, prefix), right)
    arrays = index.search(query, k, prefix, output="numpy")
    assert all(type(array) is np.ndarray for array in arrays)
    assert equal(arrays, right)


@needs_native
def test_strided_rows(answers):
    table = rows(90, 128)
    index = nhl.NestedIndex(64)
    index.add(table[::3, :8])
    wide = np.repeat(rows(1, 64, 3), 2, axis=1)
    for query in (wide[:, ::2], wide[0, ::2], wide[:, ::2][:, ::-1]):
        assert equal(index.search(query, 9), long_way(index, query, 9))
    assert all(found is not None for found in answers[::2])


@needs_native
def test_a_mapped_index(tmp_path, answers):
    index, query = nhl.NestedIndex(100), rows(1, 100, 3)
    index.add(rows(200, 100), np.arange(200) * 3)
    index.save(tmp_path / "index.nhl")
    mapped = nhl.NestedIndex.load(tmp_path / "index.nhl")
    assert equal(mapped.search(query, 20), long_way(index, query, 20))
    assert answers[0] is not None


def left_alone(index, query):
    """Searches that are not its own."""
    tensor = torch.from_numpy(query)
    yield lambda: index.search(query, 3, allow=[1, 2, 3])
    yield lambda: index.search(query, 3, backend="cpp")
    yield lambda: index.search(np.concatenate([query, query]), 3)
    yield lambda: index.search(np.concatenate([query, query], axis=1), 3, 48)
    yield lambda: index.search(np.unpackbits(query, axis=1).astype(bool), 3)
    yield lambda: index.search((query.astype(np.int16) - 128).astype(np.int8), 3)
    yield lambda: index.search(tensor.T.contiguous().T.expand(2, -1), 3)
    yield lambda: index.search(torch.nn.Parameter(tensor, requires_grad=False), 3)
    yield lambda: index.search(query, len(index) + 2, beyond="pad")
    yield lambda: index.search(query, np.int64(3))


@needs_native
def test_what_it_leaves(answers):
    index, query = nhl.NestedIndex(48), rows(1, 48, 5)
    index.add(rows(60, 48))
    for call in left_alone(index, query):
        answers.clear()
        assert len(call()) == 2
        assert answers in ([], [None])


@needs_native
@pytest.mark.parametrize("change", ["removed", "two segments", "many bytes", "many neighbours", "width", "no memory"])
def test_states_that_it_leaves(change, answers, monkeypatch):
    length = 512 if change == "width" else 48  # 64 bytes may be bits that were not packed
    index, query, k = nhl.NestedIndex(length), rows(1, length, 5), 5
    index.add(rows(2000, length, pool=100))
    if change == "removed":
        index.remove([0, 77])
    elif change == "two segments":
        monkeypatch.setattr("nhl_fast.index.segments._SMALL_ROWS", 0)
        index.add(rows(100, length, 1))
    elif change == "many bytes":
        monkeypatch.setattr(direct, "MOST_BYTES", 1999 * 6)
    elif change == "many neighbours":
        k = direct.MOST_NEIGHBORS + 1
    elif change == "no memory":
        monkeypatch.setattr("nhl_fast.native.topk_one", lambda: lambda *arguments: False)
    assert equal(index.search(query, k), long_way(index, query, k))
    assert answers[0] is None


WRONG = [
    ({"k": 0}, ValueError, "k: expected"),
    ({"k": True}, TypeError, "k: expected"),
    ({"k": 61}, ValueError, "k: expected at most 60"),
    ({"k": 3, "length": 49}, ValueError, "length: expected at most 48"),
    ({"k": 3, "length": 8.0}, TypeError, "length: expected"),
    ({"k": 3, "output": "list"}, ValueError, "output: expected"),
    ({"k": 3, "backend": "gpu"}, ValueError, "backend: expected"),
    ({"k": 3, "beyond": "more"}, ValueError, "beyond: expected"),
    ({"k": 3, "metric": "l2"}, ValueError, "metric: expected"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_errors_are_those_of_the_long_way(options, error, message):
    index = nhl.NestedIndex(48)
    index.add(rows(60, 48))
    with pytest.raises(error, match=message):
        index.search(rows(1, 48, 5), **options)
    with pytest.raises(TypeError, match="queries: expected"):
        index.search(rows(1, 48, 5).tolist(), 3)
    with pytest.raises(ValueError, match="queries: expected rows of 6 bytes"):
        index.search(rows(1, 56, 5), 3)


def test_without_the_library(answers, monkeypatch):
    monkeypatch.setattr(direct, "available", lambda name: False)
    index, query = nhl.NestedIndex(48), rows(1, 48, 5)
    index.add(rows(60, 48))
    assert equal(index.search(query, 5), long_way(index, query, 5))
    assert answers[0] is None
