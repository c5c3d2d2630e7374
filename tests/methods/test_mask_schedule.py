"""Schedules of HAT's masks: the paper's, and the one that begins with all units and settles the mask before the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatrack import HATNetwork
from hatrack.methods import Batch, Pace, Schedule
from hatrack.methods.hat import (
    ADAM_C,
    FALL,
    HAT,
    LEARNED_AT,
    LEAST_C,
    MOST_C,
    NARROW,
    PAPER_C,
    TRAVEL,
    HATSettings,
    InitialEmbedding,
    MaskSchedule,
)
from hatrack.methods.late_cost import Fall
from hatrack.objectives import Classification
from hatrack.train import BatchDone, EpochDone, Training, TrainingSettings
from support.toys import make, setup, tasks

TASKS = tasks("mlp", 2, samples=48)
EPOCHS = 20


def hat(**settings: Any) -> HAT:
    method = make("hat", "mlp", **settings)
    assert isinstance(method, HAT)
    return method


def strengths(
    method: HAT,
    epochs: int = EPOCHS,
    lr: float = 0.05,
    batches: int = 3,
    lr_left: Callable[[float], float] = lambda done: 1.0,
) -> list[float]:
    """Return c in the epochs that learn the mask."""
    method.note_pace(Pace(lr, batches, lr_left))
    method.begin_task(TASKS[0])
    method.train_mode(True)
    (length, *_), found = method.phases(epochs), []
    for epoch in range(1, length + 1):
        method.begin_epoch(epoch, length, None)  # type: ignore[arg-type]
        found.append(method.strength())
    return found


def test_the_papers_schedule_is_one_part_with_one_c() -> None:
    method = hat(schedule=MaskSchedule.PAPER)
    assert tuple(method.phases(EPOCHS)) == (EPOCHS,)
    assert strengths(method) == [PAPER_C] * EPOCHS
    assert (method.network.tasks[0].embedding < 0).any()


def test_settling_begins_with_all_units_and_lets_c_set_in_late() -> None:
    method = hat(schedule=MaskSchedule.SETTLED, c=2.0)
    found = strengths(method)
    assert (method.network.tasks[0].embedding >= 0).all()
    assert found[:4] == [0.0] * 4
    assert found == sorted(found)
    assert found[11:] == [2.0] * (len(found) - 11)
    method.train_mode(False)
    assert method.strength() == 2.0, "validation prefers what is compact from the first epoch on"


def test_c_is_found_anew_for_every_task() -> None:
    method = hat()
    first = strengths(method, epochs=1, batches=200, lr=1e-9)[-1]
    method.network.consolidate(TASKS[0].name)
    method.note_pace(Pace(0.05, 10**6))
    method.begin_task(TASKS[1])
    method.train_mode(False)
    assert first > method.strength() == PAPER_C
    method.begin_epoch(17, 17, None)  # type: ignore[arg-type]
    assert method.strength() == LEAST_C


def test_c_makes_up_for_a_learning_rate_that_falls_while_it_acts() -> None:
    steps: dict[str, Any] = {"lr": 4e-3, "batches": 40}
    whole, falling = strengths(hat(), **steps), strengths(hat(), **steps, lr_left=lambda done: 1 - done)
    assert LEAST_C < whole[-1] < falling[-1] < MOST_C
    first, last = 0.4, 17 / 20  # from the middle of where c sets in to the end of the mask's epochs
    assert falling[-1] == pytest.approx(whole[-1] / (1 - (first + last) / 2))


def test_c_with_adam_does_not_depend_on_the_steps() -> None:
    for batches in (1, 10**6):
        method = hat()
        method.note_pace(Pace(0.001, batches, epochs=20, adaptive=True))
        method.begin_task(TASKS[0])
        method.train_mode(True)
        method.begin_epoch(17, 17, None)  # type: ignore[arg-type]
        assert method.strength() == ADAM_C


def test_c_beside_a_factor_that_is_said_is_that_of_the_steps_with_any_optimizer() -> None:
    """It was so before there was a c for Adam, when the factor was 1: records of then say 1, and mean what they did."""
    found = set()
    for adaptive in (False, True):
        method = hat(embedding_lr_factor=1.0)
        method.note_pace(Pace(4e-3, batches=40, epochs=20, adaptive=adaptive))
        method.begin_task(TASKS[0])
        method.train_mode(True)
        method.begin_epoch(17, 17, None)  # type: ignore[arg-type]
        found.add(method.strength())
    (c,) = found
    assert LEAST_C < c < MOST_C
    assert c != ADAM_C


def test_without_a_word_on_the_steps_c_is_that_of_the_paper() -> None:
    method = hat(schedule=MaskSchedule.SETTLED)
    method.begin_task(TASKS[0])
    method.begin_epoch(20, 20, None)  # type: ignore[arg-type]
    assert method.strength() == PAPER_C


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 40, 200])
def test_parts_take_all_epochs_and_c_is_reached_whatever_there_are(epochs: int) -> None:
    method = hat(schedule=MaskSchedule.SETTLED, c=2.0)
    assert sum(method.phases(epochs)) == epochs
    assert min(method.phases(epochs)) >= 1
    found = strengths(method, epochs)
    assert all(0.0 <= c <= 2.0 for c in found)
    assert found[-1] == 2.0 or epochs < 3
    assert found[24:25] in ([], [2.0]), "a training may end after 30 epochs"


def test_an_embedding_that_starts_otherwise_is_kept() -> None:
    method = hat(schedule=MaskSchedule.SETTLED, embedding=InitialEmbedding.NORMAL)
    method.begin_task(TASKS[0])
    assert (method.network.tasks[0].embedding < 0).any()


def test_c_follows_from_units_and_steps() -> None:
    few, many = (strengths(hat(schedule=MaskSchedule.SETTLED), batches=n)[-1] for n in (1, 2))
    assert LEAST_C < many < few < MOST_C
    assert few == pytest.approx(2 * many)
    assert strengths(hat(schedule=MaskSchedule.SETTLED), batches=10**6)[-1] == LEAST_C
    assert strengths(hat(schedule=MaskSchedule.SETTLED), lr=1e-9)[-1] == MOST_C


def test_that_c_moves_a_unit_that_nothing_speaks_for_by_the_way_that_is_meant() -> None:
    """Plain gradient descent on the regulariser alone, with the derivative at 1 and at the beginning of an epoch."""
    method = hat(schedule=MaskSchedule.SETTLED)
    c = strengths(method, batches=1)[-1]
    net: HATNetwork = method.network
    with torch.no_grad():
        net.tasks[0].embedding.fill_(1.0)
    net.train()
    net.anneal(0.0)
    net.regularization().backward()  # type: ignore[no-untyped-call]
    gradient = net.tasks[0].embedding.grad
    assert gradient is not None
    free_epochs = 17 - (4 + 12) / 2  # those of the part, without half of those in which c sets in
    assert float(0.05 * c * gradient[0]) * free_epochs == pytest.approx(TRAVEL, rel=1e-4)


def test_the_last_epochs_train_weights_under_the_mask_that_is_frozen() -> None:
    method = hat(schedule=MaskSchedule.SETTLED)
    method.begin_task(TASKS[0])
    masks = []
    for event in Training(method, TASKS[:1], TrainingSettings(epochs=8, batch_size=16)):
        if isinstance(event, EpochDone):
            state = method.network.tasks[0]
            masks.append((state.is_settled, method.network.masking.final_mask(state).clone()))
    method.end_task(TASKS[0])
    assert [settled for settled, _ in masks] == [False] * 7 + [True]
    assert torch.equal(masks[-1][1], method.network.tasks[0].mask)


class SettledAtRate(HAT):
    """HAT that trains under the final mask at a rate of its own, and notes the weights that it begins with."""

    rate = 0.0
    begun: Sequence[Tensor] = ()

    def begin_mask_phase(self, index: int) -> None:
        super().begin_mask_phase(index)
        if index:
            self.begun = weights_of(self)

    def schedule(self, index: int, fresh: Schedule) -> Schedule:
        return fresh._replace(lr=self.rate) if index else fresh


def weights_of(method: HAT) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in method.trained_parameters()]


@pytest.mark.parametrize(("epochs", "rate", "kept"), [(8, 50.0, True), (8, 0.05, False), (14, 50.0, False)])
def test_a_single_epoch_under_the_final_mask_is_kept_where_it_does_no_harm(
    epochs: int, rate: float, kept: bool
) -> None:
    """At a rate that ruins the network; two epochs and more are chosen from as ever."""
    method = SettledAtRate(setup("mlp"), HATSettings(schedule=MaskSchedule.SETTLED))
    method.rate = rate
    method.begin_task(TASKS[0])
    training = Training(method, TASKS[:1], TrainingSettings(epochs=epochs, batch_size=16, clip_norm=1e9))
    made = [event for event in training if isinstance(event, EpochDone)]
    assert len(made) == epochs
    assert all(map(torch.equal, method.begun, weights_of(method))) is kept
    if epochs == 8:
        assert made[-1].best is not kept


def test_a_training_that_has_slowed_down_enough_ends_with_its_mask() -> None:
    method = hat(schedule=MaskSchedule.SETTLED)
    method.begin_task(TASKS[0])
    training = Training(
        method, TASKS[:1], TrainingSettings(epochs=20, batch_size=16, lr=1e-9, lr_min=0.9e-9, lr_patience=1)
    )
    epochs = [event for event in training if isinstance(event, EpochDone)]
    assert len(epochs) < 17
    assert training.over
    assert method.network.is_settled(TASKS[0].name)
    method.end_task(TASKS[0])


# ------------------------------------------------------------------------------------- c that waits for what is learned


def held_back(losses: Sequence[float], **settings: Any) -> list[float]:
    """Return c in the epochs that learn the mask, of a training with Adam whose epochs have these losses."""
    method, task = hat(**settings), TASKS[0]
    method.note_pace(Pace(0.001, 3, epochs=EPOCHS, adaptive=True))
    method.begin_task(task)
    method.train_mode(True)
    x, y = task.train.load()
    samples = Batch(x, y, (task.name,), torch.zeros_like(y), 0.0, objectives=(task.objective,))
    (length, *_), found = method.phases(EPOCHS), []
    for epoch, loss in zip(range(1, length + 1), losses, strict=False):
        method.begin_epoch(epoch, length, samples)
        found.append(method.strength())
        method.note_loss(loss)
    return found


GUESSED = torch.tensor(float(TASKS[0].num_classes)).log().item()
"""Loss of answering 0 to every sample of the task."""

LENGTH = 17
"""Epochs that learn the mask."""


def test_a_narrow_network_pays_nothing_for_a_task_of_which_nothing_is_learned_but_in_the_end() -> None:
    found = held_back([GUESSED] * LENGTH)
    assert found[:12] == pytest.approx([0.0] * 12, abs=1e-6), "the onset ends with the 12th of 20 epochs"
    assert found[12:] == pytest.approx([ADAM_C * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)])


@given(st.lists(st.floats(0.0, 10.0), min_size=LENGTH, max_size=LENGTH))
def test_c_is_never_more_than_by_the_epochs_alone_and_never_falls(losses: list[float]) -> None:
    waits, alone = held_back(losses), held_back(losses, learned_at=0.0)
    assert waits == sorted(waits)
    assert all(c <= whole for c, whole in zip(waits, alone, strict=True))
    assert waits[-1] == alone[-1] == ADAM_C
    for epoch in range(1, LENGTH):
        if min(losses[:epoch]) < 0.999 * LEARNED_AT * max(losses[0], GUESSED):
            assert waits[epoch] == alone[epoch], "what is learned in time costs what it costs without waiting"


@pytest.mark.parametrize(
    "settings", [{"c": ADAM_C}, {"embedding_lr_factor": 1.0}, {"learned_at": 0.0}, {"rotations": 4, "learned_at": 0.5}]
)
def test_where_c_or_the_rate_is_said_or_losses_are_other_ones_nothing_waits(settings: dict[str, Any]) -> None:
    if "rotations" in settings:
        method = make("hat", "conv", **settings)
        task = tasks("conv", 1, samples=16)[0]
        method.begin_task(task)
        method.begin_epoch(1, LENGTH, None)
        assert FALL not in method.training_state()
        return
    found = held_back([GUESSED] * LENGTH, **settings)
    assert found == held_back([0.0] * LENGTH, **settings)


def test_only_narrow_networks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hat().network.masking.graph.num_units <= NARROW
    narrow = held_back([GUESSED] * LENGTH)
    monkeypatch.setattr("hatrack.methods.hat.NARROW", 27)
    wide = held_back([GUESSED] * LENGTH)
    assert narrow[4:12] == pytest.approx([0.0] * 8, abs=1e-6)
    assert min(wide[4:12]) > 0.1
    assert held_back([GUESSED] * LENGTH, learned_at=0.5) == narrow, "unless it is said"


@given(st.floats(0.0, 100.0), st.lists(st.floats(0.0, 100.0), max_size=5))
def test_the_fall_of_a_loss_is_its_least_one_beside_the_highest(highest: float, losses: list[float]) -> None:
    fall = Fall(highest)
    for loss in losses:
        fall = fall.after(loss)
    assert Fall.from_tensor(fall.to_tensor()) == fall
    start = max([highest, *losses[:1]])
    wanted = 0.0 if not losses else 1.0 - min(losses) / start if start else 1.0
    assert fall.share == pytest.approx(max(wanted, 0.0) if start else 1.0)


def test_the_loss_that_counts_is_that_of_answers_alone() -> None:
    """Beside it the progress bar shows the whole one, which a mask's cost makes higher."""
    method = hat(schedule=MaskSchedule.SETTLED, c=5.0, learned_at=0.5)
    noted: list[float] = []
    method.note_loss = noted.append  # type: ignore[method-assign]
    method.begin_task(TASKS[0])
    shown = []
    for event in Training(method, TASKS[:1], TrainingSettings(epochs=6, batch_size=48, lr=1e-6)):
        if isinstance(event, BatchDone) and event.done == event.total:
            shown.append(event.loss)
    assert len(noted) == len(shown) == 6
    assert noted == pytest.approx([noted[0]] * 6, abs=0.05), "the same weights, but for dropout"
    assert max(shown) > noted[0] + 1.0


@pytest.mark.parametrize("classes", [2, 7])
def test_samples_that_do_not_say_what_they_are_begin_at_the_loss_of_guessing(classes: int) -> None:
    y = torch.arange(3 * classes) % classes
    objective = Classification(tuple(map(str, range(classes))))
    samples = Batch(torch.randn(len(y), 4), y, ("a",), torch.zeros_like(y), 0.0)
    said = Fall.before(replace(samples, objectives=(objective,)), classes)
    assert Fall.before(samples, classes).highest == pytest.approx(said.highest)
