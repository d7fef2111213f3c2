"""The microbenchmarks' cases: every kernel has one, which agrees with PyTorch and has a floor."""

import importlib

import pytest
import torch


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of bench/; without a CUDA device at the sizes of a rehearsal."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("NHL_FAST_REHEARSAL", "1")
    return importlib.import_module


def test_every_kernel_has_a_floor_and_a_word_on_its_gap(bench):
    cases = bench("bench.kernels.cases")
    assert {name for name, *_ in cases.wanted()} == set(cases.CASES)
    for name, n, d, dtype in cases.wanted():
        made = cases.CASES[name](n, d, dtype)
        assert made.gap
        assert made.floor[0] > 0


def test_rows(bench):
    cases, kernels = bench("bench.kernels.cases"), bench("bench.kernels.device")
    n, d = cases.SHAPES[0]
    (row,) = kernels.kernel("weights", n, d, torch.float32, {"copy_gb_s": 4000.0, "matmul_fp32_tflop_s": 50.0})
    moved, operations = row["bytes"], row["operations"]
    assert row["bytes_ms"] == pytest.approx(moved / 4000e9 * 1e3)
    assert row["operations_ms"] == pytest.approx(operations / 50e12 * 1e3)
    assert row["of_floor"] == pytest.approx(max(row["bytes_ms"], row["operations_ms"]) / row["ms"], abs=1e-3)
    assert row["gap"]
    (row,) = kernels.kernel("dpn", n, d, torch.float32, {})
    assert row["ms"] > 0
    assert "of_floor" not in row


def test_a_wrong_kernel_is_not_timed(bench, monkeypatch):
    cases, kernels = bench("bench.kernels.cases"), bench("bench.kernels.device")
    n, d = cases.SHAPES[0]
    right = cases.CASES["bank_store"](n, d, torch.float32)
    wrong = right._replace(plain=lambda: [t + 1 for t in right.fused()])
    monkeypatch.setitem(cases.CASES, "bank_store", lambda *size: wrong)
    (row,) = kernels.kernel("bank_store", n, d, torch.float32, {})
    assert row["note"] == "wrong result: not timed"
    assert "ms" not in row


def test_tile_sizes_are_put_back(bench):
    kernels = bench("bench.kernels.device")
    before = kernels.pairs.config
    (row,) = kernels.tile("dch", 16, (16, 32, 16, 32, 4))
    assert row["tile"] == "16 32 16 32 4"
    assert row["ms"] > 0
    assert kernels.pairs.config is before
