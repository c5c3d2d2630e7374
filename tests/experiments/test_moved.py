"""A project that was moved or copied as a whole: its ``tasks.toml``, its data and its runs."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hatrack.cli import main
from hatrack.errors import DamagedFileError, InputError
from hatrack.experiments import RunRequest, forget_in_run, open_run, read_result, recorded_run, verify
from hatrack.experiments.plan import read_plan
from hatrack.experiments.sources import located, relative_to, seen_from
from hatrack.storage.checked_json import read_checked_json, write_checked_json

QUICK = ["--method", "sgd", "--threads", "1", "--quiet"]
MASKED = ["--method", "hat", *QUICK[2:]]
TOML = """
[[task]]
path = "dots"
test_share = 0.25

[[task]]
path = "data/other"
test_share = 0.25

[training]
epochs = 1
[network]
hidden = [8, 8]
"""


def pictures(folder: Path, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for name, darkest in (("dark", 0), ("bright", 120)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            pixels = random.integers(darkest, darkest + 130, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    pictures(folder / "dots")
    pictures(folder / "data" / "other", 1)
    (folder / "tasks.toml").write_text(TOML)
    monkeypatch.chdir(folder)
    assert main(["run", "tasks.toml", *QUICK]) == 0
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def shown_warnings() -> Iterator[None]:
    """Warnings are shown, as to a user, and are no errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


def run_of(project: Path) -> Path:
    return project / "runs" / "tasks-sgd-seed0"


@pytest.mark.slow
@pytest.mark.usefixtures("shown_warnings")
def test_verified_asked_exported_and_made_again_where_it_is_now(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(project / "tasks.toml"), *MASKED, "--out", str(project / "runs" / "masked")]
    assert main(command) == 0
    moved = project.rename(tmp_path / "moved")
    run, picture = str(moved / "runs" / "masked"), str(moved / "dots" / "dark" / "0.png")
    for command in (
        ["verify", run],
        ["predict", run, picture, "--task", "dots"],
        ["export", run, "--task", "dots", "--to", str(tmp_path / "dots.safetensors")],
        ["sizes", run, "--repetitions", "1"],
        ["rerun", run, "--quiet"],
    ):
        assert main(command) == 0, command
        shown = capsys.readouterr()
        said = (
            f"warning: {project / 'tasks.toml'} is gone; taking {moved / 'tasks.toml'}, whose data is that of the run\n"
        )
        assert shown.err == said, command
        if command[0] == "verify":
            assert "to the bit" in shown.out


def test_the_same_command_goes_on_there_and_records_the_new_place(project: Path, tmp_path: Path) -> None:
    moved = project.rename(tmp_path / "moved")
    toml, out = moved / "tasks.toml", run_of(moved)
    assert main(["run", str(toml), *QUICK, "--out", str(out)]) == 0
    assert read_result(out / "run.json").sources == (str(project / "tasks.toml"),), "there was nothing to do"
    pictures(moved / "more", 2)
    toml.write_text(TOML.replace("[training]", '[[task]]\npath = "more"\ntest_share = 0.25\n[training]'))
    assert main(["run", str(toml), *QUICK, "--out", str(out)]) == 0
    recorded = read_result(out / "run.json")
    assert (recorded.sources, recorded.relative_sources) == ((str(toml),), ("../../tasks.toml",))
    assert len(recorded.scores) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify(out).bitwise


def test_other_data_at_the_new_place_is_not_passed_off_as_the_runs(project: Path, tmp_path: Path) -> None:
    moved = project.rename(tmp_path / "moved")
    pictures(moved / "dots", 7)
    with pytest.warns(UserWarning, match="whose data is not that of the run either"):
        assert "data" in verify(run_of(moved)).differences
    with pytest.warns(UserWarning, match="not that of the run"), pytest.raises(InputError, match=r"\(dots: pictures"):
        open_run(run_of(moved))


@pytest.mark.slow
def test_of_a_copy_the_data_is_taken_that_is_the_runs(project: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(project, tmp_path / "copied")
    assert recorded_run(run_of(copied))[1].sources == (project / "tasks.toml",), "both are the same"
    pictures(project / "dots", 7)
    with pytest.warns(UserWarning, match=r"project/tasks.toml has other data than the run; taking .*copied/tasks.toml"):
        assert verify(run_of(copied)).bitwise
    assert not verify(run_of(project)).bitwise
    (project / "tasks.toml").write_text("broken")
    with pytest.warns(UserWarning, match=r"taking .*copied/tasks.toml"):
        assert verify(run_of(copied)).bitwise


def test_verified_where_it_is_now(project: Path, tmp_path: Path) -> None:
    moved = project.rename(tmp_path / "moved")
    with pytest.warns(
        UserWarning, match="project/tasks.toml is gone; taking .*moved/tasks.toml, whose data is that of"
    ):
        assert verify(run_of(moved)).bitwise


def test_a_command_that_mends_names_the_files_where_they_are_now(project: Path, tmp_path: Path) -> None:
    moved = project.rename(tmp_path / "moved")
    path = run_of(moved) / "net.hat"
    path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.warns(UserWarning, match="is gone; taking"),
        pytest.raises(DamagedFileError, match=rf"or mend it: hatrack run {moved / 'tasks.toml'} --method sgd"),
    ):
        verify(run_of(moved))


def test_gone_from_both_places(project: Path, tmp_path: Path) -> None:
    moved = project.rename(tmp_path / "moved")
    (moved / "tasks.toml").unlink()
    with pytest.raises(
        InputError, match=r"project/tasks.toml, .* is gone, and is not at .*moved/tasks.toml either; put"
    ):
        verify(run_of(moved))


def test_a_record_of_before_knows_its_absolute_place_alone(project: Path, tmp_path: Path) -> None:
    path = run_of(project) / "run.json"
    content = read_checked_json(path, 2, "result")
    assert content["relative_sources"] == ["../../tasks.toml"]
    write_checked_json(path, {k: v for k, v in content.items() if k not in ("sha256", "relative_sources")})
    assert verify(run_of(project)).bitwise
    moved = project.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"project/tasks.toml, .* is gone; put it back there"):
        verify(run_of(moved))
    (tmp_path / "project").mkdir()
    shutil.copytree(moved, tmp_path / "project", dirs_exist_ok=True)
    assert verify(run_of(moved)).bitwise


@pytest.mark.slow
@pytest.mark.usefixtures("shown_warnings")
def test_files_that_are_tasks_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    pictures(project / "dots")
    x, y = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8), np.arange(60) % 2
    np.savez(project / "noise.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    monkeypatch.chdir(project)
    quick = ["--epochs", "1", "--set", "hidden=8", "--set", "test_share=0.25", *MASKED]
    assert main(["run", "--tasks", "dots", "noise.npz", *quick, "--out", "run"]) == 0
    monkeypatch.chdir(tmp_path)
    moved = project.rename(tmp_path / "moved")
    assert main(["verify", str(moved / "run")]) == 0
    assert "to the bit" in capsys.readouterr().out
    forget_in_run(moved / "run", "noise")
    for name in ("noise", "noise.npz"):
        assert name not in (moved / "run" / "run.json").read_text(), "no path names a task that was forgotten"
    assert json.loads((moved / "run" / "run.json").read_text())["relative_sources"] == ["../dots"]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_a_comparison_and_a_search_go_on_there(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def commands(folder: Path) -> list[list[str]]:
        toml, shared = str(folder / "tasks.toml"), ["--workers", "1", "--quiet"]
        return [
            ["compare", toml, "--methods", "sgd", "--out", str(folder / "compared"), *shared],
            ["tune", toml, "--method", "sgd", "--grid", "lr=0.1", "--out", str(folder / "tuned"), *shared],
        ]

    for command in commands(project):
        assert main(command) == 0
    moved = project.rename(tmp_path / "moved")
    for command in commands(moved):
        assert main(command) == 0, capsys.readouterr().err
    assert read_plan(moved / "compared")[0].sources == (moved / "tasks.toml",)


def test_paths_are_taken_by_their_names(tmp_path: Path) -> None:
    """A folder of runs on another disk, behind a link, sees its project where it was made, not where the disk is."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "tasks.toml").write_text("")
    (tmp_path / "project" / "runs").symlink_to(tmp_path / "disk" / "deep")
    folder, toml = tmp_path / "project" / "runs" / "one", tmp_path / "project" / "tasks.toml"
    folder.mkdir()
    relative = relative_to(folder, [toml])
    assert relative == ("../../tasks.toml",)
    assert seen_from(folder, relative) == (toml,)
    assert located(folder, ["/gone/tasks.toml"], relative) == (toml,)
    assert located(folder, [str(toml)], relative) == (toml,)
    assert located(folder, ["/gone/tasks.toml"], ()) == (Path("/gone/tasks.toml"),)
    assert relative_to(None, [toml]) == ()
    assert RunRequest("demo", "sgd").sources == ()
