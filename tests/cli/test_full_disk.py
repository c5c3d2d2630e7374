"""A disk that is full, or cannot be written: one line that names the file, nothing lost, and on it goes afterwards."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.cli import main
from hatrack.data.arrays import ImageArrays
from hatrack.data.prepared import Decoded, prepared
from hatrack.experiments import RunRequest, TaskLearned, prepare, run
from support.marks import slow_unless

if sys.platform != "win32":
    import resource

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit on the size of files")

QUICK = ("--set", "hidden=40,30", "--set", "limit=60", "--set", "num_tasks=2", "--epochs", "1", "--quiet")
KILOBYTES = 1024


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can become larger than this, in this process and those that it starts: the system says so, not a mock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No file can be made in a folder; a mock, since nothing is read-only to an administrator."""
    whole, refused = Path.open, 0

    def refuse(path: Path, mode: str = "r", *words: Any, **named: Any) -> Any:
        nonlocal refused
        if path.is_relative_to(folder) and set(mode) & set("wxa+") and path.name != ".lock":
            refused += 1
            raise OSError(errno.EROFS, "Read-only file system", "a temporary name")
        return whole(path, mode, *words, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        yield
    assert refused, "nothing was to be written there"


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", "demo", "--method", "hat", "--out", str(out), *QUICK]) == 0
    return out


def hashes(folder: Path) -> object:
    return json.loads((folder / "run.json").read_text())["logits_sha256"]


@pytest.mark.parametrize(
    "size",
    slow_unless(lambda size: size == 20 * KILOBYTES, [0, 1 * KILOBYTES, 20 * KILOBYTES]),
    ids=["nothing", "no result", "no network"],
)
def test_run(size: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "demo", "--method", "hat", "--out", str(tmp_path / "run"), *QUICK]
    with room_for(size):
        assert main(command) == 1
    shown = one_line(capsys)
    assert "File too large" in shown
    assert str(tmp_path / "run") in shown
    assert not [name for name in contents(tmp_path) if "previous" not in name and Path(name).name.startswith(".")]
    assert main(command) == 0
    assert hashes(tmp_path / "run") == hashes(finished)


@pytest.mark.slow
def test_run_that_is_interrupted_by_a_full_disk_keeps_its_tasks(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"hidden": (40, 30), "limit": 60, "num_tasks": 2, "epochs": 1}
    for event in run(prepare(RunRequest("demo", "hat", 0, tmp_path / "run", overrides=settings))):
        if isinstance(event, TaskLearned):
            break
    before = contents(tmp_path / "run")
    command = ["run", "demo", "--method", "hat", "--out", str(tmp_path / "run"), *QUICK]
    for _ in range(2):
        with room_for(20 * KILOBYTES):
            assert main(command) == 1
        assert "could not be written (File too large); nothing was changed" in one_line(capsys)
        after = contents(tmp_path / "run")
        assert [after[name] for name in ("run.json", "net.hat")] == [before[name] for name in ("run.json", "net.hat")]
    assert main(command) == 0
    assert hashes(tmp_path / "run") == hashes(finished)


@pytest.mark.slow
def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "demo", "--methods", "hat", "--workers", "1", "--out", str(tmp_path / "all"), *QUICK]
    with room_for(20 * KILOBYTES):
        assert main(command) == 1
    assert "hat seed 0" in (shown := one_line(capsys))
    assert "could not be written (File too large)" in shown
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert "could not be written (File too large)" in summary["methods"]["hat"]["failures"]["0"]
    assert main(command) == 0
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["methods"]["hat"]["failures"] == {}
    with room_for(0):
        assert main(["compare", "demo", "--methods", "hat", "--out", str(tmp_path / "none"), *QUICK]) == 1
    assert "File too large" in one_line(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report.html", "table.csv"])
def test_report(name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_text("what was there before")
    command = ["report", str(finished), "--out", str(path), "--format", path.suffix[1:]]
    for hindrance in (room_for(10), read_only(tmp_path)):
        capsys.readouterr()
        with hindrance:
            assert main(command) == 1
        assert str(path) in one_line(capsys)
        assert contents(tmp_path) == {name: b"what was there before"}
    assert main(command) == 0
    assert path.read_bytes() != b"what was there before"


@pytest.mark.slow
def test_export(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = json.loads((finished / "run.json").read_text())["tasks"][0]["name"]
    path = tmp_path / "model.safetensors"
    command = ["export", str(finished), "--task", task, "--to", str(path)]
    for hindrance in (room_for(KILOBYTES), read_only(tmp_path)):
        capsys.readouterr()
        with hindrance:
            assert main(command) == 1
        assert str(path) in one_line(capsys)
        assert contents(tmp_path) == {}
    assert main(command) == 0


def test_a_folder_that_cannot_be_written(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "demo", "--method", "hat", "--out", str(tmp_path / "run"), *QUICK]
    with read_only(tmp_path):
        assert main(command) == 1
    shown = one_line(capsys)
    assert "run.json could not be written (Read-only file system); nothing was changed" in shown
    assert main(command) == 0
    assert hashes(tmp_path / "run") == hashes(finished)


def test_a_cache_of_decoded_data_is_not_needed(tmp_path: Path) -> None:
    arrays = ImageArrays(*(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3)) * 2)
    path = tmp_path / "cache" / "kept.safetensors"
    for hindrance in (room_for(10), read_only(tmp_path)):
        with hindrance:
            assert prepared(path, "key", lambda: Decoded(arrays, "digest")).digest == "digest"
        assert contents(tmp_path) == {}
    prepared(path, "key", lambda: Decoded(arrays, "digest"))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:50] + b"\0" + whole[51:], b""):
        path.write_bytes(damaged)
        again = prepared(path, "key", lambda: Decoded(arrays, "made again"))
        assert again.digest == "made again"
    assert prepared(path, "key", lambda: Decoded(arrays, "not asked")).digest == "made again"
