"""Folders of pictures, and what is in a picture file."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from hatrack.errors import DataError, UnfitDataError

__all__ = ["Picture", "class_folders", "is_divided", "read_picture", "say_unread"]

_ENDINGS = "jpg jpeg jpe jfif png apng bmp dib webp gif tif tiff ppm pgm pbm pnm jp2 tga ico pcx avif"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Suffixes of the files that are read, in small letters."""
_FORMATS = "JPEG PNG BMP DIB WEBP GIF TIFF PPM JPEG2000 TGA ICO PCX AVIF"
FORMATS = frozenset(_FORMATS.split())
"""Formats that picture files may have, by Pillow's names; none of them starts another program, as PostScript does."""
CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
"""Files that systems leave in folders, in small letters."""
ONE_OF_SEVERAL = frozenset({"MPO", "ICO"})
"""Formats of which the first picture is the whole one: cameras put smaller or further views behind it."""
WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
LAYOUT = "CLASS/*.png (or .jpg, .tif and others)"


class Picture(NamedTuple):
    """A picture as it was read.

    Attributes:
        pixels: uint8 ``(C, H, W)``, one or three channels.
        brightest: the largest of the values of 16 bits that were scaled to bytes, 0 to 65535; None if it had no such.
    """

    pixels: torch.Tensor
    brightest: int | None


def is_divided(folder: Path) -> bool:
    """Return whether a folder of pictures has training and test samples apart."""
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Find the pictures of every class of a folder ``CLASS/*``, both in the order of their names.

    What begins with a dot is neither a class nor a picture: systems and editors hide their own files so.

    Raises:
        DataError: there are no pictures, a class has none, or some lie deeper; it is named.
    """
    classes: dict[str, list[Path]] = {}
    for each in _visible(folder):
        if not each.is_dir():
            continue
        deeper = next((path for within in _visible(each) if within.is_dir() for path in _pictures_below(within)), None)
        if deeper is not None:
            raise DataError(
                f"{deeper}: lies too deep to be read; pictures must lie in {folder} as {LAYOUT}, or, where training "
                "and test samples are apart, in folders named train and test as train/CLASS/*.png and test/CLASS/*.png"
            )
        classes[each.name] = [path for path in _visible(each) if _is_picture(path)]
        if not classes[each.name]:
            others = next((f", unlike {path.name}" for path in _visible(each) if path.is_file()), "")
            raise DataError(
                f"{each}: is the folder of a class and holds no pictures that can be read{others}; put some there, "
                "such as .png or .jpg, or remove it"
            )
    if not classes:
        raise DataError(f"{folder}: holds no pictures; they must lie in it as {LAYOUT}")
    return classes


def say_unread(folder: Path) -> None:
    """Warn, in one line each, of what lies in a task's folder and is not read."""
    parts = [folder / "train", folder / "test"] if is_divided(folder) else [folder]
    if len(parts) > 1:
        others = [each.name for each in _visible(folder) if each.is_dir() and each not in parts]
        if others:
            _warn(
                f"{folder}: only train and test are read, not {', '.join(others)}; see validation for held-out samples"
            )
    stray = [path for each in {folder, *parts} for path in _visible(each) if _is_picture(path)]
    if stray:
        _warn(f"{min(stray)}: lies in no folder of a class and is not read, {_count(stray)} in all")
    files = [path for part in parts for each in _visible(part) if each.is_dir() for path in _visible(each)]
    rest = [path for path in files if path.is_file() and not _is_picture(path) and path.name.lower() not in CLUTTER]
    if rest:
        _warn(f"{rest[0]}: is no picture of a kind that can be read and is left out, {_count(rest)} in all")


def read_picture(path: Path, channels: int | None) -> Picture:
    """Read a picture file, turned as its EXIF data say that it is to be seen.

    Args:
        path: the file.
        channels: 1 takes the luminance of colours, 3 repeats grey; None leaves them. With either, palettes, colours for
            print and values of 16 bits are converted, the latter by ``value / 65535 * 255``.

    Raises:
        DataError: it is no whole picture, holds several, has transparent parts, or needs ``channels`` to be given.
    """
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=sorted(FORMATS & set(Image.OPEN))) as picture:
                return _converted(picture, path, channels)
        except (
            *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error),
            *(Image.DecompressionBombWarning, Image.DecompressionBombError),
        ) as error:
            if isinstance(error, UnidentifiedImageError):
                raise UnfitDataError(f"{path}: is no picture of a kind that can be read") from error
            if isinstance(error, OSError) and error.strerror:
                raise DataError(f"{path}: could not be read ({error.strerror})") from error
            raise DataError(f"{path}: not a whole picture ({error})") from error


def _converted(picture: Image.Image, path: Path, channels: int | None) -> Picture:
    mode, kind = picture.mode, picture.format
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and kind not in ONE_OF_SEVERAL:
        raise DataError(f"{path}: holds {frames} pictures; save those that are wanted in files of their own")
    deep = mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM"))
    if mode in ("I", "F") and not deep:
        raise DataError(
            f"{path}: holds numbers of 32 bits, whose range is unknown; make bytes of them, or put them in an .npz"
        )
    if channels is None and mode not in ("RGB", "L"):
        raise UnfitDataError(f"{path}: is a picture of kind {mode}; say channels = 1 or 3 to convert it to bytes")
    turned = ImageOps.exif_transpose(picture)
    brightest = None
    if deep:
        values = np.asarray(turned).astype(np.int64)
        brightest = int(values.max())
        array = ((values * 255 + 32767) // 65535).astype(np.uint8)
        if channels == 3:
            array = np.stack([array] * 3, axis=-1)
    else:
        if mode in WITH_ALPHA or (mode == "P" and "transparency" in turned.info):
            turned = turned.convert("RGBA")
            if turned.getchannel("A").getextrema() != (255, 255):
                raise DataError(
                    f"{path}: has transparent parts, whose colour is unknown; put it on a background first, such as by "
                    'Pillow\'s Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)'
                )
        array = np.array(turned.convert({1: "L", 3: "RGB", None: mode}[channels]))
    pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())
    return Picture(pixels, brightest)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _pictures_below(folder: Path) -> Iterator[Path]:
    """Yield the pictures in a folder and in all folders in it, without following links."""
    for path in _visible(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _pictures_below(path)
        elif _is_picture(path):
            yield path


def _count(files: list[Path]) -> str:
    return f"{len(files)} file{'s' if len(files) > 1 else ''}"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
