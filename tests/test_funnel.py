"""Searches in stages, of rows and of an index, against the flat search and a plain definition."""

import itertools

import numpy as np
import oracle
import pytest
import torch
from index_model import filled, no_merging, rows
from native_cases import AVAILABLE, DETAIL

import nhl_fast as nhl
from nhl_fast.index.prefixes import Prefixes
from nhl_fast.retrieval.funnel.stages import nearest_among

native = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")
BACKENDS = ["reference", pytest.param("cpp", marks=native)]
FUNNELS = [((8, 6),), ((8, 20), (24, 7)), ((16, 9), (40, 9), (48, 5))]


def equal(found, right):
    return all(map(torch.equal, found, right))


def staged(queries, database, k, length, funnel, allow=None):
    """The definition: every stage a full sort by (distance, row)."""
    out = []
    for query in queries:
        left = np.arange(len(database)) if allow is None else np.flatnonzero(allow)
        for bits, count in (*funnel, (length, k)):
            d = oracle.distances(query[None], database[left], bits)[0]
            order = np.lexsort((left, d))[:count]
            left, d = left[order], d[order]
        out.append(list(zip(d.tolist(), left.tolist())) + [(-1, -1)] * (k - len(left)))
    return out


def as_pairs(found):
    return [list(zip(*row)) for row in zip(found[0].tolist(), found[1].tolist())]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("funnel", FUNNELS)
@pytest.mark.parametrize("masked", [False, True])
def test_stages_are_what_they_say(funnel, masked, backend):
    database, queries = rows(300, 64, 0, pool=90), rows(11, 64, 1, pool=5)
    allow = np.random.default_rng(2).random(300) < 0.1 if masked else None
    for length in (48, 53, 64):
        found = nhl.search(queries, database, 5, length, funnel=funnel, allow=allow, backend=backend)
        assert (found[0].dtype, found[1].dtype) == (torch.int32, torch.int64)
        assert as_pairs(found) == staged(queries, database, 5, length, funnel, allow)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_a_funnel_that_keeps_all_is_the_flat_search(seed, backend):
    generator = np.random.default_rng(seed)
    bits, n = 8 * int(generator.integers(2, 40)), int(generator.integers(1, 400))
    database, queries = rows(n, bits, seed, pool=max(1, n // 3)), rows(int(generator.integers(1, 9)), bits, seed + 9)
    allow = None if seed % 2 else generator.random(n) < 0.3
    k, length = int(generator.integers(1, n + 1)), int(generator.integers(bits // 2 + 1, bits + 1))
    first = 8 * int(generator.integers(1, length // 8 + 1))
    stages = ((first, n), (length // 8 * 8, n)) if first < length // 8 * 8 else ((first, n),)
    right = nhl.search(queries, database, k, length, allow=allow)
    assert equal(nhl.search(queries, database, k, length, allow=allow, funnel=stages, backend=backend), right)
    index = nhl.NestedIndex(bits)
    index.add(database)
    assert equal(index.search(queries, k, length, allow, funnel=stages, backend=backend), right)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_of_many_parts_keeps_its_order(monkeypatch, backend):
    """Interleaved ids, removed and replaced items, filters of every kind: to the last id."""
    no_merging(monkeypatch)
    index, _ = filled(72, n=240, blocks=7)
    queries = rows(8, 72, 5, pool=4)
    index.remove(index.ids[::5])
    index.update(index.ids[1::9], rows(len(index.ids[1::9]), 72, 6, pool=9))
    n, ids = len(index), index.ids
    mask = np.random.default_rng(3).random(n) < 0.4
    few = ids[np.random.default_rng(4).permutation(n)[:9]]
    for allow in (None, mask, few, index.filter(mask), index.filter(few)):
        for k, funnel in itertools.product((1, 5, 30), (((8, n),), ((8, n), (40, n)))):
            right = index.search(queries, k, allow=allow)
            assert equal(index.search(queries, k, allow=allow, funnel=funnel, backend=backend), right)
    # Fewer candidates: the same as rows in the order of their ids.
    codes = index.reconstruct(ids).numpy()
    for funnel in FUNNELS:
        for allow in (None, mask):
            d, places = nhl.search(queries, codes, 5, funnel=funnel, allow=allow)
            right = d, torch.where(places < 0, places, ids[places.clamp(min=0)])
            assert equal(index.search(queries, 5, funnel=funnel, allow=allow, backend=backend), right)


def test_prefixes_are_kept_with_their_codes_and_go_with_them():
    index = nhl.NestedIndex(256)
    index.add(rows(1000, 256))
    queries, plain = rows(3, 256, 1), index.nbytes
    for bits, more in ((64, 8), (64, 8), (24, 12), (136, 12), (256, 12)):
        index.search(queries, 10, funnel=((bits, 1000),))
        assert index.nbytes == plain + 1000 * more  # 24 bits lie 4 bytes apart; more than half a row is not copied
    index.remove(range(10))
    assert index.nbytes == plain + 1000 * 13  # and a mask
    assert equal(index.search(queries, 10, funnel=((64, 1000),)), index.search(queries, 10))
    index.add(rows(3000, 256, 2))
    assert equal(index.search(queries, 10, funnel=((64, 9999),)), index.search(queries, 10))
    index.compact()
    assert index.nbytes == 3990 * 32  # a new part, whose prefixes nobody has asked for


def test_prefixes_of_every_width():
    codes = torch.from_numpy(rows(50, 8 * 80))
    made = Prefixes(codes)
    for width in range(1, 81):
        assert torch.equal(made.of(width), codes[:, :width])
        assert made.of(width).data_ptr() == made.of(width).data_ptr()  # kept


def test_one_code_k_beyond_and_arrays():
    database, queries = rows(40, 64), rows(2, 64, 1)
    index = nhl.NestedIndex(64)
    index.add(database)
    for search in (lambda *a, **o: nhl.search(a[0], database, *a[1:], **o), index.search):
        whole = search(queries, 7, funnel=((8, 40),))
        one = search(queries[0], 7, funnel=((8, 40),))
        assert one[0].shape == one[1].shape == (7,)
        assert equal(one, [part[0] for part in whole])
        assert search(queries, 99, funnel=((8, 99),), beyond="cut")[0].shape == (2, 40)
        padded = search(queries, 42, funnel=((8, 99),), beyond="pad", output="numpy")
        assert isinstance(padded[1], np.ndarray)
        assert padded[1][:, 40:].tolist() == [[-1, -1]] * 2
        outputs = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
        scores, ids = search(queries, 42, funnel=((8, 99),), beyond="pad", rescore=outputs)
        assert scores[:, 40:].eq(-torch.inf).all()
        assert ids[:, 40:].eq(-1).all()
        assert torch.equal(search(queries[0], 7, funnel=((8, 40),), rescore=outputs[0])[1], ids[0, :7])
    empty = nhl.NestedIndex(64).search(queries, 3, funnel=((8, 9),), beyond="pad")
    assert empty[1].tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "mapped"])
@pytest.mark.parametrize("metric", ["cosine", "product"])
def test_vectors_rank_what_the_stages_leave(monkeypatch, tmp_path, kind, metric):
    no_merging(monkeypatch)
    index, _ = filled(48, n=120, blocks=4)
    generator = np.random.default_rng(0)
    vectors = (20 * generator.standard_normal((120, 10))).astype("float32" if kind == "mapped" else kind)
    if kind == "mapped":
        np.save(tmp_path / "v.npy", vectors)
        vectors = np.load(tmp_path / "v.npy", mmap_mode="r")
    queries, mine = rows(6, 48, 3), generator.standard_normal((6, 10)).astype(np.float32)
    ids, codes = index.ids, index.reconstruct(index.ids)
    mask = generator.random(120) < 0.2
    options = {"funnel": ((8, 30), (16, 9)), "rescore": (mine, vectors), "metric": metric}
    for allow in (None, mask):
        found = index.search(queries, 7, allow=allow, **options)
        scores, places = nhl.search(queries, codes, 7, allow=allow, **options)
        left = nhl.search(queries, codes, 9, length=16, funnel=((8, 30),), allow=allow)[1]
        assert equal((scores, places), nhl.rescore(mine, left, vectors=vectors, k=7, metric=metric))
        assert torch.equal(found[0], scores)
        assert torch.equal(found[1], torch.where(places < 0, places, ids[places.clamp(min=0)]))


def test_raw_outputs_rank_what_the_stages_leave(monkeypatch):
    no_merging(monkeypatch)
    index, _ = filled(48, n=120, blocks=4)
    outputs = np.random.default_rng(1).standard_normal((6, 48)).astype(np.float32)
    queries = nhl.pack_codes(outputs)
    ids, codes = index.ids, index.reconstruct(index.ids)
    for length in (16, 29, 48):
        options = {"length": length, "funnel": ((8, 20),), "rescore": outputs}
        scores, places = nhl.search(queries, codes, 7, **options)
        left = nhl.search(queries, codes, 20, length=8)[1]
        assert equal((scores, places), nhl.rescore(outputs, left, codes=codes, k=7, length=length))
        found = index.search(queries, 7, **options)
        # The parts rank rows of equal score by id, as rows in the order of their ids do.
        assert equal(found, (scores, ids[places]))


BAD = [
    ({"funnel": ()}, "funnel: expected pairs"),
    ({"funnel": 64}, "funnel: expected pairs"),
    ({"funnel": ((8,),)}, "funnel: expected pairs"),
    ({"funnel": ("64",)}, "funnel: expected pairs"),
    ({"funnel": ((12, 20),)}, "funnel: expected whole bytes, a multiple of 8 bits, got 12"),
    ({"funnel": ((8.5, 20),)}, "funnel: "),
    ({"funnel": ((0, 20),)}, "funnel: "),
    ({"funnel": ((72, 20),)}, "funnel: expected at most 64 bits"),
    ({"funnel": ((32, 20),), "length": 24}, "funnel: expected at most 24 bits"),
    ({"funnel": ((8, 4),)}, "funnel: "),
    ({"funnel": ((8, 20), (8, 10))}, r"funnel: expected more bits and no more candidates than \(8, 20\)"),
    ({"funnel": ((8, 20), (16, 30))}, "funnel: expected more bits and no more"),
    ({"funnel": None, "rescore": np.ones((3, 64), np.float32)}, "funnel: expected pairs"),
    ({"rescore": np.ones((3, 9), np.float32)}, "rescore: "),
    ({"rescore": np.ones((2, 64), np.float32)}, "rescore: expected 3 rows"),
    ({"rescore": np.full((3, 64), np.nan, np.float32)}, "rescore: "),
    ({"rescore": (np.ones((3, 4)),)}, "rescore: expected raw outputs, or a pair"),
    ({"rescore": (np.ones((3, 4)), np.ones((39, 4)))}, "rescore: expected 40 vectors"),
    ({"rescore": (np.ones((3, 5)), np.ones((40, 4)))}, "rescore: expected 4 numbers"),
    ({"rescore": "vectors"}, "rescore: "),
    ({"metric": "l2"}, "metric: "),
    ({"k": 41}, "k: "),
    ({"length": 65}, "length: "),
    ({"backend": "fast"}, "backend: "),
    ({"output": "list"}, "output: "),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_errors_name_the_argument(options, message):
    database, queries = rows(40, 64), rows(3, 64, 1)
    index = nhl.NestedIndex(64)
    index.add(database)
    good = {"queries": queries, "k": 5, "funnel": ((8, 20),)}
    for search in (lambda **o: nhl.search(database=database, **o), index.search):
        search(**good)
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            search(**{**good, **options})


# ------------------------------------------------------------------------------------------------------- in C++


@native
@pytest.mark.parametrize("bits", [1, 7, 8, 33, 64, 65, 100, 128, 256, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_nearest_among_candidates(bits, threads):
    generator = np.random.default_rng(bits)
    database, queries = (torch.from_numpy(rows(n, bits + 24, s, pool=20)) for n, s in ((200, 0), (7, 1)))
    wide = torch.zeros(200, database.shape[1] + 5, dtype=torch.uint8)
    wide[:, : database.shape[1]] = database
    candidates = torch.from_numpy(np.stack([generator.permutation(200)[:50] for _ in range(7)]))
    candidates[:, ::7] = -1
    candidates[3] = -1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for k in (1, 12, 50):
            right = nearest_among(queries, database, candidates, k, bits, 2**20, "reference")
            for items in (database, wide[:, : database.shape[1]]):
                assert equal(nearest_among(queries, items, candidates, k, bits, 2**20, "cpp"), right)
    finally:
        torch.set_num_threads(before)


@native
def test_the_operator():
    q, x, ids = torch.from_numpy(rows(3, 20)), torch.from_numpy(rows(9, 20)), torch.randint(-1, 9, (3, 4))
    op = torch.ops.nhl_fast.topk_among
    torch.library.opcheck(op.default, (q, x, ids, 2, 13), test_utils=["test_schema", "test_faketensor"])
    for bad in (
        (q, x, ids + 9, 2, 13),
        (q, x, ids - 2, 2, 13),
        (q, x, ids[:2], 2, 13),
        (q, x, ids.int(), 2, 13),
        (q, x, ids, -1, 13),
        (q, x, ids, 2, 25),
        (q, x, ids, 2, 0),
        (q.int(), x, ids, 2, 13),
    ):
        with pytest.raises(RuntimeError):
            op(*bad)
