"""``hatrack run`` reads what its folder holds, and describes the experiment, once."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hatrack.cli import main
from hatrack.experiments import Job, RunRequest, TaskLearned, prepare, read_result, run
from hatrack.experiments.jobs import carry_out
from hatrack.experiments.results import write_result
from hatrack.streams import own_stream

SETTINGS = {"epochs": 1, "hidden": (8,), "limit": 40, "num_tasks": 2}
WORDS = ["--set=epochs=1", "--set=hidden=8", "--set=limit=40", "--set=num_tasks=2", "--threads", "1", "--quiet"]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count how often files of runs are read, by name."""
    counted: Counter[str] = Counter()
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        counted[path.name] += 1
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return counted


def command(out: Path) -> list[str]:
    return ["run", "demo", "--method", "sgd", *WORDS, "--out", str(out)]


def test_run_json_is_read_once(tmp_path: Path, reads: Counter[str]) -> None:
    out = tmp_path / "run"
    assert main(command(out)) == 0
    assert reads["run.json"] == 0, "there is nothing to read before a run"
    assert main(command(out)) == 0
    assert reads.pop("run.json") == 1, "a finished run"
    write_result(out / "run.json", read_result(out / "run.json").first(1))
    reads.clear()
    assert main(command(out)) == 0
    assert (reads["run.json"], reads["run.previous.json"]) == (1, 0), "a run that goes on"
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_a_finished_run_on_a_medium_that_is_only_to_be_read_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "run", Path.open
    assert main(command(out)) == 0

    def read_only(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.parent == out and mode != "r" and mode != "rb":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return whole(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    assert main(command(out)) == 0
    monkeypatch.undo()
    write_result(out / "run.json", read_result(out / "run.json").first(1))
    monkeypatch.setattr(Path, "open", read_only)
    assert main(command(out)) != 0
    assert "cannot be written to (Read-only file system)" in capsys.readouterr().err


def test_workers_read_it_once_too(tmp_path: Path, reads: Counter[str]) -> None:
    request = RunRequest("demo", "sgd", 0, tmp_path, overrides=SETTINGS)
    for event in run(prepare(request)):
        if isinstance(event, TaskLearned):
            break
    for kind in ("a run that goes on", "a finished run"):
        reads.clear()
        list(carry_out(Job(request)))
        assert reads["run.json"] == 1, kind


def test_another_number_of_threads_is_found_by_the_same_look(tmp_path: Path, reads: Counter[str]) -> None:
    without = [word for word in command(tmp_path) if word not in ("--threads", "1")]
    assert main(command(tmp_path)) == 0
    assert main(without) == 0
    assert reads["run.json"] == 1


def test_ones_own_tasks_are_described_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[object] = []
    monkeypatch.setattr(
        "hatrack.experiments.experiment.own_stream", lambda sources: described.append(sources) or own_stream(sources)
    )
    (tmp_path / "own.toml").write_text('[[task]]\npath = "absent.npz"\n')
    assert main(["run", str(tmp_path / "own.toml"), "--method", "sgd", "--out", str(tmp_path / "run")]) == 2
    assert len(described) == 1
