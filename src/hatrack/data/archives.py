"""Reading archives in memory: nothing is written to a disk, and nothing grows beyond what was allowed for.

A name inside an archive is never used as a path, but one that tries to leave its folder shows that the archive was not
made in good faith, so it is refused.
"""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hatrack.errors import DataError

__all__ = ["Choice", "Limits", "folders_in_archive", "read_archive", "read_tar_gz", "read_zip"]

GZIP_WINDOW = 31
"""zlib's code for the largest window, with a gzip header."""

GZIP_MAGIC = b"\x1f\x8b"
ENCRYPTED = 0x1
UTF_8 = 0x800
"""Flags of an entry of a zip archive."""
_TAR_FAULTS = (tarfile.TarError, EOFError, ValueError, OverflowError, OSError)
_ZIP_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, LookupError),
    *(OSError, RuntimeError),
)
"""Errors of the standard library for a damaged zip archive; LookupError is that for an empty name."""

Choice: TypeAlias = Callable[[Sequence[str]], Collection[str]]
"""Returns those of the names of all files that are to be read."""


@dataclass(frozen=True)
class Limits:
    """Bounds on a tree of files, or on an archive of them.

    Attributes:
        files: largest number of files.
        file_bytes: largest size of one of them, unpacked.
        bytes: largest size of all of them together, unpacked, and of the archive itself.
    """

    files: int
    file_bytes: int
    bytes: int


def read_archive(payload: bytes, choose: Choice, limits: Limits, *, origin: str) -> dict[str, bytes]:
    """Read some files out of a zip archive, or out of a tar archive that is packed with gzip.

    Args:
        payload: the bytes of the archive; their beginning tells which of the two it is.
        choose: given the names of all files, returns those to read. ``./`` before a name in a tar archive is left out.
        limits: bounds on the files that are read.
        origin: path or address of the bytes, for the error message.

    Returns:
        The content of each file by its full name.

    Raises:
        DataError: the archive is damaged, encrypted, or holds too much, or names that point outside of it.
    """
    if payload.startswith(GZIP_MAGIC):
        return _read_tar(_gunzip(payload, limits.bytes, origin), choose, limits, origin)
    return read_zip(payload, choose, limits, origin=origin)


def folders_in_archive(payload: bytes, limits: Limits, *, origin: str) -> tuple[str, ...]:
    """Return the full names of the folders that an archive lists by themselves, as it does empty ones.

    Args:
        payload: the bytes of an archive that :func:`read_archive` reads.
        limits: bounds on what is unpacked.
        origin: path or address of the bytes, for the error message.

    Raises:
        DataError: the archive is damaged, or holds too much.
    """
    if payload.startswith(GZIP_MAGIC):
        content = _gunzip(payload, limits.bytes, origin)
        with _damage_named("tar", _TAR_FAULTS, origin), tarfile.open(fileobj=io.BytesIO(content)) as tar:
            names = [entry.name.removeprefix("./") for entry in tar if entry.isdir()]
    else:
        with _damage_named("zip", _ZIP_FAULTS, origin), zipfile.ZipFile(io.BytesIO(payload)) as archive:
            names = [_name_of(entry) for entry in archive.infolist() if entry.is_dir()]
    return tuple(name for each in names if (name := each.rstrip("/")) not in ("", "."))


def read_tar_gz(payload: bytes, members: Collection[str], *, limit: int, origin: str) -> dict[str, bytes]:
    """Read some files out of a tar archive that is packed with gzip.

    Args:
        payload: the bytes of the archive.
        members: full names of the files within it.
        limit: largest size of the whole archive, unpacked, in bytes.
        origin: path or address of the bytes, for the error message.

    Returns:
        The content of each file by its full name.

    Raises:
        DataError: the archive is damaged, too large, or lacks one of the files.
    """
    limits = Limits(len(members), limit, limit)
    contents = _read_tar(_gunzip(payload, limit, origin), frozenset(members).intersection, limits, origin)
    for name in members:
        if name not in contents:
            raise DataError(f"{origin}: the tar archive does not hold {name}; fetch it again")
    return contents


def read_zip(payload: bytes, choose: Choice, limits: Limits, *, origin: str) -> dict[str, bytes]:
    """Read some files out of a zip archive.

    Args:
        payload: the bytes of the archive.
        choose: given the names of all files, returns those to read.
        limits: bounds on the files that are read.
        origin: path or address of the bytes, for the error message.

    Returns:
        The content of each file by its full name.

    Raises:
        DataError: the archive is damaged, encrypted, or holds too much, or names that point outside of it.
    """
    contents: dict[str, bytes] = {}
    total = 0
    with _damage_named("zip", _ZIP_FAULTS, origin), zipfile.ZipFile(io.BytesIO(payload)) as archive:
        for entry in archive.infolist():
            _require_plain_name(entry.filename, origin)
        files = [(_name_of(entry), entry) for entry in archive.infolist() if not entry.is_dir()]
        chosen = frozenset(choose([name for name, _ in files]))
        for name, entry in ((name, entry) for name, entry in files if name in chosen):
            if name in contents:
                raise DataError(f"{origin}: holds {name} twice, and it is not clear which of them is meant")
            if len(contents) == limits.files:
                raise DataError(f"{origin}: holds more than {limits.files:,} images, which cannot be right")
            _require_size(name, entry.file_size, limits, origin)
            if entry.flag_bits & ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{origin}: {name} is encrypted or packed in a way that is not read here")
            total += entry.file_size
            if total > limits.bytes:
                raise DataError(f"{origin}: unpacks to more than {limits.bytes:,} bytes, which cannot be right")
            with archive.open(entry) as file:  # which reads no more than the size that the entry states
                contents[name] = file.read(limits.file_bytes + 1)
    return contents


def _read_tar(content: bytes, choose: Choice, limits: Limits, origin: str) -> dict[str, bytes]:
    entries: dict[str, tarfile.TarInfo] = {}
    with (
        _damage_named("tar", _TAR_FAULTS, origin),
        tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive,
    ):
        for entry in archive:
            name = entry.name.removeprefix("./")
            if entry.isdir():
                continue
            _require_plain_name(name, origin)
            if not entry.isreg() or entry.issparse() or name in entries:
                raise DataError(f"{origin}: {name} is there twice, or is no plain file; do not trust it")
            entries[name] = entry
        chosen = choose(list(entries))
        if len(chosen) > limits.files:
            raise DataError(f"{origin}: holds more than {limits.files} images")
        for name in chosen:
            _require_size(name, entries[name].size, limits, origin)
        return {name: _content_of(archive, entries[name]) for name in chosen}


def _name_of(entry: zipfile.ZipInfo) -> str:
    """Return the name of an entry of a zip archive, which is UTF-8 in many that do not say so."""
    if entry.flag_bits & UTF_8:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()  # cp437 is how the name was read, by the format's definition
    except UnicodeError:
        return entry.filename


def _content_of(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(entry)
    content = b"" if file is None else file.read()
    if len(content) != entry.size:
        raise EOFError("unexpected end of data")
    return content


def _gunzip(payload: bytes, limit: int, origin: str) -> bytes:
    """Decompress at most ``limit`` bytes; what would be more is a fault."""
    stream = zlib.decompressobj(GZIP_WINDOW)
    try:
        content = stream.decompress(payload, limit + 1)
    except zlib.error as error:
        raise DataError(f"{origin}: the gzip data is damaged ({error}); fetch it again") from error
    if len(content) > limit:
        raise DataError(f"{origin}: unpacks to more than {limit:,} bytes, which cannot be right; fetch it again")
    if not stream.eof:
        raise DataError(f"{origin}: the gzip data is cut short; fetch it again")
    return content


@contextlib.contextmanager
def _damage_named(kind: str, faults: tuple[type[Exception], ...], origin: str) -> Iterator[None]:
    """Turn the errors of the standard library into one that names the damaged archive."""
    try:
        yield
    except faults as error:
        raise DataError(f"{origin}: the {kind} archive is damaged ({error}); fetch it again") from error


def _require_size(name: str, size: int, limits: Limits, origin: str) -> None:
    """Refuse a file that is larger than one may be."""
    if size > limits.file_bytes:
        raise DataError(
            f"{origin}: {name} unpacks to {size:,} bytes, more than the {limits.file_bytes:,} that are read of "
            "one packed file; if it is right, save it without compression"
        )


def _require_plain_name(name: str, origin: str) -> None:
    """Refuse names that would lead out of the folder into which the archive were unpacked."""
    parts = name.removesuffix("/").split("/")
    if "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"{origin}: holds the name {name!r}, which points out of the archive; do not trust it")
