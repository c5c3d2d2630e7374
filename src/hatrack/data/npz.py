"""Data sets in numpy's npz files: four arrays, ``x_train y_train x_test y_test``."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from hatrack.data.archives import Limits, read_archive
from hatrack.data.arrays import ImageArrays
from hatrack.errors import DataError, UnfitDataError

__all__ = ["array_names", "decode_npy", "decode_npz", "read_first", "read_npz"]

BYTES = 1 << 31
"""Largest size of an array, unpacked."""


def decode_npz(content: bytes, origin: str, *, classes: int | None = None) -> ImageArrays:
    """Decode an npz file. Nothing in it is executed: pickled arrays are refused.

    Args:
        content: the bytes of the file.
        origin: their path or address, for the error message.
        classes: number of classes; None accepts any labels from 0.

    Returns:
        Images uint8 ``(N, C, H, W)``, from images ``(N, H, W)``, ``(N, H, W, 1)`` or ``(N, H, W, 3)`` of bytes, and
        labels int64 ``(N,)`` from whole numbers ``(N,)`` or ``(N, 1)``.

    Raises:
        DataError: the file is damaged, an array is missing, or of another type, shape or range.
    """
    arrays = read_npz(content, ImageArrays._fields, limit=BYTES, origin=origin)
    images = {part: _images(arrays[part], f"{origin}: {part}") for part in ("x_train", "x_test")}
    labels = {
        part: _labels(arrays[part], len(images[part.replace("y", "x")]), classes, f"{origin}: {part}")
        for part in ("y_train", "y_test")
    }
    if images["x_train"].shape[1:] != images["x_test"].shape[1:]:
        raise DataError(f"{origin}: training and test images differ in shape; fetch the file again")
    return ImageArrays(images["x_train"], labels["y_train"], images["x_test"], labels["y_test"])


def read_npz(content: bytes, names: Collection[str], *, limit: int, origin: str) -> dict[str, np.ndarray]:
    """Read some arrays out of an npz file. Nothing in it is executed: pickled arrays are refused.

    Args:
        content: the bytes of the file.
        names: names of the arrays.
        limit: largest size of all of them together, unpacked, in bytes.
        origin: path or address of the bytes, for the error message.

    Raises:
        DataError: the file is damaged, an array is missing, or is none of plain values.
    """
    within = [f"{name}.npy" for name in names]
    limits = Limits(len(within), limit, limit)
    files = read_archive(content, lambda present: [name for name in within if name in present], limits, origin=origin)
    for name in within:
        if name not in files:
            raise UnfitDataError(f"{origin}: holds no {name}; it must hold {', '.join(within)}")
    return {name: decode_npy(files.pop(f"{name}.npy"), f"{origin}: {name}.npy") for name in names}


def array_names(path: Path) -> frozenset[str]:
    """Return the names of the arrays of an npz file; none where it cannot be read, which :func:`read_npz` refuses."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return frozenset()
    return frozenset(name.removesuffix(".npy") for name in names if name.endswith(".npy"))


def read_first(content: bytes, names: Sequence[str], limit: int, origin: str) -> np.ndarray:
    """Read the first of some arrays that an npz file holds. Nothing in it is executed: pickled arrays are refused.

    Args:
        content: the bytes of the file.
        names: names of the arrays, the preferred one first.
        limit: largest size of the array, unpacked, in bytes.
        origin: path or address of the bytes, for the error message.

    Raises:
        DataError: the file is damaged, holds none of them, or the array is none of plain values.
    """
    within = [f"{name}.npy" for name in names]
    limits = Limits(1, limit, limit)
    files = read_archive(content, lambda there: [name for name in within if name in there][:1], limits, origin=origin)
    for name in files:
        return decode_npy(files[name], f"{origin}: {name}")
    raise UnfitDataError(f"{origin}: holds none of {', '.join(within)}; save the array as {names[0]}=...")


def decode_npy(content: bytes, origin: str) -> np.ndarray:
    """Return the array of an npy file, after checking that it holds as many bytes as its header says.

    Args:
        content: the bytes of the file.
        origin: its name, for the error message.

    Raises:
        DataError: the file is damaged, or the array is none of plain values.
    """
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        present = len(content) - file.tell()
        if dtype.hasobject:
            raise UnfitDataError(
                f"{origin} is no whole array of plain values but one of Python objects, which are not unpickled; save "
                "it as numbers or texts, such as y.astype(str)"
            )
        if math.prod(shape) * dtype.itemsize != present:
            raise ValueError(f"{shape} values of type {dtype} in {present} bytes")
        file.seek(0)
        return npy.read_array(file, allow_pickle=False)
    except (ValueError, OverflowError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{origin} is no whole array of plain values ({reason}); fetch the file again") from error


def _images(array: np.ndarray, origin: str) -> torch.Tensor:
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise DataError(f"{origin} must be bytes (N, H, W), (N, H, W, 1) or (N, H, W, 3), not {_say(array)}")
    if array.size == 0:
        raise DataError(f"{origin} is empty")
    images = torch.from_numpy(np.ascontiguousarray(array))
    return images.unsqueeze(1) if array.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _labels(array: np.ndarray, count: int, classes: int | None, origin: str) -> torch.Tensor:
    if array.dtype.kind not in "iu" or array.shape not in ((count,), (count, 1)):
        raise DataError(f"{origin} must be {count} whole numbers, not {_say(array)}")
    if int(array.min()) < 0 or (classes is not None and int(array.max()) >= classes):
        raise DataError(f"{origin}: a label is outside of 0..{'' if classes is None else classes - 1}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _say(array: np.ndarray) -> str:
    return f"{array.dtype} {tuple(array.shape)}"
