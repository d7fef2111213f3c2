"""Mutated index files: each must load right or be refused cleanly, in bounded memory.

    python tests/fuzz_index.py --count 20000 --seed 1

What "right" means is decided here, by a second reading of the file format that shares nothing with the package.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import shutil
import signal
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import oracle
import torch

from nhl_fast.index.nested_index import IndexFileError, NestedIndex

# name: (offset, bytes)
FIELDS = {
    "magic": (0, 8),
    "version": (8, 4),
    "header_bytes": (12, 4),
    "flags": (16, 8),
    "length": (24, 8),
    "count": (32, 8),
    "first_id": (40, 8),
    "next_id": (48, 8),
    "ids_offset": (56, 8),
    "ids_bytes": (64, 8),
    "codes_offset": (72, 8),
    "codes_bytes": (80, 8),
    "file_bytes": (88, 8),
    "ids_crc": (96, 4),
    "codes_crc": (100, 4),
    "vectors_offset": (104, 8),
    "vectors_width": (112, 4),
    "vectors_kind": (116, 4),
    "vectors_crc": (120, 4),
    "crc": (124, 4),
}
SECTION_FIELDS = ["count", "length", "flags", "ids_offset", "ids_bytes", "codes_offset", "codes_bytes", "file_bytes"]
VECTORS = {1: "<f4", 2: "<f2", 3: "i1"}
EDGES = [
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    127,
    128,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**60,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]

# An honest load of a file of a few kilobytes stays far below.
MEMORY_LIMIT = 8 * 2**20


def get(data, name: str) -> int:
    offset, size = FIELDS[name]
    return int.from_bytes(data[offset : offset + size], "little")


def put(data: bytearray, name: str, value: int) -> None:
    offset, size = FIELDS[name]
    data[offset : offset + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")


def sign(data: bytearray) -> None:
    """Make the header's checksum right."""
    put(data, "crc", zlib.crc32(bytes(data[:124])))


def sign_sections(data: bytearray) -> None:
    """Make all checksums right, where the sections lie inside the file."""
    start, size = get(data, "codes_offset"), get(data, "codes_bytes")
    put(data, "codes_crc", zlib.crc32(bytes(data[start : start + size])))
    if get(data, "vectors_kind"):
        put(data, "vectors_crc", zlib.crc32(bytes(data[get(data, "vectors_offset") :])))
    if get(data, "flags") & 1:
        start, size = get(data, "ids_offset"), get(data, "ids_bytes")
        put(data, "ids_crc", zlib.crc32(bytes(data[start : start + size])))
    sign(data)


def decode(data: bytes) -> dict | None:
    """The items of a file that is right in every respect, else None."""
    if len(data) < 128 or data[:8] != bytes([0x89, 0x4E, 0x48, 0x4C, 0x49, 0x0D, 0x0A, 0x1A]):
        return None
    h = {name: get(data, name) for name in FIELDS}
    if h["version"] not in (1, 2) or h["header_bytes"] != 128 or h["flags"] >> 1 != h["version"] - 1:
        return None
    if h["version"] == 1 and any(data[104:124]):
        return None
    if h["version"] == 2 and not (h["vectors_kind"] in VECTORS and 1 <= h["vectors_width"] <= 2**20):
        return None
    if h["crc"] != zlib.crc32(data[:124]) or not 1 <= h["length"] <= 2**20:
        return None
    n, width, explicit = h["count"], (h["length"] + 7) // 8, h["flags"] & 1
    ids_end = 128 + (8 * n if explicit else 0)
    start = (ids_end + 63) // 64 * 64
    end = codes_end = start + n * width
    if h["version"] == 2:
        kind = np.dtype(VECTORS[h["vectors_kind"]])
        first = (codes_end + 63) // 64 * 64
        end = first + n * h["vectors_width"] * kind.itemsize
        if h["vectors_offset"] != first:
            return None
    sections = (128 if explicit else 0, ids_end - 128, start, n * width, end)
    if sections != tuple(h[name] for name in SECTION_FIELDS[3:]) or len(data) != sections[-1]:
        return None
    vectors = None
    if h["version"] == 2:
        if any(data[codes_end:first]) or zlib.crc32(data[first:]) != h["vectors_crc"]:
            return None
        vectors = np.frombuffer(data, kind, offset=first).reshape(n, h["vectors_width"])
    if any(data[ids_end:start]) or zlib.crc32(data[start:codes_end]) != h["codes_crc"]:
        return None
    if explicit:
        ids = [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(128, ids_end, 8)]
        if h["first_id"] or zlib.crc32(data[128:ids_end]) != h["ids_crc"]:
            return None
        if any(a >= b for a, b in itertools.pairwise(ids)) or (ids and ids[0] < 0):
            return None
    else:
        if h["ids_crc"] or h["first_id"] + n > 2**63:
            return None
        ids = list(range(h["first_id"], h["first_id"] + n))
    if h["next_id"] > 2**63 or h["next_id"] < (ids[-1] + 1 if ids else h["first_id"]):
        return None
    codes = np.frombuffer(data, np.uint8, n * width, start).reshape(n, width)
    if (np.unpackbits(codes, axis=1)[:, h["length"] :]).any():
        return None
    return {"length": h["length"], "ids": ids, "codes": codes, "next_id": h["next_id"], "vectors": vectors}


# -------------------------------------------------------------------------------------------------- mutations


def flip_bits(data: bytearray, rng, other) -> None:
    for bit in rng.integers(0, 8 * len(data), rng.integers(1, 9)):
        data[bit // 8] ^= 1 << bit % 8


def flip_header_bits(data: bytearray, rng, other) -> None:
    for bit in rng.integers(0, 8 * 128, rng.integers(1, 4)):
        data[bit // 8] ^= 1 << bit % 8


def truncate(data: bytearray, rng, other) -> None:
    del data[rng.integers(0, len(data)) :]


def extend(data: bytearray, rng, other) -> None:
    size = int(rng.integers(1, 400))
    data += bytes(size) if rng.random() < 0.5 else rng.bytes(size)


def overwrite(data: bytearray, rng, other) -> None:
    start, size = int(rng.integers(0, len(data))), int(rng.integers(1, 64))
    data[start : start + size] = rng.bytes(len(data[start : start + size]))


def move_block(data: bytearray, rng, other) -> None:
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    block = data[a:b]
    del data[a:b]
    place = int(rng.integers(0, len(data) + 1))
    data[place:place] = block * int(rng.integers(0, 3))


def splice(data: bytearray, rng, other) -> None:
    place = int(rng.choice([128, int(rng.integers(0, len(data)))]))
    data[place:] = other[place:]


def new_value(old: int, rng) -> int:
    kind = rng.integers(0, 5)
    near = [old + 1, old - 1, 2 * old, old // 2, old + 64, old + 128, old ^ 1 << int(rng.integers(0, 64))]
    return [int(rng.choice(near[:6])), near[6], EDGES[rng.integers(0, len(EDGES))], 0, int(rng.integers(0, 4096))][
        kind
    ]


def edit_header(data: bytearray, rng, other) -> None:
    """Change some fields, and make the header's checksum right again."""
    names = list(FIELDS)[1:-1]
    for name in rng.choice(names, rng.integers(1, 4), replace=False):
        put(data, name, new_value(get(data, name), rng))
    sign(data)


def edit_sections(data: bytearray, rng, other) -> None:
    """Change a size, let most of the other fields follow, resize the file to match, sign everything."""
    name = str(rng.choice(["count", "length", "flags"]))
    put(data, name, new_value(get(data, name), rng))
    explicit, n, width = get(data, "flags") & 1, get(data, "count"), (get(data, "length") + 7) // 8
    start = (128 + 8 * n * explicit + 63) // 64 * 64
    end = start + n * width
    if get(data, "flags") & 2:
        put(data, "vectors_offset", (end + 63) // 64 * 64)
        kind = np.dtype(VECTORS.get(get(data, "vectors_kind"), "i1"))
        end = get(data, "vectors_offset") + n * get(data, "vectors_width") * kind.itemsize
    follow = [128 * explicit, 8 * n * explicit, start, n * width, end]
    for field, value in zip(SECTION_FIELDS[3:], follow):
        if rng.random() < 0.95:
            put(data, field, value)
    size = get(data, "file_bytes")
    if size <= 2**16 and rng.random() < 0.9:
        data[:] = data[:size].ljust(size, b"\0")
        sign_sections(data)
    sign(data)


def edit_codes(data: bytearray, rng, other) -> None:
    """Other codes and vectors, signed: a right file, unless bits beyond the length or of padding are set."""
    start = get(data, "codes_offset")
    for place in rng.integers(start, len(data), rng.integers(1, 5)) if start < len(data) else ():
        data[place] = rng.integers(0, 256)
    sign_sections(data)


def edit_ids(data: bytearray, rng, other) -> None:
    """Other ids (repeated, swapped, negative, huge, ascending), signed."""
    n = get(data, "count")
    if not get(data, "flags") & 1 or n < 2:
        put(data, "first_id", new_value(get(data, "first_id"), rng))
        put(data, "next_id", new_value(get(data, "first_id") + n, rng))
        return sign(data)
    i, j = (128 + 8 * int(k) for k in rng.integers(0, n, 2))
    kind = rng.integers(0, 4)
    if kind == 0:
        data[i : i + 8] = data[j : j + 8]
    elif kind == 1:
        data[i : i + 8], data[j : j + 8] = data[j : j + 8], data[i : i + 8]
    elif kind == 2:
        data[i : i + 8] = (EDGES[rng.integers(0, len(EDGES))]).to_bytes(8, "little")
    else:
        value = (int.from_bytes(data[i : i + 8], "little") + int(rng.integers(-3, 4))) % 2**64
        data[i : i + 8] = value.to_bytes(8, "little")
    sign_sections(data)


def rewrite(data: bytearray, rng, other) -> None:
    """Nothing of the file but, at times, its beginning."""
    size = int(rng.integers(0, 600))
    data[:] = (bytes(data[: int(rng.choice([0, 8, 16, 128]))]) + rng.bytes(size))[: max(size, 1)]


def keep(data: bytearray, rng, other) -> None:
    """The file as it is, which must load."""


MUTATIONS = [
    flip_bits,
    flip_header_bits,
    truncate,
    extend,
    overwrite,
    move_block,
    splice,
    edit_header,
    edit_header,
    edit_header,
    edit_sections,
    edit_sections,
    edit_codes,
    edit_ids,
    edit_ids,
    rewrite,
    keep,
]


# ------------------------------------------------------------------------------------------------------ checks


def make_files(folder: Path, rng) -> list[bytes]:
    """Index files of several lengths and sizes, with running and with given ids, with and without vectors."""
    out, kinds = [], {12: "float16", 100: "int8", 24: "float32"}
    for length, n, given in [
        (128, 20, False), (128, 33, True), (5, 40, True), (12, 7, False), (100, 9, True), (24, 11, True),
    ]:  # fmt: skip
        index = NestedIndex(length)
        rows = np.packbits(rng.integers(0, 2, (n, length), dtype=np.uint8), axis=1)
        ids = rng.choice(2**40, n, replace=False) if given else np.arange(n) + 3 * (length == 12)
        vectors = (9 * rng.standard_normal((n, 5))).astype(kinds[length]) if length in kinds else None
        index.add(rows, ids, vectors=vectors)
        if given and length == 5:
            index.remove(ids[:4])
        index.save(folder / "original")
        out.append((folder / "original").read_bytes())
    NestedIndex(64).save(folder / "original")
    return [*out, (folder / "original").read_bytes()]


def same_results(index: NestedIndex, expected: dict, rng) -> None:
    """The index holds exactly the expected items, and finds them as brute force does."""
    ids, rows, length, vectors = (expected[name] for name in ("ids", "codes", "length", "vectors"))
    assert (index.length, len(index), index.ids.tolist()) == (length, len(ids), ids)
    if expected["next_id"] < 2**63:
        like = (
            None if vectors is None or not ids else np.zeros_like(vectors[:1], dtype=vectors.dtype.newbyteorder("="))
        )
        extra = index.add(np.zeros((1, (length + 7) // 8), np.uint8), vectors=like)
        assert extra.tolist() == [expected["next_id"]]
        index.remove(extra)
    if not ids or length > 4096:
        return
    assert np.array_equal(index.reconstruct(ids).numpy(), rows)
    if vectors is not None:
        assert index.reconstruct_vectors(ids).numpy().tobytes() == vectors.tobytes()
    prefix = int(rng.integers(1, length + 1))
    queries = rng.integers(0, 256, (2, rows.shape[1]), dtype=np.uint8)
    table = oracle.distances(queries, rows, prefix)
    wanted = [sorted(zip(row.tolist(), ids)) for row in table]
    k = int(rng.integers(1, len(ids) + 1))
    distances, found = index.search(queries, k, prefix)
    assert [list(zip(d, i)) for d, i in zip(distances.tolist(), found.tolist())] == [row[:k] for row in wanted]


def survive(index: NestedIndex, rng) -> None:
    """Every reading call ends, and gives what has the right shape, whatever the unverified sections hold."""
    n, width = len(index), (index.length + 7) // 8
    assert index.ids.shape == (n,)
    if not n or index.length > 4096:
        return
    queries = rng.integers(0, 256, (2, width), dtype=np.uint8)
    k = int(rng.integers(1, n + 1))
    distances, found = index.search(queries, k)
    assert distances.shape == found.shape == (2, k)
    assert index.search(queries, k, allow=index.ids.clamp(min=0)[:3])[1].shape == (2, k)
    offsets, distances, _ = index.range_search(queries, index.length)
    assert offsets.tolist() == [0, n, 2 * n]
    assert len(distances) == 2 * n
    assert isinstance(5 in index, bool)


def load(path: Path, **options) -> NestedIndex | str:
    """The index, or the message of its refusal."""
    try:
        return NestedIndex.load(path, **options)
    except IndexFileError as error:
        return str(error)


def check(data: bytes, path: Path, rng) -> str:
    """Load one file every way; returns "loaded" or "refused". AssertionError where something is wrong."""
    # Never rewritten in place: an index of the case before may still map the old file.
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    expected = decode(data)
    for mmap in (True, False):
        index = load(path, mmap=mmap)
        unverified = load(path, mmap=mmap, verify=False)
        if expected is not None:
            assert not isinstance(index, str), f"a right file was refused: {index}"
            assert not isinstance(unverified, str), f"a right file was refused: {unverified}"
            same_results(index, expected, rng)
            same_results(unverified, expected, rng)
        else:
            assert isinstance(index, str), "a wrong file was loaded"
            assert index.startswith(str(path)), f"the error does not name the file: {index}"
            if not isinstance(unverified, str):
                survive(unverified, rng)
    return "refused" if expected is None else "loaded"


def run(count: int, seed: int, folder: Path, seconds: int = 0) -> collections.Counter:
    """Check `count` mutated files; counts by (mutation, outcome). One that takes `seconds` ends the process."""
    rng = np.random.default_rng(seed)
    originals = make_files(folder, rng)
    outcomes = collections.Counter()
    tracemalloc.start()
    try:
        for number in range(count):
            mutate = MUTATIONS[rng.integers(0, len(MUTATIONS))]
            chosen, other = (originals[i] for i in rng.integers(0, len(originals), 2))
            data = bytearray(chosen)
            mutate(data, rng, other)
            where = f"seed {seed}, file {number}, {mutate.__name__}, kept as {folder / 'mutated'}"
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            signal.alarm(seconds)
            try:
                outcome = check(bytes(data), folder / "mutated", rng)
            except Exception as error:
                raise AssertionError(where) from error
            signal.alarm(0)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < MEMORY_LIMIT, f"{where}: {peak} bytes were allocated"
            outcomes[mutate.__name__, outcome] += 1
    finally:
        tracemalloc.stop()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="fuzz_index"))
    outcomes = run(arguments.count, arguments.seed, folder, seconds=60)
    for name in dict.fromkeys(mutation.__name__ for mutation in MUTATIONS):
        print(f"{name:<18} loaded {outcomes[name, 'loaded']:>6}   refused {outcomes[name, 'refused']:>6}")
    print(f"{outcomes.total()} files, all right")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
