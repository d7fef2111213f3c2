"""What `nhl-fast duplicates` does."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..core import check
from ..core.arrays import write_npz
from ..core.files import as_path, atomic_write, existing_file
from ..retrieval.convert import to_rows
from ..retrieval.duplicates import near_duplicate_blocks, near_duplicates
from ..training.arrays import load_array

_SHOWN = 20
_BLOCK_BYTES = 2**20
_COLUMNS = (("i", np.dtype("<i8")), ("j", np.dtype("<i8")), ("distance", np.dtype("<i4")))


def duplicates(args) -> tuple[dict, str]:
    """What is said as JSON and as text."""
    check.positive_int(args.radius, "--radius", minimum=0)
    out = None if args.out is None else _target(args.out, args.codes)
    codes = to_rows(read_codes(args.codes), "codes")
    said = {"codes": len(codes), "radius": args.radius}
    if out is None:
        i, j, distances = (column.tolist() for column in near_duplicates(codes, args.radius, args.length))
        said |= {"pairs": len(i), "i": i, "j": j, "distance": distances}
        lines = [f"{a} {b}: {d}" for a, b, d in zip(i[:_SHOWN], j[:_SHOWN], distances)]
        more = [f"... {len(i) - _SHOWN} more: --out FILE.npz has all"] if len(i) > _SHOWN else []
        return said, "\n".join([f"{len(i):,} pairs of {len(codes):,} codes", *lines, *more])
    said |= {"pairs": _write(out, near_duplicate_blocks(codes, args.radius, args.length)), "out": str(out)}
    return said, f"{said['pairs']:,} pairs of {len(codes):,} codes in {out}"


def read_codes(path):
    """Codes in an .npy file, or hex strings in a text file, one a line."""
    if existing_file(path, "codes").suffix.lower() != ".txt":
        return load_array(path, "codes")
    try:
        return Path(path).read_text(encoding="ascii").split()
    except UnicodeDecodeError:
        raise ValueError(f"codes: expected hex strings, one a line, in {path}") from None


def _target(value, source) -> Path:
    out = as_path(value, "--out")
    if out.suffix.lower() != ".npz":
        raise ValueError(f"--out: expected a name that ends in .npz, got {out.name!r}")
    if out.exists() and out.samefile(existing_file(source, "codes")):
        raise ValueError(f"--out: {out} is the file of the codes")
    return out


def _write(path: Path, blocks) -> int:
    """The pairs as arrays i, j and distance of an .npz file, by way of temporary files; how many there are."""
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(atomic_write(path))
        files = [stack.enter_context(tempfile.TemporaryFile(dir=path.resolve().parent)) for _ in _COLUMNS]
        count = 0
        for block in blocks:
            count += len(block[0])
            for file, column, (_, dtype) in zip(files, block, _COLUMNS):
                file.write(column.numpy().astype(dtype, copy=False).tobytes())
        write_npz(
            handle, [(name, dtype, (count,), _read(file, dtype)) for file, (name, dtype) in zip(files, _COLUMNS)]
        )
    return count


def _read(file, dtype) -> Iterator[np.ndarray]:
    file.seek(0)
    while part := file.read(_BLOCK_BYTES):
        yield np.frombuffer(part, dtype)
