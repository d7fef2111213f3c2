"""A run folder: load its data and model, encode, evaluate every prefix, write metrics and pictures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.files import as_path, atomic_write, existing_file, write_json
from ..core.labels import similarity
from ..data import RetrievalData, load_dataset
from ..retrieval.hamming import search
from ..retrieval.metrics import RetrievalResult, evaluate_retrieval
from .model import HashModel, encode_split
from .run_folder import CODES, LOG, METRICS, METRICS_TABLE, PICTURES, SPLIT, read_config, weights_file
from .trainer import load_model, resolve_device

CURVE_POINTS = 200
PREFIX_BYTES = 1 << 27


@dataclass
class Run:
    """A run folder, opened: its settings, data and model."""

    path: Path
    config: dict
    data: RetrievalData
    model: HashModel

    @classmethod
    def open(cls, path, data_options: dict | None = None, device: str | None = None) -> Run:
        """Open a run folder.

        Args:
            path: the folder.
            data_options: replace those it was trained with (a moved `root`, say).
            device: where its model goes; None is the CPU.

        Raises:
            FileNotFoundError: no run there, or its data set's files are gone.
            ValueError: damaged files, or data that differs from what was trained on.
        """
        path = as_path(path, "run")
        stored = read_config(path)
        spec = {**stored["data"], **(data_options or {})}
        data = load_dataset(spec.pop("name"), split_file=path / SPLIT, **spec)
        if data.run_fingerprint != stored["data_fingerprint"]:
            raise ValueError(f"run: {path} was trained on other data than what its data set now holds")
        model = load_model(path, data).to(resolve_device(device or "cpu"))
        return cls(path, stored["config"], data, model)

    @property
    def code_lengths(self) -> tuple[int, ...]:
        return self.model.code_lengths


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
    prefixes: bool = True,
    workers: int = 0,
) -> Evaluation:
    """Encode queries and database; metrics at `lengths` (default: the trained ones), mAP of every prefix 1..L.

    The prefixes are scored with the expected value over tied orders: short codes are nearly all ties.
    """
    lengths = model.code_lengths if lengths is None else lengths
    codes = encode_split(model, data.query, workers=workers), encode_split(model, data.database, workers=workers)
    labels = data.query.labels, data.database.labels
    result = evaluate_retrieval(*codes, *labels, lengths=lengths, topk=topk, ties=ties)
    curve = prefix_map(*codes, *labels, model.code_lengths[-1], topk) if prefixes else {}
    return Evaluation(*codes, result, curve)


def prefix_map(q_codes, db_codes, q_labels, db_labels, longest: int, topk: int | None = None) -> dict[int, float]:
    """mAP of every prefix 1..longest; queries are taken in parts, since each keeps a histogram a length."""
    step = max(1, PREFIX_BYTES // (8 * (longest + 1) * (longest + 2)))
    total = torch.zeros(longest, dtype=torch.float64)
    for start in range(0, len(q_codes), step):
        part = slice(start, start + step)
        scores = evaluate_retrieval(
            q_codes[part], db_codes, q_labels[part], db_labels, range(1, longest + 1), topk, ties="expected"
        )
        total += scores.average_precision.sum(1)
    return dict(enumerate((total / len(q_codes)).tolist(), 1))


def load_array(path, name: str) -> np.ndarray:
    """An .npy file; a clear error where it is none."""
    try:
        array = np.load(existing_file(path, name), allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: {path} is no readable .npy file ({error})") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"{name}: {error.strerror}", str(path)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{name}: expected one array in an .npy file, but {path} is an archive of several")
    if array.ndim == 0:
        raise ValueError(f"{name}: expected an array of rows, got {check.describe(array)} in {path}")
    return array


def read_log(path: Path) -> list[dict]:
    """The records of a run folder's log; none where there is no log."""
    log = path / LOG
    if not log.exists():
        return []
    try:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"run: {log} is damaged ({error})") from None


def save_array(path: Path, array) -> None:
    """An .npy file, written whole or not at all."""
    with atomic_write(path) as handle:
        np.save(handle, np.asarray(array), allow_pickle=False)


def save_csv(path: Path, rows: list[dict]) -> None:
    """A CSV file of equal dicts, written whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path, "w") as handle:
        handle.write(text.getvalue())


def metric_rows(evaluation: Evaluation) -> list[dict]:
    """One row a code length: mAP, precision and recall at 100, precision within radius 2."""
    result = evaluation.result
    n = min(100, result.num_database)
    precision, recall, ball = result.precision_at(n), result.recall_at(n), result.within_radius(2)
    return [
        {
            "bits": b,
            "mAP": result.mean_average_precision[b],
            f"precision@{n}": precision[b],
            f"recall@{n}": recall[b],
            "precision_radius2": ball[b],
        }
        for b in result.lengths
    ]


def write_evaluation(path: Path, evaluation: Evaluation, data: RetrievalData) -> dict:
    """Packed codes, labels, metrics.json and metrics.csv into a run folder; the content of metrics.json."""
    (path / CODES).mkdir(parents=True, exist_ok=True)
    for name, codes, split in (
        ("query", evaluation.query_codes, data.query),
        ("database", evaluation.database_codes, data.database),
    ):
        save_array(path / CODES / f"{name}.npy", codes)
        save_array(path / CODES / f"{name}_labels.npy", split.labels)
    result, rows = evaluation.result, metric_rows(evaluation)
    metrics = {
        "data": data.name,
        "protocol": data.protocol,
        "num_queries": result.num_queries,
        "num_database": result.num_database,
        "topk": result.topk,
        "ties": result.ties,
        "lengths": rows,
        "prefix_map": {str(b): v for b, v in evaluation.prefix_map.items()},
        "weights_sha256": weights_sha256(path),
    }
    write_json(path / METRICS, metrics)
    save_csv(path / METRICS_TABLE, rows)
    return metrics


def weights_sha256(path: Path) -> str | None:
    """SHA-256 of a run folder's shared weights, None where they are gone: tells whether an evaluation is theirs."""
    file = path / weights_file()
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def write_pictures(
    path: Path, evaluation: Evaluation, data: RetrievalData, history: list[dict], lengths: tuple[int, ...]
) -> list[Path]:
    """mAP against bits (the trained `lengths` marked), precision and recall, training log, gallery of images."""
    from ..pictures import plots

    folder = path / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    result = evaluation.result
    written = []
    curve = evaluation.prefix_map or result.mean_average_precision
    written.append(plots.plot_map_vs_bits({data.name: curve}, folder / "map_vs_bits.png", marked_lengths=lengths))
    curves = {b: result.pr_curve(b, points=CURVE_POINTS) for b in result.lengths}
    written.append(plots.plot_pr_curves(curves, folder / "precision_recall.png"))
    if history:
        written.append(plots.plot_history(history, folder / "training.png", code_lengths=lengths))
    if data.query.raw(0) is not None:
        written.append(write_gallery(folder / "gallery.png", evaluation, data))
    return written


def write_gallery(path: Path, evaluation: Evaluation, data: RetrievalData, queries: int = 3, top: int = 10) -> Path:
    """The gallery of the first query of each of the first few classes; the metrics cover all queries."""
    from ..pictures import plots

    labels = data.query.labels
    owners = labels if labels.ndim == 1 else labels.argmax(1)
    chosen = [int((owners == c).nonzero()[0]) for c in owners.unique()[:queries]]
    top = min(top, len(data.database))
    relevant = similarity(labels[chosen], data.database.labels)
    results = {}
    for b in evaluation.result.lengths:
        _, ids = search(evaluation.query_codes[chosen], evaluation.database_codes, top, length=b)
        results[b] = [
            [
                (data.database.raw(i), label_text(data, data.database, i), bool(relevant[row, i]))
                for i in found.tolist()
            ]
            for row, found in enumerate(ids)
        ]
    pictures = [(data.query.raw(q), label_text(data, data.query, q)) for q in chosen]
    return plots.plot_gallery(pictures, results, path, evaluation.result.lengths, top=top)


def label_text(data: RetrievalData, split, i: int) -> str:
    """An item's class name, or names."""
    label = split.labels[i]
    classes = [int(label)] if label.ndim == 0 else label.nonzero().flatten().tolist()
    names = data.class_names or [str(c) for c in range(data.num_classes)]
    return ", ".join(names[c] for c in classes)


def best_per_length_map(run: Run, *, topk: int | None = None, ties: str = "id") -> dict[int, float]:
    """mAP of each length with its own best weights; one model, and one pass over the data, a length."""
    found = {}
    for b in run.code_lengths:
        model = load_model(run.path, run.data, length=b)
        codes = encode_split(model, run.data.query), encode_split(model, run.data.database)
        labels = run.data.query.labels, run.data.database.labels
        scores = evaluate_retrieval(*codes, *labels, lengths=(b,), topk=topk, ties=ties)
        found[b] = scores.mean_average_precision[b]
    return found
