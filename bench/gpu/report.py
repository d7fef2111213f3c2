"""What the GPU checks found, on disk after every change, so that a check which was cut short can go on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
from pathlib import Path

import torch

from bench.common.record import ROOT, environment, markdown
from bench.gpu import jobs
from bench.gpu.device import REHEARSAL

JOBS = ("steps", "kernels")  # parts whose rows come from jobs


def fingerprint() -> str:
    """Of everything that is measured: results of other sources, PyTorch or device are not gone on with."""
    digest = hashlib.sha256()
    files = [p for folder in ("kernels", "nhl_fast", "csrc") for p in (ROOT / folder).rglob("*")]
    for path in sorted(p for p in files if p.suffix in (".py", ".cpp", ".cu", ".h", ".cuh", ".inl")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(f"{torch.__version__} {device_name()} {REHEARSAL}".encode())
    return digest.hexdigest()[:16]


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def card() -> str:
    """Driver and clocks, as nvidia-smi tells them; "" where it does not."""
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.sm,clocks.mem", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class Report:
    """Rows and parts of a check. `state` keeps them between runs, `out` gets what a person reads."""

    def __init__(self, state: Path, out: Path, fresh: bool = False):
        self.state, self.out = state, out
        state.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        if not fresh:
            fresh = self._load() != fingerprint()
        if fresh:
            for path in filter(Path.is_file, state.iterdir()):
                path.unlink()
            self.head, self.parts, self.own = {"fingerprint": fingerprint()}, {}, []
        self.head |= environment()
        if torch.cuda.is_available():
            self.head["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
            self.head["cuda"] = torch.version.cuda
            self.head["card"] = card()
        if REHEARSAL:
            self.head["rehearsal"] = "on a CPU, at tiny sizes: none of these times means anything"
        self.save()

    def _load(self) -> str | None:
        try:
            found = json.loads((self.state / "state.json").read_text())
            self.head, self.parts, self.own = found["environment"], found["parts"], found["rows"]
            return self.head["fingerprint"]
        except (OSError, ValueError, KeyError):
            return None

    def jobs(self, part: str) -> Path:
        """The file of JSON lines of a part that is made of jobs."""
        return self.state / f"{part}.jsonl"

    def log(self, name: str) -> Path:
        return self.state / f"{name}.log"

    def rows(self) -> list[dict]:
        return self.own + [row for part in JOBS for row in jobs.rows(self.jobs(part))]

    def add(self, row: dict) -> None:
        self.own.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items() if value not in (None, "")), flush=True)
        self.save()

    def save(self) -> None:
        rows = self.rows()
        state = {"environment": self.head, "parts": self.parts, "rows": self.own}
        _replace(self.state / "state.json", json.dumps(state))
        _replace(self.out / "gpu_check.json", json.dumps(state | {"rows": rows}, indent=2) + "\n")
        _replace(self.out / "gpu_check.md", self.markdown(rows))
        names = list(dict.fromkeys(name for row in rows for name in row))
        with _temporary(self.out / "gpu_check.csv") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)
        logs = [f"==== {path.stem}\n{path.read_text(errors='replace')}" for path in sorted(self.state.glob("*.log"))]
        _replace(self.out / "gpu_check.log", "\n".join(logs))

    def markdown(self, rows: list[dict]) -> str:
        """The report to read: the card, what became of every part, what it said, and the times."""
        head = [[name, json.dumps(value) if isinstance(value, dict) else value] for name, value in self.head.items()]
        lines = ["# What a card said", "", markdown(["", ""], [[n, str(v).replace("\n", "; ")] for n, v in head]), ""]
        parts = [[name, part["state"], part["seconds"]] for name, part in self.parts.items()]
        lines += [markdown(["part", "state", "seconds"], parts), ""]
        for name, part in self.parts.items():
            if part["note"].strip():
                lines += [f"## {name}", "", "```", part["note"].strip(), "```", ""]
        told = ("case", "n", "d", "dtype", "contender", "graph", "ms", "note")
        timed = [[row.get(key, "") for key in told] for row in rows if row.get("part") == "steps"]
        if timed:
            lines += ["## Times of steps", "", markdown([*told], timed), ""]
        return "\n".join(lines)


class _temporary:
    """An open file that takes its place when the block succeeds."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(path.name + ".part")

    def __enter__(self):
        self.file = open(self.part, "w", newline="")
        return self.file

    def __exit__(self, kind, *_):
        self.file.close()
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink()


def _replace(path: Path, text: str) -> None:
    with _temporary(path) as file:
        file.write(text)
