"""Errors as the command line says them: one line, never a traceback."""

from __future__ import annotations

import contextlib
import os
import re

# What our own checks and the system raise on purpose; of anything else the type is a part of what happened.
_SAID = (ValueError, TypeError, OSError, ImportError, RuntimeError)
_WORKER = "Original Traceback (most recent call last):"
_MEMORY = r"(?:Tried|you tried) to allocate [\d.]+ \w+|CUDA out of memory"
_FRAMES = r"\n?(?:Exception raised from|C\+\+ CapturedTraceback)"  # of PyTorch's own errors
_LONGEST = 2000


def one_line(error: BaseException) -> str:
    """What went wrong, in one line; of an error in a DataLoader's worker, what was raised there."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and re.match(r"[a-z_]+: ", error.strerror or ""):
        text = f"{error.strerror}: {error.filename!r}"  # our own, which names the argument, not the system's number
    if _WORKER in text:
        text = _raised_in_worker(text)
    elif isinstance(error, MemoryError) or (found := re.search(_MEMORY, text)):
        what = text if isinstance(error, MemoryError) else found[0]
        text = f"out of memory ({what})" if what else "out of memory"
    elif not isinstance(error, _SAID) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = " ".join(re.split(_FRAMES, text)[0].split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _raised_in_worker(text: str) -> str:
    """The message at the end of a worker's traceback, without its type."""
    last = [line for line in text.rstrip().splitlines() if line and not line[0].isspace()][-1]
    start = text.rfind(last)
    return re.sub(r"^[\w.]*(?:Error|Exception): ", "", text[start:])


def silence(stream) -> None:
    """Point a stream at nothing once its reader is gone or its disk is full: Python flushes it again at the exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
