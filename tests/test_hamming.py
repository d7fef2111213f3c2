import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nhl_fast.core import backend as backends
from nhl_fast.core.backend import probe
from nhl_fast.retrieval import hamming
from nhl_fast.retrieval.hamming import hamming_distances, radius_search, search

# These tests hold CPU tensors.
BACKENDS = [name for name in ("reference", "cpp") if probe(name).available]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def rows(n, num_bytes, seed=0, pool=None):
    """Random packed rows; with `pool`, drawn from that many distinct ones, so full of ties."""
    generator = np.random.default_rng(seed)
    if pool is None:
        return generator.integers(0, 256, (n, num_bytes), dtype=np.uint8)
    return rows(pool, num_bytes, seed)[generator.integers(0, pool, n)]


@st.composite
def problems(draw):
    """Queries, database, length and an allow mask (or None): small, full of ties."""
    num_bytes = draw(st.integers(1, 3))
    length = draw(st.integers(1, 8 * num_bytes))
    q, n = draw(st.integers(1, 4)), draw(st.integers(1, 13))
    seed = draw(st.integers(0, 2**16))
    pool = draw(st.sampled_from([1, 2, 4, 16]))
    allow = None
    if draw(st.booleans()):
        allow = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    return rows(q, num_bytes, seed, pool), rows(n, num_bytes, seed, pool), length, allow


@every_backend
@pytest.mark.parametrize("length", [*range(1, 17), 48, 100, 127, 128])
def test_one_length(length, backend):
    q, d = rows(5, 16, 1), rows(37, 16, 2)
    result = hamming_distances(torch.from_numpy(q), torch.from_numpy(d), length, backend=backend)
    assert result.dtype == torch.int32
    assert result.shape == (5, 37)
    assert np.array_equal(result.numpy(), oracle.distances(q, d, length))


@every_backend
@pytest.mark.parametrize("lengths", [(5, 12, 48, 100), (8, 16, 32, 64, 128), tuple(range(1, 17)), (7,)])
def test_several_lengths(lengths, backend):
    q, d = rows(4, 16, 1), rows(29, 16, 2)
    result = hamming_distances(q, d, lengths, backend=backend)
    assert result.shape == (len(lengths), 4, 29)
    for j, b in enumerate(lengths):
        assert np.array_equal(result[j].numpy(), oracle.distances(q, d, b))


@every_backend
def test_all_bits_and_long_codes(backend):
    q, d = rows(3, 130, 1), rows(11, 130, 2)
    d[0] = ~q[0]
    expected = oracle.distances(q, d, 1040)
    assert np.array_equal(hamming_distances(q, d, backend=backend).numpy(), expected)
    assert expected[0, 0] == 1040
    assert np.array_equal(hamming_distances(q, d, 1024, backend=backend).numpy(), oracle.distances(q, d, 1024))


def test_numpy_integers_are_lengths():
    q, d = rows(3, 2, 1), rows(4, 2, 2)
    assert torch.equal(hamming_distances(q, d, np.int64(12)), hamming_distances(q, d, 12))
    assert torch.equal(hamming_distances(q, d, np.array([3, 12])), hamming_distances(q, d, (3, 12)))


@every_backend
def test_rows_of_unequal_width_compare_a_prefix(backend):
    q, d = rows(3, 4, 1), rows(5, 16, 2)
    assert np.array_equal(hamming_distances(q, d, 30, backend=backend).numpy(), oracle.distances(q, d, 30))
    with pytest.raises(ValueError, match="database: expected rows of 4 bytes"):
        hamming_distances(q, d, backend=backend)
    with pytest.raises(ValueError, match="length: expected at most 32"):
        search(q, d, 1, 33, backend=backend)


@every_backend
def test_non_contiguous_rows(backend):
    q, d = torch.from_numpy(rows(10, 8, 1)), torch.from_numpy(rows(40, 8, 2))
    expected = hamming_distances(q[::2, 1::2].contiguous(), d[::3, 1::2].contiguous(), backend=backend)
    assert torch.equal(hamming_distances(q[::2, 1::2], d[::3, 1::2], backend=backend), expected)
    assert torch.equal(hamming_distances(q[::2, 1::2], d[::3, 1::2].T.contiguous().T, backend=backend), expected)
    with_numpy = hamming_distances(q.numpy()[::-1], d.numpy()[::-1], backend=backend)
    assert torch.equal(with_numpy, hamming_distances(q.flip(0), d.flip(0), backend=backend))


@every_backend
@pytest.mark.parametrize(("num_queries", "n"), [(0, 5), (3, 0), (0, 0), (1, 1)])
def test_few_rows(num_queries, n, backend):
    q, d = rows(num_queries, 2), rows(n, 2)
    assert hamming_distances(q, d, backend=backend).shape == (num_queries, n)
    assert hamming_distances(q, d, (3, 9), backend=backend).shape == (2, num_queries, n)
    offsets, distances, ids = radius_search(q, d, 16, backend=backend)
    assert offsets.tolist() == [n * i for i in range(num_queries + 1)]
    assert len(distances) == len(ids) == num_queries * n
    if n:
        found, ids = search(q, d, n, backend=backend)
        assert found.shape == ids.shape == (num_queries, n)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_exact_at_every_matmul_precision(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        q, d = rows(9, 128, 1), rows(65, 128, 2)
        assert np.array_equal(hamming_distances(q, d, 1021).numpy(), oracle.distances(q, d, 1021))
    finally:
        torch.set_float32_matmul_precision(before)


@every_backend
@pytest.mark.parametrize("chunk_bytes", [1, 300, 5_000, 100_000])
def test_chunks_do_not_change_results(chunk_bytes, backend):
    q, d = rows(6, 4, 1, pool=9), rows(53, 4, 1, pool=9)
    allow = np.arange(53) % 3 > 0
    for call in (
        lambda **kw: (hamming_distances(q, d, (3, 8, 29), backend=backend, **kw),),
        lambda **kw: search(q, d, 20, 29, allow=allow, backend=backend, **kw),
        lambda **kw: radius_search(q, d, 12, 29, allow=allow, backend=backend, **kw),
    ):
        for ours, whole in zip(call(chunk_bytes=chunk_bytes), call()):
            assert torch.equal(ours, whole)


@pytest.mark.parametrize("chunk_bytes", [1, 4_096, 2**20])
def test_tiles_fit_the_chunk(chunk_bytes):
    for num_queries, n, item, pair in [(1, 10**9, 1280, 12), (10**6, 10**6, 8, 40), (7, 3, 10, 28)]:
        tile_rows, tile_items = hamming.tile_shape(num_queries, n, item, pair, chunk_bytes, torch.device("cuda"))
        assert 1 <= tile_rows <= num_queries
        assert 1 <= tile_items <= n
        if chunk_bytes >= 4_096:
            assert (tile_items + tile_rows) * item + tile_rows * tile_items * pair <= chunk_bytes


@every_backend
@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_search_by_distance_then_id(backend, problem, data):
    q, d, length, allow = problem
    k = data.draw(st.integers(1, len(d)))
    chunk_bytes = data.draw(st.sampled_from([1, 500, 2**20]))
    found, ids = search(q, d, k, length, allow=allow, chunk_bytes=chunk_bytes, backend=backend)
    assert found.dtype == torch.int32
    assert ids.dtype == torch.int64
    for i, row in enumerate(oracle.distances(q, d, length)):
        assert list(zip(found[i].tolist(), ids[i].tolist())) == oracle.nearest(row, k, allow)


@every_backend
@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 26), st.sampled_from([1, 500, 2**20]))
def test_radius_search_by_distance_then_id(backend, problem, radius, chunk_bytes):
    q, d, length, allow = problem
    offsets, found, ids = radius_search(q, d, radius, length, allow=allow, chunk_bytes=chunk_bytes, backend=backend)
    assert (offsets.dtype, found.dtype, ids.dtype) == (torch.int64, torch.int32, torch.int64)
    assert offsets[0] == 0
    assert offsets[-1] == len(found) == len(ids)
    for i, row in enumerate(oracle.distances(q, d, length)):
        part = slice(int(offsets[i]), int(offsets[i + 1]))
        expected = oracle.within(row, radius, allow)
        assert list(zip(found[part].tolist(), ids[part].tolist())) == expected


@every_backend
def test_radius_search_at_both_extremes(backend):
    # The farthest item of one query and the nearest of the next must not mix, whatever the tiles.
    q = np.array([[0], [255]], dtype=np.uint8)
    d = np.array([[255], [0], [255], [0]], dtype=np.uint8)
    for chunk_bytes in (1, 2**20):
        offsets, found, ids = radius_search(q, d, 8, chunk_bytes=chunk_bytes, backend=backend)
        assert offsets.tolist() == [0, 4, 8]
        assert found.tolist() == [0, 0, 8, 8] * 2
        assert ids.tolist() == [1, 3, 0, 2, 0, 2, 1, 3]


@every_backend
def test_full_ranking_of_a_larger_database(backend):
    q, d = rows(3, 2, 1), rows(5_000, 2, 2)
    found, ids = search(q, d, 5_000, 9, backend=backend)
    expected = oracle.distances(q, d, 9)
    order = np.argsort(expected, axis=1, kind="stable")
    assert np.array_equal(ids.numpy(), order)
    assert np.array_equal(found.numpy(), np.take_along_axis(expected, order, 1))


@every_backend
def test_nothing_allowed(backend):
    q, d = rows(2, 2), rows(4, 2)
    allow = torch.zeros(4, dtype=torch.bool)
    found, ids = search(q, d, 3, allow=allow, backend=backend)
    assert (found == -1).all()
    assert (ids == -1).all()
    assert radius_search(q, d, 16, allow=allow, backend=backend)[0].tolist() == [0, 0, 0]


@every_backend
@pytest.mark.slow
def test_keys_beyond_32_bits(backend):
    # length * n passes 2**31; expanded rows keep the memory small.
    n = 2_200_000
    q = torch.zeros(1, 128, dtype=torch.uint8)
    d = torch.full((1, 128), 255, dtype=torch.uint8).expand(n, -1)
    found, ids = search(q, d, 3, backend=backend)
    assert found.tolist() == [[1024] * 3]
    assert ids.tolist() == [[0, 1, 2]]


@every_backend
def test_matches_faiss(backend):
    faiss = pytest.importorskip("faiss")
    q, d = rows(20, 8, 1), rows(500, 8, 2)
    index = faiss.IndexBinaryFlat(64)
    index.add(d)
    expected, _ = index.search(q, 17)
    assert np.array_equal(search(q, d, 17, backend=backend)[0].numpy(), expected)
    limits, theirs, their_ids = index.range_search(q, 26)
    offsets, ours, ids = radius_search(q, d, 25, backend=backend)  # faiss keeps distances below its radius
    assert np.array_equal(offsets.numpy(), limits.astype(np.int64))
    assert sorted(zip(ours.tolist(), ids.tolist())) == sorted(zip(theirs.astype(int).tolist(), their_ids.tolist()))


def test_an_unavailable_backend_says_why(monkeypatch):
    absent = backends.Backend("cpp", False, "no compiler was found")
    monkeypatch.setattr(backends, "probe", lambda name: absent if name == "cpp" else probe(name))
    q = torch.zeros(1, 1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="no compiler was found"):
        hamming_distances(q, q, backend="cpp")
    with pytest.raises(ValueError, match="not on 'triton'"):
        hamming_distances(q, q, backend="triton")
    with pytest.raises(ValueError, match="backend: expected one of"):
        hamming_distances(q, q, backend="gpu")
    assert hamming_distances(q, q).tolist() == [[0]]


ROWS = torch.zeros(3, 2, dtype=torch.uint8)
MASK = torch.ones(3, dtype=torch.bool)
BAD = [
    (lambda: hamming_distances(ROWS.int(), ROWS), TypeError, "queries: expected packed uint8"),
    (lambda: hamming_distances(ROWS, [[1, 2]]), TypeError, "database: expected a torch.Tensor"),
    (lambda: hamming_distances(ROWS, ROWS[0]), ValueError, "database: expected packed rows"),
    (lambda: hamming_distances(ROWS[:, :0], ROWS), ValueError, "queries: expected packed rows"),
    (lambda: hamming_distances(ROWS, ROWS[:, :1]), ValueError, "database: expected rows of 2 bytes"),
    (lambda: hamming_distances(ROWS, ROWS.to("meta")), ValueError, "database: expected values, got .* meta device"),
    (lambda: hamming_distances(ROWS, ROWS, 17), ValueError, "lengths: expected at most 16"),
    (lambda: hamming_distances(ROWS, ROWS, (8, 17)), ValueError, "lengths: expected at most 16"),
    (lambda: hamming_distances(ROWS, ROWS, (8, 8)), ValueError, "lengths: expected strictly increasing"),
    (lambda: hamming_distances(ROWS, ROWS, ()), ValueError, "lengths: expected at least one"),
    (lambda: hamming_distances(ROWS, ROWS, 0), ValueError, "lengths: .*at least 1"),
    (lambda: hamming_distances(ROWS, ROWS, 8.0), TypeError, "lengths: expected an integer"),
    (lambda: hamming_distances(ROWS, ROWS, "8"), TypeError, "lengths: expected"),
    (lambda: hamming_distances(ROWS, ROWS, chunk_bytes=0), ValueError, "chunk_bytes: .*at least 1"),
    (lambda: search(ROWS, ROWS, 4), ValueError, "k: expected at most n = 3"),
    (lambda: search(ROWS, ROWS, 0), ValueError, "k: .*at least 1"),
    (lambda: search(ROWS, ROWS, 1.0), TypeError, "k: expected an integer"),
    (lambda: search(ROWS, ROWS, 1, (8,)), TypeError, "length: expected an integer"),
    (lambda: search(ROWS, ROWS, 1, 17), ValueError, "length: expected at most 16"),
    (lambda: search(ROWS, ROWS, 1, allow=MASK[:2]), ValueError, r"allow: expected shape \(3,\)"),
    (lambda: search(ROWS, ROWS, 1, allow=MASK.int()), TypeError, "allow: expected a bool mask"),
    (lambda: search(ROWS, ROWS, 1, allow=[True] * 3), TypeError, "allow: expected a torch.Tensor"),
    (lambda: radius_search(ROWS, ROWS, -1), ValueError, "radius: .*at least 0"),
    (lambda: radius_search(ROWS, ROWS, 1.5), TypeError, "radius: expected an integer"),
    (lambda: radius_search(ROWS, ROWS, 1, allow=MASK[:, None]), ValueError, "allow: expected shape"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_rejects(call, error, message):
    with pytest.raises(error, match=message):
        call()
