"""Reading the pickles of CIFAR-10's official Python release without letting a pickle do anything.

A pickle is a program. Here it is first scanned: only the opcodes that the official files hold may occur,
every length must fit in the file, memo slots and nesting are bounded. Then the three names that the files use
(NumPy's `_reconstruct`, `ndarray` and `dtype`) are bound to inert stand-ins that only note what they were
given, so no function or class outside this module is ever called, NumPy's own included.
"""

from __future__ import annotations

import io
import pickle
import pickletools

import numpy as np

_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINSTRING", "BINSTRING"}
_MEMO = {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "SETITEM", "SETITEMS"}
_REPEATED = {"MARK", "APPEND", "APPENDS"} | _VALUES | _MEMO
_OPCODES = (
    {"PROTO", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "REDUCE", "BUILD"} | _REPEATED | _TUPLES | _CONTAINERS
)
# An official file has about thirty opcodes that are not repeated; the bound keeps nesting shallow.
_MAX_STRUCTURE = 200
_BYTES = (b"u1", b"|u1", b"uint8")


class Refused(ValueError):
    """The pickle holds something that the official files do not."""


class _Inert:
    __slots__ = ()

    def __setstate__(self, state):
        raise Refused("it sets the state of something that is not its array")


class _NdArray(_Inert):
    __slots__ = ()


class _Dtype(_Inert):
    """dtype('u1', align, copy), and the state that NumPy wrote after it."""

    __slots__ = ()

    def __setstate__(self, state):
        if not isinstance(state, tuple) or state[1:5] != (b"|", None, None, None):
            raise Refused("its array is not one of plain bytes")


class _MakeDtype(_Inert):
    __slots__ = ()

    def __call__(self, *arguments):
        if len(arguments) != 3 or arguments[0] not in _BYTES:
            raise Refused(f"its array has dtype {arguments[:1]!r:.60}, expected uint8")
        return _Dtype()


class _Array(_Inert):
    """The array to be; `value` is set once, when the state has been found sound."""

    __slots__ = ("value",)

    def __setstate__(self, state):
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("its array has an unknown state")
        version, shape, dtype, fortran, content = state
        plain = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int and n >= 0 for n in shape)
        if version != 1 or not plain or type(dtype) is not _Dtype or type(content) is not bytes:
            raise Refused("its array is not a matrix of bytes")
        if shape[0] * shape[1] != len(content):
            raise Refused(f"its array of shape {shape} has {len(content)} bytes")
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Reconstruct(_Inert):
    __slots__ = ()

    def __call__(self, *arguments):
        if len(arguments) != 3 or type(arguments[0]) is not _NdArray:
            raise Refused("it reconstructs something that is no NumPy array")
        return _Array()


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _MakeDtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _NAMES[module, name]()
        except KeyError:
            raise Refused(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid):
        raise Refused("it asks for an outside object")


def _scan(content: bytes) -> None:
    structure = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content), 1):
        if opcode.name not in _OPCODES:
            raise Refused(f"it holds the opcode {opcode.name}, at byte {position}")
        if opcode.name == "LONG_BINPUT" and argument > count:
            raise Refused(f"it uses memo slot {argument} after {count} opcodes")
        if opcode.name == "GLOBAL" and tuple(argument.split(" ", 1)) not in _NAMES:
            raise Refused(f"it asks for {argument.replace(' ', '.')!r:.80}")
        structure += opcode.name not in _REPEATED
        if structure > _MAX_STRUCTURE:
            raise Refused("it is nested or structured far beyond an official file")


def load_batch(content: bytes) -> dict[bytes, object]:
    """The dictionary of one batch file: bytes keys, and values of list, bytes, int or uint8 matrix.

    Raises:
        Refused: the pickle holds anything else, is damaged or cut short. Nothing was executed.
    """
    try:
        _scan(content)
        result = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Refused:
        raise
    except Exception as error:
        # Damaged pickles raise nearly anything: what matters is that nothing outside was called.
        raise Refused(f"it is damaged or no pickle ({type(error).__name__}: {error})") from None
    if type(result) is not dict:
        raise Refused(f"it holds a {type(result).__name__}, expected a dictionary")
    return {key: getattr(value, "value", None) if type(value) is _Array else value for key, value in result.items()}
