"""Locks on folders; who else holds one is tested where runs are."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.storage.locks import locked


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_named_by_the_folder(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with (
        pytest.raises(InputError, match=rf"{tmp_path} cannot be locked \({os.strerror(number)}\).*choose a folder"),
        locked(tmp_path, 0.0),
    ):
        pass
    for folder in (tmp_path / "new", tmp_path):
        command = ["run", "demo", "--method", "random", "--out", str(folder), "--quiet"]
        assert main(command) == 2
        assert f"{folder} cannot be locked" in capsys.readouterr().err
