"""Learner: today, tomorrow from a file, and without the task's name."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import CheckpointError, GuaranteeError, InputError, Learner, Scorer, TrainingError
from hatrack.train import EpochDone, TrainingSettings
from support.helpers import NETS, easy_task
from support.warm import run_warm

SHAPE = (2, 6, 6)
TRAINING = TrainingSettings(epochs=16, batch_size=8, lr=0.05)
BRIEF = TrainingSettings(epochs=1, batch_size=8, lr=0.05)
NAMES = ("tabby", "dog", "eel")


def build() -> nn.Module:
    torch.manual_seed(0)
    return NETS["conv-bn"].build()


def learner() -> Learner:
    return Learner(build(), SHAPE, training=TRAINING, validation=0.0)


def data(seed: int) -> tuple[Tensor, Tensor]:
    return easy_task(SHAPE, seed)


@pytest.mark.slow
def test_tomorrow_from_the_file_with_the_old_tasks_untouched(tmp_path: Path) -> None:
    today = learner()
    epochs: list[object] = []
    today.fit("pets", data(0), classes=NAMES, watch=lambda event: epochs.append(type(event)))
    assert EpochDone in epochs
    assert today.evaluate("pets", data(0)) > 0.9
    said = today.predict(data(0)[0], "pets")
    assert said.classes[0] in NAMES
    assert said.tasks == ("pets",) * len(data(0)[0])
    assert said.distribution.shape == (24, 3)
    torch.testing.assert_close(said.distribution.sum(1), torch.ones(24))
    today.save(tmp_path / "learner")

    tomorrow = Learner.load(tmp_path / "learner", NETS["conv-bn"].build(), training=TRAINING, validation=0.0)
    tomorrow.fit("tools", data(1))
    assert tomorrow.tasks == ("pets", "tools")
    assert tomorrow.classes["tools"] == ("0", "1", "2")
    assert tomorrow.evaluate("tools", data(1)) > 0.9
    assert torch.equal(tomorrow.predict(data(0)[0], "pets").distribution, said.distribution)
    without = tomorrow.predict(torch.cat([data(0)[0], data(1)[0]]), scorer=Scorer.DISTANCE)
    assert sum(task == "pets" for task in without.tasks[:24]) > 18
    assert tomorrow.evaluate("tools", data(1), name_task=False) <= tomorrow.evaluate("tools", data(1))
    assert "pets is forgotten" in str(tomorrow.forget("pets"))
    tomorrow.save(tmp_path / "later")
    assert b"tabby" not in (tmp_path / "later").read_bytes()
    tomorrow.fit("pets", data(0), classes=NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_answers_and_goes_on_as_the_learner_does(copied: Callable[[Learner], Learner]) -> None:
    mine = Learner(build(), SHAPE, training=BRIEF, validation=0.0)
    mine.fit("pets", data(0))
    said = mine.predict(data(0)[0], "pets").distribution
    other = copied(mine)
    for each in (mine, other):
        each.fit("tools", data(1))
        assert torch.equal(each.predict(data(0)[0], "pets").distribution, said)
    ours, theirs = (each.network.state_dict() for each in (mine, other))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with torch.no_grad():
        next(other.network.backbone.parameters()).add_(1.0)
    with pytest.raises(GuaranteeError):
        other.network.check()
    mine.network.check()


def test_a_data_set_of_pairs_serves_as_well() -> None:
    x, y = data(0)
    first, second = learner(), learner()
    first.fit("a", (x, y))
    second.fit("a", torch.utils.data.TensorDataset(x, y))  # type: ignore[arg-type]
    assert torch.equal(first.predict(x, "a").distribution, second.predict(x, "a").distribution)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    mine = learner()
    x, y = data(0)
    with pytest.raises(InputError, match="the network expects"):
        mine.fit("a", (x[:, :1], y))
    with pytest.raises(InputError, match="no samples"):
        mine.fit("a", [])
    with pytest.raises(InputError, match="no consolidated task"):
        mine.predict(x)
    mine.fit("a", (x, y))
    with pytest.raises(InputError, match="there is a task 'a' already"):
        mine.fit("a", (x, y))
    before = mine.predict(x, "a").distribution
    mine.training = TrainingSettings(epochs=2, lr=1e30)
    with pytest.raises(TrainingError):
        mine.fit("b", (x, y))
    assert mine.tasks == ("a",)
    assert torch.equal(mine.predict(x, "a").distribution, before)
    mine.save(tmp_path / "learner")
    with pytest.raises(CheckpointError, match="saved with another backbone"):
        Learner.load(tmp_path / "learner", nn.Sequential(nn.Flatten(), nn.Linear(72, 10)))
    wider = NETS["conv-bn"].build()
    wider[9] = nn.Linear(48, 21)  # type: ignore[index]
    wider[10] = nn.BatchNorm1d(21)  # type: ignore[index]
    with pytest.raises(CheckpointError, match="saved with another backbone"):
        Learner.load(tmp_path / "learner", wider)


KILLED = """
import os, signal, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import hatrack.storage.atomic
from hatrack import Learner
from support.helpers import NETS
from test_learner import BRIEF, data

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

point, path = sys.argv[2], Path(sys.argv[3])
learner = Learner.load(path, NETS["conv-bn"].build(), training=BRIEF, validation=0.0)
learner.fit("tools", data(1), watch=die if point == "training" else None)
replace = Path.replace
if point == "half written":
    opened = Path.open
    def half(of, mode="r", *words, **named):
        file = opened(of, mode, *words, **named)
        if mode != "xb":
            return file
        class Half:
            def __enter__(self): return self
            def __exit__(self, *_): pass
            def write(self, content):
                file.write(content[: len(content) // 2]); file.flush(); die()
        return Half()
    Path.open = half
elif point == "after it took its place":
    Path.replace = lambda self, target: (replace(self, target), die())
learner.save(path)
"""
"""Learns one more task and saves, and is killed on the way."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("point", "tasks"),
    [
        ("training", ("pets",)),
        ("half written", ("pets",)),
        ("after it took its place", ("pets", "tools")),
    ],
)
def test_killed_at_any_point_it_leaves_the_old_file_or_the_new_one(
    point: str, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    mine = Learner(build(), SHAPE, training=BRIEF, validation=0.0)
    path = tmp_path / "learner"
    mine.fit("pets", data(0), classes=NAMES)
    mine.save(path)
    said = mine.predict(data(0)[0], "pets").distribution
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), point, str(path)]
    (died,) = run_warm(tmp_path, words, env=[{**os.environ, "OMP_NUM_THREADS": "1"}])
    assert died.returncode == -signal.SIGKILL, died.stderr
    again = Learner.load(path, NETS["conv-bn"].build(), training=BRIEF, validation=0.0)
    assert again.tasks == tasks
    assert torch.equal(again.predict(data(0)[0], "pets").distribution, said)
    if "tools" not in tasks:
        again.fit("tools", data(1))
    again.save(path)
    assert Learner.load(path, NETS["conv-bn"].build()).tasks == ("pets", "tools")


def test_targets_and_metrics_may_be_named() -> None:
    learner = Learner(nn.Sequential(nn.Linear(4, 16), nn.ReLU()), (4,), training=TrainingSettings(epochs=1))
    x, counts = torch.randn(40, 4), torch.randint(0, 9, (40,))
    learner.fit("counts", (x, counts), target="numbers", metric="mae")
    assert not hasattr(learner.predict(x, "counts"), "classes")
    for wrong in ({"target": "nonsense"}, {"metric": "nonsense"}):
        with pytest.raises(InputError, match=r"must be one of .*, not 'nonsense'"):
            learner.fit("more", (x, counts), **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"single 1: give y\.argmax\(1\) for classes, or say target='labels'"):
        learner.fit("one-hot", (x, torch.eye(3, dtype=torch.long)[counts % 3]))


def test_a_task_that_diverges_leaves_the_others_as_they_were() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    learner = Learner(backbone, (4,), training=TrainingSettings(epochs=2, batch_size=16))
    x = torch.randn(120, 4)
    learner.fit("good", (x, x[:, 0]))
    before = learner.predict(x, "good").values
    with pytest.raises(TrainingError):
        learner.fit("bad", (x * 1e20, x[:, 1]))
    assert learner.tasks == ("good",)
    assert torch.equal(learner.predict(x, "good").values, before)
    learner.fit("next", (x, x[:, 1]))


def test_an_interrupt_while_a_task_is_calibrated_leaves_no_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    of = Learner(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (4,), training=BRIEF)
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    of.fit("first", (x, y))
    before = of.predict(x, "first").distribution

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(of.network), "calibrate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            of.fit("second", (x, y))
    assert of.tasks == ("first",)
    assert torch.equal(of.predict(x, "first").distribution, before)
    of.fit("second", (x, y))
    assert of.tasks == ("first", "second")
    assert set(of.predict(x).tasks) <= {"first", "second"}


@pytest.mark.parametrize(
    ("y", "what"),
    [
        (torch.arange(60) % 3 // 2, r"the class '\d'"),
        (torch.linspace(-1, 1, 60), "the same numbers"),
        (torch.arange(60).view(-1, 1) % torch.tensor([2, 3]) == 0, "the same numbers"),
    ],
    ids=["classes", "numbers", "labels"],
)
def test_a_task_that_answers_the_same_for_all_samples_is_told(y: Tensor, what: str) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    of = Learner(backbone, (4,), training=BRIEF, validation=0.0)

    def nothing(_: object) -> None:
        for parameter in of.network.backbone.parameters():
            torch.nn.init.zeros_(parameter)

    with pytest.warns(UserWarning, match=rf"task 'a' answers {what} for all .* samples .*c=0\.1"):
        of.fit("a", (torch.randn(60, 4), y), watch=nothing)
    assert of.tasks == ("a",)


FEW = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
OTHERS = FEW[0], 1 - FEW[1]


def seeded() -> Learner:
    """A learner of one task, with dropout, and room for more."""
    torch.manual_seed(0)
    narrow = nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 8), nn.ReLU()
    )
    brief = TrainingSettings(epochs=2, batch_size=8, lr=0.05)
    learner = Learner(narrow, (4,), training=brief, validation=0.0, seed=1)
    learner.fit("first", FEW)
    return learner


def failed_at(point: int | str) -> Learner:
    """A learner whose second task was interrupted: behind so many events, or within a part of the learner."""
    learner, events = seeded(), 0
    owner = type(learner.network) if point == "calibrate" else type(learner._method)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def watch(_: object) -> None:
        nonlocal events
        events += 1
        if events == point:
            raise KeyboardInterrupt

    torch.manual_seed(sum(map(ord, str(point))))  # what else draws is elsewhere by then
    with pytest.MonkeyPatch.context() as patched:
        if isinstance(point, str):
            patched.setattr(owner, point, interrupt)
        with pytest.raises(KeyboardInterrupt):
            learner.fit("second", OTHERS, watch=watch)
    return learner


@cache
def repeated() -> Tensor:
    """Weights and all else of a learner whose second task failed in its second step, and was learned then."""
    learner = failed_at(2)
    learner.fit("second", OTHERS)
    return everything(learner)


def everything(learner: Learner) -> Tensor:
    return torch.cat([value.detach().double().flatten() for _, value in sorted(learner.network.state_dict().items())])


@pytest.mark.parametrize("point", [1, 3, 5, "end_task", "calibrate"])
def test_a_fit_that_is_repeated_gives_the_same_bits_wherever_it_had_failed(point: int | str) -> None:
    """The seed decides, and neither how far the training had come nor what else drew random numbers."""
    learner = failed_at(point)
    before = seeded().predict(FEW[0], "first").distribution
    assert (learner.tasks, list(learner.objectives)) == (("first",), ["first"])
    assert not learner.network.training, "old tasks answer without dropout"
    learner.fit("second", OTHERS)
    assert torch.equal(everything(learner), repeated())
    assert torch.equal(learner.predict(FEW[0], "first").distribution, before)


def test_what_is_drawn_in_the_place_of_a_forgotten_task_follows_from_the_seed() -> None:
    weights = []
    for seed in (3, 4):
        learner = seeded()
        torch.manual_seed(seed)
        learner.forget("first")
        weights.append(torch.cat([p.detach().flatten() for p in learner.network.backbone.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("why", ["refused settings", "begin_task", "an interrupt behind it"])
def test_a_fit_that_fails_before_its_first_epoch_leaves_the_bits_of_one_that_never_failed(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "begin_task":
        learner, whole = failed_at(why), seeded()
    else:
        learner, whole = seeded(), seeded()
        real = type(learner._method).begin_task

        def interrupted(*args: Any) -> None:
            real(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            if why == "refused settings":
                learner.training = TrainingSettings(captured=True)
            else:
                patched.setattr(type(learner._method), "begin_task", interrupted)
            with pytest.raises((InputError, KeyboardInterrupt)):
                learner.fit("second", OTHERS)
        learner.training = whole.training
    assert torch.equal(everything(learner), everything(whole))
    for each in (learner, whole):
        each.fit("second", OTHERS)
    assert torch.equal(everything(learner), everything(whole))
