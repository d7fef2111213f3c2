"""Compiles the shipped Triton kernels ahead of time, without a GPU, and reads what they use off the cubin.

    python tests/triton/aot.py [--arch 80 90 100] [--match TEXT] [--write FILE.csv [--missing]]

Run it in a process without TRITON_INTERPRET. It prints one line a kernel: registers a thread, shared memory, stack,
spills, tensor-core instructions, float multiply-adds, and how many loads from global memory are 16 bytes wide.

As in a launch, pointers are taken to be divisible by 16, and so are integers that a variant's signature writes
"i32:16"; "1" is an integer that is 1. --ones compiles what a launch does where every integer is 1, which Triton
makes a constant.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)
FIELDS = (
    "kernel", "arch", "warps", "registers", "shared_bytes", "stack_bytes", "spill_bytes", "tensor_core", "fma",
    "loads", "wide_loads",
)  # fmt: skip
TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA|UTCOMMA|TCGEN\w*)\b")


def kernel_variants(arch: int = 90):
    """(name, function, signature, constants, options) of what the kernel modules' `variants` ship for sm_<arch>."""
    import nhl_fast.steps.fused  # noqa: F401  (makes nhl_fast.kernels importable in a checkout)

    package = importlib.import_module("nhl_fast.kernels")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    loaded = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    for module, kernels in loaded.items():
        shipped = getattr(kernels, "variants", list)
        by_card = "generation" in inspect.signature(shipped).parameters
        for name, *rest in shipped(generation=arch // 10) if by_card else shipped():
            yield f"{module}/{name}", *rest


def _cuobjdump() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def specialized(function, signature, constants, ones: bool):
    """(signature, constants, attributes) as a launch gives them; `ones`: all integers are 1."""
    types, found, attributes = {}, {}, {}
    general = {parameter.name for parameter in function.params if parameter.do_not_specialize}

    def typed(kind, path, name):
        if isinstance(kind, tuple):
            return tuple(typed(part, (*path, at), name) for at, part in enumerate(kind))
        kind, _, divisor = kind.partition(":")
        if name in general and divisor:
            raise ValueError(f"{name}: a launch does not look at its value, the signature says {signature[name]!r}")
        if kind == "1" or (ones and kind == "i32" and name not in general):
            kind, found[path] = "constexpr", 1
        elif divisor or kind.startswith("*"):
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    for place, name in enumerate(function.arg_names):
        types[name] = typed(signature.get(name, "constexpr"), (place,), name)
        if name in constants:
            found[(place,)] = constants[name]
    return types, found, attributes


def compile_variant(function, signature, constants, options, arch: int, ones: bool = False):
    """One variant compiled for sm_<arch>."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(function, *specialized(function, signature, constants, ones))
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(options))


def measure(name, *variant, ones: bool = False) -> dict:
    """The resources of one variant: function, signature, constants, options, architecture."""
    compiled, arch = compile_variant(*variant, ones=ones), variant[-1]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([_cuobjdump(), flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    loads = re.findall(r"\b(?:LDGSTS|LDG)\b((?:\.\w+)*)", sass)
    return {
        "kernel": name,
        "arch": f"sm_{arch}",
        "warps": compiled.metadata.num_warps,
        "registers": found["REG"],
        "shared_bytes": compiled.metadata.shared,
        "stack_bytes": found["STACK"] + found["LOCAL"],
        "spill_bytes": 4 * len(re.findall(r"\bSTL\b", sass)),
        "tensor_core": len(TENSOR_CORE.findall(sass)),
        "fma": len(re.findall(r"\bFFMA2?\b", sass)),
        "loads": len(loads),
        "wide_loads": sum("128" in kind for kind in loads),
    }


def table(architectures=ARCHITECTURES, match: str = "", ones: bool = False, report=None, known=()) -> list[dict]:
    """Resources of every shipped variant whose name contains `match`; `report` is called with each row.

    known: (name, architecture as "sm_90") of rows that are left out.
    """
    rows = []
    shipped = [{name: variant for name, *variant in kernel_variants(arch)} for arch in architectures]
    for name in dict.fromkeys(name for variants in shipped for name in variants if match in name):
        for arch, variants in zip(architectures, shipped):
            if name not in variants or (name, f"sm_{arch}") in known:
                continue
            rows.append(measure(name, *variants[name], arch, ones=ones))
            if report:
                report(rows[-1])
    return rows


def subprocess_table(architectures=ARCHITECTURES, match: str = "", ones: bool = False) -> list[dict]:
    """`table` in a fresh process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    command = [sys.executable, __file__, "--json", "--match", match, "--arch", *map(str, architectures)]
    command += ["--ones"] if ones else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"ahead-of-time compilation failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)


def read(path: Path) -> dict[tuple[str, str], dict]:
    """The rows of a written table, by kernel and architecture."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {(row["kernel"], row["arch"]): row for row in csv.DictReader(file)}


def write(path: Path, rows: dict[tuple[str, str], dict]) -> None:
    """Replace the table in one step; rows of what is not shipped any more are left out."""
    shipped = [(name, f"sm_{arch}") for name, *_ in kernel_variants() for arch in ARCHITECTURES]
    with tempfile.NamedTemporaryFile("w", newline="", dir=path.parent, delete=False) as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows[key] for key in shipped if key in rows)
    os.replace(file.name, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--match", default="", help="only kernels whose name contains this")
    parser.add_argument("--ones", action="store_true", help="compile what a launch does where every integer is 1")
    parser.add_argument(
        "--write", metavar="FILE.csv", type=Path, help="the table whose rows are replaced, one by one"
    )
    parser.add_argument("--missing", action="store_true", help="with --write: only rows which that table lacks")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")

    def show(row):
        print("  ".join(f"{row[field]!s:>{44 if field == 'kernel' else 12}}" for field in FIELDS), flush=True)

    written = read(options.write) if options.write else {}

    def report(row):
        if not options.json:
            show(row)
        if options.write:
            written[row["kernel"], row["arch"]] = row
            write(options.write, written)

    if not options.json:
        show(dict(zip(FIELDS, FIELDS)))
    rows = table(options.arch, options.match, options.ones, report, {*written} if options.missing else ())
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
