"""Prefix-consistent centres for few classes, built from balanced columns.

A column of the centres is a split of the classes in two. A half-and-half split adds the most to the mean distance
(C^2 / 4 pairs), and gives each bit as many examples of either value; columns that are all different do not repeat one
another's errors. So every column is balanced, a column that is there already costs more, and coordinate descent over
all balanced columns makes the minimum distance at every length large. A beam keeps several prefixes, since the best
short code need not have the best continuation.

Where the classes' similarity is known, columns that keep similar classes together are favoured: such a bit is easier
to learn. Short codes gain most; the longer the code, the less its columns can differ from what distance asks for.

Energies are integers, whose sums no order of addition changes: a seed gives the same centres on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

# All balanced columns of 12 classes are 462; from 13 classes on the linear codes of `nested_centers` serve.
MAX_CLASSES = 12
BEAM, STARTS, SHORT_BITS = 6, 10, 32
SWEEPS = 12
_UNIT, _FINE = 1 << 24, 1 << 10


def balanced_columns(num_classes: int) -> np.ndarray:
    """All splits of the classes in two halves (off by one for odd C), +-1 int64 (K, C); class 0 is on the + side."""
    sizes = {num_classes // 2, (num_classes + 1) // 2}
    columns = []
    for size in sorted(sizes):
        for rest in itertools.combinations(range(1, num_classes), size - 1):
            column = -np.ones(num_classes, np.int64)
            column[[0, *rest]] = 1
            columns.append(column)
    return np.stack(columns)


class _Search:
    def __init__(self, num_classes: int, rng: np.random.Generator, similarity: np.ndarray | None, strength: float):
        self.columns, self.rng = balanced_columns(num_classes), rng
        self.gain = np.zeros(len(self.columns))
        if similarity is not None:
            alignment = np.einsum("ki,ij,kj->k", self.columns, similarity, self.columns)
            spread = alignment.std()
            if spread > 0:
                self.gain = strength * (alignment - alignment.mean()) / spread
        first, second = np.triu_indices(num_classes, 1)
        self.parts = (self.columns[:, first] != self.columns[:, second]).astype(np.int64)
        self.weights = self.parts.astype(np.float64)
        self.mean = self.parts.sum(1).max() / len(first)

    def table(self, bits: int) -> np.ndarray:
        """Energy of a pair at distance 0..bits of a code of `bits` bits."""
        excess = np.arange(bits + 1) - bits * self.mean
        return np.rint(_UNIT * np.exp(-np.clip(excess, -10, 14))).astype(np.int64)

    def descend(self, before: np.ndarray, used: np.ndarray, count: int, bits: int):
        """`count` columns after a prefix with pair distances `before` and column uses `used`: columns, distances."""
        energy = self.table(bits).astype(np.float64)
        rise = np.diff(energy)
        # Divided by the length: the energy of a code is a sum over its columns, one column's part of it falls so.
        factor = np.rint(_FINE * np.exp(-self.gain / bits)).astype(np.int64)
        chosen = self.rng.integers(0, len(self.columns), count)
        distances = before + self.parts[chosen].sum(0)
        used = used + np.bincount(chosen, minlength=len(used))
        for _ in range(SWEEPS):
            changed = False
            for j in self.rng.permutation(count):
                old = chosen[j]
                distances -= self.parts[old]
                used[old] -= 1
                # A column adds 0 or 1 to a distance: its cost is linear in it. Floats hold these integers exactly.
                cost = (energy[distances].sum() + self.weights @ rise[distances]).astype(np.int64)
                # A column that is there already costs a twentieth more.
                cost = (cost + cost // 20 * used) // _FINE * factor
                new = int(cost.argmin())
                new = new if cost[new] < cost[old] else old
                changed |= new != old
                chosen[j] = new
                distances += self.parts[new]
                used[new] += 1
            if not changed:
                break
        return chosen, distances


def search_balanced(
    num_classes: int, lengths: Sequence[int], seed: int, similarity: np.ndarray | None = None, strength: float = 1.0
) -> np.ndarray:
    """Centres with balanced columns whose every prefix is a good code: +-1 float64 (C, L).

    Args:
        num_classes: C, from 2 to MAX_CLASSES.
        lengths: increasing code lengths in bits; the last is L.
        seed: fixes every random choice.
        similarity: (C, C) symmetric; larger for classes that are more alike.
        strength: of the similarity's say; 0 is none.
    """
    search = _Search(num_classes, np.random.default_rng([seed, num_classes]), similarity, strength)
    pairs, kinds = search.parts.shape[1], len(search.columns)
    beam = [(0, np.zeros(0, np.int64), np.zeros(pairs, np.int64))]
    before = 0
    for bits in lengths:
        found = []
        for _, prefix, distances in beam:
            used = np.bincount(prefix, minlength=kinds)
            for _ in range(STARTS if bits <= SHORT_BITS else 2):
                added, reached = search.descend(distances, used, bits - before, bits)
                columns = np.concatenate([prefix, added])
                energy = np.log(search.table(bits)[reached].sum()) - search.gain[columns].mean()
                found.append((round(float(energy), 6), columns, reached))
        found.sort(key=lambda entry: entry[0])
        beam, before = found[:BEAM], bits
    return np.ascontiguousarray(search.columns[beam[0][1]].T, dtype=np.float64)
