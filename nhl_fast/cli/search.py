"""`nhl-fast search` in the database of a run."""

from __future__ import annotations

import torch

from ..core.labels import similarity
from ..retrieval.hamming import search as hamming_search
from ..training.model import encode_split
from ..training.run import Run
from ..training.run_pictures import label_text


def search_run(args, run: Run) -> tuple[dict, str]:
    data, wanted = run.data, args.query or [0]
    bad = [i for i in wanted if not 0 <= i < len(data.query)]
    if bad:
        raise ValueError(f"--query: expected 0 to {len(data.query) - 1}, got {bad[0]}")
    length = run.code_lengths[-1] if args.length is None else args.length
    inputs = data.query.batch(torch.tensor(wanted))[0].to(next(run.model.parameters()).device)
    queries = run.model.encode_batch(inputs).cpu()
    database = encode_split(run.model, data.database, workers=args.workers)
    distances, ids = hamming_search(queries, database, args.k, length=length)
    relevant = similarity(data.query.labels[wanted], data.database.labels)
    lines, found = [], []
    for row, q in enumerate(wanted):
        answers = [
            {"id": i, "distance": d, "label": label_text(data, data.database, i), "relevant": bool(relevant[row, i])}
            for i, d in zip(ids[row].tolist(), distances[row].tolist())
        ]
        found.append({"query": q, "label": label_text(data, data.query, q), "answers": answers})
        right = sum(a["relevant"] for a in answers)
        text = "  ".join(f"{a['label']}{'' if a['relevant'] else '(wrong)'}@{a['distance']}" for a in answers)
        lines.append(
            f"query {q} (class {found[-1]['label']}), {length} bits, {right} of {len(answers)} right: {text}"
        )
    return {"length": length, "queries": found}, "\n".join([*lines, "(class@distance, nearest first)"])
