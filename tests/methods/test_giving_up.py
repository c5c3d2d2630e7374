"""Tasks that were begun and are given up: what is left is a method of the tasks before."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hatrack import HATSettings, Learner
from hatrack.errors import InputError
from hatrack.methods import METHODS, Batch, Method
from hatrack.state.undo import Snapshot
from hatrack.streams import Task
from hatrack.train import TrainingSettings, fit
from support.toys import SHAPE, TASKS, learn, logits, make, setup

AS_NEVER_BEGUN = ("independent", "random", "pnn", "pathnet", "den")
"""Methods that a task which was given up leaves as they were, to the bit."""

KEEP_OLD_TASKS = (*AS_NEVER_BEGUN, "hat", "packnet", "wsn", "supsup", "pmask", "sgd-frozen")
"""Methods whose old tasks answer as they did, whatever became of a later one."""


def step(method: Method, task: Task) -> None:
    """Begin a task, and make a step in it."""
    method.begin_task(task)
    if method.trains:
        optimizer = method.protect(torch.optim.SGD(method.trained_parameters(), lr=0.5))
        method.train_mode(True)
        x, y = task.train.load()
        optimizer.zero_grad()  # of the step of an earlier task
        method.loss(Batch(x, y, (task.name,), torch.zeros_like(y), 1.0)).value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def ended(method: Method, task: Task) -> Tensor:
    """Learn a task in one step; return the logits that its samples get then."""
    step(method, task)
    method.end_task(task)
    return logits(method, task)


@pytest.mark.parametrize("name", METHODS)
def test_what_was_given_up_leaves_the_tasks_before_alone(name: str, tmp_path: Path) -> None:
    """The same task, or another one of other classes, begins in its place; files hold no more than those that ended."""
    first, second, third = TASKS
    method, whole = make(name, "shallow"), make(name, "shallow")
    kept = ended(method, first)
    ended(whole, first)
    for _ in range(2):
        step(method, second)
        method.give_up("second")
    method.give_up("second")  # nothing happens
    if name in KEEP_OLD_TASKS:
        assert torch.equal(logits(method, first), kept)
    with pytest.raises(InputError, match="no task 'second'"):
        logits(method, second)
    now, expected = ended(method, third), ended(whole, third)
    if name in AS_NEVER_BEGUN:
        assert torch.equal(now, expected)
    method.save(tmp_path / "method")
    whole.save(tmp_path / "whole")
    other = make(name, "shallow")
    assert other.load(tmp_path / "method") == ("first", "third")
    assert torch.equal(logits(other, third), now)
    assert method.remembered() == whole.remembered()
    assert (tmp_path / "method").stat().st_size == pytest.approx((tmp_path / "whole").stat().st_size, abs=16)


@pytest.mark.parametrize("name", AS_NEVER_BEGUN)
def test_a_first_task_that_was_given_up_leaves_initial_weights(name: str) -> None:
    method, whole = make(name, "shallow"), make(name, "shallow")
    step(method, TASKS[1])
    method.give_up("second")
    assert torch.equal(ended(method, TASKS[0]), ended(whole, TASKS[0]))


@pytest.mark.parametrize("name", ["er", "derpp"])
def test_the_memory_has_no_samples_of_a_task_that_was_given_up(name: str) -> None:
    method = make(name, "shallow", memory=40)
    ended(method, TASKS[0])
    before = {key: value.clone() for key, value in method.extra_state().items()}
    step(method, TASKS[1])
    method.give_up("second")
    after = method.extra_state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_layers_that_a_task_has_widened_are_as_wide_as_before() -> None:
    method = make("den", "shallow", expansion=3, loss_threshold=0.0, group_l1=0.0, l1=0.0)
    learn(method, TASKS[:1], epochs=1)
    widths, kept = method.network.current_widths, logits(method, TASKS[0])
    method.begin_task(TASKS[1])
    for _ in fit(method, TASKS[:2], TrainingSettings(epochs=4, batch_size=16)):
        pass
    assert method.network.current_widths > widths
    method.give_up("second")
    assert method.network.current_widths == widths
    assert torch.equal(logits(method, TASKS[0]), kept)


def test_a_beginning_that_fails_leaves_every_attribute_as_it_was() -> None:
    method = make("er", "shallow")
    before = dict(vars(method))
    with suppress(KeyboardInterrupt), method.beginning():
        method.begin_task(TASKS[0])
        assert method.offering is not before["offering"]
        method.new = method.network.head("first")
        raise KeyboardInterrupt
    assert vars(method).keys() == before.keys()
    assert all(value is before[key] for key, value in vars(method).items())
    assert method.network.task_names == []


def test_a_training_that_cannot_be_made_leaves_the_learner_as_it_was() -> None:
    """The task had begun, with a c of its own, when the training refuses to be captured on a CPU."""
    training, settings = TrainingSettings(captured=True), HATSettings(c=0.2)
    learner = Learner(setup("shallow").build_backbone(), SHAPE, training=training, settings=settings)
    method = vars(learner)["_method"]
    before = dict(vars(method))
    with pytest.raises(InputError, match="captured"):
        learner.fit("first", TASKS[0].train.load())
    assert vars(method).keys() == before.keys()
    assert all(value is before[key] for key, value in vars(method).items())


def test_threads_that_ask_wait_while_a_beginning_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, x = make("hat", "shallow"), TASKS[0].test.load()[0]
    ended(method, TASKS[0])
    restore, answered, waited = Snapshot.restore, threading.Event(), list[bool]()

    def ask() -> None:
        method.predict(x, "first")
        answered.set()

    def restored(snapshot: Snapshot) -> None:
        threading.Thread(target=ask, daemon=True).start()
        waited.append(not answered.wait(0.1))
        restore(snapshot)

    monkeypatch.setattr(Snapshot, "restore", restored)
    with suppress(KeyboardInterrupt), method.beginning():
        method.begin_task(TASKS[1])
        raise KeyboardInterrupt
    assert waited == [True]
    assert answered.wait(10), "and are answered after that"
