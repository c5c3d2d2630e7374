"""Tasks of a person's own, run from the command line."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import own_experiment
from hatrack.storage.checked_json import write_checked_json

DOCUMENT = Path(__file__).parents[2] / "docs" / "own-data.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)


def table(path: Path, rows: int = 40, shift: float = 0.0) -> Path:
    values = np.random.default_rng(0).normal(size=(rows, 3)) + shift
    lines = [f"{a},{b},{c},{'yes' if a > shift else 'no'}" for a, b, c in values]
    path.write_text("\n".join(["a,b,c,answer", *lines]) + "\n")
    return path


def two_tables(folder: Path, settings: str = "") -> Path:
    tasks = "".join(
        f'[[task]]\npath = "{table(folder / name, shift=shift).name}"\nlabel = "answer"\ntest_share = 0.25\n'
        for name, shift in (("one.csv", 0.0), ("two.csv", 3.0))
    )
    path = folder / "tasks.toml"
    path.write_text(f"{tasks}[training]\nepochs = 2\n[network]\nhidden = [8, 8]\n{settings}")
    return path


@pytest.mark.slow
def test_the_documented_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    makes_files, from_python = blocks("python")
    exec(compile(makes_files, str(DOCUMENT), "exec"), {})
    for text, name in zip(blocks("toml"), ("homes", "pictures", "tables"), strict=True):
        (tmp_path / f"{name}.toml").write_text(text)
    for line in blocks("console")[-1].splitlines():
        assert main([*shlex.split(line)[1:], *(["--quiet"] if " run " in line else [])]) == 0, line
    exec(compile(from_python, str(DOCUMENT), "exec"), {})
    assert "petals ('iris', 'rose')" in capsys.readouterr().out
    for name, tasks in (("pictures", ["lights", "upper-or-lower"]), ("tables", ["petals", "stems"])):
        result = json.loads((tmp_path / "runs" / f"{name}-hat-seed0" / "run.json").read_text())
        assert [task["name"] for task in result["tasks"]] == tasks
        assert result["metrics"]["average_accuracy"] > 0.8, (name, result["accuracy"])
        assert result["metrics"]["forgetting"] == 0
    result = json.loads((tmp_path / "runs" / "homes-hat-seed0" / "run.json").read_text())
    assert [task["metric"]["name"] for task in result["tasks"]] == ["R²", "mAP"]
    assert result["logits_sha256"][0][0] == result["logits_sha256"][1][0]
    assert result["metrics"]["by_metric"]["R²"]["average_score"] > 0.8, result["score"]
    assert result["metrics"]["by_metric"]["mAP"]["average_score"] > 0.8, result["score"]


@pytest.mark.slow
def test_run_again_from_elsewhere_and_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(two_tables(tmp_path).parent)
    assert main(["run", "tasks.toml", "--method", "hat", "--out", "run", "--quiet"]) == 0
    recorded = json.loads(Path("run/run.json").read_text())
    assert recorded["experiment"] == "tasks"
    assert recorded["sources"] == [str(tmp_path / "tasks.toml")]
    assert [line.split(",")[0] for line in recorded["data"]] == ["one: table", "two: table"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = shlex.split(recorded["command"])
    assert main([*words[1:], "--out", "again", "--quiet"]) == 0
    assert json.loads(Path("again/run.json").read_text())["logits_sha256"] == recorded["logits_sha256"]
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "to the bit" in capsys.readouterr().out


def test_a_changed_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(two_tables(tmp_path)), "--method", "sgd", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 0
    assert main(command) == 0
    path = tmp_path / "two.csv"
    path.write_text(path.read_text().replace("yes", "no", 1))
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "holds a run on other data (two: table, SHA-256" in said
    assert "one: table" not in said
    assert "its files have changed since" in said
    assert main(["verify", str(tmp_path / "run")]) in (0, 1)
    assert "these differ from the run: data" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_an_interrupted_run_of_own_tasks_goes_on(tmp_path: Path) -> None:
    command = ["run", str(two_tables(tmp_path)), "--method", "hat", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert main([*command, str(tmp_path / "parts"), "--set", "num_tasks=1"]) == 0
    # As if the run had been stopped after its first task.
    path = tmp_path / "parts" / "run.json"
    short, whole = json.loads(path.read_text()), json.loads((tmp_path / "whole" / "run.json").read_text())
    for key in ("score", "accuracy", "loss", "logits_sha256"):
        short[key] = [[short[key][0][0], None], [None, None]]
    for key in ("tasks", "config", "data"):
        short[key] = whole[key]
    del short["sha256"]
    write_checked_json(path, {**short, "status": "running"})
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert json.loads(path.read_text())["logits_sha256"] == whole["logits_sha256"]


def test_tasks_without_a_file_about_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 2
    for name in ("one", "two"):
        np.savez(f"{name}.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    quick = ["--epochs", "1", "--limit", "20", "--set", "hidden=8", "--quiet"]
    assert main(["run", "--tasks", "two.npz", "one.npz", "--method", "sgd", *quick]) == 0
    recorded = json.loads(Path("runs/own-sgd-seed0/run.json").read_text())
    assert [(task["name"], task["train"] + task["valid"]) for task in recorded["tasks"]] == [("two", 20), ("one", 20)]
    assert recorded["sources"] == [os.path.abspath("two.npz"), os.path.abspath("one.npz")]  # noqa: PTH100
    assert "--tasks" in recorded["command"]
    assert main(["verify", "runs/own-sgd-seed0"]) == 0


def test_settings_of_the_file_hold_unless_overridden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = "[stream]\nlimit = 20\n[method.hat]\nc = 0.5\ns_max = 100\n"
    experiment = own_experiment([two_tables(tmp_path, settings)])
    hat, sgd = experiment.config("hat"), experiment.config("sgd")
    assert (hat.network.hidden, hat.training.epochs, hat.stream.limit) == ((8, 8), 2, 20)
    assert (hat.method.c, hat.method.s_max) == (0.5, 100.0)
    assert sgd.training == hat.training
    assert experiment.config("hat").overridden({"c": "0.75"}).method.c == 0.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[stream]\nlr = 0.1\n", r"there is no setting in \[stream\] 'lr'"),
        ("[method.hta]\nc = 1\n", "did you mean 'hat'"),
        ("[method]\nnope = 1\n", "there is no setting 'nope'"),
        ("[stream]\nlimit = 0\n", "limit must be at least 1"),
        ("[stream]\nlimit = 1.5\n", "limit must be a whole number"),
        ("[netwrok]\n", "did you mean 'network'"),
    ],
)
def test_settings_that_cannot_be(settings: str, message: str, tmp_path: Path) -> None:
    path = two_tables(tmp_path, settings)
    with pytest.raises(InputError, match=message) as caught:
        own_experiment([path]).config("hat")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one thing to learn"),
        (["demo", "--tasks", "a.npz"], "give one thing to learn"),
        (["absent.toml"], "absent.toml: cannot be read"),
        (["--tasks", "absent"], "absent does not exist"),
        (["--tasks", "one.toml", "two.toml"], "give one tasks.toml alone"),
        (["nope"], "there is no experiment 'nope'"),
        (["demo", "--limit", "5", "--set", "limit=6"], "give one of them"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments, "--method", "sgd"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert message in shown.err
    assert list(tmp_path.iterdir()) == []
