"""Blocks of what codes without labels find, from bench/results/unlabelled.json."""

from __future__ import annotations

import json

from bench import unlabelled
from bench.common.record import RESULTS


def _rows(data: str) -> list[dict]:
    rows = json.loads((RESULTS / "unlabelled.json").read_text())["rows"]
    return [row for row in rows if row["data"] == data]


def unlabelled_texts() -> str:
    rows = _rows("texts_minilm")
    return f"{unlabelled.table(rows)}\n\n{unlabelled.gains(rows)}"


def unlabelled_texts_raw() -> str:
    return unlabelled.table(_rows("texts_minilm"), "asymmetric")


def unlabelled_texts_stages() -> str:
    return unlabelled.coarse_to_fine(_rows("texts_minilm"))


def unlabelled_seconds() -> str:
    return unlabelled.seconds(_rows("texts_minilm"))


def unlabelled_cifar10() -> str:
    rows = _rows("cifar10_lite0_384")
    return f"{unlabelled.table(rows)}\n\n{unlabelled.gains(rows)}"


def unlabelled_beside() -> str:
    rows = _rows("texts_minilm")
    pairs = ("learned", unlabelled.A_LENGTH), (unlabelled.HIDDEN, unlabelled.A_LENGTH), (unlabelled.HIDDEN, "learned")
    return "\n\n".join(unlabelled.beside(rows, other, method) for method, other in pairs)


BLOCKS = (
    unlabelled_texts, unlabelled_texts_raw, unlabelled_texts_stages, unlabelled_seconds, unlabelled_cifar10,
    unlabelled_beside,
)  # fmt: skip
