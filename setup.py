"""Package layout and (where a compiler and PyTorch are at hand) the native libraries; see pyproject.toml.

Environment: NHL_FAST_REQUIRE_NATIVE=1 makes a missing or failed native build an error instead of a warning;
NHL_FAST_CUDA=0 or 1 leaves out or demands the CUDA library.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def load_build():
    """nhl_fast/native/_build.py by path: importing the package would import torch."""
    spec = importlib.util.spec_from_file_location("nhl_fast_build", ROOT / "nhl_fast" / "native" / "_build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


native = load_build()


class BuildNative(build_ext):
    """Builds each library; where one cannot be built, leaves the reason for `nhl_fast.backends()`."""

    def build_extensions(self):
        for extension in self.extensions:
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            log = output.parent / native.FAILURE
            log.unlink(missing_ok=True)
            try:
                native.build(extension.name.rpartition("_")[2], output, Path(self.build_temp))
            except native.BuildError as error:
                self.report(log, str(error))

    def report(self, log, reason):
        if os.environ.get("NHL_FAST_REQUIRE_NATIVE") == "1":
            raise SystemExit(f"nhl_fast: the native library was not built: {reason}")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(reason)
        line = "!" * 100
        print(
            f"{line}\nnhl_fast: WARNING: installed without its native library; the PyTorch reference serves "
            f"instead.\n{reason}\nTo build it later: python -m nhl_fast.native build\n{line}",
            file=sys.stderr,
        )

    def get_outputs(self):
        made = [*super().get_outputs(), *(str(Path(p).parent / native.FAILURE) for p in super().get_outputs())]
        return sorted({path for path in made if os.path.exists(path)})


def extensions():
    try:
        kinds = native.wanted(native.find_torch())
    except native.BuildError:
        kinds = ["cpp"]  # BuildNative says what is missing
    # ext_modules is never empty, so that the wheel is tagged for its platform; optional: may be absent.
    return [Extension(f"nhl_fast.native._{kind}", [], py_limited_api=True, optional=True) for kind in kinds]


setup(
    packages=[
        "nhl_fast",
        "nhl_fast.csrc",
        "nhl_fast.data",
        "nhl_fast.fused",
        "nhl_fast.kernels",
        "nhl_fast.losses",
        "nhl_fast.native",
    ],
    package_dir={"nhl_fast.kernels": "kernels", "nhl_fast.csrc": "csrc"},
    package_data={"nhl_fast.csrc": ["*.h", "*.cpp", "cpu/*", "cuda/*", "train/*"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
