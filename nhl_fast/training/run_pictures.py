"""The pictures of an evaluated run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.labels import similarity
from ..data import RetrievalData
from ..pictures import plots
from ..retrieval.hamming import search
from ..retrieval.metrics import class_confusion
from ..retrieval.quality import bit_statistics
from .evaluate import Evaluation
from .run_folder import RunFolder

CURVE_POINTS = 200
NEAREST = 10  # items whose classes the confusion counts
MOST_CLASSES = 256  # of a confusion that can be read


def write_pictures(
    folder: RunFolder, evaluation: Evaluation, data: RetrievalData, history: list[dict], lengths: tuple[int, ...]
) -> list[Path]:
    """mAP against bits (the trained `lengths` marked), precision and recall, training log, what the codes are like
    and, of images, a gallery."""
    folder.all_pictures.mkdir(parents=True, exist_ok=True)
    result, codes = evaluation.result, (evaluation.query_codes, evaluation.database_codes)
    of = _subject(data.title, folder.path.resolve().name)
    curve = evaluation.prefix_map or result.mean_average_precision
    heading = f"Retrieval quality of {'every prefix' if evaluation.prefix_map else 'the evaluated lengths'}: {of}"
    curves = {b: result.pr_curve(b, points=CURVE_POINTS) for b in result.lengths}
    ranks = result.curve_ranks(CURVE_POINTS)
    histograms = {b: result.distance_histogram(b) for b in result.lengths}
    path = folder.picture
    written = [
        plots.plot_map_vs_bits(
            {data.title: curve},
            path("map_vs_bits"),
            marked_lengths=lengths,
            title=heading,
        ),
        plots.plot_pr_curves(curves, path("precision_recall"), title=f"Precision and recall: {of}"),
        plots.plot_at_n(
            {b: (ranks, *curve) for b, curve in curves.items()},
            path("precision_recall_at_n"),
            title=f"Precision and recall of the first N: {of}",
        ),
        plots.plot_distances(histograms, path("distances"), title=f"Distances of queries and database items: {of}"),
        plots.plot_bits(
            *bit_statistics(codes[1], result.lengths[-1]),
            path("bits"),
            marked_lengths=lengths,
            title=f"Bits of the database's codes: {of}",
        ),
    ]
    if 1 < data.num_classes <= MOST_CLASSES:
        confusion = confusion_of(*codes, data.query.labels, data.database.labels, result.lengths)
        said = f"Classes of the nearest {min(NEAREST, result.num_database)}: {of}"
        written.append(plots.plot_confusion(confusion, path("confusion"), class_names=data.class_names, title=said))
    if history:
        written.append(plots.plot_history(history, path("training"), code_lengths=lengths, title=f"Training: {of}"))
    if data.query.raw(0) is not None:
        written.append(write_gallery(path("gallery"), evaluation, data, title=f"Nearest database images: {of}"))
    return written


def confusion_of(q_codes, db_codes, q_labels, db_labels, lengths) -> dict[int, np.ndarray]:
    """`class_confusion` of the nearest few items, at the shortest and the longest length."""
    ends = sorted({min(lengths), max(lengths)})
    return class_confusion(q_codes, db_codes, q_labels, db_labels, ends, min(NEAREST, len(db_codes)))


def write_gallery(
    path: Path,
    evaluation: Evaluation,
    data: RetrievalData,
    queries: int = 3,
    top: int = 10,
    title: str | None = None,
) -> Path:
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
    return plots.plot_gallery(pictures, results, path, evaluation.result.lengths, top=top, title=title)


def _caption(data: RetrievalData, split, i: int) -> str:
    """An item's class and, in a second line, its file."""
    name = split.file_name(i)
    return label_text(data, split, i) + ("" if name is None else f"\n{Path(name).name}")


def _subject(data: str, run: str) -> str:
    """What a title is about: data and run, or the one name of both."""
    return data if data == run else f"{data}, {run}"


def label_text(data: RetrievalData, split, i: int) -> str:
    """An item's class name, or names."""
    label = split.labels[i]
    classes = [int(label)] if label.ndim == 0 else label.nonzero().flatten().tolist()
    names = data.class_names or [str(c) for c in range(data.num_classes)]
    return ", ".join(names[c] for c in classes)
