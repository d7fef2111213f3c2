"""A second ranking of candidates, against NumPy."""

import numpy as np
import pytest
import torch
from native_cases import AVAILABLE, DETAIL

import nhl_fast as nhl
from nhl_fast.retrieval.rescore import RESCORE

RNG = np.random.default_rng(0)
# Multiples of 1/64, whose sums are exact in any order: items whose codes are equal at a length tie on every machine.
UQ, UD = (np.round(RNG.standard_normal((n, 20)) * 64) / 64 for n in (9, 70))
UD[UD == 0] = 1 / 64
CODES = nhl.pack_codes(UD)
CANDIDATES = np.stack([RNG.permutation(70)[:30] for _ in range(9)])


def expected(scores, candidates, k):
    """(scores, ids) by descending score, then ascending id."""
    order = [sorted(row, key=lambda i, s=s: (-s[i], i))[:k] for row, s in zip(candidates.tolist(), scores)]
    return np.array([s[row] for row, s in zip(order, scores)]), order


@pytest.mark.parametrize("length", [None, 8, 13])
@pytest.mark.parametrize("chunk_bytes", [1, 2**28])
def test_raw_outputs_against_codes(length, chunk_bytes):
    b = length or 20
    scores = UQ[:, :b] @ np.where(UD > 0, 1.0, -1.0)[:, :b].T
    options = {"codes": CODES, "length": length, "chunk_bytes": chunk_bytes}
    found = nhl.rescore(UQ, CANDIDATES, k=12, **options)
    right = expected(scores, CANDIDATES, 12)
    assert found[1].tolist() == right[1]
    assert np.allclose(found[0], right[0])
    assert found[0].dtype == torch.float64
    everything = nhl.rescore(UQ, None, k=70, **options)
    assert everything[1].tolist() == expected(scores, np.tile(np.arange(70), (9, 1)), 70)[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("metric", ["cosine", "product"])
def test_vectors_mapped_from_a_file(tmp_path, dtype, metric):
    vectors = (UD * 30).astype(dtype)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    q, v = UQ.astype(np.float32), vectors.astype(np.float64)
    scores = q @ v.T
    if metric == "cosine":
        scores /= np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(v, axis=1)
    found = nhl.rescore(q, CANDIDATES, vectors=mapped, k=5, metric=metric, chunk_bytes=5000)
    right = expected(scores, CANDIDATES, 5)
    assert found[1].tolist() == right[1]
    assert np.allclose(found[0], right[0], rtol=1e-5)


def test_missing_candidates_stay_missing():
    candidates = torch.full((9, 4), -1)
    candidates[:, 1] = torch.arange(9)
    scores, ids = nhl.rescore(UQ, candidates, codes=CODES)
    assert ids.tolist() == [[i, -1, -1, -1] for i in range(9)]
    assert scores[:, 1:].eq(-torch.inf).all()
    assert scores[:, 0].isfinite().all()


def test_a_funnel_that_keeps_all_is_the_search():
    queries = nhl.pack_codes(UQ)
    for length in (8, 13, 20, 24):
        found = nhl.funnel_search(queries, CODES, 15, ((4, 70), (9, 70)), length=length, chunk_bytes=1000)
        right = nhl.search(queries, CODES, 15, length)
        assert all(torch.equal(a, b) for a, b in zip(found, right))
        assert found[0].dtype == torch.int32
    vectors = nhl.funnel_search(UQ, CODES, 5, ((4, 999),), vectors=UD, query_vectors=UQ)
    everything = np.tile(np.arange(70), (9, 1))
    assert vectors[1].tolist() == nhl.rescore(UQ, everything, vectors=UD, k=5)[1].tolist()


def test_a_funnel_ranks_what_its_stages_leave():
    queries = nhl.pack_codes(UQ)
    left = nhl.search(queries, CODES, 20, 8)[1]
    found = nhl.funnel_search(UQ, CODES, 6, ((8, 20),))
    assert found[1].tolist() == nhl.rescore(UQ, left, codes=CODES, k=6)[1].tolist()
    bits = np.where(UQ > 0, 1.0, -1.0)
    assert nhl.funnel_search(bits, CODES, 6, ((8, 20),))[0].dtype == torch.int32  # a code, whatever its dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": None}, "vectors: "),
        ({"vectors": UD}, "vectors: expected either"),
        ({"queries": UQ[:, :7]}, "queries: "),
        ({"candidates": CANDIDATES + 50}, "candidates: expected ids from 0 to 69"),
        ({"candidates": CANDIDATES[:3]}, "candidates: "),
        ({"candidates": CANDIDATES.astype(float)}, "candidates: "),
        ({"k": 31}, "k: "),
        ({"candidates": None}, "k: "),
        ({"length": 21}, "length: "),
        ({"codes": None, "vectors": UD, "length": 8}, "length: "),
        ({"codes": None, "vectors": UD, "metric": "l2"}, "metric: "),
        ({"codes": None, "vectors": UD[:, :5]}, "queries: expected 5 numbers"),
        ({"codes": None, "vectors": np.full((70, 20), np.inf)}, "vectors: expected finite"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        nhl.rescore(**{"queries": UQ, "candidates": CANDIDATES, "codes": CODES, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"funnel": ()}, "funnel: "),
        ({"funnel": ((8,),)}, "funnel: "),
        ({"funnel": ((8, 4),)}, "funnel: "),
        ({"funnel": ((25, 10),)}, "funnel: "),
        ({"funnel": ((8, 20), (8, 10))}, "funnel: expected more bits"),
        ({"funnel": ((8, 20), (9, 30))}, "funnel: expected more bits"),
        ({"vectors": UD}, "query_vectors: "),
        ({"k": 71}, "k: "),
        ({"length": 25}, "length: "),
    ],
)
def test_errors_of_a_funnel_name_the_argument(options, message):
    good = {"queries": nhl.pack_codes(UQ), "database": CODES, "k": 5, "funnel": ((8, 20),)}
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        nhl.funnel_search(**{**good, **options})


# ------------------------------------------------------------------------------------------------------- in C++

native = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}


def drawn(n, width, dtype=torch.float32, seed=0):
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return (30 * x).to(dtype) if dtype == torch.int8 else x.to(dtype)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("width", [1, 15, 64, 100, 384])
def test_compiled_scores_of_vectors(dtype, unit, width):
    """Float64's, to what a float32 sum may lose; strided rows, and rows of zeros and of the smallest numbers."""
    wide = drawn(90, width + 3, DTYPES[dtype], 1)
    vectors, queries = wide[:, :width], drawn(7, width)
    vectors[5] = 0
    if dtype == "float16":
        vectors[6] = vectors[6] * 2.0**-20  # subnormal
    ids = torch.randint(0, 90, (7, 33), generator=torch.Generator().manual_seed(2))
    ids[:, :2] = torch.tensor([5, 6])
    found = RESCORE.pick("cpp", torch.device("cpu"), (queries, ids, vectors, None, torch.float32, unit)).function(
        queries, ids, vectors, None, torch.float32, unit
    )
    rows = vectors.double()[ids]
    norms = rows.norm(dim=2).clamp(min=1e-300) if unit else torch.ones(7, 33).double()
    right = (rows * queries.double()[:, None]).sum(2) / norms
    room = (rows * queries.double()[:, None]).abs().sum(2) / norms
    assert found.dtype == torch.float32
    assert ((found - right).abs() <= 2e-6 * room).all()
    assert found[:, 0].eq(0).all()


@native
@pytest.mark.parametrize("length", [1, 7, 8, 13, 200, 256])
def test_compiled_scores_of_codes(length):
    outputs = drawn(6, 256)
    codes = nhl.pack_codes(drawn(50, 256, seed=3))
    ids = torch.randint(0, 50, (6, 20), generator=torch.Generator().manual_seed(2))
    found = nhl.native.score_codes(outputs, codes, ids, length)
    signs = (drawn(50, 256, seed=3) > 0).double()[:, :length] * 2 - 1
    right = (signs[ids] * outputs.double()[:, None, :length]).sum(2)
    torch.testing.assert_close(found.double(), right, rtol=0, atol=2e-6 * length)


@native
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["codes", "float16", "mapped"])
def test_the_backends_rank_alike(tmp_path, kind, threads):
    queries, vectors = drawn(9, 64), drawn(300, 64, torch.float16, 1)
    if kind == "mapped":
        np.save(tmp_path / "v.npy", vectors.numpy())
        vectors = np.load(tmp_path / "v.npy", mmap_mode="r")
    options = {"codes": nhl.pack_codes(drawn(300, 64, seed=1))} if kind == "codes" else {"vectors": vectors}
    candidates = torch.stack([torch.randperm(300)[:50] for _ in range(9)])
    candidates[:, 4] = -1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = (nhl.rescore(queries, candidates, k=10, backend=b, **options) for b in ("cpp", "reference"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@native
def test_what_cpp_does_not_serve_it_says():
    for options, why in (
        ({"queries": UQ, "codes": CODES}, "scores are torch.float64"),
        ({"queries": UQ.astype(np.float32), "codes": CODES, "candidates": None, "k": 3}, "candidates: None"),
        ({"queries": UQ.astype(np.float32), "vectors": torch.ones(20, 70).T}, "side by side"),
    ):
        good = {"candidates": CANDIDATES, **options}
        with pytest.raises(RuntimeError, match=f"^backend: 'cpp' cannot serve rescore here: .*{why}"):
            nhl.rescore(**good, backend="cpp")
        nhl.rescore(**good)
    with pytest.raises(ValueError, match=r"^backend: "):
        nhl.rescore(UQ, CANDIDATES, codes=CODES, backend="fast")


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_vectors_that_are_not_finite(dtype, value):
    vectors = drawn(70, 20, dtype)
    vectors[int(CANDIDATES[3, 7]), 19] = value
    with pytest.raises(ValueError, match=r"^vectors: expected finite"):
        nhl.rescore(UQ.astype(np.float32), CANDIDATES, vectors=vectors, backend="cpp")


@native
def test_the_operators_of_rescoring():
    q, v, ids = drawn(3, 20), drawn(9, 20), torch.randint(0, 9, (3, 4))
    codes = nhl.pack_codes(v)
    ops = torch.ops.nhl_fast
    torch.library.opcheck(ops.score_codes.default, (q, codes, ids, 13), test_utils=["test_schema", "test_faketensor"])
    torch.library.opcheck(ops.score_vectors.default, (q, v, ids, True), test_utils=["test_schema"])
    for call in (
        lambda: ops.score_vectors(q, v, ids + 9, True),
        lambda: ops.score_vectors(q, v, ids - 9, True),
        lambda: ops.score_vectors(q[:2], v, ids, True),
        lambda: ops.score_vectors(q, v[:, :5], ids, True),
        lambda: ops.score_vectors(q, v.double(), ids, True),
        lambda: ops.score_vectors(q.double(), v, ids, True),
        lambda: ops.score_vectors(q, v, ids.int(), True),
        lambda: ops.score_codes(q, codes, ids + 9, 8),
        lambda: ops.score_codes(q, codes, ids, 21),
        lambda: ops.score_codes(q, codes, ids, 0),
    ):
        with pytest.raises(RuntimeError):
            call()
