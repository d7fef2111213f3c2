"""A second ranking of candidates, against NumPy."""

import numpy as np
import pytest
import torch

import nhl_fast as nhl

RNG = np.random.default_rng(0)
UQ, UD = RNG.standard_normal((9, 20)), RNG.standard_normal((70, 20))
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
