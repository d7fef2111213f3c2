"""The pictures of an evaluated run."""

from __future__ import annotations

from pathlib import Path

from ..core.labels import similarity
from ..data import RetrievalData
from ..pictures import plots
from ..retrieval.hamming import search
from .evaluate import Evaluation
from .run_folder import RunFolder

CURVE_POINTS = 200


def write_pictures(
    folder: RunFolder, evaluation: Evaluation, data: RetrievalData, history: list[dict], lengths: tuple[int, ...]
) -> list[Path]:
    """mAP against bits (the trained `lengths` marked), precision and recall, training log, gallery of images."""
    folder.all_pictures.mkdir(parents=True, exist_ok=True)
    result = evaluation.result
    written = []
    curve = evaluation.prefix_map or result.mean_average_precision
    written.append(plots.plot_map_vs_bits({data.name: curve}, folder.picture("map_vs_bits"), marked_lengths=lengths))
    curves = {b: result.pr_curve(b, points=CURVE_POINTS) for b in result.lengths}
    written.append(plots.plot_pr_curves(curves, folder.picture("precision_recall")))
    if history:
        written.append(plots.plot_history(history, folder.picture("training"), code_lengths=lengths))
    if data.query.raw(0) is not None:
        written.append(write_gallery(folder.picture("gallery"), evaluation, data))
    return written


def write_gallery(path: Path, evaluation: Evaluation, data: RetrievalData, queries: int = 3, top: int = 10) -> Path:
    """The gallery of the first query of each of the first few classes; the metrics cover all queries."""
    labels = data.query.labels
    owners = labels if labels.ndim == 1 else labels.argmax(1)
    chosen = [int((owners == c).nonzero()[0]) for c in owners.unique()[:queries]]
    top = min(top, len(data.database))
    relevant = similarity(labels[chosen], data.database.labels)
    results = {}
    for b in evaluation.result.lengths:
        _, ids = search(evaluation.query_codes[chosen], evaluation.database_codes, top, length=b)
        results[b] = [
            [(data.database.raw(i), _caption(data, data.database, i), bool(relevant[row, i])) for i in found.tolist()]
            for row, found in enumerate(ids)
        ]
    pictures = [(data.query.raw(q), _caption(data, data.query, q)) for q in chosen]
    return plots.plot_gallery(pictures, results, path, evaluation.result.lengths, top=top)


def _caption(data: RetrievalData, split, i: int) -> str:
    """An item's class and, in a second line, its file."""
    name = split.file_name(i)
    return label_text(data, split, i) + ("" if name is None else f"\n{Path(name).name}")


def label_text(data: RetrievalData, split, i: int) -> str:
    """An item's class name, or names."""
    label = split.labels[i]
    classes = [int(label)] if label.ndim == 0 else label.nonzero().flatten().tolist()
    names = data.class_names or [str(c) for c in range(data.num_classes)]
    return ", ".join(names[c] for c in classes)
