"""Text out of bytes: a file's encoding, as its mark says it or its user."""

from __future__ import annotations

import codecs

from hatrack.errors import InputError, UnfitDataError

__all__ = ["check_encoding", "decoded"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, with whose mark it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encodings that read and remove them."""
_OTHERS = {
    b"PK\x03\x04": "a zip archive, or the workbook of a spreadsheet; unpack it, or save the sheet as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an old workbook of a spreadsheet; save the sheet as CSV UTF-8",
    b"PAR1": "a Parquet file; let its name end with .parquet",
    b"ARROW1": "an Arrow file; let its name end with .arrow",
}
"""First bytes of files that are no text, and what they are."""


def check_encoding(name: str) -> None:
    """Check that an encoding is known.

    Raises:
        InputError: there is no such encoding of text.
    """
    try:
        "a".encode(name)
    except (LookupError, ValueError) as error:
        raise InputError(f"there is no encoding {name!r}; write it as Python does, such as utf-8 or cp1252") from error


def decoded(content: bytes, encoding: str | None, origin: str) -> str:
    """Return the text of a file.

    A byte order mark decides: UTF-8, UTF-16 or UTF-32. Without one and without anything said, the text is UTF-8.

    Args:
        content: the bytes of the file.
        encoding: Python's name of the encoding; None for nothing said.
        origin: path of the file, for messages.

    Raises:
        UnfitDataError: the bytes are of another encoding, or no text; the message says which to try.
    """
    for start, what in _OTHERS.items():
        if content.startswith(start):
            raise UnfitDataError(f"{origin}: is {what}")
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if marked is not None and encoding is not None and _family(encoding) != _family(marked):
        raise UnfitDataError(f"{origin}: begins with the mark of {_family(marked)}, so it is not {encoding}")
    if marked is None and encoding is None and b"\0" in content[:2]:
        name = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
        raise UnfitDataError(f"{origin}: is UTF-16 without a mark; {_saying(name)}")
    said = marked or encoding or "utf-8"
    try:
        text = content.decode(said)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte {content[error.start]:#04x}"
        if encoding is not None or marked is not None:
            raise UnfitDataError(
                f"{origin} line {line}: is not {_family(said)} ({byte}); say another encoding"
            ) from error
        raise UnfitDataError(
            f"{origin} line {line}: is not UTF-8 ({byte}), perhaps Latin-1 or Windows-1252; {_saying('cp1252')}"
        ) from error
    except UnicodeError as error:  # codecs such as utf-16 without a mark, or idna
        raise UnfitDataError(f"{origin}: is not {said} ({error}); say another encoding") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UnfitDataError(f"{origin} line {line}: holds a null character, as no text does; is it a table?")
    return text


def _family(encoding: str) -> str:
    """Return an encoding without what it says of marks and of the order of bytes."""
    name = codecs.lookup(encoding).name
    return next((each.upper() for each in ("utf-8", "utf-16", "utf-32") if name.startswith(each)), encoding)


def _saying(encoding: str) -> str:
    return f'say encoding = "{encoding}" (`encoding={encoding}`), or save it as UTF-8 (in a spreadsheet: as CSV UTF-8)'
