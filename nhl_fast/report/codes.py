"""What a report measures anew from a run's packed codes: precision and recall, and what the codes are like."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..retrieval.metrics import evaluate_retrieval
from ..retrieval.quality import bit_statistics, code_quality
from ..training.arrays import load_array
from ..training.run_folder import RunFolder
from ..training.run_pictures import CURVE_POINTS, MOST_CLASSES, confusion_of
from .files import naming
from .groups import Method
from .records import Record


@dataclass
class Measured:
    """From one run's codes.

    Attributes:
        ranks: at which the curves are read, the same for every run of a section.
        curves: {bits: (precision, recall)} there.
        quality: rows of `code_quality` of the database's codes.
        bits: (ones, correlation) of `bit_statistics` of the database's codes.
        distances: {bits: (different, same)} of `RetrievalResult.distance_histogram`.
        confusion: {bits: (C, C)} of the shortest and the longest length; empty where there are many classes, or one.
    """

    ranks: np.ndarray
    curves: dict[int, tuple[np.ndarray, np.ndarray]]
    quality: list[dict]
    bits: tuple[np.ndarray, np.ndarray]
    distances: dict[int, tuple[np.ndarray, np.ndarray]]
    confusion: dict[int, np.ndarray]


def measure_codes(record: Record) -> Measured:
    """Evaluate a run's stored codes again.

    Raises:
        FileNotFoundError: the run's codes are gone.
        ValueError: they are damaged, or are not those that its metrics were measured on.
    """
    folder = RunFolder(record.path)
    files = [of(split) for of in (folder.codes, folder.labels) for split in ("query", "database")]
    q_codes, db_codes, q_labels, db_labels = (stored_array(folder, file) for file in files)
    lengths = sorted(record.map)
    with naming(folder.all_codes):
        found = evaluate_retrieval(
            q_codes,
            db_codes,
            q_labels,
            db_labels,
            lengths=lengths,
            topk=record.conditions.topk,
            ties=record.conditions.ties,
            mean_over=record.conditions.mean_over,
        )
        for b, value in found.mean_average_precision.items():
            if abs(value - record.map[b]) > 1e-6:
                raise ValueError(
                    f"they give mAP {value:.6f} at {b} bits, but {folder.metrics.name} says {record.map[b]:.6f}; "
                    f"run 'nhl-fast evaluate {record.path}' again"
                )
        curves = {b: found.pr_curve(b, points=CURVE_POINTS) for b in lengths}
        labels = q_labels, db_labels
        classes = max(y.shape[1] if y.ndim == 2 else int(y.max()) + 1 for y in labels)
        return Measured(
            ranks=found.curve_ranks(CURVE_POINTS),
            curves=curves,
            quality=code_quality(db_codes, lengths),
            bits=bit_statistics(db_codes, lengths[-1]),
            distances={b: found.distance_histogram(b) for b in lengths},
            confusion=confusion_of(q_codes, db_codes, *labels, lengths) if 1 < classes <= MOST_CLASSES else {},
        )


def common(several: list[dict]) -> list[dict]:
    """The dicts with only the keys that all have, ascending: seeds may have been evaluated at different lengths."""
    keys = sorted(set.intersection(*map(set, several)))
    return [{key: one[key] for key in keys} for one in several]


def mean_curves(several: list[Measured]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Mean precision and recall over seeds, rank by rank, at the lengths that all have."""
    curves = common([m.curves for m in several])
    return {b: tuple(np.mean([c[b][i] for c in curves], 0) for i in (0, 1)) for b in curves[0]}


def mean_distances(several: list[Measured]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Pairs of all seeds together, at the lengths that all have."""
    counts = common([m.distances for m in several])
    return {b: tuple(np.sum([c[b][i] for c in counts], 0) for i in (0, 1)) for b in counts[0]}


def mean_confusion(several: list[Measured]) -> dict[int, np.ndarray]:
    """Mean over seeds, at the lengths that all have."""
    tables = common([m.confusion for m in several])
    return {b: np.mean([table[b] for table in tables], 0) for b in tables[0]}


def mean_quality(several: list[Measured]) -> list[dict]:
    """Rows of `code_quality`, means over seeds at the lengths that all have; None where no seed has a value."""
    rows, seeds = [], common([{row["bits"]: row for row in m.quality} for m in several])
    for same in zip(*(found.values() for found in seeds)):
        values = {name: [row[name] for row in same if row[name] is not None] for name in same[0]}
        rows.append({name: statistics.fmean(v) if v else None for name, v in values.items()})
    return rows


def mean_conflicts(method: Method) -> list[list[float]] | None:
    """(m, m) share of steps in which the gradients of two lengths conflict, over all epochs and seeds; or None."""
    tables = [(r["steps"], r["conflicts"]) for record in method.records for r in record.history if r.get("conflicts")]
    if not tables:
        return None
    weights = [steps for steps, _ in tables]
    return np.average([table for _, table in tables], axis=0, weights=weights).tolist()


def stored_array(folder: RunFolder, file: Path) -> np.ndarray:
    """An array of a run folder; FileNotFoundError, ValueError where it is gone or damaged."""
    if not file.is_file():
        lost = file.relative_to(folder.path).as_posix()
        raise FileNotFoundError(
            f"run: {folder.path} holds no {lost}; run 'nhl-fast evaluate {folder.path}' to write it"
        )
    return load_array(file, "run")
