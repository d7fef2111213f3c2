import operator

import numpy as np
import pytest
import torch
from index_model import Model, filled, no_merging, pairs, rows

from nhl_fast.core.backend import probe
from nhl_fast.index.nested_index import NestedIndex
from nhl_fast.index.segments import sort_by_group_and_id

LENGTHS = [5, 12, 48, 100, 128, 1024]
BACKENDS = [name for name in ("reference", "cpp") if probe(name).available]


@pytest.fixture
def many_segments(monkeypatch):
    no_merging(monkeypatch)


# ----------------------------------------------------------------------------------------------------- searching


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("segments", ["one", "many"])
def test_search_at_every_prefix(length, segments, backend, request):
    if segments == "many":
        request.getfixturevalue("many_segments")
    index, model = filled(length)
    assert len(index._state.segments) == (1 if segments == "one" else 5)
    queries = rows(3, length, 7)
    for prefix in sorted({1, min(7, length), length // 2, length - 1, length}):
        for k in (1, 10, len(index)):
            model.check(index, queries, prefix, k, prefix // 2, backend=backend)


@pytest.mark.parametrize("segments", ["one", "many"])
def test_filter(segments, request):
    if segments == "many":
        request.getfixturevalue("many_segments")
    index, model = filled(48)
    index.remove(removed := index.ids[::9])
    for id_ in removed.tolist():
        del model.rows[id_]
    queries, ids = rows(3, 48, 7), index.ids
    # Few allowed ids are gathered, many make a mask; unknown, removed and repeated ones change nothing.
    for allow in (ids[:1], ids[::40], ids[::3], ids, removed, [], [10**6, 3, 3], torch.cat([ids[:9], removed])):
        for k in (1, 20, len(index)):
            model.check(index, queries, 24, k, 9, allow)
    assert len(ids) // 40 > 1


def test_no_queries():
    index, _ = filled(48)
    for one in (index, NestedIndex(48)):
        offsets, distances, ids = one.range_search(rows(0, 48), 3)
        assert (offsets.tolist(), len(distances), len(ids)) == ([0], 0, 0)
    distances, ids = index.search(rows(0, 48), 3)
    assert distances.shape == ids.shape == (0, 3)


def test_nothing_to_find():
    index = NestedIndex(16)
    assert (len(index), index.ids.tolist(), index.nbytes, index.bytes_per_item) == (0, [], 0, 0.0)
    with pytest.raises(ValueError, match="k: expected at most 0"):
        index.search(rows(2, 16), 1)
    offsets, distances, ids = index.range_search(rows(2, 16), 16)
    assert (offsets.tolist(), distances.shape, ids.shape) == ([0, 0, 0], (0,), (0,))
    assert index.reconstruct([]).shape == (0, 2)
    index.add(rows(0, 16))
    index.add(rows(0, 16), [])
    index.remove([])
    index.update([], rows(0, 16))
    assert (len(index), repr(index)) == (0, "NestedIndex(length=16, items=0)")
    index.add(rows(3, 16))
    index.remove([0, 1, 2])
    assert len(index) == 0
    assert index._state.segments == ()
    assert index.add(rows(1, 16)).tolist() == [3]


def test_wide_and_narrow_queries():
    index, model = filled(128)
    wide = rows(3, 256, 1)
    model.check(index, wide[:, :16], 60, 9, 20)
    for queries in (wide, wide[:, :8], torch.from_numpy(wide), np.asfortranarray(wide), wide[:, ::-1][:, ::-1]):
        assert torch.equal(index.search(queries, 9, 60)[1], index.search(wide[:, :16], 9, 60)[1])


@pytest.mark.parametrize("largest", [5, 2**50, 2**63 - 1])
def test_ids_of_any_size(many_segments, largest):
    index, model = NestedIndex(100), Model(100)
    codes = rows(12, 100, pool=4)
    ids = [largest - i for i in (0, 3, 1, 5, 2, 4)] + ([0, 1, 2, 3, 4, 5] if largest > 5 else [6, 7, 8, 9, 10, 11])
    for i in range(0, 12, 3):
        model.add(codes[i : i + 3], ids[i : i + 3])
        index.add(codes[i : i + 3], ids[i : i + 3])
    model.check(index, codes[:3], 100, 12, 60)
    assert index.ids.tolist() == sorted(ids)


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5), (4, 0)])
@pytest.mark.parametrize("top", [10, 2**62, 2**63 - 1])
def test_sort_by_group_and_id(shape, top):
    generator = np.random.default_rng(0)
    groups, ids = generator.integers(0, 3, shape), generator.integers(max(0, top - 4), top, shape, endpoint=True)
    got = sort_by_group_and_id(groups, ids, 2)
    order = np.lexsort((ids, groups), axis=-1)
    for array, sorted_ in zip((groups, ids), got):
        assert np.array_equal(np.take_along_axis(array, order, -1), sorted_)


# ------------------------------------------------------------------------------------------------------ arguments


def test_codes_and_ids_are_copied():
    codes, ids, other = rows(6, 12), np.array([5, 3, 9, 1, 7, 0]), rows(6, 12, 1)
    kept, wanted = codes.copy(), [5, 3, 9, 1, 7, 0]
    index = NestedIndex(12)
    given = index.add(codes, ids)
    queue = index.reconstruct(wanted)
    codes[:], ids[:], given[:], queue[:] = other, 0, 0, 0
    assert index.ids.tolist() == sorted(wanted)
    index.ids[:] = 0
    assert np.array_equal(index.reconstruct(wanted).numpy(), kept)
    running = NestedIndex(12)
    running.add(codes)
    codes[:] = 0
    assert np.array_equal(running.reconstruct(range(6)).numpy(), other)


@pytest.mark.parametrize("ids", [None, [3, 1, 2, 0]])
def test_bits_beyond_the_length_are_zeroed(ids):
    index, codes = NestedIndex(12), np.full((4, 2), 255, np.uint8)
    index.add(codes, ids)
    assert index.reconstruct([0, 3]).tolist() == [[255, 0xF0]] * 2
    index.update([3], codes[:1])
    assert index.reconstruct([3]).tolist() == [[255, 0xF0]]
    assert codes.min() == 255


def test_the_form_of_codes_does_not_matter():
    codes = rows(9, 100)
    wide = np.zeros((18, 30), np.uint8)
    wide[::2, 4:17] = codes
    for form in (torch.from_numpy(codes), np.asfortranarray(codes), wide[::2, 4:17], codes[::-1][::-1]):
        index = NestedIndex(100)
        index.add(form)
        assert np.array_equal(index.reconstruct(range(9)).numpy(), codes)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, np.int32, np.uint64])
def test_the_form_of_ids_does_not_matter(form):
    ids = [4, 2, 9]
    ids = np.array(ids).astype(form) if form in (np.int32, np.uint64) else form(ids)
    index = NestedIndex(8)
    assert index.add(rows(3, 8), ids).tolist() == [4, 2, 9]
    assert index.search(rows(1, 8), 2, allow=ids)[1].min() >= 0
    index.update(ids, rows(3, 8, 1))
    assert index.reconstruct(ids).tolist() == rows(3, 8, 1).tolist()
    index.remove(ids)
    assert len(index) == 0


def test_membership():
    index = NestedIndex(8)
    index.add(rows(3, 8), [4, 2, 9])
    assert 4 in index
    assert np.int64(9) in index
    for absent in (3, -1, 2**63, 10**30, "4", 4.0, None):
        assert absent not in index


CODES = rows(3, 16)
BAD_CALLS = {
    "codes list": (lambda i: i.add([[1, 2]]), TypeError, "codes: expected a torch.Tensor"),
    "codes floats": (lambda i: i.add(np.zeros((1, 2))), TypeError, "codes: expected packed uint8 rows"),
    "codes width": (lambda i: i.add(rows(1, 24)), ValueError, "codes: expected rows of 2 bytes for 16 bits"),
    "codes 1-D": (lambda i: i.add(CODES[0]), ValueError, "codes: expected packed rows"),
    "codes meta": (
        lambda i: i.add(torch.empty(1, 2, dtype=torch.uint8, device="meta")),
        ValueError,
        "codes: .* meta device",
    ),
    "too few ids": (lambda i: i.add(CODES, [7, 8]), ValueError, "ids: expected 3, one for each code, got 2"),
    "ids 2-D": (lambda i: i.add(CODES, [[7, 8, 9]]), ValueError, "ids: expected one dimension"),
    "ids floats": (lambda i: i.add(CODES, [7.0, 8, 9]), TypeError, "ids: expected a sequence of integers"),
    "ids half": (lambda i: i.add(CODES, torch.ones(3, dtype=torch.bfloat16)), TypeError, "ids: expected a sequence"),
    "ids bools": (lambda i: i.add(CODES, [True] * 3), TypeError, "ids: expected a sequence of integers"),
    "ids text": (lambda i: i.add(CODES, "abc"), TypeError, "ids: expected a sequence of integers"),
    "ids ragged": (lambda i: i.add(CODES, [[1], [1, 2], 3]), TypeError, "ids: expected a sequence of integers"),
    "ids twice": (lambda i: i.add(CODES, [7, 8, 7]), ValueError, "ids: expected distinct ids, got 7 more than once"),
    "ids taken": (lambda i: i.add(CODES, [7, 1, 0]), ValueError, "ids: expected new ids, but the index holds 1, 0"),
    "negative id": (lambda i: i.add(CODES, [7, 8, -1]), ValueError, "ids: expected integers from 0 .* got -1"),
    "large id": (lambda i: i.add(CODES, [7, 8, 2**63]), ValueError, "ids: expected integers from 0 .* got 9223372"),
    "huge id": (lambda i: i.add(CODES, [7, 8, 2**70]), ValueError, "ids: expected integers from 0"),
    "remove none": (lambda i: i.remove(None), TypeError, "ids: expected a sequence"),
    "remove one": (lambda i: i.remove(2), TypeError, "ids: expected a sequence"),
    "remove unknown": (lambda i: i.remove([1, 70, 71]), KeyError, "ids: not in the index: 70, 71"),
    "remove many": (lambda i: i.remove(range(10)), KeyError, "not in the index: 3, 4, 5, 6, 7 and 1 more"),
    "remove twice": (lambda i: i.remove([1, 1]), ValueError, "ids: expected distinct ids, got 1 more than once"),
    "update unknown": (lambda i: i.update([1, 70], CODES[:2]), KeyError, "ids: not in the index: 70"),
    "update twice": (lambda i: i.update([1, 1], CODES[:2]), ValueError, "ids: expected distinct ids"),
    "update too few": (lambda i: i.update([1], CODES[:2]), ValueError, "ids: expected 2, one for each code, got 1"),
    "update width": (lambda i: i.update([1], rows(1, 24)), ValueError, "codes: expected rows of 2 bytes"),
    "reconstruct": (lambda i: i.reconstruct([0, 5]), KeyError, "ids: not in the index: 5"),
    "k 0": (lambda i: i.search(CODES, 0), ValueError, "k: expected an integer of at least 1"),
    "k large": (lambda i: i.search(CODES, 5), ValueError, "k: expected at most 4, the items in the index, got 5"),
    "k float": (lambda i: i.search(CODES, 1.5), TypeError, "k: expected an integer"),
    "length 0": (lambda i: i.search(CODES, 1, 0), ValueError, "length: expected an integer of at least 1"),
    "length long": (lambda i: i.search(rows(1, 24), 1, 17), ValueError, "length: expected at most 16, the index's"),
    "length text": (lambda i: i.search(CODES, 1, "8"), TypeError, "length: expected an integer"),
    "queries wide": (lambda i: i.search(rows(1, 24), 1), ValueError, "queries: expected rows of 2 bytes for 16 bits"),
    "queries narrow": (lambda i: i.search(CODES[:, :1], 1, 9), ValueError, "length: expected at most 8"),
    "queries ints": (lambda i: i.search(CODES.astype(int), 1), TypeError, "queries: expected packed uint8 rows"),
    "radius": (lambda i: i.range_search(CODES, -1), ValueError, "radius: expected an integer of at least 0"),
    "allow mask": (
        lambda i: i.search(CODES, 1, allow=[True] * 4),
        TypeError,
        "allow: expected a sequence of integers",
    ),
    "allow number": (
        lambda i: i.range_search(CODES, 1, allow=3),
        TypeError,
        "allow: expected a sequence of integers",
    ),
    "allow negative": (lambda i: i.search(CODES, 1, allow=[-1]), ValueError, "allow: expected integers from 0"),
    "backend": (lambda i: i.search(CODES, 1, backend="abacus"), ValueError, "backend: expected one of"),
    "index length": (lambda i: NestedIndex(0), ValueError, "length: expected an integer of at least 1"),
    "index type": (lambda i: NestedIndex("128"), TypeError, "length: expected an integer"),
    "index huge": (lambda i: NestedIndex(2**40), ValueError, "length: expected at most 1048576 bits"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_change_nothing(name):
    call, error, message = BAD_CALLS[name]
    index = NestedIndex(16)
    index.add(CODES)
    index.add(CODES[:1], [8])
    state = index._state
    with pytest.raises(error, match=message):
        call(index)
    assert index._state is state


def test_running_ids_end():
    index = NestedIndex(8)
    index.add(rows(1, 8), [2**63 - 2])
    assert index.add(rows(1, 8)).tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match="ids: running ids would pass"):
        index.add(rows(1, 8))
    index.add(rows(1, 8), [4])
    assert index.ids.tolist() == [4, 2**63 - 2, 2**63 - 1]


# ----------------------------------------------------------------------------------------------------------- faiss


@pytest.mark.parametrize("length", [8, 48, 128, 1024])
def test_to_faiss(length, many_segments):
    faiss = pytest.importorskip("faiss")
    index, _ = filled(length)
    index.remove(index.ids[:3])
    out = index.to_faiss()
    assert isinstance(out, faiss.IndexBinaryIDMap)
    ids = faiss.vector_to_array(out.id_map)
    assert ids.tolist() == index.ids.tolist()
    flat = faiss.downcast_IndexBinary(out.index)
    assert isinstance(flat, faiss.IndexBinaryFlat)
    # faiss keeps the very bytes.
    assert np.array_equal(faiss.vector_to_array(flat.xb).reshape(len(ids), -1), index.reconstruct(ids).numpy())
    queries = rows(4, length, 3)
    distances, found = out.search(queries, len(ids))
    ours, ids = index.search(queries, len(ids))
    assert np.array_equal(distances, ours.numpy())
    # faiss breaks ties otherwise; as pairs the results are the same.
    assert [sorted(row) for row in pairs(distances, found)] == [sorted(row) for row in pairs(ours, ids)]


def test_from_faiss():
    faiss = pytest.importorskip("faiss")
    codes, ids = rows(50, 128), np.random.default_rng(0).permutation(900)[:50]
    flat = faiss.IndexBinaryFlat(128)
    flat.add(codes)
    index = NestedIndex.from_faiss(flat)
    assert index.ids.tolist() == list(range(50))
    assert np.array_equal(index.reconstruct(range(50)).numpy(), codes)
    for kind in (faiss.IndexBinaryIDMap, faiss.IndexBinaryIDMap2):
        mapped = kind(faiss.IndexBinaryFlat(128))
        mapped.add_with_ids(codes, ids)
        for one in (mapped, faiss.deserialize_index_binary(faiss.serialize_index_binary(mapped))):
            index = NestedIndex.from_faiss(one)
            assert np.array_equal(index.reconstruct(ids).numpy(), codes)
    # The codes are a copy.
    flat.reset()
    del mapped, one
    assert np.array_equal(index.reconstruct(ids).numpy(), codes)
    assert NestedIndex.from_faiss(index.to_faiss()).ids.tolist() == sorted(ids)


def test_faiss_has_its_limits():
    faiss = pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="length: faiss holds multiples of 8 bits, this index has 12"):
        NestedIndex(12).to_faiss()
    assert len(NestedIndex.from_faiss(NestedIndex(16).to_faiss())) == 0
    mapped = faiss.IndexBinaryIDMap(faiss.IndexBinaryFlat(16))
    mapped.add_with_ids(rows(2, 16), np.array([3, 3]))
    with pytest.raises(ValueError, match="distinct ids, got 3"):
        NestedIndex.from_faiss(mapped)
    for other in (faiss.IndexFlatL2(8), faiss.IndexBinaryHNSW(16, 4), 3):
        with pytest.raises(TypeError, match="index: expected a faiss"):
            NestedIndex.from_faiss(other)


def test_without_faiss(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find(name))
    for call in (operator.methodcaller("to_faiss"), NestedIndex.from_faiss):
        with pytest.raises(ImportError, match=r"pip install 'nhl-fast\[bench\]'"):
            call(NestedIndex(16))


def test_codes_are_what_packbits_makes_of_embeddings():
    """sentence-transformers' "ubinary" is numpy.packbits of the positive values; so are our rows."""
    from nhl_fast.retrieval.codes import pack_codes

    embeddings = np.random.default_rng(0).standard_normal((20, 128)).astype(np.float32)
    ubinary = np.packbits(embeddings > 0, axis=-1)
    index = NestedIndex(128)
    index.add(pack_codes(embeddings))
    assert np.array_equal(index.reconstruct(range(20)).numpy(), ubinary)
    assert index.search(ubinary, 1)[1].squeeze(1).tolist() == list(range(20))
