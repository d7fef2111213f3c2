"""The machine and the versions that a result was made with, as plain values for JSON."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import numpy as np
import torch

from .version import __version__


def environment(device: torch.device | str | None = None) -> dict:
    """Date, processor, cores, threads, system, device and versions. No name of the host or of a person.

    Args:
        device: where the work is done; the name of a CUDA device is looked up.
    """
    found = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": "cpu" if device is None else str(device),
        "versions": {
            "nhl_fast": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if device is not None and torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["versions"]["cuda"] = torch.version.cuda
    return found


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def continued(environments: list[dict], now: dict, epoch: int) -> list[dict]:
    """The environments of a run that goes on at `epoch`: `now` joins where it differs in more than the date."""

    def lasting(found):
        return {k: v for k, v in found.items() if k not in ("date", "from_epoch")}

    if environments and lasting(environments[-1]) == lasting(now):
        return environments
    return [*environments, {**now, "from_epoch": epoch}]
