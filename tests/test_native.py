"""The native operators against brute force, at every instruction level of this machine."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_cases import (  # noqa: F401
    AVAILABLE,
    DETAIL,
    assert_topk,
    brute_topk,
    each_isa,
    levels,
    make_rows,
    one_and_two_threads,
)

from nhl_fast import native
from nhl_fast.retrieval import ranking

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")

LENGTHS = (1, 5, 8, 12, 31, 32, 33, 48, 64, 65, 96, 100, 127, 128, 129, 160, 255, 256, 500, 992, 1000, 1024)
SIZES = (1, 7, 8, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4097)


@pytest.mark.parametrize("length", LENGTHS)
def test_distances_of_every_length(isa, length):
    num_bytes = (length + 7) // 8
    queries, database = make_rows(5, num_bytes, seed=1), make_rows(131, num_bytes, seed=2)
    database[0], database[1] = queries[0], ~queries[0]
    lengths = sorted({1, length, max(1, length // 3), max(1, length // 2), max(1, length - 1)})
    found = native.distances(torch.from_numpy(queries), torch.from_numpy(database), lengths)
    for j, b in enumerate(lengths):
        assert np.array_equal(found[j].numpy(), oracle.distances(queries, database, b))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["random", "equal", "ties", "sorted"])
def test_topk_sizes_and_ties(isa, threads, n, kind):
    queries, database = make_rows(6, 16, seed=3), make_rows(n, 16, kind)
    queries[0], queries[1], queries[2] = 0, database[0], ~database[0]
    for k in sorted({1, min(10, n), max(1, n // 2), n}):
        assert_topk(queries, database, k, 128)


@pytest.mark.parametrize("length", LENGTHS)
def test_topk_of_every_length(isa, length):
    queries, database = make_rows(5, (length + 7) // 8, seed=3), make_rows(700, (length + 7) // 8, "ties")
    for k in (1, 9, 300, 700):
        assert_topk(queries, database, k, length)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_topk_allow_mask_and_base(isa, threads, share):
    queries, database = make_rows(3, 8, seed=3), make_rows(3000, 8, "ties")
    allow = np.random.default_rng(0).random(3000) < share
    for k in (1, 20, 1500, 3000):
        assert_topk(queries, database, k, 61, allow, base=2**40)


def test_topk_many_items_and_queries(isa, threads):
    queries, database = make_rows(70, 4, seed=3), make_rows(100_000, 4)
    tie = np.arange(100_000) % 7 == 0
    database[tie] = database[0]
    for some in (queries, queries[:1], queries[:6]):
        found = native.topk(torch.from_numpy(some), torch.from_numpy(database), 1100, 32)
        for q in range(0, len(some), 23):
            expected = brute_topk(oracle.distances(some[q : q + 1], database, 32), 1100)
            assert np.array_equal(found[0][q].numpy(), expected[0, 0])
            assert np.array_equal(found[1][q].numpy(), expected[1, 0])


@pytest.mark.parametrize("length", [1, 12, 64, 128, 300])
def test_radius(isa, threads, length):
    num_bytes = (length + 7) // 8
    queries, database = make_rows(9, num_bytes, seed=3), make_rows(2000, num_bytes, "ties")
    queries[0] = database[5]
    allow = np.random.default_rng(0).random(2000) < 0.5
    distances = oracle.distances(queries, database, length)
    for mask in (None, allow):
        for radius in (0, length // 3, length // 2, length, length + 7):
            offsets, found, ids = native.radius(
                torch.from_numpy(queries),
                torch.from_numpy(database),
                radius,
                length,
                None if mask is None else torch.from_numpy(mask),
                100,
            )
            assert offsets[0] == 0
            for q, row in enumerate(distances):
                expected = np.argsort(row, kind="stable")
                expected = expected[(row[expected] <= radius) & (True if mask is None else mask[expected])]
                own = slice(int(offsets[q]), int(offsets[q + 1]))
                assert np.array_equal(ids[own].numpy(), expected + 100)
                assert np.array_equal(found[own].numpy(), row[expected])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 150), st.integers(0, 90), st.integers(0, 6), st.integers(0, 2**20), st.booleans(), st.data())
def test_search_by_hypothesis(isa, length, n, num_queries, seed, masked, data):
    num_bytes = (length + 7) // 8
    queries, database = make_rows(num_queries, num_bytes, "ties", seed), make_rows(n, num_bytes, "ties", seed)
    allow = np.random.default_rng(seed).random(n) < 0.5 if masked else None
    assert_topk(queries, database, data.draw(st.integers(0, n + 2)), length, allow, base=seed)


def views(rows):
    """The same rows as tensors of other strides, offsets and owners."""
    n, width = rows.shape
    flat = torch.empty(n * width + 3, dtype=torch.uint8)
    flat[3:] = torch.from_numpy(rows).flatten()
    yield "storage offset 3", flat[3:].view(n, width)
    wide = torch.full((n, width + 5), 255, dtype=torch.uint8)
    wide[:, 2 : 2 + width] = torch.from_numpy(rows)
    yield "columns of a wider matrix", wide[:, 2 : 2 + width]
    yield "every other row", torch.from_numpy(np.repeat(rows, 2, axis=0))[::2]
    yield "transposed", torch.from_numpy(rows.T.copy()).T
    yield "every other column", torch.from_numpy(np.repeat(rows, 2, axis=1))[:, ::2]


@pytest.mark.parametrize("num_bytes", [1, 3, 4, 8, 16, 21])
def test_views_and_unaligned_memory(isa, num_bytes):
    queries, database = make_rows(4, num_bytes, seed=3), make_rows(300, num_bytes)
    length = 8 * num_bytes - 1
    expected = native.topk(torch.from_numpy(queries), torch.from_numpy(database), 40, length)
    every = oracle.distances(queries, database, length)
    assert np.array_equal(expected[0].numpy(), brute_topk(every, 40)[0])
    for (name, q), (_, d) in zip(views(queries), views(database)):
        found = native.topk(q, d, 40, length)
        assert all(torch.equal(a, b) for a, b in zip(found, expected)), name
        assert np.array_equal(native.distances(q, d, [length])[0].numpy(), every), name
    one = torch.from_numpy(database[:1]).expand(300, num_bytes)
    assert (native.distances(torch.from_numpy(database[:1]), one, [length]) == 0).all()


def test_read_only_memory_map(tmp_path, isa):
    database = make_rows(500, 16)
    database.tofile(tmp_path / "codes")
    mapped = np.memmap(tmp_path / "codes", dtype=np.uint8, mode="r", shape=(500, 16))
    from nhl_fast.core.arrays import as_tensor

    found = native.topk(torch.from_numpy(database[:3]), as_tensor(mapped), 5, 128)
    assert np.array_equal(found[1].numpy(), brute_topk(oracle.distances(database[:3], database, 128), 5)[1])


# ------------------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 31, 33, 100, 128, 1024])
def test_pack(isa, dtype, length):
    x = torch.randn(40, length).to(dtype)
    tiny = torch.finfo(dtype).smallest_normal / 2  # denormal: above zero all the same
    for row, value in enumerate((0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), tiny, -tiny)):
        x[row, ::2] = value
    expected = np.packbits((x.double() > 0).numpy(), axis=1)
    assert np.array_equal(native.pack(x).numpy(), expected)
    assert np.array_equal(native.pack(x.T.contiguous().T).numpy(), expected)
    padded = torch.nn.functional.pad(x, (3, 2))
    assert np.array_equal(native.pack(padded[:, 3 : 3 + length]).numpy(), expected)
    assert native.pack(x[:0]).shape == (0, (length + 7) // 8)


# --------------------------------------------------------------------------------------------------- evaluation


def make_labels(n, form, seed):
    generator = np.random.default_rng(seed)
    if form == "ids":
        return torch.from_numpy(generator.integers(0, 4, n))
    classes = {"sets": 6, "many sets": 130}[form]
    return torch.from_numpy((generator.random((n, classes)) < 1.5 / classes).astype(np.uint8))


def assert_evaluation(queries, database, q_labels, db_labels, lengths, cutoff):
    arguments = (torch.from_numpy(queries), torch.from_numpy(database), q_labels, db_labels, lengths)
    histograms, sums = ranking.collect(*arguments, cutoff, 2**28)
    found, precision, retrieved, hits, recall = native.evaluate(*arguments, cutoff)
    for a, b, c in zip(found, histograms, native.histograms(*arguments)):
        assert torch.equal(a, b)
        assert torch.equal(c, b)
    assert torch.equal(retrieved, sums.retrieved)
    assert torch.equal(hits, sums.hits)
    torch.testing.assert_close(precision, sums.precision, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(recall, sums.recall, rtol=1e-12, atol=1e-13)
    return found, precision, retrieved, hits, recall


@pytest.mark.parametrize("form", ["ids", "sets", "many sets"])
@pytest.mark.parametrize("kind", ["random", "equal", "ties"])
def test_evaluation(isa, form, kind):
    for n in (1, 63, 64, 65, 258, 1001):
        queries, database = make_rows(7, 5, seed=3), make_rows(n, 5, kind)
        labels = make_labels(7, form, 1), make_labels(n, form, 2)
        for cutoff in {1, max(1, n // 3), n}:
            assert_evaluation(queries, database, *labels, (3, 8, 12, 40), cutoff)


def test_average_precision_from_its_definition(isa):
    queries, database = make_rows(5, 2, seed=3), make_rows(200, 2, "ties")
    labels = make_labels(5, "sets", 1), make_labels(200, "sets", 2)
    relevant = oracle.relevance(*(t.numpy() for t in labels))
    arguments = (torch.from_numpy(queries), torch.from_numpy(database), *labels, (9, 16))
    _, precision, retrieved, *_ = native.evaluate(*arguments, 50)
    for j, b in enumerate((9, 16)):
        for q, row in enumerate(oracle.distances(queries, database, b)):
            ranked = relevant[q][np.argsort(row, kind="stable")]
            sums = sum(ranked[: r + 1].sum() / (r + 1) for r in range(50) if ranked[r])
            assert retrieved[j, q] == ranked[:50].sum()
            assert precision[j, q].item() == pytest.approx(sums, rel=1e-13)


def test_evaluation_of_many_items_and_mixed_labels(isa):
    n = 131_072 + 777
    queries, database = make_rows(3, 2, seed=3), make_rows(n, 2, "ties")
    q_labels, db_labels = torch.tensor([0, 3, 5]), make_labels(n, "sets", 2)
    assert_evaluation(queries, database, q_labels, db_labels, (7, 16), 5000)


def test_results_do_not_depend_on_threads_or_level(monkeypatch):
    queries, database = make_rows(40, 16, seed=3), make_rows(3000, 16, "ties")
    labels = make_labels(40, "ids", 1), make_labels(3000, "ids", 2)
    arguments = (torch.from_numpy(queries), torch.from_numpy(database), *labels, (8, 16, 32, 64, 128), 3000)
    results, before = [], torch.get_num_threads()
    for level in levels():
        for threads in (1, 2, 3):
            monkeypatch.setenv("NHL_FAST_CPU_ISA", level)
            torch.set_num_threads(threads)
            results.append(native.evaluate(*arguments)[1:])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results for a, b in zip(results[0], other))


@pytest.mark.parametrize("highest", [200, 40_000, 2**31 - 1, 2**40])
def test_label_ids_of_every_width(highest):
    labels = torch.tensor([0, 1, highest, highest - 1, highest - 256 if highest > 256 else 2])
    codes = torch.from_numpy(make_rows(5, 1))
    relevant = torch.stack([h[..., 1].sum(1) for h in native.histograms(codes, codes, labels, labels, (8,))])
    assert relevant.tolist() == [[1] * 5]


def test_label_words():
    labels = torch.from_numpy(np.random.default_rng(0).random((7, 130)) < 0.3)
    words = native.label_words(labels, 130)
    assert words.shape == (7, 3)
    for c in range(130):
        assert torch.equal((words[:, c // 64] >> c % 64) & 1, labels[:, c].long())
    ids = torch.tensor([0, 63, 64, 129])
    assert torch.equal(native.label_words(ids, 130), native.label_words(torch.nn.functional.one_hot(ids, 130), 130))


# ------------------------------------------------------------------------------------------------ the operators


def sample_arguments():
    queries, database = torch.from_numpy(make_rows(3, 5)), torch.from_numpy(make_rows(20, 5))
    labels = torch.zeros(3, dtype=torch.uint8), torch.ones(20, dtype=torch.uint8)
    allow = torch.ones(20, dtype=torch.bool)
    return {
        "pack": (torch.randn(4, 12),),
        "distances": (queries, database, [3, 40]),
        "histograms": (queries, database, *labels, [3, 40]),
        "evaluate": (queries, database, *labels, [3, 40], 7),
        "evaluate_gains": (queries, database, *labels, [3, 40], 7, [2, 20]),
        "topk": (queries, database, 4, 33, allow, 5),
        "radius": (queries, database, 20, 33, allow, 5),
    }


@pytest.mark.parametrize("name", list(sample_arguments()))
def test_opcheck(name):
    operator = getattr(torch.ops.nhl_fast, name).default
    tests = ["test_schema", "test_faketensor"] + (["test_aot_dispatch_dynamic"] if name != "radius" else [])
    torch.library.opcheck(operator, sample_arguments()[name], test_utils=tests)


def test_compiles_with_a_full_graph():
    queries, database = sample_arguments()["topk"][:2]
    compiled = torch.compile(lambda q, d: native.topk(q, d, 4, 33), fullgraph=True, backend="eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(queries, database), native.topk(queries, database, 4, 33)))


def test_operators_refuse_what_they_cannot_read():
    q, d = sample_arguments()["topk"][:2]
    ops = torch.ops.nhl_fast
    for call in (
        lambda: ops.topk(q.float(), d, 1, 8),
        lambda: ops.topk(q, d, 1, 41),
        lambda: ops.topk(q, d, 1, 0),
        lambda: ops.topk(q, d, -1, 8),
        lambda: ops.topk(q.T.contiguous().T, d, 1, 8),
        lambda: ops.topk(q, d, 1, 8, torch.ones(19, dtype=torch.bool)),
        lambda: ops.topk(q, d, 1, 8, torch.ones(20)),
        lambda: ops.radius(q, d, -1, 8),
        lambda: ops.distances(q, d, [8, 8]),
        lambda: ops.distances(q, d, []),
        lambda: ops.evaluate(q, d, torch.zeros(3), torch.zeros(20, dtype=torch.uint8), [8], 1),
        lambda: ops.evaluate(q, d, torch.zeros(2), torch.zeros(20), [8], 1),
        lambda: ops.evaluate_gains(q, d, torch.zeros(3).char(), torch.zeros(20).char(), [8], 1, [21]),
        lambda: ops.evaluate_gains(q, d, torch.zeros(3).char(), torch.zeros(20).char(), [8], 1, [3, 3]),
        lambda: ops.pack(torch.zeros(2, 3, dtype=torch.int32)),
        lambda: ops.pack(torch.zeros(3)),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_unknown_level_is_refused(monkeypatch):
    monkeypatch.setenv("NHL_FAST_CPU_ISA", "mmx")
    with pytest.raises(RuntimeError, match="expected scalar, avx2, avx512 or neon, got mmx"):
        native.topk(*sample_arguments()["topk"][:2], 1, 8)


@pytest.mark.slow
def test_database_beyond_two_gigabytes(tmp_path):
    # A sparse file: all rows are zero but those that are written.
    n, near = 2**31 // 16 + 1000, {}
    rows = np.memmap(tmp_path / "codes", dtype=np.uint8, mode="w+", shape=(n, 16))
    query = np.full((1, 16), 255, dtype=np.uint8)
    for distance, row in enumerate((n - 1, 5, 2**31 // 16, 2**31 // 16 - 1)):
        rows[row] = 255
        rows[row, 0] = (1 << distance) - 1 ^ 255
        near[distance] = row
    database = torch.from_numpy(rows)
    found, ids = native.topk(torch.from_numpy(query), database, 5, 128)
    assert ids[0].tolist() == [*near.values(), 0]
    assert found[0].tolist() == [0, 1, 2, 3, 128]
    offsets, _, ids = native.radius(torch.from_numpy(query), database, 3, 128)
    assert ids.tolist() == list(near.values())
    assert offsets.tolist() == [0, 4]
