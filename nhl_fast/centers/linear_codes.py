"""How far apart codes can be: the largest minimum distances of binary linear codes."""

from __future__ import annotations

from functools import cache

# By dimension k, of k, k + 1, ... bits up to 256: by how much the best code falls short of Griesmer's bound (nothing
# beyond a string's end; nothing at all up to k = 4). Optimal: Bouyukhliev, Jaffe and Vavrek, "The smallest length of
# eight-dimensional binary linear codes with prescribed minimum distance", IEEE Trans. Inf. Theory 46(4), 2000.
_SHORT = {
    5: "000110011",
    6: "000110011011000110110011000000000011",
    7: "00011001101100011011001211210001101100110110001211210110000000000011001101100011011",
    8: (
        "0001100110110001211210121121000121121011011000122222112222210001211210121121001211210121121000121121"
        "0121121001211221110000000000001100110110001101100110110000110110011011000110110000000000000001100110"
        "11"
    ),
}
TABLE_BITS, TABLE_DIMENSION = 256, max(_SHORT)


def largest_distance(bits: int, num_codes: int) -> int:
    """Largest minimum distance of a linear code of `bits` bits with at least `num_codes` codewords; at least 1.

    Exact up to 256 codewords and 256 bits; beyond, Griesmer's bound, which no linear code passes.
    """
    dimension = max(1, (num_codes - 1).bit_length())
    if dimension > bits:
        return 1
    bound = _griesmer(bits, dimension)
    if bits > TABLE_BITS:
        return bound
    if dimension > TABLE_DIMENSION:
        return min(bound, _known(bits, TABLE_DIMENSION))
    return _known(bits, dimension)


def _known(bits: int, dimension: int) -> int:
    short = _SHORT.get(dimension, "")[bits - dimension :][:1]
    return _griesmer(bits, dimension) - int(short or 0)


@cache
def _griesmer(bits: int, dimension: int) -> int:
    """The largest d with sum over i < dimension of ceil(d / 2^i) <= bits."""
    low, high = 1, bits
    while low < high:
        middle = (low + high + 1) // 2
        if sum(-(-middle // 2**i) for i in range(dimension)) <= bits:
            low = middle
        else:
            high = middle - 1
    return low
