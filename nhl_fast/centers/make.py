"""Hash centres: one +-1 code a class and a length, that the centre losses (CSQ, DPN, MDSH, SHCIR) pull codes to."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_tensor
from .aligned import arrange, check_similarity
from .balanced import MAX_CLASSES, search_balanced
from .nested import hadamard_matrix, search_nested

MAX_SIZE = 2**31  # classes x bits
KINDS = ("hadamard", "balanced", "random", "nested")


def make_centers(
    num_classes: int, code_lengths: Sequence[int], kind, *, seed: int = 0, similarity=None
) -> list[torch.Tensor]:
    """Hash centres of every class at every length.

    Args:
        num_classes: C, at least 1.
        code_lengths: strictly increasing lengths b_1 < ... < b_m in bits.
        kind: how the centres are made.

            - "hadamard" (CSQ, Yuan et al., CVPR 2020): the rows of the Hadamard matrix H_b, then their negatives,
              for the first 2b classes; the classes beyond, and all classes at lengths that are not a power of
              two, get random balanced rows. Drawn with replacement, as is usual, those rows collide (100
              classes at 8 bits: about 55 distinct centres). Here they are distinct while distinct ones last (72
              at 8 bits) and then shared evenly.
            - "balanced" (DPN, Fan et al., IJCAI 2020): random rows of b/2 ones, (b - 1)/2 or (b + 1)/2 for odd b,
              distinct while distinct ones last and then shared evenly.
            - "random": every bit a fair coin.
            - "nested": each length's centre is the prefix of the next one's, searched so that the minimum
              distance at every length is large and, up to 12 classes, every bit has as many classes on either side.
              Two runs with the same arguments give the same centres.
            - a sequence of m tensors or arrays (C, b_k) of +-1, or one (C, b_m) whose prefixes serve.

            Lengths are independent of each other for "hadamard", "balanced" and "random".
        seed: fixes the random choices; a non-negative integer.
        similarity: (C, C) symmetric, larger where two classes are more alike (see `class_similarity`); for "nested"
            only. Up to 12 classes, bits that keep similar classes together are favoured; beyond, the same centres
            are given to the classes in another order.

    Returns:
        m float32 tensors (C, b_k) of -1 and +1, which share no memory with each other or with `kind`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, or a given centre has the wrong shape or a value
            other than -1 and +1.
    """
    return named_centers("kind", num_classes, code_lengths, kind, seed, similarity)


@check.memory
def named_centers(name: str, num_classes: int, code_lengths, kind, seed: int, similarity=None) -> list[torch.Tensor]:
    """`make_centers` whose errors call `kind` by another name."""
    num_classes = check.positive_int(num_classes, "num_classes")
    lengths = check.code_lengths(code_lengths)
    seed = check.positive_int(seed, "seed", minimum=0)
    if num_classes * lengths[-1] > MAX_SIZE:
        raise ValueError(f"num_classes: expected at most {MAX_SIZE // lengths[-1]} here, got {num_classes}")
    if similarity is not None:
        if not isinstance(kind, str) or kind != "nested":
            raise ValueError(f"similarity: serves centres of kind 'nested' only, got kind {check.describe(kind)}")
        similarity = check_similarity(similarity, num_classes)
    if not isinstance(kind, str):
        return _given(kind, num_classes, lengths, name)
    kind = check.one_of(kind, name, KINDS)
    if kind == "nested":
        if 2 <= num_classes <= MAX_CLASSES:
            longest = search_balanced(num_classes, lengths, seed, similarity)
        else:
            bounds = [distance_bound(num_classes, b) for b in lengths]
            longest = search_nested(num_classes, lengths, bounds, seed)
            longest = longest if similarity is None else arrange(longest, lengths, similarity)
        rows = [longest[:, :b] for b in lengths]
    else:
        make = {"hadamard": _hadamard, "balanced": _balanced, "random": _random}[kind]
        rows = [make(num_classes, b, np.random.default_rng([seed, b])) for b in lengths]
    return [torch.tensor(r, dtype=torch.float32) for r in rows]


def tie_centers(code_lengths: Sequence[int], *, seed: int = 0, nested: bool = False) -> list[torch.Tensor]:
    """The fixed random codes that decide tied bits where the centres of an item's classes are summed.

    Args:
        code_lengths: strictly increasing lengths b_1 < ... < b_m in bits.
        seed: fixes the draw; a non-negative integer.
        nested: make each length's code the prefix of the next one's; otherwise they are independent.

    Returns:
        m float32 tensors (b_k,) of -1 and +1.
    """
    lengths = check.code_lengths(code_lengths)
    seed = check.positive_int(seed, "seed", minimum=0)
    # The trailing words keep these streams apart from those of make_centers.
    if nested:
        longest = _random(1, lengths[-1], np.random.default_rng([seed, lengths[-1], 1]))[0]
        rows = [longest[:b] for b in lengths]
    else:
        rows = [_random(1, b, np.random.default_rng([seed, b, 1]))[0] for b in lengths]
    return [torch.tensor(r, dtype=torch.float32) for r in rows]


def min_distances(centers, lengths: Sequence[int]) -> list[int]:
    """Minimum Hamming distance between the centres of two classes, at every length.

    Args:
        centers: what `make_centers` returns, or one (C, b_m) tensor or array of +-1 whose prefixes are meant.
        lengths: the m code lengths.

    Returns:
        m integers; with one class, which has no pair, the lengths themselves.
    """
    lengths = check.code_lengths(lengths, "lengths")
    centers = _given(centers, None, lengths, "centers")
    return [_min_distance(c, b) for c, b in zip(centers, lengths)]


def distance_bound(num_classes: int, length: int) -> int:
    """An upper bound on the minimum Hamming distance of `num_classes` words of `length` bits.

    The least of Plotkin's bound on every shortened code (which includes Singleton's) and the sphere-packing
    bound, each also applied to the code with a parity bit added. 0 when two classes must share a word; `length`
    for one class.
    """
    num_classes = check.positive_int(num_classes, "num_classes")
    length = check.positive_int(length, "length")
    if num_classes == 1:
        return length
    return bisect.bisect_left(range(1, length + 1), True, key=lambda d: not _may_exist(num_classes, length, d))


def _may_exist(words: int, length: int, distance: int) -> bool:
    """False where no code of `words` words has this minimum distance (at least 1); once false, false beyond."""
    if distance % 2:
        length, distance = length + 1, distance + 1
    # Dropping one bit leaves distance - 1, so the balls of radius distance / 2 - 1 are disjoint.
    ball = sum(math.comb(length - 1, i) for i in range(distance // 2))
    if words * ball > 1 << (length - 1):
        return False
    # At least half of the words agree on the first bit: shorten, then count the columns' differing pairs.
    while words > 1:
        half = words // 2
        if distance * words * (words - 1) > 2 * length * half * (words - half):
            return False
        words, length = words - half, length - 1
    return True


def _min_distance(rows: torch.Tensor, length: int) -> int:
    """Minimum distance of the +-1 rows (C, b), a block of the C x C products at a time."""
    lowest = length
    for start in range(0, len(rows), 1024):
        products = rows[start : start + 1024] @ rows.T
        products.diagonal(start).fill_(-length)
        lowest = min(lowest, (length - int(products.max())) // 2)
    return lowest


def _random(num_classes: int, length: int, rng: np.random.Generator) -> np.ndarray:
    return 1 - 2 * rng.integers(0, 2, (num_classes, length), dtype=np.int8)


def _balanced(num_classes: int, length: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack(_balanced_rows(num_classes, length, rng, set()))


def _hadamard(num_classes: int, length: int, rng: np.random.Generator) -> np.ndarray:
    if length & (length - 1):
        return _balanced(num_classes, length, rng)
    matrix = hadamard_matrix(length).astype(np.int8)
    rows = list(np.concatenate([matrix, -matrix])[:num_classes])
    rows += _balanced_rows(num_classes - len(rows), length, rng, {r.tobytes() for r in rows})
    return np.stack(rows)


def _balanced_rows(count: int, length: int, rng: np.random.Generator, used: set[bytes]) -> list[np.ndarray]:
    """`count` random balanced int8 rows outside `used`; when there are no more, every balanced row in turn."""
    ones = sorted({length // 2, (length + 1) // 2})
    available = sum(math.comb(length, n) for n in ones)
    rows = []
    if 2 * (count + len(used)) <= available:
        used = set(used)
        while len(rows) < count:
            row = np.ones(length, np.int8)
            row[rng.permutation(length)[: rng.choice(ones)]] = -1
            if row.tobytes() not in used:
                used.add(row.tobytes())
                rows.append(row)
        return rows
    every = np.ones((available, length), np.int8)
    chosen = itertools.chain.from_iterable(itertools.combinations(range(length), n) for n in ones)
    for row, positions in zip(every, chosen):
        row[list(positions)] = -1
    rows = [row for row in rng.permutation(every) if row.tobytes() not in used][:count]
    while len(rows) < count:
        rows += list(rng.permutation(every)[: count - len(rows)])
    return rows


def _given(centers, num_classes: int | None, lengths: tuple[int, ...], name: str) -> list[torch.Tensor]:
    """Validated float32 copies (C, b_k) of given centres; C is that of the first where `num_classes` is None."""
    if isinstance(centers, (torch.Tensor, np.ndarray)):
        longest = _sign_matrix(centers, name, num_classes, lengths[-1])
        return [longest[:, :b].clone() for b in lengths]
    if isinstance(centers, str) or not isinstance(centers, Sequence):
        names = "".join(f"{kind!r}, " for kind in KINDS) if num_classes is not None else ""
        raise TypeError(
            f"{name}: expected {names}one (C, {lengths[-1]}) tensor or a sequence of {len(lengths)} tensors, "
            f"got {check.describe(centers)}"
        )
    if len(centers) != len(lengths):
        raise ValueError(f"{name}: expected {len(lengths)} tensors, one a code length, got {len(centers)}")
    rows = []
    for k, (c, b) in enumerate(zip(centers, lengths)):
        rows.append(_sign_matrix(c, f"{name}[{k}]", num_classes, b))
        num_classes = len(rows[0])
    return rows


def _sign_matrix(value, name: str, num_classes: int | None, length: int) -> torch.Tensor:
    """A float32 copy of a (num_classes, length) tensor or array of -1 and +1."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iuf":
            raise TypeError(f"{name}: expected numbers, got {check.describe(value)}")
        value = as_tensor(value, name)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor or an array of +-1, got {check.describe(value)}")
    check.present(check.tensor(value, name), name)
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name}: expected integers or real numbers, got {check.describe(value)}")
    rows = "C" if num_classes is None else num_classes
    if value.ndim != 2 or value.shape[1] != length or len(value) != (num_classes or max(1, len(value))):
        raise ValueError(f"{name}: expected shape ({rows}, {length}), got {check.describe(value)}")
    value = value.detach().to(torch.float32, copy=True)
    if not bool((value.abs() == 1).all()):
        raise ValueError(f"{name}: expected only -1 and +1, got another value (for 0/1 bits pass 2 * bits - 1)")
    return value
