"""Atomic writing of files: there is either the old one or the new one, never half of one."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from hatrack.errors import CheckpointError, InputError

__all__ = ["keep_previous", "remove_leftovers", "require_place", "save", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content in one step; its folder is made if need be.

    Args:
        path: the file.
        content: its whole new content.

    Raises:
        OSError: the disk is full, the folder cannot be written, …; the error names the file. Its former content is
            still there.
    """
    try:
        _replace(path, content)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the name of the temporary file


def require_place(path: Path) -> None:
    """Check that a file can lie at a path: that it is no folder, and that no file stands where its folder would be.

    Raises:
        InputError: it cannot.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file")
    above = next((place for place in path.parents if place.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(f"{above} is a file, so that there can be no {path}; give a file in a folder")


def save(path: Path, content: bytes) -> None:
    """Write one of hatrack's own files atomically.

    Args:
        path: the file.
        content: its whole new content.

    Raises:
        CheckpointError: the file cannot be written; its former content is still there.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path} could not be written ({reason}); nothing was changed") from error


def keep_previous(path: Path, previous: Path) -> None:
    """Give the present content of a file, if there is one, a second name, in place of the file of that name.

    Args:
        path: the file.
        previous: the second name.

    Raises:
        OSError: the folder cannot be written; the error names ``previous``.
    """
    if not path.exists():
        return
    temporary = path.with_name(f".{previous.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
    except OSError:  # a file system without second names
        write_atomically(previous, path.read_bytes())
        return
    try:
        temporary.replace(previous)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(previous)) from error
    finally:
        temporary.unlink(missing_ok=True)  # it stays where both were names of the same file


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of a process that was killed while it wrote a file; none may be writing it now."""
    for name in (path.name, f"{path.stem}.previous{path.suffix}"):
        for leftover in path.parent.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:  # with the mode that any new file has
            if path.exists():
                with suppress(OSError):  # some file systems know no modes
                    temporary.chmod(path.stat().st_mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Write the folder itself to disk where the system can, so that the file is found after a power failure."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
