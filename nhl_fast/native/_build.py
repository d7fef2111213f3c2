"""Builds the native libraries from csrc/: used by setup.py and by `python -m nhl_fast.native build`.

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
from dataclasses import dataclass
from pathlib import Path

MINIMUM_TORCH = (2, 10)
LIBRARIES = {"cpp": "_cpp.abi3.so", "cuda": "_cuda.abi3.so"}
FAILURE = "build-failed.tmp"  # the reason, for `nhl_fast.backends()`
CUDA_ARCHITECTURES = "80 90 100"

_CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unused-parameter"
_NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr"
_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


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
        if (folder / "hamming.h").is_file():
            return folder
    raise BuildError("the C++ sources (csrc/) are neither beside nor inside the nhl_fast package")


def sources(kind: str, folder: Path) -> list[Path]:
    """The files to compile for library `kind`."""
    if kind == "cuda":
        return sorted(folder.glob("cuda/*.cu"))
    return [*sorted(folder.glob("*.cpp")), *engine_sources(folder)]


def engine_sources(folder: Path) -> list[Path]:
    """Those of the "cpp" library that need no PyTorch."""
    return [path for part in ("cpu", "train") for path in sorted(folder.glob(f"{part}/*.cpp"))]


def source_hash(kind: str, folder: Path) -> str:
    """A short hash of everything that goes into library `kind`, to notice one built from other sources."""
    digest = hashlib.sha256()
    patterns = ("cuda/*",) if kind == "cuda" else ("*", "cpu/*", "train/*")
    for path in sorted(p for pattern in patterns for p in folder.glob(pattern) if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


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
    raise BuildError("no C++ compiler was found (set CXX, or install g++)")


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
        raise BuildError("NHL_FAST_CUDA=1, but nvcc was not found (set CUDA_HOME)")
    cuda = choice == "1" or (choice == "" and torch.cuda is not None and find_nvcc() is not None)
    return ["cpp", "cuda"] if cuda else ["cpp"]


def build(kind: str, output: Path, work: Path | None = None) -> Path:
    """Compile library `kind` ("cpp" or "cuda") to the file `output`.

    Args:
        kind: which library.
        output: the file to make; replaced in one step, and only when the build succeeds.
        work: folder for object files, kept for the next build; None for a temporary one.

    Raises:
        BuildError: something is missing, or the compiler failed (the message ends with its output).
    """
    torch, folder = find_torch(), source_dir()
    output.parent.mkdir(parents=True, exist_ok=True)
    if work is None:
        with tempfile.TemporaryDirectory(prefix="nhl_fast_build_") as temporary:
            return build(kind, output, Path(temporary))
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    include = f"-I{torch.path / 'include'}"
    stamp = f'-DNHL_FAST_SOURCE_HASH=\\"{source_hash(kind, folder)}\\"'
    if kind == "cuda":
        nvcc = find_nvcc()
        if nvcc is None:
            raise BuildError("nvcc was not found (set CUDA_HOME)")
        codes = os.environ.get("NHL_FAST_CUDA_ARCHITECTURES", CUDA_ARCHITECTURES).split()
        targets = " ".join(f"-gencode=arch=compute_{c},code=sm_{c}" for c in codes)
        targets += f" -gencode=arch=compute_{codes[-1]},code=compute_{codes[-1]}"
        compile_command = f"{nvcc} {_NVCC_FLAGS} {targets} {_TARGET} {stamp} -isystem {torch.path / 'include'}"
        compile_command += " -MD -MF $out.d -c $in -o $out"
        names = ["torch_cpu", "torch", "c10"]
        if (torch.path / "lib/libtorch_cuda.so").is_file():
            names.append("torch_cuda")  # PyTorch's current stream; without it, the library loads and says so
        libraries = " ".join(f"-l{name}" for name in names)
        link_command = f"{nvcc} -shared $in -Xlinker --no-as-needed -L{torch.path / 'lib'} {libraries} -o $out"
    else:
        cxx = find_compiler()
        compile_command = f"{cxx} {_CXX_FLAGS} {_TARGET} {stamp} {include} -MMD -MF $out.d -c $in -o $out"
        # torch is loaded first, so its libraries are found by name; no path of this machine goes in.
        link_command = f"{cxx} -shared $in -L{torch.path / 'lib'} -ltorch_cpu -ltorch -lc10 -o $out"
    library = work / LIBRARIES[kind]
    objects = {path: work / f"{kind}_{path.parent.name}_{path.stem}.o" for path in sources(kind, folder)}
    lines = [
        f"rule compile\n  command = {compile_command}\n  depfile = $out.d\n  deps = gcc\n",
        f"rule link\n  command = {link_command}\n",
        *(f"build {_escape(target)}: compile {_escape(path)}" for path, target in objects.items()),
        f"build {_escape(library)}: link {' '.join(map(_escape, objects.values()))}\n",
    ]
    (work / f"{kind}.ninja").write_text("\n".join(lines))
    _run([*_ninja(), "-C", str(work), "-f", f"{kind}.ninja", str(library)])
    partial = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    shutil.copyfile(library, partial)
    os.replace(partial, output)
    return output


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _ninja() -> list[str]:
    if shutil.which("ninja"):
        return ["ninja"]
    if importlib.util.find_spec("ninja") is not None:
        return [sys.executable, "-m", "ninja"]
    raise BuildError("ninja was not found (pip install ninja)")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        # Warnings after an error may be longer than what is shown of the output.
        errors = "".join(f"{line}\n" for line in done.stdout.splitlines() if "error:" in line)
        raise BuildError(f"{shlex.join(command)} failed:\n{errors[:4000]}{done.stdout[-6000:]}")
