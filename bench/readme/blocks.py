"""Blocks of generated text in the documents: found, made, compared."""

from __future__ import annotations

import re
from pathlib import Path

from bench.common.record import ROOT
from bench.kernels import floors
from bench.readme import cards, evidence, experiments, speed, table_a, unlabelled

BLOCKS = {
    **{
        make.__name__: make
        for make in (
            *(
                speed.head_step,
                speed.loops,
                speed.search,
                speed.evaluation,
                speed.index,
                speed.stream,
                speed.measures,
            ),
            *(speed.funnel, speed.one_query, speed.gpu_step, speed.gpu_search, speed.gpu_index),
        )
    },
    **{
        make.__name__: make
        for make in (
            *(experiments.nested_vs_single, experiments.centers, experiments.weighting, experiments.length_choice),
            *(experiments.distillation, experiments.robustness, experiments.time),
        )
    },
    "floors": floors.table,
    **{make.__name__: make for make in unlabelled.BLOCKS},
    **cards.BLOCKS,
    **evidence.BLOCKS,
    **table_a.BLOCKS,
}
BEGIN, END = "<!-- bench: {} -->", "<!-- end -->"
BLOCK = re.compile(BEGIN.format(r"([^>]*?)") + r"\n(.*?)" + END, re.DOTALL)


def documents() -> list[Path]:
    """What may hold blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str, name: str) -> str:
    """`text` with every block made anew. ValueError, with the document's `name`, for an unknown or an open block."""

    def block(match) -> str:
        what = match[1]
        if what not in BLOCKS:
            raise ValueError(f"{name}: unknown block {what!r}; there are {', '.join(BLOCKS)}")
        if BEGIN.format("")[:-5] in match[2]:
            raise ValueError(f"{name}: the block {what!r} has no {END}")
        return f"{BEGIN.format(what)}\n{BLOCKS[what]()}\n{END}"

    made, count = BLOCK.subn(block, text)
    if not count == text.count(BEGIN.format("")[:-5]) == text.count(END):
        raise ValueError(f"{name}: a block that is not closed, or an {END} too many")
    return made


def stale(text: str, made: str) -> list[str]:
    """Names of the blocks that differ."""
    before, after = BLOCK.findall(text), BLOCK.findall(made)
    return [what for (what, old), (_, new) in zip(before, after) if old != new]
