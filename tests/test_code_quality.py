"""Quality of codes against a plain NumPy count, bit by bit and code by code."""

import importlib
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nhl_fast as nhl
from nhl_fast import code_quality as function

module = importlib.import_module("nhl_fast.retrieval.quality")


def brute_force(codes, b):
    """The definitions, word for word, with no shortcut."""
    bits = np.unpackbits(codes, axis=1)[:, :b].astype(float)
    n, p = len(bits), bits.mean(0)
    entropy = [-sum(x * np.log2(x) for x in (q, 1 - q) if x > 0) for q in p]
    r = []
    for j, k in itertools.combinations(range(b), 2):
        if 0 < p[j] < 1 and 0 < p[k] < 1:
            r.append(abs(np.mean((bits[:, j] - p[j]) * (bits[:, k] - p[k])) / (bits[:, j].std() * bits[:, k].std())))
    counts = list(Counter(map(bytes, bits.astype(np.uint8))).values())
    return {
        "bits": b,
        "imbalance": np.mean(abs(2 * p - 1)),
        "constant_bits": sum(q in (0, 1) for q in p),
        "correlation": np.mean(r) if r else None,
        "max_correlation": max(r) if r else None,
        "bit_entropy": np.mean(entropy),
        "code_entropy": -sum(c / n * np.log2(c / n) for c in counts),
        "distinct_codes": len(counts),
        "collision_rate": sum(c * (c - 1) for c in counts) / (n * (n - 1)) if n > 1 else None,
        "colliding_items": sum(c for c in counts if c > 1) / n,
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    width=st.integers(1, 10),
    lengths=st.sets(st.integers(1, 80), min_size=1, max_size=4),
    levels=st.sampled_from([1, 2, 3, 256]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definitions(n, width, lengths, levels, seed):
    rng = np.random.default_rng(seed)
    # Few values a byte: many equal rows, constant bits and correlated ones.
    palette = rng.integers(0, 256, levels, dtype=np.uint8)
    codes = palette[rng.integers(0, levels, (n, width))]
    lengths = sorted({min(b, 8 * width) for b in lengths})
    rows = function(codes, lengths)
    assert [row["bits"] for row in rows] == lengths
    for row, b in zip(rows, lengths):
        same(row, brute_force(codes, b))


def test_by_hand():
    # Bits 0 and 1 are opposite, bit 2 is independent of both, bit 3 is constant; two codes occur twice.
    bits = np.array([[0, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1]])
    rows = nhl.code_quality(np.packbits(bits[:4].astype(bool), axis=1), (2, 4))
    assert rows[0] == {
        "bits": 2,
        "imbalance": 0.0,
        "constant_bits": 0,
        "correlation": 1.0,
        "max_correlation": 1.0,
        "bit_entropy": 1.0,
        "code_entropy": 1.0,
        "distinct_codes": 2,
        "collision_rate": pytest.approx(1 / 3),
        "colliding_items": 1.0,
    }
    assert rows[1]["constant_bits"] == 1
    assert rows[1]["imbalance"] == 0.25
    assert rows[1]["correlation"] == pytest.approx(1 / 3)  # |r| = 1, 0, 0 among the three bits that vary
    assert (rows[1]["distinct_codes"], rows[1]["colliding_items"], rows[1]["code_entropy"]) == (4, 0.0, 2.0)
    row = nhl.code_quality(np.packbits(bits.astype(bool), axis=1), (4,))[0]
    assert (row["distinct_codes"], row["colliding_items"]) == (4, pytest.approx(4 / 6))
    assert row["collision_rate"] == pytest.approx(4 / 30)


def test_fair_bits_come_close_to_the_ideal():
    codes = np.random.default_rng(0).integers(0, 256, (20_000, 16), dtype=np.uint8)
    short, long = nhl.code_quality(codes, (8, 128))
    assert short["collision_rate"] == pytest.approx(2**-8, rel=0.05)
    assert short["code_entropy"] == pytest.approx(8, abs=0.02)
    assert long["imbalance"] < 0.01
    assert long["correlation"] < 0.01
    assert long["distinct_codes"] == 20_000
    assert long["code_entropy"] == pytest.approx(np.log2(20_000))


def test_parts_of_the_rows_add_up(monkeypatch):
    codes = np.random.default_rng(1).integers(0, 4, (100, 3), dtype=np.uint8)
    whole = function(codes, (5, 17, 24))
    monkeypatch.setattr(module, "_ROWS", 7)
    assert function(codes, (5, 17, 24)) == whole


def test_counts_beyond_32_bits_stay_exact():
    # Two equal bits in 2^32 rows and one that half of them share: n c_jk passes the range of int64.
    half, n = 1 << 31, 1 << 32
    together = np.array([[half, half, half // 2], [half, half, half // 2], [half // 2, half // 2, half]])
    assert np.array_equal(module._correlation(together, n), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_arrays_tensors_and_memory_maps(tmp_path):
    codes = np.random.default_rng(2).integers(0, 256, (50, 4), dtype=np.uint8)
    expected = nhl.code_quality(codes, (8, 13, 32))
    np.save(tmp_path / "c.npy", codes)
    mapped = np.load(tmp_path / "c.npy", mmap_mode="r")
    for same_codes in (torch.from_numpy(codes.copy()), mapped, codes[::-1], np.asfortranarray(codes)):
        assert nhl.code_quality(same_codes, (8, 13, 32)) == expected
    dirty = codes.copy()
    dirty[:, 1] ^= 0x07  # beyond the 13th bit
    assert nhl.code_quality(dirty, (13,)) == expected[1:2]


@pytest.mark.parametrize(
    ("codes", "lengths", "error", "message"),
    [
        (np.zeros((0, 2), np.uint8), (8,), ValueError, "codes: expected at least one row"),
        (np.zeros((3, 2), np.int64), (8,), TypeError, "codes: expected packed uint8"),
        (np.zeros(3, np.uint8), (8,), ValueError, "codes: expected packed rows"),
        ([[1, 2]], (8,), TypeError, "codes"),
        (np.zeros((3, 2), np.uint8), (8, 17), ValueError, "lengths: expected at most 16"),
        (np.zeros((3, 2), np.uint8), (8, 8), ValueError, "lengths: expected strictly increasing"),
        (np.zeros((3, 2), np.uint8), (0,), ValueError, "lengths: expected an integer of at least 1"),
        (np.zeros((3, 2), np.uint8), (), ValueError, "lengths: expected at least one"),
        (np.zeros((3, 2), np.uint8), 8.0, TypeError, "lengths: expected a sequence"),
    ],
)
def test_bad_input(codes, lengths, error, message):
    with pytest.raises(error, match=message):
        nhl.code_quality(codes, lengths)
