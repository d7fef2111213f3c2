"""Which pairs of codes can be near at all: a join over blocks of bits, and what it would cost.

Bits are dealt out to m blocks with thresholds t_1 .. t_m whose sum is radius + 1 - m. Of a pair within the radius at
least one block differs in at most t_s bits (else all together differ in radius + 1 or more), so that it is enough to
compare rows whose keys, some bits of a block, differ in at most t_s bits (multi-index hashing: Norouzi, Punjani and
Fleet, 2012). Rows are sorted by key, so that equal keys lie side by side and the engine compares them as it scans.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Keys are sorted as uint16 (by radix).
_MOST_KEY_BITS = 16
_MOST_THRESHOLD = 3
_SAMPLE = 2**15
_ROWS = 2**16
# Items of a call of the scan, at most.
SCANNED = 2**15

# Seconds of a call of the engine and what is around it, of each of its queries, of 2^40 bits compared on a thread,
# and of a pair found in a block. Orders of magnitude, measured on x86-64 with AVX-512: they weigh one way against
# another.
_CALL, _QUERY, _BITS, _FOUND = 1e-4, 1.5e-7, 1.0, 1.5e-7


@dataclass(frozen=True)
class Block:
    """Bits of the codes that are compared together, those of the key first, and how many may differ."""

    bits: np.ndarray
    threshold: int
    key_bits: int

    def mask(self, words: int) -> np.ndarray:
        """The block's bits in a row of `words` uint64."""
        flags = np.zeros(64 * words, np.uint8)
        flags[self.bits] = 1
        return np.packbits(flags).view(np.uint64)

    def ball(self) -> np.ndarray:
        """What the keys of near rows may differ in, 0 first."""
        places = [1 << place for place in range(self.key_bits)]
        some = (itertools.combinations(places, count) for count in range(self.threshold + 1))
        return np.array([sum(chosen) for chosen in itertools.chain(*some)], np.int64)

    def keys(self, codes: np.ndarray) -> np.ndarray:
        """(n,) uint16 keys of packed rows."""
        out = np.zeros(len(codes), np.uint16)
        for start in range(0, len(codes), _ROWS):
            part, keys = codes[start : start + _ROWS], out[start : start + _ROWS]
            for place, bit in enumerate(self.bits[: self.key_bits]):
                keys |= ((part[:, bit >> 3] >> np.uint8(7 - (bit & 7))) & 1).astype(np.uint16) << np.uint16(place)
        return out


def scan_seconds(n: int, length: int, threads: int, cells: int, near: float = 0.0) -> float:
    """What comparing every row with all rows after it costs, `cells` pairs a call, of which `near` pairs are near."""
    pairs = n * n / 2
    comparing = pairs * length / 2**40 * _BITS + pairs / min(n, SCANNED) * _QUERY
    return comparing / threads + pairs / cells * _CALL + near * _FOUND


def plan(codes: np.ndarray, length: int, radius: int, threads: int, near: float = 0.0):
    """(seconds, blocks) of the join that costs least, by a sample of the rows; infinity and none where none can.

    `near` pairs are near, and nearly all blocks let each of them meet.
    """
    n = len(codes)
    sample = codes[np.random.default_rng(0).integers(0, n, _SAMPLE)] if n > _SAMPLE else codes
    bits = np.unpackbits(sample, axis=1, count=length)
    # Bits that are set in half of the rows tell most: they come first, and every block gets some.
    order = np.abs(bits.mean(0) - 0.5).argsort(kind="stable")
    rough = {}
    for count in range(1, min(radius + 1, length) + 1):
        thresholds = _thresholds(radius, count)
        if thresholds[0] > _MOST_THRESHOLD:
            continue
        # Blocks of one threshold differ little: one of each stands for all of them.
        kinds = {threshold: i for i, threshold in enumerate(thresholds)}
        costs = {t: _cheapest(bits[:, order[i::count]], t, n, length, threads)[0] for t, i in kinds.items()}
        rough[count] = sum(costs[t] for t in thresholds) + count * near * _FOUND
    if not rough:
        return float("inf"), ()
    count = min(rough, key=rough.get)
    blocks, seconds = [], count * near * _FOUND
    for i, threshold in enumerate(_thresholds(radius, count)):
        one, key_bits = _cheapest(bits[:, order[i::count]], threshold, n, length, threads)
        seconds += one
        blocks.append(Block(order[i::count], threshold, key_bits))
    return seconds, tuple(blocks)


def _thresholds(radius: int, count: int) -> list[int]:
    """Of `count` blocks, as even as they can be, higher ones first: t_s + 1 add up to radius + 1."""
    low, rest = divmod(radius + 1, count)
    return [low] * rest + [low - 1] * (count - rest)


def _cheapest(bits: np.ndarray, threshold: int, n: int, length: int, threads: int) -> tuple[float, int]:
    """(seconds, bits of the key) of the block of these bits (rows of a sample, bits)."""
    most = max(1, min(bits.shape[1], _MOST_KEY_BITS, n.bit_length() - 4))
    places = (1 << np.arange(most)).astype(np.int64)
    counts = np.bincount(bits[:, :most] @ places, minlength=1 << most).astype(float)
    s = len(bits)
    best = (float("inf"), 0)
    for key_bits in range(most, 0, -1):
        together = _meeting(counts)
        near = together[_popcounts(key_bits) <= threshold].sum() - together[0]
        # Rows of a sample meet themselves, which says nothing of the others.
        same = max(0.0, together[0] - s) / max(1, s * (s - 1)) * n * n + n
        pairs = same + near / 2 / s**2 * n * n
        calls = min(n, 1 << key_bits)
        seconds = pairs * length / 2**40 * _BITS / threads + n * _QUERY / threads + calls * _CALL
        best = min(best, (seconds, key_bits))
        if key_bits > 1:
            counts = counts[: len(counts) // 2] + counts[len(counts) // 2 :]
    return best


def _meeting(counts: np.ndarray) -> np.ndarray:
    """out[x] = sum over v of counts[v] counts[v ^ x], by two Walsh-Hadamard transforms."""
    return _walsh(_walsh(counts) ** 2) / len(counts)


def _walsh(values: np.ndarray) -> np.ndarray:
    half = 1
    while half < len(values):
        pairs = values.reshape(-1, 2, half)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half *= 2
    return values


def _popcounts(bits: int) -> np.ndarray:
    out = np.zeros(1, np.int64)
    for _ in range(bits):
        out = np.concatenate([out, out + 1])
    return out


def words_of(codes: np.ndarray) -> np.ndarray:
    """Packed rows as (n, words) uint64, zeros after the bytes; a view where that is all of a row."""
    n, width = codes.shape
    if width % 8 == 0 and codes.flags.c_contiguous and codes.ctypes.data % 8 == 0:
        return codes.view(np.uint64)
    out = np.zeros((n, -(-width // 8) * 8), np.uint8)
    out[:, :width] = codes
    return out.view(np.uint64)


def ones(words: np.ndarray) -> np.ndarray:
    """Bits set in each row of uint64 words."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words).sum(1, dtype=np.int64)
    table = _popcounts(8).astype(np.uint8)
    return table[words.view(np.uint8)].sum(1, dtype=np.int64)


def first_met(different: np.ndarray, blocks: tuple[Block, ...], number: int) -> np.ndarray:
    """Which pairs, of the words in which they differ, block `number` lets meet and no block before it: so that each
    pair is met once."""
    kept = np.arange(len(different))
    for i in range(number, -1, -1):
        met = ones(different & blocks[i].mask(different.shape[1])) <= blocks[i].threshold
        kept, different = (array[met if i == number else ~met] for array in (kept, different))
    return kept


def parts(starts: np.ndarray, key: int, ball: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of higher keys that differ from `key` as the ball says, in no order."""
    others = key ^ ball[1:]
    others = others[others > key]
    first, last = starts[others], starts[others + 1]
    some = last > first
    return zip(first[some].tolist(), last[some].tolist())
