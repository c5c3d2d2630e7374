"""Numbers at the edge of what can be: each has a defined outcome, a result or one line that says what to do."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hatrack import HATNetwork, InputError, Learner, TrainingError, WeightMaskedNetwork
from hatrack.cli import main
from hatrack.experiments import RunRequest, RunResult, Status, prepare, read_result, run, verify
from hatrack.methods.hat import HATSettings
from hatrack.objectives import Classification
from hatrack.streams import Split, Task
from hatrack.train import TrainingSettings
from support.marks import slow_but


def npz(folder: Path, name: str, rows: int = 40, **changes: Any) -> str:
    """Two classes that six features tell apart."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 2
    x = (rng.normal(size=(rows, 6)) + 2 * y[:, None]).astype(np.float32)
    arrays = {"x_train": x, "y_train": y, "x_test": x[:10], "y_test": y[:10], **changes}
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return str(path)


def hatrack_run(folder: Path, first: str, *words: str, method: str = "hat") -> tuple[int, RunResult | None]:
    """Learn a first task, and a second one that is as it should be."""
    command = ["run", "--tasks", first, npz(folder, "second"), "--method", method, "--quiet", "--out"]
    code = main([*command, str(folder / "run"), "--set", "hidden=12,12", *words])
    made = (folder / "run" / "run.json").exists()
    return code, read_result(folder / "run" / "run.json") if made else None


# --- data


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["x_train", "x_test"])
def test_values_that_are_no_numbers(
    part: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.zeros((40 if part == "x_train" else 10, 6), dtype=np.float32)
    x[3, 2] = value
    code, result = hatrack_run(tmp_path, npz(tmp_path, "first", **{part: x}))
    assert (code, result) == (2, None)
    shown = capsys.readouterr().err
    assert "first.npz" in shown
    assert f"{part} holds NaN, infinite or far too large values; clean it first" in " ".join(shown.split())


def test_values_that_are_no_numbers_in_a_program() -> None:
    x = torch.randn(40, 4)
    x[3, 1] = torch.nan
    with pytest.raises(InputError, match="hold infinite values or NaN; clean them first"):
        learner().fit("a", (x, torch.arange(40) % 2))


def test_one_sample_of_each_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.ones((2, 6), dtype=np.float32), np.array([0, 1])
    first = npz(tmp_path, "first", rows=2, x_test=x, y_test=y)
    code, result = hatrack_run(tmp_path, first)
    assert (code, result) == (2, None)
    shown = " ".join(capsys.readouterr().err.split())
    assert "task first: 2 samples, one of each class, are too few for a validation split" in shown
    assert "--set validation=0" in shown
    code, result = hatrack_run(tmp_path, first, "--set", "validation=0", "--epochs", "2")
    assert code == 0
    assert result is not None
    assert [(task.train, task.valid) for task in result.tasks] == [(2, 2), (40, 40)]


def test_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = hatrack_run(tmp_path, npz(tmp_path, "first", y_train=np.zeros(40, int), y_test=np.zeros(10, int)))
    assert (code, result) == (2, None)
    assert "all training samples are of class '0'; a task needs two or more" in " ".join(
        capsys.readouterr().err.split()
    )
    one = learner()  # a program may have its reasons
    one.fit("a", (torch.randn(20, 4), torch.zeros(20, dtype=torch.int64)))
    assert one.evaluate("a", (torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))) == 1.0
    one.fit("b", (torch.randn(20, 4), torch.arange(20) % 2))
    one.network.check()


def test_no_samples_to_validate_on_are_refused_where_a_task_is_made() -> None:
    whole = Split(torch.randn(4, 2), torch.arange(4), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match="needs as many labels as rows, at least 1, not 0 and 0"):
        Task("a", Classification(("0", "1")), whole, whole.part(torch.arange(0)), whole)


def test_features_that_do_not_vary(tmp_path: Path) -> None:
    x = np.full((40, 6), 3.0, dtype=np.float32)
    code, result = hatrack_run(tmp_path, npz(tmp_path, "first", x_train=x), "--epochs", "2")
    assert code == 0
    assert result is not None
    assert result.status is Status.FINISHED


# --- batches


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 1000], ids=["of one sample", "one per epoch"])
def test_batches(batch_size: int, tmp_path: Path) -> None:
    words = ("--set", f"batch_size={batch_size}", "--epochs", "3", "--set", "s_max=50")
    code, result = hatrack_run(tmp_path, npz(tmp_path, "first"), *words)
    assert code == 0
    assert result is not None
    assert result.scores[0][0].logits_sha256 == result.scores[1][0].logits_sha256
    assert verify(tmp_path / "run").holds


def test_a_batch_norm_and_a_batch_of_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU())
    one = Learner(backbone, (4,), training=TrainingSettings(epochs=1, batch_size=33), validation=0.15)
    with pytest.raises(TrainingError, match=r"a batch of task 'a' has a single sample; choose another batch size"):
        one.fit("a", (torch.randn(40, 4), torch.arange(40) % 2))  # 34 are left
    assert one.tasks == ()


# --- settings


def learner(**settings: Any) -> Learner:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
    training = TrainingSettings(epochs=3, batch_size=4, lr=0.5)
    return Learner(backbone, (4,), settings=HATSettings(**settings), training=training)


@pytest.mark.filterwarnings("ignore:task .* has switched off")  # with 1e6 a single step takes embeddings to their bound
@pytest.mark.parametrize("s_max", ["1", "1e6"])
@pytest.mark.parametrize("c", slow_but(["0.75"], ["0", "0.75"]))
def test_extreme_scales(s_max: str, c: str, tmp_path: Path) -> None:
    words = ("--set", f"s_max={s_max}", "--set", f"c={c}", "--epochs", "3", "--set", "batch_size=8")
    code, result = hatrack_run(tmp_path, npz(tmp_path, "first"), *words)
    assert code == 0
    assert result is not None
    assert result.scores[0][0].logits_sha256 == result.scores[1][0].logits_sha256, "what is learned stays, to the bit"
    assert all(np.isfinite(score.loss) for row in result.scores for score in row)
    assert verify(tmp_path / "run").holds


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("s_max", [1.0, 400.0])
def test_a_group_that_switches_itself_off_is_warned_of_and_keeps_a_unit(s_max: float, hard: bool) -> None:
    one = learner(c=100.0, s_max=s_max, hard=hard)
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    with pytest.warns(UserWarning, match=r"task 'a' has switched off all units of 0, 2.*weigh .* less \(c\)") as warned:
        one.fit("a", (x, y))
    (said,) = [str(each.message) for each in warned if "has switched off" in str(each.message)]
    assert ("one unit of each stays on" in said) == hard
    if hard:
        assert [int(mask.sum()) for mask in one.network.masks("a").values()] == [1, 1]
    logits = one.network(x, "a")
    assert logits.isfinite().all()
    with warnings.catch_warnings():  # units that the first task uses cost the second nothing
        warnings.simplefilter("ignore")
        one.fit("b", (x, 1 - y))
    assert not hard or torch.equal(one.network(x, "a"), logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_command_line_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--set", "c=100", "--set", "s_max=1", "--set", "lr=0.5", "--set", "batch_size=4", "--epochs", "3")
    code, result = hatrack_run(tmp_path, npz(tmp_path, "first"), *words)
    assert code == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "warning: task 'first' has switched off all units of dense1, dense2",
    ], "the second uses the units of the first, which cost it nothing"
    assert result is not None
    assert result.capacity is not None
    assert 0 < result.capacity["units"] <= 4 / 24
    assert verify(tmp_path / "run").holds


def test_masks_of_weights_that_switch_themselves_off_are_warned_of() -> None:
    torch.manual_seed(0)
    net = WeightMaskedNetwork(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 4))
    net.add_task("a", 2)
    with torch.no_grad():
        for values in net.tasks[0].choice:  # type: ignore[union-attr]
            values.fill_(-1.0)
    with pytest.warns(UserWarning, match=r"task 'a' has switched off all entries of 0\.weight but one"):
        net.consolidate("a")
    assert int(net.masks("a")["0.weight"].sum()) == 1


@pytest.mark.filterwarnings("error")
def test_a_group_that_began_switched_off_is_no_reason_to_warn() -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
    net.add_task("a", 2, embedding=-torch.ones(3))
    net.consolidate("a")
    net.add_task("b", 2, embedding=torch.tensor([-1.0, -1.0, 1.0]))
    with torch.no_grad():
        net.tasks[1].embedding.fill_(-1.0)  # type: ignore[union-attr,operator]
    with pytest.warns(UserWarning, match="task 'b' has switched off all units of 0"):
        net.consolidate("b")


@pytest.mark.filterwarnings("error")
def test_a_group_of_one_unit_cannot_switch_itself_off() -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(2, 1), nn.ReLU()), torch.zeros(1, 2))
    net.add_task("a", 2, embedding=torch.tensor([-1.0]))
    net.consolidate("a")  # and warns of nothing
    assert net.masks("a")["0"].tolist() == [True]


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
@pytest.mark.parametrize("key", ["c", "s_max", "lr", "momentum", "weight_decay", "clip_norm", "lr_factor"])
def test_settings_that_cannot_be(key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = hatrack_run(tmp_path, npz(tmp_path, "first"), "--set", f"{key}={value}")
    assert (code, result) == (2, None)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(rf"{key} must be (a finite number|(above|at least) \d)", said)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("key", ["lr", "momentum", "weight_decay", "lr_factor", "lr_min"])
def test_settings_that_cannot_be_in_a_program(key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{key} must be"):
        TrainingSettings(**{key: value})
    with pytest.raises(InputError, match="c must be a finite number, 0 or more"):
        HATSettings(c=value)


def test_a_loss_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = npz(tmp_path, "first")
    code, result = hatrack_run(tmp_path, first, "--set", "lr=1e30", "--epochs", "2")
    assert code == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "of task 'first' became nan in epoch 1; lower the learning rate" in shown
    assert result is not None
    assert (result.scores, result.status) == ((), Status.RUNNING)
    for method in ("sgd", "pmask", "wsn", "er"):
        request = RunRequest("own", method, overrides={"lr": 1e30, "epochs": 2}, sources=(Path(first),))
        with pytest.raises(TrainingError, match=r"became (nan|inf)"):
            list(run(prepare(request)))
