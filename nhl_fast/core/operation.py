"""The one registry: which implementation serves a call.

An operation is defined by its reference. Compiled implementations register themselves from above (`first_use` says
which modules are imported for that), so that nothing here, and no operation, names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from . import backend as backends
from .backend import check_backend
from .first_use import load

SERVES, ABSENT = "serves", "has no implementation"
OPERATIONS: dict[str, Operation] = {}


def never(*args) -> None:
    """No reason to refuse any arguments."""


class Implementation(NamedTuple):
    """See `Operation.serves`."""

    backend: str
    function: Callable
    on: str | None
    refuses: Callable[..., str | None]
    leaves: Callable[..., str | None]
    traced: bool


class Operation:
    """A public call and who can serve it; called like its reference, with `backend` and `device` by keyword.

    Args:
        name: of the public call, for error messages and tables.
        reference: defines the operation; every implementation takes the same arguments.
        strict: a backend that is named and refuses the arguments, or tensors of their device, is a wrong value of
            the argument `backend`: ValueError, whether or not it is there. Otherwise RuntimeError, with the reason.
        called: called(*args) gives a name for error messages that depends on the arguments.
    """

    def __init__(self, name: str, reference: Callable, *, strict: bool = False, called: Callable | None = None):
        self.name, self.reference, self.strict, self.called = name, reference, strict, called
        self._reference = Implementation("reference", reference, None, never, never, True)
        self._compiled: dict[str, Implementation] = {}
        OPERATIONS[name] = self

    def serves(
        self,
        backend: str,
        *,
        on: str,
        refuses: Callable[..., str | None] = never,
        leaves: Callable[..., str | None] | None = None,
        traced: bool = True,
    ):
        """Decorator: the function serves the operation as `backend`.

        Args:
            backend: its name. Whether it can run is the matter of `backend.probe`.
            on: the type of the devices where "auto" takes it.
            refuses: refuses(*args) says why these arguments cannot be served, or None. It looks at shapes, dtypes,
                devices and options alone, and is asked (but for `strict`) where the backend is available.
            leaves: leaves(*args) says why "auto" leaves these arguments to another; default as `refuses`.
            traced: "auto" takes it while torch.compile traces, too, which fuses the plain definition.
        """

        def register(function: Callable) -> Callable:
            leaving = refuses if leaves is None else leaves
            self._compiled[backend] = Implementation(backend, function, on, refuses, leaving, traced)
            return function

        return register

    def __call__(self, *args, backend: str = "auto", device: torch.device | None = None):
        return self.pick(backend, args[0].device if device is None else device, args).function(*args)

    def pick(self, backend: str, device: torch.device, args: tuple) -> Implementation:
        """The implementation that serves these arguments on `device`.

        Raises:
            ValueError: the name is unknown, or that backend does not implement the operation.
            RuntimeError: the named backend is not available on this machine, or cannot serve the arguments: why.
        """
        load(self.name)
        if isinstance(backend, str) and backend == "auto":
            kind = device.type
            for found in self._compiled.values():
                here = found.on == kind and (found.traced or not torch.compiler.is_compiling())
                if here and backends.available(found.backend) and found.leaves(*args) is None:
                    return found
            return self._reference
        return self._named(check_backend(backend), device, args)

    def _named(self, backend: str, device: torch.device, args: tuple) -> Implementation:
        if backend == "reference":
            return self._reference
        name = self.name if self.called is None else self.called(*args)
        if backend not in self._fitting(device, args):
            fitting = ", ".join(map(repr, (*self._fitting(device, args), "reference")))
            why = self._reason(backend, device, args)
            raise ValueError(f"backend: {name} runs here on {fitting}, not on {backend!r}: {why}")
        if not backends.available(backend):
            detail = backends.probe(backend).detail
            raise RuntimeError(f"backend: {backend!r} is not available for {name}: {detail}")
        found = self._compiled[backend]
        if why := found.refuses(*args):
            raise RuntimeError(f"backend: {backend!r} cannot serve {name} here: {why}")
        return found

    def _fitting(self, device: torch.device, args: tuple) -> list[str]:
        """The backends that may be named for these arguments."""
        compiled = [self._compiled[name] for name in backends.names() if name in self._compiled]
        if self.strict:
            compiled = [f for f in compiled if f.on == device.type and f.refuses(*args) is None]
        return [found.backend for found in compiled]

    def reasons(self, *args, device: torch.device | None = None) -> dict[str, str]:
        """{backend: "serves", or why not}: on this machine; with arguments, of these (on `device`, or args[0]'s)."""
        load(self.name)
        if args and device is None:
            device = args[0].device
        return {name: self._reason(name, device, args) for name in backends.names()}

    def _reason(self, name: str, device: torch.device | None, args: tuple) -> str:
        if name == "reference":
            return SERVES
        found = self._compiled.get(name)
        if found is None:
            return ABSENT
        if not backends.available(name):
            return backends.probe(name).detail
        if args and self.strict and found.on != device.type:
            return f"serves {found.on} tensors, these are on {device}"
        return (found.refuses(*args) if args else None) or SERVES


def table() -> dict[str, dict[str, str]]:
    """{operation: {backend: "serves", or why not}} of every operation, on this machine."""
    load("operations")
    return {name: OPERATIONS[name].reasons() for name in sorted(OPERATIONS)}
