"""How well binary codes use their bits: balance, correlation, entropy and collisions of every prefix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..core import check
from .codes import check_lengths, check_packed, num_bytes, unpack_codes

_ROWS = 1 << 16  # a count of so many rows is exact in float32


@torch.no_grad()
def code_quality(codes, lengths: Sequence[int] = check.DEFAULT_CODE_LENGTHS) -> list[dict]:
    """Balance, correlation and entropy of the bits, and collisions of the codes, at every length.

    With n items, p_j the share of ones in bit j, and c_v the number of items whose b-bit code is v:

    - `imbalance`: mean over bits of |2 p_j - 1|; 0 where every bit is one for half of the items, 1 where every bit
      is constant. `constant_bits`: number of bits that are the same for all items.
    - `correlation`, `max_correlation`: mean and maximum over pairs of bits of |Pearson's r|, 0 where the bits are
      uncorrelated. A constant bit has no correlation and is left out; None where no pair is left. (Balanced and
      uncorrelated bits: the conditions of Weiss, Torralba and Fergus, Spectral Hashing, NIPS 2008.)
    - `bit_entropy`: mean over bits of -p_j log2 p_j - (1 - p_j) log2(1 - p_j), at most 1 bit.
    - `code_entropy`: entropy of the whole code, -sum_v (c_v / n) log2(c_v / n), in bits; at most the smaller of b and
      log2 n. (Both entropies: Shannon, A Mathematical Theory of Communication, 1948; of the items as they are, with
      no correction for their number.)
    - `distinct_codes`: how many v occur. `collision_rate`: share of the pairs of items that have the same code,
      sum_v c_v (c_v - 1) / (n (n - 1)), None for one item; 2^-b is expected of b fair and independent bits. (Its
      -log2 estimates Renyi's entropy of order 2, On Measures of Entropy and Information, 1961.) `colliding_items`:
      share of the items that have their code in common with at least one other.

    Codes learned from labels group a class on purpose: they have less entropy and more collisions than fair bits.

    Args:
        codes: (n, bytes) packed uint8 rows (see `pack_codes`), tensor or NumPy array, n >= 1.
        lengths: strictly increasing code lengths in bits, each a prefix; None for those of 8, 16, 32, 64 and 128 that
            the rows hold.

    Returns:
        One dict of plain numbers a length: {"bits", and the names above}.

    Raises:
        TypeError: codes are not uint8, or lengths are no integers.
        ValueError: no row, rows of another shape, or a length beyond the bits that they hold.
    """
    codes = check_packed(codes, "codes")
    if not len(codes):
        raise ValueError(f"codes: expected at least one row, got {check.describe(codes)}")
    lengths = check_lengths(lengths, codes.shape[1])
    codes = codes[:, : num_bytes(lengths[-1])].cpu()
    together = _ones_together(codes, lengths[-1])
    shared_bits = _shared_bits(codes.numpy())
    correlation = _correlation(together, len(codes))
    return [
        {
            "bits": b,
            **_bit_quality(together.diagonal()[:b] / len(codes), correlation[:b, :b]),
            **_collisions(shared_bits, b),
        }
        for b in lengths
    ]


@torch.no_grad()
def bit_statistics(codes, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Balance and correlation of single bits; those of a prefix are its leading entries.

    Args:
        codes: (n, bytes) packed uint8 rows, tensor or NumPy array, n >= 1.
        length: code length in bits (a prefix of the rows); None for all bits.

    Returns:
        (ones, correlation): float64, the share of rows in which a bit is one (length,), and |Pearson's r| of two bits
        (length, length), NaN in the rows and columns of bits that are the same in all rows.

    Raises:
        TypeError, ValueError: as `code_quality`.
    """
    codes = check_packed(codes, "codes")
    if not codes.numel():
        raise ValueError(f"codes: expected at least one row and one byte, got {check.describe(codes)}")
    length = check.positive_int(8 * codes.shape[1] if length is None else length, "length")
    if length > 8 * codes.shape[1]:
        raise ValueError(f"length: expected at most {8 * codes.shape[1]} bits, those of the codes, got {length}")
    together = _ones_together(codes[:, : num_bytes(length)].cpu(), length)
    return together.diagonal() / len(codes), _correlation(together, len(codes))


def _ones_together(codes: torch.Tensor, length: int) -> np.ndarray:
    """(length, length) int64: in how many rows two bits are both one."""
    total = torch.zeros(length, length, dtype=torch.int64)
    for part in codes.split(_ROWS):
        ones = (unpack_codes(part, length) > 0).float()
        total += (ones.T @ ones).round().long()
    return total.numpy()


def _correlation(together: np.ndarray, n: int) -> np.ndarray:
    """(L, L) float64 |Pearson's r|, NaN in the rows and columns of constant bits.

    The covariance n c_jk - c_j c_k is taken in integers, so that independent bits give exactly zero.
    """
    ones = together.diagonal()
    exact = together.astype(object) if n >= 1 << 31 else together
    covariance = (n * exact - np.multiply.outer(ones, ones)).astype(np.float64)
    deviation = np.sqrt(covariance.diagonal())
    scale = np.multiply.outer(deviation, deviation)
    found = np.abs(np.divide(covariance, scale, out=np.full_like(scale, np.nan), where=scale > 0))
    return np.minimum(found, 1.0)  # NaN stays


def _bit_quality(share: np.ndarray, correlation: np.ndarray) -> dict:
    """What single bits and pairs of bits say, from the share of ones (b,) and the correlations (b, b)."""
    pairs = correlation[np.triu_indices(len(share), 1)]
    pairs = pairs[np.isfinite(pairs)]
    both = np.stack([share, 1 - share])
    entropy = -(both * np.log2(both, out=np.zeros_like(both), where=both > 0)).sum(0)
    return {
        "imbalance": float(np.abs(2 * share - 1).mean()),
        "constant_bits": int(((share == 0) | (share == 1)).sum()),
        "correlation": float(pairs.mean()) if len(pairs) else None,
        "max_correlation": float(pairs.max()) if len(pairs) else None,
        "bit_entropy": float(entropy.mean()),
    }


def _shared_bits(codes: np.ndarray) -> np.ndarray:
    """Leading bits that each row shares with the one before, all rows sorted: (n - 1,) int64.

    The rows of every prefix are then sorted too, so that one sort serves all lengths.
    """
    n, width = codes.shape
    padded = np.zeros((n, -(-width // 8) * 8), np.uint8)
    padded[:, :width] = codes
    words = padded.view(">u8")
    rows = padded[np.lexsort(words.T[::-1])]
    differ = rows[1:] ^ rows[:-1]
    first = (differ != 0).argmax(1)
    value = np.take_along_axis(differ, first[:, None], 1)[:, 0]
    leading = 8 - np.frexp(value.astype(np.float32))[1]
    return np.where(value == 0, 8 * padded.shape[1], 8 * first + leading)


def _collisions(shared_bits: np.ndarray, length: int) -> dict:
    """What the groups of equal codes say."""
    n = len(shared_bits) + 1
    starts = np.flatnonzero(np.concatenate([[True], shared_bits < length]))
    counts = np.diff(np.append(starts, n))
    share = counts / n
    pairs = n * (n - 1)
    return {
        "code_entropy": float(max(0.0, -(share * np.log2(share)).sum())),
        "distinct_codes": len(counts),
        "collision_rate": int((counts * (counts - 1)).sum()) / pairs if pairs else None,
        "colliding_items": float(counts[counts > 1].sum() / n),
    }
