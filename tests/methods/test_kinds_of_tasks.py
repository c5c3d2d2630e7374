"""Which methods learn numbers, several labels and weighted classes, and that their laws hold for these, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hatrack.errors import InputError
from hatrack.methods import METHODS, require_learnable
from hatrack.objectives import ClassWeights, MetricName
from hatrack.streams import Task
from support.marks import slow_but
from support.toys import QUICK, learn, logits, make

CLASSES_ALONE = ("lwf", "er", "derpp", "gem", "dwa")
"""Methods that are defined for scores of classes, or remember samples with their classes."""

PLAIN_CLASSES_ALONE = ("er", "derpp", "gem")
"""Those whose memory has no weights of classes."""

EVERY_KIND = tuple(name for name in METHODS if name not in CLASSES_ALONE)
KEEPS_EVERY_BIT = ("hat", "pmask", "wsn", "supsup", "packnet", "pnn", "pathnet", "independent", "random")


def made(name: str, seed: int, kind: str) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(160, 4, generator=generator)
    first, second = x[:, seed % 4], x[:, (seed + 1) % 4]
    targets = {
        "classes": (first > 0).long(),
        "numbers": torch.stack([1000 + 50 * first, second - first, 3 * second], 1),
        "number": 7 - 2 * first,
        "labels": torch.stack([first > 0, second > 0.3], 1),
    }
    y = targets[kind]
    return Task.from_tensors(name, x[:96], y[:96], x[96:], y[96:], validation=0.2)


MIXED = tuple(made(kind, index, kind) for index, kind in enumerate(("numbers", "classes", "labels", "number")))


@pytest.mark.parametrize("name", slow_but((*QUICK, "joint", "ewc"), EVERY_KIND))
def test_tasks_of_all_kinds_in_one_stream(name: str, tmp_path: Path) -> None:
    require_learnable(METHODS[name], MIXED)
    method, before = make(name), []
    for index, task in enumerate(MIXED):
        learn(method, MIXED[: index + 1], first=index, epochs=2)
        said = logits(method, task)
        assert said.shape == (64, task.num_classes)
        assert said.isfinite().all()
        before.append(said)
    method.save(tmp_path / "net.hat")
    again = make(name)
    assert again.load(tmp_path / "net.hat") == tuple(task.name for task in MIXED)
    for task, promise in zip(MIXED, before, strict=True):
        assert torch.equal(logits(again, task), logits(method, task))
        if name in KEEPS_EVERY_BIT:
            assert torch.equal(logits(method, task), promise)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(("hat", "sgd", "joint", "pmask"), [n for n in EVERY_KIND if n != "random"]))
def test_numbers_and_labels_are_learned(name: str) -> None:
    for index in (0, 2):
        task, method = MIXED[index], make(name, "wide", dropout=0.0)
        learn(method, (task,), epochs=40, lr=0.1)
        reached = task.objective.measure(logits(method, task), task.test.labels)
        guesser = make("random")
        learn(guesser, (task,))
        guessed = task.objective.measure(logits(guesser, task), task.test.labels)
        assert reached > guessed + 0.15, (task.name, reached, guessed)


@pytest.mark.parametrize("fisher", ["true", "sampled", "batches"])
@pytest.mark.parametrize("index", range(4))
def test_every_estimate_of_the_fisher_goes_with_every_kind(fisher: str, index: int) -> None:
    from hatrack.methods.importance import Fisher

    method = make("ewc", fisher=Fisher(fisher))
    learn(method, (MIXED[index], made("next", 5, "classes")), epochs=1)
    assert all(bool((value >= 0).all()) and bool(value.isfinite().all()) for value in method.importance.values())
    assert any(bool((value > 0).any()) for value in method.importance.values())


@pytest.mark.parametrize("name", CLASSES_ALONE)
@pytest.mark.parametrize("index", [0, 2])
def test_what_is_defined_for_classes_says_so_and_who_does_more(name: str, index: int) -> None:
    with pytest.raises(
        InputError, match=rf"{name} cannot learn task .*; these methods can: hat, adahat, sgd, "
    ) as caught:
        require_learnable(METHODS[name], MIXED)
    assert "\n" not in str(caught.value)
    assert not METHODS[name].learns(MIXED[index].objective)
    require_learnable(METHODS[name], MIXED[1:2])


@pytest.mark.parametrize("name", METHODS)
def test_weights_of_classes(name: str) -> None:
    task = made("classes", 0, "classes")
    weighted = Task(
        "classes", ClassWeights((1.0, 20.0)).of(task.objective, task.train.labels), task.train, task.valid, task.test
    )
    if name in PLAIN_CLASSES_ALONE:
        with pytest.raises(InputError, match=r"is classification with class weights; these methods can: "):
            require_learnable(METHODS[name], [weighted])
        return
    require_learnable(METHODS[name], [weighted])


def test_weights_of_classes_change_what_is_learned() -> None:
    task = made("classes", 0, "classes")
    said = {}
    for weight in (0.02, 1.0, 50.0):
        objective = ClassWeights((1.0, weight)).of(task.objective, task.train.labels)
        method = make("sgd", dropout=0.0)
        learn(method, (Task("classes", objective, task.train, task.valid, task.test),), epochs=4)
        said[weight] = float(logits(method, task).argmax(1).float().mean())
    assert said[0.02] < said[1.0] < said[50.0]


def test_a_metric_of_another_kind_is_refused_with_the_name_of_the_task() -> None:
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    with pytest.raises(InputError, match=r"task sides: the metric of classes is one of: accuracy, .*; not R²"):
        Task.from_tensors("sides", x, y, x, y, metric=MetricName.R2)
