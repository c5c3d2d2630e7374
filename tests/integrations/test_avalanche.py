"""Avalanche: a strategy learns every experience as a task, as a loop by hand does, and no task is forgotten."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatrack import load
from hatrack.errors import InputError
from support.three_tasks import (
    BATCH,
    EPOCHS,
    RATE,
    TASKS,
    Net,
    X,
    Y,
    answers,
    assert_differ,
    assert_same,
    assert_same_bits,
    fresh,
)

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # here they would be errors, as everywhere else
        import avalanche
except Exception as error:  # of torchvision's, where that was built for another torch
    pytest.skip(f"Avalanche does not import here: {error}", allow_module_level=True)

# What these packages warn of is not about this one.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]
kinds = pytest.mark.parametrize("kind", ["units", "weights"])


def benchmark(labels: list[int]) -> Any:
    experiences = [(X, Y[task]) for task in TASKS]
    return avalanche.benchmarks.tensors_benchmark(experiences, experiences, task_labels=labels)


def strategy(net: Net, **settings: float) -> Any:
    from hatrack.integrations.avalanche import AvalancheTasks, TaskLabelModule

    model = TaskLabelModule(net)
    return avalanche.training.supervised.Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=EPOCHS,
        eval_mb_size=len(X),
        plugins=[AvalancheTasks(**settings)],
        evaluator=None,
    )


def by_hand(net: Net, number: int, strength: float = 0.75) -> None:
    """As Avalanche does it: one optimizer for all tasks."""
    task = str(number)
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters(task), lr=RATE))
    batches = list(zip(X.split(BATCH), Y[TASKS[number]].split(BATCH), strict=True))
    net.train()
    for _ in range(EPOCHS):
        for step, (x, y) in enumerate(batches):
            net.anneal(step / (len(batches) - 1))
            optimizer.zero_grad()
            (nn.functional.cross_entropy(net(x, task), y) + strength * net.regularization()).backward()
            optimizer.step()
    net.consolidate(task)


@kinds
def test_three_experiences_are_learned_as_by_hand_and_keep_their_bits(kind: str) -> None:
    net, other, promised = fresh(kind), fresh(kind), {}
    training, stream = strategy(net), benchmark([0, 1, 2])
    for number, experience in enumerate(stream.train_stream):
        torch.manual_seed(number)
        training.train(experience, shuffle=False)
        torch.manual_seed(number)
        by_hand(other, number)
        assert_same(net, other)
        promised[str(number)] = answers(net, str(number))
        training.eval(stream.test_stream[: number + 1])
        for known, before in promised.items():
            assert torch.equal(answers(net, known), before)
            assert torch.equal(training.model(X, int(known)), before)
        net.check()


def test_the_cost_of_the_mask_counts() -> None:
    net, other = fresh("units"), fresh("units")
    torch.manual_seed(0)
    strategy(net, strength=0.0).train(benchmark([0, 1, 2]).train_stream[0], shuffle=False)
    torch.manual_seed(0)
    by_hand(other, 0)
    assert_differ(net, other)


def test_samples_of_several_tasks_are_answered_by_their_labels() -> None:
    net = fresh("units")
    training, stream = strategy(net), benchmark([0, 1, 2])
    for experience in stream.train_stream[:2]:
        training.train(experience)
    labels = torch.arange(len(X)) % 2
    found = training.model.eval()(X, labels)
    both = torch.stack([answers(net, "0"), answers(net, "1")])
    torch.testing.assert_close(found, both[labels, torch.arange(len(X))], rtol=1e-5, atol=1e-5)


def test_a_network_that_was_saved_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Avalanche's own checkpoints pickle whole strategies; a file of the network is all that the next task needs."""
    straight, stopped = fresh("units"), fresh("units")
    stream = benchmark([0, 1, 2]).train_stream
    training = strategy(straight)
    for number, experience in enumerate(stream):
        torch.manual_seed(number)
        training.train(experience)
    torch.manual_seed(0)
    strategy(stopped).train(stream[0])
    stopped.save(tmp_path / "net.hat")
    resumed = load(tmp_path / "net.hat", fresh("units").detach())
    assert torch.equal(answers(resumed, "0"), answers(straight, "0"))
    training = strategy(resumed)
    for experience in stream[len(resumed.task_names) :]:
        torch.manual_seed(experience.current_experience)
        training.train(experience)
    assert_same_bits(resumed, straight)


def test_what_cannot_hold_is_refused() -> None:
    net = fresh("units")
    training, stream = strategy(net), benchmark([0, 0, 0])
    training.train(stream.train_stream[0])
    with pytest.raises(InputError, match="task '0' is consolidated and cannot be trained again"):
        training.train(stream.train_stream[1])
    with pytest.raises(InputError, match=r"task 1 is not learned yet: .*test_stream\[: i \+ 1\]"):
        training.eval(benchmark([0, 1, 2]).test_stream)
    other = strategy(fresh("units"))
    other.model = copy.deepcopy(other.model.net)
    with pytest.raises(InputError, match=r"must be a TaskLabelModule\(net\)"):
        other.plugins[0].before_training_exp(other)
