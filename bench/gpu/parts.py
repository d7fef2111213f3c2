"""The parts of a check: each `run(report, seconds, options, begun)` returns what to print, or raises RuntimeError.

`begun` is what the part's `begin(report, options)` started earlier in the call, if it did. `Incomplete` is raised
where the time was over first; the same command goes on from there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from bench.common.ceilings import measured_rates
from bench.common.record import ROOT
from bench.gpu import jobs as worker_jobs
from bench.gpu.device import DEVICE, REHEARSAL
from bench.gpu.processes import Processes, run, tail, variables
from nhl_fast.native import builder

WARMERS = 10  # processes that compile tile sizes


class Part(NamedTuple):
    """A part of a check.

    Attributes:
        begin: starts processes that go on beside other parts; None: it has none.
        measures: it times something, so no process of another part may use the device meanwhile.
        host: what `begin` starts leaves the device alone.
        again: it runs in every call, done before or not: what it makes may not be there any more.
    """

    run: Callable
    begin: Callable | None = None
    measures: bool = False
    host: bool = False
    again: bool = False


class Incomplete(RuntimeError):
    """The time was over before the part was."""


def begin_build(report, options) -> Processes | None:
    if REHEARSAL:
        return None
    major, minor = torch.cuda.get_device_capability()
    command = [sys.executable, "-m", "nhl_fast.native", "build"]
    return Processes(report, {"build": command}, NHL_FAST_CUDA="1", NHL_FAST_CUDA_ARCHITECTURES=f"{major}{minor}")


def build(report, seconds: float, options, begun) -> str:
    """The native libraries, for this card alone."""
    if begun := begun or begin_build(report, options):
        code, output = begun.wait(seconds)["build"]
        if code != 0:
            raise RuntimeError(
                f"the build {'ran out of time' if code is None else f'failed ({code})'}:\n{tail(output)}"
            )
    return tail(run(report, "backends", [sys.executable, "-m", "nhl_fast.native"], 60)[1], 6)


def rates(report, seconds: float, options, begun) -> str:
    """How fast the card counts bits (rates.cu)."""
    if REHEARSAL:
        return NO_REHEARSAL
    if (nvcc := builder.find_nvcc()) is None:
        raise RuntimeError("nvcc was not found (set CUDA_HOME)")
    architecture, program = "".join(map(str, torch.cuda.get_device_capability())), report.state / "rates"
    source = str(ROOT / "bench" / "gpu" / "rates.cu")
    command = [str(nvcc), "-O3", "-std=c++17", f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    script(report, "rates_build", [*command, "-o", str(program), source], seconds)
    text = script(report, "rates", [str(program)], seconds)
    (report.out / "rates.txt").write_text(text)
    return text


def script(report, name: str, command: list[str], seconds: float, **own) -> str:
    """The output of a process; RuntimeError where it fails, Incomplete where its time runs out."""
    code, output = run(report, name, command, seconds, **own)
    if code is None:
        raise Incomplete(f"{name} ran out of time:\n{tail(output)}")
    if code != 0:
        raise RuntimeError(f"{name} failed ({code}):\n{tail(output)}")
    return output


def ceilings(report, seconds: float, options, begun) -> str:
    for name, rate, case, ms, runs in measured_rates(DEVICE, REHEARSAL):
        report.head[name] = rate
        unit = "gb_s" if name == "copy_gb_s" else "tflop_s"
        report.add({"part": "ceilings", "case": case, "ms": ms, "runs": runs, unit: rate})
    return ""


def begin_warm(report, options) -> Processes:
    command = [sys.executable, "-m", "bench.step.device", "--warm"]
    commands = {f"warm_{name}": [*command, name] for name in options.losses}
    return Processes(report, commands, TORCHINDUCTOR_COMPILE_THREADS="2")


def begin_warm_tiles(report, options) -> Processes | None:
    if REHEARSAL:
        return None
    command = [sys.executable, "-m", "bench.step.tiles", "--of", str(WARMERS), "--warm"]
    return Processes(report, {f"warm_tiles_{i}": [*command, str(i)] for i in range(WARMERS)}, OMP_NUM_THREADS="1")


def warm(begin, report, seconds: float, options, begun) -> str:
    """Compile what later parts measure, so that their time is not spent on it."""
    if (begun := begun or begin(report, options)) is None:
        return NO_REHEARSAL
    told = begun.wait(seconds)
    notes = [f"{name.removeprefix('warm_')}: {tail(text, 6)}" for name, (_, text) in told.items() if text]
    missed = [name.removeprefix("warm_") for name, (code, _) in told.items() if code is None]
    return "\n".join(notes + ([f"cut short: {', '.join(missed)}"] if missed else []))


def measured(report) -> str:
    return json.dumps({key: value for key, value in report.head.items() if key.endswith(("gb_s", "tflop_s"))})


def jobs(part: str, report, seconds: float, arguments: list[str]) -> None:
    module = {"steps": "bench.step.device", "kernels": "bench.kernels.device"}[part]
    command = [sys.executable, "-m", module, "--rates", measured(report), *arguments]
    done = worker_jobs.supervise(
        report.jobs(part), command, seconds, report.log(part), patience=150, environment=variables()
    )
    if wrong := [row for row in worker_jobs.rows(report.jobs(part)) if row.get("note", "").startswith("wrong")]:
        cases = ", ".join(f"{r['case']} {r['n']} x {r['d']} {r.get('contender', '')}" for r in wrong)
        raise RuntimeError(f"wrong results, not timed: {cases}")
    if not done:
        raise Incomplete(f"{len(worker_jobs.finished(report.jobs(part)))} jobs done")


def steps(report, seconds: float, options, begun) -> str:
    try:
        jobs("steps", report, seconds, ["--losses", ",".join(options.losses)])
    except Incomplete as error:
        raise Incomplete(f"{error}\n{summary(report.rows())}") from None
    return summary(report.rows())


def summary(rows) -> str:
    """How many times faster than each other contender ours is, and how much less memory it takes."""
    lines = []
    timed = [r for r in rows if r.get("part") == "steps" and "ms" in r]
    same = ("case", "n", "d", "dtype", "tf32", "distill", "weighed")
    for own in (r for r in timed if r["contender"] == "nhl_fast triton"):
        for other in timed:
            if other["contender"] == own["contender"] or any(own.get(key) != other.get(key) for key in same):
                continue
            # With graphs on both sides where the other has one; the literal procedure cannot be captured.
            alone = not any(r["graph"] and r["contender"] == other["contender"] for r in timed
                            if all(r.get(key) == own.get(key) for key in same))  # fmt: skip
            if own["graph"] != other["graph"] and not (own["graph"] and alone):
                continue
            tf32 = " tf32" if own["tf32"] else ""
            lines.append(
                f"{own['case']:<6}{own['n']:>6} x {own['d']:<5}{own['dtype'] + tf32:<14}graph={own['graph']!s:<6}"
                f"{other['ms'] / own['ms']:>8.2f} times as fast as {other['contender']} (graph={other['graph']}), "
                f"peak memory {other['peak_mb']} MB against {own['peak_mb']}"
            )
    return "\n".join(lines)


def kernels(report, seconds: float, options, begun) -> str:
    jobs("kernels", report, seconds, [])
    rows = [r for r in report.rows() if r.get("part") == "kernels" and "of_floor" in r]
    return "\n".join(
        f"{r['case']:<14}{r['n']:>6} x {r['d']:<5}{r['dtype']:<9}{r['ms']:>9.4f} ms, {100 * r['of_floor']:>5.1f}% of "
        f"the floor by {r['bound']}" for r in rows
    )  # fmt: skip


def pytest_command(paths: list[str], workers: int) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-m", "not slow", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["-p", "bench.gpu.instant_failures", "--tb=short"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(workers, os.cpu_count() or 1)))]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout", "120"]
    return command + paths


def suites(which: dict[str, tuple[int, list[str]]], report, seconds: float, options, begun) -> str:
    """Suites of tests, side by side: {name: (workers, arguments of pytest)}."""
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed here")
    commands = {name: pytest_command(paths, workers) for name, (workers, paths) in which.items()}
    told, cut, wrong = [], False, []
    for name, (code, output) in Processes(report, commands).wait(seconds).items():
        passed, failed = output.count("PASSED"), sorted(set(re.findall(r"^FAILED (\S+)", output, re.MULTILINE)))
        told += [f"{name}: {passed} passed, {len(failed)} failed", *failed[:40]]
        cut |= code is None
        wrong += [tail(output)] if code else []
    if wrong:
        raise RuntimeError("\n".join(told + wrong))
    if cut:
        raise Incomplete("\n".join(told))
    return "\n".join(told)


def scan(report, seconds: float, options, begun) -> str:
    """Top-k by each unit that counts bits: the operator alone."""
    if REHEARSAL:
        return NO_REHEARSAL
    command = [sys.executable, "-m", "bench.search.scan", "--seconds", str(0.75 * seconds)]
    return tail(script(report, "scan", command, seconds, OUT=str(report.out)), 60)


def hamming(report, seconds: float, options, begun) -> str:
    if REHEARSAL:
        return NO_REHEARSAL
    # The script starts no case that would not end in its time; a tenth is left for the one it is in.
    command = [sys.executable, "-m", "bench.search.hamming", "--device", "cuda", "--seconds", str(0.9 * seconds)]
    return tail(script(report, "hamming", command, seconds, OUT=str(report.out)), 60)


def placed(report, seconds: float, options, begun) -> str:
    """An index on the card: resident, streamed, and half of each; in a rehearsal on CPUs."""
    command = [sys.executable, "-m", "bench.search.placed", "--device", DEVICE, "--seconds", str(0.8 * seconds)]
    command += ["--n", "20000"] if REHEARSAL else []
    return tail(script(report, "placed", command, seconds, OUT=str(report.out)), 20)


def profile(report, seconds: float, options, begun) -> str:
    if REHEARSAL:
        return NO_REHEARSAL
    text = script(report, "profile", [sys.executable, "-m", "bench.gpu.profile"], seconds)
    (report.out / "profile.txt").write_text(text)
    return tail(text, 60)


def tiles(report, seconds: float, options, begun) -> str:
    if REHEARSAL:
        return NO_REHEARSAL
    command = [sys.executable, "-m", "bench.step.tiles", "--seconds", str(0.9 * seconds)]
    return tail(script(report, "tiles", [*command, "--out", str(report.out / "tiles.jsonl")], seconds), 5)


NO_REHEARSAL = "not part of a rehearsal"
if REHEARSAL:
    DEVICE_TESTS = OTHER_TESTS = {"tests_device": (2, ["tests/test_codes.py"])}
    KERNEL_TESTS = {"tests_kernels": (2, ["tests/triton/test_weighting.py", "-k", "opcheck"])}
else:
    DEVICE_TESTS = {
        "tests_device": (8, ["tests/test_native_cuda.py", "-k", "device or refused"]),
        "tests_index": (4, ["tests/test_index_device.py", "-k", "cuda or larger"]),
    }
    # What ahead-of-time compilation says needs no card.
    others = [f"--ignore=tests/triton/test_{name}.py" for name in ("aot", "step")]
    KERNEL_TESTS = {
        "tests_steps": (4, ["tests/triton/test_step.py"]),
        "tests_kernels": (6, ["tests/triton", *others]),
        "tests_graphs": (2, ["tests/test_graphs.py"]),
    }
    OTHER_TESTS = {"tests_rest": (8, ["tests", "--ignore=tests/triton"])}
PARTS = {
    "build": Part(build, begin_build, host=True, again=True),
    "rates": Part(rates, measures=True),
    "ceilings": Part(ceilings, measures=True),
    "tests_device": Part(partial(suites, DEVICE_TESTS)),
    "warm": Part(partial(warm, begin_warm), begin_warm, again=True),
    "tests_kernels": Part(partial(suites, KERNEL_TESTS)),
    "steps": Part(steps, measures=True),
    "scan": Part(scan, measures=True),
    "hamming": Part(hamming, measures=True),
    "placed": Part(placed, measures=True),
    "kernels": Part(kernels, measures=True),
    "profile": Part(profile, measures=True),
    "warm_tiles": Part(partial(warm, begin_warm_tiles), begin_warm_tiles, again=True),
    "tiles": Part(tiles, measures=True),
    "tests_rest": Part(partial(suites, OTHER_TESTS)),
}
