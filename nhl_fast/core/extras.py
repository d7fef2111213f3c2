"""The optional packages: which extra of nhl-fast brings them."""

from __future__ import annotations

import importlib.util


def require(module: str, extra: str, purpose: str) -> None:
    """Raise ImportError, saying which extra to install, where an optional `module` is missing."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{purpose} needs {module!r}: pip install 'nhl-fast[{extra}]'")
