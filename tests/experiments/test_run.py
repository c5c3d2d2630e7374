from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import hatrack
from hatrack.errors import CheckpointError, InputError, TrainingError
from hatrack.experiments import (
    EXPERIMENTS,
    RunRequest,
    RunResult,
    Status,
    TaskHistory,
    TaskLearned,
    finished_result,
    prepare,
    read_result,
    run,
    running,
    verify,
)
from hatrack.experiments.backbones import build_backbone
from hatrack.experiments.folder import TrainingKeeper
from hatrack.experiments.results import write_result
from hatrack.methods import METHODS
from hatrack.storage.checked_json import write_checked_json
from hatrack.streams import StreamOptions, build_stream
from support.marks import slow_but
from support.toys import QUICK

Finished = Callable[[str], tuple[RunResult, Path]]
BRIEF: dict[str, Any] = {"epochs": 2, "hidden": (40, 30), "limit": 120, "num_tasks": 3}
REMEMBERING = ("er", "derpp", "gem")
"""Methods that keep samples of earlier tasks."""


def request(method: str, out: Path | None = None, **changes: Any) -> RunRequest:
    seed = changes.pop("seed", 0)
    return RunRequest("demo", method, seed, out, overrides={**BRIEF, **changes})


def finish(wanted: RunRequest) -> RunResult:
    prepared = prepare(wanted)
    for _ in run(prepared):
        pass
    return prepared.result


def comparable(result: RunResult) -> dict[str, Any]:
    """The result without what may differ between two runs of the same command."""
    content = result.to_json()
    return {key: value for key, value in content.items() if key not in ("timing", "environment", "command")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a method's finished run and its folder, in which nothing may be changed; it is made once."""

    @cache
    def made(method: str) -> tuple[RunResult, Path]:
        folder = tmp_path_factory.mktemp(method)
        return finish(request(method, folder)), folder

    return made


@pytest.mark.parametrize("method", slow_but(QUICK, METHODS))
def test_run_json_has_the_documented_schema(method: str, finished: Finished) -> None:
    result, folder = finished(method)
    content = json.loads((folder / "run.json").read_text())
    assert list(content) == [
        *("schema", "experiment", "method", "seed", "command", "config", "tasks", "score", "accuracy", "loss"),
        *(
            "logits_sha256",
            "metrics",
            "timing",
            "environment",
            "data",
            "sources",
            "history",
            "reuse",
            *("class_incremental", "task_recognised", "task_auroc", "task_confusion", "class_confusion"),
            *(["memory"] if method in REMEMBERING else []),
            "status",
            "sha256",
        ),
    ]
    assert (content["schema"], content["experiment"], content["method"], content["seed"]) == (2, "demo", method, 0)
    assert content["status"] == "finished"
    assert content["tasks"][0] == {
        **{"name": "tshirt-trouser", "classes": 2, "train": 102, "valid": 18, "test": 200},
        "metric": {"name": "accuracy", "larger_is_better": True},
        "objective": {"kind": "classification", "outputs": 2},
        "class_names": ["T-shirt/top", "Trouser"],
        **{"shape": [1, 28, 28], "range": [0, 255], "scaling": "mean and deviation of each channel"},
    }
    assert content["score"] == content["accuracy"]
    for what, kind in (("score", float), ("accuracy", float), ("loss", float), ("logits_sha256", str)):
        matrix = content[what]
        assert len(matrix) == 3
        assert [[isinstance(value, kind) for value in row] for row in matrix] == [
            [column <= row for column in range(3)] for row in range(3)
        ]
    assert all(0.0 <= value <= 1.0 for row in content["accuracy"] for value in row if value is not None)
    assert set(content["metrics"]) == {
        *("average_accuracy", "average_score", "forgetting", "backward_transfer", "forgetting_ratio", "capacity"),
        *("class_incremental_accuracy", "task_recognised"),
    }
    assert content["metrics"]["average_accuracy"] == content["metrics"]["average_score"]
    assert content["metrics"]["average_accuracy"] == pytest.approx(sum(content["accuracy"][-1]) / 3)
    assert content["metrics"]["forgetting_ratio"] is None
    assert content["data"] == ["fashion-mnist-subset: idx files"]
    assert read_result(folder / "run.json") == result


def test_hat_keeps_every_column_of_hashes_constant_and_sgd_does_not(tmp_path: Path) -> None:
    for method, constant in (("hat", True), ("sgd", False)):
        hashes = finish(request(method)).matrix("logits_sha256")
        columns = [{hashes[row][task] for row in range(task, 3)} for task in range(2)]
        assert all((len(column) == 1) == constant for column in columns)


@pytest.mark.slow
def test_the_hash_is_that_of_the_networks_own_logits(tmp_path: Path) -> None:
    """Derive the proof by hand, from the saved file and the public interface alone."""
    result = finish(request("hat", tmp_path))
    stream = build_stream("demo", StreamOptions(seed=0, limit=120, validation=0.15), num_tasks=3)
    backbone = build_backbone(EXPERIMENTS["demo"].config("hat").overridden(BRIEF).network, stream.input_shape, seed=7)
    net = hatrack.load(tmp_path / "net.hat", backbone).eval()
    for index, task in enumerate(stream):
        x, y = task.test.load()
        with torch.no_grad():
            logits = net(x, task.name)  # 200 samples: a single batch in the run as well
        assert (
            hashlib.sha256(logits.numpy().astype("<f4").tobytes()).hexdigest() == result.scores[-1][index].logits_sha256
        )
        assert float((logits.argmax(1) == y).float().mean()) == pytest.approx(result.scores[-1][index].value)


@pytest.mark.parametrize("method", slow_but(QUICK, METHODS))
def test_an_interrupted_run_goes_on_to_the_same_end(method: str, finished: Finished, tmp_path: Path) -> None:
    whole, _ = finished(method)
    interrupted = prepare(request(method, tmp_path))
    for event in run(interrupted):
        if isinstance(event, TaskLearned):
            break  # stops here, as Ctrl-C would
    assert read_result(tmp_path / "run.json").status is Status.RUNNING
    taken_up = prepare(request(method, tmp_path))
    assert len(taken_up.result.scores) == 1
    for _ in run(taken_up):
        pass
    assert comparable(taken_up.result) == comparable(whole)


@pytest.mark.slow
def test_interrupted_in_the_middle_of_a_task(finished: Finished, tmp_path: Path) -> None:
    whole, _ = finished("hat")
    interrupted = prepare(request("hat", tmp_path))
    for number, _ in enumerate(run(interrupted)):
        if number == 12:
            break
    assert comparable(finish(request("hat", tmp_path))) == comparable(whole)


def without_last_row(folder: Path) -> None:
    """Have a folder as a process leaves it that is killed between writing the network and the row."""
    behind = read_result(folder / "run.json").first(2)
    write_result(folder / "run.json", behind)


@pytest.mark.slow
def test_stopped_between_writing_the_network_and_the_result(tmp_path: Path) -> None:
    whole = finish(request("hat", tmp_path))
    without_last_row(tmp_path)  # what happened in the epochs is gone with the finished run: it is learned again
    assert comparable(finish(request("hat", tmp_path))) == comparable(whole)


@pytest.mark.slow
def test_stopped_there_without_an_earlier_network(tmp_path: Path) -> None:
    whole = finish(request("hat", tmp_path))
    without_last_row(tmp_path)
    (tmp_path / "net.previous.hat").unlink()  # as in folders of older versions
    curves_are_lost = replace(TaskHistory(), capacity=whole.history[2].capacity)
    expected = comparable(replace(whole, history=(*whole.history[:2], curves_are_lost)))
    assert comparable(finish(request("hat", tmp_path))) == expected


@pytest.mark.slow
def test_the_history_agrees_with_what_is_known_after_every_task() -> None:
    for method, units in (("hat", True), ("pmask", False)):
        prepared = prepare(request(method))
        shares: list[float] = []
        for event in run(prepared):
            if isinstance(event, TaskLearned):
                usage = prepared.method.usage()
                assert usage is not None
                shares.append(usage)
        result = prepared.result
        for share, task in zip(shares, result.history, strict=True):
            assert task.capacity is not None
            assert share == pytest.approx(task.capacity["units" if units else "weights"])
            assert len(task.used) == len(task.valid_score) == len(task.train_loss) == len(task.valid_loss) == 2
            assert all(0 < used <= 1 for used in task.used)
        assert shares == sorted(shares), "what is used stays used"
        assert result.history[-1].capacity == result.capacity
        assert result.reuse is not None
        assert [result.reuse[task][task] for task in range(3)] == [1.0] * 3
    plain = finish(request("sgd"))
    assert plain.reuse is None
    assert [(task.capacity, task.used) for task in plain.history] == [(None, ())] * 3
    assert [len(task.valid_score) for task in plain.history] == [2, 2, 2]


@pytest.mark.slow
def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    finish(request("hat", tmp_path))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert prepare(request("hat", tmp_path)).result.status is Status.FINISHED
    finish(request("hat", tmp_path))
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("changes", "key"), [({"lr": 0.01}, "lr"), ({"seed": 3}, "seed"), ({"c": 2}, "c")])
def test_another_run_in_the_same_folder_is_refused(changes: dict[str, Any], key: str, finished: Finished) -> None:
    _, folder = finished("hat")
    with pytest.raises(InputError, match=rf"other settings: {key} \("):
        prepare(request("hat", folder, **changes))


def test_same_seed_same_bits_other_seed_others(finished: Finished) -> None:
    (first, _), again, other = finished("hat"), *(finish(request("hat", seed=seed)) for seed in (0, 1))
    assert comparable(first) == comparable(again)
    assert first.matrix("logits_sha256") != other.matrix("logits_sha256")


@pytest.mark.slow
def test_all_methods_share_data_and_initial_weights() -> None:
    def digest(method: str) -> str:
        prepared = prepare(request(method, seed=5))
        summary = hashlib.sha256()
        for task in prepared.stream:
            for split in (task.train, task.valid, task.test):
                x, y = split.load()
                summary.update(task.name.encode() + x.numpy().tobytes() + y.numpy().tobytes())
        for name, value in prepared.method.setup.build_backbone().state_dict().items():
            summary.update(name.encode() + value.numpy().tobytes())
        return summary.hexdigest()

    assert len({digest(method) for method in METHODS}) == 1
    hat, sgd, joint = (prepare(request(method, seed=5)).method for method in ("hat", "sgd", "joint"))
    for one, other in ((hat, sgd), (sgd, joint)):
        weights = zip(one.network.backbone.parameters(), other.network.backbone.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "warmed"), [("sgd", ["warm"]), ("random", [])])
def test_the_clock_begins_after_the_warm_up(method: str, warmed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first method of a comparison would be charged for the start of its process otherwise."""
    steps: list[str] = []

    def clock(*arguments: Any) -> TrainingKeeper:
        steps.append("clock")
        return TrainingKeeper(*arguments)

    monkeypatch.setattr(running, "warm_up", lambda *_: steps.append("warm"))
    monkeypatch.setattr(running, "TrainingKeeper", clock)
    finish(request(method, num_tasks=2))
    assert steps == [*warmed, "clock", "clock"]


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_what_was_learned(tmp_path: Path) -> None:
    learned = prepare(request("hat", tmp_path))
    for event in run(learned):
        if isinstance(event, TaskLearned):
            break
    prepared = prepare(request("hat", tmp_path))
    original = prepared.method.loss
    prepared.method.loss = lambda batch: original(batch)._replace(value=original(batch).value * float("nan"))  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"loss of task 'pullover-dress' became nan in epoch 1; lower the learning"):
        for _ in run(prepared):
            pass
    assert len(read_result(tmp_path / "run.json").scores) == 1
    assert comparable(finish(request("hat", tmp_path))) == comparable(finish(request("hat")))


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = prepare(request("hat", tmp_path))
    for event in run(learned):
        if isinstance(event, TaskLearned):
            break
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    prepared = prepare(request("hat", tmp_path))
    with monkeypatch.context() as patch:

        def full(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "replace", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            for _ in run(prepared):
                pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert comparable(finish(request("hat", tmp_path))) == comparable(finish(request("hat")))


@pytest.mark.slow
def test_soft_masks_and_adamw_run_too() -> None:
    assert finish(request("hat", hard=False)).metrics()["average_accuracy"] > 0.6
    hashes = finish(request("hat", optimizer="adamw", lr=1e-3, weight_decay=0.1)).matrix("logits_sha256")
    assert all(len({hashes[row][task] for row in range(task, 3)}) == 1 for task in range(3))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "shared"), [("hat", 784 * 10 + 10 + 10 * 8 + 8), ("pmask", 784 * 10 + 10 * 8)])
def test_a_network_that_grows_goes_on_where_it_was(method: str, shared: int, tmp_path: Path) -> None:
    growing = {"hidden": (10, 8), "capacity": "grow", "growth_threshold": 0.9, "growth_share": 0.5}
    whole = finish(request(method, **growing))
    assert whole.capacity is not None
    fixed = finish(request(method, hidden=(10, 8))).capacity
    assert fixed is not None
    assert whole.capacity["parameters"] > fixed["parameters"] == shared
    for event in run(prepare(request(method, tmp_path, **growing))):
        if isinstance(event, TaskLearned) and event.index == 1:
            break
    assert comparable(finish(request(method, tmp_path, **growing))) == comparable(whole)
    assert verify(tmp_path).holds
    for row, before in zip(whole.scores[1:], whole.scores[:-1], strict=True):
        for now, earlier in zip(row, before, strict=False):
            assert now.loss == pytest.approx(earlier.loss, rel=1e-6)


@pytest.mark.slow
def test_pmask_with_ewc_goes_on_where_it_was_and_its_drift_is_reported(tmp_path: Path) -> None:
    soft = {"ewc": 10.0, "lr": 0.01}
    whole = finish(request("pmask", **soft))
    for event in run(prepare(request("pmask", tmp_path, **soft))):
        if isinstance(event, TaskLearned) and event.index == 1:
            break
    assert comparable(finish(request("pmask", tmp_path, **soft))) == comparable(whole)
    verification = verify(tmp_path)
    assert verification.bitwise
    assert verification.holds
    assert [verdict.constant for verdict in verification.verdicts] == [False, False, True]


CONSTANT = {"hat", "pmask", "wsn", "supsup", "packnet", "pnn", "pathnet", "independent", "sgd-frozen", "random"}
"""Methods whose logits for earlier tasks never change."""


@pytest.mark.parametrize("method", slow_but(QUICK, METHODS))
def test_verify_agrees_with_an_honest_run(method: str, finished: Finished) -> None:
    verification = verify(finished(method)[1])
    assert verification.bitwise
    assert verification.holds
    assert [verdict.constant for verdict in verification.verdicts] == [method in CONSTANT] * 2 + [True]


@pytest.mark.slow
def test_verify_notices_another_network(tmp_path: Path) -> None:
    finish(request("hat", tmp_path / "one"))
    finish(request("hat", tmp_path / "other", seed=1))
    (tmp_path / "one" / "net.hat").write_bytes((tmp_path / "other" / "net.hat").read_bytes())
    assert not verify(tmp_path / "one").holds


@pytest.mark.slow
def test_verify_elsewhere_compares_to_a_tolerance_and_says_so(tmp_path: Path) -> None:
    finish(request("hat", tmp_path))
    edited(tmp_path / "run.json", lambda content: content["environment"].update(processor="another one"))
    verification = verify(tmp_path)
    assert (verification.holds, verification.bitwise, verification.differences) == (True, False, ("processor",))


def test_verify_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run\.json"):
        verify(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"tasks"', '"task"'),
        lambda text: "",
    ],
)
def test_a_damaged_result_is_named_and_the_one_before_is_used(damage: Any, tmp_path: Path) -> None:
    whole = finish(request("hat", tmp_path))
    path, before = tmp_path / "run.json", tmp_path / "run.previous.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        verify(tmp_path)
    prepared = prepare(request("hat", tmp_path))
    assert prepared.notes == (f"{path} is damaged; going on from {before}",)
    assert len(prepared.result.scores) == 2
    assert comparable(finish(request("hat", tmp_path))) == comparable(whole)
    assert read_result(before).status is Status.RUNNING, "the damaged one was not kept in its place"
    path.write_text(damage(path.read_text()))
    before.write_text("")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        prepare(request("hat", tmp_path))


def test_a_run_on_other_data_is_told_apart(tmp_path: Path) -> None:
    finish(request("random", tmp_path))
    edited(tmp_path / "run.json", lambda content: content.update(data=["fashion-mnist-subset: pictures"]))
    with pytest.raises(
        InputError, match=r"a run on other data \(fashion-mnist-subset: pictures there, .*idx files now"
    ):
        prepare(request("random", tmp_path))
    verification = verify(tmp_path)
    assert (verification.bitwise, verification.differences) == (False, ("data",))


def test_a_newer_result_is_refused(tmp_path: Path) -> None:
    finish(request("random", tmp_path))
    path = tmp_path / "run.json"
    edited(path, lambda content: content.update(schema=3))
    with pytest.raises(CheckpointError, match="schema 3, this hatrack reads up to 2"):
        read_result(path)
    with pytest.raises(CheckpointError, match="schema 3, this hatrack reads up to 2"):
        prepare(request("random", tmp_path))  # and does not go back to the one before


def edited(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    content.pop("sha256")
    change(content)
    write_checked_json(path, content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(environment=[]),
        lambda content: content["environment"].update(threads="x"),
        lambda content: content["environment"].update(threads=0),
        lambda content: content.update(config=[]),
        lambda content: content.update(seed="a"),
        lambda content: content.update(tasks=content["tasks"][:2]),
        lambda content: content["accuracy"][1].__setitem__(0, None),
        lambda content: content["accuracy"][1].__setitem__(0, "x"),
        lambda content: content.update(accuracy=content["accuracy"][:2]),
        lambda content: content["score"][1].__setitem__(0, None),
        lambda content: content.update(score=content["score"][:2]),
        lambda content: content["tasks"][0].update(metric={"name": "accuracy"}),
        lambda content: content["tasks"][0].update(metric="accuracy"),
        lambda content: content["tasks"][0]["objective"].update(kind="guessing"),
        lambda content: content["tasks"][0]["objective"].update(outputs=3),
    ],
)
def test_a_result_that_cannot_be_is_named(change: Any, tmp_path: Path) -> None:
    finish(request("random", tmp_path))
    edited(tmp_path / "run.json", change)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        read_result(tmp_path / "run.json")


@pytest.mark.slow
def test_elsewhere_the_kept_logits_must_be_those_of_the_run(tmp_path: Path) -> None:
    finish(request("hat", tmp_path / "one"))
    finish(request("hat", tmp_path / "other", seed=1))
    for name in ("net.hat", "logits.safetensors"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    edited(tmp_path / "one" / "run.json", lambda content: content["environment"].update(processor="another one"))
    with pytest.raises(CheckpointError, match="its logits have another hash"):
        verify(tmp_path / "one")


@pytest.mark.slow
def test_in_the_same_environment_the_network_and_the_result_are_enough(tmp_path: Path) -> None:
    finish(request("hat", tmp_path))
    (tmp_path / "logits.safetensors").unlink()
    assert verify(tmp_path).holds


def test_a_finished_run_needs_neither_data_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = finish(request("hat", tmp_path))
    (tmp_path / "net.hat").unlink()
    monkeypatch.setattr("hatrack.experiments.experiment.build_stream", None)
    assert finished_result(request("hat", tmp_path)) == result
    assert finished_result(request("hat", tmp_path / "elsewhere")) is None


@pytest.mark.parametrize("network", slow_but(["vit"], ["alexnet", "resnet18", "vit"]))
def test_every_network_can_be_asked_for(network: str) -> None:
    prepared = prepare(request("sgd", network=network))
    features = {"alexnet": 2048, "resnet18": 512, "vit": 192}[network]
    assert prepared.method.setup.build_backbone().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, features)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.hat", "logits.safetensors"])
def test_a_finished_run_that_is_damaged_is_mended_by_its_own_command(name: str, tmp_path: Path) -> None:
    whole = finish(request("hat", tmp_path))
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(before[:-1])
    if name == "net.hat":
        with pytest.raises(CheckpointError, match=r"net\.hat is damaged.*; or mend it: hatrack run demo .*`out="):
            verify(tmp_path)
    assert finished_result(request("hat", tmp_path)) is None
    prepared = prepare(request("hat", tmp_path))
    assert f"{name} is damaged" in prepared.notes[0]
    for _ in run(prepared):
        pass
    assert comparable(prepared.result) == comparable(whole)
    assert (tmp_path / name).read_bytes() == before
    assert finished_result(request("hat", tmp_path)) is not None
    assert verify(tmp_path).holds
