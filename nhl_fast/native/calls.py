"""Calls of the native operators, which a Python signal handler may end (Ctrl-C, an alarm).

An operator asks for signals a few times a second. Where a handler raises, the operator gives up with a RuntimeError,
and the handler's own exception takes its place here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

from .library import loaded_path

_STOPPED = "nhl_fast: the call was stopped"


@cache
def _raise_kept() -> Callable[[], None]:
    function = ctypes.PyDLL(str(loaded_path("cpp"))).nhl_fast_raise_kept
    function.restype = None
    return function


@cache
def topk_one() -> Callable[..., bool]:
    """`nhl_fast_topk_one` of csrc/ops/direct.cpp, for work of a few microseconds; the library must be loaded."""
    # With the GIL held: to give it up takes as long as the work.
    function = ctypes.PyDLL(str(loaded_path("cpp"))).nhl_fast_topk_one
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, pointer, number, number, number, number, number, pointer, pointer)
    function.restype = ctypes.c_bool
    return function


class Operators:
    """`torch.ops.nhl_fast`, each operator wrapped; looked up when it is first used, once the library is loaded."""

    def __getattr__(self, name: str) -> Callable:
        operator = getattr(torch.ops.nhl_fast, name)

        def call(*arguments):
            try:
                return operator(*arguments)
            except RuntimeError as error:
                if _STOPPED not in str(error):
                    raise
            _raise_kept()()
            raise RuntimeError(_STOPPED)

        setattr(self, name, call)
        return call


ops = Operators()
