"""`nhl-fast search` in the database of a run, and the inputs of its own that a user gives."""

from __future__ import annotations

import torch

from ..core.files import as_path, existing_file
from ..core.labels import similarity
from ..data.feature_files import ARCHIVES, read_features
from ..data.images import SUFFIXES as PICTURES
from ..data.images import find_pictures
from ..retrieval.hamming import search as hamming_search
from ..text.table import format_table
from ..training.arrays import load_array
from ..training.evaluate import database_codes
from ..training.run import Run
from ..training.run_pictures import label_text
from ..training.trained import TrainedModel


def encode_input(
    trained: TrainedModel, given: str, option: str, progress: bool = False
) -> tuple[torch.Tensor, list[str] | None]:
    """Codes of a file of features, of a picture or of a folder of pictures, and the names of the pictures."""
    path = as_path(given, option)
    suffix, listed = path.suffix.lower(), None
    if not path.is_dir() and suffix in ARCHIVES:
        inputs = read_features(existing_file(path, option))
    elif not path.is_dir() and suffix not in PICTURES:
        inputs = load_array(given, option)
    else:
        inputs = find_pictures(path) if path.is_dir() else [path]
        listed = [str(p.relative_to(path)) for p in inputs] if path.is_dir() else [path.name]
    try:
        return trained.encode(inputs, progress=progress), listed
    except (TypeError, ValueError) as error:
        if str(error).startswith("inputs: "):
            raise type(error)(f"{option}: {str(error)[8:]}") from None
        raise


def nearest(args, queries, codes, length: int | None):
    """(distances, ids) of the `-k` nearest; without a number ten, or all where there are fewer."""
    k = min(10, max(len(codes), 1)) if args.k is None else args.k
    return hamming_search(queries, codes, k, length=length)


def search_run(args, run: Run, trained: TrainedModel) -> tuple[dict, str]:
    """The answers to queries of the run's data set by their numbers, or to pictures and arrays of the user's own."""
    wanted = args.query or [0]
    if all(isinstance(q, int) for q in wanted):
        return _search_held_out(args, run, wanted)
    if any(isinstance(q, int) for q in wanted):
        raise ValueError(f"--query: expected numbers of the run's queries or files, not both, got {wanted}")
    return _search_files(args, run, trained, wanted)


def _search_files(args, run: Run, trained: TrainedModel, given: list[str]) -> tuple[dict, str]:
    """Every row of the files is a query; answers with ids, names where the rows are in files, classes, distances."""
    length, names, codes = _length(args, run), [], []
    for path in given:
        found, listed = encode_input(trained, path, "--query", args.progress)
        codes.append(found)
        if listed is None:
            listed = [f"{path}[{i}]" for i in range(len(found))]
        names += listed if as_path(path).is_dir() or len(listed) > 1 else [path]
    distances, ids = nearest(args, torch.cat(codes), database_codes(run, args.workers, args.progress), length)
    found, lines = [], []
    for name, row, row_ids in zip(names, distances.tolist(), ids.tolist()):
        answers = [{"id": i, "distance": d, **_described(run, i)} for i, d in zip(row_ids, row)]
        found.append({"query": name, "answers": answers})
        lines += [f"{name}, {length} bits:", format_table(answers), ""]
    return {"length": length, "queries": found}, "\n".join(lines).rstrip("\n")


def _described(run: Run, i: int) -> dict:
    """The class of an item of the database and, where it is in a file, its name."""
    split, label = run.data.database, label_text(run.data, run.data.database, i)
    name = split.file_name(i)
    return {"label": label} if name is None else {"label": label, "name": name}


def _length(args, run: Run) -> int:
    return run.code_lengths[-1] if args.length is None else args.length


def _search_held_out(args, run: Run, wanted: list[int]) -> tuple[dict, str]:
    data, length = run.data, _length(args, run)
    bad = [i for i in wanted if not 0 <= i < len(data.query)]
    if bad:
        raise ValueError(f"--query: expected 0 to {len(data.query) - 1}, got {bad[0]}")
    inputs = data.query.batch(torch.tensor(wanted))[0].to(next(run.model.parameters()).device)
    queries = run.model.encode_batch(inputs).cpu()
    database = database_codes(run, args.workers, args.progress)
    distances, ids = nearest(args, queries, database, length)
    relevant = similarity(data.query.labels[wanted], data.database.labels)
    lines, found = [], []
    for row, q in enumerate(wanted):
        answers = [
            {"id": i, "distance": d, **_described(run, i), "relevant": bool(relevant[row, i])}
            for i, d in zip(ids[row].tolist(), distances[row].tolist())
        ]
        found.append({"query": q, "label": label_text(data, data.query, q), "answers": answers})
        right = sum(a["relevant"] for a in answers)
        text = "  ".join(f"{a['label']}{'' if a['relevant'] else '(wrong)'}@{a['distance']}" for a in answers)
        lines.append(
            f"query {q} (class {found[-1]['label']}), {length} bits, {right} of {len(answers)} right: {text}"
        )
    return {"length": length, "queries": found}, "\n".join([*lines, "(class@distance, nearest first)"])
