"""The shipped kernels compile ahead of time for sm_80, sm_90 and sm_100, without spilling, with tensor cores."""

from functools import cache

import aot
import pytest

QUICK = ("bank", "similarity", "distillation", "pairwise/pairs/dsh", "pair_sums/dch")


@cache
def rows(arch: int, match: str = "") -> list[dict]:
    return aot.subprocess_table((arch,), match)


def assert_sound(table):
    assert table
    for row in table:
        assert 0 < row["registers"] <= 255, row
        assert row["spill_bytes"] == 0, row
        assert row["shared_bytes"] <= 99 * 1024, row  # what sm_86 and sm_89 have, too


@pytest.mark.parametrize("match", QUICK)
def test_a_few_kernels(match):
    assert_sound(rows(90, match))


@pytest.mark.parametrize("match", ["distillation", "pairwise/pairs/dsh"])
def test_tensor_cores_where_tf32_is_allowed(match):
    for row in rows(90, match):
        assert (row["tensor_core"] > 0) == row["kernel"].endswith("tf32"), row
        assert row["tensor_core"] > 0 or row["fma"] > 100, row


@pytest.mark.slow
@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_every_kernel(arch):
    assert_sound(rows(arch))
