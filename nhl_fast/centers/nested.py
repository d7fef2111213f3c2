"""The search for prefix-consistent hash centres: one (C, L) matrix whose every prefix is a good code.

Work is counted in sweeps, never in seconds, and energies are integers, whose sums no order of addition changes: a
seed gives the same centres on a fast machine and a slow one. Two stages:

1. Linear codes. With k = ceil(log2 C) the centres are C of the 2^k words of a binary linear code, given by L
   generator columns in F_2^k. Its distances are the weights w(u) = #{columns c : <u, c> = 1}, u != 0, so one
   Walsh-Hadamard transform ranks all 2^k replacements of a column under the energy sum_u 2^-w(u). As
   C > 2^(k-1), every u is the difference of two of the C words: the code's minimum is the centres' minimum.
2. Bit flips, for few classes only, where codes that are not linear come closer to the Plotkin bound: all bits
   after a prefix of the linear code are drawn anew and annealed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Beyond this many classes flips never improved on the linear code (tried at 33, 80 and 100 classes).
MAX_POLISHED_CLASSES = 32
RESTARTS = 8
FLIP_SWEEPS = 120
_UNIT = 2.0**20


def hadamard_matrix(size: int) -> np.ndarray:
    """Sylvester's matrix H[i, j] = (-1)^popcount(i & j), float64 (size, size); `size` is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def pair_distances(rows: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Hamming distances between the prefixes of +-1 rows: (..., C, L) -> int64 (..., m, C, C)."""
    prefixes = [(rows[..., :b].astype(np.float32), b) for b in lengths]
    return np.stack([((b - x @ x.swapaxes(-1, -2)) / 2).astype(np.int64) for x, b in prefixes], -3)


def fewest_collisions(num_words: int, length: int) -> int:
    """The least number of pairs among `num_words` words of `length` bits that must be equal."""
    if length >= num_words.bit_length():
        return 0
    low, extra = divmod(num_words, 1 << length)
    return (1 << length) * (low * (low - 1) // 2) + extra * low


def score(distances: np.ndarray, num_words: int, lengths, bounds) -> tuple[float, float, float]:
    """Rank a code by its distances (m, n): sum of minimum / bound, then fewer pairs at it, then less spread.

    At a length with fewer words than classes the ratio is (least possible collisions / collisions).
    """
    lowest = distances.min(1)
    closest = (distances == lowest[:, None]).mean(1)
    total = 0.0
    for length, bound, low, share in zip(lengths, bounds, lowest.tolist(), closest.tolist()):
        least = fewest_collisions(num_words, length) / (num_words * (num_words - 1) / 2)
        total += low / bound if bound else least / share
    return total, -float(closest.sum()), -float((distances.var(1) / lengths).sum())


class LinearCodes:
    """RESTARTS linear codes searched side by side; `columns` (R, L) are integers below 2^k."""

    def __init__(self, k: int, num_columns: int, rng: np.random.Generator):
        self.k, self.rng = k, rng
        self.size = 1 << k
        self.columns = np.zeros((RESTARTS, num_columns), np.int64)
        self.weights = np.zeros((RESTARTS, self.size), np.int64)
        self.parity = np.array([bin(i).count("1") & 1 for i in range(self.size)], np.int64)
        # H of size 2^k is the Kronecker product of these two.
        self.factors = hadamard_matrix(1 << (k + 1) // 2), hadamard_matrix(1 << k // 2)

    def state(self):
        return self.columns.copy(), self.weights.copy()

    def bits(self, columns: np.ndarray) -> np.ndarray:
        """Bit <u, c> of every word u for one column of every restart: (R,) -> (R, 2^k)."""
        return self.parity[np.arange(self.size) & columns[:, None]]

    def best_column(self, candidates: np.ndarray) -> np.ndarray:
        """The candidate that leaves the least energy when added, near-ties broken at random: (R,)."""
        excess = self.weights - self.weights[:, 1:].min(1, keepdims=True)
        gain = np.rint(_UNIT * np.exp2(-np.clip(excess, -12, 16)))
        gain[:, 0] = 0
        left, right = self.factors
        cost = (left @ gain.reshape(RESTARTS, len(left), len(right)) @ right).reshape(RESTARTS, -1)
        cost = cost[:, candidates]
        cost += self.rng.random(cost.shape) * (_UNIT / 16)
        return candidates[cost.argmin(1)]

    def put(self, j: int, columns: np.ndarray) -> None:
        self.columns[:, j] = columns
        self.weights += self.bits(columns)

    def take(self, j: int) -> None:
        self.weights -= self.bits(self.columns[:, j])

    def search(self, start: int, stop: int, affine: bool) -> None:
        """Choose columns start..stop-1 given the earlier ones: greedily, then coordinate descent with kicks.

        `affine` keeps to the odd columns, those off a hyperplane: the code then holds the all-one word, as
        Reed-Muller codes do. That is best at a few lengths (16 bits for 32 words), not at all.
        """
        candidates = np.arange(self.size)[1::2] if affine else np.arange(self.size)
        for j in range(start, stop):
            self.put(j, self.best_column(candidates))
        best, best_state = self.quality(), self.state()
        # Long segments start close to their optimum.
        for sweep in range(max(2, 2 * self.k * 32 // max(32, stop - start))):
            if sweep % 4 == 3:
                for j in self.rng.integers(start, stop, max(1, (stop - start) // 8)):
                    self.take(j)
                    self.put(j, self.rng.choice(candidates, RESTARTS))
            for j in self.rng.permutation(np.arange(start, stop)):
                self.take(j)
                self.put(j, self.best_column(candidates))
            quality = self.quality()
            better = quality > best
            best[better] = quality[better]
            for kept, now in zip(best_state, (self.columns, self.weights)):
                kept[better] = now[better]
        self.columns, self.weights = best_state

    def quality(self) -> np.ndarray:
        """Minimum distance, then fewer words at it, as one integer a restart."""
        lowest = self.weights[:, 1:].min(1)
        return lowest * self.size - (self.weights[:, 1:] == lowest[:, None]).sum(1)

    def distances(self, columns: np.ndarray, lengths) -> np.ndarray:
        """Weights of the nonzero words of one code at every length: columns (L,) -> (m, 2^k - 1)."""
        bits = self.parity[np.arange(1, self.size) & columns[:, None]]
        return np.stack([bits[:b].sum(0) for b in lengths])

    def words(self, columns: np.ndarray, count: int) -> np.ndarray:
        """`count` words of one code, +-1 float64 (count, L).

        Words are numbered so that the first independent columns are the binary digits of the number: the
        first `count` words then fill the words of a short prefix evenly, within one.
        """
        pivots, basis = [], []
        for column in [*columns.tolist(), *(1 << i for i in range(self.k))]:
            reduced = column
            for b in basis:
                reduced = min(reduced, reduced ^ b)
            if reduced:
                basis.append(reduced)
                pivots.append(column)
        every = np.arange(self.size)
        number = sum(self.parity[every & p] << i for i, p in enumerate(pivots))
        chosen = np.argsort(number)[:count]
        return 1.0 - 2.0 * self.parity[chosen[:, None] & columns]


def linear_centers(num_classes: int, lengths, bounds, rng) -> np.ndarray:
    """The best linear code found: codes affine for the first t lengths and free afterwards, t = 0..m."""
    k = max(1, (num_classes - 1).bit_length())
    codes = LinearCodes(k, lengths[-1], rng)
    spans = list(zip((0, *lengths), lengths))
    best, best_columns = None, None
    prefix = codes.state()
    for t in range(len(lengths) + 1):
        if t:
            codes.columns, codes.weights = prefix
            codes.search(*spans[t - 1], affine=True)
        prefix = codes.state()
        for span in spans[t:]:
            codes.search(*span, affine=False)
        for columns in codes.columns:
            found = score(codes.distances(columns, lengths), codes.size, lengths, bounds)
            if best is None or found > best:
                best, best_columns = found, columns.copy()
    return codes.words(best_columns, num_classes)


def flip_bits(rows, frozen, heat, lengths, bounds, sweeps, rng):
    """Annealed bit flips on P codes at once; returns the best state of each and its score.

    The energy is the sum over lengths of log(sum over pairs exp(-beta d)) / bound, linearised once a sweep.

    Args:
        rows: +-1 float64 (P, C, L).
        frozen: (P,) number of leading bits that stay.
        heat: (P,) starting temperature; it falls linearly to 0.
    """
    rows = rows.copy()
    count, num_classes, num_bits = rows.shape
    first, second = np.triu_indices(num_classes, 1)
    which, bits = np.arange(count), np.arange(num_bits)
    tables = which[:, None, None], np.arange(len(lengths))[:, None]
    segment = np.searchsorted(lengths, bits, side="right")
    scale = np.maximum(bounds, 1)
    distances = pair_distances(rows, lengths)
    best = [score(d[:, first, second], num_classes, lengths, bounds) for d in distances]
    best_rows = rows.copy()
    unit = 2.0**30
    for sweep in range(sweeps):
        temperature = heat * (1 - sweep / sweeps) * unit / (num_classes * scale[-1])
        pairs = distances[:, :, first, second]
        excess = np.arange(-1, num_bits + 2) - pairs.min(2)[..., None]
        energy = np.exp(-(1 + 0.5 * sweep / sweeps) * np.maximum(excess, -6))
        total = np.take_along_axis(energy, pairs + 1, 2).sum(2)
        energy *= (unit / (total * scale))[..., None]
        # A flip moves a distance d up where the two bits agree, down where they differ.
        mean = np.rint((energy[..., 2:] + energy[..., :-2]) / 2 - energy[..., 1:-1])
        slope = np.rint((energy[..., 2:] - energy[..., :-2]) / 2)
        for i in rng.permutation(num_classes):
            index = (*tables, distances[:, :, i])
            constant, linear = mean[index], slope[index]
            constant[..., i] = linear[..., i] = 0
            # A bit of segment s counts at every length from s on.
            constant = constant.sum(2)[:, ::-1].cumsum(1)[:, ::-1]
            linear = linear[:, ::-1].cumsum(1)[:, ::-1] @ rows
            noise = temperature[:, None] * np.log(1 - rng.random((count, num_bits + 1)))
            cost = constant[:, segment] + rows[:, i] * linear[:, segment, bits] + noise[:, :-1]
            cost[bits < frozen[:, None]] = np.inf
            j = cost.argmin(1)
            for p in np.flatnonzero(cost[which, j] < noise[:, -1]):
                change = (rows[p, :, j[p]] * rows[p, i, j[p]]).astype(np.int64)
                change[i] = 0
                distances[p, segment[j[p]] :, i] += change
                distances[p, segment[j[p]] :, :, i] += change
                rows[p, i, j[p]] *= -1
        for p in which:
            found = score(distances[p][:, first, second], num_classes, lengths, bounds)
            if found > best[p]:
                best[p], best_rows[p] = found, rows[p]
    return best_rows, best


def search_nested(num_classes: int, lengths, bounds, seed: int) -> np.ndarray:
    """Centres whose every prefix is a good code: +-1 float64 (C, L).

    Args:
        num_classes: C, at least 1.
        lengths: increasing code lengths in bits; the last is L.
        bounds: an upper bound of the minimum distance at each length, 0 where words must be shared.
        seed: fixes every random choice.
    """
    rng = np.random.default_rng(seed)
    if num_classes == 1:
        return rng.choice([-1.0, 1.0], (1, lengths[-1]))
    rows = linear_centers(num_classes, lengths, bounds, rng)
    if num_classes > MAX_POLISHED_CLASSES:
        return rows
    first, second = np.triu_indices(num_classes, 1)
    best = score(pair_distances(rows, lengths)[:, first, second], num_classes, lengths, bounds)
    frozen = np.array([0, *lengths[:-1]] * 2)
    heat = np.repeat([0.5, 2.0], len(lengths))
    fresh = rng.random((len(frozen), *rows.shape)).argsort(1).argsort(1) < num_classes // 2
    redrawn = np.arange(lengths[-1]) >= frozen[:, None, None]
    starts = np.where(redrawn, 1 - 2.0 * fresh, rows)
    polished, scores = flip_bits(starts, frozen, heat, lengths, bounds, FLIP_SWEEPS, rng)
    winner = max(range(len(scores)), key=scores.__getitem__)
    return polished[winner] if scores[winner] > best else rows
