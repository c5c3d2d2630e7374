"""The same command gives the same bits, in another process too; and a run can be made again from its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatrack.cli import main
from hatrack.experiments import Reproduction, read_result, verify
from hatrack.experiments.results import write_result
from hatrack.storage.checked_json import write_checked_json
from support.killing import run_in_process

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("threads", [1, 2])
def test_two_processes_with_as_many_threads_give_the_same_bits(threads: int, tmp_path: Path) -> None:
    for name in ("one", "other"):
        run_in_process(tmp_path / name, threads=threads, hidden=(64, 48))
    one, other = (read_result(tmp_path / name / "run.json") for name in ("one", "other"))
    assert one.environment["threads"] == threads
    assert one.scores == other.scores
    assert Reproduction.of(one, other).exact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_in_process(tmp_path / "run")
    return tmp_path / "run"


def edit(folder: Path, change: Any) -> None:
    path = folder / "run.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    change(content)
    write_checked_json(path, content)


def test_rerun_reproduces_every_bit_and_leaves_the_run_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["rerun", str(folder), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "the same to the bit" in said
    assert said.count("same") == 4
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_rerun_notices_what_is_not_reproduced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, lambda content: content["logits_sha256"][1].__setitem__(0, "0" * 64))
    edit(folder, lambda content: content["environment"].update(torch="1.0"))
    assert main(["rerun", str(folder), "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "the runs differ in their torch" in said
    assert "not the same to the bit" in said
    assert said.count("differ") == 2


def test_rerun_says_what_an_earlier_version_computed_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_process(tmp_path / "run", optimizer="adam")
    edit(tmp_path / "run", lambda content: content["config"].pop("lr_decay"))
    assert main(["rerun", str(tmp_path / "run"), "--quiet"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "an earlier version made the recorded run, whose steps of Adam were rounded in another way" in said


def test_rerun_says_so_of_measured_importance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_process(tmp_path / "run", method="mas")
    edit(tmp_path / "run", lambda content: content["config"].pop("lr_decay"))
    assert main(["rerun", str(tmp_path / "run"), "--quiet"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "importance of weights was added up in another way" in said


def test_rerun_says_so_of_masks_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_in_process(tmp_path / "run", method="pmask", embedding_lr_factor=1.0)
    edit(tmp_path / "run", lambda content: content["config"].pop("embedding_lr_factor"))
    assert main(["rerun", str(tmp_path / "run"), "--quiet"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "gradients of embeddings of weights were rounded in another way" in said


def test_rerun_of_a_part_stops_where_the_run_had_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moments = run_in_process(tmp_path / "whole")
    assert moments is not None
    run_in_process(tmp_path / "part", fatal=int(0.7 * moments))
    learned = len(read_result(tmp_path / "part" / "run.json").scores)
    assert 0 < learned < 3
    assert main(["rerun", str(tmp_path / "part"), "--quiet", "--out", str(tmp_path / "again")]) == 0
    assert main(["rerun", str(tmp_path / "part"), "--quiet", "--out", str(tmp_path / "again")]) == 0
    assert len(read_result(tmp_path / "again" / "run.json").scores) == learned, "asked twice, too"
    assert "the same to the bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "nowhere holds no run.json"),
        (["run", "--out", "run"], "--out names the run that is to be made again"),
    ],
)
def test_wrong_input(
    arguments: list[str], expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["rerun", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_two_processes_cannot_work_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hatrack.cli import carrying
    from hatrack.storage.locks import locked

    monkeypatch.setattr(carrying, "_PATIENCE", 0.2)
    command = ["run", "demo", "--method", "random", "--out", str(tmp_path), "--quiet"]
    with locked(tmp_path, 0.0):
        assert main(command) == 2
        assert f"{tmp_path} is in use by process" in capsys.readouterr().err
    assert main(command) == 0


def test_verify_of_a_run_that_was_stopped_before_a_row(tmp_path: Path) -> None:
    """Its network holds a task more than the results; the one before is what they are of."""
    run_in_process(tmp_path, "sgd")
    write_result(tmp_path / "run.json", read_result(tmp_path / "run.json").first(2))
    verification = verify(tmp_path)
    assert verification.holds
    assert len(verification.verdicts) == 2
