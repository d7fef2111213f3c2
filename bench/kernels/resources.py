"""What the compiler made of csrc/hamming/cuda: registers, spills, shared memory, instructions a pair of the scans.

`python -m bench.kernels.resources` needs nvcc and cuobjdump (on the PATH, or Triton's), no device. Instructions are
those on the shortest way through the scan's loop that loads what the next turn needs and finds nothing: what a warp
issues nearly always. The floor beside them is the counting alone: one BMMA for 128 pairs and 128 bits (or fewer), one
IMMA for 128 pairs and 32 bits, one POPC for 32 pairs and 32 bits. Writes cuda_resources.csv to $OUT, or to
bench/results/.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from pathlib import Path

from bench.common import arguments
from bench.common.record import out_folder
from nhl_fast.native import builder

FIELDS = [
    *("architecture", "file", "kernel", "template", "registers", "stack_bytes", "spill_bytes", "shared_bytes"),
    *("instructions", "instructions_per_1024_pairs", "floor_per_1024_pairs", "of_floor"),
]
COUNTS = {
    "scan/mma": "BMMA",
    "scan/imma": "IMMA.16832",
    "popc_kernel": "POPC",
    "count_kernel": "POPC",
    "ties_kernel": "POPC",
}
PAIRS = {"BMMA": 128, "IMMA.16832": 128, "POPC": 32}


def find_cuobjdump() -> str:
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin:
        tool = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        if tool.exists():
            return str(tool)
    raise SystemExit("resources: cuobjdump was not found (it comes with the CUDA toolkit and with Triton)")


def compile_one(source: Path, architecture: str, target: Path, flags: list[str]) -> str:
    """The object file; returns what ptxas says of it."""
    command = [builder.find_nvcc(), *builder.NVCC_FLAGS.split(), *flags, "-Xptxas", "-v", "-c", str(source)]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


IDS = {"h": "uint8", "t": "uint16", "j": "uint32", "m": "uint64"}


def kernel_name(symbol: str) -> tuple[str, str]:
    """("mma_kernel", "4 4 8") of a mangled name: its whole-number arguments and what labels it compares."""
    found = re.search(r"\d+([a-z_]+_kernel)(I.*E)?", symbol)
    if found is None:
        return symbol, ""
    arguments = re.findall(r"L[ib](\d+)E", found[2] or "")
    arguments += [IDS[name] for name in re.findall(r"SameIdI([htjm])E", symbol)[:1]]
    return found[1], " ".join(arguments + ["sets"] * ("SharedLabel" in symbol))


def registers(log: str) -> dict[str, dict]:
    """By mangled name, from the compiler's log."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = {
            "registers": re.search(r"Used (\d+) registers", part),
            "stack_bytes": re.search(r"(\d+) bytes stack frame", part),
            "spill_bytes": re.search(r"(\d+) bytes spill stores", part),
            "shared_bytes": re.search(r"(\d+) bytes smem", part),
        }
        found[part.split("'")[0]] = {name: int(m[1]) if m else 0 for name, m in numbers.items()}
    return found


def functions(sass: str) -> dict[str, list[tuple[int, str]]]:
    """By mangled name, the (address, instruction) list of cuobjdump's listing."""
    parts = re.split(r"\n\s*Function : (\S+)", sass)
    line = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;")
    return {n: [(int(a, 16), i) for a, i in line.findall(body)] for n, body in zip(parts[1::2], parts[2::2])}


def shortest(code: list[str], ways: list[list[int]], begin: int, end: int) -> list[int]:
    """Instructions of the shortest way from `begin` to `end`, both included; [] where there is none."""
    before, queue = {begin: -1}, deque([begin])
    while queue:
        at = queue.popleft()
        if at == end:
            break
        for then in ways[at]:
            if then not in before:
                before[then] = at
                queue.append(then)
    if end not in before:
        return []
    way = [end]
    while before[way[-1]] >= 0:
        way.append(before[way[-1]])
    return way[::-1]


def run_of_loads(code: list[str], at: int, end: int) -> int:
    """Loads from `at` on, up to the next jump."""
    until = next((other for other in range(at, end) if "BRA" in code[other]), end)
    return sum("LDG.E" in text for text in code[at:until])


def loop_way(function: list[tuple[int, str]], work: str) -> list[str]:
    """The instructions of one turn of the loop that does most of the counting, finding nothing."""
    place = {address: at for at, (address, _) in enumerate(function)}
    code = [text for _, text in function]
    ways: list[list[int]] = []
    for at, text in enumerate(code):
        jump = re.search(r"\bBRA(?:\.\w+)*\s+(?:\S+, )?0x([0-9a-f]+)", text)
        always = not text.startswith("@") and "BRA.DIV" not in text  # which jumps only where a warp has split
        then = [place[int(jump[1], 16)]] if jump and int(jump[1], 16) in place else []
        leaves = always and (jump or re.search(r"\bEXIT\b", text))
        ways.append(then + ([] if leaves or at + 1 == len(code) else [at + 1]))
    best: list[int] = []
    loops = sorted({(to, at) for at, then in enumerate(ways) for to in then if to <= at}, key=lambda p: p[1] - p[0])
    for begin, end in loops:  # inner ones first
        inside = [[to for to in ways[at] if begin < to <= end] for at in range(len(code))]
        # By way of the longest run of loads where a turn loads for the next, else of the first count.
        marks = [at for at in range(begin, end) if (work if work == "POPC" else "LDG.E") in code[at]]
        if not marks:
            continue
        via = marks[0] if work == "POPC" else max(marks, key=lambda at: run_of_loads(code, at, end))
        way = shortest(code, inside, begin, via)[:-1] + shortest(code, inside, via, end)
        if sum(work in code[at] for at in way) > sum(work in code[at] for at in best):
            best = way
    return [code[at] for at in best]


def rows_of(folder: Path, name: str, architecture: str, flags: list[str]) -> list[dict]:
    source = folder / f"{name}.cu"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "object.o"
        log = compile_one(source, architecture, target, flags)
        sass = subprocess.run(
            [find_cuobjdump(), "-sass", str(target)], capture_output=True, text=True, check=True
        ).stdout
    code, rows = functions(sass), []
    for symbol, numbers in registers(log).items():
        kernel, template = kernel_name(symbol)
        row = {"architecture": f"sm_{architecture}", "file": f"{name}.cu", "kernel": kernel, "template": template}
        row |= numbers | {"instructions": len(code[symbol])}
        work = COUNTS.get(name) or COUNTS.get(kernel)
        if work and int(architecture) < (100 if work == "BMMA" else 1000):
            words = int(template.split()[0])
            # Counting instructions that a pair takes part in.
            counted = {"BMMA": max(1, words // 4), "IMMA.16832": max(4, words), "POPC": words}[work]
            way = loop_way(code[symbol], work)
            pairs = PAIRS[work] * sum(work in text for text in way) // counted
            row["instructions_per_1024_pairs"] = round(1024 * len(way) / pairs, 1)
            row["floor_per_1024_pairs"] = 1024 * counted // PAIRS[work]
            row["of_floor"] = round(row["floor_per_1024_pairs"] / row["instructions_per_1024_pairs"], 3)
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments.parser("bench.kernels.resources", __doc__)
    parser.add_argument("--architectures", nargs="+", default=["80", "90", "100"])
    parser.add_argument(
        "--files", nargs="+", default=["scan/mma", "scan/imma", "scan/popc", "levels", "nearest", "count", "evaluate"]
    )
    args = parser.parse_args()
    if builder.find_nvcc() is None:
        raise SystemExit("resources: nvcc was not found (set CUDA_HOME)")
    folder = builder.source_dir() / "hamming" / "cuda"
    rows = []
    for architecture in args.architectures:
        for name in args.files:
            rows += rows_of(folder, name, architecture, [])
    for row in rows:
        if "of_floor" in row:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
    spilled = [f"{r['kernel']}<{r['template']}> on {r['architecture']}" for r in rows if r["stack_bytes"]]
    print(f"{len(rows)} kernels, values in memory: {', '.join(spilled) or 'none'}")
    path = out_folder() / "cuda_resources.csv"
    partial = path.with_suffix(".tmp")
    with open(partial, "w", newline="") as handle:
        writer = csv.DictWriter(handle, FIELDS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


if __name__ == "__main__":
    main()
