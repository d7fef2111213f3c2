"""The shipped kernels compile ahead of time for sm_80, sm_90 and sm_100, without spilling, with tensor cores."""

import os
import subprocess
import sys
from functools import cache

import aot
import pytest

QUICK = (
    "bank",
    "similarity",
    "distillation",
    "pairs/contrastive",
    "pairs/likelihood-log_cosh/ieee",
    "pair_sums/cauchy",
    "dots/transposed",
    "listwise/statistics",
    "listwise/gaps",
    "triplets/anchors/given",
)


def alone(program: str) -> str:
    """What a program prints, run in a process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=aot.ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@cache
def rows(arch: int, match: str = "", ones: bool = False) -> list[dict]:
    return aot.subprocess_table((arch,), match, ones)


def assert_sound(table):
    assert table
    for row in table:
        assert 0 < row["registers"] <= 255, row
        assert row["spill_bytes"] == 0, row
        assert row["shared_bytes"] <= 99 * 1024, row  # what sm_86 and sm_89 have, too


@pytest.mark.parametrize("match", QUICK)
def test_a_few_kernels(match):
    assert_sound(rows(90, match))


@pytest.mark.parametrize("match", ["distillation", "pairs/contrastive", "listwise/gaps"])
def test_tensor_cores_where_tf32_is_allowed(match):
    for row in rows(90, match):
        assert (row["tensor_core"] > 0) == ("tf32" in row["kernel"]), row
        assert row["tensor_core"] > 0 or row["fma"] > 100, row


def test_features_are_read_16_bytes_at_a_time():
    (row,) = (row for row in rows(90, "dots/transposed") if row["kernel"].endswith("fp32_ieee_n256"))
    assert row["wide_loads"] == row["loads"] > 0, row


def test_integers_of_one_are_constants():
    """Triton compiles a launch anew where an integer is 1, and then takes it as a constant."""
    assert_sound(rows(90, "pair_sums/cauchy", ones=True))


def test_multiply_adds_are_fused_by_every_launch():
    assert [name for name, *_, options in aot.kernel_variants() if not options.get("enable_fp_fusion")] == []


ASSERTED = """
import sys
sys.path[:0] = ["tests/triton", "."]
import aot
for name, *variant in aot.kernel_variants():
    if name.startswith("bank/store/"):
        assert "labels: expected" in aot.compile_variant(*variant, 90).asm["ttir"], name
        print(name)
"""


def test_a_bank_asserts_the_labels_that_it_takes():
    assert len(alone(ASSERTED).split()) == 3


SMALLER = """
from bench.step import host
with host.stubbed() as compiled:
    cases = [(name, {}) for name in ("csq", "dhn", "shcir", "dtsh", "dch")]
    for name, options in cases + [(name, {"ignore_index": -1}) for name in ("csq", "dhn", "shcir", "dtsh")]:
        host.problem(name, 64, 2048, **options)()
        before = len(compiled)
        assert before, name
        host.problem(name, 50, 2048, **options)()
        assert not compiled[before:], (name, options, compiled[before:])
"""


def test_a_smaller_last_batch_compiles_nothing_new():
    alone(SMALLER)


@pytest.mark.slow
def test_every_kernel_with_integers_of_one():
    assert rows(90, ones=True)


@pytest.mark.slow
@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_every_kernel(arch):
    assert_sound(rows(arch))
