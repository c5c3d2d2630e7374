from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.errors import CheckpointError, InputError
from hatrack.functional import Compensation, Conditioning, GateFunction, Regularization
from hatrack.methods import METHODS, Batch
from hatrack.methods.independent import Independent
from hatrack.methods.masked import MaskedMethod
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.streams import Task
from hatrack.train import TrainingSettings, fit
from support.marks import slow_but
from support.toys import QUICK, SHAPE, TASKS, accuracy, learn, logits, make, tasks_for

MULTI_HEAD = [name for name, method in METHODS.items() if issubclass(method, (MultiHeadMethod, Independent))]
MASKED = [name for name, method in METHODS.items() if issubclass(method, MaskedMethod)]
OF_THEIR_OWN_FROM_THE_START = {"derpp", "dwa"}  # which replay during the first task, or mask
WITHOUT_NORMS = ("cab", "dwa")  # which refuse batch norms
WITH_DROPOUT = [(name, "dropout") for name in METHODS]
WITH_NORM = [(name, "plain" if name in WITHOUT_NORMS else "norm") for name in METHODS]


@pytest.mark.parametrize("name", slow_but(QUICK, METHODS))
def test_what_is_saved_is_what_was_learned(name: str, tmp_path: Path) -> None:
    method = make(name, "shallow")
    learn(method, TASKS[:2], epochs=15)
    method.save(tmp_path / "net.hat")
    other = make(name, "shallow")
    assert other.load(tmp_path / "net.hat") == ("first", "second")
    for task in TASKS[:2]:
        x, _ = task.test.load()
        method.train_mode(False)
        other.train_mode(False)
        with torch.no_grad():
            assert torch.equal(other.predict(x, task.name), method.predict(x, task.name))


@pytest.mark.parametrize("name", METHODS)
def test_another_methods_file_is_refused(name: str, tmp_path: Path) -> None:
    foreign = make("random" if name != "random" else "sgd", "shallow")
    foreign.save(tmp_path / "net.hat")
    with pytest.raises(CheckpointError, match="not a hatrack"):
        make(name, "shallow").load(tmp_path / "net.hat")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_another_backbone_is_refused(name: str, tmp_path: Path) -> None:
    method = make(name, "shallow")
    learn(method, TASKS[:1], epochs=1)
    method.save(tmp_path / "net.hat")
    with pytest.raises(CheckpointError, match="another backbone"):
        make(name, "deep").load(tmp_path / "net.hat")


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_task_is_named(name: str) -> None:
    method = make(name, "shallow")
    learn(method, TASKS[:1], epochs=1)
    with pytest.raises(InputError, match="there is no task 'frist', did you mean 'first'"):
        method.predict(torch.zeros(2, *SHAPE), "frist")


@pytest.mark.slow
def test_hat_and_joint_know_the_first_task_after_the_third_and_sgd_does_not() -> None:
    after = {}
    for name in ("hat", "sgd", "joint"):
        method = make(name, "wide")
        learn(method, TASKS, epochs=25)
        after[name] = accuracy(method, TASKS[0])
    assert after["hat"] > 0.9
    assert after["joint"] > 0.9
    assert after["sgd"] < min(after["hat"], after["joint"])


def test_several_tasks_in_a_batch_equal_the_tasks_one_by_one() -> None:
    method = make("joint", "shallow")
    assert isinstance(method, MultiHeadMethod)
    learn(method, TASKS[:2], epochs=1)
    method.train_mode(False)
    x = torch.randn(6, *SHAPE)
    task_of = torch.tensor([0, 1, 1, 0, 1, 0])
    with torch.no_grad():
        mixed = method.network(x, ["first", "second"], task_of)
        for row, index in enumerate(task_of.tolist()):
            alone = method.network(x[row : row + 1], [("first", "second")[index]])
            torch.testing.assert_close(mixed[row, : alone.shape[1]], alone[0])
            assert bool((mixed[row, alone.shape[1] :] == float("-inf")).all())
    y = torch.tensor([0, 2, 1, 1, 0, 0])
    loss = method.loss(Batch(x, y, ("first", "second"), task_of, 1.0)).value
    assert torch.isfinite(loss)


def test_joint_starts_anew_with_the_same_weights_and_sees_all_tasks() -> None:
    method = make("joint", "shallow")
    assert isinstance(method, MultiHeadMethod)
    initial = {name: value.clone() for name, value in method.network.backbone.state_dict().items()}
    learn(method, TASKS[:1], epochs=2)
    assert not all(torch.equal(value, initial[name]) for name, value in method.network.backbone.state_dict().items())
    method.begin_task(TASKS[1])
    assert all(torch.equal(value, initial[name]) for name, value in method.network.backbone.state_dict().items())
    assert method.network.task_names == ["first", "second"]
    assert method.training_tasks(TASKS[:2]) == TASKS[:2]
    assert make("sgd", "shallow").training_tasks(TASKS[:2]) == TASKS[1:2]


def test_independent_networks_start_alike_and_keep_every_bit() -> None:
    method = make("independent", "shallow")
    initial = make("sgd", "shallow").network.backbone.state_dict()
    learn(method, TASKS[:1], epochs=15)
    x, _ = TASKS[0].test.load()
    method.train_mode(False)
    promised = method.predict(x, "first")
    method.begin_task(TASKS[1])
    begun = method.networks["second"].backbone.state_dict()
    assert all(torch.equal(value, initial[name]) for name, value in begun.items())
    for _ in fit(method, TASKS[1:2], TrainingSettings(epochs=2, batch_size=16)):
        pass
    method.end_task(TASKS[1])
    assert torch.equal(method.predict(x, "first"), promised)
    assert not torch.equal(method.predict(x, "second")[:, :2], promised)


def test_guesses_have_the_frequencies_of_the_training_set_and_repeat_themselves() -> None:
    x = torch.randn(400, *SHAPE)
    y = (torch.arange(400) % 10 >= 7).long()  # 70 % and 30 %
    skewed = Task.from_tensors("skewed", x, y, x, y)
    method = make("random", "shallow")
    method.begin_task(skewed)
    samples = torch.randn(5000, *SHAPE)
    guesses = method.predict(samples, "skewed").argmax(1)
    assert float(guesses.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(method.predict(samples, "skewed").argmax(1), guesses)
    assert not torch.equal(method.predict(samples + 1, "skewed").argmax(1), guesses)
    assert not method.trains


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_where_it_is_from(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.description
    assert method.source


@pytest.mark.parametrize("name", slow_but(QUICK, METHODS))
def test_an_interruption_between_tasks_changes_nothing(name: str, tmp_path: Path) -> None:
    """With batch norms, :mod:`test_taking_up` shows the same between two tasks."""
    tasks = tasks_for("dropout")
    straight = make(name, "dropout")
    learn(straight, tasks, epochs=1)
    interrupted = make(name, "dropout")
    for index in range(3):
        learn(interrupted, tasks[: index + 1], first=index, epochs=1)
        interrupted.save(tmp_path / f"{index}.hat")
        interrupted = make(name, "dropout")
        interrupted.load(tmp_path / f"{index}.hat")
    for task in tasks:
        assert torch.equal(logits(interrupted, task), logits(straight, task))


@pytest.mark.parametrize(
    ("name", "network"),
    [
        (name, network)
        for name, network in (*WITH_DROPOUT, *WITH_NORM)
        if name in MULTI_HEAD and name not in OF_THEIR_OWN_FROM_THE_START
    ],
)
def test_the_first_task_is_that_of_fine_tuning(name: str, network: str) -> None:
    tasks = tasks_for(network)
    method, sgd = make(name, network), make("sgd", network)
    for each in (method, sgd):
        learn(each, tasks[:1], epochs=2)
    assert torch.equal(logits(method, tasks[0]), logits(sgd, tasks[0]))


@pytest.mark.parametrize(
    "name",
    slow_but(
        ("hat", "pmask", "sgd", "ewc"), [n for n in (*MULTI_HEAD, *MASKED) if n not in ("cab", "independent", "dwa")]
    ),
)
def test_a_vision_transformer_learns_two_tasks(name: str) -> None:
    tasks = tasks_for("vit")
    method = make(name, "vit")
    learn(method, tasks[:2], epochs=1)
    assert all(bool(torch.isfinite(logits(method, task)).all()) for task in tasks[:2])


@pytest.mark.parametrize("name", ["l2", "ewc", "imm-mean", "imm-mode", "si", "mas", "cab", "lwf", "lfl", "dwa"])
def test_a_file_of_another_multi_head_method_is_refused(name: str, tmp_path: Path) -> None:
    method = make("sgd", "shallow")
    learn(method, TASKS[:1], epochs=1)
    method.save(tmp_path / "net.hat")
    with pytest.raises(CheckpointError, match=f"saved by the method sgd, not by {name}"):
        make(name, "shallow").load(tmp_path / "net.hat")


@pytest.mark.parametrize("name", METHODS)
def test_a_grid_is_about_settings_and_holds_their_defaults(name: str) -> None:
    method = METHODS[name]
    settings = method.settings_type()
    for key, values in method.grid.items():
        assert getattr(settings, key) in values
        assert len(set(values)) == len(values)


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_training_moves_no_other_buffers_than_those_it_keeps_of_the_best_epoch(name: str) -> None:
    method = make(name, "norm")
    tasks = tasks_for("norm")
    learn(method, tasks[:2], epochs=2)
    method.begin_task(tasks[2])
    masks = [mask for state in method.network.tasks for mask in state.mask_tensors()]
    before = [(tensor, tensor.clone()) for tensor in (*method.network.buffers(), *masks)]
    kept = {id(buffer) for buffer in method.trained_buffers()}
    for _ in fit(method, tasks[:3], TrainingSettings(epochs=2, batch_size=16)):
        pass
    moved = {id(tensor) for tensor, value in before if not torch.equal(tensor, value)}
    assert moved
    assert moved <= kept
    assert not kept & {
        id(t) for state in [*method.network.tasks][:2] for t in (*state.buffers(), *state.mask_tensors())
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"s_max": 50.0},
        {"hard": False},
        {"compensation": Compensation.NONE},
        {"gate_function": GateFunction.ARCTAN},
        {"regularizer": Regularization.L1},
        {"gate_inputs": True},
        {"conditioning": Conditioning.PER_TASK},
        {"keep": 0.5},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_file_of_hat_with_other_settings_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    make("hat", **settings).save(tmp_path / "net.hat")
    make("hat", **settings).load(tmp_path / "net.hat")
    for other in (make("hat"), make("adahat")):
        with pytest.raises(CheckpointError, match="saved by another method, or with other settings"):
            other.load(tmp_path / "net.hat")
