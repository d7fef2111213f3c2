"""What users of other indexes are used to: single queries, k beyond the items, merging, NumPy, exports."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_model import Model, filled, no_merging, rows

import nhl_fast as nhl

CODES = rows(40, 48, pool=13)


def same(ours, right):
    assert len(ours) == len(right)
    for a, b in zip(ours, right):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


# ------------------------------------------------------------------------------------------ one query, k, NumPy


@pytest.mark.parametrize("kind", ["array", "tensor", "bool", "signs"])
def test_one_code_is_a_query(kind):
    bits = np.unpackbits(CODES[3])
    one = {
        "array": CODES[3],
        "tensor": torch.from_numpy(CODES[3]),
        "bool": bits.astype(bool),
        "signs": torch.from_numpy(2.0 * bits - 1),
    }[kind]
    index, many = nhl.NestedIndex(48), CODES[3:4]
    index.add(CODES)
    for search in (index.search, lambda *a, **o: nhl.search(a[0], CODES, *a[1:], **o)):
        for options in ({}, {"length": 20}):
            wanted = search(many, 5, **options)
            found = search(one, 5, **options)
            assert found[0].shape == found[1].shape == (5,)
            same(found, [result[0] for result in wanted])
    same(index.range_search(one, 9), index.range_search(many, 9))
    same(nhl.radius_search(one, CODES, 9), nhl.radius_search(many, CODES, 9))
    for lengths in (None, 20, (8, 48)):
        wanted = nhl.hamming_distances(many, CODES, lengths)
        assert torch.equal(nhl.hamming_distances(one, CODES, lengths), wanted[..., 0, :])
    found = index.search_and_reconstruct(one, 5)
    assert found[2].shape == (5, 6)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_k_beyond_the_items(n, backend):
    index = nhl.NestedIndex(48)
    index.add(CODES[:n])
    queries = rows(3, 48, 5)
    flat = lambda queries, k, **options: nhl.search(queries, CODES[:n], k, **options)  # noqa: E731
    for search, message in ((index.search, f"at most {n}, the items"), (flat, f"at most n = {n}, the database's")):
        with pytest.raises(ValueError, match=f"k: expected {message}"):
            search(queries, n + 4, backend=backend)
        cut = search(queries, n + 4, beyond="cut", backend=backend)
        padded = search(queries, n + 4, beyond="pad", backend=backend)
        assert [a.shape for a in (*cut, *padded)] == [(3, n), (3, n), (3, n + 4), (3, n + 4)]
        assert [a.dtype for a in (*cut, *padded)] == [torch.int32, torch.int64] * 2
        if n:
            same(cut, search(queries, n))
        for a, b in zip(cut, padded):
            assert torch.equal(a, b[:, :n])
            assert bool((b[:, n:] == -1).all())
        for k in range(1, n + 1):
            same(search(queries, k, beyond="cut"), search(queries, k, beyond="pad"))
        with pytest.raises(ValueError, match="beyond: expected one of 'raise', 'cut', 'pad', got 'wrap'"):
            search(queries, 1, beyond="wrap")
    assert flat(queries[0], n + 4, beyond="pad")[0].shape == (n + 4,)
    _, ids, codes = index.search_and_reconstruct(queries, n + 4, beyond="pad")
    assert bool((codes[ids < 0] == 0).all())


def test_arrays_out():
    index, _ = filled(48)
    queries = rows(3, 48, 5)
    calls = [
        lambda output: index.search(queries, 5, output=output),
        lambda output: index.range_search(queries, 9, output=output),
        lambda output: index.search_and_reconstruct(queries[0], 5, output=output),
        lambda output: nhl.search(queries, CODES, 5, output=output),
        lambda output: nhl.radius_search(queries, CODES, 9, output=output),
        lambda output: (nhl.hamming_distances(queries, CODES, (8, 48), output=output),),
    ]
    for call in calls:
        arrays, tensors = call("numpy"), call("tensor")
        assert all(type(array) is np.ndarray for array in arrays)
        same(arrays, tensors)
        with pytest.raises(ValueError, match="output: expected one of 'tensor', 'numpy', got 'list'"):
            call("list")


def test_search_and_reconstruct():
    index, _ = filled(44)
    queries, allow = rows(4, 44, 5), index.ids[:3]
    distances, ids, codes = index.search_and_reconstruct(queries, 5, 17, allow)
    same((distances, ids), index.search(queries, 5, 17, allow))
    assert codes.shape == (4, 5, 6)
    assert torch.equal(codes[:, :3], index.reconstruct(ids[:, :3].flatten()).view(4, 3, 6))
    assert not codes[:, 3:].any()


def test_binary_embeddings():
    """sentence-transformers' "binary" and "ubinary" (quantize_embeddings) are the same codes."""
    embeddings = np.random.default_rng(0).standard_normal((20, 128)).astype(np.float32)
    ubinary = np.packbits(embeddings > 0).reshape(20, -1)
    binary = (np.packbits(embeddings > 0).reshape(20, -1) - 128).astype(np.int8)
    index = nhl.NestedIndex(128)
    index.add(binary)
    assert np.array_equal(index.reconstruct(range(20)).numpy(), ubinary)
    for queries in (binary, torch.from_numpy(binary)):
        same(index.search(queries, 5), index.search(ubinary, 5))
        same(index.search(queries[2], 5, 64), index.search(ubinary[2], 5, 64))
    index.update([3], binary[:1])
    assert np.array_equal(index.reconstruct([3]).numpy(), ubinary[:1])
    bits = (embeddings > 0).astype(np.int8)
    index.search(2 * bits - 1, 3)  # -1 and +1, one a bit
    for wrong in (bits, bits[:, :16]):
        with pytest.raises(TypeError, match="queries: expected packed"):
            index.search(wrong, 3)
    with pytest.raises(TypeError, match="codes: expected packed"):
        index.add((127 * embeddings / 5).astype(np.int8))  # "int8": a number a dimension


# ------------------------------------------------------------------------------------------ changes


def test_remove_may_ignore():
    index, _ = filled(48)
    ids = index.ids.numpy()
    gone = [int(ids[3]), 10**7, int(ids[9])]
    state = index.state
    with pytest.raises(KeyError, match="ids: not in the index: 10000000"):
        index.remove(gone)
    assert index.state is state
    assert index.remove(gone, missing="ignore") == 2
    assert index.remove(gone, missing="ignore") == 0
    assert index.remove(ids[20:23]) == 3
    assert index.ids.tolist() == sorted(set(ids.tolist()) - {*gone, *ids[20:23].tolist()})
    with pytest.raises(ValueError, match="missing: expected one of 'raise', 'ignore', got 'skip'"):
        index.remove([], missing="skip")
    with pytest.raises(ValueError, match="ids: expected distinct ids"):
        index.remove([1, 1], missing="ignore")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_merge_compact_copy_reset(data):
    """Two random indexes as one, beside a dict; what a copy holds stays."""
    length = data.draw(st.integers(9, 30))
    pairs = [(nhl.NestedIndex(length), Model(length)) for _ in range(2)]
    free = list(range(60))
    for number, (index, model) in enumerate(pairs):
        for size in data.draw(st.lists(st.integers(1, 6), max_size=4)):
            ids = data.draw(st.permutations(free))[:size]
            free = [i for i in free if i not in ids]
            codes = rows(size, length, number, pool=3)
            index.add(codes, ids)
            model.add(codes, ids)
        gone = data.draw(st.lists(st.sampled_from(index.ids.tolist()), unique=True)) if len(index) else []
        assert index.remove(gone) == len(gone)
        for id_ in gone:
            del model.rows[id_]
    (one, model), (other, other_model) = pairs
    before, theirs = one.copy(), other.ids.tolist()
    renumber, queries = data.draw(st.booleans()), rows(2, length, 9)
    given_ids = one.merge(other, renumber=renumber).tolist()
    assert given_ids == (list(range(model.next_id, model.next_id + len(theirs))) if renumber else theirs)
    for new, old in zip(given_ids, theirs):
        model.rows[new] = other_model.rows[old]
    assert other.ids.tolist() == theirs
    for compacted in (False, True):
        if compacted:
            one.compact()
            assert len(one.state.segments) == (len(one) > 0)
            assert all(segment.alive is None for segment in one.state.segments)
        assert one.ids.tolist() == sorted(model.rows)
        if len(one):
            model.check(one, queries, length, len(one), length // 2)
    state = one.state
    one.compact()
    assert one.state is state
    kept = len(before)
    next_id = max(
        [model.next_id, *(i + 1 for i in given_ids)] + ([] if renumber or not theirs else [other_model.next_id])
    )
    assert one.add(queries).tolist() == [next_id, next_id + 1]
    one.reset()
    assert (len(one), one.nbytes, one.add(queries).tolist(), len(before)) == (0, 0, [0, 1], kept)


def test_what_cannot_merge():
    index, _ = filled(48)
    state = index.state
    with pytest.raises(ValueError, match="ids: expected new ids, but the index holds"):
        index.merge(index)
    with pytest.raises(ValueError, match=r"other: expected an index of 48 bits, got NestedIndex\(length=40"):
        index.merge(nhl.NestedIndex(40))
    with pytest.raises(TypeError, match="other: expected a NestedIndex"):
        index.merge(CODES)
    assert index.state is state
    assert len(index.merge(index, renumber=True)) == len(index) // 2


# ------------------------------------------------------------------------------------------ exports


@pytest.fixture(params=["one", "many"])
def index(request, monkeypatch):
    if request.param == "many":
        no_merging(monkeypatch)
    index, _ = filled(44)
    index.remove(index.ids[::7])
    return index


def bits_of(index, length):
    """[(id, text of its bits)] by ascending id."""
    codes = np.unpackbits(index.reconstruct(index.ids).numpy(), axis=1)[:, :length]
    return [(id_, "".join(map(str, row))) for id_, row in zip(index.ids.tolist(), codes.tolist())]


def text_of(codes, length):
    assert not np.unpackbits(codes, axis=1)[:, length:].any()
    return ["".join(map(str, row)) for row in np.unpackbits(codes, axis=1)[:, :length].tolist()]


@pytest.mark.parametrize("length", [None, 44, 16, 13])
def test_export_npz_and_pgvector(index, length, tmp_path):
    bits, wanted = length or 44, bits_of(index, length or 44)
    index.export(tmp_path / "codes.npz", length=length)
    with np.load(tmp_path / "codes.npz") as stored:
        assert (stored["ids"].dtype, stored["codes"].dtype, int(stored["bits"])) == (np.int64, np.uint8, bits)
        assert list(zip(stored["ids"].tolist(), text_of(stored["codes"], bits))) == wanted
    index.export(tmp_path / "codes.txt", "pgvector", length)
    with open(tmp_path / "codes.txt", newline="") as handle:
        assert [(int(id_), code) for id_, code in csv.reader(handle, delimiter="\t")] == wanted


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("length", [None, 13])
def test_export_arrow(index, length, suffix, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    bits, path = length or 44, tmp_path / f"codes{suffix}"
    index.export(path, length=length)
    if suffix == ".parquet":
        from pyarrow import parquet

        table = parquet.read_table(path)
    else:
        table = arrow.ipc.open_file(path).read_all()
    assert table.schema.field("code").type == arrow.binary(-(-bits // 8))
    assert table.schema.metadata[b"bits"] == str(bits).encode()
    codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint8).reshape(len(index), -1)
    assert list(zip(table["id"].to_pylist(), text_of(codes, bits))) == bits_of(index, bits)


def test_export_of_nothing_and_bad_exports(tmp_path, monkeypatch):
    index = nhl.NestedIndex(44)
    for name in ("a.npz", "a.tsv"):
        index.export(tmp_path / name)
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["codes"].shape == (0, 6)
    assert (tmp_path / "a.tsv").read_bytes() == b""
    for call, error, message in (
        (lambda: index.export(tmp_path / "a.csv"), ValueError, "path: expected a name that ends in one of .parquet"),
        (lambda: index.export(tmp_path / "a.npz", "csv"), ValueError, "format: expected one of 'parquet'"),
        (lambda: index.export(tmp_path / "a.npz", length=45), ValueError, "length: expected at most 44, the index's"),
        (lambda: index.export(3), TypeError, "path: expected a path"),
    ):
        with pytest.raises(error, match=message):
            call()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs 'pyarrow': pip install 'nhl-fast\[arrow\]'"):
        index.export(tmp_path / "a.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.tsv"]
