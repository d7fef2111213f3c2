"""How far apart codes can be, against all codes of few bits, known families, and what holds of all linear codes."""

import numpy as np
import pytest

from nhl_fast.centers.linear_codes import TABLE_BITS, largest_distance


def best_of_all(n: int, k: int) -> int:
    """The largest minimum distance of the codes that (identity | A) generates, over all A: no code is another."""
    checks = n - k
    choices = np.arange(1 << (k * checks), dtype=np.int64)
    rows = [(choices >> (i * checks)) & ((1 << checks) - 1) for i in range(k)]
    least = np.full(len(choices), n)
    for message in range(1, 1 << k):
        parity = np.zeros_like(choices)
        for i in range(k):
            if message >> i & 1:
                parity ^= rows[i]
        weight = message.bit_count() + sum((parity >> i) & 1 for i in range(checks))
        least = np.minimum(least, weight)
    return int(least.max())


@pytest.mark.parametrize("n", range(1, 9))
def test_equals_the_best_of_all_codes(n):
    for k in range(1, n + 1):
        assert largest_distance(n, 2**k) == best_of_all(n, k), (n, k)


@pytest.mark.parametrize(
    ("n", "k", "d"),
    [
        *((2**m, m + 1, 2 ** (m - 1)) for m in range(2, 9)),  # Reed-Muller, of the first order
        *((2**m - 1, m, 2 ** (m - 1)) for m in range(2, 9)),  # simplex
        (15, 7, 5), (31, 6, 15), (63, 7, 31), (127, 8, 63),  # BCH
        (24, 5, 12), (16, 6, 6), (48, 7, 22), (12, 6, 4),
    ],
)  # fmt: skip
def test_known_codes(n, k, d):
    assert largest_distance(n, 2**k) == d
    assert largest_distance(n, 2 ** (k - 1) + 1) == d  # as many bits name as many classes


def test_what_holds_of_all_linear_codes():
    """A parity bit makes an odd distance even; codes may be lengthened, shortened, and have words left out."""
    table = {(n, k): largest_distance(n, 2**k) for k in range(1, 9) for n in range(k, TABLE_BITS + 1)}
    for (n, k), d in table.items():
        if (n + 1, k) in table:
            assert table[n + 1, k] - d in ((1,) if d % 2 else (0, 1)), (n, k)
        if (n, k + 1) in table:
            assert table[n, k + 1] <= d, (n, k)
        if (n + 1, k + 1) in table:
            assert table[n + 1, k + 1] <= d, (n, k)


def test_beyond_the_table():
    assert largest_distance(512, 100) == 256
    assert largest_distance(1024, 2) == 1024
    assert largest_distance(4, 100) == 1  # more classes than codes
    assert largest_distance(64, 5000) <= largest_distance(64, 1024) <= largest_distance(64, 256)
