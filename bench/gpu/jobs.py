"""Jobs in a process of their own, which may run out of time, hang or lose the device, and go on later.

A worker (`work`) takes the jobs in order and appends what happens to a file of JSON lines: a job started, its rows,
its end. Its parent (`supervise`) starts it again after a crash or a hang, without the job that was under way. A job
that ended is not run again as long as the file is there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

OUT_OF_TIME, LOST_DEVICE = 3, 4  # exit codes of a worker


def append(path: Path, record: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")


def records(path: Path) -> list[dict]:
    """All whole lines; one that a crash cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def rows(path: Path) -> list[dict]:
    """Rows of the jobs that ended; one that was cut short is run again, and gives its rows then."""
    found, pending = [], []
    for record in records(path):
        if "started" in record:
            pending = []
        elif "row" in record:
            pending.append(record["row"])
        elif "finished" in record:
            found += pending
            pending = []
    return found


def finished(path: Path) -> set[str]:
    return {r["finished"] for r in records(path) if "finished" in r}


def under_way(path: Path) -> str | None:
    """The job that was started and has not ended."""
    started = [r["started"] for r in records(path) if "started" in r]
    return started[-1] if started and started[-1] not in finished(path) else None


def describe(failure: BaseException) -> str:
    text = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {text[0] if text else ''}"[:300]


def work(path: Path, jobs: dict[str, Callable[[], Iterable[dict]]], seconds: float, alive=lambda: True) -> int:
    """Run the jobs that have not ended; the exit code of the process."""
    ends, done = time.monotonic() + seconds, finished(path)
    for key, job in jobs.items():
        if key in done:
            continue
        if time.monotonic() > ends:
            return OUT_OF_TIME
        append(path, {"started": key})
        lost = False
        try:
            for row in job():
                append(path, {"row": row})
                print("  ".join(f"{k}={v}" for k, v in row.items() if v not in (None, "")), flush=True)
        except Exception as failure:
            append(path, {"row": {"case": key, "note": describe(failure)}})
            print(f"{key}: {describe(failure)}", flush=True)
            lost = not alive()
        append(path, {"finished": key})
        if lost:
            return LOST_DEVICE
    return 0


def supervise(
    path: Path,
    command: list[str],
    seconds: float,
    log: Path,
    patience: float = 120.0,
    environment: dict | None = None,
) -> bool:
    """Run `command` (plus --rows and --seconds) until its jobs have ended (True) or the time is over (False).

    Args:
        path: the file of JSON lines. log: where the worker's output is appended.
        patience: seconds after which a job is given up.

    Raises:
        RuntimeError: the worker ended before it began a job; the message ends with its output.
    """
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 1:
        began = log.stat().st_size if log.exists() else 0
        with open(log, "a") as output:
            process = subprocess.Popen(
                [*command, "--rows", str(path), "--seconds", f"{left:.0f}"],
                stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip
            why = _watch(process, path, ends, patience)
        code, key = process.returncode, under_way(path)
        if code == 0:
            return True
        if code == OUT_OF_TIME or why == "time":
            return False
        if code == LOST_DEVICE:
            continue
        if key is None:
            with open(log, errors="replace") as output:
                output.seek(began)
                raise RuntimeError(f"the worker ended with code {code} before a job:\n{output.read()[-3000:]}")
        note = f"gave up after {patience:.0f} s" if why == "patience" else f"the process ended with code {code}"
        append(path, {"row": {"case": key, "note": note}})
        append(path, {"finished": key})
    return False


def _watch(process: subprocess.Popen, path: Path, ends: float, patience: float) -> str | None:
    """Wait for the process; end it when the time is over or a job takes too long, and say which."""
    current, since = None, time.monotonic()
    while True:
        try:
            process.wait(timeout=0.5)
            return None
        except subprocess.TimeoutExpired:
            pass
        now, key = time.monotonic(), under_way(path)
        if key != current:
            current, since = key, now
        why = "time" if now > ends + 2 else "patience" if now - since > patience else None
        if why:
            # The group that was started here: the process and its workers.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return why
