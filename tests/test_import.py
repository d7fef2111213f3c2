"""What is imported when: the package adds nothing heavy to PyTorch, and the command line answers without it."""

import importlib
import json
import subprocess
import sys

import pytest

import nhl_fast
from nhl_fast import losses
from nhl_fast.cli import data_options
from nhl_fast.core import names
from nhl_fast.data import _LOADERS
from nhl_fast.data.cifar10 import PROTOCOLS
from nhl_fast.head import distillation
from nhl_fast.training import backbones

HEAVY = ("torch._dynamo", "torch._inductor", "triton", "sympy", "scipy", "sklearn", "matplotlib", "PIL", "tqdm")


def modules_after(code, *argv):
    """(exit status, output, names of the modules loaded) of a new process."""
    tail = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)), file=sys.__stdout__)"
    code = f"import atexit\n@atexit.register\ndef _():\n    {tail}\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    *said, loaded = done.stdout.rstrip("\n").split("\n")
    return done.returncode, "\n".join(said) + done.stderr, set(json.loads(loaded))


def test_import_adds_nothing_heavy_to_torch():
    _, _, torch_alone = modules_after("import torch")
    status, said, loaded = modules_after("import torch, nhl_fast\nfor n in nhl_fast.__all__: getattr(nhl_fast, n)")
    assert status == 0, said
    assert "nhl_fast.head.objective" in loaded
    assert "nhl_fast.native" in loaded
    assert not [n for n in HEAVY if n in loaded - torch_alone]
    others = {n.partition(".")[0] for n in loaded - torch_alone}
    assert others <= {"nhl_fast", "safetensors", "shlex", "sysconfig", "_sysconfig", "concurrent", "fcntl"} | {
        n for n in others if n.startswith("_")
    }


def test_a_search_and_a_step_load_no_compiler():
    code = """
import torch, nhl_fast as nhl
layer = nhl.NestedHashLayer(4, code_lengths=(4, 8))
objective = nhl.NestedObjective(layer, nhl.losses.CSQ(num_classes=2, code_lengths=(4, 8)))
objective(torch.randn(6, 4), torch.arange(6) % 2).total.backward()
codes = layer.encode(torch.randn(6, 4))
nhl.search(codes, codes, 2)
"""
    _, _, torch_alone = modules_after("import torch")
    status, said, loaded = modules_after(code)
    assert status == 0, said
    assert not [n for n in HEAVY if n in loaded - torch_alone]


RUN = "from nhl_fast.cli.arguments import main\nimport sys\nsys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--help"], 0, "usage: nhl-fast"),
        (["--version"], 0, f"nhl-fast {nhl_fast.__version__}"),
        (["train", "--help"], 0, "--loss"),
        ([], 2, "COMMAND"),
        (["fly"], 2, "fly"),
        (["train"], 2, "--out"),
        (["train", "--out", "x", "--loss", "hinge"], 2, "hinge"),
        (["train", "--out", "x", "--lengths", "a"], 2, "8,16,32"),
        (["train", "--out", "x", "--epochs", "0"], 1, "epochs"),
        (["train", "--out", "x", "--lengths", "16,8"], 1, "increasing"),
        (["train", "--out", "x", "--lr", "nan"], 1, "lr"),
        (["train", "--out", __file__], 1, "is a file"),
        (["train", "--resume", "missing"], 1, "missing does not exist"),
    ],
    ids=str,
)
def test_the_command_line_answers_without_torch(argv, status, message):
    found, said, loaded = modules_after(RUN, *argv)
    assert found == status
    assert message in said
    assert not {"torch", "numpy"} & loaded


def test_python_dash_m_without_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nhl_fast", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"nhl-fast {nhl_fast.__version__}\n"
    assert "nhl_fast.cli.arguments" in done.stderr
    assert "torch" not in done.stderr


def test_every_public_name_is_there():
    assert set(nhl_fast.__all__) <= set(dir(nhl_fast))
    assert set(nhl_fast._HOMES) | {"losses"} == set(nhl_fast.__all__)
    for name, home in nhl_fast._HOMES.items():
        value = getattr(nhl_fast, name)
        assert value is getattr(importlib.import_module(f"nhl_fast.{home}"), name)
        assert callable(value)
        assert importlib.util.find_spec(f"nhl_fast.{name}") is None, "a module would hide the public name"
    assert nhl_fast.paper_table.methods_table
    with pytest.raises(AttributeError, match="'nhl_fast' has no attribute 'nothing'"):
        nhl_fast.nothing  # noqa: B018


def test_names_known_without_torch_are_those_of_the_modules():
    assert tuple(losses.REGISTRY) == losses.NAMES
    assert {name.lower(): getattr(losses, name) for name in losses._PUBLISHED} == losses.REGISTRY
    assert set(losses.__all__) <= set(dir(losses))
    assert backbones.NAMES == names.BACKBONES
    assert distillation.TEACHERS == names.TEACHERS
    assert tuple(_LOADERS) == names.DATASETS
    assert (*PROTOCOLS, "holdout") == names.PROTOCOLS
    assert set(names.CENTERS) == {*importlib.import_module("nhl_fast.centers.make").KINDS, "aligned"}
    assert set(data_options.OPTIONS) | set(data_options.FLAGS) >= {"root", "path", "protocol", "augment"}
