"""The CPU engine and the CPU step under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, ARM too."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from nhl_fast.native import BuildError, builder

ROOT = Path(__file__).resolve().parents[1]

try:
    COMPILER = shlex.split(builder.find_compiler())
except BuildError:
    COMPILER = None


ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")


def run(compiler, runner, driver, sanitizer, rounds, folder, **environment):
    """What the driver prints, compiled with the sanitizer; the test fails where it does."""
    program = folder / "sanitize"
    flags = [
        "-std=c++17",
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all",
    ]
    sources = [ROOT / "tests" / driver, *builder.engine_sources(ROOT / "csrc")]
    # GCC's false alarms about intrinsics multiply under sanitizers; the library's own build has warnings on.
    command = [*compiler, *flags, "-w", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program), "-pthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -l" in built.stderr and "san" in built.stderr:
        pytest.skip(f"this compiler has no {sanitizer} sanitizer")
    assert built.returncode == 0, built.stderr[-4000:]
    env = {**os.environ, **environment}
    done = subprocess.run([*runner, program, rounds], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("driver", "sanitizer", "rounds"),
    [
        ("hamming_sanitize.cpp", "address,undefined", "120"),
        ("hamming_sanitize.cpp", "thread", "40"),
        ("step_sanitize.cpp", "address,undefined", "300"),
        ("step_sanitize.cpp", "thread", "60"),
    ],
)
def test_native_code_is_clean(driver, sanitizer, rounds, tmp_path):
    assert "scalar: " in run(COMPILER, [], driver, sanitizer, rounds, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ARM)), reason=f"needs {' and '.join(ARM)}")
@pytest.mark.parametrize(("driver", "rounds"), [("hamming_sanitize.cpp", "40"), ("step_sanitize.cpp", "40")])
def test_native_code_is_clean_on_arm(driver, rounds, tmp_path):
    """Under an emulator, which the leak sanitizer does not run in. The step has no NEON bodies of its own."""
    runner = [ARM[1], "-L", "/usr/aarch64-linux-gnu"]
    told = run([ARM[0]], runner, driver, "address,undefined", rounds, tmp_path, ASAN_OPTIONS="detect_leaks=0")
    assert f"scalar: {rounds} rounds" in told
    assert f"neon: {rounds} rounds" in told


@pytest.mark.skipif(not shutil.which(ARM[0]), reason=f"needs {ARM[0]}")
@pytest.mark.parametrize("name", ["neon", "slices_neon"])
def test_neon_compiles_without_a_warning(name, tmp_path):
    flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-c"]
    source = ROOT / "csrc" / "hamming" / "cpu" / f"{name}.cpp"
    built = subprocess.run(
        [ARM[0], *flags, str(source), "-o", str(tmp_path / "neon.o")], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-4000:]
