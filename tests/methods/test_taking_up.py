"""A training that stops after any epoch, and goes on in another process, ends with the same bits: for every method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hatrack.methods import METHODS, Method
from hatrack.methods.dwa.method import DWAVariant
from hatrack.methods.hat import MaskSchedule
from hatrack.methods.masked import Room
from hatrack.methods.pathnet import GenerationSchedule
from hatrack.methods.proximal import Penalty
from hatrack.methods.wsn import InitialScores
from hatrack.train import EpochDone, LearningRateDecay, OptimizerKind, Training, TrainingSettings, loop
from hatrack.train.state import TrainingState
from support.marks import DEEP, examples, slow_but
from support.toys import make, tasks

SETTINGS: dict[str, dict[str, Any]] = {"pathnet": {"generations": 2}, "er": {"memory": 20}, "derpp": {"memory": 20}}
WITH_NORMS = [name for name, method in METHODS.items() if method.trains and name not in ("cab", "dwa")]
OF_EVERY_KIND = ("hat", "pmask", "packnet", "sgd", "ewc", "lwf", "er", "pnn", "pathnet")
"""One method of each way to hold weights and norms: by units, by weights, in one network, in several, with samples."""

SCHEDULE = TrainingSettings(epochs=4, batch_size=16, momentum=0.9, lr_patience=1, lr_min=0.01)
"""So impatient that the learning rate falls, and some trainings end early."""


def apart(state: TrainingState) -> TrainingState:
    """A copy, as a file would hold it."""
    return replace(state, tensors={name: value.detach().cpu().clone() for name, value in state.tensors.items()})


def train(
    method: Method, seen: list[Any], schedule: TrainingSettings = SCHEDULE
) -> list[tuple[list[Any], TrainingState | None]]:
    """Train on the newest task; what came from its beginning and from each epoch on, and the state then."""
    training = Training(method, seen, schedule)
    epochs: list[EpochDone] = []
    states: list[tuple[int, TrainingState | None, bool]] = [(0, None, False)]
    for event in training:
        if isinstance(event, EpochDone):
            epochs.append(event)
            states.append((len(epochs), apart(training.state()), training.over))
    assert [over for *_, over in states] == [False] * (len(states) - 1) + [True]
    return [(epochs[made:], state) for made, state, _ in states]


def everything(method: Method, path: Path) -> bytes:
    """All that the method keeps of what it has learned, as bytes."""
    method.save(path)
    return path.read_bytes()


def assert_same_bits(
    name: str, kind: str, folder: Path, training: TrainingSettings = SCHEDULE, **settings: Any
) -> None:
    seen = tasks(kind, 2, samples=48)
    settings = {**SETTINGS.get(name, {}), **settings}
    method = make(name, kind, **settings)
    method.begin_task(seen[0])
    for _ in Training(method, seen[:1], training):
        pass
    method.end_task(seen[0])
    method.save(folder / "first.hat")
    method.begin_task(seen[1])
    states = train(method, seen, training)
    method.end_task(seen[1])
    whole = everything(method, folder / "whole.hat")
    assert len(states) > 1
    for made, (rest, state) in enumerate(states):
        again = make(name, kind, **settings)
        again.load(folder / "first.hat")
        torch.rand(made)  # what nobody may depend on
        again.begin_task(seen[1])
        events = [e for e in Training(again, seen, training, taken_up=state) if isinstance(e, EpochDone)]
        again.end_task(seen[1])
        assert events == rest, f"after epoch {made}"
        assert everything(again, folder / "again.hat") == whole, f"after epoch {made}"


@pytest.mark.parametrize("name", slow_but(["sgd"], [name for name, method in METHODS.items() if method.trains]))
def test_going_on_after_any_epoch_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    assert_same_bits(name, "mlp", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_NORMS if examples(DEEP) >= DEEP else OF_EVERY_KIND)
def test_going_on_with_batch_norms_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    assert_same_bits(name, "norm" if name in ("pnn", "pathnet") else "conv", tmp_path)


def test_a_c_that_waits_for_what_is_learned_ends_with_the_same_bits(tmp_path: Path) -> None:
    training = TrainingSettings(epochs=8, batch_size=16, optimizer=OptimizerKind.ADAM, lr=0.003)
    assert_same_bits("hat", "mlp", tmp_path, training, schedule=MaskSchedule.SETTLED)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"ewc": 10.0}, {"capacity": Room.GROW, "growth_threshold": 0.9}])
def test_pmask_with_its_combinations_ends_with_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_same_bits("pmask", "conv", tmp_path, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hat", "pmask"])
def test_going_on_in_turns_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    assert_same_bits(name, "norm", tmp_path, rotations=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [("hat", {"rotations": 4}), ("pmask", {}), ("packnet", {}), ("wsn", {"scores": InitialScores.CARRIED})],
)
def test_going_on_around_contrast_ends_with_the_same_bits(name: str, settings: Any, tmp_path: Path) -> None:
    patient = replace(SCHEDULE, epochs=7, lr_patience=5)  # so that the last part of a mask and the head have epochs
    assert_same_bits(name, "norm", tmp_path, patient, contrastive=0.6, **settings)


@pytest.mark.parametrize("name", slow_but(["hat"], ["hat", "pathnet"]))
def test_going_on_along_a_cosine_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    cosine = replace(SCHEDULE, lr_decay=LearningRateDecay.COSINE, lr_min=1.0)
    assert_same_bits(name, "mlp", tmp_path, cosine)


@pytest.mark.parametrize("name", slow_but(["ewc"], ["ewc", "l2", "mas", "si", "imm-mean", "imm-mode", "adahat"]))
def test_going_on_with_adam_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """Proximal steps and scaled gradients depend on the moments that Adam has gathered."""
    adam = replace(SCHEDULE, optimizer=OptimizerKind.ADAM, momentum=0.0)
    assert_same_bits(name, "mlp", tmp_path, adam)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hat", {"schedule": MaskSchedule.SETTLED}),
        ("wsn", {"scores": InitialScores.CARRIED}),
        ("pathnet", {"schedule": GenerationSchedule.ANEW}),
        ("gem", {"memory_per_task": 20}),
        ("ewc", {"penalty": Penalty.EXPLICIT}),
        ("dwa", {"variant": DWAVariant.CODE}),
    ],
)
def test_going_on_with_other_choices_ends_with_the_same_bits(name: str, settings: Any, tmp_path: Path) -> None:
    assert_same_bits(name, "mlp", tmp_path, **settings)


def test_a_state_without_the_optimizers_part_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test itself: it fails when something is missing."""
    monkeypatch.setattr(loop, "optimizer_tensors", lambda _: {})
    with pytest.raises(AssertionError, match="after epoch"):
        assert_same_bits("sgd", "mlp", tmp_path)
