"""Runs that recognise the tasks of their test samples: what is recorded, kept, left out, verified and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import hatrack.experiments.running
from hatrack import HATNetwork, measure_inference
from hatrack.cli import main
from hatrack.errors import CheckpointError, InputError
from hatrack.experiments import (
    Comparison,
    ComparisonPlan,
    Reproduction,
    RunRequest,
    RunResult,
    forget_in_run,
    open_run,
    predict_files,
    prepare,
    read_result,
    recorded_run,
    run,
    verify,
)
from hatrack.experiments.plan import write_plan
from hatrack.experiments.recognition import Recognition
from hatrack.experiments.results import write_result
from hatrack.methods import METHODS
from hatrack.methods.masked import MaskedMethod
from hatrack.recognition import Confusion, RandomFilters
from hatrack.storage.checked_json import write_checked_json
from support.synthetic import recognised, synthetic

BRIEF: dict[str, Any] = {"epochs": 1, "hidden": (24, 20), "limit": 60, "num_tasks": 3, "infer": True}
MASKED = sorted(name for name, kind in METHODS.items() if issubclass(kind, MaskedMethod))


def request(method: str, out: Path | None = None, **changes: Any) -> RunRequest:
    return RunRequest("demo", method, 0, out, overrides={**BRIEF, **changes})


def finish(wanted: RunRequest) -> RunResult:
    prepared = prepare(wanted)
    for _ in run(prepared):
        pass
    return prepared.result


@pytest.fixture(scope="module", autouse=True)
def _small_map() -> Iterator[None]:
    """Fewer features than usual, so that a regression takes milliseconds."""
    with patch("hatrack.models.calibrating.default_feature_map", lambda shape: RandomFilters(filters=9, regions=2)):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "hat"
    finish(request("hat", folder))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "hat"))


def confusion(*rows: tuple[int, ...], classes: tuple[int, ...], auroc: tuple[float, ...] = ()) -> Confusion:
    names = tuple(f"task-{index + 1}" for index in range(len(classes)))
    return Confusion(names, classes, torch.tensor(rows), auroc)


ONE = confusion((3, 1), (0, 6), classes=(2,))
TWO = confusion((3, 0, 1), (0, 5, 1), (2, 0, 18), classes=(2, 1), auroc=(0.9, 0.8))


def test_figures_count_all_samples_alike() -> None:
    found = Recognition().with_row(ONE).with_row(TWO)
    assert found.class_incremental == ((0.9,), (0.8, 0.9))
    assert found.task_recognised == ((1.0,), (0.8, 0.9))
    assert found.figures((10, 20, 5)) == {"class_incremental_accuracy": 26 / 30, "task_recognised": 26 / 30}
    assert found.curve((10, 20))[0] == {"class_incremental_accuracy": 0.9, "task_recognised": 1.0}
    assert (found.task_auroc, found.task_confusion) == ((0.9, 0.8), ((8, 2), (2, 18)))
    assert found.class_confusion == ((3, 0, 1), (0, 5, 1), (2, 0, 18))
    assert Recognition().figures((10, 20)) == dict.fromkeys(("class_incremental_accuracy", "task_recognised"))


def test_entries_of_a_file_are_read_as_they_were_written_and_damaged_ones_refused() -> None:
    found = Recognition().with_row(ONE).with_row(TWO)
    classes = [2, 1, 4]
    content = json.loads(json.dumps(found.to_json(3)))
    assert content["class_incremental"] == [[0.9, None, None], [0.8, 0.9, None], [None] * 3]
    assert content["task_auroc"] == [0.9, 0.8, None], "one entry for every task, learned or not"
    assert Recognition.from_json(content, 2, classes) == found
    assert Recognition.from_json({}, 2, classes) is None
    left = found.without_task(0, None)
    assert Recognition.from_json(json.loads(json.dumps(left.to_json(2))), 1, [1, 4]) == left
    damaged: tuple[tuple[str, Any], ...] = (
        ("class_incremental", [[0.9, None, None], [0.8, None, 0.9], [None] * 3]),
        ("task_recognised", [[0.9, None, None], [0.8, 0.9, None]]),
        ("task_auroc", [0.9]),
        ("task_confusion", [[8, 2]]),
        ("class_confusion", [[3, 0, 1], [0, 5, 1], [2, 0, -18]]),
    )
    for key, value in damaged:
        with pytest.raises((TypeError, ValueError)):
            Recognition.from_json({**content, key: value}, 2, classes)


def test_what_was_measured_beside_a_forgotten_task_goes_with_it() -> None:
    three = confusion((4, 0, 0), (0, 4, 0), (1, 0, 3), classes=(1, 1, 1), auroc=(0.7, 0.8, 0.9))
    found = Recognition((), ()).with_row(confusion((4,), classes=(1,)))
    found = found.with_row(confusion((3, 1), (0, 4), classes=(1, 1), auroc=(0.7, 0.8))).with_row(three)
    assert found.without_task(1, None) == Recognition(((1.0,), None), ((1.0,), None))
    assert found.without_task(2, None).class_incremental == ((1.0,), (0.75, 1.0)), "nothing was taken for it then"
    now = confusion((4, 0), (2, 2), classes=(1, 1), auroc=(0.6, 0.6))
    anew = found.without_task(0, now)
    assert anew.class_incremental == (None, (1.0, 0.5))
    assert (anew.task_auroc, anew.task_confusion) == ((0.6, 0.6), ((4, 0), (2, 2)))
    assert found.first(1) == Recognition(((1.0,),), ((1.0,),))
    assert found.first(3) is found


def test_a_result_keeps_it_and_says_nothing_where_nothing_was_measured(tmp_path: Path) -> None:
    plain = synthetic("hat", 0, 3)
    with_it = recognised(plain)
    for result in (plain, with_it):
        write_result(tmp_path / "run.json", result)
        assert read_result(tmp_path / "run.json") == result
        content = json.loads((tmp_path / "run.json").read_text())
        measured = result is with_it
        for key in ("class_incremental", "task_recognised", "task_auroc", "task_confusion", "class_confusion"):
            assert (content[key] is not None) == measured
        assert content["metrics"]["task_recognised"] == (pytest.approx(0.9) if measured else None)
        assert content["metrics"]["class_incremental_accuracy"] == (pytest.approx(0.8) if measured else None)
    assert with_it.first(2).recognition == replace(with_it.recognition or Recognition()).first(2)
    content = with_it.to_json()
    content["class_confusion"] = content["class_confusion"][:-1]
    write_checked_json(tmp_path / "run.json", content)
    with pytest.raises(CheckpointError, match="is damaged, or not a result"):
        read_result(tmp_path / "run.json")


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(MASKED)))
def test_methods_without_masks_are_refused_before_anything_is_read(method: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{method} has no masks.*take one of hat, .*pmask"):
        prepare(request(method, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_comparison_asks_for_which_methods(tmp_path: Path) -> None:
    for settings in ({"infer": "true"}, {"joint.infer": True}):
        with pytest.raises(InputError, match=r"infer is for methods with masks, and joint.*`hat\.infer=true`"):
            ComparisonPlan.make("demo", ["hat"], [0], settings)
    plan = ComparisonPlan.make("demo", ["hat"], [0, 1], {"hat.infer": "true"})
    assert [plan.config(method).stream.infer for method in plan.methods] == [True, False, False]
    write_plan(tmp_path, plan, {})
    for seed in (0, 1):
        place = tmp_path / "hat" / f"seed{seed}"
        place.mkdir(parents=True)
        write_result(place / "run.json", recognised(synthetic("hat", seed, 3)))
    found = Comparison.read(tmp_path)
    spread = found.spread("hat", "class_incremental_accuracy")
    assert spread is not None
    assert spread.mean == pytest.approx(0.8)
    assert found.spread("joint", "task_recognised") is None


def test_tasks_without_classes_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        x = draw.normal(size=(40, 3)).astype("float32")
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=x[:, 0], x_test=x[:9], y_test=x[:9, 0])
    sources = (tmp_path / "one.npz", tmp_path / "two.npz")
    wanted = RunRequest("own", "hat", out=tmp_path / "run", overrides={"infer": True, "epochs": 1}, sources=sources)
    with pytest.raises(InputError, match=r"'one' is .*only tasks of classes are recognised"):
        prepare(wanted)


def test_with_and_without_are_different_runs(tmp_path: Path) -> None:
    config = prepare(request("hat", infer=False)).config.flat()
    write_result(tmp_path / "run.json", replace(synthetic("hat", 0, 3), experiment="demo", config=config))
    with pytest.raises(InputError, match=r"infer \(False there, True now\)"):
        prepare(request("hat", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", MASKED)
def test_what_is_recorded_is_what_the_network_says(method: str, tmp_path: Path) -> None:
    result = finish(request(method, tmp_path))
    without = finish(request(method, infer=False))
    assert result.matrix("logits_sha256") == without.matrix("logits_sha256"), "measuring changes no bit of the run"
    prepared, tasks = open_run(tmp_path)
    net: Any = prepared.method
    samples = {task.name: task.test.load() for task in tasks}
    expected = measure_inference(net.network, samples, batch_size=result.config["eval_batch_size"])
    figures = result.metrics()
    assert figures["class_incremental_accuracy"] == expected.class_incremental
    assert figures["task_recognised"] == expected.task
    assert result.recognition is not None
    for task, row in zip(tasks, result.recognition.task_confusion or (), strict=True):
        assert sum(row) == len(task.test)
    assert np.sum(result.recognition.class_confusion or ()) == sum(len(task.test) for task in tasks)
    verification = verify(tmp_path)
    assert verification.holds
    assert all(verdict.recognition is not None for verdict in verification.verdicts)


@pytest.mark.slow
def test_verify_tells_another_confusion_and_rerun_another_share(folder: Path) -> None:
    result = read_result(folder / "run.json")
    assert result.recognition is not None
    rows = [list(row) for row in result.recognition.class_confusion or ()]
    rows[0][0], rows[0][1] = rows[0][0] - 1, rows[0][1] + 1
    other = replace(result.recognition, class_confusion=tuple(map(tuple, rows)))
    write_result(folder / "run.json", replace(result, recognition=other))
    verification = verify(folder)
    assert [v.recognition.agrees for v in verification.verdicts if v.recognition] == [False, True, True]
    assert not verification.holds
    last = result.recognition.class_incremental[-1]
    assert last is not None
    shares = (*result.recognition.class_incremental[:-1], (last[0] / 2, *last[1:]))
    changed = replace(result, recognition=replace(result.recognition, class_incremental=shares))
    assert Reproduction.of(result, result).exact
    assert [task.same_recognition for task in Reproduction.of(changed, result).tasks] == [False, True, True]
    _, again = recorded_run(folder)
    assert again.overrides["infer"] is True


@pytest.mark.slow
def test_further_tasks_and_interruptions_end_as_a_run_without_them(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(request("hat", tmp_path / "further", num_tasks=2))
    expected = read_result(finished / "run.json")
    assert finish(request("hat", tmp_path / "further")).recognition == expected.recognition

    class KilledError(Exception):
        pass

    def fail(*_: object) -> None:
        raise KilledError

    written = hatrack.experiments.running.write_result
    for name in ("write_result", "calibrate_task"):  # after the network, and before it
        for _ in range(3):
            monkeypatch.setattr(hatrack.experiments.running, name, fail)
            with pytest.raises(KilledError):
                finish(request("hat", tmp_path / name))
            monkeypatch.undo()
            for event in run(prepare(request("hat", tmp_path / name))):
                if isinstance(event, hatrack.experiments.running.TaskLearned):
                    break
        assert finish(request("hat", tmp_path / name)).recognition == expected.recognition
    assert hatrack.experiments.running.write_result is written


@pytest.mark.slow
@pytest.mark.parametrize("here", [True, False])
def test_forgetting_measures_anew_or_says_that_it_is_not_known(
    here: bool, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not here:
        monkeypatch.setattr(
            "hatrack.experiments.experiment.Experiment.stream_of", lambda *_, **__: _raise(InputError("no data"))
        )
    assert forget_in_run(folder, "pullover-dress").recognition is here
    monkeypatch.undo()
    content = json.loads((folder / "run.json").read_text())
    assert content["class_incremental"][0] == [1.0 * content["class_incremental"][0][0], None]
    assert (content["task_confusion"] is not None) == here
    assert len(content["task_auroc"]) == 2
    assert all(len(row) == 2 for row in (*content["class_incremental"], *content["task_recognised"]))
    verification = verify(folder)
    assert verification.holds
    known = [v.recognition.recorded for v in verification.verdicts if v.recognition]
    assert all((share is not None) == here for share in known)
    prepared, tasks = open_run(folder)
    method: Any = prepared.method
    expected = measure_inference(method.network, {task.name: task.test.load() for task in tasks}).class_incremental
    assert content["metrics"]["class_incremental_accuracy"] == (pytest.approx(expected, abs=2e-3) if here else None)
    assert main(["verify", str(folder)]) == 0
    assert "unnamed" in capsys.readouterr().out


@pytest.mark.slow
def test_forgetting_does_not_measure_on_other_data(folder: Path) -> None:
    recorded = read_result(folder / "run.json")
    write_result(folder / "run.json", replace(recorded, data=("fashion-mnist-subset: pictures",)))
    assert forget_in_run(folder, "pullover-dress").recognition is False


@pytest.mark.slow
def test_predicting_takes_what_the_run_has_calibrated(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of all tasks in one file, which nobody names, in one pass and without a look at the training samples."""
    prepared, tasks = open_run(finished)
    mixed = torch.cat([task.test.source[task.test.rows] for task in tasks])
    mixed = mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))]
    np.save(tmp_path / "mixed.npy", mixed.numpy())
    monkeypatch.setattr("hatrack.models.base.calibrate", lambda *_: _raise(AssertionError("calibrated again")))
    with patch.object(HATNetwork, "infer", autospec=True, side_effect=HATNetwork.infer) as infer:
        found = predict_files(finished, None, [tmp_path / "mixed.npy"])
    assert infer.call_count == 1
    method: Any = prepared.method
    transform = tasks[0].test.transform
    assert transform is not None
    inferred = method.network.infer(transform(mixed).float())
    assert [each.task for each in found] == inferred.task_names
    monkeypatch.undo()
    without = finish(request("hat", tmp_path / "without", infer=False))
    assert without.recognition is None
    again = predict_files(tmp_path / "without", None, [tmp_path / "mixed.npy"])
    assert [each.task for each in again] == [each.task for each in found], "calibrated when it is asked"


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "demo", "--method", "hat", "--epochs", "1", "--limit", "60", "--set", "num_tasks=2"]
    words += ["--set", "hidden=24,20", "--out", str(tmp_path / "run")]
    assert main([*words, "--infer"]) == 0
    assert "with no task named" in capsys.readouterr().out
    assert main([*words, "--infer", "--set", "infer=true"]) == 2
    assert "are the same setting" in capsys.readouterr().err
    assert main(words) == 2
    assert "infer (True there, False now)" in " ".join(capsys.readouterr().err.split())
