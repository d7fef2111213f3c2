"""Retrieval metrics of nested binary codes: every prefix length in one call."""

from __future__ import annotations

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_tensor
from ..core.labels import check_labels
from . import codes, ranking, tie_groups
from .hamming import DEFAULT_CHUNK_BYTES, spans
from .ties import RULES, TieRule


@check.memory
@torch.no_grad()
def evaluate_retrieval(
    q_codes,
    db_codes,
    q_labels,
    db_labels,
    lengths=check.DEFAULT_CODE_LENGTHS,
    topk: int | None = None,
    ties: str = "id",
    *,
    denominator: str = "retrieved",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> RetrievalResult:
    """Rank the database by Hamming distance to every query, at every code length, and measure the rankings.

    AP@K of a query is the sum of precision@r over the ranks r <= K that hold a relevant item, divided by
    the `denominator`. A query with a denominator of 0 has AP 0 and stays in the mean.

    Args:
        q_codes: (Q, bytes) packed uint8 rows (see `pack_codes`), tensor or NumPy array; a length is a prefix. Bits as
            bool or as -1 and +1, (Q, L), are packed.
        db_codes: (n, bytes) packed uint8 rows on the same device.
        q_labels, db_labels: class ids (N,) or multi-hot rows (N, C), tensor or NumPy array, in any mixture.
            An item is relevant to a query if they share a class.
        lengths: strictly increasing code lengths in bits.
        topk: K; None, or anything beyond n, is the whole ranking.
        ties: order of items at the same distance. "id": ascending database row. "expected": the exact mean over
            all orders of the tied items. "best" / "worst": relevant items first / last.
        denominator: "retrieved", the relevant items found in the first K (the convention of the hashing
            literature); "relevant", all relevant items; "min", the smaller of K and that number.
        chunk_bytes: bound on the memory taken beyond the result (one query's row of distances is the least).
        backend: "auto", "reference", "cpp" or "cuda".

    Returns:
        `RetrievalResult`.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it.
    """
    q_codes = _non_empty(codes.check_packed(q_codes, "q_codes"), "q_codes")
    db_codes = _non_empty(codes.check_packed(db_codes, "db_codes"), "db_codes")
    if q_codes.device != db_codes.device:
        raise ValueError(f"db_codes: expected device {q_codes.device}, as q_codes, got {db_codes.device}")
    lengths = codes.check_lengths(lengths, min(q_codes.shape[1], db_codes.shape[1]))
    q_labels, db_labels = check_label_pair(q_labels, db_labels, len(q_codes), len(db_codes))
    n = len(db_codes)
    cutoff = n if topk is None else min(n, check.positive_int(topk, "topk"))
    rule = RULES[check.one_of(ties, "ties", tuple(RULES))]
    check.one_of(denominator, "denominator", tie_groups.DENOMINATORS)
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")

    used = codes.num_bytes(lengths[-1])
    histograms, sums = ranking.COLLECT(
        q_codes[:, :used],
        db_codes[:, :used],
        q_labels.to(q_codes.device),
        db_labels.to(q_codes.device),
        lengths,
        cutoff if rule.ranked else None,
        chunk_bytes,
        backend=backend,
    )
    if rule.ranked:
        average_precision = ranked_average_precision(histograms[0], sums, cutoff, denominator)
    else:
        rows = [tied_average_precision(h, cutoff, rule, denominator, chunk_bytes) for h in histograms]
        average_precision = torch.stack(rows)
    return RetrievalResult(lengths, topk, ties, denominator, average_precision, histograms, sums)


def _non_empty(rows: torch.Tensor, name: str) -> torch.Tensor:
    if len(rows) == 0:
        raise ValueError(f"{name}: expected at least one row, got {check.describe(rows)}")
    return rows


def check_label_pair(q_labels, db_labels, num_queries: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both label sets, checked against the row counts and against each other's classes."""
    q_labels = check_labels(as_tensor(q_labels, "q_labels"), num_queries, name="q_labels")
    classes = q_labels.shape[1] if q_labels.ndim == 2 else None
    db_labels = check_labels(as_tensor(db_labels, "db_labels"), n, classes, name="db_labels")
    if q_labels.ndim == 1 and db_labels.ndim == 2:
        q_labels = check_labels(q_labels, num_queries, db_labels.shape[1], name="q_labels")
    return check.present(q_labels, "q_labels"), check.present(db_labels, "db_labels")


def ranked_average_precision(
    histogram: torch.Tensor, sums: ranking.RankSums, cutoff: int, denominator: str
) -> torch.Tensor:
    relevant = histogram[..., 1].sum(1)
    divisor = {
        "retrieved": sums.retrieved,
        "relevant": relevant,
        "min": relevant.clamp(max=cutoff),
    }[denominator]
    # With a divisor of 0 no relevant item was found, so the sum is 0 too.
    return sums.precision / divisor.clamp(min=1)


def tied_average_precision(
    histogram: torch.Tensor, cutoff: int, rule: TieRule, denominator: str, chunk_bytes: int
) -> torch.Tensor:
    # Some twenty float64 arrays: over distances, and over the relevant items a cut group may give.
    widest = max(histogram.shape[1], min(cutoff, int(histogram[..., 1].max())))
    step = max(1, chunk_bytes // (160 * widest))
    parts = [
        tie_groups.average_precision(histogram[span], cutoff, rule, denominator)
        for span in spans(len(histogram), step)
    ]
    return torch.cat(parts)


class RetrievalResult:
    """What `evaluate_retrieval` measured. Numbers are means over queries; every method follows the tie rule.

    Attributes:
        lengths: the m code lengths in bits.
        topk: K of the average precision as asked for; None is the whole ranking.
        ties: the tie rule.
        denominator: the denominator of the average precision.
        num_queries: Q.
        num_database: n.
        average_precision: (m, Q) float64 tensor on the CPU, one AP@K a length and query.
    """

    def __init__(self, lengths, topk, ties, denominator, average_precision, histograms, sums):
        self.lengths: tuple[int, ...] = lengths
        self.topk: int | None = topk
        self.ties: str = ties
        self.denominator: str = denominator
        self.average_precision: torch.Tensor = average_precision
        self.num_queries = int(average_precision.shape[1])
        self.num_database = int(histograms[0][0].sum())
        self._histograms = dict(zip(lengths, histograms))
        self._densities: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        if sums is not None:
            self._densities = dict(zip(lengths, zip(sums.hits, sums.recall)))

    @property
    def mean_average_precision(self) -> dict[int, float]:
        """{length: mAP@K}."""
        return dict(zip(self.lengths, self.average_precision.mean(1).tolist()))

    def precision_at(self, n: int) -> dict[int, float]:
        """{length: mean precision@n}, the share of relevant items among the first n.

        Raises:
            ValueError: n is below 1 or beyond the size of the database.
        """
        rank = self._rank(n)
        return {b: float(self._density(b)[0][:rank].sum()) / (rank * self.num_queries) for b in self.lengths}

    def recall_at(self, n: int) -> dict[int, float]:
        """{length: mean recall@n}, the share of a query's relevant items that are among the first n.

        A query with no relevant item counts as 0, as in the average precision.

        Raises:
            ValueError: n is below 1 or beyond the size of the database.
        """
        rank = self._rank(n)
        return {b: float(self._density(b)[1][:rank].sum()) / self.num_queries for b in self.lengths}

    def within_radius(self, r: int = 2) -> dict[int, float]:
        """{length: mean precision within Hamming radius r}; by convention an empty ball counts as 0."""
        r = check.positive_int(r, "r", minimum=0)
        return {b: float(self._ball(b)[0][min(r, b)]) for b in self.lengths}

    def pr_curve(self, length: int, by: str = "rank", points=None) -> tuple[np.ndarray, np.ndarray]:
        """Mean precision and mean recall along the ranking of one code length.

        Args:
            length: one of `lengths`.
            by: "rank", after each rank 1..n; "radius", within each Hamming radius 0..length (an empty ball has
                precision 0).
            points: for "rank", which ranks: None for all; an int for at most that many, spaced evenly in
                logarithm, the last one n; or a sequence of ranks. `curve_ranks(points)` returns them.

        Returns:
            (precision, recall): float64 arrays of equal length.
        """
        try:
            known = length in self._histograms
        except Exception:  # what has no hash
            known = False
        if not known:
            raise ValueError(f"length: expected one of {self.lengths}, got {check.shown(length)}")
        if check.one_of(by, "by", ("rank", "radius")) == "radius":
            if points is not None:
                raise ValueError(f"points: expected None with by='radius', got {check.shown(points)}")
            precision, recall = self._ball(length)
            return precision.numpy(), recall.numpy()
        ranks = torch.from_numpy(self.curve_ranks(points))
        hits, recall = (density.cumsum(0)[ranks - 1] for density in self._density(length))
        return (hits / (ranks * self.num_queries)).numpy(), (recall / self.num_queries).numpy()

    def curve_ranks(self, points=None) -> np.ndarray:
        """The ranks at which `pr_curve(by="rank", points=points)` is read, int64."""
        if points is None:
            return np.arange(1, self.num_database + 1)
        if hasattr(points, "__iter__") and getattr(points, "ndim", 1):
            try:
                points = iter(points)
            except Exception:
                raise TypeError(f"points: expected ranks, got {check.describe(points)}") from None
            return np.array([self._rank(rank, "points") for rank in points], dtype=np.int64)
        count = check.positive_int(points, "points")
        spaced = np.geomspace(self.num_database, 1, min(count, self.num_database))
        return np.unique(np.rint(spaced).astype(np.int64))

    def to_dict(self) -> dict:
        """A summary of plain Python values, ready for JSON (code lengths become strings)."""
        return {
            "num_queries": self.num_queries,
            "num_database": self.num_database,
            "lengths": list(self.lengths),
            "topk": self.topk,
            "ties": self.ties,
            "denominator": self.denominator,
            "mean_average_precision": {str(b): v for b, v in self.mean_average_precision.items()},
            "precision_within_radius_2": {str(b): v for b, v in self.within_radius(2).items()},
        }

    def __repr__(self) -> str:
        cut = "" if self.topk is None else f"@{self.topk}"
        name = f"mAP{cut}"
        head = (
            f"RetrievalResult: {self.num_queries} queries, {self.num_database} database items, "
            f"ties={self.ties!r}, denominator={self.denominator!r}"
        )
        width = max(8, len(name))
        lines = [head, f"  {'bits':>6}  {name:>{width}}  {'P(r<=2)':>8}"]
        radius = self.within_radius(2)
        for b, value in self.mean_average_precision.items():
            lines.append(f"  {b:>6}  {value:>{width}.4f}  {radius[b]:>8.4f}")
        return "\n".join(lines)

    def _rank(self, n, name: str = "n") -> int:
        n = check.positive_int(n, name)
        if n > self.num_database:
            raise ValueError(f"{name}: expected at most {self.num_database}, the size of the database, got {n}")
        return n

    def _density(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(hits, recall) by rank for one length: measured for ties="id", else worked out once and kept."""
        if length not in self._densities:
            self._densities[length] = tie_groups.rank_density(self._histograms[length], RULES[self.ties])
        return self._densities[length]

    def _ball(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (precision, recall) within each radius 0..length."""
        inside = self._histograms[length].cumsum(1)
        relevant, items = inside[..., 1].double(), inside.sum(-1)
        precision = (relevant / items.clamp(min=1)).mean(0)
        return precision, (relevant / relevant[:, -1:].clamp(min=1)).mean(0)
