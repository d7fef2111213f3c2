"""bench/ as packages: every program is run with `python -m` and says so."""

import importlib
import re
import sys

import pytest

from bench.common.record import ROOT
from bench.gpu import parts

FILES = sorted(path for path in (ROOT / "bench").rglob("*.py"))
PROGRAMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in FILES
    if "arguments.parser(" in path.read_text() and path.name not in ("arguments.py", "__main__.py")
}
# Imported here, these would choose for this process whether Triton interprets.
TRITON = ("bench.kernels.device", "bench.step.host", "bench.step.tiles")


def test_no_module_edits_the_path_of_imports():
    for path in FILES:
        assert not re.search(r"sys\.path|noqa: E402", path.read_text()), path


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_program_is_named_as_it_is_run(module):
    (name,) = re.findall(r'arguments\.parser\("([\w.]+)", __doc__\)', PROGRAMS[module].read_text())
    assert name == {"bench.gpu.check": "bench.gpu"}.get(module, module)


@pytest.mark.parametrize("module", [name for name in PROGRAMS if name not in TRITON])
def test_help(module, monkeypatch, capsys):
    program = importlib.import_module(module)
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("usage: python -m bench.")
    assert program.__doc__.splitlines()[0] in told


def test_tests_that_a_card_runs_are_there():
    found = 0
    for suites in (parts.DEVICE_TESTS, parts.KERNEL_TESTS, parts.OTHER_TESTS):
        for _, arguments in suites.values():
            for argument in arguments:
                path = argument.removeprefix("--ignore=")
                if path.startswith("tests"):
                    assert (ROOT / path).exists(), path
                    found += 1
    assert found >= 6
