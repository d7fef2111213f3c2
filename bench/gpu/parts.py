"""The parts of check.py: each `part(report, seconds, options)` returns what to print, or raises RuntimeError.

`Incomplete` is raised where the time was over first; the same command goes on from there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from bench.common.timing import copy_gb_s
from bench.gpu import jobs as worker_jobs
from bench.gpu.device import DEVICE, REHEARSAL, milliseconds

ROOT = Path(__file__).resolve().parents[2]


class Incomplete(RuntimeError):
    """The time was over before the part was."""


def environment(**variables) -> dict:
    """Of a subprocess: this checkout can be imported, and kernels are interpreted in a rehearsal alone."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": path, **variables}
    if not REHEARSAL:
        found.pop("TRITON_INTERPRET", None)
    return found


def run(report, name: str, command: list[str], seconds: float, **variables) -> tuple[int | None, str]:
    """(exit code or None where time ran out, output) of a subprocess in the checkout; its output is in its log."""
    with open(report.log(name), "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**variables), stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the group that was started here: the process and its workers
            process.wait()
            code = None
    return code, report.log(name).read_text(errors="replace")


def tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.splitlines()[-lines:])


def build(report, seconds: float, options) -> str:
    """The native libraries, for this card alone."""
    if not REHEARSAL:
        major, minor = torch.cuda.get_device_capability()
        code, output = run(
            report, "build", [sys.executable, "-m", "nhl_fast.native", "build"], seconds, NHL_FAST_CUDA="1",
            NHL_FAST_CUDA_ARCHITECTURES=f"{major}{minor}",
        )  # fmt: skip
        if code != 0:
            raise RuntimeError(
                f"the build {'ran out of time' if code is None else f'failed ({code})'}:\n{tail(output)}"
            )
    return tail(run(report, "backends", [sys.executable, "-m", "nhl_fast.native"], 60)[1], 6)


def measured_rates():
    """(name, rate, case, milliseconds, runs) of what the card can do at most: bytes copied, large matrix products."""
    elements, n = (1 << 16, 64) if REHEARSAL else (1 << 28, 8192)
    rate, ms, runs = copy_gb_s(DEVICE, elements)
    yield "copy_gb_s", rate, "copy, bytes read and written", ms, runs
    before = torch.backends.cuda.matmul.fp32_precision
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
        ms, runs = milliseconds(partial(torch.matmul, a, b))
        torch.backends.cuda.matmul.fp32_precision = before
        yield f"matmul_{name}_tflop_s", round(2 * n**3 / ms / 1e9, 3), f"matrix product {name}, {n}", ms, runs


def ceilings(report, seconds: float, options) -> str:
    for name, rate, case, ms, runs in measured_rates():
        report.head[name] = rate
        unit = "gb_s" if name == "copy_gb_s" else "tflop_s"
        report.add({"part": "ceilings", "case": case, "ms": ms, "runs": runs, unit: rate})
    return ""


def losses_of(options) -> list[str]:
    from nhl_fast.losses import REGISTRY

    return options.losses.split(",") if options.losses else [*REGISTRY]


def warm(report, seconds: float, options) -> str:
    """Compile what the steps need, a process a loss, so that their time is not spent on it."""
    ends = time.monotonic() + seconds
    processes = {}
    for name in losses_of(options):
        with open(report.log(f"warm_{name}"), "w") as file:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "bench.step.device", "--warm", name], cwd=ROOT,
                env=environment(TORCHINDUCTOR_COMPILE_THREADS="2"), stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
    missed = []
    for name, process in processes.items():
        try:
            process.wait(timeout=max(ends - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the group that was started here
            process.wait()
            missed.append(name)
    told = {name: tail(report.log(f"warm_{name}").read_text(errors="replace"), 6) for name in processes}
    notes = [f"{name}: {text}" for name, text in told.items() if text]
    return "\n".join(notes + ([f"cut short: {', '.join(missed)}"] if missed else []))


def rates(report) -> str:
    return json.dumps({key: value for key, value in report.head.items() if key.endswith(("gb_s", "tflop_s"))})


def jobs(part: str, report, seconds: float, arguments: list[str]) -> None:
    module = {"steps": "bench.step.device", "kernels": "bench.kernels.device"}[part]
    command = [sys.executable, "-m", module, "--rates", rates(report), *arguments]
    done = worker_jobs.supervise(
        report.jobs(part), command, seconds, report.log(part), patience=150, environment=environment()
    )
    if wrong := [row for row in worker_jobs.rows(report.jobs(part)) if row.get("note", "").startswith("wrong")]:
        cases = ", ".join(f"{r['case']} {r['n']} x {r['d']} {r.get('contender', '')}" for r in wrong)
        raise RuntimeError(f"wrong results, not timed: {cases}")
    if not done:
        raise Incomplete(f"{len(worker_jobs.finished(report.jobs(part)))} jobs done")


def steps(report, seconds: float, options) -> str:
    try:
        jobs("steps", report, seconds, ["--losses", options.losses] if options.losses else [])
    except Incomplete as error:
        raise Incomplete(f"{error}\n{summary(report.rows())}") from None
    return summary(report.rows())


def summary(rows) -> str:
    """How many times faster than each other contender ours is, and how much less memory it takes."""
    lines = []
    timed = [r for r in rows if r.get("part") == "steps" and "ms" in r]
    same = ("case", "n", "d", "dtype", "tf32", "distill")
    for own in (r for r in timed if r["contender"] == "nhl_fast triton"):
        for other in timed:
            if other["contender"] == own["contender"] or any(own[key] != other[key] for key in same):
                continue
            # With graphs on both sides where the other has one; the literal procedure cannot be captured.
            alone = not any(r["graph"] and r["contender"] == other["contender"] for r in timed
                            if all(r[key] == own[key] for key in same))  # fmt: skip
            if own["graph"] != other["graph"] and not (own["graph"] and alone):
                continue
            tf32 = " tf32" if own["tf32"] else ""
            lines.append(
                f"{own['case']:<6}{own['n']:>6} x {own['d']:<5}{own['dtype'] + tf32:<14}graph={own['graph']!s:<6}"
                f"{other['ms'] / own['ms']:>8.2f} times as fast as {other['contender']} (graph={other['graph']}), "
                f"peak memory {other['peak_mb']} MB against {own['peak_mb']}"
            )
    return "\n".join(lines)


def kernels(report, seconds: float, options) -> str:
    jobs("kernels", report, seconds, [])
    rows = [r for r in report.rows() if r.get("part") == "kernels" and "of_floor" in r]
    return "\n".join(
        f"{r['case']:<14}{r['n']:>6} x {r['d']:<5}{r['dtype']:<9}{r['ms']:>9.4f} ms, {100 * r['of_floor']:>5.1f}% of "
        f"the floor by {r['bound']}" for r in rows
    )  # fmt: skip


def pytest_command(paths: list[str]) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-m", "not slow", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["-p", "bench.gpu.instant_failures", "--tb=short"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout", "120"]
    return command + paths


def tests(name: str, paths: list[str], report, seconds: float, options) -> str:
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed here")
    code, output = run(report, name, pytest_command(paths), seconds)
    passed, failed = output.count("PASSED"), sorted(set(re.findall(r"^FAILED (\S+)", output, re.MULTILINE)))
    told = "\n".join([f"{passed} passed, {len(failed)} failed", *failed[:40]])
    if code is None:
        raise Incomplete(told)
    if code != 0:
        raise RuntimeError(f"{told}\n{tail(output)}")
    return told


def hamming(report, seconds: float, options) -> str:
    if REHEARSAL:
        return "not part of a rehearsal: bench.search.hamming has its own tests"
    # The script starts no case that would not end in its time; a tenth is left for the one it is in.
    command = [sys.executable, "-m", "bench.search.hamming", "--device", "cuda", "--seconds", str(0.9 * seconds)]
    code, output = run(report, "hamming", command, seconds, OUT=str(report.out))
    if code != 0:
        raise RuntimeError(
            f"bench.search.hamming {'ran out of time' if code is None else f'failed ({code})'}:\n{tail(output)}"
        )
    return tail(output, 60)


KERNEL_TESTS = ["tests/triton/test_weighting.py", "-k", "opcheck"] if REHEARSAL else ["tests/triton"]
DEVICE_TESTS = ["tests/test_codes.py"] if REHEARSAL else ["tests/test_native_cuda.py", "-k", "device or refused"]
OTHER_TESTS = ["tests/test_codes.py" if REHEARSAL else "tests", "--ignore=tests/triton"]
PARTS = {
    "build": build,
    "ceilings": ceilings,
    "tests_device": partial(tests, "tests_device", DEVICE_TESTS),
    "warm": warm,
    "steps": steps,
    "tests_kernels": partial(tests, "tests_kernels", KERNEL_TESTS),
    "kernels": kernels,
    "hamming": hamming,
    "tests_rest": partial(tests, "tests_rest", OTHER_TESTS),
}
