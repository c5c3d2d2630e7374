"""A finished run goes on with further tasks, and ends as if it had had all of them from the start."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import RunRequest, Status, TaskLearned, open_run, prepare, read_result, run, verify
from hatrack.experiments.backbones import build_backbone, narrow_builder
from hatrack.experiments.preparing import Run
from hatrack.experiments.settings import NetworkSettings
from hatrack.methods import METHODS, Setup
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.train import EpochDone
from support.killing import run_in_process
from support.marks import examples, slow_but

SETTINGS = "[training]\nepochs = 2\n[network]\nhidden = [8, 8]\n"
TABLE = '[[task]]\npath = "{}.csv"\nlabel = "answer"\ntest_share = 0.25\n'
NAMES = ("one", "two", "three")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def table(path: Path, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(40, 3))
    lines = [f"{a},{b},{c},{'yes' if a > 0 else 'no'}" for a, b, c in values]
    path.write_text("\n".join(["a,b,c,answer", *lines]) + "\n")


def project(folder: Path, *names: str) -> Path:
    """Tables of all names, and a ``tasks.toml`` of some."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(NAMES):
        table(folder / f"{name}.csv", seed)
    return written(folder / "tasks.toml", *names)


def written(toml: Path, *names: str, settings: str = SETTINGS) -> Path:
    toml.write_text("".join(TABLE.format(name) for name in names) + settings)
    return toml


def request(toml: Path, method: str = "sgd", **changes: Any) -> RunRequest:
    return RunRequest("tasks", method, 0, toml.parent / "run", overrides=changes, sources=(toml,))


def finish(wanted: RunRequest) -> Run:
    prepared = prepare(wanted)
    for _ in run(prepared):
        pass
    return prepared


def outcome(folder: Path) -> dict[str, Any]:
    """All that two runs of the same tasks have in common."""
    result = read_result(folder / "run.json").to_json()
    for key in ("timing", "environment", "command", "sources", "config"):
        result.pop(key)
    return {
        **result,
        "config": {k: v for k, v in read_result(folder / "run.json").config.items() if k != "num_tasks"},
        "net": (folder / "net.hat").read_bytes(),
        "logits": (folder / "logits.safetensors").read_bytes(),
        "files": sorted(path.name for path in folder.iterdir() if path.name != ".lock"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def refused(folder: Path, said: str) -> Iterator[None]:
    """Nothing is touched, and one line says why."""
    before = contents(folder)
    with pytest.raises(InputError, match=said) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("method", slow_but(("ewc",), ["hat", "pmask", "ewc", "sgd", "er"]))
def test_a_further_task_is_learned_as_if_it_had_been_there_from_the_start(method: str, tmp_path: Path) -> None:
    whole = finish(request(project(tmp_path / "whole", *NAMES), method)).result
    toml = project(tmp_path / "grown", "one")
    first = finish(request(toml, method)).result
    assert (len(first.tasks), first.status) == (1, Status.FINISHED)
    for names in (NAMES[:2], NAMES):
        written(toml, *names)
        grown = finish(request(toml, method)).result
        assert grown.status is Status.FINISHED
        assert grown.scores[: len(names) - 1] == whole.scores[: len(names) - 1], "rows of before are as they were"
    assert outcome(tmp_path / "grown" / "run") == outcome(tmp_path / "whole" / "run")
    assert verify(tmp_path / "grown" / "run").bitwise


@pytest.mark.parametrize("method", slow_but(("sgd",), METHODS))
def test_more_tasks_of_a_preset(method: str, tmp_path: Path) -> None:
    """Of every method: one that looks ahead at how many tasks there will be refuses where that made a difference."""

    def wanted(folder: str, tasks: int | None) -> RunRequest:
        settings = {"epochs": 1, "hidden": (12, 8), "limit": 40, "num_tasks": tasks}
        if method == "pathnet":
            settings["generations"] = 1
        return RunRequest("demo", method, 0, tmp_path / folder, overrides=settings)

    finish(wanted("grown", 1))
    if method == "pnn":
        with refused(tmp_path / "grown", "shares out its parameters among the tasks to come: .* for 1 there, .* for 3"):
            prepare(wanted("grown", 3))
        return
    finish(wanted("grown", 3))
    finish(wanted("whole", 3))
    assert outcome(tmp_path / "grown") == outcome(tmp_path / "whole")
    with refused(tmp_path / "grown", "'coat-sandal' as task 3, which is none of the tasks now"):
        prepare(wanted("grown", 2))


@pytest.mark.slow
def test_which_methods_look_ahead_at_how_many_tasks_there_will_be() -> None:
    """Those that read the numbers of classes to come, and no others."""

    def setup(classes: tuple[int, ...]) -> Setup:
        settings = NetworkSettings(hidden=(40, 30))
        build = partial(build_backbone, settings, (6,), 0)
        return Setup(build, (6,), 0, torch.device("cpu"), narrow_builder(settings, (6,)), classes)

    for name, kind in METHODS.items():
        few, many = (kind(setup((2,) * tasks), kind.settings_type()).foresight() for tasks in (1, 40))
        assert (few != many) == (name in ("pnn", "pathnet")), name


def test_files_named_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 2
    for name in ("one", "two"):
        np.savez(f"{name}.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    quick = ["--method", "sgd", "--epochs", "1", "--set", "hidden=8", "--threads", "1", "--out", "run"]
    assert main(["run", "--tasks", "one.npz", *quick]) == 0
    capsys.readouterr()
    assert main(["run", "--tasks", "one.npz", "two.npz", *quick]) == 0
    assert "begun with 1 task; going on after 1 of them with two" in capsys.readouterr().out
    assert main(["run", "--tasks", "one.npz", "two.npz", *quick[:-1], "whole"]) == 0
    assert outcome(tmp_path / "run")["logits"] == outcome(tmp_path / "whole")["logits"]
    assert len(read_result(Path("run/run.json")).sources) == 2
    assert main(["verify", "run"]) == 0
    assert "to the bit" in capsys.readouterr().out
    assert main(["run", "--tasks", "two.npz", "one.npz", *quick]) == 2
    assert "'one' as task 1, which is task 2 now" in capsys.readouterr().err
    assert main(["run", "--tasks", "one.npz", *quick]) == 2
    said = capsys.readouterr().err
    assert "one.npz, " in said
    assert "two.npz and this one is on" in said


CHANGES = {
    "removed": (lambda toml: written(toml, "one"), "'two' as task 2, which is none of the tasks now; put it back"),
    "another": (lambda toml: written(toml, "one", "three"), "'two' as task 2, which is none of the tasks now"),
    "reordered": (lambda toml: written(toml, "two", "one", "three"), "'one' as task 1, which is task 2 now"),
    "in front": (lambda toml: written(toml, "three", "one", "two"), "'one' as task 1, which is task 2 now; further"),
    "in between": (lambda toml: written(toml, "one", "three", "two"), "'two' as task 2, which is task 3 now"),
    "other data": (lambda toml: table(toml.parent / "two.csv", 7), r"\(two: table.*its files have changed since"),
    "read otherwise": (
        lambda toml: toml.write_text(toml.read_text().replace("test_share = 0.25", "test_share = 0.5", 1)),
        r"\(one: table.* there, one: table.*\); it is read in another way now",
    ),
    "another column": (
        lambda toml: toml.write_text(toml.read_text().replace('"answer"', '"answer"\ndrop = ["b"]')),
        r"\(one: table.*it is read in another way now",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("further", slow_but((False,), [False, True]))
def test_what_was_learned_must_be_the_same(change: str, further: bool, tmp_path: Path) -> None:
    toml = project(tmp_path, "one", "two")
    finish(request(toml))
    if further:
        written(toml, *NAMES)
    act, said = CHANGES[change]
    act(toml)
    with refused(tmp_path / "run", said):
        prepare(request(toml))


def test_samples_are_counted_where_a_digest_says_nothing(tmp_path: Path) -> None:
    """Such as where another version of a library reads the same file in another way."""
    toml = project(tmp_path, "one")
    finish(request(toml))
    content = read_checked_json(tmp_path / "run" / "run.json", 2, "result")
    content["tasks"][0]["test"] += 1
    write_checked_json(tmp_path / "run" / "run.json", {k: v for k, v in content.items() if k != "sha256"})
    written(toml, "one", "two")
    with refused(tmp_path / "run", r"'one': .* \+ 11 samples of 2 .* there, .* \+ 10 samples of 2 .* now"):
        prepare(request(toml))


def test_a_record_that_does_not_say_how_files_were_read_goes_on(tmp_path: Path) -> None:
    """Those of before this was recorded."""
    toml = project(tmp_path, "one")
    finish(request(toml))
    path = tmp_path / "run" / "run.json"
    content = read_checked_json(path, 2, "result")
    content["data"] = [line.partition(", read with")[0] for line in content["data"]]
    write_checked_json(path, {k: v for k, v in content.items() if k != "sha256"})
    assert Run(request(toml)).finished is not None
    assert verify(tmp_path / "run").bitwise
    written(toml, "one", "two")
    result = finish(request(toml)).result
    assert all(", read with {" in line for line in result.data)


def test_other_settings_are_refused_along_with_further_tasks(tmp_path: Path) -> None:
    toml = project(tmp_path, "one")
    finish(request(toml))
    written(toml, "one", "two")
    with refused(tmp_path / "run", r"other settings: epochs \(2 there, 3 now\)"):
        prepare(request(toml, "sgd", epochs=3))


def test_tasks_that_were_not_begun_may_be_others(tmp_path: Path) -> None:
    whole = finish(request(project(tmp_path / "whole", "one", "three"))).result
    toml = project(tmp_path / "grown", "one", "two")
    for event in run(prepare(request(toml))):
        if isinstance(event, EpochDone):
            break  # in the first task
    written(toml, "one", "three")
    prepared = prepare(request(toml))
    assert prepared.in_task is not None, "the first task is gone on with"
    for _ in run(prepared):
        pass
    assert prepared.result.scores == whole.scores
    assert outcome(tmp_path / "grown" / "run") == outcome(tmp_path / "whole" / "run")


def test_tasks_that_were_not_begun_may_be_left_out(tmp_path: Path) -> None:
    toml = project(tmp_path, "one", "two")
    for event in run(prepare(request(toml))):
        if isinstance(event, TaskLearned):
            break
    written(toml, "one")
    prepared = prepare(request(toml))
    assert prepared.notes[-1] == "the run was begun with 2 tasks; it ends after 1 of them"
    assert [*run(prepared)] == []
    assert Run(request(toml)).finished == read_result(tmp_path / "run" / "run.json")
    assert verify(tmp_path / "run").bitwise


def test_a_task_that_was_begun_must_be_the_same(tmp_path: Path) -> None:
    toml = project(tmp_path, "one", "two")
    for event in run(prepare(request(toml))):
        if isinstance(event, EpochDone):
            break
    table(tmp_path / "one.csv", 9)
    with refused(tmp_path / "run", r"\(one: table.*its files have changed since"):
        prepare(request(toml))


@pytest.mark.parametrize("stop", slow_but((12,), [1, 6, 12, 17]))
def test_interrupted_while_going_on(stop: int, tmp_path: Path) -> None:
    toml = project(tmp_path, "one")
    finish(request(toml, "hat"))
    written(toml, "one", "two")
    events = run(prepare(request(toml, "hat")))
    for _ in range(stop):
        next(events, None)
    events.close()
    assert len(finish(request(toml, "hat")).result.scores) == 2
    finish(request(project(tmp_path / "whole", "one", "two"), "hat"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole" / "run")


def test_a_further_task_that_changed_while_it_was_learned_is_refused(tmp_path: Path) -> None:
    toml = project(tmp_path, "one")
    finish(request(toml))
    written(toml, "one", "two")
    for event in run(prepare(request(toml))):
        if isinstance(event, EpochDone):
            break
    table(tmp_path / "two.csv", 9)
    with refused(tmp_path / "run", r"\(two: table.*its files have changed since"):
        prepare(request(toml))


def test_nothing_that_another_attempt_has_left_is_taken_up(tmp_path: Path) -> None:
    """A record of before a task was added, as after damage, does not know on which data that was trained."""
    toml = project(tmp_path, "one")
    finish(request(toml))
    before = (tmp_path / "run" / "run.json").read_bytes()
    written(toml, "one", "two")
    for event in run(prepare(request(toml))):
        if isinstance(event, EpochDone):
            break
    assert (tmp_path / "run" / "training.safetensors").exists()
    (tmp_path / "run" / "run.json").write_bytes(before)
    table(tmp_path / "two.csv", 9)
    prepared = prepare(request(toml))
    assert prepared.in_task is None
    next(run(prepared))
    assert not (tmp_path / "run" / "training.safetensors").exists()


@pytest.mark.slow
def test_killed_while_going_on_at_one_of_many_moments(tmp_path: Path) -> None:
    assert run_in_process(tmp_path / "one", num_tasks=1) is not None
    moments = run_in_process(tmp_path / "whole", num_tasks=2)
    assert moments is not None
    shutil.copytree(tmp_path / "one", tmp_path / "grown")
    moments = run_in_process(tmp_path / "grown", num_tasks=2)
    assert moments is not None
    expected = outcome(tmp_path / "whole")
    assert outcome(tmp_path / "grown") == expected
    for moment in [1, 2, 3, 4, 5, *random.Random(0).sample(range(6, moments + 1), examples(10))]:
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "one", folder)
        assert run_in_process(folder, fatal=moment, num_tasks=2) is None
        run_in_process(folder, num_tasks=2)
        assert outcome(folder) == expected, f"killed at moment {moment} of {moments}"


def test_verifying_does_not_mind_tasks_that_are_yet_to_come(tmp_path: Path) -> None:
    toml = project(tmp_path, "one")
    finish(request(toml))
    written(toml, "one", "two")
    assert verify(tmp_path / "run").bitwise


READ_OTHERWISE = {
    "counts": ("test_share = 0.25", "test_share = 0.5", r"'one': .* \+ 10 samples .* there, .* \+ 20 samples .* now"),
    "columns": ('"answer"', '"answer"\ndrop = ["b"]', "'one'.*|it is read in another way now; put the data back"),
}


@pytest.mark.parametrize("way", READ_OTHERWISE)
def test_verifying_says_so_where_files_are_read_in_another_way(way: str, tmp_path: Path) -> None:
    toml = project(tmp_path, "one")
    finish(request(toml))
    before, after, said = READ_OTHERWISE[way]
    toml.write_text(toml.read_text().replace(before, after))
    with pytest.raises(InputError, match=said):
        verify(tmp_path / "run")


@pytest.mark.parametrize("change", ["content", "reading"])
def test_a_network_is_not_asked_through_other_data_than_it_learned(change: str, tmp_path: Path) -> None:
    """Classes, and how samples are standardised, are in the data: other data would answer wrongly in silence."""
    toml = project(tmp_path, "one")
    finish(request(toml))
    open_run(tmp_path / "run")
    if change == "content":
        table(tmp_path / "one.csv", 5)
    else:
        toml.write_text(toml.read_text().replace("test_share = 0.25", "test_share = 0.24"))
    with pytest.raises(InputError, match=r"\(one: table.* there, one: table.* now\).*put the data back as it was"):
        open_run(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_a_comparison_goes_on_with_all_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = project(tmp_path, "one")
    command = ["compare", str(toml), "--methods", "sgd", "--out", str(tmp_path / "compared"), "--workers", "1"]
    assert main(command) == 0
    written(toml, "one", "two")
    assert main([*command, "--dry-run"]) == 0
    assert "3 of 3 runs to do" in capsys.readouterr().out
    assert main(command) == 0
    for method in ("sgd", "joint", "random"):
        assert len(read_result(tmp_path / "compared" / method / "seed0" / "run.json").scores) == 2
    table(tmp_path / "one.csv", 9)
    assert main(command) == 2
    assert re.search("holds a run on other data.*its files have changed since", capsys.readouterr().err)
