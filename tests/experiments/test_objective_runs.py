"""Runs on numbers and on several labels, from the command line: learned, interrupted, verified, reported, exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.cli import main
from hatrack.errors import CheckpointError, InputError
from hatrack.experiments import Comparison, RunRequest, TaskSummary, prepare, read_result, verify
from hatrack.experiments.results import write_result
from hatrack.experiments.tuning import Candidate, best, tied
from hatrack.objectives import ACCURACY
from hatrack.objectives.metrics import MEAN_ABSOLUTE_ERROR, R_SQUARED
from hatrack.storage.checked_json import write_checked_json
from hatrack.train import scoring
from support.marks import slow_unless

QUICK = ["--set", "hidden=12,12", "--set", "batch_size=16", "--epochs", "3", "--set", "test_share=0.25", "--quiet"]


def tables(folder: Path, rows: int = 80) -> list[str]:
    paths = []
    for number, name in enumerate(("flats", "houses")):
        x = np.random.default_rng(number).normal(size=(rows, 3)).round(3)
        price = (1000 + 50 * x[:, number] + 5 * x[:, 2]).round(2)
        red, large = (x[:, number] > 0).astype(int), (x[:, 2] > 0.3).astype(int)
        pairs = zip(red, large, strict=True)
        tags = [" ".join(tag for tag, there in (("red", a), ("large", b)) if there) for a, b in pairs]
        columns = (*x.T, price, (price / 10).round(2), red, large, tags)
        lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
        path = folder / f"{name}.csv"
        path.write_text("\n".join(["a,b,c,price,rent,red,large,tags", *lines]) + "\n")
        paths.append(str(path))
    return paths


NUMBERS = ["--set", "targets=price,rent", "--set", "drop=red,large,tags"]
LABELS = ["--set", "targets=red,large", "--set", "drop=price,rent,tags"]


def run(folder: Path, *words: str, method: str = "hat", out: str = "run") -> dict[str, Any]:
    assert (
        main(["run", "--tasks", *tables(folder), "--method", method, *QUICK, *words, "--out", str(folder / out)]) == 0
    )
    content: dict[str, Any] = json.loads((folder / out / "run.json").read_text())
    return content


@pytest.mark.parametrize(
    ("words", "metric", "larger"),
    slow_unless(
        lambda words, metric, larger: not larger,
        [
            (NUMBERS, "R²", True),
            ([*NUMBERS, "--set", "metric=mae"], "mean absolute error", False),
            (LABELS, "mAP", True),
        ],
    ),
)
def test_a_run_is_recorded_with_its_metric_and_verified(
    words: list[str], metric: str, larger: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = run(tmp_path, *words)
    assert content["schema"] == 2
    for task in content["tasks"]:
        assert task["metric"] == {"name": metric, "larger_is_better": larger}
        assert (task["classes"], task["objective"]["names"]) == (2, words[1].partition("=")[2].split(","))
        if "R²" in metric:
            assert task["objective"]["mean"] == pytest.approx([1000, 100], rel=0.05)
    assert content["accuracy"] == [[None, None], [None, None]]
    (first, _), (again, second) = content["score"]
    assert first == again, "what HAT has learned stays, to the bit"
    assert content["logits_sha256"][0][0] == content["logits_sha256"][1][0]
    assert content["metrics"]["average_accuracy"] is None
    assert content["metrics"]["average_score"] == pytest.approx((again + second) / 2)
    assert (content["metrics"]["forgetting"], content["metrics"]["backward_transfer"]) == (0.0, 0.0)
    assert len(content["history"][0]["valid_score"]) == 3
    assert json.loads(json.dumps(read_result(tmp_path / "run" / "run.json").to_json())) == {
        key: value for key, value in content.items() if key != "sha256"
    }
    assert verify(tmp_path / "run").holds
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert main(["report", str(tmp_path / "run"), "--format", "markdown"]) == 0
    assert metric in capsys.readouterr().out
    again_content = run(tmp_path, *words, out="again")
    assert again_content["logits_sha256"] == content["logits_sha256"]


@pytest.mark.slow
def test_an_interrupted_run_on_numbers_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = run(tmp_path, *NUMBERS)
    shutil.copytree(tmp_path / "run", tmp_path / "half")
    for name in ("run.json", "net.hat"):
        before, kept = tmp_path / "half" / name, (tmp_path / "half" / name).with_suffix(".previous" + Path(name).suffix)
        kept.replace(before)
    assert run(tmp_path, *NUMBERS, out="half")["logits_sha256"] == whole["logits_sha256"]


def test_what_was_decided_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flats, _ = tables(tmp_path)
    words = ["--set", "targets=price", "--set", "drop=rent,red,large,tags", "--out", str(tmp_path / "one")]
    assert main(["run", flats, "--method", "sgd", *QUICK[:-1], *words]) == 0
    out = capsys.readouterr().out
    assert "note: task flats: price: taken for numbers to predict (regression)" in out
    assert "for classes, choose --set target=classes" in out
    assert "R² (higher is better)" in out
    assert "average R²" in out


def test_labels_in_one_column_and_weights(tmp_path: Path) -> None:
    words = ["--set", "targets=tags", "--set", "separator= ", "--set", "drop=price,rent,red,large"]
    plain = run(tmp_path, *words, "--set", "metric=f1", method="sgd")
    assert plain["tasks"][0]["objective"]["names"] == ["large", "red"]
    assert plain["tasks"][0]["metric"]["name"] == "F1"
    heavy = run(tmp_path, *words, "--set", "class_weights=balanced", method="sgd", out="heavy")
    assert heavy["config"]["class_weights"] == "balanced"
    assert len(heavy["tasks"][0]["objective"]["weights"]) == 2
    assert heavy["loss"][0] != plain["loss"][0]


def test_weights_of_the_classes_of_a_preset(tmp_path: Path) -> None:
    words = ["--epochs", "1", "--set", "num_tasks=1", "--set", "hidden=8", "--limit", "40", "--quiet"]
    base = ["run", "demo", "--method", "sgd", *words]
    hashes = {}
    for name, weights in (("plain", []), ("even", ["1,1"]), ("odd", ["1,9"])):
        more = [word for text in weights for word in ("--set", f"class_weights={text}")]
        assert main([*base, *more, "--out", str(tmp_path / name)]) == 0
        hashes[name] = json.loads((tmp_path / name / "run.json").read_text())["logits_sha256"]
    assert hashes["plain"] != hashes["odd"]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["demo", "--set", "target=numbers"], "target: the classes of demo are what they are"),
        (["demo", "--set", "targets=a", "--set", "metric=r2"], "targets and metric: the classes of demo"),
        (["demo", "--set", "target=words"], "target must be one of classes, numbers, labels"),
        (["demo", "--set", "metric=r3"], "must be one of accuracy, balanced_accuracy, r2, mae, rmse, map, f1, exact"),
        (["demo", "--set", "class_weights=even"], "class_weights=even does not fit"),
        (["demo", "--set", "class_weights=1,2,3"], "one number per class, 2, not 3"),
        (["demo", "--set", "targets=a,,b"], "targets must be names of columns joined by commas"),
        (["flats.csv", "--set", "targets=cost"], "there is no column in"),
        (["flats.csv"], "--set targets=NAME"),
        (["flats.csv", "--set", "targets=price"], "'tags'"),
        (["flats.csv", "--set", "targets=price", "--set", "drop=rant"], "there is no column in"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables(tmp_path)
    monkeypatch.chdir(tmp_path)
    share = ["--set", "test_share=0.2"] if words[0] != "demo" else []
    assert main(["run", *words, *share, "--method", "sgd", "--epochs", "1", "--quiet", "--out", "no"]) in (1, 2)
    said = capsys.readouterr().err.strip()
    assert fault in said
    assert "\n" not in said


@pytest.mark.parametrize("method", ["lwf", "er", "derpp", "gem", "dwa"])
def test_methods_of_classes_alone_refuse_before_anything_is_trained(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--tasks", *tables(tmp_path), "--method", method, *QUICK, *NUMBERS, "--out", str(tmp_path / "no")]
    assert main(words) == 2
    assert f"{method} cannot learn task 'flats', which is regression; these methods can: hat" in capsys.readouterr().err
    assert not (tmp_path / "no" / "run.json").exists()


def test_comparisons_and_searches_refuse_them_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "no"
    words = ["--tasks", *tables(tmp_path), *QUICK, *NUMBERS, "--out", str(out)]
    assert main(["compare", *words, "--methods", "hat,er,lwf,gem"]) == 2
    said = "er, lwf, gem cannot learn these tasks; leave them out (--methods): er cannot learn task 'flats', which is"
    assert said in capsys.readouterr().err
    assert main(["tune", *words, "--method", "lwf"]) == 2
    assert "lwf cannot learn task 'flats', which is regression; these methods can: hat" in capsys.readouterr().err
    assert not out.exists()
    assert main(["compare", *words, "--methods", "hat,sgd", "--dry-run"]) == 0
    capsys.readouterr()
    assert main(["compare", "demo", "--methods", "er", "--set", "class_weights=1,2", "--out", str(out)]) == 2
    assert "er cannot learn with class weights; leave out --set class_weights" in capsys.readouterr().err


def mixed(folder: Path) -> Path:
    flats, houses = map(Path, tables(folder))
    text = "".join(
        f'[[task]]\nname = "{name}"\npath = "{path.name}"\nlabel = {label}\ndrop = {drop}\ntest_share = 0.25\n'
        for name, path, label, drop in (
            ("red", flats, '"red"', '["price", "rent", "large", "tags"]'),
            ("price", houses, '"price"', '["red", "rent", "large", "tags"]'),
            ("large", houses, '"large"', '["red", "rent", "price", "tags"]'),
        )
    )
    (folder / "mixed.toml").write_text(f"{text}[training]\nepochs = 2\n[network]\nhidden = [8]\n")
    return folder / "mixed.toml"


def test_different_metrics_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(mixed(tmp_path)), "--method", "sgd", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "average accuracy" in out
    assert "average R²" in out
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    metrics, score = content["metrics"], content["score"]
    for key in ("average_accuracy", "average_score", "forgetting", "backward_transfer"):
        assert metrics[key] is None
    assert metrics["note"] == "tasks have different metrics (accuracy, R²), of which no mean means anything"
    classes, numbers = metrics["by_metric"]["accuracy"], metrics["by_metric"]["R²"]
    assert classes["average_score"] == pytest.approx((score[2][0] + score[2][2]) / 2)
    assert classes["forgetting"] == pytest.approx(score[0][0] - score[2][0])
    assert numbers["average_score"] == score[2][1]
    assert numbers["forgetting"] == pytest.approx(score[1][1] - score[2][1]), "it has had a task to be forgotten in"
    assert content["accuracy"] == [
        [score[0][0], None, None],
        [score[1][0], None, None],
        [score[2][0], None, score[2][2]],
    ]
    said = "different metrics (accuracy, R²), of which no mean means anything"
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert said in (tmp_path / "page.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["figure", "accuracy", str(tmp_path / "run"), "--out", str(tmp_path / "accuracy.svg")]) == 2
    assert said in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run"), "--format", "csv", "--table", "accuracy"]) == 0
    assert ",price,R²," in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run"), "--format", "csv"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_methods_are_compared_on_numbers_and_ranked_by_the_direction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--tasks", *tables(tmp_path), "--methods", "sgd,hat", "--seeds", "0-1", "--workers", "1"]
    assert main([*words, *QUICK[:-1], *NUMBERS, "--set", "metric=mae", "--out", str(tmp_path / "all")]) == 0
    shown = capsys.readouterr().out
    assert "lower is" in shown
    assert "flats, houses: learned as regression (to choose, --set target=classes, numbers or labels)" in shown
    found = Comparison.read(tmp_path / "all")
    assert found.metric == MEAN_ABSOLUTE_ERROR
    assert found.figures("sgd", "average_accuracy") == {}
    scores = {method: found.spread(method, "average_score") for method in found.methods}
    order = [line.split()[0] for line in shown.splitlines() if line.split() and line.split()[0] in found.methods]
    ranked = sorted(found.methods, key=lambda m: scores[m].mean if scores[m] else 0.0)  # type: ignore[union-attr]
    assert order[-len(ranked) :] == ranked
    ratios = found.forgetting_ratio("random", 0)
    assert ratios is not None
    assert ratios == pytest.approx((-1.0, -1.0))
    assert main(["report", str(tmp_path / "all"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "lowest mean absolute error after the last task" in page
    assert "<b>mean absolute error</b>: lower is better" in page
    for figure in ("accuracy", "forgetting", "matrix", "tasks", "transfer"):
        assert main(["figure", figure, str(tmp_path / "all"), "--out", str(tmp_path / f"{figure}.svg")]) == 0
        assert "error" in (tmp_path / f"{figure}.csv").read_text() or figure != "matrix"


def test_settings_are_chosen_by_the_direction() -> None:
    def candidate(score: float | None, lr: float) -> Candidate:
        return Candidate({"lr": lr}, score, None, MEAN_ABSOLUTE_ERROR)

    found = [candidate(None, 0.0), candidate(0.0, 0.1), candidate(3.0, 0.2), candidate(0.0, 0.3)]
    assert best(found) is found[1]
    upwards = [replace(each, metric=R_SQUARED) for each in found]
    assert best(upwards) is upwards[2]
    assert best(found[:1]) is None


@given(st.lists(st.none() | st.sampled_from([0.1, 0.2, 0.2 + 1e-12]), max_size=6), st.booleans())
def test_ties_are_all_that_no_other_is_better_than(scores: list[float | None], larger: bool) -> None:
    metric = R_SQUARED if larger else MEAN_ABSOLUTE_ERROR
    found = [Candidate({"lr": at}, score, None, metric) for at, score in enumerate(scores)]
    known = [each for each in found if each.score is not None]
    unbeaten = [one for one in known if not any(metric.gain(o.score or 0.0, one.score or 0.0) > 0 for o in known)]
    assert list(tied(found)) == (unbeaten if len(unbeaten) > 1 else [])
    assert best(found) is (unbeaten[0] if unbeaten else None)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_settings_are_searched_on_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "--tasks", *tables(tmp_path), "--method", "sgd", "--grid", "lr=0.05,0.0001", "--workers", "1"]
    out = tmp_path / "tuned"
    assert main([*words, *QUICK[:-1], *NUMBERS, "--set", "metric=rmse", "--out", str(out)]) == 0
    assert "average root mean squared error" in " ".join(capsys.readouterr().out.split())
    record = json.loads((out / "tuning.json").read_text())
    assert record["best"] == {"lr": 0.05}
    assert record["candidates"][0]["average_accuracy"] is None
    assert record["candidates"][0]["average_score"] < record["candidates"][1]["average_score"]


def test_an_export_says_what_the_numbers_mean(tmp_path: Path) -> None:
    content = run(tmp_path, *NUMBERS)
    path = tmp_path / "flats.safetensors"
    assert main(["export", str(tmp_path / "run"), "--task", "flats", "--to", str(path)]) == 0
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["price", "rent"]
    assert json.loads(metadata["objective"]) == content["tasks"][0]["objective"]


@pytest.mark.slow
def test_a_task_of_numbers_is_forgotten(tmp_path: Path) -> None:
    run(tmp_path, *NUMBERS)
    assert main(["forget", str(tmp_path / "run"), "--task", "flats"]) == 0
    assert [task["name"] for task in json.loads((tmp_path / "run" / "run.json").read_text())["tasks"]] == ["houses"]
    assert main(["verify", str(tmp_path / "run")]) == 0


def as_schema_1(path: Path) -> None:
    content = json.loads(path.read_text())
    for key in ("sha256", "score"):
        del content[key]
    for task in content["tasks"]:
        del task["metric"], task["objective"]
    for history in content["history"]:
        history["valid_accuracy"] = history.pop("valid_score")
    del content["metrics"]["average_score"]
    for key in ("target", "targets", "drop", "separator", "test_share", "metric", "class_weights"):
        del content["config"][key]
    write_checked_json(path, {**content, "schema": 1})


def test_runs_of_schema_1_are_read_verified_and_gone_on_with(tmp_path: Path) -> None:
    words = ["run", "demo", "--method", "hat", "--epochs", "1", "--set", "hidden=8", "--limit", "40", "--quiet"]
    assert main([*words, "--set", "num_tasks=2", "--out", str(tmp_path / "run")]) == 0
    path = tmp_path / "run" / "run.json"
    now = read_result(path)
    as_schema_1(path)
    then = read_result(path)
    assert then.matrix("score") == then.matrix("accuracy") == now.matrix("accuracy")
    assert [task.metric for task in then.tasks] == [ACCURACY] * 2
    assert replace(then, tasks=now.tasks, config=now.config) == now
    assert verify(tmp_path / "run").holds
    assert main([*words, "--set", "num_tasks=2", "--out", str(tmp_path / "run")]) == 0
    write_result(path, then)
    assert read_result(path) == then  # now of schema 2


def test_a_table_of_numbers_that_was_learned_as_classes_stays_so(tmp_path: Path) -> None:
    values = np.arange(80) % 25 + 0.5
    lines = [f"{value / 25 + number % 3},{number % 7},{value}" for number, value in enumerate(values)]
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    toml = tmp_path / "tasks.toml"
    toml.write_text('[[task]]\npath = "train.csv"\ntest = "test.csv"\nlabel = "y"\n[network]\nhidden = [8]\n')
    words = ["run", str(toml), "--method", "hat", "--epochs", "1", "--quiet", "--out", str(tmp_path / "run")]
    assert main([*words, "--set", "target=classes"]) == 0
    as_schema_1(tmp_path / "run" / "run.json")
    assert verify(tmp_path / "run").holds
    request = RunRequest("tasks", "hat", out=tmp_path / "run", sources=(toml,), overrides={"epochs": 1})
    assert prepare(request).stream[0].num_classes == 25


def test_a_damaged_objective_is_named(tmp_path: Path) -> None:
    summary = TaskSummary("t", 2, 1, 1, 1, R_SQUARED, {"kind": "regression", "names": ["a"]})
    with pytest.raises((KeyError, ValueError)):
        TaskSummary.from_json(summary.to_json())
    run(tmp_path, *NUMBERS, method="random")
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["tasks"][0]["objective"]["mean"] = [1.0]
    write_checked_json(path, content)
    with pytest.raises((CheckpointError, InputError)):
        read_result(path)


def test_only_classes_tell_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    x = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    y = x.mean((1, 2)) / 7
    np.savez(tmp_path / "grey.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    words = ["run", str(tmp_path / "grey.npz"), "--method", "hat", "--epochs", "1", "--set", "hidden=8", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    Image.fromarray(x[0]).save(tmp_path / "one.png")
    ask = ["predict", str(tmp_path / "run"), str(tmp_path / "one.png")]
    assert main(ask) == 2
    assert "task 'grey' is regression, and only classes tell a task; name one with --task" in capsys.readouterr().err
    assert main([*ask, "--task", "grey"]) == 0
    said = float(capsys.readouterr().out.split("grey")[1].split()[0])
    assert 10 < said < 30
    assert torch.isfinite(torch.tensor(said))


def test_turns_are_refused_before_anything_is_trained_where_a_later_task_has_no_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(40, 1, 6, 6)).astype("float32")
    targets = {"sides": (x[:, 0, 0, 0] > 0).astype(int), "sizes": x[:, 0, 0, 0]}
    for name, y in targets.items():
        np.savez(tmp_path / f"{name}.npz", x_train=x[:24], y_train=y[:24], x_test=x[24:], y_test=y[24:])
    paths = [str(tmp_path / f"{name}.npz") for name in targets]
    words = ["run", "--tasks", *paths, "--method", "hat", "--set", "hidden=6,6", "--set", "rotations=4", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "task 'sizes' is regression, and only classes are turned and contrasted" in line
    assert "--set rotations=1" in line
    assert not (tmp_path / "run" / "net.hat").exists()


def test_the_error_of_a_score_by_its_samples_is_recorded(tmp_path: Path) -> None:
    content = {key: value for key, value in run(tmp_path, *NUMBERS).items() if key != "sha256"}
    errors, learned = content["score_error"], content["score"]
    assert [[value is None for value in row] for row in errors] == [[value is None for value in row] for row in learned]
    result = read_result(tmp_path / "run" / "run.json")
    assert [[score.error for score in row] for row in result.scores] == [[errors[0][0]], errors[1]]
    assert result.to_json()["score_error"] == errors
    for damaged in (-1.0, 0.0, "much"):
        changed = {**content, "score_error": [[damaged, None], errors[1]]}
        write_checked_json(tmp_path / "run" / "run.json", changed)
        with pytest.raises(CheckpointError, match="is no standard error of a score"):
            read_result(tmp_path / "run" / "run.json")
    write_checked_json(tmp_path / "run" / "run.json", {k: v for k, v in content.items() if k != "score_error"})
    earlier = read_result(tmp_path / "run" / "run.json")
    assert all(score.error is None for row in earlier.scores for score in row)
    assert "score_error" not in earlier.to_json()


def test_the_error_of_outputs_that_stayed_the_same_is_estimated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    estimate = scoring.error_by_samples

    def noted(*given: Any) -> float | None:
        asked.append(None)
        return estimate(*given)

    monkeypatch.setattr(scoring, "error_by_samples", noted)
    content = run(tmp_path, *NUMBERS)
    assert content["score_error"][1][0] == content["score_error"][0][0]
    assert len(asked) == 2, "the first task's outputs were the same, to the bit"
