"""Files whose content is known in advance: reading them, packed or plain, and checking what they hold."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from hatrack.errors import DataError

__all__ = ["DataFile", "read_content", "read_payload", "unpack"]

GZIP_MAGIC = b"\x1f\x8b"


def unpack(payload: bytes, origin: str) -> bytes:
    """Return the content of a file's bytes: decompressed if they are gzip, otherwise as they are.

    Args:
        payload: the bytes of the file. Whether they are gzip is told by their first two bytes, not by a name.
        origin: their path or address, for the error message.

    Raises:
        DataError: the bytes begin as gzip but are cut short or damaged.
    """
    if not payload.startswith(GZIP_MAGIC):
        return payload
    try:
        return gzip.decompress(payload)
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
