"""Byte-exact miniatures of MAT-files, npz files and GTSRB's folders, written record by record."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

CLASSES = {np.dtype("u1"): 9, np.dtype("f8"): 6}
TYPES = {np.dtype("u1"): 2, np.dtype("f8"): 9, np.dtype("u2"): 4}


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    """One element; a small one in the short form, as MATLAB writes it."""
    if len(content) <= 4:
        head = struct.pack(f"{order}I", len(content) << 16 | kind)
        return head + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def mat_array(name: str, values: np.ndarray, *, stored: str = "", order: str = "<", flags: int | None = None) -> bytes:
    """An array as an element, its first index running fastest."""
    kind = CLASSES[values.dtype] if flags is None else flags
    kept = values.astype(stored or values.dtype)
    body = (
        element(6, struct.pack(f"{order}II", kind, 0), order)
        + element(5, struct.pack(f"{order}{values.ndim}i", *values.shape), order)
        + element(1, name.encode(), order)
        + element(TYPES[kept.dtype], kept.astype(kept.dtype.newbyteorder(order)).tobytes(order="F"), order)
    )
    return struct.pack(f"{order}II", 14, len(body)) + body


def compressed(array: bytes, order: str = "<") -> bytes:
    content = zlib.compress(array)
    return struct.pack(f"{order}II", 15, len(content)) + content


def mat_file(*elements: bytes, order: str = "<") -> bytes:
    text = b"MATLAB 5.0 MAT-file, a miniature".ljust(124)
    version = struct.pack(f"{order}H", 0x0100)
    return text + version + (b"IM" if order == "<" else b"MI") + b"".join(elements)


def svhn_file(images: torch.Tensor, labels: list[int]) -> bytes:
    """Like the published files: X of bytes, y of bytes in a column, both compressed."""
    x = images.permute(2, 3, 1, 0).contiguous().numpy()
    y = np.array(labels, dtype=np.uint8)[:, None]
    return mat_file(compressed(mat_array("X", x)), compressed(mat_array("y", y)))


def npz(arrays: Mapping[str, np.ndarray], *, pickles: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=pickles, **arrays)
    return buffer.getvalue()


def ppm(image: torch.Tensor) -> bytes:
    """A picture file of an image ``(3, H, W)`` in the format of GTSRB: a short text, then the bytes."""
    _, height, width = image.shape
    return f"P6\n{width} {height}\n255\n".encode() + image.permute(1, 2, 0).contiguous().numpy().tobytes()


def table(rows: Mapping[str, int]) -> bytes:
    """A table of pictures as GTSRB has it, with sizes and regions of interest that are of no interest here."""
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
    return (head + "".join(f"{name};29;30;5;6;24;25;{label}\r\n" for name, label in rows.items())).encode()


def resized(image: torch.Tensor, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    """Resize an image ``(3, H, W)`` by Pillow."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
