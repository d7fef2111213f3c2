"""The CPU engine and the CPU training step under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from nhl_fast.native import BuildError, builder

ROOT = Path(__file__).resolve().parents[1]

try:
    COMPILER = shlex.split(builder.find_compiler())
except BuildError:
    COMPILER = None


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
    program = tmp_path / "sanitize"
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
    command = [*COMPILER, *flags, "-w", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program), "-pthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -l" in built.stderr and "san" in built.stderr:
        pytest.skip(f"this compiler has no {sanitizer} sanitizer")
    assert built.returncode == 0, built.stderr[-4000:]
    done = subprocess.run([program, rounds], capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "scalar: " in done.stdout
