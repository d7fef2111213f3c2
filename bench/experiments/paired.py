"""Paired tests: is an arm's lead over another beyond what its queries, and the seeds, would give by chance?

Two tests, since they see different things. Over the queries, of the very models that were trained: the average
precisions of the same queries, pair by pair (the models' own luck is in none of them). Over the seeds: the mAPs of
models of the same seed (few numbers, but the training's luck is in them).
"""

from __future__ import annotations

import math
import statistics

import numpy as np

DRAWS, BLOCK = 4999, 500


def over_queries(differences: list[np.ndarray], seed: int = 0) -> float:
    """Two-sided p of a sign-flip permutation test of mean difference 0, at least 1 / (DRAWS + 1).

    Args:
        differences: one array (Q,) a seed, the difference of two models' average precision of every query; seeds
            count alike. Where the two models are alike, a query's difference is as likely with its sign turned.
        seed: of the permutations.
    """
    shares = np.concatenate([d / (len(d) * len(differences)) for d in differences])
    seen, rng, beyond = abs(shares.sum()), np.random.default_rng(seed), 0
    for start in range(0, DRAWS, BLOCK):
        signs = rng.integers(0, 2, (min(BLOCK, DRAWS - start), len(shares)), dtype=np.int8) * 2 - 1
        # What rounding alone tells apart is as far.
        beyond += int((np.abs(signs @ shares) >= seen * (1 - 1e-12)).sum())
    return (1 + beyond) / (DRAWS + 1)


def over_seeds(differences: list[float]) -> float:
    """Two-sided p of Student's paired t test; 1 where there is no spread to judge by.

    With t = sqrt(f) tan a, f degrees of freedom, P(|T| < t) is the share of cos^(f - 1) between -a and a.
    """
    freedom = len(differences) - 1
    if freedom < 1 or not (spread := statistics.stdev(differences)):
        return 1.0
    t = abs(statistics.fmean(differences)) / spread * math.sqrt(len(differences))

    def area(to: float, steps: int = 2000) -> float:  # Simpson's rule
        weights = [1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1)]
        return sum(w * math.cos(to * i / steps) ** (freedom - 1) for i, w in enumerate(weights)) * to / steps / 3

    return max(0.0, 1 - area(math.atan(t / math.sqrt(freedom))) / area(math.pi / 2))


def against(wanted, records, reference: str) -> list[dict]:
    """Every arm against the arm `reference` of the same cell: a row a length, and one of the mean over the lengths.

    Args:
        wanted: the jobs of an experiment.
        records: their records, with "ap".
        reference: an arm's label.

    Returns:
        Rows of the cell's labels, "bits" (or "mean"), "difference" of the mAPs, "p_queries", and "p_seeds" (None
        with one seed), over the seeds that both arms have; nothing for lengths that one of them has not, and a mean
        only where both have the same several lengths.
    """
    cells: dict[tuple, dict[str, dict[int, dict[int, np.ndarray]]]] = {}
    for job, record in zip(wanted, records):
        labels = tuple((k, v) for k, v in job.labels.items() if k != "arm")
        arm = cells.setdefault(labels, {}).setdefault(job.labels["arm"], {})
        for bits, ap in record["ap"].items():
            arm.setdefault(int(bits), {})[job.seed] = np.asarray(ap)
    rows = []
    for labels, arms in cells.items():
        theirs = arms.get(reference, {})
        for arm, ours in arms.items():
            both = [] if arm == reference else sorted(ours.keys() & theirs.keys())
            columns = {b: {s: ours[b][s] - theirs[b][s] for s in ours[b].keys() & theirs[b].keys()} for b in both}
            if len(both) > 1 and ours.keys() == theirs.keys():
                seeds = set.intersection(*(set(found) for found in columns.values()))
                columns["mean"] = {s: np.mean([columns[b][s] for b in both], axis=0) for s in seeds}
            for bits, found in columns.items():
                if not found:
                    continue
                differences = [found[s] for s in sorted(found)]
                means = [float(d.mean()) for d in differences]
                rows.append(
                    {
                        **dict(labels),
                        "arm": arm,
                        "bits": bits,
                        "difference": statistics.fmean(means),
                        "p_queries": over_queries(differences),
                        "p_seeds": over_seeds(means) if len(means) > 1 else None,
                    }
                )
    return rows
