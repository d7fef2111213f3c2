"""bench/gpu without a GPU: what it refuses, how it goes on after a crash, a hang or the end of its time."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from bench.common import losses
from bench.gpu import calls, check, jobs, parts, processes
from bench.gpu import report as reports
from bench.kernels import floors
from bench.search import device as search
from bench.search import placed as searches
from bench.step import device as steps
from nhl_fast.index import placed_search

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device(capsys, tmp_path):
    assert check.main(["--state", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "build,fly"], "unknown fly"),
        (["--losses", "csq,cross-entropy"], "unknown cross-entropy"),
        (["--parts", ""], "expected some of build"),
        (["first", "--parts", "hamming,tiles"], "the first call has none of hamming, tiles"),
        (["third"], "invalid choice: 'third'"),
        (["--budget", "-1"], "positive number of seconds"),
        (["--budget", "long"], "invalid float"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        check.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


WORKER = """
import os, sys, time
from pathlib import Path
from bench.gpu.jobs import work

def good(x):
    yield {{"case": x, "ms": 1.0}}

def bad():
    yield {{"case": "bad", "ms": 1.0}}
    raise ValueError("boom\\nand more")

def crash():
    yield {{"case": "crash", "ms": 1.0}}
    os._exit(9)

def hang():
    yield from ()
    time.sleep(60)

def slow():
    time.sleep(0.6)
    yield {{"case": "slow", "ms": 2.0}}

jobs = {{"first": lambda: good("first"), "bad": bad, "crash": crash, "hang": hang, "slow": slow,
        "last": lambda: good("last")}}
lost = Path({folder!r}) / "lost"

def alive():
    if lost.exists():
        return True
    lost.touch()
    return False

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("worker", flush=True)
sys.exit(work(Path(options["--rows"]), jobs, float(options["--seconds"]), alive))
"""


def test_jobs_go_on_after_a_failure_a_lost_device_a_crash_and_a_hang(tmp_path):
    script, path, log = tmp_path / "worker.py", tmp_path / "rows.jsonl", tmp_path / "log"
    script.write_text(WORKER.format(folder=str(tmp_path)))
    command = [sys.executable, str(script)]
    assert jobs.supervise(path, command, 60, log, patience=2.5, environment=processes.variables()) is True
    notes = {row["case"]: row.get("note") for row in jobs.rows(path)}
    assert notes == {
        "first": None, "bad": "ValueError: boom", "crash": "the process ended with code 9",
        "hang": "gave up after 2 s", "slow": None, "last": None,
    }  # fmt: skip
    # Once more after the lost device, the crash and the hang; every job ran once.
    assert log.read_text().count("worker") == 4
    assert [r["case"] for r in jobs.rows(path)].count("first") == 1
    assert jobs.supervise(path, command, 20, log, environment=processes.variables()) is True
    assert len(jobs.rows(path)) == 8


def test_jobs_stop_with_the_time_and_give_their_rows_once(tmp_path):
    path = tmp_path / "rows.jsonl"

    def two():
        yield {"case": "a"}
        yield {"case": "b"}

    assert jobs.work(path, {"x": two}, -1) == jobs.OUT_OF_TIME
    assert jobs.rows(path) == []
    for record in ({"started": "x"}, {"row": {"case": "a"}}):  # a worker that was ended in the middle of a job
        jobs.append(path, record)
    with open(path, "a") as file:
        file.write('{"row": {"ca')
        file.write("\n")
    assert jobs.under_way(path) == "x"
    assert jobs.rows(path) == []
    assert jobs.work(path, {"x": two}, 10) == 0
    assert [r["case"] for r in jobs.rows(path)] == ["a", "b"]
    assert jobs.work(path, {"x": two}, 10) == 0
    assert len(jobs.rows(path)) == 2


def test_a_worker_that_cannot_begin_is_told(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such device')"]
    with pytest.raises(RuntimeError, match="no such device"):
        jobs.supervise(tmp_path / "rows", command, 20, tmp_path / "log")


def options(**given):
    return types.SimpleNamespace(budget=20, losses=["csq"], **given)


def test_parts_that_are_done_are_not_run_again(tmp_path, monkeypatch, capsys):
    runs, broken, ended = [], [True], []

    class Begun:
        def __init__(self, report, options):
            self.report = report

        def end(self):
            ended.append(self)

    def build(report, seconds, options, begun):
        assert isinstance(begun, Begun)
        runs.append(("build", seconds))
        return "built"

    def rates(report, seconds, options, begun):
        assert begun is None
        runs.append(("rates", seconds))
        report.add({"part": "ceilings", "case": "x", "ms": 1.0})
        return "measured"

    def steps(report, seconds, options, begun):
        runs.append(("steps", seconds))
        if broken:
            raise parts.Incomplete("3 jobs done")
        return "all"

    def hamming(report, seconds, options, begun):
        runs.append(("hamming", seconds))
        if broken:
            raise ValueError("odd")
        return ""

    monkeypatch.setattr(
        check,
        "PARTS",
        {
            "build": parts.Part(build, Begun, again=True),
            "rates": parts.Part(rates),
            "steps": parts.Part(steps),
            "hamming": parts.Part(hamming),
            "warm": parts.Part(None, Begun),
        },
    )
    plan = calls.call(20, "build& rates:4 build:6 steps:6 hamming:4").plan
    made = reports.Report(tmp_path / "state", tmp_path / "out")
    assert not check.check(made, plan, options())
    assert {name: part["state"] for name, part in made.parts.items()} == {
        "rates": "done", "build": "done", "steps": "incomplete", "hamming": "failed",
    }  # fmt: skip
    assert "ValueError: odd" in made.parts["hamming"]["note"]
    assert [name for name, _ in runs] == ["rates", "build", "steps", "hamming"]
    assert sum(seconds for _, seconds in runs) > 20  # time that was not used goes to the parts after
    assert check.left_over(made, plan) == ["steps", "hamming"]
    broken.clear()
    again = reports.Report(tmp_path / "state", tmp_path / "out")
    assert check.check(again, plan, options())
    # The build is another's to keep: it runs in every call.
    assert [name for name, _ in runs[4:]] == ["build", "steps", "hamming"]
    assert "rates: done before" in capsys.readouterr().out
    assert not ended
    written = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert written["rows"] == [{"part": "ceilings", "case": "x", "ms": 1.0}]
    assert (tmp_path / "out" / "gpu_check.csv").read_text().splitlines() == ["part,case,ms", "ceilings,x,1.0"]
    told = (tmp_path / "out" / "gpu_check.md").read_text()
    assert "| steps | done |" in told
    assert "## rates\n\n```\nmeasured\n```" in told
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".csv", ".json", ".log", ".md"]
    # What was begun is ended where its turn does not come.
    assert not check.check(again, (("warm", None), *plan), options())
    assert len(ended) == 1


def test_processes_that_run_out_of_time_are_ended_with_their_children(tmp_path):
    report, beats = reports.Report(tmp_path / "state", tmp_path / "out"), tmp_path / "beats"
    child = f"import time\nwhile True: print('x', file=open({str(beats)!r}, 'a')); time.sleep(0.02)"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begun = processes.Processes(
        report, {"quick": [sys.executable, "-c", "print('done')"], "slow": [sys.executable, "-c", parent]}
    )
    until = time.monotonic() + 60
    while not beats.exists() or begun.running["quick"].poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert begun.wait(0.2) == {"quick": (0, "done\n"), "slow": (None, "begun\n")}
    assert begun.running["slow"].returncode == -signal.SIGKILL
    time.sleep(0.2)
    size = beats.stat().st_size
    time.sleep(0.3)
    assert beats.stat().st_size == size


@pytest.mark.parametrize("name", calls.CALLS)
def test_calls_have_an_order_that_measures_undisturbed(name):
    call, begun, ended = calls.CALLS[name], set(), []
    for part, seconds in call.plan:
        if seconds is None:
            assert parts.PARTS[part].begin is not None
            begun.add(part)
            continue
        if parts.PARTS[part].measures:
            assert {other for other in begun if not parts.PARTS[other].host} == set(), f"{part} is disturbed"
        begun.discard(part)
        ended.append(part)
    assert not begun
    assert len(set(ended)) == len(ended)
    assert sum(seconds or 0 for _, seconds in call.plan) == call.seconds == {"first": 300, "second": 470}[name]
    # Rates and the tests that only a card can fail come before times, those of steps before all others.
    wanted = ["rates", "ceilings", "build", "tests_device", "tests_kernels", "steps"]
    assert [part for part in ended if part in wanted] == wanted
    if name == "second":
        assert set(ended) == set(parts.PARTS)
        assert ended.index("hamming") < ended.index("profile") < ended.index("tiles") < ended.index("tests_rest")
    for part in ended[: ended.index("steps")]:
        assert part.startswith(("build", "rates", "ceilings", "tests", "warm"))


def test_searches_come_before_the_protocols(monkeypatch):
    order = []
    monkeypatch.setattr(search, "measure_search", lambda run, n, bits: order.append((n, bits)))
    monkeypatch.setattr(search.Measurement, "case", lambda run, what, function, counts: order.append(what))
    search.measure("cpu", "auto", 60, lambda rows: None, search.Sizes(copied=1 << 10), 0.0)
    assert order[:4] == [(10**6, 128), (10**7, 128), (10**8, 128), "evaluation cifar10"]


def test_other_sources_are_not_gone_on_with(tmp_path, monkeypatch):
    first = reports.Report(tmp_path / "state", tmp_path / "out")
    first.add({"part": "ceilings", "ms": 1.0})
    jobs.append(first.jobs("steps"), {"finished": "x"})
    assert reports.Report(tmp_path / "state", tmp_path / "out").own == first.own
    for change in ({"fresh": True}, {}):
        if not change:
            monkeypatch.setattr(reports, "fingerprint", lambda: "another")
        second = reports.Report(tmp_path / "state", tmp_path / "out", **change)
        assert (second.own, second.parts) == ([], {})
        assert not second.jobs("steps").exists()
        second.add({"part": "ceilings", "ms": 1.0})


def test_the_steps_cover_what_was_asked():
    wanted = steps.plan(None)
    full = {(name, n, d, contender) for name, n, d, contender, options in wanted if not options}
    for n, d in ((64, 2048), (256, 2048), (4096, 768), (32768, 2048)):
        for name in losses.NAMES:
            if name == "dtsh" and n > 256:
                continue
            contenders = [steps.OURS, steps.REFERENCE, steps.COMPILED]
            contenders += [] if n > 256 and name == "shcir" else [steps.LITERAL]
            assert {(name, n, d, contender) for contender in contenders} <= full
    weighed = {name for name, *_, options in wanted if options.get("weighed")}
    assert weighed == {*losses.NAMES}
    # torch.compile of larger sizes, which takes long, after all of the others
    larger = [contender for _, n, _, contender, _ in wanted if n > 64]
    assert set(larger[larger.index(steps.COMPILED) :]) == {steps.COMPILED}
    assert {n for _, n, *_ in wanted[: 4 * len(losses.NAMES)]} == {64}
    keys = list(steps.jobs(None, {}))
    assert len(keys) == len(set(keys)) == len(wanted)
    assert steps.BANK == 13_000


def test_summary_compares_like_with_like():
    base = {"part": "steps", "case": "csq", "n": 64, "d": 9, "dtype": "float32", "tf32": False, "distill": 1.0}
    ours, reference, literal = "nhl_fast triton", "reference", "literal"
    rows = [
        {**base, "contender": ours, "graph": False, "ms": 2.0, "peak_mb": 1},
        {**base, "contender": ours, "graph": True, "ms": 1.0, "peak_mb": 1},
        {**base, "contender": reference, "graph": False, "ms": 8.0, "peak_mb": 3},
        {**base, "contender": reference, "graph": True, "ms": 3.0, "peak_mb": 3},
        {**base, "contender": literal, "graph": False, "ms": 20.0, "peak_mb": 4},
        {**base, "contender": reference, "note": "does not fit"},
        {**base, "n": 128, "contender": reference, "graph": False, "ms": 9.0, "peak_mb": 3},
    ]
    found = [line.split("graph=")[1].split()[:2] for line in parts.summary(rows).splitlines()]
    assert found == [["False", "4.00"], ["False", "10.00"], ["True", "3.00"], ["True", "20.00"]]


def test_floors_of_a_step_hold_its_parts():
    lengths = (8, 16, 32, 64, 128)
    for name in losses.CASES:
        terms = losses.terms(losses.make(name, 100, lengths, 13_000))
        assert floors.gap_of(terms)
        for n, d in ((64, 2048), (32768, 768)):
            moved, operations = floors.step(terms, n, d, lengths)
            own = floors.loss(terms, n, lengths)[1]
            assert operations > own + floors.distillation(n, lengths)[1] + 6 * n * d * 128
            assert moved >= 8 * n * d
            assert floors.step(terms, n, d, lengths, distill=False)[1] < operations
    # The bank and the centres are read once; the pairs of all lengths are one product over the longest.
    both = floors.loss([("softmax", 0), ("pairs", 50)], 4, (2, 4), 3)
    assert both == (4 * 4 * 10 + 4 * 3 * 6 + 4 * 50 * 4, 288 + 4000)
    assert floors.loss([("pairs", 0)], 4, (2, 4)) == (160, 2 * 4 * 4 * 10)
    assert floors.projection(2, 3, 5) == (4 * (6 + 15 + 10), 60)
    assert floors.weights(4, 100, (2, 4), gram=True)[1] == 2 * 16 * 6 + 2 * 4 * 6


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_rehearsal(tmp_path):
    """All parts at tiny sizes on the CPU, the kernels interpreted."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "bench.gpu", "--losses", "dpn", "--budget", "1200"]
    command += ["--parts", "ceilings,warm,steps,tests_kernels,kernels", "--state", str(tmp_path / "state")]
    environment = {**os.environ, "NHL_FAST_REHEARSAL": "1", "OUT": str(tmp_path / "out")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert "rehearsal" in document["environment"]
    rows = document["rows"]
    assert not [r for r in rows if "note" in r]
    assert {r["contender"] for r in rows if r["part"] == "steps"} == {
        "nhl_fast triton", "reference", "reference, torch.compile", "literal",
    }  # fmt: skip
    assert {r["case"] for r in rows if r["part"] == "kernels"} >= {"projection", "dsh", "distillation", "tiles"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the sizes of use take longer on a card")
def test_the_table_of_kernels_on_a_cpu_says_that_it_is_no_result(tmp_path):
    command = [sys.executable, "-m", "bench.kernels", "--only", "bank_store", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("no results")
    assert "floor us" in done.stdout
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["bank_store"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_a_placed_index_is_right_before_it_is_timed(monkeypatch):
    monkeypatch.setattr(searches, "QUERIES", (20, 1))
    index, devices = searches.filled(40_000, 64), (torch.device("cpu"),) * 2
    rows = searches.measure(index, devices, 600, 0.0)
    assert [row["case"] for row in rows] == [case for case in searches.PARTS for _ in range(4)]
    bytes_of = {row["case"]: row["device_bytes"] for row in rows}
    assert bytes_of["streamed"] < bytes_of["half"] < bytes_of["resident"] == 40_000 * 9
    assert all(row["ms"] > 0 for row in rows)
    assert {row.get("note") for row in searches.measure(index, devices, -1)} == {"not reached"}
    original = placed_search.nearest
    monkeypatch.setattr(placed_search, "nearest", lambda *args: [t.flip(1) for t in original(*args)])
    with pytest.raises(RuntimeError, match="resident, 20 queries, filter False: differs from the index"):
        searches.measure(index, devices, 60, 0.0)


@pytest.mark.parametrize("wrong", [["--n", "3"], ["--bits", "12"], ["--device", "tpu"], ["--device", "cpu,meta"]])
def test_a_placed_index_of_wrong_arguments(wrong, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", *wrong])
    with pytest.raises(SystemExit) as stopped:
        searches.main()
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
