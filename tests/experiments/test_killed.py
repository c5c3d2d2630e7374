"""A run that is killed at any moment, and started again, ends with the same bits as one that was never killed."""

from __future__ import annotations

import importlib
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.cli import main
from hatrack.errors import CheckpointError
from hatrack.experiments import Job, RunRequest, TaskLearned, prepare, read_result, run
from hatrack.experiments.jobs import carry_out
from hatrack.train import EpochDone
from support.killing import QUICK, run_in_process
from support.marks import examples, slow_but

FILES = {"run.json", "run.previous.json", "net.hat", "net.previous.hat", "logits.safetensors"}


def outcome(folder: Path) -> dict[str, Any]:
    """All that two runs of the same command have in common: results, weights, logits."""
    result = read_result(folder / "run.json").to_json()
    for key in ("timing", "environment", "command", "sha256"):
        result.pop(key, None)
    result["epochs"] = read_result(folder / "run.json").epochs
    assert {path.name for path in folder.iterdir()} == FILES, "and nothing else is left"
    return {**result, "net": (folder / "net.hat").read_bytes(), "logits": (folder / "logits.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """A run that was never killed, and how many moments it has."""
    folder = tmp_path_factory.mktemp("unharmed")
    moments = run_in_process(folder)
    assert moments is not None
    assert moments > 150
    return outcome(folder), moments


@pytest.mark.slow
def test_killed_once_at_one_of_many_moments(unharmed: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, moments = unharmed
    for moment in random.Random(0).sample(range(1, moments + 1), examples(24)):
        folder = tmp_path / str(moment)
        assert run_in_process(folder, fatal=moment) is None
        run_in_process(folder)
        assert outcome(folder) == expected, f"killed at moment {moment} of {moments}"


@pytest.mark.slow
def test_killed_again_and_again(unharmed: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, moments = unharmed
    draw, killed = random.Random(1), 0
    while run_in_process(tmp_path, fatal=draw.randrange(5, moments // 4)) is None:
        killed += 1
        assert killed < 200, "a killed run gets nowhere"
    assert killed >= 4
    assert outcome(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", ["packnet", "pathnet", "derpp", "si"])
def test_methods_that_gather_more_than_weights(method: str, tmp_path: Path) -> None:
    changes = {"generations": 2} if method == "pathnet" else {}
    moments = run_in_process(tmp_path / "whole", method, **changes)
    assert moments is not None
    folder = tmp_path / "killed"
    for share in (0.55, 0.3):
        assert run_in_process(folder, method, fatal=int(share * moments), **changes) is None
    run_in_process(folder, method, **changes)
    assert outcome(folder) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_damaged_network_is_named_and_the_one_before_is_used(
    unharmed: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    expected, moments = unharmed
    assert run_in_process(tmp_path, fatal=int(0.9 * moments)) is None
    for name in ("net.hat", "training.safetensors"):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name).write_bytes(content)
    prepared = prepare(RunRequest("demo", "hat", 0, tmp_path, overrides=QUICK))
    assert "net.hat is damaged: its checksum does not match" in prepared.notes[0]
    assert prepared.notes[0].endswith("net.previous.hat")
    run_in_process(tmp_path)
    assert outcome(tmp_path) == expected


@pytest.mark.slow
def test_a_damaged_state_of_training_is_named_and_the_one_before_is_used(
    unharmed: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    expected, moments = unharmed
    assert run_in_process(tmp_path, fatal=int(0.95 * moments)) is None
    state = tmp_path / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    prepared = prepare(RunRequest("demo", "hat", 0, tmp_path, overrides=QUICK))
    assert "training.safetensors is damaged" in prepared.notes[0]
    run_in_process(tmp_path)
    assert outcome(tmp_path) == expected


@pytest.mark.slow
def test_a_finished_run_needs_nothing_of_what_was_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are there for the case of damage alone, and take as much room as the run itself."""
    command = [word.replace("num_tasks=1", "num_tasks=2") for word in COMMAND]
    assert main([*command, str(tmp_path)]) == 0
    removed = [*tmp_path.glob("*.previous.*")]
    assert {path.name for path in removed} == {"net.previous.hat", "run.previous.json"}
    for path in removed:
        path.unlink()
    assert main([*command, str(tmp_path)]) == 0
    assert main(["verify", str(tmp_path)]) == 0
    assert "verified" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_network_of_the_first_task_is_learned_again(
    unharmed: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    expected, moments = unharmed
    assert run_in_process(tmp_path, fatal=int(0.5 * moments)) is None
    assert len(read_result(tmp_path / "run.json").scores) == 1
    (tmp_path / "net.hat").write_bytes(b"")
    assert prepare(RunRequest("demo", "hat", 0, tmp_path, overrides=QUICK)).notes[0].endswith("the beginning")
    run_in_process(tmp_path)
    assert outcome(tmp_path) == expected


def test_a_network_that_changed_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network of one's own nobody but its file knows that it is another one now."""
    (tmp_path / "mine.py").write_text(MINE.format(width=12))
    monkeypatch.syspath_prepend(tmp_path)
    request = RunRequest("demo", "hat", 0, tmp_path / "run", overrides={**QUICK, "network": "mine:build"})
    for event in run(prepare(request)):
        if isinstance(event, EpochDone):
            break
    (tmp_path / "mine.py").write_text(MINE.format(width=9))
    monkeypatch.delitem(sys.modules, "mine")
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with pytest.raises(CheckpointError, match="'tshirt-trouser' cannot be taken up: it was one of another network"):
        for _ in run(prepare(request)):
            pass


@pytest.mark.parametrize("method", slow_but(["hat"], ["hat", "pmask", "sgd", "independent"]))
@pytest.mark.parametrize("learned", [1, 2])
def test_a_network_that_changed_after_a_task_touches_nothing(
    method: str, learned: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE.format(width=12))
    monkeypatch.syspath_prepend(tmp_path)
    request = RunRequest("demo", method, 0, tmp_path / "run", overrides={**QUICK, "network": "mine:build"})
    for event in run(prepare(request)):
        if isinstance(event, TaskLearned) and event.index + 1 == learned:
            break
    before = contents(tmp_path / "run")
    (tmp_path / "mine.py").write_text(MINE.format(width=9))
    monkeypatch.delitem(sys.modules, "mine")
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with pytest.raises(CheckpointError, match="saved with another backbone"):
        prepare(request)
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_good_state_of_training_outlives_the_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unharmed: tuple[dict[str, Any], int]
) -> None:
    expected, moments = unharmed
    assert run_in_process(tmp_path, fatal=int(0.97 * moments)) is None
    state = tmp_path / "training.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    prepared = prepare(RunRequest("demo", "hat", 0, tmp_path, overrides=QUICK))
    assert prepared.in_task is not None
    events = run(prepared)
    next(events)  # killed as soon as it goes on
    events.close()
    again = prepare(RunRequest("demo", "hat", 0, tmp_path, overrides=QUICK))
    assert again.notes == (), "what is damaged was replaced"
    assert again.in_task is not None
    run_in_process(tmp_path)
    assert outcome(tmp_path) == expected


@pytest.mark.slow
def test_what_another_run_has_left_is_not_taken_up(tmp_path: Path) -> None:
    for event in run(prepare(RunRequest("demo", "hat", 0, tmp_path, overrides=QUICK))):
        if isinstance(event, EpochDone):
            break
    assert (tmp_path / "training.safetensors").exists()
    (tmp_path / "run.json").unlink()
    other = RunRequest("demo", "hat", 1, tmp_path, overrides=QUICK)
    next(run(prepare(other)))
    assert prepare(other).in_task is None
    assert not (tmp_path / "training.safetensors").exists()


@pytest.mark.slow
def test_killed_just_before_the_end_and_asked_again(tmp_path: Path) -> None:
    """The command line and workers see a finished run then, and tidy up what it left."""
    request = RunRequest("demo", "hat", 0, tmp_path / "run", overrides={**QUICK, "num_tasks": 1})
    for tidy in (lambda: list(carry_out(Job(request))), lambda: main([*COMMAND, str(tmp_path / "run")])):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        torch.set_num_threads(1)
        events = run(prepare(request))
        for event in events:
            if isinstance(event, TaskLearned):
                break
        events.close()
        assert (tmp_path / "run" / "training.safetensors").exists()
        tidy()
        assert not list((tmp_path / "run").glob("training*"))


COMMAND = ["run", "demo", "--method", "hat", "--threads", "1", "--quiet"]
COMMAND += [
    f"--set={key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
    for key, value in {**QUICK, "num_tasks": 1}.items()
]
COMMAND += ["--out"]


MINE = """
from torch import nn


def build(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, {width}), nn.ReLU())
"""
