"""The command line: arguments and actions."""

from .arguments import main

__all__ = ["main"]
