"""What an index exports, read and searched by the programs that it is for, where they are installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nhl_fast as nhl

LENGTH, ITEMS, K = 40, 300, 7


@pytest.fixture
def index() -> nhl.NestedIndex:
    generator = np.random.default_rng(0)
    out = nhl.NestedIndex(LENGTH)
    ids = generator.permutation(5 * ITEMS)[:ITEMS]
    out.add(generator.integers(0, 256, (ITEMS, LENGTH // 8), dtype=np.uint8), ids)
    out.remove(ids[:20])
    return out


@pytest.mark.parametrize("length", [LENGTH, 13])
def test_duckdb_finds_the_same_in_parquet(index, length, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    path = tmp_path / "codes.parquet"
    index.export(path, length=length)
    query = np.random.default_rng(1).integers(0, 256, LENGTH // 8, dtype=np.uint8)
    cut = np.packbits(np.unpackbits(query, count=length))
    found = duckdb.execute(
        "SELECT bit_count(xor(code::BIT, ?::BLOB::BIT))::INT AS distance, id FROM read_parquet(?) "
        "ORDER BY distance, id LIMIT ?",
        [cut.tobytes(), str(path), K],
    ).fetchall()
    distances, ids = index.search(query, K, length)
    assert found == list(zip(distances.tolist(), ids.tolist()))


def test_usearch_finds_the_same_distances_in_npz(index, tmp_path):
    usearch = pytest.importorskip("usearch.index")
    path = tmp_path / "codes.npz"
    index.export(path)
    with np.load(path) as stored:
        ids, rows, bits = stored["ids"], stored["codes"], int(stored["bits"])
    other = usearch.Index(ndim=bits, metric=usearch.MetricKind.Hamming, dtype=usearch.ScalarKind.B1)
    other.add(ids.astype(np.uint64), rows)
    queries = np.random.default_rng(1).integers(0, 256, (5, LENGTH // 8), dtype=np.uint8)
    found = other.search(queries, K, exact=True)
    distances, _ = index.search(queries, K)
    assert torch.equal(torch.from_numpy(np.asarray(found.distances)).to(torch.int32), distances)
    # Equal distances come in an order of its own: each id must stand at the distance that it has here.
    for keys, row, query in zip(np.asarray(found.keys).astype(np.int64), distances, queries):
        codes = index.reconstruct(keys).numpy()
        assert np.unpackbits(codes ^ query, axis=1).sum(1).tolist() == row.tolist()


@pytest.mark.parametrize("length", [LENGTH, 37])
def test_lancedb_finds_the_same(length, index, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    if length != LENGTH:
        cut = nhl.NestedIndex(length)
        cut.add(index.reconstruct(index.ids), index.ids)
        index = cut
    connection = lancedb.connect(str(tmp_path))
    table = index.to_lancedb(connection, "items")
    assert table.count_rows() == len(index)
    queries = np.random.default_rng(1).integers(0, 256, (5, LENGTH // 8), dtype=np.uint8)
    queries = np.packbits(np.unpackbits(queries, axis=1, count=length), axis=1)
    for query in queries:
        found = table.search(query, vector_column_name="vector").distance_type("hamming").limit(K).to_arrow()
        distances, _ = index.search(query, K)
        assert found["_distance"].to_pylist() == distances.tolist()
        codes = index.reconstruct(found["id"].to_pylist()).numpy()  # equal distances come in an order of its own
        assert np.unpackbits(codes ^ query, axis=1).sum(1).tolist() == distances.tolist()
    assert [row["id"] for row in table.to_arrow().to_pylist()] == index.ids.tolist()


def test_milvus_finds_the_same(index, tmp_path):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(tmp_path / "codes.db"))
    try:
        try:
            index.to_milvus(client, "items")
        except pymilvus.MilvusException as error:
            if "BinaryVector which MilvusLite does not support" in str(error):
                pytest.skip("this milvus-lite has no binary vectors (2.5 has)")
            raise
        queries = np.random.default_rng(1).integers(0, 256, (5, LENGTH // 8), dtype=np.uint8)
        rows = [query.tobytes() for query in queries]
        found = client.search("items", rows, anns_field="vector", limit=K, search_params={"metric_type": "HAMMING"})
        for query, hits in zip(queries, found):
            distances, _ = index.search(query, K)
            assert [hit["distance"] for hit in hits] == distances.tolist()
            codes = index.reconstruct([hit["id"] for hit in hits]).numpy()
            assert np.unpackbits(codes ^ query, axis=1).sum(1).tolist() == distances.tolist()
        stored = client.query("items", filter="id >= 0", output_fields=["id"], limit=len(index) + 1)
        assert sorted(row["id"] for row in stored) == index.ids.tolist()
    finally:
        client.close()


def test_a_wrong_database_is_refused(index):
    for value in (None, 1, "path", index):
        with pytest.raises(TypeError, match=r"connection: expected one of lancedb\.connect"):
            index.to_lancedb(value, "items")
        with pytest.raises(TypeError, match=r"client: expected a pymilvus\.MilvusClient"):
            index.to_milvus(value, "items")
