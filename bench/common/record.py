"""What every benchmark shares: timing in blocks, the machine it ran on, and the files it leaves."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from nhl_fast.core.files import atomic_write

RESULTS = Path(__file__).resolve().parents[1] / "results"


def environment() -> dict:
    """Machine, versions and date, for the head of every result."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "triton", "faiss-cpu", "usearch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def alternate(functions: dict, rounds: int, repeats: dict | int) -> dict[str, list[float]]:
    """Seconds of each function, in blocks that take turns; the first call of a block only warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            count = repeats if isinstance(repeats, int) else repeats[name]
            for i in range(count + 1):
                started = time.perf_counter()
                function()
                seconds = time.perf_counter() - started
                if i:
                    times[name].append(seconds)
    return times


def median_ms(seconds: list[float]) -> float:
    """Median in milliseconds."""
    return 1000 * statistics.median(seconds)


def write(name: str, rows: list[dict], folder: Path | None = None, **extra) -> None:
    """NAME.json (with the environment) and NAME.csv in `folder` (bench/results). Rows may differ in their keys."""
    folder = RESULTS if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    document = {"environment": environment(), **extra, "rows": rows}
    with atomic_write(folder / f"{name}.json", "w") as handle:
        handle.write(json.dumps(document, indent=2) + "\n")
    with atomic_write(folder / f"{name}.csv", "w") as handle:
        names = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(handle, fieldnames=names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
