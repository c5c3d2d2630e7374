"""The memory, experience replay and DER++."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.methods import Batch
from hatrack.methods.memory import Reservoir
from support.toys import (
    KINDS,
    accuracy,
    assert_goes_on_as_without_interruption,
    learn,
    logits,
    make,
    rival_tasks,
    tasks,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sizes", [[3, 4, 1, 20], [10, 10], [2] * 30, [1], [5, 0, 7]])
def test_the_memory_never_holds_more_than_its_budget(sizes: list[int]) -> None:
    memory, start, source = Reservoir(10), 0, generator()
    for size in sizes:
        number = torch.arange(start, start + size)
        memory.add({"number": number, "twice": 2.0 * number[:, None]}, source)
        start += size
        assert memory.seen == start
        assert len(memory) == len(memory.columns["number"]) == min(start, 10)
        kept = memory.columns["number"]
        assert len(set(kept.tolist())) == len(kept)
        assert bool((kept < start).all())
        assert torch.equal(memory.columns["twice"], 2.0 * kept[:, None])  # rows stay together


@pytest.mark.slow
def test_every_row_is_equally_likely_to_stay() -> None:
    """A χ² test of how often each of 40 rows is kept, in 4000 memories of 10; parts of different sizes."""
    source, rounds, rows, budget = generator(1), 4000, 40, 10
    counts = torch.zeros(rows)
    for _ in range(rounds):
        memory = Reservoir(budget)
        for part in torch.split(torch.arange(rows), 13):
            memory.add({"number": part}, source)
        counts[memory.columns["number"]] += 1
    expected = rounds * budget / rows
    # Drawing without replacement makes the counts less variable than independent ones by 1 − budget / rows.
    statistic = float(((counts - expected) ** 2 / expected).sum()) / (1 - budget / rows)
    assert 16 < statistic < 72  # 39 degrees of freedom: outside with probability 0.001


def test_drawing_gives_different_rows_and_no_more_than_there_are() -> None:
    memory = Reservoir(20)
    memory.add({"number": torch.arange(8)}, generator())
    assert len(set(memory.draw(5, generator(1))["number"].tolist())) == 5
    assert sorted(memory.draw(50, generator(1))["number"].tolist()) == list(range(8))


def test_the_memorys_state_goes_round() -> None:
    memory, other = Reservoir(4), Reservoir(4)
    memory.add({"number": torch.arange(9)}, generator())
    other.load(memory.state())
    for each in (memory, other):
        each.add({"number": torch.arange(9, 30)}, generator(3))
    assert torch.equal(memory.columns["number"], other.columns["number"])
    assert other.seen == 30


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("name", ["er", "derpp"])
def test_it_goes_on_after_loading_as_if_nothing_had_happened(name: str, kind: str, tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption(name, kind, tmp_path, memory=20)
    assert straight.memory.seen == after.memory.seen
    assert set(straight.memory.columns) == set(after.memory.columns)
    for column, rows in straight.memory.columns.items():
        assert torch.equal(after.memory.columns[column], rows)
        assert len(rows) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er", "derpp"])
def test_rehearsal_forgets_less(name: str) -> None:
    seen = rival_tasks()
    left = {}
    for method in (make("sgd", dropout=0.0), make(name, memory=200, dropout=0.0)):
        learn(method, seen, epochs=40, lr=0.1)
        left[method.name] = accuracy(method, seen[0])
    assert left[name] > left["sgd"] + 0.05


def test_er_remembers_samples_with_their_tasks_and_classes() -> None:
    method, seen = make("er", memory=50), tasks()
    learn(method, seen, epochs=1)
    rows = method.memory.columns
    assert method.memory.seen == 3 * 96
    assert set(rows["task"].tolist()) == {0, 1, 2}
    for x, y, number in zip(rows["x"], rows["y"], rows["task"], strict=True):
        samples, labels = seen[number].train.load()
        (row,) = (samples == x).all(dim=1).nonzero()[:, 0].tolist()
        assert labels[row] == y


def begun(name: str, **settings: float) -> tuple[object, Batch]:
    """A method without dropout in the middle of its second task, and a batch of that task."""
    method, seen = make(name, dropout=0.0, memory=30, **settings), tasks()
    learn(method, seen[:1], epochs=1)
    method.begin_task(seen[1])
    x, y = seen[1].train.load()
    method.train_mode(True)
    return method, Batch(x[:8], y[:8], ("t1",), torch.zeros(8, dtype=torch.int64), 0.0)


def test_ers_loss_is_the_mean_over_new_and_remembered_samples() -> None:
    method, batch = begun("er", replay=100)  # all 30, in whatever order
    rows = method.memory.columns
    new = method.network(batch.x, ["t1"])
    old = method.network(rows["x"], ["t0"])
    expected = (F.cross_entropy(new, batch.y) * 8 + F.cross_entropy(old, rows["y"]) * 30) / 38
    loss = method.loss(batch)
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.logits, new)
    with torch.no_grad():
        method.train_mode(False)
        torch.testing.assert_close(method.loss(batch).value, F.cross_entropy(new, batch.y))


def test_derpps_loss_is_its_formula() -> None:
    method, batch = begun("derpp", replay=100, alpha=0.3, beta=0.7)
    rows = {name: column.clone() for name, column in method.memory.columns.items()}
    assert rows["logits"].shape == (30, 3)  # the second task has a class more than the first
    new, old = method.network(batch.x, ["t1"]), method.network(rows["x"], ["t0"])
    distance = ((old - rows["logits"][:, :2]) ** 2).mean()
    expected = F.cross_entropy(new, batch.y) + 0.3 * distance + 0.7 * F.cross_entropy(old, rows["y"])
    assert float(distance.detach()) > 0
    torch.testing.assert_close(method.loss(batch).value, expected)


def test_derpp_keeps_the_logits_of_the_time_and_offers_only_in_training_steps() -> None:
    method, batch = begun("derpp")
    method.memory = Reservoir(30)
    with torch.no_grad():
        method.loss(batch)
    assert len(method.memory) == 0
    method.loss(batch)
    torch.testing.assert_close(method.memory.columns["logits"], method.network(batch.x, ["t1"]).detach())
    assert method.memory.columns["task"].tolist() == [1] * 8


@pytest.mark.parametrize("name", ["er", "derpp"])
def test_norms_gather_the_statistics_of_remembered_samples_too(name: str) -> None:
    method, seen = make(name, "conv", memory=30), tasks("conv")
    learn(method, seen[:2], epochs=1)
    method.train_mode(True)
    mean = method.network.backbone[1].running_mean
    x, y = seen[1].train.load()
    batch = Batch(x[:8], y[:8], ("t1",), torch.zeros(8, dtype=torch.int64), 1.0)
    found = []
    for held in (method.memory, Reservoir(30)):
        method.memory = held
        mean.zero_()
        with torch.no_grad():
            method.loss(batch)
        found.append(mean.clone())
    assert not torch.equal(*found)
    assert logits(method, seen[0]).shape == (96, 2)


@pytest.mark.parametrize("name", ["er", "derpp"])
@pytest.mark.parametrize("key", ["memory", "replay"])
def test_a_memory_of_nothing_is_refused(name: str, key: str) -> None:
    with pytest.raises(InputError, match=f"{key} must be at least 1"):
        make(name, **{key: 0})
