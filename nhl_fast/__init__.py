"""nhl_fast: nested binary codes, from training to search."""

from .backend import backends

__all__ = ["backends"]
__version__ = "0.1.0"
