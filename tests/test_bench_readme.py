"""The generated blocks of README.md and docs/: up to date, and what is wrong with one is told."""

import re

import pytest

from bench.readme import __main__ as readme
from bench.readme import blocks


def test_documents_are_up_to_date(capsys):
    code = readme.main(["--check"])
    assert code == 0, capsys.readouterr().out


def test_every_block_is_in_a_document():
    text = "\n".join(path.read_text(encoding="utf-8") for path in blocks.documents())
    assert {name for name, _ in blocks.BLOCK.findall(text)} == set(blocks.BLOCKS)


@pytest.fixture
def document(tmp_path, monkeypatch):
    """A document of two blocks, the first with a changed number, in place of the real ones."""
    path = tmp_path / "page.md"
    changed = re.sub(r"\| csq \| [\d.]+", "| csq | 0.1", blocks.BLOCKS["head_step"]())
    path.write_text(
        f"Before.\n<!-- bench: head_step -->\n{changed}\n<!-- end -->\nBetween.\n"
        f"<!-- bench: time -->\n{blocks.BLOCKS['time']()}\n<!-- end -->\nAfter.\n"
    )
    monkeypatch.setattr(readme, "documents", lambda: [path])
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    return path


def test_a_changed_number_is_noticed_and_mended(document, capsys):
    assert readme.main(["--check"]) == 1
    assert "page.md: out of date: head_step\n" in capsys.readouterr().out
    assert readme.main(["--write"]) == 0
    assert capsys.readouterr().out == "page.md: wrote head_step\n"
    text = document.read_text()
    assert text.startswith("Before.\n<!-- bench: head_step -->\n| loss |")
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert "<!-- end -->\nBetween.\n<!-- bench: time -->" in text
    assert readme.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- bench: head_steps -->\n<!-- end -->\n", "page.md: unknown block 'head_steps'; there are head_step"),
        ("<!-- bench: time -->\n| a |\n", "page.md: a block that is not closed"),
        ("<!-- bench: time -->\n<!-- bench: search -->\n<!-- end -->\n", "page.md: the block 'time' has no"),
        ("text\n<!-- end -->\n", "an <!-- end --> too many"),
    ],
)
def test_broken_blocks_are_refused_and_nothing_is_written(text, message, document, capsys):
    document.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        readme.main(["--write"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert document.read_text() == text
