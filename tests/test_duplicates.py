"""Pairs of near codes beside brute force: by the join, by the scan, for any blocks."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_model import rows

import nhl_fast as nhl
from nhl_fast.core.backend import probe
from nhl_fast.retrieval import duplicates, join

BACKENDS = [name for name in ("reference", "cpp") if probe(name).available]


def brute_force(codes, radius, length):
    """[(i, j, distance)] in order."""
    table = oracle.distances(codes, codes, length)
    return [(i, j, d) for i, row in enumerate(table.tolist()) for j, d in enumerate(row) if i < j and d <= radius]


def triples(found):
    assert [array.dtype for array in found] == [torch.int64, torch.int64, torch.int32]
    return list(zip(*(array.tolist() for array in found)))


def clustered(n, length, seed, flips=0.04):
    """Codes near a few centres, every eleventh one a copy of the one before, some bits constant."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2, (max(1, n // 6), length))[generator.integers(0, max(1, n // 6), n)]
    bits ^= generator.random((n, length)) < flips
    bits[:, ::5] = 1
    bits[1::11] = bits[: len(bits[1::11]) * 11 : 11]
    return np.packbits(bits.astype(np.uint8), axis=1)


CODES = {"clustered": clustered, "random": lambda n, length, seed: rows(n, length, seed)}
SIZES = st.tuples(
    st.integers(0, 130), st.sampled_from([1, 7, 8, 20, 64, 70, 128]), st.integers(0, 20), st.integers(0, 9)
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CODES)
@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, cells=st.sampled_from([1, 700, 10**6]))
def test_join_and_scan_are_brute_force(kind, backend, sizes, cells):
    n, length, radius, seed = sizes
    codes = CODES[kind](n, length, seed)
    radius = min(radius, length)
    wanted = brute_force(codes, radius, length)
    tensor = torch.from_numpy(codes)
    ways = [duplicates.scan(tensor, radius, length, cells, backend)] if cells > 1 or n < 20 else []
    if n > 1:
        _, blocks = join.plan(codes, length, radius, 1)
        if blocks:
            assert sum(block.threshold + 1 for block in blocks) == radius + 1
            assert sorted(np.concatenate([block.bits for block in blocks]).tolist()) == list(range(length))
            ways.append(duplicates.joined(tensor, radius, length, blocks, max(cells, 50), backend))
    for way in ways:
        assert sorted(pair for part in way for pair in triples(part)) == wanted
    assert triples(nhl.near_duplicates(codes, radius, length, backend=backend)) == wanted


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_blocks_give_the_same_pairs(data):
    """Blocks of any sizes, thresholds and keys, in any order of bits."""
    length, n = data.draw(st.integers(4, 70)), data.draw(st.integers(2, 90))
    codes = clustered(n, length, data.draw(st.integers(0, 9)), 0.1)
    thresholds = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=min(6, length)))
    bits = np.array(data.draw(st.permutations(range(length))))
    cuts = data.draw(
        st.lists(st.integers(1, length - 1), unique=True, min_size=len(thresholds) - 1, max_size=len(thresholds) - 1)
    )
    blocks = []
    for some, threshold in zip(np.split(bits, sorted(cuts)), thresholds):
        blocks.append(join.Block(some, threshold, data.draw(st.integers(1, min(9, len(some))))))
    radius = min(sum(thresholds) + len(thresholds) - 1, length)
    found = duplicates.joined(torch.from_numpy(codes), radius, length, tuple(blocks), 10**6, "auto")
    assert sorted(pair for part in found for pair in triples(part)) == brute_force(codes, radius, length)


@pytest.mark.parametrize(("kind", "radius"), [("random", 0), ("random", 3), ("clustered", 3), ("clustered", 9)])
def test_many_codes(kind, radius, monkeypatch):
    """Beside the flat radius search, which has tests of its own; the way that is said to be cheaper is taken."""
    taken = []
    for way in ("scan", "joined"):
        function = getattr(duplicates, way)
        monkeypatch.setattr(duplicates, way, lambda *args, w=way, f=function: taken.append(w) or f(*args))
    codes = CODES[kind](6000, 64, 0)
    if kind == "random":
        codes[:, 0] &= 7
        codes[:, 2:] &= 1
    offsets, distances, ids = nhl.radius_search(codes, codes, radius)
    first = torch.repeat_interleave(offsets.diff())
    later = ids > first
    order = (first[later] * len(codes) + ids[later]).argsort()
    wanted = first[later][order], ids[later][order], distances[later][order]
    assert len(wanted[0]) > 100
    for seconds in (0.0, 1.0, 1e9):  # not worth a plan; more than the join's estimate
        monkeypatch.setattr(join, "scan_seconds", lambda *args, s=seconds: s)
        assert all(map(torch.equal, nhl.near_duplicates(codes, radius), wanted))
    assert join.plan(codes, 64, radius, 1)[0] < 1.0
    assert taken == ["scan", "joined", "joined"]
    monkeypatch.setattr(join, "plan", lambda *args: (2.0, ()))
    monkeypatch.setattr(join, "scan_seconds", lambda *args: 1.0)
    assert all(map(torch.equal, nhl.near_duplicates(codes, radius), wanted))
    assert taken[3:] == ["scan"]


def test_the_cost_of_a_plan_falls_where_keys_tell(monkeypatch):
    """Constant bits say nothing: the estimate sees that, and no key is made of them alone."""
    codes = rows(3000, 64)
    few = codes.copy()
    few[:, :7] = 0
    assert join.plan(few, 64, 1, 1)[0] > join.plan(codes, 64, 1, 1)[0]
    for block in join.plan(few, 64, 1, 1)[1]:
        assert (block.bits[: block.key_bits] >= 56).any()


@pytest.mark.parametrize("n", [1, 5, 64, 65])
def test_meeting_counts(n):
    """The transforms count what pairs of loops count."""
    counts = np.random.default_rng(n).integers(0, 9, 16).astype(float)
    wanted = [sum(counts[v] * counts[v ^ x] for v in range(16)) for x in range(16)]
    assert np.allclose(join._meeting(counts), wanted, rtol=0, atol=1e-9)


@given(st.integers(0, 40), st.integers(0, 60), st.integers(1, 500))
def test_tiles_have_every_later_pair_once(queries, more, cells):
    items = queries + more
    seen = np.zeros((queries, items), int)
    for start, stop, first, last in duplicates.tiles(queries, items, cells):
        assert (stop - start) * (last - first) <= cells
        seen[start:stop, first:last] += 1
    assert seen.max(initial=0) <= 1
    assert (seen[np.triu_indices(queries, 1, items)] == 1).all()


def test_ones_without_numpy_2(monkeypatch):
    words = np.random.default_rng(0).integers(0, 2**63, (50, 3), dtype=np.uint64)
    wanted = [sum(int(word).bit_count() for word in row) for row in words]
    assert join.ones(words).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert join.ones(words).tolist() == wanted


def test_hashes_of_any_form():
    bits = np.unpackbits(clustered(60, 64, 0), axis=1).astype(bool)
    packed = np.packbits(bits, axis=1)
    wanted = brute_force(packed, 5, 64)
    assert wanted
    numbers = packed.view(">u8")[:, 0]
    binary = (packed.astype(np.int16) - 128).astype(np.int8)
    for form in (
        packed,
        bits,
        bits.reshape(60, 8, 8),
        numbers,
        numbers.tolist(),
        [row.tobytes().hex() for row in packed],
        binary,
    ):
        assert triples(nhl.near_duplicates(form, 5)) == wanted
    found = nhl.near_duplicates(packed, 5, output="numpy")
    assert all(type(array) is np.ndarray for array in found)
    assert list(zip(*(array.tolist() for array in found))) == wanted
    assert triples(nhl.near_duplicates(packed, 3, 17)) == brute_force(packed, 3, 17)


def test_blocks_check_at_the_call():
    blocks = nhl.near_duplicate_blocks(clustered(90, 64, 0), 6)
    assert sorted(pair for part in blocks for pair in triples(part)) == brute_force(clustered(90, 64, 0), 6, 64)
    for call in (nhl.near_duplicates, nhl.near_duplicate_blocks):
        for arguments, error, message in (
            ((np.ones((3, 8)), 1), TypeError, "codes: expected packed uint8 rows"),
            ((["ff", "f"], 1), ValueError, "codes: expected hex strings of one length"),
            ((rows(3, 8), -1), ValueError, "radius: expected an integer of at least 0"),
            ((rows(3, 8), 1, 9), ValueError, "length: expected at most 8"),
        ):
            with pytest.raises(error, match=message):
                call(*arguments)
        with pytest.raises(ValueError, match="backend: expected one of"):
            call(rows(3, 8), 1, backend="abacus")
