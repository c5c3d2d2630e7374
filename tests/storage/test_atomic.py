from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hatrack.storage.atomic import write_atomically


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "kept"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == [("kept", b"new")]


def test_a_new_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_mode_of_new_files_is_left_alone_and_that_of_old_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "umask", asked.append)
    private = tmp_path / "private"
    private.write_bytes(b"old")
    private.chmod(0o600)
    write_atomically(private, b"new")
    write_atomically(tmp_path / "open", b"")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert asked == [], "the mask belongs to the whole process, and other threads write files, too"


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "kept"
    write_atomically(target, b"old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(target, b"new")
    assert caught.value.filename == str(target)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("kept", b"old")]
