"""Picture files written byte by byte, of kinds that no library writes, and what is seen on them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

CHANNELS_OF = {0: 1, 2: 3, 4: 2, 6: 4}
"""Channels by a PNG's type of colour: grey, colour, and both with opaqueness."""


def saved(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def packed(values: Sequence[int], bits: int) -> bytes:
    """Whole numbers one behind the other, the highest bit first, filled up with zeros to whole bytes."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def png(rows: Sequence[Sequence[int]], bits: int, colour: int, key: Sequence[int] | None = None) -> bytes:
    """A PNG of rows of values, channel by channel; ``key`` is the one value or colour that is transparent."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", len(rows[0]) // CHANNELS_OF[colour], len(rows), bits, colour, 0, 0, 0)
    transparent = b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    pixels = zlib.compress(b"".join(b"\0" + packed(row, bits) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(
    rows: Sequence[Sequence[int]],
    bits: int,
    photometric: int,
    *,
    channels: int = 1,
    byte_order: str = "<",
    sign: int = 1,
) -> bytes:
    """An unpacked TIFF of rows of values, channel by channel; photometric 0 means that 0 is white."""
    if bits == 16:
        data = b"".join(struct.pack(f"{byte_order}{len(row)}H", *row) for row in rows)
    else:
        data = b"".join(packed(row, bits) for row in rows)
    tags = [(256, len(rows[0]) // channels), (257, len(rows)), (258, bits), (259, 1), (262, photometric), (273, 0)]
    tags += [(277, channels), (278, len(rows)), (279, len(data)), (339, sign)]
    end = 10 + 12 * len(tags) + 4
    depths = struct.pack(f"{byte_order}{channels}H", *[bits] * channels) if channels > 1 else b""
    content = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(f"{byte_order}IH", 8, len(tags))
    for tag, value in tags:
        value = {273: end + len(depths), 258: end if depths else bits}.get(tag, value)
        count = channels if tag == 258 else 1
        if tag in (273, 279) or (tag == 258 and depths):
            content += struct.pack(f"{byte_order}HHII", tag, 3 if tag == 258 else 4, count, value)
        else:
            content += struct.pack(f"{byte_order}HHIHH", tag, 3, count, value, 0)
    return content + bytes(4) + depths + data


def seen(values: Sequence[float], opaque: float, background: float) -> list[float]:
    """The values of a pixel, 0 to 1, in front of a background, by the definition of opaqueness."""
    return [value * opaque + background * (1 - opaque) for value in values]
