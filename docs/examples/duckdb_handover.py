"""Codes handed to DuckDB as Parquet and searched there in SQL: the same rows, the same distances."""

import duckdb
import numpy as np

import nhl_fast as nhl

codes = np.random.default_rng(0).integers(0, 256, (2000, 16), dtype=np.uint8)
index = nhl.NestedIndex(length=128)
index.add(codes)
index.export("codes.parquet")  # id, code (16 bytes); from pyarrow, extra "arrow"

database = duckdb.connect()
database.execute("CREATE TABLE items AS SELECT id, code::BIT AS code FROM 'codes.parquet'")
query = codes[0]
found = database.execute(
    "SELECT id, bit_count(xor(code, ?::BLOB::BIT)) AS distance FROM items ORDER BY distance, id LIMIT 10",
    [query.tobytes()],
).fetchnumpy()

distances, ids = index.search(query, k=10, output="numpy")
assert np.array_equal(found["distance"], distances)
assert np.array_equal(found["id"], ids)

# And back: rows from a table are packed codes again.
table = database.execute("SELECT code::BLOB AS code FROM items ORDER BY id").fetchnumpy()
assert np.array_equal(np.frombuffer(b"".join(table["code"]), np.uint8).reshape(-1, 16), codes)
print("DuckDB: equal ids and distances")
