"""An index's codes and ids in the hands of others: faiss, LanceDB, Milvus."""

from __future__ import annotations

import numpy as np

from ...core import check
from ...core.extras import require
from ...retrieval.codes import num_bytes
from ..segments import ordered_blocks
from ..state import State

_INSERTED = 10_000  # rows that Milvus is sent at once


def to_faiss(length: int, state: State):
    """See `NestedIndex.to_faiss`."""
    faiss = _faiss("NestedIndex.to_faiss")
    if length % 8:
        raise ValueError(f"length: faiss holds multiples of 8 bits, this index has {length}")
    flat = faiss.IndexBinaryFlat(length)
    out = faiss.IndexBinaryIDMap(flat)
    for ids, rows in ordered_blocks(state.segments):
        out.add_with_ids(np.ascontiguousarray(rows), np.ascontiguousarray(ids))
    return out


def read_faiss(index) -> tuple[int, np.ndarray, np.ndarray | None]:
    """(length, rows, ids) of what `NestedIndex.from_faiss` takes; the rows are a view of faiss's memory."""
    faiss = _faiss("NestedIndex.from_faiss")
    flat = faiss.downcast_IndexBinary(index) if isinstance(index, faiss.IndexBinary) else index
    ids = None
    if isinstance(flat, (faiss.IndexBinaryIDMap, faiss.IndexBinaryIDMap2)):
        ids = faiss.vector_to_array(flat.id_map)
        flat = faiss.downcast_IndexBinary(flat.index)
    if not isinstance(flat, faiss.IndexBinaryFlat):
        raise TypeError(
            "index: expected a faiss.IndexBinaryFlat or a faiss.IndexBinaryIDMap over one, got "
            f"{check.describe(flat)}"
        )
    if not flat.ntotal:
        return flat.d, np.empty((0, flat.code_size), np.uint8), ids
    rows = faiss.rev_swig_ptr(flat.xb.data(), flat.ntotal * flat.code_size)
    return flat.d, rows.reshape(flat.ntotal, flat.code_size), ids


def to_lancedb(length: int, state: State, connection, name: str):
    """See `NestedIndex.to_lancedb`."""
    if not callable(getattr(connection, "create_table", None)):
        raise TypeError(f"connection: expected one of lancedb.connect, got {check.describe(connection)}")
    _check_name(name)
    require("pyarrow", "arrow", "NestedIndex.to_lancedb")
    import pyarrow as pa

    width = num_bytes(length)
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.uint8(), width))], metadata={"bits": str(length)})

    def batches():
        for ids, rows in ordered_blocks(state.segments):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), width)
            yield pa.record_batch([pa.array(ids), vectors], schema=schema)

    return connection.create_table(name, pa.RecordBatchReader.from_batches(schema, batches()))


def to_milvus(length: int, state: State, client, name: str) -> None:
    """See `NestedIndex.to_milvus`."""
    needed = ("create_schema", "prepare_index_params", "create_collection", "insert")
    if not all(callable(getattr(client, attribute, None)) for attribute in needed):
        raise TypeError(f"client: expected a pymilvus.MilvusClient, got {check.describe(client)}")
    _check_name(name)
    if length % 8:
        raise ValueError(f"length: Milvus holds multiples of 8 bits, this index has {length}")
    require("pymilvus", "milvus", "NestedIndex.to_milvus")
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.BINARY_VECTOR, dim=length)
    indices = client.prepare_index_params()
    indices.add_index("vector", index_type="BIN_FLAT", metric_type="HAMMING")
    client.create_collection(name, schema=schema, index_params=indices)
    for ids, rows in ordered_blocks(state.segments):
        for first in range(0, len(ids), _INSERTED):
            part = slice(first, first + _INSERTED)
            items = [{"id": i, "vector": row.tobytes()} for i, row in zip(ids[part].tolist(), rows[part])]
            client.insert(name, items)


def _check_name(name) -> None:
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: expected text, got {check.describe(name)}")


def _faiss(purpose: str):
    require("faiss", "bench", purpose)
    import faiss

    return faiss
