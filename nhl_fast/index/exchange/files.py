"""An index's codes and ids as files of other programs: Parquet, Arrow, NumPy, and text for pgvector's COPY."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...core import check
from ...core.arrays import as_tensor, write_npz
from ...core.extras import require
from ...core.files import as_path, atomic_write
from ...retrieval import codes
from ...retrieval.codes import num_bytes
from ..segments import ordered_blocks
from ..state import State

FORMATS = {
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "npz": (".npz",),
    "pgvector": (".tsv", ".copy"),
}


def write(path, format: str | None, length: int, state: State) -> None:
    """See `NestedIndex.export`."""
    name = _format(as_path(path), format)
    if name in ("parquet", "arrow"):
        require("pyarrow", "arrow", "NestedIndex.export")
    with atomic_write(path) as handle:
        _WRITERS[name](handle, length, state)


def _format(path: Path, format: str | None) -> str:
    if format is not None:
        return check.one_of(format, "format", tuple(FORMATS))
    found = [name for name, suffixes in FORMATS.items() if path.suffix.lower() in suffixes]
    if not found:
        known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise ValueError(f"path: expected a name that ends in one of {known}, or a format, got {path.name!r}")
    return found[0]


def _blocks(state: State, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, rows) by ascending id, the rows cut to the length, with zeros beyond it."""
    for ids, rows in ordered_blocks(state.segments):
        cut = codes.mask_tail(as_tensor(rows), length).contiguous().numpy()
        yield np.ascontiguousarray(ids), cut


def _write_arrow(handle, length: int, state: State, parquet: bool) -> None:
    import pyarrow as pa

    width = num_bytes(length)
    kind = pa.binary(width)
    schema = pa.schema([("id", pa.int64()), ("code", kind)], metadata={"bits": str(length)})
    if parquet:
        import pyarrow.parquet as pq

        writer = pq.ParquetWriter(handle, schema)
    else:
        writer = pa.ipc.new_file(handle, schema)
    with writer:
        for ids, rows in _blocks(state, length):
            column = pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)])
            writer.write_batch(pa.record_batch([pa.array(ids), column], schema=schema))


def _write_npz(handle, length: int, state: State) -> None:
    n = state.count
    arrays = (
        ("ids", "<i8", (n,), (ids for ids, _ in _blocks(state, length))),
        ("codes", "u1", (n, num_bytes(length)), (rows for _, rows in _blocks(state, length))),
        ("bits", "<i8", (), [np.array(length)]),
    )
    write_npz(handle, arrays)


def _write_copy(handle, length: int, state: State) -> None:
    for ids, rows in _blocks(state, length):
        digits = np.unpackbits(rows, axis=1, count=length) + ord("0")
        text = digits.view(f"S{length}")[:, 0].astype(str)
        handle.write("".join(f"{id_}\t{code}\n" for id_, code in zip(ids.tolist(), text)).encode())


_WRITERS = {
    "parquet": lambda *args: _write_arrow(*args, parquet=True),
    "arrow": lambda *args: _write_arrow(*args, parquet=False),
    "npz": _write_npz,
    "pgvector": _write_copy,
}
