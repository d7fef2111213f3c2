"""Vectors that an index keeps beside the codes: changes, copies and files take them along, searches rank by them."""

import copy
import pickle

import fuzz_index
import numpy as np
import pytest
import torch
from index_model import no_merging, rows

from nhl_fast.index import segments as index_segments
from nhl_fast.index.nested_index import IndexFileError, NestedIndex

WIDTH = 7
KINDS = ["float32", "float16", "int8"]


def numbers(n, kind="float32", seed=0):
    return (20 * np.random.default_rng(seed).standard_normal((n, WIDTH))).astype(kind)


def filled(kind="float32", n=90, blocks=6, length=48):
    """An index whose parts' ids interleave, its ids in the order of `numbers(n, kind)`."""
    index, ids = NestedIndex(length), np.random.default_rng(1).permutation(4 * n)[:n]
    for part in np.array_split(np.arange(n), blocks):
        index.add(rows(n, length)[part], ids[part], vectors=numbers(n, kind)[part])
    return index, ids


def holds(index, codes: dict, vectors: dict) -> None:
    """The index has exactly these items."""
    ids = sorted(codes)
    assert index.ids.tolist() == ids
    if ids:
        assert np.array_equal(index.reconstruct(ids).numpy(), np.array([codes[i] for i in ids]))
        found = index.reconstruct_vectors(ids).numpy()
        wanted = np.array([vectors[i] for i in ids])
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_every_change_takes_them_along(tmp_path, monkeypatch, kind, seed):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(index_segments, "_BLOCK_BYTES", 40)
    monkeypatch.setattr(index_segments, "_SMALL_ROWS", (0, 30, 4096)[seed % 3])
    index, codes, vectors = NestedIndex(20), {}, {}

    def drawn(n):
        return rows(n, 20, int(rng.integers(1 << 30))), numbers(n, kind, int(rng.integers(1 << 30)))

    def put(ids, new, beside):
        ids = [int(i) for i in ids]
        codes.update(zip(ids, new)), vectors.update(zip(ids, beside))

    for step in range(60):
        new, beside = drawn(int(rng.integers(1, 12)))
        some = rng.permutation(sorted(codes))[: int(rng.integers(0, 9))] if codes else np.empty(0, np.int64)
        what = step % 10
        if what in (0, 4):
            put(index.add(new, vectors=beside), new, beside)
        elif what == 1:
            ids = [i for i in rng.permutation(2000)[: len(new)].tolist() if i not in codes]
            put(index.add(new[: len(ids)], ids, vectors=beside[: len(ids)]), new, beside)
        elif what in (2, 6):
            index.remove(some)
            for i in some.tolist():
                del codes[i], vectors[i]
        elif what == 3 and len(some):
            new, beside = drawn(len(some))
            index.update(some, new, vectors=beside)
            put(some, new, beside)
        elif what == 5:
            other = NestedIndex(20)
            other.add(new[:1], vectors=beside[:1]), other.add(new[1:], vectors=beside[1:])
            put(index.merge(other, renumber=True), new, beside)
        elif what == 7:
            other = NestedIndex(20)
            first = max(codes, default=0) + 5
            other.add(new, range(first, first + len(new)), vectors=beside)
            put(index.merge(other), new, beside)
        elif what == 8:
            index = (copy.deepcopy(index), pickle.loads(pickle.dumps(index)), index.copy())[step // 10 % 3]
        else:
            index.compact() if step % 20 == 9 else index.save(tmp_path / "v.index")
            if step % 20 != 9:
                index = NestedIndex.load(
                    tmp_path / "v.index", mmap=bool(rng.integers(2)), verify=bool(rng.integers(2))
                )
        holds(index, codes, vectors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "product"])
def test_a_search_by_kept_vectors_is_one_by_given_ones(monkeypatch, tmp_path, kind, metric):
    no_merging(monkeypatch)
    index, _ = filled(kind)
    assert len(index._state.segments) == 6
    index.remove(index.ids[::11])
    index.save(tmp_path / "v.index")
    given, mine = index.reconstruct_vectors(index.ids), numbers(5, seed=9)
    queries = rows(5, 48, 3)
    mask = np.random.default_rng(0).random(len(index)) < 0.6
    few = index.ids[::20].tolist()
    for here in (index, NestedIndex.load(tmp_path / "v.index")):
        for allow in (None, mask, few, here.filter(few)):
            options = {"funnel": ((8, 30), (16, 9)), "metric": metric, "allow": allow, "beyond": "pad"}
            found = here.search(queries, 7, rescore=(mine, None), **options)
            wanted = here.search(queries, 7, rescore=(mine, given), **options)
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
    one = index.search(queries[0], 7, funnel=((8, 90),), rescore=(mine[0], None))
    assert one[1].tolist() == index.search(queries, 7, funnel=((8, 90),), rescore=(mine, None))[1][0].tolist()
    empty = NestedIndex(48).search(queries, 3, funnel=((8, 9),), rescore=(mine, None), beyond="pad")
    assert empty[1].tolist() == [[-1] * 3] * 5
    assert empty[0].dtype == torch.float32


def test_all_items_have_them_or_none():
    index, _ = filled()
    plain = NestedIndex(48)
    plain.add(rows(4, 48))
    codes = rows(3, 48, 5)
    expected = "vectors: expected float32 vectors of 7 numbers, as the items have that are there, got "
    for change in (lambda v: index.add(codes, vectors=v), lambda v: index.add(codes, [900, 901, 902], vectors=v),
                   lambda v: index.update(index.ids[:3], codes, vectors=v)):  # fmt: skip
        for wrong, got in (
            (None, "no vectors"),
            (numbers(3, "float16"), "float16"),
            (numbers(3)[:, :5], "float32 vectors of 5"),
        ):
            with pytest.raises(ValueError, match=f"^{expected}{got}"):
                change(wrong)
    with pytest.raises(
        ValueError, match=r"^vectors: expected no vectors, as the items have that are there, got int8 "
    ):
        plain.add(codes, vectors=numbers(3, "int8"))
    for one, other in ((index, plain), (plain, index)):
        for renumber in (False, True):
            with pytest.raises(ValueError, match=r"^other: expected .* as the items have that are there"):
                one.merge(other, renumber)
    assert (len(index), len(plain)) == (90, 4)
    assert index.add(rows(0, 48), vectors=numbers(0)).tolist() == plain.add(rows(0, 48)).tolist() == []
    with pytest.raises(ValueError, match=r"^ids: expected an index that keeps vectors"):
        plain.reconstruct_vectors([0])
    with pytest.raises(ValueError, match=r"^rescore: expected the items' vectors, too"):
        plain.search(codes, 2, funnel=((8, 4),), rescore=(numbers(3), None))
    with pytest.raises(ValueError, match=r"^rescore: expected 7 numbers a row"):
        index.search(codes, 2, funnel=((8, 4),), rescore=(numbers(3)[:, :4], None))
    with pytest.raises(KeyError, match="99999"):
        index.reconstruct_vectors([99999])
    index.remove(index.ids)
    index.add(codes)  # an empty index takes either


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.ones((3, 7)), TypeError, "expected float32, float16 or int8, got"),
        (np.ones((2, 7), np.float32), ValueError, r"expected shape \(3, d\), one for each code"),
        (np.ones((3, 0), np.float32), ValueError, r"expected shape \(3, d\), one for each code"),
        (np.ones(3, np.float32), ValueError, r"expected shape \(3, d\), one for each code"),
        (np.full((3, 7), np.nan, np.float32), ValueError, "expected finite numbers"),
        ("vectors", TypeError, "expected a"),
    ],
)  # fmt: skip
def test_wrong_vectors(wrong, error, message):
    index = NestedIndex(48)
    with pytest.raises(error, match=f"^vectors: {message}"):
        index.add(rows(3, 48), vectors=wrong)
    assert len(index) == 0


def test_they_are_copied_and_counted():
    index, vectors = NestedIndex(48), torch.ones(1000, WIDTH, requires_grad=True)
    index.add(rows(1000, 48), vectors=vectors)
    with torch.no_grad():
        vectors.zero_()
    assert index.reconstruct_vectors([5, 5]).tolist() == [[1.0] * WIDTH] * 2
    assert index.nbytes == 1000 * (6 + 4 * WIDTH)
    assert "vectors=7 float32" in repr(index)


def signed(field, value):
    def change(data):
        fuzz_index.put(data, field, value)
        fuzz_index.sign(data)

    return change


def set_byte(place):
    def change(data):
        data[place] ^= 1

    return change


WRONG = {
    "vectors bit": (set_byte(-3), "checksum of the vectors"),
    "padding": (set_byte(-90 * WIDTH * 4 - 1), "padding before the vectors"),
    "truncated": (lambda data: data.__delitem__(slice(-1, None)), "truncated"),
    "kind": (signed("vectors_kind", 4), "vectors of 7 numbers of kind 4"),
    "width": (signed("vectors_width", 0), "vectors of 0 numbers of kind 1"),
    "another width": (signed("vectors_width", 8), "file_bytes in the header"),
    "offset": (signed("vectors_offset", 64), "vectors_offset in the header"),
    "version": (signed("version", 1), "version in the header is 1"),
    "flag": (signed("flags", 1), "flags in the header is 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(tmp_path, name):
    path = tmp_path / "v.index"
    filled()[0].save(path)
    data = bytearray(path.read_bytes())
    assert fuzz_index.get(data, "version") == 2
    change, message = WRONG[name]
    change(data)
    path.write_bytes(data)
    with pytest.raises(IndexFileError, match=message):
        NestedIndex.load(path)


def test_a_file_without_vectors_is_of_the_first_version(tmp_path):
    index = NestedIndex(48)
    index.add(rows(9, 48))
    index.save(tmp_path / "a.index")
    data = (tmp_path / "a.index").read_bytes()
    assert fuzz_index.get(data, "version") == 1
    assert not any(data[104:124])
    assert len(data) == 128 + 9 * 6
