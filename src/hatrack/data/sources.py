"""Sources of the files of a data set: folders on this machine and the network, or the package itself."""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from hatrack.data.files import DataFile, DownloadMonitor, download_file, read_payload, unpack
from hatrack.errors import DataError

__all__ = ["Absence", "FileSource", "NotFoundError", "PackagedFiles", "PublishedFiles", "cache_root", "data_roots"]

DATA_VARIABLE = "HATRACK_DATA"


@dataclass(frozen=True)
class Absence:
    """Files that were looked for in vain, and the remedy.

    Attributes:
        places: folders that were searched.
        faults: one sentence for each unusable file that was found instead.
        wanted: names of the files that are needed; any one entry is enough.
        folders: folder names under which a data directory may hold it.
        system_advice: command that installs it from the operating system; empty where there is none.
        cache: the folder of downloads, which would do too, if it is looked at.
    """

    places: tuple[Path, ...]
    faults: tuple[str, ...]
    wanted: tuple[str, ...]
    folders: tuple[str, ...]
    system_advice: str = ""
    cache: Path | None = None

    @classmethod
    def of_all(cls, absences: Iterable[Absence]) -> Absence:
        """Join the absences of several forms of which any one would have been enough."""
        every = list(absences)
        return cls(
            places=tuple(dict.fromkeys(place for one in every for place in one.places)),
            faults=tuple(dict.fromkeys(fault for one in every for fault in one.faults)),
            wanted=tuple(dict.fromkeys(wish for one in every for wish in one.wanted)),
            folders=tuple(dict.fromkeys(folder for one in every for folder in one.folders)),
            system_advice=next((one.system_advice for one in every if one.system_advice), ""),
            cache=next((one.cache for one in every if one.cache), None),
        )

    def message(self, what: str) -> str:
        """Say in one line that ``what`` is missing, what was found instead, and what to do."""
        searched = ", ".join(map(str, self.places))
        instead = f" ({'; '.join(self.faults)})" if self.faults else ""
        system = f", or {self.system_advice}" if self.system_advice else ""
        own = f"{self.cache}, or into " if self.cache else ""
        return (
            f"{what} not found in {searched}{instead}; put {' or '.join(self.wanted)} into {own}a folder DIR or "
            f"DIR/{self.folders[0]} and give it as `data_dir` or {DATA_VARIABLE}=DIR{system}"
        )


class NotFoundError(DataError):
    """A data set, or one form of it, was found nowhere.

    Attributes:
        absence: the files that were looked for.
    """

    def __init__(self, what: str, absence: Absence) -> None:
        super().__init__(absence.message(what))
        self.absence = absence
        self._what = what

    def with_fault(self, fault: str) -> NotFoundError:
        """Return the same error with one fault more."""
        return NotFoundError(self._what, replace(self.absence, faults=(*self.absence.faults, fault)))


@dataclass(frozen=True)
class FileSource(abc.ABC):
    """Something that can provide the verified content of a data set's files.

    Attributes:
        files: the files that make up the data set.
    """

    files: tuple[DataFile, ...]

    @abc.abstractmethod
    def fetch(
        self,
        dataset: str,
        data_dir: Path | None = None,
        *,
        download: bool = True,
        monitor: DownloadMonitor | None = None,
    ) -> dict[str, bytes]:
        """Return the content of every file by its plain name.

        Args:
            dataset: name of the data set, for error messages.
            data_dir: folder to look in first, or None.
            download: whether the network may be used.
            monitor: told how downloads go on.

        Raises:
            NotFoundError: a file was found nowhere, at least not with the right content.
            DataError: a file is not what it should be.
        """

    @abc.abstractmethod
    def locate(self, dataset: str, data_dir: Path | None = None) -> tuple[Path, ...]:
        """Return where every file is on this machine, after verifying its content.

        Raises:
            NotFoundError: as :meth:`fetch`.
        """

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses from which the network could provide the files; none if it could not."""
        return ()

    @property
    def digest(self) -> str:
        """Digest of the hashes of all files: it changes when other files are asked for."""
        known = "\n".join(f"{file.name} {file.sha256 or file.md5}" for file in self.files)
        return hashlib.sha256(known.encode()).hexdigest()


@dataclass(frozen=True)
class PackagedFiles(FileSource):
    """Files that are part of the installed package, next to this module.

    Attributes:
        files: the files.
        folder: folder within ``hatrack.data`` that holds them.
    """

    folder: str

    def fetch(
        self,
        dataset: str,
        data_dir: Path | None = None,
        *,
        download: bool = True,
        monitor: DownloadMonitor | None = None,
    ) -> dict[str, bytes]:
        """Return the content of every file; needs neither ``data_dir`` nor the network. See :class:`FileSource`."""
        return {file.name: self._read(file, dataset) for file in self.files}

    def locate(self, dataset: str, data_dir: Path | None = None) -> tuple[Path, ...]:
        """Return where the files are installed. See :class:`FileSource`."""
        self.fetch(dataset, data_dir)
        folder = resources.files("hatrack.data") / self.folder
        return tuple(Path(str(folder / file.published_name)) for file in self.files)

    def _read(self, file: DataFile, dataset: str) -> bytes:
        resource = resources.files("hatrack.data") / self.folder / file.published_name
        try:
            payload = resource.read_bytes()
        except OSError as error:
            raise DataError(f"{resource}: missing from the installation; install hatrack again") from error
        return file.verified(unpack(payload, str(resource)), origin=str(resource), dataset=dataset)


@dataclass(frozen=True)
class PublishedFiles(FileSource):
    """Files that a publisher offers and that may already lie on this machine.

    Each file is looked for in the given folder, in ``$HATRACK_DATA``, in the system's folders, in the download
    cache, and then on the network; only the right content counts, so a wrong file never hides a right one.

    Attributes:
        files: the files that make up the data set.
        folders: folder names under which a data directory may hold them; the directory itself is tried last.
        mirrors: download addresses ending in ``/``, the preferred one first.
        system_folders: folders in which an operating system's package puts the files.
        system_advice: command that installs that package; empty where there is none.
        wanted: name of the files in advice; by default their names are listed.
    """

    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    system_folders: tuple[Path, ...] = ()
    system_advice: str = ""
    wanted: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The mirrors."""
        return self.mirrors

    def fetch(
        self,
        dataset: str,
        data_dir: Path | None = None,
        *,
        download: bool = True,
        monitor: DownloadMonitor | None = None,
    ) -> dict[str, bytes]:
        """Return the content of every file, downloading into the cache what is not there. See :class:`FileSource`."""
        return {found.file.name: found.content for found in self._find(dataset, data_dir, download, monitor)}

    def locate(self, dataset: str, data_dir: Path | None = None) -> tuple[Path, ...]:
        """Return where every file is on this machine. See :class:`FileSource`."""
        return tuple(found.path for found in self._find(dataset, data_dir, False, None))

    def _find(
        self, dataset: str, data_dir: Path | None, download: bool, monitor: DownloadMonitor | None
    ) -> Iterator[FoundFile]:
        cache = cache_root() / dataset
        places = [*data_roots(data_dir), *self.system_folders, cache]
        folders = [place / name for place in places for name in (*self.folders, "")]
        first = ""
        for file in self.files:
            found, faults = find_file(file, folders, dataset=dataset)
            if found is None and download:
                try:
                    content = download_file(file, self.mirrors, cache, dataset=dataset, monitor=monitor)
                    found = FoundFile(file, cache / file.published_name, content)
                except DataError as error:
                    faults.append(str(error))
            if found is None:
                names = f"{', '.join(file.published_name for file in self.files)} (packed or not)"
                if first and not faults:
                    faults.append(f"{file.name} is missing beside {first}")
                wanted = (self.wanted or names,)
                absence = Absence(tuple(places), tuple(faults), wanted, self.folders, self.system_advice, cache)
                raise NotFoundError(f"{dataset}: {file.name}", absence)
            first = first or file.name
            yield found


class FoundFile(NamedTuple):
    """A file on this machine, and its verified content, by which it is ``file``."""

    file: DataFile
    path: Path
    content: bytes


def find_file(file: DataFile, folders: Sequence[Path], *, dataset: str) -> tuple[FoundFile | None, list[str]]:
    """Look for a file by name and content.

    Args:
        file: the file, under any of its accepted names.
        folders: folders to search, in this order; they need not exist.
        dataset: name of the data set, for the messages.

    Returns:
        The first file that has the right content, or None; and what was wrong with each file of the right name that
        was passed over.
    """
    faults: list[str] = []
    for folder in folders:
        for path in (folder / name for name in file.accepted_names):
            if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a folder may not be entered
                continue
            try:
                content = file.opened(read_payload(path), origin=str(path), dataset=dataset)
            except DataError as error:
                faults.append(str(error))
            else:
                return FoundFile(file, path, content), faults
    return None, faults


def cache_root() -> Path:
    """Return the cache of downloaded and prepared data: ``$XDG_CACHE_HOME/hatrack``, or ``~/.cache/hatrack``."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification has relative paths ignored.
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "hatrack"


def data_roots(data_dir: Path | None) -> list[Path]:
    """Return the directories that a person named: by argument and by environment variable."""
    from_environment = os.environ.get(DATA_VARIABLE)
    return [Path(root) for root in (data_dir, from_environment) if root]
