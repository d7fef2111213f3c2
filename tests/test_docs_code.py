"""Every python block of README.md and docs/ runs, in order, a page's blocks in one namespace."""

import functools
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import nhl_fast as nhl

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Blocks that tests/test_add_a_loss.py runs: they are parts of files.
ELSEWHERE = {"docs/add-a-loss.md"}


def pages():
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [str(path.relative_to(ROOT)) for path in files if BLOCK.search(path.read_text(encoding="utf-8"))]
    return [name for name in names if name not in ELSEWHERE]


def prelude() -> dict:
    """What the pages take as given: features and labels, a backbone, packed codes and embeddings."""
    torch.manual_seed(0)
    rows = torch.randn(240, 64)
    labels = torch.arange(240) % 4
    codes = nhl.pack_codes(torch.randn(240, 128))
    vectors = torch.nn.functional.normalize(torch.randn(600, 320) @ torch.randn(320, 320), dim=1)
    held_out, database = vectors[:40], vectors[40:]
    coder = nhl.NestedCoder(method="itq", code_lengths=(8, 16, 32, 64, 128, 256)).fit(database)
    return {
        "torch": torch, "np": np, "numpy": np, "nhl": nhl,
        "backbone": torch.nn.Linear(12, 2048), "images": torch.randn(40, 12),
        "features": rows, "labels": labels, "one_hot": torch.nn.functional.one_hot(labels, 4),
        "codes": codes, "db_codes": codes[40:], "q_codes": codes[:40],
        "q_labels": labels[:40], "db_labels": labels[40:],
        "embeddings": database, "queries": held_out,
        "vectors": database, "coder": coder,
        "csq_loss": lambda u, y: (u.mean(1) - y).square().mean(),
    }  # fmt: skip


def sentence_transformers():
    """A stand-in: the page's model is not on every machine."""

    class SentenceTransformer:
        def __init__(self, name):
            self.name = name

        def encode(self, texts, normalize_embeddings):
            rows = np.random.default_rng(len(texts)).standard_normal((len(texts), 384)).astype(np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    return module


# What differs on a page.
EXTRA = {
    "README.md": lambda: {"labels": torch.arange(40) % 100},
    "docs/distributed.md": lambda: {
        "layer": nhl.NestedHashLayer(2048),
        "loss": nhl.losses.CSQ(4),
        "labels": torch.arange(40) % 4,
        "index": None,
    },
    "docs/dropin.md": lambda: {"labels": torch.arange(40) % 100},
    "docs/gpu.md": lambda: {  # an index on CPUs goes the ways of cards
        "card": torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        "cards": ["cuda:0"] if torch.cuda.is_available() else ["cpu", "cpu"],
        "queries": nhl.pack_codes(torch.randn(5, 128)),
    },
    "docs/moving.md": lambda: {"embeddings": torch.randn(50, 384).numpy()},
    "docs/search.md": lambda: {"queries": nhl.pack_codes(torch.randn(5, 128)), "outputs": torch.randn(5, 128)},
}


@pytest.fixture
def alone(tmp_path):
    """A process group of one rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", pages())
def test_blocks_run(page, tmp_path, monkeypatch, request):
    if page == "docs/distributed.md":
        request.getfixturevalue("alone")
    monkeypatch.chdir(tmp_path)
    # Learned codes of few steps: what is tested is that the pages' calls are right.
    monkeypatch.setattr(nhl, "fit_layer", functools.partial(nhl.fit_layer, steps=5))
    monkeypatch.setattr(nhl, "NestedCoder", functools.partial(nhl.NestedCoder, steps=5))
    monkeypatch.setitem(sys.modules, "sentence_transformers", sentence_transformers())
    (tmp_path / "lines.txt").write_text("\n".join(f"text {i}" for i in range(400)))
    text = (ROOT / page).read_text(encoding="utf-8")
    space = {**prelude(), **EXTRA.get(page, dict)()}
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        code = compile("\n" * line + match[1], str(ROOT / page), "exec")
        exec(code, space)


def test_no_other_word_hides_python():
    """A block that is not run must not look like one that is."""
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        words = set(re.findall(r"^ *```(\w.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert words <= {"python", "bash", "sql", "text"}, path.name


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).is_file(), link
    assert "    make demo " in text
    assert "    make test " in text


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def loose_commands(text: str) -> list[str]:
    """Lines that begin with a command and stand in no block: a site shows them as running text."""
    bare = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^(?:nhl-fast|make|pip|python) .*$", bare, re.MULTILINE)


def test_commands_stand_in_blocks():
    assert loose_commands("    nhl-fast a\n\nnhl-fast b\n    nhl-fast c\n") == ["nhl-fast b"]
    found = {path.name: loose_commands(path.read_text(encoding="utf-8")) for path in (ROOT / "docs").rglob("*.md")}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert loose_commands(text_of("README.md")) == []


def test_readme_counts_the_losses():
    words = ("fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
    assert f"({words[len(nhl.losses.NAMES) - 14]} published losses;" in text_of("README.md")


def test_public_names_are_in_the_reference():
    reference = text_of("docs/api.md")
    told = set(re.findall(r"^::: [\w.]*\.(\w+)$", reference, re.MULTILINE))
    # Modules of losses stand whole; results and an error stand with the calls that give them.
    shown_elsewhere = {"losses", "IndexFileError", "NeighborRecall", "ObjectiveResult"}
    assert set(nhl.__all__) - told == shown_elsewhere


def test_every_published_loss_is_in_the_reference_and_the_table():
    modules = set(re.findall(r"^::: nhl_fast\.losses\.(\w+)$", text_of("docs/api.md"), re.MULTILINE))
    assert {cls.__module__.rpartition(".")[2] for cls in nhl.losses.REGISTRY.values()} <= modules
    table = text_of("docs/choosing.md")
    assert [name for name in nhl.losses.NAMES if f"| `{name}`" not in table and f", `{name}` |" not in table] == []


def test_stability_names_what_the_reference_has():
    told = set(re.findall(r"^::: nhl_fast\.(?:data|training)\.[\w.]*?(\w+)$", text_of("docs/api.md"), re.MULTILINE))
    named = set(re.findall(r"`(\w+)`", text_of("docs/stability.md")))
    assert told - {"load", "TrainedModel"} <= named
