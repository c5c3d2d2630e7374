"""Pictures kept small and to the bit: strips of many pictures, one under the other, as WebP without loss.

Strips of photographs take .66 to .84 of the bytes of a sheet in PNG, and .50 to .70 of those of deflated arrays; strips
of grey pictures take about as much as these (``benchmarks/packing.py``). Of pictures with three
channels a strip is in colour; of others every channel is a grey picture of its own.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features

from hatrack.errors import DataError, InputError

__all__ = ["Monitor", "decode_strips", "encode_strips", "require_webp", "strip_lengths"]

Monitor = Callable[[int], None]
"""Told how many pictures have been written."""

MOST_PICTURES = 64
"""Pictures of a strip."""
LARGEST_SIDE = 16_383
"""Width and height that the format allows, in pixels."""
EFFORT = {"method": 4, "quality": 75}
"""Settings of the encoder: how hard it tries to make a file small."""


def require_webp() -> None:
    """Check that Pillow reads and writes WebP, which it may have been built without.

    Raises:
        DataError: it does not.
    """
    if not features.check("webp"):
        raise DataError("packed parts are WebP, without which this Pillow was built; install the one of PyPI")


def strip_lengths(count: int, shape: tuple[int, int, int]) -> list[int]:
    """Return of how many flat pictures, grey or in colour, every strip of a number of pictures consists.

    Args:
        count: number of pictures.
        shape: of each, ``(C, H, W)``.
    """
    channels, height, _ = shape
    flat = count if channels == 3 else count * channels
    most = min(MOST_PICTURES, LARGEST_SIDE // height)
    return [min(most, flat - start) for start in range(0, flat, most)]


def encode_strips(images: torch.Tensor, monitor: Monitor | None = None) -> list[bytes]:
    """Write pictures as strips; :func:`decode_strips` gives back every bit.

    Args:
        images: uint8 ``(N, C, H, W)``.
        monitor: told after every strip how many pictures are written.

    Raises:
        InputError: pictures have no pixels, or more than 16,383 on a side.
    """
    count, channels, height, width = images.shape
    if not channels or not all(1 <= side <= LARGEST_SIDE for side in (height, width)):
        raise InputError(
            f"pictures of {channels} x {height} x {width} cannot be packed: they need a channel at least, and 1 to "
            f"{LARGEST_SIDE:,} pixels on a side"
        )
    flat = images if channels == 3 else images.reshape(-1, 1, height, width)
    strips: list[bytes] = []
    start = 0
    for length in strip_lengths(count, (channels, height, width)):
        strip = flat[start : start + length]
        start += length
        pixels = strip.permute(0, 2, 3, 1).reshape(len(strip) * height, width, -1).expand(-1, -1, 3)
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.numpy())).save(file, "WEBP", lossless=True, exact=True, **EFFORT)
        strips.append(file.getvalue())
        if monitor is not None:
            monitor(start * count // len(flat))
    return strips


def decode_strips(strips: Sequence[bytes], count: int, shape: tuple[int, int, int], origin: str) -> torch.Tensor:
    """Read pictures that :func:`encode_strips` wrote.

    Args:
        strips: the content of every strip.
        count: number of pictures.
        shape: of each, ``(C, H, W)``.
        origin: path of their file, for the error message.

    Returns:
        The pictures, uint8 ``(N, C, H, W)``.

    Raises:
        DataError: there are more strips or fewer, or one is no whole picture of the right size.
    """
    lengths = strip_lengths(count, shape)
    if len(strips) != len(lengths):
        raise DataError(f"{origin}: holds {len(strips)} strips of pictures instead of {len(lengths)}")
    channels, height, width = shape
    parts = [
        _decoded(strip, (width, length * height), origin).reshape(length, height, width, 3)
        for strip, length in zip(strips, lengths, strict=True)
    ]
    if not parts:
        return torch.empty(count, *shape, dtype=torch.uint8)
    flat = torch.cat(parts).permute(0, 3, 1, 2)
    return (flat if channels == 3 else flat[:, :1]).reshape(count, *shape).contiguous()


def _decoded(strip: bytes, size: tuple[int, int], origin: str) -> torch.Tensor:
    """Return the pixels ``(H, W, 3)`` of a strip, which is not decoded if it has another size ``(W, H)``."""
    try:
        with Image.open(io.BytesIO(strip), formats=["WEBP"]) as picture:
            if picture.size != size or picture.mode != "RGB":
                wide, high = picture.size
                raise DataError(
                    f"{origin}: a strip has {wide} x {high} pixels ({picture.mode}) instead of {size[0]} x {size[1]}"
                )
            return torch.from_numpy(np.array(picture))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{origin}: a strip of pictures is damaged ({error})") from error
