"""Other machines, imitated: the tests marked "numeric" in processes whose PyTorch takes other instructions.

PyTorch's own loops listen to ATEN_CPU_CAPABILITY (log1p and softplus change, and what random numbers a seed gives);
its BLAS and vector functions, MKL, to MKL_ENABLE_INSTRUCTIONS and MKL_CBWR (products of matrices, exp, tanh). The
variables of oneDNN and OpenBLAS change nothing in a build with MKL. `test_machines.py` shows what each one changes.
In every process the tests run at every instruction level of this project's own library.

    python tests/machines.py [name ...] [-- pytest's options]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# One thread in each: processes beside each other take the cores, and `make test` runs with as many as there are.
ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MACHINES = {
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", **ONE},  # SSE2
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", **ONE},
    "one thread": ONE,
}
USUAL = ("baseline", "avx2")  # each with one thread; this machine's own instructions are those of `make test`
MARKED = [path for path in sorted(HERE.glob("test_*.py")) if "mark.numeric" in path.read_text()]
VARIABLES = sorted({name for machine in MACHINES.values() for name in machine})


def environment(machine: str | None) -> dict[str, str]:
    """The environment of a process on that machine; None for this one, as it is."""
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**plain, **(MACHINES[machine] if machine else {})}


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, options = arguments[:split] or list(USUAL), arguments[split + 1 :]
    if unknown := sorted(set(names) - set(MACHINES)):
        print(f"unknown machine {unknown[0]!r}: expected some of {list(MACHINES)}", file=sys.stderr)
        return 2
    for name in names:
        start = time.perf_counter()
        print(f"{name}: {' '.join(f'{k}={v}' for k, v in MACHINES[name].items())}", flush=True)
        chosen = ["-m", "numeric and not slow", "-k", "not compiles"]
        command = [sys.executable, "-m", "pytest", *map(str, MARKED), *chosen, *options]
        if code := subprocess.run(command, env=environment(name), check=False).returncode:
            return code
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
