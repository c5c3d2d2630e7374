"""Places of the files that a person's own tasks are made of: absolute, and as seen from the folder that records them.

A project is moved or copied as a whole: its ``tasks.toml``, its data and its runs. The absolute paths of before then
lead nowhere, and those from the folder of a run still to the same files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["located", "relative_to", "seen_from"]


def relative_to(folder: Path | None, sources: Sequence[Path]) -> tuple[str, ...]:
    """Return paths as seen from a folder, with slashes; none where there is no folder, or no way, as between drives."""
    if folder is None:
        return ()
    try:
        return tuple(Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix() for path in sources)
    except ValueError:
        return ()


def seen_from(folder: Path, relative: Sequence[str]) -> tuple[Path, ...]:
    """Return the absolute paths of some that are relative to a folder.

    They are taken by their names, as :func:`relative_to` makes them: behind a link, ``..`` would lead elsewhere.
    """
    return tuple(Path(os.path.normpath(folder.absolute() / path)) for path in relative)


def located(folder: Path, absolute: Sequence[str], relative: Sequence[str]) -> tuple[Path, ...]:
    """Return the paths of recorded files: the absolute ones, or, if one is gone, those from the folder if all exist."""
    recorded, moved = tuple(map(Path, absolute)), seen_from(folder, relative)
    gone = not all(path.exists() for path in recorded)
    return moved if gone and len(moved) == len(recorded) and all(path.exists() for path in moved) else recorded
