"""Evaluation: codes of a model on a data set, metrics of every prefix, and what a run folder keeps of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from ..core.files import read_json, write_json
from ..data import RetrievalData
from ..retrieval.codes import num_bytes
from ..retrieval.metrics import RetrievalResult, evaluate_retrieval
from .arrays import load_array, save_array, save_csv
from .model import HashModel, encode_split
from .run import Run, load_model
from .run_folder import RunFolder

PREFIX_BYTES = 1 << 27


@dataclass
class Evaluation:
    """Codes of a model on a data set, and what they measure."""

    query_codes: torch.Tensor
    database_codes: torch.Tensor
    result: RetrievalResult
    prefix_map: dict[int, float]


def evaluate_model(
    model: HashModel,
    data: RetrievalData,
    *,
    lengths=None,
    topk: int | None = None,
    ties: str = "id",
    ndcg=(),
    mean_over: str = "all",
    prefixes: bool = True,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Encode queries and database; metrics at `lengths` (default: the trained ones), mAP of every prefix 1..L.

    The prefixes are scored with the expected value over tied orders: short codes are nearly all ties.
    """
    lengths = model.code_lengths if lengths is None else lengths
    options = {"workers": workers, "progress": progress}
    codes = encode_split(model, data.query, **options), encode_split(model, data.database, **options)
    labels = data.query.labels, data.database.labels
    result = evaluate_retrieval(
        *codes, *labels, lengths=lengths, topk=topk, ties=ties, ndcg=ndcg, mean_over=mean_over
    )
    curve = prefix_map(*codes, *labels, model.code_lengths[-1], topk, mean_over) if prefixes else {}
    return Evaluation(*codes, result, curve)


def prefix_map(
    q_codes, db_codes, q_labels, db_labels, longest: int, topk: int | None = None, mean_over: str = "all"
) -> dict[int, float]:
    """mAP of every prefix 1..longest; queries are taken in parts, since each keeps a histogram a length."""
    step = max(1, PREFIX_BYTES // (8 * (longest + 1) * (longest + 2)))
    total, counted = torch.zeros(longest, dtype=torch.float64), 0
    for start in range(0, len(q_codes), step):
        part = slice(start, start + step)
        scores = evaluate_retrieval(
            q_codes[part], db_codes, q_labels[part], db_labels, range(1, longest + 1), topk, ties="expected"
        )
        total += scores.average_precision.sum(1)
        counted += scores.num_queries if mean_over == "all" else scores.num_relevant_queries
    return dict(enumerate((total / counted).tolist(), 1))


def metric_rows(evaluation: Evaluation) -> list[dict]:
    """One row a code length: mAP, precision and recall at 100, precision within radius 2, NDCG where asked for."""
    result = evaluation.result
    n = min(100, result.num_database)
    precision, recall, ball = result.precision_at(n), result.recall_at(n), result.within_radius(2)
    gains = {f"ndcg@{rank}": result.ndcg_at(rank) for rank in result.ndcg_ranks}
    return [
        {
            "bits": b,
            "mAP": result.mean_average_precision[b],
            f"precision@{n}": precision[b],
            f"recall@{n}": recall[b],
            "precision_radius2": ball[b],
            **{name: found[b] for name, found in gains.items()},
        }
        for b in result.lengths
    ]


def write_evaluation(folder: RunFolder, evaluation: Evaluation, data: RetrievalData) -> dict:
    """Packed codes, labels, metrics.json and metrics.csv into a run folder; the content of metrics.json."""
    folder.all_codes.mkdir(parents=True, exist_ok=True)
    for name, codes, split in (
        ("query", evaluation.query_codes, data.query),
        ("database", evaluation.database_codes, data.database),
    ):
        save_array(folder.codes(name), codes)
        save_array(folder.labels(name), split.labels)
    result, rows = evaluation.result, metric_rows(evaluation)
    metrics = {
        "data": data.name,
        "protocol": data.protocol,
        "num_queries": result.num_queries,
        "num_database": result.num_database,
        "topk": result.topk,
        "ties": result.ties,
        "mean_over": result.mean_over,
        "lengths": rows,
        "prefix_map": {str(b): v for b, v in evaluation.prefix_map.items()},
        "weights_sha256": weights_sha256(folder),
    }
    write_json(folder.metrics, metrics)
    save_csv(folder.metrics_table, rows)
    return metrics


def database_codes(run: Run, workers: int = 0, progress: bool = False) -> torch.Tensor:
    """Packed codes (N, ceil(L/8)) of a run's database: those of its evaluation where its weights are the same."""
    folder, rows = run.folder, len(run.data.database)
    if folder.metrics.is_file() and folder.codes("database").is_file():
        stored = read_json(folder.metrics)
        if isinstance(stored, dict) and stored.get("weights_sha256") == weights_sha256(folder):
            codes = load_array(folder.codes("database"), "run")
            if codes.dtype == np.uint8 and codes.shape == (rows, num_bytes(run.code_lengths[-1])):
                return torch.from_numpy(codes)
    return encode_split(run.model, run.data.database, workers=workers, progress=progress)


def weights_sha256(folder: RunFolder) -> str | None:
    """SHA-256 of a run folder's shared weights, None where they are gone: tells whether an evaluation is theirs."""
    file = folder.weights()
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def best_per_length_map(
    run: Run, *, topk: int | None = None, ties: str = "id", mean_over: str = "all"
) -> dict[int, float]:
    """mAP of each length with its own best weights; one model, and one pass over the data, a length."""
    found = {}
    for b in run.code_lengths:
        model = load_model(run.folder.path, run.data, length=b)
        codes = encode_split(model, run.data.query), encode_split(model, run.data.database)
        labels = run.data.query.labels, run.data.database.labels
        scores = evaluate_retrieval(*codes, *labels, lengths=(b,), topk=topk, ties=ties, mean_over=mean_over)
        found[b] = scores.mean_average_precision[b]
    return found
