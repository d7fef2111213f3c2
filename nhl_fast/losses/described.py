"""What a loss is and which options it takes, read off its source: help is shown before PyTorch is loaded."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    """The classes of this package by name."""
    sources = Path(__file__).parent.glob("*.py")
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(sources))
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def described(name: str) -> tuple[str, tuple[str, ...]]:
    """(the first line of its docstring, its keyword arguments) of the loss class `name`."""
    node = _classes()[name]
    line = (ast.get_docstring(node) or "").partition("\n")[0]
    return line.removesuffix("."), tuple(
        a for a in _arguments(node) if a not in ("self", "num_classes", "code_lengths")
    )


def _arguments(node: ast.ClassDef) -> list[str]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return [argument.arg for argument in (*part.args.args, *part.args.kwonlyargs)]
    bases = (_classes().get(base.id) for base in node.bases if isinstance(base, ast.Name))
    return next(filter(None, (_arguments(base) for base in bases if base is not None)), [])
