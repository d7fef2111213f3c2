"""`nhl-fast fit`, and `encode` and `search` on what it leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from ..core.files import as_path, existing_file
from ..fit import embed
from ..fit.run import EMBEDDED, FitConfig, FitRun, fit_run, open_vectors, picture, stored_config
from ..retrieval.codes import mask_tail, num_bytes
from ..text.table import format_table
from ..training.arrays import load_array, save_array
from ..training.run_folder import RunFolder, check_output, check_target
from .search import nearest

SETTINGS = [field.name for field in dataclasses.fields(FitConfig)]
SOURCES = ("embeddings", "texts", "images")


def fit(args) -> None:
    given = {n: getattr(args, n) for n in SETTINGS if getattr(args, n) is not None}
    if args.resume is None:
        config, data = FitConfig(**given), _source(args)
        out = check_target(args.out, False, "--out")
    else:
        out = check_target(args.resume, True, "--resume")
        config, data = _resumed(args, given, out)
    vectors = _vectors(args, data, out)
    metrics = fit_run(vectors, out, config, data, resume=args.resume is not None, progress=args.progress)
    title, note = f"{metrics['database']:,} vectors, {metrics['queries']:,} queries", []
    try:
        picture(metrics, RunFolder(out).picture("recall"), title)
    except ImportError as error:
        note = [f"no picture: {error}"]
    lines = [
        f"{title}: share of the true {metrics['k']} nearest among the first {metrics['k']} of the code, by bits",
        format_table([{"method": row["method"], **row["recall"]} for row in metrics["recall"]]),
        "",
        f"fitted in {metrics['seconds']:.1f} s; layer, codes and results in {out}",
    ]
    print(json.dumps({"run": str(out), **metrics}, indent=2) if args.json else "\n".join(lines + note))


def _resumed(args, given: dict, out: Path) -> tuple[FitConfig, dict]:
    """The run's own settings and source; what was given differently is said by `fit_run`."""
    for name in (*SOURCES, "model", "out"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name}: expected none with --resume, which goes on with the run's own vectors")
    folder = RunFolder(out)
    stored = folder.read_config()
    return dataclasses.replace(stored_config(folder, stored), **given), stored["data"]


def _source(args) -> dict:
    """Where the vectors come from, checked: exactly one source, and a model where something is embedded."""
    sources = {n: getattr(args, n) for n in SOURCES if getattr(args, n) is not None}
    if len(sources) != 1:
        raise ValueError(f"give one of NPY, --texts and --images, got {' and '.join(sources) or 'none'}")
    kind, place = next(iter(sources.items()))
    if (args.model is None) != (kind == "embeddings"):
        raise ValueError(f"--model: expected {'none with embeddings' if args.model else f'the model for --{kind}'}")
    place = as_path(place, kind)
    if kind != "images":
        existing_file(place, kind)
    return {"kind": kind, "path": str(place.resolve()), **({"model": args.model} if args.model else {})}


def _vectors(args, data: dict, out: Path) -> torch.Tensor:
    """The vectors; texts and pictures are embedded, or were so already by the run that goes on."""
    if data["kind"] == "embeddings":
        return open_vectors(data["path"])
    if (out / EMBEDDED).exists():
        return open_vectors(out / EMBEDDED)
    if data["kind"] == "texts":
        texts = embed.read_texts(data["path"])
        return torch.from_numpy(embed.embed_texts(texts, data["model"], args.device, args.progress))
    return torch.from_numpy(embed.embed_images(embed.find_images(data["path"]), data["model"], args.device))


def encode(args) -> None:
    """`nhl-fast encode` on the folder of a fit."""
    output = check_output(args.output, "--output", [None if args.input is None else as_path(args.input, "--input")])
    run = FitRun.open(args.run, args.device)
    longest = run.config.code_lengths[-1]
    length = longest if args.length is None else args.length
    if not 1 <= length <= longest:
        raise ValueError(f"--length: expected 1 to {longest} bits, got {args.length}")
    if args.input is not None:
        codes = run.encode(open_vectors(args.input, "--input"), "--input")
    elif args.split in ("query", "database"):
        codes = torch.from_numpy(load_array(run.folder.codes(args.split), "run"))
    else:
        raise ValueError(f"--split: expected query or database, which a fit of vectors has, got {args.split}")
    codes = mask_tail(codes[:, : num_bytes(length)], length)
    save_array(output, codes)
    said = {"output": args.output, "codes": len(codes), "bits": length, "bytes_per_code": codes.shape[1]}
    text = f"{len(codes)} codes of {length} bits ({codes.shape[1]} bytes each) in {args.output}"
    print(json.dumps(said, indent=2) if args.json else text)


def search(args) -> None:
    """`nhl-fast search` on the folder of a fit: held-out rows against the others."""
    run = FitRun.open(args.run, args.device)
    queries, database = (torch.from_numpy(load_array(run.folder.codes(s), "run")) for s in ("query", "database"))
    wanted = args.query or [0]
    if files := [q for q in wanted if not isinstance(q, int)]:
        raise ValueError(
            f"--query: a fit of vectors takes numbers of its held-out rows, got {files[0]}; encode yours and give "
            "the codes as --queries"
        )
    if bad := [i for i in wanted if not 0 <= i < len(queries)]:
        raise ValueError(f"--query: expected 0 to {len(queries) - 1}, got {bad[0]}")
    length = run.config.code_lengths[-1] if args.length is None else args.length
    distances, ids = nearest(args, queries[wanted], database, length)
    query_rows, rows, texts = run.rows("query"), run.rows("database"), _texts(run)
    found, lines = [], []
    for i, q in enumerate(wanted):
        row = int(query_rows[q])
        answers = [{"row": int(rows[j]), "distance": d} for j, d in zip(ids[i].tolist(), distances[i].tolist())]
        found.append({"query": q, "row": row, "answers": answers})
        lines.append(f"query {q} (row {row}), {length} bits" + (f": {texts[row]}" if texts else ""))
        lines += [f"  {a['distance']}: row {a['row']}" + (f": {texts[a['row']]}" if texts else "") for a in answers]
    text = "\n".join([*lines, "(distance: row of the file of vectors, nearest first)"])
    print(json.dumps({"length": length, "queries": found}, indent=2) if args.json else text)


def _texts(run: FitRun) -> list[str]:
    """The texts of the rows, where they were embedded and still lie there."""
    if run.data["kind"] != "texts" or not Path(run.data["path"]).exists():
        return []
    texts = embed.read_texts(run.data["path"])
    return [text[:100] for text in texts] if len(texts) == run.data["rows"] else []
