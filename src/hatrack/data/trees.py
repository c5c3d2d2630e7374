"""Data sets as trees of files, in a folder or in an archive: found, read, decoded once, and then kept.

A tree is known by the digest of its paths and contents, which is the same for an archive and for the folder that it
unpacks to. Any tree that its layout accepts is used; a tree that is not a published one is recorded as such.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Protocol

import PIL

from hatrack.data.archives import Limits, read_archive
from hatrack.data.arrays import ImageArrays
from hatrack.data.dataset import Loaded
from hatrack.data.files import DownloadMonitor, read_payload
from hatrack.data.prepared import Decoded, prepared
from hatrack.data.sources import Absence, NotFoundError, cache_root, data_roots
from hatrack.errors import DataError

__all__ = ["PictureTree", "TreeLayout", "tree_digest", "unpack_tree"]


DECODING = 2
"""Version of the way from files to arrays; raise it when that changes, so that what was kept is made again."""


class TreeFiles(Protocol):
    """Files of a folder or an archive that make up a tree."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return patterns of the files in the tree: paths within it, with ``*`` for any name of a folder or file."""
        ...

    @property
    def markers(self) -> tuple[str, ...]:
        """Folders within it by all of which a folder is taken for such a tree; none if its own name has to do."""
        ...

    @property
    def advice(self) -> str:
        """Instruction for a person who lacks it: ``pictures as train/CLASS/*.png``."""
        ...

    @property
    def limits(self) -> Limits:
        """Bounds on the files that are read."""
        ...

    def choose(self, names: Sequence[str]) -> list[str]:
        """Return those of the names that fit the patterns that are to be read, in any order."""
        ...


class TreeLayout(TreeFiles, Protocol):
    """Layout of a tree of files, and the way it becomes arrays. Its ``repr`` must tell it from all others."""

    def decode(self, contents: Mapping[str, bytes], origin: str) -> ImageArrays:
        """Turn the contents of the files into arrays.

        Args:
            contents: by path within the tree.
            origin: their path or address, for the error message.

        Raises:
            DataError: they are not what they should be.
        """
        ...


@dataclass(frozen=True)
class PictureTree:
    """A variant of a data set: a tree of pictures, decoded once and then kept. See :class:`~hatrack.data.Variant`.

    Attributes:
        name: name of the form.
        archives: names of archives to look for.
        folders: folder names under which a data directory may hold the archive or the tree; the directory itself is
            tried last.
        layout: layout that the tree must have.
        known: names of published trees, by their digest.
        top: name of the folder that holds the tree within the archives, or empty.
    """

    name: str
    archives: tuple[str, ...]
    folders: tuple[str, ...]
    layout: TreeLayout
    known: Mapping[str, str] = field(default_factory=dict)
    top: str = ""

    @property
    def downloads(self) -> bool:
        """False: a tree is looked for on this machine only."""
        return False

    @property
    def addresses(self) -> tuple[str, ...]:
        """No address: a tree is looked for on this machine only."""
        return ()

    def load(
        self,
        dataset: str,
        data_dir: Path | None = None,
        *,
        download: bool = False,
        monitor: DownloadMonitor | None = None,
    ) -> Loaded:
        """Decode the first tree that is as it should be, or take what was kept of it.

        Raises:
            NotFoundError: there is none; what was wrong with others is named.
        """
        faults = []
        kept = cache_root() / dataset / f"{self.name.replace(' ', '-')}.safetensors"
        for path in self._candidates(dataset, data_dir):
            try:
                arrays, digest = self._decoded(path, kept)
            except DataError as error:
                faults.append(str(error))
            except OSError as error:
                faults.append(f"{path}: cannot be read ({error.strerror or error})")
            else:
                return Loaded(arrays, self.known.get(digest, f"{self.name}, not a published set: SHA-256 {digest}"))
        raise self._absence(dataset, data_dir, faults)

    def locate(self, dataset: str, data_dir: Path | None = None) -> tuple[Path, ...]:
        """Return the archive or the folder that would be read first, without reading it.

        Raises:
            NotFoundError: there is none.
        """
        for path in self._candidates(dataset, data_dir):
            return (path,)
        raise self._absence(dataset, data_dir, [])

    def _absence(self, dataset: str, data_dir: Path | None, faults: list[str]) -> NotFoundError:
        wanted = f"{self.archives[0]} (or {self.layout.advice})" if self.archives else self.layout.advice
        places = tuple(data_roots(data_dir))
        return NotFoundError(f"{dataset}: {self.name}", Absence(places, tuple(faults), (wanted,), self.folders))

    def _candidates(self, dataset: str, data_dir: Path | None) -> Iterator[Path]:
        """Yield archives by their names, and folders that look like such a tree."""
        own = cache_root() / dataset
        places = [place / name for place in data_roots(data_dir) for name in (*self.folders, "")]
        for folder in (*places, *(own / name for name in (*self.folders, ""))):
            # os.path says no where pathlib raises, in a folder that may not be entered
            yield from (folder / name for name in self.archives if os.path.isfile(folder / name))  # noqa: PTH113
            # a tree without folders of known names is known by its own
            signs = self.layout.markers or ("",) * (folder.name in {Path(name).name for name in self.folders})
            if signs and all(os.path.isdir(folder / sign) for sign in signs):  # noqa: PTH112
                yield folder

    def _decoded(self, path: Path, kept: Path) -> Decoded:
        limits = self.layout.limits
        if not path.is_dir() and path.stat().st_size > limits.bytes:
            raise DataError(f"{path}: has more than the {limits.bytes} bytes that an archive of small images may have")
        if path.is_dir():
            files = _files_of(path, self.layout)
            state = _state(files)
            contents_of = partial(_read_files, files, limits, str(path))
        else:
            payload = read_payload(path)
            state = hashlib.sha256(payload).hexdigest()
            contents_of = partial(unpack_tree, payload, self.layout, top=self.top, origin=str(path))

        def decode() -> Decoded:
            contents = contents_of()
            return Decoded(self.layout.decode(contents, str(path)), tree_digest(contents))

        # Decoders differ in the last bit now and then, so the version is part of what the pixels depend on.
        made_by = f"{DECODING} pillow {PIL.__version__}"
        return prepared(kept, json.dumps([state, repr(self.layout), made_by]), decode)


def unpack_tree(payload: bytes, layout: TreeFiles, *, top: str = "", origin: str) -> dict[str, bytes]:
    """Read the files of a tree out of a zip or tar.gz archive.

    Args:
        payload: the bytes of the archive.
        layout: tells which files belong to the tree.
        top: name of the folder that holds the tree within the archive, or empty; it may be missing there.
        origin: path or address of the bytes, for the error message.

    Returns:
        The content of each file by its path within the tree.

    Raises:
        DataError: the archive is damaged, or holds too much.
    """
    prefix = f"{top}/" if top else ""

    def choose(names: Sequence[str]) -> list[str]:
        full = {name.removeprefix(prefix): name for name in names}
        return [full[name] for name in _chosen(list(full), layout)]

    contents = read_archive(payload, choose, layout.limits, origin=origin)
    return {name.removeprefix(prefix): content for name, content in contents.items()}


def tree_digest(files: Mapping[str, bytes] | Mapping[str, Path]) -> str:
    """Return the SHA-256 of a tree: of every path and content, in the order of the paths.

    Args:
        files: content of every file by its path in the tree, or where it is, to be read one after the other.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        file = files[path]
        content = read_payload(file) if isinstance(file, Path) else file
        digest.update(f"{path}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _chosen(names: Sequence[str], layout: TreeFiles) -> list[str]:
    """Return the names that belong to the tree, in order."""
    split = [pattern.split("/") for pattern in layout.patterns]

    def fits(name: str) -> bool:
        parts = name.split("/")
        return any(
            len(pattern) == len(parts) and all(fnmatchcase(*pair) for pair in zip(parts, pattern, strict=True))
            for pattern in split
        )

    return sorted(layout.choose([name for name in names if fits(name)]))


def _files_of(folder: Path, layout: TreeFiles) -> dict[str, Path]:
    """Return the files of a tree by their paths within it."""
    found = (path for pattern in layout.patterns for path in folder.glob(pattern))
    named = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: named[name] for name in sorted(layout.choose(list(named)))}


def _state(files: Mapping[str, Path]) -> str:
    """Return a digest that changes when a file of a tree does, without reading them: of sizes and times."""
    digest = hashlib.sha256()
    for name, path in files.items():
        about = path.stat()
        line = f"{path.absolute()}\0{name}\0{about.st_size}\0{about.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))  # names of files need not be UTF-8
    return digest.hexdigest()


def _read_files(files: Mapping[str, Path], limits: Limits, origin: str) -> dict[str, bytes]:
    if len(files) > limits.files:
        raise DataError(f"{origin}: holds {len(files)} pictures instead of {limits.files}")
    sizes = {name: path.stat().st_size for name, path in files.items()}
    for name, size in sizes.items():
        if size > limits.file_bytes:
            raise DataError(f"{origin}: {name} has more than the {limits.file_bytes} bytes that an image may have")
    if sum(sizes.values()) > limits.bytes:
        raise DataError(f"{origin}: its pictures have more than {limits.bytes} bytes together, which cannot be right")
    return {name: read_payload(path) for name, path in files.items()}
