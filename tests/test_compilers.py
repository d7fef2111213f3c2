"""Every engine source with every compiler there is: no warning, one external symbol a level, the same results."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compilers import BASELINE, COMPILERS
from native_cases import AVAILABLE, DETAIL, levels, make_rows
from numeric import expected
from step_cases import make, run

from nhl_fast.native import builder

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path.relative_to(ROOT / "csrc") for path in builder.sources("cpp", ROOT / "csrc")]
LEVELS = {path: f"nhl::{path.parts[0]}::{path.stem}_kernels()" for path in SOURCES}
LEVELS = {path: symbol for path, symbol in LEVELS.items() if path.stem in ("scalar", "avx2", "avx512", "neon")}
OWN = {"x86_64": ("avx2", "avx512"), "aarch64": ("neon",), "arm64": ("neon",)}.get(platform.machine(), ())


def compiled(compiler, source, target):
    """Compile one file of csrc as it ships, with every warning an error."""
    command = [*COMPILERS[compiler], *builder.CXX_FLAGS.split(), *BASELINE, "-Werror", builder.TARGET]
    command += ['-DNHL_FAST_SOURCE_HASH="tests"', "-isystem", str(Path(torch.__file__).parent / "include")]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "csrc" / source), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stderr


def external_symbols(target):
    names = subprocess.run(
        ["nm", "-C", "-g", "--defined-only", str(target)], capture_output=True, text=True, check=True
    )
    return [line.split(maxsplit=2)[2] for line in names.stdout.splitlines() if line]


@pytest.mark.skipif(os.environ.get("NHL_FAST_REQUIRE_NATIVE") != "1", reason="what is here is tested")
def test_both_compilers_are_there():
    assert set(COMPILERS) == {"g++", "clang++"}, "install the extra `clang`"


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("compiler", list(COMPILERS))
def test_compiles_without_a_warning(compiler, source, tmp_path):
    code, told = compiled(compiler, source, tmp_path / "out.o")
    assert code == 0, told[:4000]
    if source in LEVELS and shutil.which("nm"):
        # A second symbol would be a shared function compiled for this level, of which a linker may keep this copy.
        assert external_symbols(tmp_path / "out.o") == ([LEVELS[source]] if source.stem in ("scalar", *OWN) else [])


@pytest.mark.parametrize("compiler", list(COMPILERS))
def test_a_warning_is_an_error(compiler, tmp_path):
    (tmp_path / "bad.cpp").write_text("int f(unsigned a, int b) { int unused; return a < b; }\n")
    code, told = compiled(compiler, tmp_path / "bad.cpp", tmp_path / "out.o")
    assert code != 0
    assert "unused" in told
    assert "sign" in told


@pytest.mark.skipif(not BASELINE, reason="x86-64 alone has levels")
def test_a_shared_function_inside_a_level_is_noticed(tmp_path):
    source = tmp_path / "level.cpp"
    source.write_text(
        f'#include "{ROOT}/csrc/common/target.h"\nNHL_TARGET("avx2")\n'
        "inline __attribute__((noinline)) int shared(int x) { return x * x; }\n"
        "int level(int x) { return shared(x); }\n"
        "NHL_TARGET_END\n"
    )
    assert compiled("g++", source, tmp_path / "out.o")[0] == 0
    assert sorted(external_symbols(tmp_path / "out.o")) == ["level(int)", "shared(int)"]


CASES = [("csq", 40, 33), ("dsh", 70, 20), ("dhn", 12, 300), ("lcdsh", 30, 9), ("dch", 40, 33), ("dtsh", 30, 20)]
CASES += [("mdsh", 40, 33), ("shcir", 20, 9), ("dpn", 20, 9), ("dbdh", 30, 20)]
CASES += [("neighbors", 40, 33), ("contrastive", 30, 9)]


def everything():
    """{name: tensor} of what the library computes, at every level: steps, products, packing, search, evaluation."""
    ops, out = torch.ops.nhl_fast, {}
    rows, queries = (torch.from_numpy(make_rows(n, 16, seed=n)) for n in (500, 20))
    for level in levels():
        os.environ["NHL_FAST_CPU_ISA"] = level
        for name, n, d in CASES:
            found = run(make(name, n, d, (8, 20, 64)), "cpp")
            out |= {f"{level} {name} {key}": value for key, value in found.items()}
        torch.manual_seed(5)
        x, w, b = torch.randn(70, 300), torch.randn(50, 300), torch.randn(50)
        out[f"{level} project"], out[f"{level} gram"] = ops.step_project(x, w, b, True)
        out[f"{level} pack"] = ops.pack(x)
        out[f"{level} distances"] = ops.distances(queries, rows, [5, 64, 128])
        for k, found in enumerate(ops.topk(queries, rows, 40, 100, None, 0)):
            out[f"{level} topk {k}"] = found
    return out


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from nhl_fast import native
from nhl_fast.native import library
library._PACKAGE = Path(sys.argv[2])
assert native.cpu_status()[0], native.cpu_status()
import torch, test_compilers
torch.save(test_compilers.everything(), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(not AVAILABLE, reason=f"native library: {DETAIL}")
@pytest.mark.skipif("clang++" not in COMPILERS, reason="no clang++")
def test_clangs_library_gives_what_gccs_gives(tmp_path, monkeypatch):
    found = {}
    for name in ("g++", "clang++"):
        folder = tmp_path / name
        monkeypatch.setenv("CXX", shlex.join(COMPILERS[name]))
        builder.build("cpp", folder / builder.LIBRARIES["cpp"])
        command = [sys.executable, "-c", CHILD, str(ROOT / "tests"), str(folder), str(tmp_path / "out.pt")]
        subprocess.run(command, check=True, cwd=ROOT, timeout=600)
        found[name] = torch.load(tmp_path / "out.pt", weights_only=True)
    ours, theirs = found["g++"], found["clang++"]
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 80
    for key, value in ours.items():
        if not value.is_floating_point():
            assert torch.equal(value, theirs[key]), key
    for level in levels():
        for name, n, d in CASES:
            right = expected(run, make(name, n, d, (8, 20, 64)), "reference", torch.float64, 1.0)
            right.check({key: theirs[f"{level} {name} {key}"] for key in right.truth}, (level, name))
        for key in (f"{level} project", f"{level} gram"):
            torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=2e-5)
