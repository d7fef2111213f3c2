"""What a benchmark leaves: its rows, with the machine that it ran on."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from importlib import metadata
from pathlib import Path

import torch

from nhl_fast.core.environment import environment as machine
from nhl_fast.core.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"


def out_folder() -> Path:
    """Where results go: $OUT, or else bench/results."""
    return Path(os.environ.get("OUT") or RESULTS)


def environment() -> dict:
    """Date, machine, versions and command, for the head of every result."""
    found = machine("cuda" if torch.cuda.is_available() else None)
    for name in ("triton", "faiss-cpu", "usearch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["versions"][name] = metadata.version(name)
    return {**found, "command": " ".join(["python", *sys.orig_argv[1:]])}


def markdown(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    return "\n".join(
        f"| {' | '.join(map(str, row))} |" if row else "|---" * len(head) + "|" for row in (head, None, *rows)
    )


def write(name: str, rows: list[dict], folder: Path | None = None, **extra) -> None:
    """NAME.json (with the environment) and NAME.csv in `folder` ($OUT, or bench/results). Rows' keys may differ."""
    folder = out_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    document = {"environment": environment(), **extra, "rows": rows}
    with atomic_write(folder / f"{name}.json", "w") as handle:
        handle.write(json.dumps(document, indent=2) + "\n")
    with atomic_write(folder / f"{name}.csv", "w") as handle:
        names = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(handle, fieldnames=names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
