"""Folders on a disk and archives in memory, seen alike: as trees of folders and files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hatrack.data.archives import Limits, folders_in_archive, read_archive
from hatrack.data.files import read_payload
from hatrack.errors import DataError

__all__ = ["ArchiveFiles", "FileTree", "FolderFiles", "file_tree", "last_name"]


class FileTree(Protocol):
    """A folder or an archive. Paths in it are relative, with ``/`` between names; its top is ``""``."""

    @property
    def origin(self) -> str:
        """Path of the folder or archive, for messages."""
        ...

    def place(self, path: str) -> str:
        """Return where a file or folder is, for messages."""
        ...

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the paths of the folders and of the files in a folder, both in the order of their names.

        Raises:
            DataError: it cannot be read.
        """
        ...

    def below(self, folder: str) -> Iterator[str]:
        """Yield the paths of all files in a folder and in the folders in it, in any order."""
        ...

    def contents(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of some files, in this order.

        Raises:
            DataError: one cannot be read, or there is too much.
        """
        ...

    def files(self, paths: Sequence[str]) -> Mapping[str, bytes] | Mapping[str, Path]:
        """Return some files as :func:`hatrack.data.trees.tree_digest` takes them, by their paths.

        Raises:
            DataError: as :meth:`contents`.
        """
        ...


@dataclass(frozen=True)
class FolderFiles:
    """A folder on a disk as a tree of files.

    Attributes:
        folder: the folder.
        limits: bounds on the files that are read; None for none.
    """

    folder: Path
    limits: Limits | None = None

    @property
    def origin(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def place(self, path: str) -> str:
        """The path of a file or folder on the disk."""
        return str(self._path(path))

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """See :class:`FileTree`. Links are followed, and broken ones count as files, so that they are noticed."""
        try:
            found = sorted(self._path(folder).iterdir())
            folders = {path for path in found if path.is_dir()}
        except OSError as error:
            raise DataError(f"{self.place(folder)}: cannot be read ({error.strerror or error})") from error
        prefix = f"{folder}/" if folder else ""
        within, files = ([prefix + path.name for path in found if (path in folders) is kind] for kind in (True, False))
        return within, files

    def below(self, folder: str) -> Iterator[str]:
        """See :class:`FileTree`. Links to folders are not followed: they may lead round in circles."""
        for path, _, names in os.walk(self._path(folder)):
            prefix = Path(path).relative_to(self.folder).as_posix()
            yield from (name if prefix == "." else f"{prefix}/{name}" for name in names)

    def contents(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """See :class:`FileTree`. One file after the other is read."""
        total = 0
        for path, file in self.files(paths).items():
            if file.exists() and not file.is_file():  # a pipe would be waited for without end
                raise DataError(f"{file}: is no plain file")
            content = read_payload(file)
            total += len(content)
            if self.limits is not None and len(content) > self.limits.file_bytes:
                raise DataError(f"{file}: has more than the {self.limits.file_bytes} bytes that a picture may have")
            if self.limits is not None and (total > self.limits.bytes or len(paths) > self.limits.files):
                most = f"{self.limits.files} pictures or {self.limits.bytes} bytes"
                raise DataError(f"{self.folder}: holds more than {most}, which cannot be right")
            yield path, content

    def files(self, paths: Sequence[str]) -> Mapping[str, Path]:
        """The paths on the disk, so that files need not be in memory together."""
        return {path: self._path(path) for path in paths}

    def _path(self, path: str) -> Path:
        return self.folder / path if path else self.folder


@dataclass(frozen=True, eq=False)
class ArchiveFiles:
    """A zip or tar.gz archive as a tree of files, read in memory. Folders without files are there if it lists them.

    Attributes:
        origin: path of the archive, for messages.
        payload: its bytes.
        limits: bounds on what is read.

    Raises:
        DataError: it is damaged, or holds names that point outside of it.
    """

    origin: str
    payload: bytes
    limits: Limits
    _names: list[str] = field(init=False, default_factory=list)
    _entries: dict[str, tuple[set[str], list[str]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        def note(present: Sequence[str]) -> tuple[str, ...]:
            self._names.extend(sorted(present))
            return ()

        read_archive(self.payload, note, self.limits, origin=self.origin)
        for name in self._names:
            folder = name.rpartition("/")[0]
            self._entries.setdefault(folder, (set(), []))[1].append(name)
            self._note_folder(folder)
        for folder in folders_in_archive(self.payload, self.limits, origin=self.origin):
            self._note_folder(folder)

    def _note_folder(self, folder: str) -> None:
        """Note a folder in those above it."""
        while folder:
            path, folder = folder, folder.rpartition("/")[0]
            self._entries.setdefault(folder, (set(), []))[0].add(path)

    def place(self, path: str) -> str:
        """The archive's path and that of a file or folder within it."""
        return f"{self.origin}: {path}" if path else self.origin

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """See :class:`FileTree`."""
        folders, files = self._entries.get(folder, ((), ()))
        return sorted(folders), list(files)

    def below(self, folder: str) -> Iterator[str]:
        """See :class:`FileTree`."""
        prefix = f"{folder}/" if folder else ""
        yield from (name for name in self._names if name.startswith(prefix))

    def contents(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """See :class:`FileTree`. All are read before the first is yielded."""
        files = self.files(paths)
        yield from ((path, files[path]) for path in paths)

    def files(self, paths: Sequence[str]) -> Mapping[str, bytes]:
        """The contents of the files."""
        wanted = frozenset(paths)
        return read_archive(
            self.payload, lambda names: [name for name in names if name in wanted], self.limits, origin=self.origin
        )


def file_tree(path: Path, limits: Limits) -> FileTree:
    """Open a folder or an archive, zip or tar.gz, as a tree of files.

    Args:
        path: the folder or archive.
        limits: bounds on what is read of an archive.

    Raises:
        DataError: there is none, or the archive is damaged or too large.
    """
    if path.is_dir():
        return FolderFiles(path)
    if path.is_file() and path.stat().st_size > limits.bytes:
        raise DataError(f"{path}: has more than the {limits.bytes} bytes that an archive of pictures may have")
    return ArchiveFiles(str(path), read_payload(path), limits)


def last_name(path: str) -> str:
    """Return the name of a file or folder, without what is above it."""
    return path.rpartition("/")[2]
