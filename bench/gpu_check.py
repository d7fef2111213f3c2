"""Everything that only a GPU can say, in one command and under ten minutes.

    python bench/gpu_check.py [--parts build,tests,ceilings,steps,hamming] [--budget 540] [--losses csq] [--out DIR]

build     compiles the native libraries (NHL_FAST_CUDA=1) in the checkout
tests     runs the test suite with the kernels really compiled
ceilings  measures this card's copy bandwidth and matrix rates
steps     per loss and size: our step, the reference (eager and torch.compile) and the literal procedure
hamming   the Hamming benchmarks on the device

Results go to $OUT if it is set, else to --out or bench/results: gpu_check.json and gpu_check.csv, rewritten after
every row, and a log for each subprocess. Nothing is timed whose gradient is wrong. Without a CUDA device: exit code
2. A part that fails, or runs out of its share of the time, is reported, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import torch  # noqa: E402
from record import environment  # noqa: E402

PARTS = ("build", "tests", "ceilings", "steps", "hamming")
# Shares of the total time; what a part does not use goes to those after it.
SHARES = {"build": 0.2, "tests": 0.3, "ceilings": 0.03, "steps": 0.37, "hamming": 0.1}


class Report:
    """Rows and notes of a run, on disk after every change."""

    def __init__(self, folder: Path):
        self.folder, self.rows, self.parts = folder, [], {}
        folder.mkdir(parents=True, exist_ok=True)
        self.head = environment()
        self.head["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        self.head["cuda"] = torch.version.cuda

    def add(self, row: dict) -> None:
        self.rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items() if value not in (None, "")), flush=True)
        self.save()

    def save(self) -> None:
        document = {"environment": self.head, "parts": self.parts, "rows": self.rows}
        self._replace("gpu_check.json", lambda file: file.write(json.dumps(document, indent=2) + "\n"))
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        if names:
            self._replace("gpu_check.csv", lambda file: self._table(file, names))

    def _table(self, file, names) -> None:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(self.rows)

    def _replace(self, name: str, write) -> None:
        path = self.folder / name
        temporary = path.with_suffix(path.suffix + ".part")
        with open(temporary, "w", newline="") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def run(report: Report, name: str, command: list[str], seconds: float, **variables) -> tuple[int | None, str]:
    """(exit code or None where time ran out, output) of a subprocess in the checkout; its output goes to NAME.log."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    environment.pop("TRITON_INTERPRET", None)
    log = report.folder / f"{name}.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the group that was started here: the process and its workers
            process.wait()
            code = None
    return code, log.read_text(errors="replace")


def tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.splitlines()[-lines:])


def build(report: Report, seconds: float, options) -> str:
    code, output = run(
        report, "build", [sys.executable, "-m", "nhl_fast.native", "build"], seconds, NHL_FAST_CUDA="1"
    )
    if code != 0:
        raise RuntimeError(f"the build {'ran out of time' if code is None else f'failed ({code})'}:\n{tail(output)}")
    code, output = run(report, "backends", [sys.executable, "-m", "nhl_fast.native"], 60)
    return tail(output, 6)


def tests(report: Report, seconds: float, options) -> str:
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed here")
    # The kernels' own tests first: if time runs out, they are what this machine is for.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-o", "addopts="]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    failures, lines, ends = [], [], time.monotonic() + seconds
    for name, paths in (("tests_kernels", ["tests/triton"]), ("tests_rest", ["tests", "--ignore=tests/triton"])):
        code, output = run(report, name, command + paths, ends - time.monotonic())
        lines.append(f"{name}: {tail(output, 1) if code is not None else 'ran out of time, see ' + name + '.log'}")
        if code != 0:
            failures.append(f"{name}:\n{tail(output)}")
    if failures:
        raise RuntimeError("\n".join(failures))
    return "\n".join(lines)


def milliseconds(function, budget_s: float = 0.4) -> tuple[float, int]:
    """(median milliseconds by device events, runs) of a function, warm."""
    function()
    torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    torch.cuda.synchronize()
    once = time.perf_counter() - started
    runs = int(max(3, min(200, budget_s / max(once, 1e-6))))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for begin, end in events:
        begin.record()
        function()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in events)
    return times[len(times) // 2], runs


def ceilings(report: Report, seconds: float, options) -> str:
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    ms, runs = milliseconds(partial(target.copy_, source))
    report.head["copy_gb_s"] = round(2 * source.numel() * 4 / ms / 1e6, 1)
    report.add({"part": "ceilings", "case": "copy, bytes read and written", "ms": ms, "runs": runs,
                "gb_s": report.head["copy_gb_s"]})  # fmt: skip
    del source, target
    n = 8192
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (("fp32", torch.float32, False), ("tf32", torch.float32, True),
                              ("bf16", torch.bfloat16, False)):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        ms, runs = milliseconds(partial(torch.matmul, a, b))
        report.head[f"matmul_{name}_tflop_s"] = round(2 * n**3 / ms / 1e9, 1)
        report.add({"part": "ceilings", "case": f"matrix product {name}, {n}", "ms": ms, "runs": runs,
                    "tflop_s": report.head[f"matmul_{name}_tflop_s"]})  # fmt: skip
    torch.backends.cuda.matmul.allow_tf32 = before
    return ""


def steps(report: Report, seconds: float, options) -> str:
    from gpu_steps import measure_steps

    return measure_steps(report, seconds, options.losses.split(",") if options.losses else None, milliseconds)


def hamming(report: Report, seconds: float, options) -> str:
    scripts = [p for p in sorted(HERE.glob("bench_hamming*.py")) if "--device" in p.read_text()]
    if not scripts:
        return "no Hamming benchmark takes --device here yet"
    ends, lines = time.monotonic() + seconds, []
    for script in scripts:
        code, output = run(
            report, script.stem, [sys.executable, str(script), "--device", "cuda"], ends - time.monotonic(),
            OUT=str(report.folder),
        )  # fmt: skip
        if code != 0:
            raise RuntimeError(f"{script.name} {'ran out of time' if code is None else code}:\n{tail(output)}")
        lines.append(f"{script.name}:\n{tail(output)}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--budget", type=float, default=540, help="seconds in all")
    parser.add_argument("--losses", default="", help="for the part steps; all ten if empty")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where results go unless $OUT is set")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--parts: unknown {', '.join(unknown)}; it takes {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print(
            "gpu_check: PyTorch sees no CUDA device, and every number here needs one. On a CPU the kernels are "
            "tested by `pytest tests/triton` in Triton's interpreter.",
            file=sys.stderr,
        )
        return 2
    report = Report(Path(os.environ["OUT"]) if os.environ.get("OUT") else options.out)
    functions = {"build": build, "tests": tests, "ceilings": ceilings, "steps": steps, "hamming": hamming}
    ends, left = time.monotonic() + options.budget, sum(SHARES[p] for p in parts)
    for name in [p for p in PARTS if p in parts]:
        allowed = (ends - time.monotonic()) * SHARES[name] / left
        left -= SHARES[name]
        started = time.monotonic()
        print(f"== {name} ({allowed:.0f} s)", flush=True)
        try:
            note, state = functions[name](report, allowed, options), "done"
        except Exception as error:
            note, state = str(error) if isinstance(error, RuntimeError) else traceback.format_exc(), "failed"
        report.parts[name] = {"state": state, "seconds": round(time.monotonic() - started, 1), "note": note[-4000:]}
        print(f"{name}: {state} in {report.parts[name]['seconds']} s\n{note[-3000:]}", flush=True)
        report.save()
    print(f"results: {report.folder / 'gpu_check.json'}")
    return int(any(part["state"] == "failed" for part in report.parts.values()))


if __name__ == "__main__":
    sys.exit(main())
