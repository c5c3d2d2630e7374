"""Lock on a folder, which the operating system releases when its holder dies, however it dies."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hatrack.errors import InputError

__all__ = ["LOCK", "locked"]

LOCK = ".lock"
"""Name of the file that is locked; its content names the holder for people."""

_PAUSE = 0.1


@contextmanager
def locked(folder: Path, patience: float) -> Iterator[None]:
    """Lock a folder while this lasts; it is made if need be.

    The lock is the operating system's, on the file :data:`LOCK`, which stays there: a killed process holds no lock, so
    there is never a stale one to remove.

    Args:
        folder: the folder.
        patience: seconds to wait for another holder.

    Raises:
        InputError: another process holds the lock for longer, or the folder's file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        while not _taken(file, folder):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(f"{folder} is in use by {holder}; wait for it, or choose another folder (`out`)")
            time.sleep(_PAUSE)
        with suppress(OSError):  # on a full disk the lock holds just as well; only the name of its holder is missing
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield  # closing the file unlocks it


def _taken(file: IO[str], folder: Path) -> bool:
    """Try to take a lock; return whether that was possible."""
    try:
        return _try(file)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be locked ({error.strerror or error}), so that two processes could spoil each other's "
            "work there; choose a folder on a file system that has locks (`out`)"
        ) from error


if sys.platform == "win32":
    import msvcrt

    def _try(file: IO[str]) -> bool:
        try:
            file.seek(1 << 20)  # a byte that is never read, since others cannot read locked bytes
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
