"""Processes of a check: in the checkout, each with its log, ended with all their workers when their time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from bench.common.record import ROOT
from bench.gpu.device import REHEARSAL


def variables(**own) -> dict:
    """The environment: this checkout can be imported, and kernels are interpreted in a rehearsal alone."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": path, **own}
    if not REHEARSAL:
        found.pop("TRITON_INTERPRET", None)
    return found


def tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.splitlines()[-lines:])


class Processes:
    """Started at once, one a name of `commands`; `wait` for them, or `end` them."""

    def __init__(self, report, commands: dict[str, list[str]], **own):
        self.report, self.running = report, {}
        for name, command in commands.items():
            with open(report.log(name), "w") as file:
                self.running[name] = subprocess.Popen(
                    command, cwd=ROOT, env=variables(**own), stdout=file, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip

    def wait(self, seconds: float) -> dict[str, tuple[int | None, str]]:
        """{name: (exit code, or None where it was ended for the time, output)}."""
        ends, codes = time.monotonic() + max(seconds, 0.1), {}
        for name, process in self.running.items():
            try:
                codes[name] = process.wait(timeout=max(ends - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                codes[name] = None
        self.end()
        return {name: (code, self.report.log(name).read_text(errors="replace")) for name, code in codes.items()}

    def end(self) -> None:
        """End what still runs: the groups that were started here, each a process and its workers."""
        for process in self.running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run(report, name: str, command: list[str], seconds: float, **own) -> tuple[int | None, str]:
    """(exit code, or None where time ran out; output) of one process."""
    return Processes(report, {name: command}, **own).wait(seconds)[name]
