"""Reading arrays of numbers out of MATLAB's MAT-files of version 5, in which SVHN is published, and nothing else.

Source: "MAT-File Format", The MathWorks: a header of 128 bytes, then elements, each a type, a size, and so many bytes;
an array is an element (possibly compressed with zlib) of four others: flags, sizes, name, values. Cells, structures,
objects and functions, which the format has too, are refused.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch

from hatrack.errors import DataError

__all__ = ["read_mat"]

HEADER = 128
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of values by their codes, in numpy's notation; the values of an array may be stored in a smaller type."""
NUMERIC_CLASSES = range(6, 16)
"""Codes of arrays of floats and whole numbers; 1 to 5 are cells, structures, objects, text and sparse arrays."""
COMPLEX = 0x08


class _Element(NamedTuple):
    kind: int
    content: memoryview


def read_mat(content: bytes, names: Collection[str], *, limit: int, origin: str) -> dict[str, torch.Tensor]:
    """Read some arrays.

    Args:
        content: the bytes of the file.
        names: names of the arrays.
        limit: largest size of an array, unpacked, in bytes.
        origin: path or address of the bytes, for the error message.

    Returns:
        Each array by its name, its axes in **reverse** order: MATLAB lets the first index run fastest.

    Raises:
        DataError: the file is damaged, no such file, or lacks one of the arrays.
    """
    if len(content) < HEADER or content[126:128] not in (b"IM", b"MI"):
        raise DataError(f"{origin}: not a MAT-file of version 5; fetch the file again")
    order = "<" if content[126:128] == b"IM" else ">"
    found: dict[str, torch.Tensor] = {}
    try:
        rest = memoryview(content)[HEADER:]
        while rest:
            element, rest = _next_element(rest, order)
            if element.kind == COMPRESSED:
                element, _ = _next_element(memoryview(_inflate(element.content, limit, origin)), order)
            if element.kind != MATRIX:
                raise ValueError(f"an element of type {element.kind} where an array should be")
            name, values = _array(element.content, names, order)
            if name in found:
                raise ValueError(f"two arrays {name!r}")
            if values is not None:
                found[name] = values
    except (ValueError, KeyError, struct.error, zlib.error) as error:
        raise DataError(f"{origin}: the MAT-file is damaged ({error}); fetch the file again") from error
    for name in names:
        if name not in found:
            raise DataError(f"{origin}: holds no array {name!r}; fetch the file again")
    return found


def _next_element(content: memoryview, order: str) -> tuple[_Element, memoryview]:
    """Split off the first element; each but a compressed one is filled up to a multiple of 8 bytes."""
    kind, size = struct.unpack(f"{order}II", content[:8])
    if kind >> 16:  # a small one: its size, its type, and at most four bytes, in one
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if size > 4:
            raise ValueError("a small element of more than 4 bytes")
    else:
        start, end = 8, 8 + size + (0 if kind == COMPRESSED else -size % 8)
    if len(content) < start + size:
        raise ValueError(f"cut short: {len(content) - start} of {size} bytes")
    return _Element(kind, content[start : start + size]), content[end:]


def _inflate(packed: memoryview, limit: int, origin: str) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(packed, limit + 1)
    if len(plain) > limit:
        raise DataError(f"{origin}: unpacks to more than {limit} bytes, which cannot be right")
    if not stream.eof:
        raise ValueError("an array is cut short")
    return plain


def _array(content: memoryview, names: Collection[str], order: str) -> tuple[str, torch.Tensor | None]:
    """Return the name of an array, and its values if it is one of those asked for."""
    flags, content = _next_element(content, order)
    sizes, content = _next_element(content, order)
    label, content = _next_element(content, order)
    name = bytes(label.content).decode("latin-1")
    if name not in names:
        return name, None
    (flag,) = struct.unpack(f"{order}I", flags.content[:4])
    if flag & 0xFF not in NUMERIC_CLASSES or (flag >> 8) & COMPLEX:
        raise ValueError(f"{name!r} is no array of real numbers")
    shape = struct.unpack(f"{order}{len(sizes.content) // 4}i", sizes.content)
    values, _ = _next_element(content, order)
    if values.kind not in NUMBERS:
        raise ValueError(f"{name!r} holds values of type {values.kind}")
    numbers = np.frombuffer(values.content, dtype=f"{order}{NUMBERS[values.kind]}")
    if min(shape, default=0) < 1 or math.prod(shape) != numbers.size:
        raise ValueError(f"{name!r} declares {' x '.join(map(str, shape))} values but holds {numbers.size}")
    return name, torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("="), copy=True)).reshape(shape[::-1])
