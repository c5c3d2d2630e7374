"""Reading the pickles in which CIFAR is published, and no others.

A pickle can name any function of any module and have it called. Here no module is ever imported: the five names that a
pickled array of bytes needs stand for small classes of this file, and every other name is refused. This is the second
lock: bytes without the hash of a published file never get here.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import warnings
from typing import Any

import torch

from hatrack.errors import DataError

__all__ = ["load_pickle"]

_NUMBERING = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
"""Opcodes that number a value, which needs a table as long as the number; a value takes a byte at least."""

_RESERVING = frozenset({"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"})
"""Opcodes that are of no use here and reserve memory before reading what goes there."""


def load_pickle(content: bytes, origin: str) -> dict[str, Any]:
    """Read a pickled dictionary of numbers, texts, lists and arrays of bytes.

    Args:
        content: the pickle, of any protocol, written by Python 2 or 3.
        origin: its path or address, for the error message.

    Returns:
        The dictionary, its keys as text. Texts that Python 2 wrote are bytes; arrays are uint8 tensors.

    Raises:
        DataError: the pickle is damaged, is no dictionary, or asks for something else, which is then not done.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that mean nothing, in damaged texts
            _require_modest(content)
            loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise _fault(origin, error) from error
    except (ArithmeticError, MemoryError, ImportError, RecursionError) as error:
        raise _fault(origin, error) from error
    if not isinstance(loaded, dict):
        raise DataError(f"{origin}: holds a {type(loaded).__name__}, not a dictionary; fetch the file again")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value.tensor(origin)
        if isinstance(value, _Array)
        else value
        for key, value in loaded.items()
    }


def _require_modest(content: bytes) -> None:
    """Refuse what makes the unpickler reserve memory for what is not there: gigabytes, for a byte or two of damage."""
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name in _RESERVING or (opcode.name in _NUMBERING and int(argument or 0) > len(content)):
            raise pickle.UnpicklingError(f"{opcode.name} {argument} at byte {position}")


def _fault(origin: str, error: BaseException) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{origin}: not a pickle of plain data ({reason}); fetch the file again")


class _Array:
    """Stand-in for ``numpy.ndarray``: an array of bytes in C order."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.content = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind) or fortran or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array of something other than bytes in C order")
        if not all(isinstance(size, int) and size >= 0 for size in shape) or math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes")
        self.shape, self.content = tuple(shape), content

    def tensor(self, origin: str) -> torch.Tensor:
        """Return the array as a tensor of its own, uint8."""
        if not self.content:
            raise DataError(f"{origin}: holds an empty array; fetch the file again")
        return torch.frombuffer(bytearray(self.content), dtype=torch.uint8).reshape(self.shape)


class _Kind:
    """Stand-in for ``numpy.dtype``, for unsigned bytes only."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1", "|u1", b"|u1"):
            raise pickle.UnpicklingError(f"an array of type {name!r}, not unsigned bytes")

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment, which single bytes do not have."""


class _Reconstruct:
    """Stand-in for numpy's function of that name, which makes an array to be filled afterwards."""

    def __call__(self, kind: object, *_: object) -> _Array:
        if kind is not _Array:
            raise pickle.UnpicklingError("an array of a type of its own")
        return _Array()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function with a state")


class _Encode:
    """Stand-in for ``codecs.encode``, with which Python 3 writes bytes for Python 2."""

    def __call__(self, text: str, encoding: str | bytes) -> bytes:
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
        return text.encode("latin-1")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function with a state")


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows five names."""

    NAMES = {  # noqa: RUF012 - a constant
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Kind,
        ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
        ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
        ("_codecs", "encode"): _Encode(),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, instead of importing anything."""
        try:
            return self.NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run") from None
