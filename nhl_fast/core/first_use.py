"""Modules that register with core from above: named by the root, imported when they are first needed."""

from __future__ import annotations

import importlib

_waiting: dict[str, tuple[str, ...]] = {}


def on_first_use(name: str, *modules: str) -> None:
    """Have `modules` imported before `name` is first looked up: an operation, a backend, or "operations" for all."""
    _waiting[name] = (*_waiting.get(name, ()), *modules)


def load(name: str) -> None:
    """Import what was to register for `name`, once."""
    if name in _waiting:
        for module in _waiting.get(name, ()):
            importlib.import_module(module)
        _waiting.pop(name, None)  # only now: another thread waits in its own import


# What torch.compiler.assume_constant_result sets; calling it would import torch._dynamo, a second on its own.
load._dynamo_marked_constant = True
