"""Brute-force definitions that the retrieval tests compare with: plain Python and NumPy, one pair at a time."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations, product

import numpy as np


def bits_of(packed: np.ndarray, length: int) -> np.ndarray:
    return np.unpackbits(np.asarray(packed), axis=1)[:, :length]


def distances(queries: np.ndarray, database: np.ndarray, length: int) -> np.ndarray:
    """(Q, n) int64 from packed rows."""
    q, d = bits_of(queries, length), bits_of(database, length)
    return (q[:, None, :] != d[None, :, :]).sum(-1)


def nearest(row, k: int, allow=None) -> list[tuple[int, int]]:
    """The first k (distance, id) of one query's distances, padded with (-1, -1)."""
    ids = [i for i in range(len(row)) if allow is None or allow[i]]
    found = sorted((int(row[i]), i) for i in ids)[:k]
    return found + [(-1, -1)] * (k - len(found))


def within(row, radius: int, allow=None) -> list[tuple[int, int]]:
    return [(d, i) for d, i in nearest(row, len(row), allow) if 0 <= d <= radius]


def classes_of(label) -> set[int]:
    """The classes of one item, from an id or a multi-hot row."""
    return {int(label)} if np.ndim(label) == 0 else {c for c, value in enumerate(label) if value}


def relevance(q_labels, db_labels) -> np.ndarray:
    """(Q, n) bool: the two items share a class."""
    rows = [[bool(classes_of(a) & classes_of(b)) for b in db_labels] for a in q_labels]
    return np.array(rows, dtype=bool).reshape(len(q_labels), len(db_labels))


def order(row, relevant, ties: str) -> list[int]:
    """Item ids of one ranking under a rule that fixes the order."""
    bias = {"id": 0, "best": -1, "worst": 1}[ties]
    return sorted(range(len(row)), key=lambda i: (row[i], bias * int(relevant[i]), i))


def all_orders(row):
    """Every order of the items that their distances allow."""
    groups = [[i for i in range(len(row)) if row[i] == d] for d in sorted({int(d) for d in row})]
    for parts in product(*(permutations(group) for group in groups)):
        yield [i for part in parts for i in part]


def average_precision(ranked: list[bool], cutoff: int, denominator: str) -> Fraction:
    """AP@cutoff of a ranked list of relevance."""
    hits, total = 0, Fraction(0)
    for rank, relevant in enumerate(ranked[:cutoff], start=1):
        if relevant:
            hits += 1
            total += Fraction(hits, rank)
    every = sum(ranked)
    divisor = {"retrieved": hits, "relevant": every, "min": min(cutoff, every)}[denominator]
    return total / divisor if divisor else Fraction(0)


def precision(ranked: list[bool], rank: int) -> Fraction:
    return Fraction(sum(ranked[:rank]), rank)


def recall(ranked: list[bool], rank: int) -> Fraction:
    return Fraction(sum(ranked[:rank]), sum(ranked)) if any(ranked) else Fraction(0)


def ndcg(ranked: list[bool], rank: int) -> float:
    """DCG of the first ranks with gains of 0 and 1, over that of the ranking with the relevant items first."""

    def gain(order):
        return math.fsum(1 / math.log2(r + 1) for r, relevant in enumerate(order[:rank], start=1) if relevant)

    return gain(ranked) / gain(sorted(ranked, reverse=True)) if any(ranked) else 0.0


def over_orders(row, relevant, ties: str, measure):
    """`measure(ranked relevance)` under a tie rule: an exact mean over all orders for "expected"."""
    if ties != "expected":
        return measure([bool(relevant[i]) for i in order(row, relevant, ties)])
    values = [measure([bool(relevant[i]) for i in ids]) for ids in all_orders(row)]
    return (math.fsum(values) if isinstance(values[0], float) else sum(values, Fraction(0))) / len(values)


def expected_average_precision(groups: list[tuple[int, int]], cutoff: int, denominator: str) -> Fraction:
    """Mean AP@cutoff over all orders, exactly, for groups too large to enumerate.

    Walks the ranks one by one: for every number of hits so far, its probability and the mean precision sum on
    the event. `groups` are (items, relevant) by ascending distance.
    """
    every = sum(t for _, t in groups)
    state = {0: (Fraction(1), Fraction(0))}
    rank = before = 0
    for items, relevant in groups:
        for place in range(items):
            if rank == cutoff:
                break
            rank += 1
            after = {}

            def add(after, hits, chance, total):
                p, s = after.get(hits, (Fraction(0), Fraction(0)))
                after[hits] = (p + chance, s + total)

            for hits, (chance, total) in state.items():
                left = relevant - (hits - before)
                draw = Fraction(left, items - place)
                if left > 0:
                    gain = chance * Fraction(hits + 1, rank)
                    add(after, hits + 1, chance * draw, (total + gain) * draw)
                if draw < 1:
                    add(after, hits, chance * (1 - draw), total * (1 - draw))
            state = after
        before += relevant
    result = Fraction(0)
    for hits, (_, total) in state.items():
        divisor = {"retrieved": hits, "relevant": every, "min": min(cutoff, every)}[denominator]
        result += total / divisor if divisor else 0
    return result
