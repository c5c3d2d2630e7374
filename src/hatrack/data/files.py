"""Files whose content is known in advance: reading them, packed or plain, checking what they hold, downloading them.

A download is resumed where it was interrupted, checked before it is kept, and stored whole or not at all. What has
arrived lies in ``NAME.part`` until all of it is there and has the right hash; only then does it get its name. Several
processes may want the same file: one fetches it, the others wait and find it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from hatrack.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at once then spoil each other, which the hash shows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "OFFLINE_VARIABLE",
    "DataFile",
    "DownloadMonitor",
    "download_file",
    "offline",
    "read_content",
    "read_payload",
    "require_unpacked",
    "unpack",
    "unpacked_limit",
]

GZIP_MAGIC = b"\x1f\x8b"
UNPACKED_BYTES, UNPACKED_FACTOR = 1 << 30, 50
"""Bytes that a packed file may always unpack to, and how many times its size it may where that is more."""


def unpacked_limit(packed: int) -> int:
    """Return the largest number of bytes that a packed file may unpack to: a few kilobytes can fill any memory.

    Args:
        packed: its size in bytes.
    """
    return max(UNPACKED_BYTES, UNPACKED_FACTOR * packed)


def require_unpacked(size: int, packed: int, origin: str) -> None:
    """Check that a file does not unpack to more than it may.

    Args:
        size: its size when unpacked, or a part of that, in bytes.
        packed: its size in bytes.
        origin: its path or address, for the error message.

    Raises:
        DataError: it does.
    """
    if size > (limit := unpacked_limit(packed)):
        raise DataError(
            f"{origin}: its {packed:,} bytes unpack to more than {limit:,}, as those of files do that are made to fill "
            "the memory; if it is right, save it without compression"
        )


def unpack(payload: bytes, origin: str) -> bytes:
    """Return the content of a file's bytes: decompressed if they are gzip, otherwise as they are.

    Args:
        payload: the bytes of the file. Whether they are gzip is told by their first two bytes, not by a name.
        origin: their path or address, for the error message.

    Raises:
        DataError: the bytes begin as gzip but are cut short or damaged, or unpack to more than they may.
    """
    if not payload.startswith(GZIP_MAGIC):
        return payload
    content = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(payload)) as stream:
            while block := stream.read(BLOCK):
                content += block
                require_unpacked(len(content), len(payload), origin)
        return bytes(content)
    except EOFError as error:
        raise DataError(f"{origin}: the gzip data is cut short; fetch the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{origin}: the gzip data is damaged ({error}); fetch the file again") from error


def read_payload(path: Path) -> bytes:
    """Return the bytes of the file at ``path`` as they are.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_content(path: Path) -> bytes:
    """Return the content of the file at ``path``, decompressed if it is gzip.

    Raises:
        DataError: the file cannot be read, or its gzip data is damaged.
    """
    return unpack(read_payload(path), str(path))


@dataclass(frozen=True)
class DataFile:
    """One published file of a data set, known by the hash of its content.

    The name proves nothing: MNIST and Fashion-MNIST use the same four file names.

    Attributes:
        name: name of the plain file.
        sha256: SHA-256 of the content, after gzip decompression where it is gzip, in lower-case hexadecimal.
        suffix: suffix that the publisher appends to ``name`` for the packed file, for example ``".gz"``.
        md5: MD5 of the content, for a file of which no SHA-256 is published; not used where there is a SHA-256.
        archive: whether the content is the file as it is published, packed, and the hash is that of the packed file.
    """

    name: str
    sha256: str = ""
    suffix: str = ""
    md5: str = ""
    archive: bool = False

    @property
    def published_name(self) -> str:
        """Name under which the file is published, downloaded and cached."""
        return self.name + self.suffix

    @property
    def accepted_names(self) -> tuple[str, ...]:
        """Names under which the file may lie on a disk, the published one first."""
        return tuple(dict.fromkeys((self.published_name, self.name)))

    def opened(self, payload: bytes, *, origin: str, dataset: str) -> bytes:
        """Return the content of a file's bytes, decompressed unless it is an archive, if it is what this file holds.

        Args:
            payload: the bytes, packed or not.
            origin: their path or address, for the error message.
            dataset: name of the data set the file belongs to, for the error message.

        Raises:
            DataError: the gzip data is damaged, or the hash is another one.
        """
        content = payload if self.archive else unpack(payload, origin)
        return self.verified(content, origin=origin, dataset=dataset)

    def verified(self, content: bytes, *, origin: str, dataset: str) -> bytes:
        """Return ``content`` unchanged if it is what this file holds.

        Args:
            content: decompressed bytes.
            origin: their path or address, for the error message.
            dataset: name of the data set the file belongs to, for the error message.

        Raises:
            DataError: the hash is another one.
        """
        if self.sha256:
            kind, right = "SHA-256", hashlib.sha256(content).hexdigest() == self.sha256
        else:
            kind, right = "MD5", hashlib.md5(content, usedforsecurity=False).hexdigest() == self.md5
        if not right:
            raise DataError(f"{origin}: its content is not that of {dataset}'s {self.name} (the {kind} differs)")
        return content


TIMEOUT_SECONDS = 15.0
BLOCK = 1 << 18
LARGEST = 1 << 31
"""Largest number of bytes that are accepted from a server."""
OFFLINE_VARIABLE = "HATRACK_OFFLINE"

DownloadMonitor: TypeAlias = Callable[[str, int, "int | None"], None]
"""Function that is told of a download: the file's name, the bytes so far, and the number of all, None if unknown."""


def offline() -> bool:
    """Return whether ``HATRACK_OFFLINE`` forbids the network: it is set, and neither empty nor 0."""
    return os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")


def download_file(
    file: DataFile,
    mirrors: Sequence[str],
    folder: Path,
    *,
    dataset: str,
    timeout: float = TIMEOUT_SECONDS,
    monitor: DownloadMonitor | None = None,
) -> bytes:
    """Download ``file`` into ``folder`` and return its content.

    Args:
        file: the file to fetch; its published name is appended to a mirror's address.
        mirrors: addresses ending in ``/``, tried in this order.
        folder: folder in which the file is kept, as published; made if absent.
        dataset: name of the data set, for error messages.
        timeout: longest wait for a mirror to answer or to send the next bytes, in seconds.
        monitor: told how it goes on.

    Returns:
        The content, verified, and decompressed unless it is an archive.

    Raises:
        DataError: no mirror gave the right file, or it cannot be written. ``folder`` then holds nothing new, except
            ``NAME.part`` if the connection broke: the next download goes on from there.
    """
    path = folder / file.published_name
    faults = []
    try:
        with _new_folder(folder), _part_of(path) as part:
            if part is None:
                return file.opened(read_payload(path), origin=str(path), dataset=dataset)
            if path.exists():  # another process may have completed it since the caller looked
                with contextlib.suppress(DataError):
                    return file.opened(read_payload(path), origin=str(path), dataset=dataset)
            for mirror in mirrors:
                address = mirror + file.published_name
                try:
                    content = _from_mirror(file, address, part, dataset, timeout, monitor)
                except DataError as error:
                    faults.append(str(error))
                else:
                    part.flush()
                    os.fsync(part.fileno())
                    if fcntl is None:
                        part.close()  # Windows renames no open file
                    _partial(path).replace(path)
                    return content
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    raise DataError("; ".join(faults) or f"{dataset} has no download address")


def _from_mirror(
    file: DataFile, address: str, part: BinaryIO, dataset: str, timeout: float, monitor: DownloadMonitor | None
) -> bytes:
    """Complete ``part`` from an address and check it; what is wrong is thrown away."""
    while True:
        resumed = _receive(address, part, timeout, lambda done, total: _tell(monitor, file, done, total))
        part.seek(0)
        try:
            return file.opened(part.read(), origin=address, dataset=dataset)
        except DataError:
            part.truncate(0)
            if not resumed:
                raise
            # The beginning may have been of another file: once more, all of it.


def _receive(address: str, part: BinaryIO, timeout: float, tell: Callable[[int, int | None], None]) -> bool:
    """Add to ``part`` what it lacks, and return whether it held a part before that is still its beginning."""
    begun = part.seek(0, os.SEEK_END)
    request = urllib.request.Request(address, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            resumed = begun > 0 and answer.status == 206 and _starts_at(answer, begun)
            if not resumed:
                part.seek(0)
                part.truncate()
            done = begun if resumed else 0
            length = answer.headers.get("Content-Length", "")
            total = done + int(length) if length.isdecimal() else None
            tell(done, total)
            while True:
                # read1 gives what has arrived even if the connection breaks before the block is full
                block = answer.read1(BLOCK)
                if not block:
                    break
                _write(part, block)
                done += len(block)
                tell(done, total)
                if done > LARGEST:
                    part.truncate(0)
                    raise DataError(f"{address}: sends more than {LARGEST} bytes, which cannot be right")
    except urllib.error.HTTPError as error:
        if error.code == 416 and begun:  # there is nothing after what is there: it is whole, or of another file
            return True
        raise DataError(f"{address}: download failed ({error})") from error
    except _WriteError as error:
        raise OSError(error.args[0].errno, error.args[0].strerror) from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{address}: download failed ({error})") from error
    if total is not None and done != total:
        raise DataError(f"{address}: download failed (the connection broke after {done} of {total} bytes)")
    return resumed


class _WriteError(Exception):
    """The disk, not the network, has failed."""


def _write(part: BinaryIO, block: bytes) -> None:
    try:
        part.write(block)
    except OSError as error:
        raise _WriteError(error) from error


def _starts_at(answer: http.client.HTTPResponse, begun: int) -> bool:
    return answer.headers.get("Content-Range", "").startswith(f"bytes {begun}-")


def _tell(monitor: DownloadMonitor | None, file: DataFile, done: int, total: int | None) -> None:
    if monitor is not None:
        monitor(file.published_name, done, total)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[BinaryIO | None]:
    """Open the part that has arrived, for this process alone; yield None if another process has just completed it.

    An empty one is removed at the end.
    """
    partial = _partial(path)
    while True:
        part = partial.open("a+b")
        if fcntl is not None:
            fcntl.flock(part, fcntl.LOCK_EX)
        if _is_still(part, partial):
            break
        part.close()  # whoever held it has given it its name, or removed it
        if path.exists():
            yield None
            return
    try:
        yield part
    finally:
        if not part.closed:
            empty = part.seek(0, os.SEEK_END) == 0 and _is_still(part, partial)
            if empty and fcntl is not None:
                partial.unlink()  # while it is locked: nobody else has begun to write to it
            part.close()
            if empty and fcntl is None:
                partial.unlink(missing_ok=True)


def _is_still(part: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder if need be, and remove it again with its parents if nothing came into it."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for one in made:
                one.rmdir()
