"""Forked children (multiprocessing, gunicorn --preload) can compute: with all threads, or at least with one.

A child has none of its parent's threads. GNU's OpenMP, which PyTorch's CPU builds use, waits there for ever for those
that it had, so they are released before the fork; both sides start new ones when they need them.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref

import torch

_SOFT = 1  # omp_pause_soft: threads go, settings stay
_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_released = False


def _pause():
    """`omp_pause_resource_all` of OpenMP 5.0, or None where PyTorch's runtime is older or another."""
    return getattr(ctypes.CDLL(None), "omp_pause_resource_all", None) if os.name == "posix" else None


def _before() -> None:
    global _released
    pause = _pause()
    _released = pause is not None and pause(_SOFT) == 0


def _in_child() -> None:
    global _released
    if not _released:  # an older runtime, or a fork that Python hears of only afterwards
        torch.set_num_threads(1)
    _released = False
    for lock in list(_locks):
        lock.renew()


class Lock:
    """A `threading.Lock` that is free in a forked child, whoever held it at the fork: its holder isn't there."""

    def __init__(self):
        self.renew()
        _locks.add(self)

    def renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self):
        lock = self._lock
        lock.acquire()
        self._held = lock

    def __exit__(self, *_):
        self._held.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
