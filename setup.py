"""Package layout and (where a compiler and PyTorch are at hand) the native libraries; see pyproject.toml.

Environment: NHL_FAST_REQUIRE_NATIVE=1 makes a missing or failed native build an error instead of a warning;
NHL_FAST_CUDA=0 or 1 leaves out or demands the CUDA library.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def load_build():
    """nhl_fast/native/builder.py by path: importing the package would import torch."""
    spec = importlib.util.spec_from_file_location("nhl_fast_build", ROOT / "nhl_fast" / "native" / "builder.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


native = load_build()


class BuildNative(build_ext):
    """Builds each library; where one cannot be built, it is built at its first use."""

    made: ClassVar[set[Path]] = set()

    def build_extensions(self):
        for extension in self.extensions:
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            if output in self.made and output.exists():
                continue
            try:
                native.build(extension.name.rpartition("_")[2], output)
                self.made.add(output)
            except native.BuildError as error:
                self.report(str(error))

    def report(self, reason):
        if os.environ.get("NHL_FAST_REQUIRE_NATIVE") == "1":
            raise SystemExit(f"nhl_fast: the native library was not built: {reason}")
        line = "!" * 100
        print(
            f"{line}\nnhl_fast: WARNING: a native library was not built now; it will be at its first use.\n{reason}\n"
            f"To build it yourself: python -m nhl_fast.native build\n{line}",
            file=sys.stderr,
        )

    def get_outputs(self):
        return [path for path in super().get_outputs() if os.path.exists(path)]


class Wheel(bdist_wheel):
    """A wheel without a library is a pure one."""

    def run(self):
        # Modules and libraries of an earlier build would go into this wheel.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        BuildNative.made.clear()
        if self.distribution.ext_modules:
            self.run_command("build_ext")
            if not self.get_finalized_command("build_ext").get_outputs():
                self.distribution.ext_modules = []
                self.root_is_pure = True
        super().run()


def extensions():
    try:
        kinds = native.wanted(native.find_torch())
    except native.BuildError:
        kinds = ["cpp"]  # BuildNative says what is missing
    return [Extension(f"nhl_fast.native._{kind}", [], py_limited_api=True, optional=True) for kind in kinds]


setup(
    packages=[
        *find_packages(include=["nhl_fast", "nhl_fast.*"]),
        "nhl_fast.csrc",
        *("nhl_fast." + name for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"nhl_fast.kernels": "kernels", "nhl_fast.csrc": "csrc"},
    package_data={"nhl_fast": ["py.typed"], "nhl_fast.csrc": ["**/*"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
