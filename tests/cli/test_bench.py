"""``hatrack bench`` shows and writes what hatrack costs, as far as it comes, and refuses in one line what cannot be."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack import experiments
from hatrack.cli import main

NETWORKS = """
from torch import nn

def build(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU())

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(12, 6)
    def forward(self, x):
        h = self.dense(x.flatten(1))
        return h if h.sum() > 0 else h.relu()

def branching(shape):
    return Branching()
"""
QUICK = ["bench", "--shape", "3,2,2", "--repetitions", "2", "--batch-size", "4", "--device", "cpu", "--threads", "1"]
BUILD = [*QUICK, "--network", "my_costly_networks:build"]


@pytest.fixture(autouse=True)
def own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_costly_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)


def test_all_figures_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*BUILD, "--tasks", "3", "--used", "0.3", "--optimizer", "adamw", "--set", "weight_decay=0.1"]
    assert main([*words, "--out", str(tmp_path / "costs.json")]) == 0
    said, errors = capsys.readouterr()
    assert errors == ""
    for expected in ("first task", "after 3 tasks", "plain, ms", "HAT, ms", "ratio", "HAT, memory", "weights frozen"):
        assert expected in said
    for once in ("attach", "add a task", "consolidate", "extract", "save"):
        assert f"\n  {once} " in said
    assert "1 CPU thread, torch" in said
    record = json.loads((tmp_path / "costs.json").read_text())
    assert record["complete"] is True
    assert [step["tasks"] for step in record["steps"]] == [0, 3]
    assert all(value > 0 for value in record["seconds"].values())
    assert record["environment"]["threads"] == 1
    again = shlex.split(record["command"])
    assert again[:2] == ["hatrack", "bench"]
    assert main([*again[1:], "--out", str(tmp_path / "again.json"), "--quiet"]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["command"] == record["command"]
    assert capsys.readouterr().out == ""


def test_networks_that_ship_take_their_settings(tmp_path: Path) -> None:
    words = [*QUICK, "--network", "mlp", "--set", "hidden=7", "--quiet", "--out", str(tmp_path / "costs.json")]
    assert main([*words, "--set", "momentum=0.9"]) == 0
    first, _ = json.loads((tmp_path / "costs.json").read_text())["steps"]
    parameters = 12 * 7 + 7 + 7 * 10 + 10
    assert 3 * 4 * parameters < first["plain_bytes"] < 3 * 4 * parameters + 4 * 4 * (12 * 2 + 7 * 4 + 10) + 100


def interrupted_after(parts: int) -> Any:
    measuring = experiments.measuring_costs

    def stop(*arguments: Any) -> Iterator[experiments.Costs]:
        for number, costs in enumerate(measuring(*arguments)):
            if number == parts:
                raise KeyboardInterrupt
            yield costs

    return stop


@pytest.mark.parametrize(("parts", "shown"), [(0, ()), (2, ("attach ",)), (3, ("attach ", "plain, ms "))])
def test_ctrl_c_leaves_what_is_measured(
    parts: int,
    shown: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(experiments, "measuring_costs", interrupted_after(parts))
    assert main([*BUILD, "--out", str(tmp_path / "costs.json")]) == 130
    said, errors = capsys.readouterr()
    assert errors == "error: interrupted\n"
    for row in ("attach ", "plain, ms ", "save "):
        assert (f"\n  {row}" in said) == (row in shown)
    assert (tmp_path / "costs.json").exists() == (parts > 0)
    if parts:
        assert json.loads((tmp_path / "costs.json").read_text())["complete"] is False


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--network", "my_costly_networks:branching"], "which computations follow would depend on values"),
        ([*BUILD[-2:], "--shape=3,5,5"], "does not run on samples of shape (3, 5, 5)"),
        ([*BUILD[-2:], "--shape=3,a"], "--shape 3,a does not fit: write the sizes of one sample, such as 3,32,32"),
        ([*BUILD[-2:], "--shape=3,0"], "--shape 3,0 does not fit"),
        ([*BUILD[-2:], "--batch-size=1"], "does not train on a batch of 1 such samples"),
        ([*BUILD[-2:], "--batch-size=0"], "--batch-size must be at least 1"),
        (["--network", "nothing"], "there is no network 'nothing'"),
        ([*BUILD[-2:], "--set", "hiden=3"], "there is no setting 'hiden', did you mean 'hidden'?"),
        ([*BUILD[-2:], "--set", "network=vit"], "give --network in the place of --set network=..."),
        ([*BUILD[-2:], "--set", "momentum=much"], "momentum=much does not fit"),
        ([*BUILD[-2:], "--tasks=0"], "tasks must be at least 1"),
        ([*BUILD[-2:], "--threads=100000"], "too much for this machine"),
        ([*BUILD[-2:], "--out=."], "as --out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {word.partition("=")[0] for word in more}
    kept = [word for pair in zip(QUICK[1::2], QUICK[2::2], strict=True) if pair[0] not in given for word in pair]
    assert main(["bench", *kept, *more]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert said in errors
    assert errors.count("\n") == 1


def test_threads_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main([*BUILD, "--quiet"]) == 0
    assert asked == [1]
