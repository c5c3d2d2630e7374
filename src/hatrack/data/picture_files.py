"""Picture files of every kind as arrays of bytes, as a person sees them; what cannot be seen rightly is refused."""

from __future__ import annotations

import enum
import io
import struct
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from hatrack.errors import DataError, UnfitDataError

__all__ = ["SUFFIXES", "Conversion", "Picture", "read_picture", "refuse_dark"]

_ENDINGS = "jpg jpeg jpe jfif png apng bmp dib webp gif tif tiff ppm pgm pbm pnm jp2 tga ico pcx avif"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Suffixes of the files that are read, in small letters."""
_FORMATS = "JPEG MPO PNG BMP DIB WEBP GIF TIFF PPM JPEG2000 TGA ICO PCX AVIF"
FORMATS = frozenset(_FORMATS.split())
"""Formats that picture files may have, by Pillow's names; none of them starts another program, as PostScript does."""
WHOLE_FIRST = frozenset({"MPO", "ICO"})
"""Formats of which the first picture is the whole one: cameras put smaller or further views behind it."""
MOVING = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
"""Formats in which several pictures are one that moves."""
WITH_ALPHA = ("RGBA", "LA")
"""Kinds of pictures, by Pillow's names, that have opaqueness as a channel."""
LEAST_OF_16_BITS = 1 << 14
"""Value of 65535 that the brightest 16-bit picture of a set must reach; below it, the pictures hold 12 bits or so."""
ALIKE = 8
"""Largest difference, of 255, between the pixels of a picture in which nothing is seen."""
_ORIENTATION, _PHOTOMETRIC, _WHITE_IS_ZERO = 274, 262, 0
"""Numbers of two tags of EXIF and TIFF, and a value of the second one."""


class Conversion(enum.Enum):
    """Something that was done to a picture so that it becomes an array, in words that go behind a number of files."""

    TURNED = "turned as their EXIF data say"
    UNKNOWN_SIDE = "with damaged EXIF data, which may not say all of how they are turned"
    WHITE = "with transparent parts put on white"
    BLACK = "with transparent parts put on black, for on white nothing is seen"
    DEEP = "scaled from 16 bits to 8"
    FIRST = "of which the first of several pictures is taken"
    PRINT = "whose colours for print became red, green and blue"


class Picture(NamedTuple):
    """A picture as it was read.

    Attributes:
        pixels: uint8 ``(C, H, W)``, one or three channels.
        brightest: the largest of the values of 16 bits that were scaled to bytes, 0 to 65535; None if it had no such.
        conversions: what was done to it.
    """

    pixels: torch.Tensor
    brightest: int | None
    conversions: frozenset[Conversion]


def read_picture(content: bytes, origin: str, channels: int | None, *, largest_side: int | None = None) -> Picture:
    """Read a picture file, turned as its EXIF data say that it is to be seen.

    Values of 16 bits become bytes by ``value / 65535 * 255``, values of 12 by ``value / 4095 * 255``: by the range of
    the type, never by that of the picture. Transparent parts are put on white; on black if the picture would have
    hardly two different pixels on white. Of a moving picture the first one is taken.

    Args:
        content: the bytes of the file.
        origin: their path or address, for the error message.
        channels: 1 takes the luminance of colours, 3 repeats grey. None leaves pictures of bytes, grey or red, green
            and blue, and refuses all other kinds, which are converted with either number.
        largest_side: width and height, in pixels, beyond which it is refused before it is decoded; None for Pillow's
            limit alone.

    Raises:
        DataError: it is no whole picture, too large, has several pages, or holds numbers without a range.
        UnfitDataError: it is no picture of a kind that is read, or needs ``channels`` to be given.
    """
    Image.init()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=sorted(FORMATS & set(Image.OPEN))) as picture:
                wide, high = picture.size  # known from the header: a huge picture is never decoded
                if largest_side is not None and max(wide, high) > largest_side:
                    raise DataError(f"{origin}: is {wide} x {high} pixels, more than {largest_side} on a side")
                found = _converted(picture, origin, channels)
                kind = picture.format
        except UnidentifiedImageError as error:
            raise UnfitDataError(f"{origin}: is no picture of a kind that can be read") from error
        except (
            *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error),
            *(Image.DecompressionBombWarning, Image.DecompressionBombError),
        ) as error:
            raise DataError(f"{origin}: not a whole picture ({error})") from error
    # Of what else Pillow warns, such as odd entries in a TIFF file, no pixel depends.
    if damage := next((str(each.message) for each in caught if "Corrupt EXIF" in str(each.message)), ""):
        if kind == "TIFF":  # whose EXIF data say what its pixels are
            raise DataError(f"{origin}: not a whole picture ({damage.strip()})")
        return found._replace(conversions=found.conversions | {Conversion.UNKNOWN_SIDE})
    return found


def refuse_dark(brightest: int | None, origin: str) -> None:
    """Refuse a set of pictures whose 16 bits would be lost but for a few when they become 8.

    Args:
        brightest: largest value of 16 bits in all pictures; None if there were none.
        origin: where the pictures are, for the error message.

    Raises:
        DataError: it is below 16384 of 65535.
    """
    if brightest is not None and brightest < LEAST_OF_16_BITS:
        raise DataError(
            f"{origin}: its pictures of 16 bits have values up to {brightest} of 65535, of which bytes keep little; "
            "scale them to the whole range, or put them in an .npz as numbers"
        )


def _converted(picture: Image.Image, origin: str, channels: int | None) -> Picture:
    mode, kind, raw = picture.mode, picture.format, _raw_mode(picture)
    done = set()
    if picture.getexif().get(_ORIENTATION, 1) in range(2, 9):  # asked before Pillow turns TIFF files on its own
        done.add(Conversion.TURNED)
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and kind not in WHOLE_FIRST:
        if kind not in MOVING:
            raise DataError(f"{origin}: holds {frames} pictures; save those that are wanted in files of their own")
        done.add(Conversion.FIRST)
    deep = mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM"))
    if mode in ("I", "F") and not deep:
        raise DataError(
            f"{origin}: holds numbers of 32 bits or with a sign, whose range is unknown; make bytes of them, or put "
            "them in an .npz"
        )
    if mode == "LAB":
        raise UnfitDataError(f"{origin}: is a picture in LAB colours, which are not read; save it in RGB")
    if channels is None and mode not in ("RGB", "L"):
        raise UnfitDataError(f"{origin}: is a picture of kind {mode}; say channels = 1 or 3 to convert it to bytes")
    turned = ImageOps.exif_transpose(picture)
    if mode == "CMYK":
        done.add(Conversion.PRINT)
    brightest = None
    if deep:
        done.add(Conversion.DEEP)
        turned, brightest = _grey_of_16_bits(turned, picture, raw)
    else:
        turned = _with_alpha(turned, raw)
        if ";16" in raw and kind in ("PNG", "TIFF"):  # of these Pillow has kept the upper bytes
            done.add(Conversion.DEEP)
            upper = int(np.asarray(turned.convert("RGB")).max())
            # A black shape, seen by its opaqueness, is not dark because bytes keep little of it.
            brightest = None if upper == 0 and turned.mode in WITH_ALPHA else upper * 257
    wanted = {1: "L", 3: "RGB", None: mode}[channels]
    array = np.array(turned.convert(wanted))
    if turned.mode in WITH_ALPHA and turned.getchannel("A").getextrema() != (255, 255):
        array, background = _on_background(turned, wanted, origin)
        done.add(background)
    pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())
    return Picture(pixels, brightest, frozenset(done))


def _raw_mode(picture: Image.Image) -> str:
    """Return how a picture's values lie in its file, such as ``RGB;16B``; empty where that is not known."""
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, (tuple, list)) and arguments else arguments
    return first if isinstance(first, str) else ""


def _grey_of_16_bits(turned: Image.Image, picture: Image.Image, raw: str) -> tuple[Image.Image, int]:
    """Return a grey picture of 8 bits, with its opaqueness if one value is transparent, and the largest of 65535."""
    values = np.asarray(turned).astype(np.int64)
    largest = 4095 if raw.startswith("I;12") else 65535
    if getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow heeds it for 8 bits alone
        values = largest - values
    grey = Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))
    if isinstance(key := turned.info.get("transparency"), int):
        grey = _with_transparent(grey, values == key)
    return grey, int(values.max()) * 65535 // largest


def _with_alpha(picture: Image.Image, raw: str) -> Image.Image:
    """Return a picture with its opaqueness as a channel, if parts of it are transparent; else the picture itself."""
    if picture.mode in WITH_ALPHA:
        return picture
    key = picture.info.get("transparency")
    if picture.mode in ("PA", "RGBa", "La") or (picture.mode == "P" and key is not None):
        return picture.convert("RGBA")
    if key is None or picture.mode not in ("1", "L", "RGB") or isinstance(key, bytes):
        return picture
    # One value is transparent; it is as deep as the file's values are, which Pillow has made bytes of.
    if raw in ("L;2", "L;4"):
        key = key * 255 // ((1 << int(raw[-1])) - 1)
    elif raw.startswith("RGB;16"):
        key = tuple(each >> 8 for each in key)
    plain = picture.convert("RGB" if picture.mode == "RGB" else "L")
    values = np.asarray(plain)
    return _with_transparent(plain, (values == np.array(key)).reshape(*values.shape[:2], -1).all(axis=2))


def _with_transparent(picture: Image.Image, where: np.ndarray) -> Image.Image:
    """Return a picture that is transparent where an array ``(H, W)`` says so, and opaque elsewhere."""
    alpha = Image.fromarray(np.where(where, 0, 255).astype(np.uint8))
    return Image.merge("LA" if picture.mode == "L" else "RGBA", (*picture.split(), alpha))


def _on_background(picture: Image.Image, mode: str, origin: str) -> tuple[np.ndarray, Conversion]:
    """Put a picture with transparent parts on white, or on black if on white nothing is seen."""
    picture = picture.convert("RGBA")
    seen = {
        background: np.array(Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert(mode))
        for background, colour in ((Conversion.WHITE, "white"), (Conversion.BLACK, "black"))
    }
    white, black = (_spread(array) for array in seen.values())
    if max(white, black) <= ALIKE < _spread(np.array(picture.convert("RGB"))):
        raise DataError(
            f"{origin}: is transparent all over, so that its colours are seen on no background; save it without alpha"
        )
    chosen = Conversion.BLACK if white <= ALIKE < black else Conversion.WHITE
    return seen[chosen], chosen


def _spread(array: np.ndarray) -> int:
    """Return the largest difference between two pixels in a channel."""
    flat = array.reshape(array.shape[0] * array.shape[1], -1)
    return int((flat.max(axis=0).astype(int) - flat.min(axis=0)).max())
