"""The package's operators: seen by PyTorch where a call is recorded or transformed, plain functions elsewhere.

A custom operator costs tens of microseconds of the host each time it is dispatched, as much as a launch. An eager
step needs none of what that buys, so it calls the function behind the operator (`direct`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def operator(name: str, **options) -> Callable:
    """`torch.library.custom_op`, which also keeps the decorated function for `direct`."""

    def register(function):
        made = torch.library.custom_op(name, **options)(function)
        made.function = function
        return made

    return register


def observed() -> bool:
    """Whether something looks at the operators of a call: a compiler, a tracing mode, a function transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def direct(op) -> Callable:
    """What to call for an operator whose gradient nobody records: the function behind it, unless it is observed."""
    return op if observed() else op.function


def outputs(u: torch.Tensor, code_lengths, programs: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty (values, deltas) of a body; values (m,), or partial sums (programs, m)."""
    m = len(code_lengths)
    return (
        torch.empty(m if programs is None else (programs, m), device=u.device, dtype=torch.float32),
        torch.empty(u.shape[0], sum(code_lengths), device=u.device, dtype=torch.float32),
    )
