"""How the native libraries are found and built, and that the CUDA kernels compile without spills."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from nhl_fast import native
from nhl_fast.native import BuildError, library
from nhl_fast.native import builder as _build

ROOT = Path(__file__).resolve().parents[1]


def test_finds_this_torch_without_importing_it():
    found = _build.find_torch()
    assert found.path == Path(torch.__file__).parent
    assert found.version == torch.__version__
    assert found.cuda == torch.version.cuda


def test_finds_the_torch_that_build_isolation_hides(monkeypatch):
    monkeypatch.setattr(_build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_build.sysconfig, "get_path", lambda name: str(Path(torch.__file__).parents[1]))
    assert _build.find_torch().version == torch.__version__


def test_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(_build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(BuildError, match="install torch"):
        _build.find_torch()
    old = tmp_path / "torch"
    (old / "include/torch/csrc/stable").mkdir(parents=True)
    (old / "version.py").write_text("__version__ = '2.9.1'\ncuda: str | None = None\n")
    with pytest.raises(BuildError, match=r"2\.9\.1 is older than 2\.10"):
        _build.find_torch()
    (old / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    assert _build.find_torch() == _build.Torch(old, "2.11.0+cu130", "13.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        _build.find_compiler()


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("NAME=x\nID=debian\n", "apt install g++"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt install g++"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install gcc-c++"),
        ("ID=nixos\nHOME_URL=debian\n", "g++"),
        (None, "g++"),
    ],
)
def test_the_package_of_the_compiler(release, command, monkeypatch, tmp_path):
    path = tmp_path / "os-release"
    if release:
        path.write_text(release)
    monkeypatch.setattr(_build.sys, "platform", "linux")
    assert _build.compiler_package(path) == command
    monkeypatch.setattr(_build.sys, "platform", "darwin")
    assert _build.compiler_package(path) == "xcode-select --install"


def test_which_libraries_are_wanted(monkeypatch, tmp_path):
    with_cuda, without = _build.Torch(tmp_path, "2.11", "13.0"), _build.Torch(tmp_path, "2.11", None)
    monkeypatch.setattr(_build, "find_nvcc", lambda: "/usr/bin/nvcc")
    for choice, torch_build, expected in (
        ("", with_cuda, ["cpp", "cuda"]),
        ("", without, ["cpp"]),
        ("0", with_cuda, ["cpp"]),
        ("1", without, ["cpp", "cuda"]),
    ):
        monkeypatch.setenv("NHL_FAST_CUDA", choice)
        assert _build.wanted(torch_build) == expected
    monkeypatch.setenv("NHL_FAST_CUDA", "yes")
    with pytest.raises(BuildError, match="expected 0 or 1, got 'yes'"):
        _build.wanted(without)
    monkeypatch.setenv("NHL_FAST_CUDA", "1")
    monkeypatch.setattr(_build, "find_nvcc", lambda: None)
    with pytest.raises(BuildError, match="nvcc was not found"):
        _build.wanted(without)


def test_source_hash_covers_every_source(tmp_path):
    folder = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", folder)
    before = {kind: _build.source_hash(kind, folder) for kind in _build.LIBRARIES}
    assert before == {kind: _build.source_hash(kind, ROOT / "csrc") for kind in _build.LIBRARIES}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        shared = path.suffix == ".h" and path.parent.name in ("common", "hamming", "ops")
        cuda = shared or "cuda" in path.relative_to(folder).parts or path.suffix == ".cu"
        text = path.read_bytes()
        path.write_bytes(text + b"\n")
        changed = {kind for kind in before if _build.source_hash(kind, folder) != before[kind]}
        assert changed == ({"cpp", "cuda"} if shared else {"cuda"} if cuda else {"cpp"}), path
        path.write_bytes(text)


def test_a_failed_build_leaves_the_library_and_shows_the_compiler(tmp_path, monkeypatch):
    output = tmp_path / "_cpp.abi3.so"
    output.write_bytes(b"the one before")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BuildError, match=r"false .* failed"):
        _build.build("cpp", output)
    assert output.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [output]


def test_reports_why_not(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_PACKAGE", tmp_path)
    monkeypatch.setenv("NHL_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NHL_FAST_BUILD", "0")
    load = library._load.__wrapped__
    with pytest.warns(
        UserWarning, match=r"without its C\+\+ engine.*NHL_FAST_BUILD=0.*python -m nhl_fast.native build"
    ):
        assert "NHL_FAST_BUILD=0" in load("cpp")
    native.library_path("cpp").write_bytes(b"not a library")
    with pytest.warns(UserWarning, match="does not load"):
        assert "python -m nhl_fast.native build" in load("cpp")
    assert [p.name for p in tmp_path.iterdir()] == ["_cpp.abi3.so"]
    monkeypatch.setenv("NHL_FAST_CUDA", "0")
    monkeypatch.setattr(library, "_load", lambda kind: "")
    assert "NHL_FAST_CUDA=0" in load("cuda")


def test_a_card_without_the_library_is_said_once(monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr(library, "_PACKAGE", tmp_path)
    monkeypatch.setenv("NHL_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NHL_FAST_CUDA", raising=False)
    monkeypatch.delenv("NHL_FAST_BUILD", raising=False)
    monkeypatch.setattr(_build, "find_nvcc", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    load = library._load.__wrapped__
    monkeypatch.setattr(library, "_load", lambda kind: "")
    with pytest.warns(UserWarning, match="without its CUDA engine.*nvcc was not found .install the CUDA toolkit"):
        assert "nvcc was not found" in load("cuda")
    recwarn.clear()
    monkeypatch.setenv("NHL_FAST_CUDA", "0")
    assert "leaves it out" in load("cuda")
    assert not recwarn


def test_command_line_status():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "nhl_fast.native"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["cpp", "cuda"]
    assert ("yes" in done.stdout.splitlines()[0]) == native.cpu_status()[0]


needs_nvcc = pytest.mark.skipif(_build.find_nvcc() is None, reason="nvcc is not installed")


def resources(log: str) -> dict[tuple[str, str], tuple[int, int]]:
    """{(architecture, kernel): (registers, bytes of spills)} from ptxas -v."""
    found, key, spills = {}, None, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            key = (match[2], match[1])
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            found[key] = (int(match[1]), spills)
    return found


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", _build.sources("cuda", ROOT / "csrc"), ids=lambda path: path.stem)
def test_cuda_kernels_compile_without_spills(source, tmp_path, record_property):
    include = Path(torch.__file__).parent / "include"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in _build.CUDA_ARCHITECTURES.split()]
    command = [_build.find_nvcc(), *_build.NVCC_FLAGS.split(), *targets, _build.TARGET, "-Xptxas", "-v"]
    command += ["--threads", "2", "-isystem", str(include), "-c", str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = resources(done.stderr)
    if source.parent.name == "ops":
        assert not found  # no kernel of its own
        return
    assert {arch for arch, _ in found} == {f"sm_{a}" for a in _build.CUDA_ARCHITECTURES.split()}
    for (arch, kernel), (registers, spills) in found.items():
        record_property(f"{arch} {kernel}", f"{registers} registers, {spills} bytes spilled")
        assert spills == 0, (arch, kernel)
        assert registers <= 128, (arch, kernel)


def test_ptxas_log_is_understood():
    log = (
        "ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1kv\n"
        "    8 bytes stack frame, 16 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 48 registers, used 1 barriers, 8 bytes cumulative stack size\n"
    )
    assert resources(log) == {("sm_90", "_Z1kv"): (48, 20)}


@pytest.mark.parametrize("terminal", [False, True])
def test_build_in_a_checkout_shows_progress(tmp_path, monkeypatch, capsys, terminal):
    def build(kind, output, progress):
        progress(0, 2)
        progress(1, 2)
        progress(2, 2)
        output.write_bytes(b"")
        return output

    monkeypatch.setattr(library, "_PACKAGE", tmp_path)
    monkeypatch.setattr(_build, "build", build)
    monkeypatch.setattr(_build, "wanted", lambda torch: ["cpp"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert _build.in_checkout()
    assert native.build() == [tmp_path / "_cpp.abi3.so"]
    out, err = capsys.readouterr()
    assert out == f"built {tmp_path / '_cpp.abi3.so'}\n"
    shown = ["0/2 files, 0 s", "1/2 files, 0 s", "2/2 files, 0 s done in 0 s\n"]
    expected = "".join(f"\rnhl_fast: building _cpp.abi3.so: {part}" for part in shown)
    assert err == (expected if terminal else "nhl_fast: building _cpp.abi3.so: 2 files ... done in 0 s\n")
    monkeypatch.setattr(_build, "build", lambda *_: (_ for _ in ()).throw(BuildError("no such luck")))
    with pytest.raises(BuildError, match="no such luck"):
        native.build()


def test_compilers_at_once(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    assert _build.jobs() == 3
    for other in ("", "0", "-2", "x"):
        monkeypatch.setenv("MAX_JOBS", other)
        assert _build.jobs() == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_while_a_library_is_loaded_can_load():
    code = """
        import os, signal, threading
        from nhl_fast.native import library
        held, over = threading.Event(), threading.Event()
        def load():
            with library._loading:
                held.set()
                over.wait()
        thread = threading.Thread(target=load)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            library.load("cpp")
            os._exit(0)
        over.set()
        thread.join()
        print(os.waitpid(child, 0)[1])
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


class Cards:
    """Stands for torch.cuda, of devices with these compute capabilities."""

    def __init__(self, monkeypatch, *capabilities):
        self.capabilities = capabilities
        for name in ("is_available", "device_count", "get_device_capability", "get_device_name"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def is_available(self):
        return True

    def device_count(self):
        return len(self.capabilities)

    def get_device_capability(self, device=0):
        return self.capabilities[device]

    def get_device_name(self):
        return "a card"


def test_the_first_use_compiles_for_every_card(monkeypatch):
    monkeypatch.delenv("NHL_FAST_CUDA_ARCHITECTURES", raising=False)
    Cards(monkeypatch, (9, 0), (8, 0), (7, 5), (9, 0), (12, 0))
    asked = []
    monkeypatch.setattr(library._cache, "find", lambda kind, targets: asked.append(targets))
    monkeypatch.setattr(library, "library_path", lambda kind: Path("/nowhere"))
    library.is_built("cuda")
    assert asked == [["80", "90", "120"]]


def test_the_kernels_are_left_out_on_a_card_that_is_too_old(monkeypatch):
    monkeypatch.setattr(library, "load", lambda kind: "")
    status = library.cuda_status.__wrapped__
    Cards(monkeypatch, (7, 5))
    assert status() == (False, "needs compute capability 8.0 or more, the device has 7.5")
    Cards(monkeypatch, (8, 0))
    assert status() == (True, "native library on a card")


def test_architectures(monkeypatch):
    for given, expected in (("", ["80", "90", "100"]), (" ", ["80", "90", "100"]), ("86 90a", ["86", "90a"])):
        monkeypatch.setenv("NHL_FAST_CUDA_ARCHITECTURES", given)
        assert _build.architectures() == expected
    monkeypatch.setenv("NHL_FAST_CUDA_ARCHITECTURES", "8.0;9.0")
    with pytest.raises(BuildError, match=r"NHL_FAST_CUDA_ARCHITECTURES: expected .* as in '80 90', got '8.0;9.0'"):
        _build.architectures()
