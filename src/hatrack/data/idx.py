"""The idx format, in which MNIST and its look-alikes are published.

An idx file is a four-byte magic (two zeros, the type of the values, the number of axes), one big-endian 32-bit
size per axis, and then the values with the last axis running fastest. The description is on the MNIST page of
Y. LeCun, C. Cortes and C. Burges. Only unsigned bytes (type 0x08) are read, since nothing here uses another type.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch

from hatrack.data.files import read_content
from hatrack.errors import DataError, InputError

__all__ = ["decode_idx", "encode_idx", "read_idx"]

MAGIC_BYTES = 4
UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> torch.Tensor:
    """Read an idx file, plain or gzip (told by its content, not by its name).

    Returns:
        A uint8 tensor of the shape that the file declares, values 0 to 255.

    Raises:
        DataError: the file cannot be read, is damaged, or is not idx of unsigned bytes.
    """
    return decode_idx(read_content(path), str(path))


def decode_idx(content: bytes, origin: str) -> torch.Tensor:
    """Decode the content of an idx file.

    Args:
        content: the bytes, already decompressed.
        origin: their path or address, for the error message.

    Returns:
        A uint8 tensor of the shape that the file declares.

    Raises:
        DataError: the magic, the type or the number of bytes is wrong.
    """
    if len(content) < MAGIC_BYTES or content[:2] != b"\0\0":
        raise DataError(f"{origin}: not an idx file (it does not begin with the idx magic)")
    kind, axes = content[2], content[3]
    if kind != UNSIGNED_BYTE:
        raise DataError(f"{origin}: idx values of type 0x{kind:02x} are not supported, only unsigned bytes (0x08)")
    if axes == 0:
        raise DataError(f"{origin}: not a usable idx file (it declares no axis)")
    header = MAGIC_BYTES + 4 * axes
    if len(content) < header:
        raise DataError(f"{origin}: cut short within the idx header ({len(content)} of {header} bytes)")
    shape = struct.unpack(f">{axes}I", content[MAGIC_BYTES:header])
    declared, present = math.prod(shape), len(content) - header
    if declared != present:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{origin}: declares {sizes} = {declared} values but holds {present}; fetch the file again")
    if declared == 0:  # torch.frombuffer refuses an empty buffer
        try:
            return torch.empty(shape, dtype=torch.uint8)
        except RuntimeError as error:  # no value at all, on axes too long for any array
            sizes = " x ".join(map(str, shape))
            raise DataError(f"{origin}: declares {sizes} values, which cannot be; fetch the file again") from error
    # A bytearray, because a tensor over read-only bytes would be a tensor that must never be written to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)


def encode_idx(values: torch.Tensor) -> bytes:
    """Return the content of the idx file that holds ``values``; :func:`decode_idx` is its inverse.

    Args:
        values: uint8 tensor of 1 to 255 axes.

    Raises:
        InputError: another dtype or number of axes.
    """
    if values.dtype != torch.uint8 or not 1 <= values.dim() <= 255:
        raise InputError(f"an idx file holds uint8 values on 1 to 255 axes, not {values.dtype} on {values.dim()}")
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, UNSIGNED_BYTE, values.dim(), *values.shape)
    return header + values.cpu().contiguous().numpy().tobytes()
