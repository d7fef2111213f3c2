"""The benchmarks' command lines."""

from __future__ import annotations

import argparse


def parser(module: str, doc: str) -> argparse.ArgumentParser:
    """For `python -m MODULE`; the first line of its documentation says what it does."""
    return argparse.ArgumentParser(prog=f"python -m {module}", description=doc.splitlines()[0])


def some_of(known):
    """A type: names out of `known`, separated by commas."""

    def parse(text: str) -> list[str]:
        given = [name for name in text.split(",") if name]
        if unknown := sorted(set(given) - set(known)):
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; it takes {', '.join(known)}")
        if not given:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}")
        return given

    return parse


def numbers(text: str) -> list[int]:
    """A type: positive whole numbers, separated by commas."""
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected positive whole numbers, separated by commas, got {text!r}")
    return found
