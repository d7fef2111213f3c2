"""Builds the native libraries from csrc/: for setup.py, `python -m nhl_fast.native build` and the first use.

Standard library only, and PyTorch is looked at but never imported: pip's build isolation hides it, and the stable
ABI needs no more than its headers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

MINIMUM_TORCH = (2, 10)
LIBRARIES = {"cpp": "_cpp.abi3.so", "cuda": "_cuda.abi3.so"}
CUDA_ARCHITECTURES = "80 90 100"

PACKAGES = {
    **dict.fromkeys(("debian", "ubuntu"), "apt install g++"),
    **dict.fromkeys(("fedora", "rhel", "centos"), "dnf install gcc-c++"),
    **dict.fromkeys(("suse", "opensuse"), "zypper install gcc-c++"),
    "arch": "pacman -S gcc",
    "alpine": "apk add g++",
}
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unused-parameter"
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr"
# What goes into each library, headers and all; "*.cpp" and "*.cu" of these are compiled.
_FILES = {
    "cpp": ("common/*", "hamming/*", "hamming/cpu/*", "step/*", "ops/*.h", "ops/*.cpp"),
    "cuda": ("common/*.h", "hamming/*", "hamming/cuda/**/*", "ops/*.h", "ops/*.cu"),
}
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


class BuildError(RuntimeError):
    """The native libraries cannot be built here; the message says why."""


@dataclass(frozen=True)
class Torch:
    """An installed PyTorch: where it is, and what its version file says."""

    path: Path
    version: str
    cuda: str | None


def source_dir() -> Path:
    """csrc/: beside this package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "csrc", package / "csrc"):
        if (folder / "hamming" / "hamming.h").is_file():
            return folder
    raise BuildError("the C++ sources (csrc/) are neither beside nor inside the nhl_fast package")


def in_checkout() -> bool:
    """Whether this package lies in a checkout, where libraries are built in place; else it was installed."""
    package = Path(__file__).resolve().parents[1]
    return source_dir().parent == package.parent


def sources(kind: str, folder: Path) -> list[Path]:
    """The files to compile for library `kind`."""
    return [path for path in _files(kind, folder) if path.suffix in (".cpp", ".cu")]


def engine_sources(folder: Path) -> list[Path]:
    """Those of the "cpp" library that need no PyTorch."""
    return [path for path in sources("cpp", folder) if path.parent.name != "ops"]


def source_hash(kind: str, folder: Path) -> str:
    """A short hash of everything that goes into library `kind`, to notice one built from other sources."""
    digest = hashlib.sha256()
    for path in _files(kind, folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _files(kind: str, folder: Path) -> list[Path]:
    return sorted(path for pattern in _FILES[kind] for path in folder.glob(pattern) if path.is_file())


def find_torch() -> Torch:
    """The PyTorch to build for: an importable one, else that of the environment which pip's isolation hides."""
    folders = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent)
    folders += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    for folder in folders:
        version_file = folder / "version.py"
        if (folder / "include/torch/csrc/stable").is_dir() and version_file.is_file():
            text = version_file.read_text()
            version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text)
            cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", text, re.MULTILINE)
            if version is None:
                continue
            numbers = tuple(int(n) for n in re.findall(r"\d+", version[1])[:2])
            if numbers < MINIMUM_TORCH:
                raise BuildError(f"PyTorch {version[1]} is older than {'.'.join(map(str, MINIMUM_TORCH))}")
            return Torch(folder, version[1], cuda[1] if cuda else None)
    raise BuildError("no PyTorch with C++ headers was found: install torch>=2.10 first, then build")


def find_compiler() -> str:
    """The C++ compiler: $CXX, c++ or g++."""
    for name in (os.environ.get("CXX"), "c++", "g++"):
        if name and shutil.which(shlex.split(name)[0]):
            return name
    raise BuildError(f"no C++ compiler was found (set CXX, or install one: {compiler_package()})")


def compiler_package(release: Path = Path("/etc/os-release")) -> str:
    """How a C++ compiler is installed on this system."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    try:
        lines = release.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = {word for line in lines if line.startswith(("ID=", "ID_LIKE=")) for word in re.findall(r"\w+", line)[1:]}
    for family, command in PACKAGES.items():
        if family in names:
            return command
    return "g++"


def find_nvcc() -> str | None:
    """The CUDA compiler: $CUDACXX, $CUDA_HOME/bin/nvcc, on the PATH, or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for name in (os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def wanted(torch: Torch) -> list[str]:
    """The libraries to build: "cpp", and "cuda" as NHL_FAST_CUDA (0 or 1) says.

    Without that variable, CUDA is built where nvcc is found and PyTorch was built for CUDA.
    """
    choice = os.environ.get("NHL_FAST_CUDA", "")
    if choice not in ("", "0", "1"):
        raise BuildError(f"NHL_FAST_CUDA: expected 0 or 1, got {choice!r}")
    if choice == "1" and find_nvcc() is None:
        raise BuildError("NHL_FAST_CUDA=1, but nvcc was not found (install the CUDA toolkit, or set CUDA_HOME)")
    cuda = choice == "1" or (choice == "" and torch.cuda is not None and find_nvcc() is not None)
    return ["cpp", "cuda"] if cuda else ["cpp"]


def architectures() -> list[str]:
    """Compute capabilities that the CUDA library is compiled for: $NHL_FAST_CUDA_ARCHITECTURES, as in "80 90"."""
    given = os.environ.get("NHL_FAST_CUDA_ARCHITECTURES", "")
    if not all(re.fullmatch(r"\d{2,3}[af]?", code) for code in given.split()):
        raise BuildError(f"NHL_FAST_CUDA_ARCHITECTURES: expected compute capabilities as in '80 90', got {given!r}")
    return given.split() or CUDA_ARCHITECTURES.split()


def commands(kind: str, torch: Torch, folder: Path, targets: list[str] | None = None) -> tuple[list, list, list]:
    """The compiler's call, to which sources and output are added, and the linker's before and after the objects.

    Args:
        kind: which library.
        torch: the PyTorch to build for.
        folder: csrc/.
        targets: CUDA compute capabilities; default `architectures()`.
    """
    stamp = f'-DNHL_FAST_SOURCE_HASH="{source_hash(kind, folder)}"'
    if kind == "cuda":
        nvcc = find_nvcc()
        if nvcc is None:
            raise BuildError("nvcc was not found (install the CUDA toolkit, or set CUDA_HOME)")
        codes = targets or architectures()
        generate = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in codes]
        generate.append(f"-gencode=arch=compute_{codes[-1]},code=compute_{codes[-1]}")
        include = ["-isystem", str(torch.path / "include")]
        names = ["torch_cpu", "torch", "c10"]
        if (torch.path / "lib/libtorch_cuda.so").is_file():
            names.append("torch_cuda")  # PyTorch's current stream; without it, the library loads and says so
        libraries = ["-Xlinker", "--no-as-needed", f"-L{torch.path / 'lib'}", *(f"-l{name}" for name in names)]
        return [nvcc, *NVCC_FLAGS.split(), *generate, TARGET, stamp, *include], [nvcc, "-shared"], libraries
    cxx = shlex.split(find_compiler())
    # torch is loaded first, so its libraries are found by name; no path of this machine goes in.
    libraries = [f"-L{torch.path / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    return [*cxx, *CXX_FLAGS.split(), TARGET, stamp, f"-I{torch.path / 'include'}"], [*cxx, "-shared"], libraries


def build(
    kind: str,
    output: Path,
    progress: Callable[[int, int], None] | None = None,
    targets: list[str] | None = None,
) -> Path:
    """Compile library `kind` ("cpp" or "cuda") to the file `output`.

    Args:
        kind: which library.
        output: the file to make; replaced in one step, and only when the build succeeds.
        progress: called with the number of files that are compiled, and of all.
        targets: CUDA compute capabilities; default `architectures()`.

    Raises:
        BuildError: something is missing, or the compiler failed (the message ends with its output).
    """
    torch, folder = find_torch(), source_dir()
    compile_, link, libraries = commands(kind, torch, folder, targets)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nhl_fast_build_") as temporary:
        work = Path(temporary)
        names = {path: "_".join(path.relative_to(folder).with_suffix(".o").parts) for path in sources(kind, folder)}
        objects = {path: work / name for path, name in names.items()}
        _run_all([[*compile_, "-c", str(path), "-o", str(target)] for path, target in objects.items()], progress)
        library = work / LIBRARIES[kind]
        _run([*link, *map(str, objects.values()), *libraries, "-o", str(library)])
        partial = output.with_name(f"{output.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(library, partial)
            os.replace(partial, output)
        finally:
            partial.unlink(missing_ok=True)
    return output


def jobs() -> int:
    """Compilers that run at once: $MAX_JOBS, or the cores that this process may use."""
    given = os.environ.get("MAX_JOBS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_all(calls: list[list[str]], progress: Callable[[int, int], None] | None) -> None:
    progress = progress or (lambda done, total: None)
    progress(0, len(calls))
    with ThreadPoolExecutor(jobs()) as pool:
        left = {pool.submit(_run, call) for call in calls}
        try:
            while left:
                done, left = wait(left, timeout=1, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                progress(len(calls) - len(left), len(calls))
        finally:
            for future in left:
                future.cancel()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        output = done.stdout.decode(errors="replace")
        # Warnings after an error may be longer than what is shown of the output.
        errors = "".join(f"{line}\n" for line in output.splitlines() if "error:" in line)
        raise BuildError(f"{shlex.join(command)} failed:\n{errors[:4000]}{output[-6000:]}")
