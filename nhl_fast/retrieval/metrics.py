"""Retrieval metrics of nested binary codes: every prefix length in one call."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from ..core import check
from ..core.arrays import as_tensor
from ..core.labels import check_labels, to_multi_hot
from ..core.names import MEANS_OVER
from . import codes, ranking, tie_groups
from .hamming import DEFAULT_CHUNK_BYTES, hamming_distances, search, spans
from .ties import RULES, TieRule

NO_RELEVANT = "mean_over: expected a query with a relevant item, got none: no class is on both sides"
MOST_CLASSES = 4096  # of a confusion: its matrix has 128 MiB
_TILE_BYTES = 1 << 25  # larger ones leave the cache
_EXACT = 1 << 24  # so many ones sum exactly in float32


@check.memory
@torch.no_grad()
def evaluate_retrieval(
    q_codes,
    db_codes,
    q_labels,
    db_labels,
    lengths=None,
    topk: int | None = None,
    ties: str = "id",
    *,
    denominator: str = "retrieved",
    ndcg=(),
    mean_over: str = "all",
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
        lengths: strictly increasing code lengths in bits; None for those of 8, 16, 32, 64 and 128 that the rows hold.
        topk: K; None, or anything beyond n, is the whole ranking.
        ties: order of items at the same distance. "id": ascending database row. "expected": the exact mean over
            all orders of the tied items. "best" / "worst": relevant items first / last.
        denominator: "retrieved", the relevant items found in the first K (the convention of the hashing
            literature); "relevant", all relevant items; "min", the smaller of K and that number.
        ndcg: a rank from 1 to n, or several, that `RetrievalResult.ndcg_at` is to be asked for. Needed under "id", in
            whose pass they are measured; the other rules give any rank afterwards.
        mean_over: the queries of every mean: "all" or "relevant", those with at least one relevant item.
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
    ranks = check_ranks(ndcg, n)
    if check.one_of(mean_over, "mean_over", MEANS_OVER) == "relevant":
        _refuse_irrelevant(q_labels, db_labels)
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
        ranks if rule.ranked else (),
        backend=backend,
    )
    if rule.ranked:
        average_precision = ranked_average_precision(histograms[0], sums, cutoff, denominator)
    else:
        rows = [tied_average_precision(h, cutoff, rule, denominator, chunk_bytes) for h in histograms]
        average_precision = torch.stack(rows)
    return RetrievalResult(lengths, topk, ties, denominator, average_precision, histograms, sums, ranks, mean_over)


@check.memory
@torch.no_grad()
def class_confusion(
    q_codes,
    db_codes,
    q_labels,
    db_labels,
    lengths=None,
    k: int = 10,
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    backend: str = "auto",
) -> dict[int, np.ndarray]:
    """Which classes the nearest database items of each class's queries have, at every code length.

    Args:
        q_codes, db_codes, q_labels, db_labels, lengths: as for `evaluate_retrieval`.
        k: how many nearest items, 1 to n. Of items at the k-th one's distance each counts with its chance to be
            among the first k: the exact mean over all orders of tied items.
        chunk_bytes: bound on the memory taken beyond the result (one query's row of distances is the least).
        backend: "auto", "reference", "cpp" or "cuda".

    Returns:
        {length: (C, C) float64 array}, in row c and column d the mean over the queries of class c of the share of
        their k nearest items that have class d. A row sums to 1 where every item has one class; it is NaN where no
        query has the class. C is the width of multi-hot rows, or the highest id and one.

    Raises:
        TypeError, ValueError: an argument does not fit, naming it; more than 4,096 classes.
    """
    q_codes = _non_empty(codes.check_packed(q_codes, "q_codes"), "q_codes")
    db_codes = _non_empty(codes.check_packed(db_codes, "db_codes"), "db_codes")
    lengths = codes.check_lengths(lengths, min(q_codes.shape[1], db_codes.shape[1]))
    q_labels, db_labels = check_label_pair(q_labels, db_labels, len(q_codes), len(db_codes))
    n = len(db_codes)
    k = check.positive_int(k, "k", maximum=n)
    widths = [y.shape[1] if y.ndim == 2 else int(y.max()) + 1 for y in (q_labels, db_labels)]
    classes = max(widths)
    if classes > MOST_CLASSES:
        name = "q_labels" if widths[0] == classes else "db_labels"
        raise ValueError(f"{name}: expected at most {MOST_CLASSES} classes, got {classes}")
    chunk_bytes = check.positive_int(chunk_bytes, "chunk_bytes")
    q_labels, db_labels = q_labels.to(q_codes.device), db_labels.to(q_codes.device)
    shares = torch.zeros(len(lengths), classes, classes, dtype=torch.float64, device=q_codes.device)
    options = {"chunk_bytes": chunk_bytes, "backend": backend}
    tiles = spans(n, min(_EXACT, max(1, chunk_bytes // (16 * classes))))
    for share, b in zip(shares, lengths):
        for rows in spans(len(q_codes), max(1, min(chunk_bytes, _TILE_BYTES) // (12 * n))):
            nearest = search(q_codes[rows], db_codes, k, b, **options)[0]
            furthest = nearest[:, -1:]
            distances = hamming_distances(q_codes[rows], db_codes, b, **options)
            nearer, tied = distances < furthest, distances == furthest
            chance = (nearest == furthest).sum(1).double() / tied.count_nonzero(1)
            own = to_multi_hot(q_labels[rows], classes, torch.float64).T
            for tile in tiles:
                classes_of = to_multi_hot(db_labels[tile], classes)
                share += own @ (nearer[:, tile].float() @ classes_of).double()
                share += own @ (chance[:, None] * (tied[:, tile].float() @ classes_of))
    queries = to_multi_hot(q_labels, classes, torch.float64).sum(0)[:, None]
    return dict(zip(lengths, (shares / (k * queries)).cpu().numpy()))  # 0 / 0 where no query has the class


def _non_empty(rows: torch.Tensor, name: str) -> torch.Tensor:
    if len(rows) == 0:
        raise ValueError(f"{name}: expected at least one row, got {check.describe(rows)}")
    return rows


def check_ranks(value, n: int) -> tuple[int, ...]:
    """`ndcg=` as ascending ranks from 1 to n."""
    if hasattr(value, "__iter__") and getattr(value, "ndim", 1):
        if isinstance(value, str):
            raise TypeError(f"ndcg: expected ranks, got {check.describe(value)}")
        try:
            value = list(itertools.islice(value, check.MAX_LENGTHS + 1))
        except Exception:
            raise TypeError(f"ndcg: expected ranks, got {check.describe(value)}") from None
        if len(value) > check.MAX_LENGTHS:
            raise ValueError(f"ndcg: expected at most {check.MAX_LENGTHS} ranks, got more")
    else:
        value = [value]
    return tuple(sorted({check.positive_int(rank, "ndcg", maximum=n) for rank in value}))


def _refuse_irrelevant(q_labels: torch.Tensor, db_labels: torch.Tensor) -> None:
    """Raise where no query has a relevant item."""
    width = max([y.shape[1] for y in (q_labels, db_labels) if y.ndim == 2], default=None)
    if width is None:
        some = torch.isin(q_labels.cpu().unique(), db_labels.cpu()).any()
    else:
        ours, theirs = (
            y.cpu().bincount(minlength=width) > 0 if y.ndim == 1 else (y != 0).any(0).cpu()
            for y in (q_labels, db_labels)
        )
        some = (ours & theirs).any()
    if not some:
        raise ValueError(NO_RELEVANT)


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
        mean_over: the queries of the means, "all" or "relevant": those with at least one relevant item.
        ndcg_ranks: those given as `ndcg`.
        num_queries: Q.
        num_relevant_queries: those with at least one relevant item.
        num_database: n.
        average_precision: (m, Q) float64 tensor on the CPU, one AP@K a length and query.
    """

    def __init__(
        self, lengths, topk, ties, denominator, average_precision, histograms, sums, ranks=(), mean_over="all"
    ):
        self.lengths: tuple[int, ...] = lengths
        self.topk: int | None = topk
        self.ties: str = ties
        self.denominator: str = denominator
        self.average_precision: torch.Tensor = average_precision
        self.num_queries = int(average_precision.shape[1])
        self.num_database = int(histograms[0][0].sum())
        self.mean_over: str = mean_over
        self._relevant = histograms[0][..., 1].sum(1)
        self.num_relevant_queries = int((self._relevant > 0).sum())
        # A query without a relevant item adds 0 to every sum.
        self._counted = self.num_queries if mean_over == "all" else self.num_relevant_queries
        self.ndcg_ranks: tuple[int, ...] = ranks
        self._gains = None if sums is None else sums.gains
        self._histograms = dict(zip(lengths, histograms))
        self._densities: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        if sums is not None:
            self._densities = dict(zip(lengths, zip(sums.hits, sums.recall)))

    @property
    def mean_average_precision(self) -> dict[int, float]:
        """{length: mAP@K}."""
        return dict(zip(self.lengths, (self.average_precision.sum(1) / self._counted).tolist()))

    def precision_at(self, n: int) -> dict[int, float]:
        """{length: mean precision@n}, the share of relevant items among the first n.

        Raises:
            ValueError: n is below 1 or beyond the size of the database.
        """
        rank = self._rank(n)
        return {b: float(self._density(b)[0][:rank].sum()) / (rank * self._counted) for b in self.lengths}

    def recall_at(self, n: int) -> dict[int, float]:
        """{length: mean recall@n}, the share of a query's relevant items that are among the first n.

        A query with no relevant item counts as 0, as in the average precision, or not at all (`mean_over`).

        Raises:
            ValueError: n is below 1 or beyond the size of the database.
        """
        rank = self._rank(n)
        return {b: float(self._density(b)[1][:rank].sum()) / self._counted for b in self.lengths}

    def ndcg_at(self, n: int) -> dict[int, float]:
        """{length: mean NDCG@n}: the discounted gain of the first n, over that of relevant items first.

        A relevant item at rank r gains 1 / log2(r + 1) (Jarvelin and Kekalainen, "Cumulated gain-based evaluation of
        IR techniques", TOIS 2002, with two grades). A query with no relevant item counts as for `recall_at`. Under
        "expected" it is the exact mean over all orders.

        Raises:
            ValueError: n is below 1 or beyond the size of the database or, under "id", was not given as `ndcg`.
        """
        rank, rule = self._rank(n), RULES[self.ties]
        if rule.ranked and rank not in self.ndcg_ranks:
            known = f"one of {self.ndcg_ranks}, given" if self.ndcg_ranks else "a rank given, and none was,"
            raise ValueError(f"n: expected {known} as ndcg (ties='id'), got {rank}")
        means = {}
        for m, b in enumerate(self.lengths):
            if rule.ranked:
                gain = self._gains[m, :, self.ndcg_ranks.index(rank)]
            else:
                gain = tie_groups.discounted_gain(self._histograms[b], rank, rule)
            means[b] = float(tie_groups.normalized_gain(gain, self._relevant, rank).sum()) / self._counted
        return means

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
        self._check_length(length)
        if check.one_of(by, "by", ("rank", "radius")) == "radius":
            if points is not None:
                raise ValueError(f"points: expected None with by='radius', got {check.shown(points)}")
            precision, recall = self._ball(length)
            return precision.numpy(), recall.numpy()
        ranks = torch.from_numpy(self.curve_ranks(points))
        hits, recall = (density.cumsum(0)[ranks - 1] for density in self._density(length))
        return (hits / (ranks * self._counted)).numpy(), (recall / self._counted).numpy()

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

    def distance_histogram(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """How many pairs (query, database item) are at each Hamming distance of one code length.

        Returns:
            (different, same): int64 arrays (length + 1,), the pairs that share no class and those that share one.
        """
        self._check_length(length)
        counts = self._histograms[length].sum(0).numpy()
        return counts[:, 0], counts[:, 1]

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
            "mean_over": self.mean_over,
            **{f"ndcg_at_{n}": {str(b): v for b, v in self.ndcg_at(n).items()} for n in self.ndcg_ranks},
        }

    def __repr__(self) -> str:
        cut = "" if self.topk is None else f"@{self.topk}"
        name = f"mAP{cut}"
        head = (
            f"RetrievalResult: {self.num_queries} queries, {self.num_database} database items, "
            f"ties={self.ties!r}, denominator={self.denominator!r}"
        )
        if self.mean_over != "all":
            head += f", means over {self._counted} queries with a relevant item"
        width = max(8, len(name))
        gains = {f"NDCG@{n}": self.ndcg_at(n) for n in self.ndcg_ranks}
        titles = "".join(f"  {title:>8}" for title in gains)
        lines = [head, f"  {'bits':>6}  {name:>{width}}  {'P(r<=2)':>8}{titles}"]
        radius = self.within_radius(2)
        for b, value in self.mean_average_precision.items():
            further = "".join(f"  {found[b]:>{max(8, len(title))}.4f}" for title, found in gains.items())
            lines.append(f"  {b:>6}  {value:>{width}.4f}  {radius[b]:>8.4f}{further}")
        return "\n".join(lines)

    def _check_length(self, length) -> None:
        try:
            known = length in self._histograms
        except Exception:  # what has no hash
            known = False
        if not known:
            raise ValueError(f"length: expected one of {self.lengths}, got {check.shown(length)}")

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
        precision = (relevant / items.clamp(min=1)).sum(0) / self._counted
        return precision, (relevant / relevant[:, -1:].clamp(min=1)).sum(0) / self._counted
