from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.methods import METHODS
from hatrack.methods.gem import nonnegative_minimum, project
from hatrack.methods.memory import Reservoir
from support.marks import slow_unless
from support.toys import KINDS, accuracy, assert_goes_on_as_without_interruption, learn, make, rival_tasks, tasks


def nearest_by_trying_all(gradient: Tensor, memories: Tensor) -> Tensor:
    """The nearest vector with no negative product: some rows' products are 0, the others do not matter; try which."""
    best, found = float("inf"), gradient
    for chosen in product([False, True], repeat=len(memories)):
        rows = memories[list(chosen)]
        weights = torch.linalg.pinv(rows @ rows.T) @ (rows @ gradient)
        candidate = gradient - rows.T @ weights
        distance = float((candidate - gradient).square().sum())
        if bool((memories @ candidate >= -1e-9).all()) and distance < best:
            best, found = distance, candidate
    return found


@pytest.mark.parametrize("count", slow_unless(lambda count: count < 5, [1, 2, 3, 5, 7]))
@pytest.mark.parametrize("size", [3, 12])
def test_the_projection_is_the_nearest_that_hurts_nobody(count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(100 * count + size)
    for number in range(30):
        memories = torch.randn(count, size, generator=generator, dtype=torch.float64)
        if number % 3 == 0:
            memories[-1] = 2 * memories[0]  # constraints that depend on each other
        gradient = torch.randn(size, generator=generator, dtype=torch.float64)
        projected = project(gradient, memories)
        assert bool((memories @ projected >= -1e-9).all())
        torch.testing.assert_close(projected, nearest_by_trying_all(gradient, memories), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("margin", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_no_constraint_is_violated_with_a_margin_either(margin: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(30):
        memories = scale * torch.randn(4, 10, generator=generator, dtype=torch.float64)
        gradient = scale * torch.randn(10, generator=generator, dtype=torch.float64)
        products = memories @ project(gradient, memories, margin)
        if bool((memories @ gradient < 0).any()):
            assert bool((products >= -1e-9 * scale**2).all())


def test_by_hand() -> None:
    gradient, memories = torch.tensor([1.0, -1.0]), torch.tensor([[0.0, 2.0]])
    assert project(gradient, memories).tolist() == [1.0, 0.0]
    assert project(gradient, memories, margin=1.0).tolist() == [1.0, 1.0]  # v = 1 instead of 1/2


def test_an_allowed_gradient_is_untouched() -> None:
    gradient = torch.tensor([1.0, 3.0])
    assert project(gradient, torch.tensor([[0.0, 2.0], [1.0, 0.0]]), margin=0.5) is gradient


def test_the_minimum_satisfies_its_conditions() -> None:
    generator = torch.Generator().manual_seed(5)
    for size in (1, 4, 20):
        factor = torch.randn(size, size + 3, generator=generator, dtype=torch.float64)
        matrix, vector = factor @ factor.T, torch.randn(size, generator=generator, dtype=torch.float64)
        u = nonnegative_minimum(matrix, vector)
        slope = matrix @ u + vector
        assert bool((u >= 0).all())
        assert bool((slope >= -1e-8).all())
        assert float((u * slope).abs().max()) < 1e-8
    assert nonnegative_minimum(torch.zeros(2, 2), torch.zeros(2)).tolist() == [0.0, 0.0]


@KINDS
def test_it_goes_on_after_loading_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption("gem", kind, tmp_path, memory_per_task=20)
    assert [len(memory) for memory in after.memories] == [20, 20]
    for one, other in zip(straight.memories, after.memories, strict=True):
        assert all(torch.equal(other.columns[name], column) for name, column in one.columns.items())


def test_a_total_is_shared_out_among_the_tasks_so_far_as_er_has_it(tmp_path: Path) -> None:
    seen = tasks("mlp", 3)
    method, again = (make("gem", memory=60) for _ in range(2))
    kept = []
    for index in range(3):
        learn(method, seen[: index + 1], first=index)
        kept.append([len(memory) for memory in method.memories])
        assert method.remembered() == sum(kept[-1]) <= 60
    assert kept == [[60], [30, 30], [20, 20, 20]]
    for memory, task in zip(method.memories, seen, strict=True):
        samples = {tuple(row.tolist()) for row in task.train.load()[0]}
        rows = [tuple(row.tolist()) for row in memory.columns["x"]]
        assert set(rows) <= samples
        assert len(set(rows)) == 20
    method.save(tmp_path / "net.hat")
    again.load(tmp_path / "net.hat")
    assert [len(memory) for memory in again.memories] == [20, 20, 20]
    rehearsing = make("er", memory=60)
    learn(rehearsing, seen)
    assert rehearsing.remembered() == 60
    assert make("sgd").remembered() is None
    assert {METHODS[name].settings_type().memory for name in ("er", "derpp", "gem")} == {500}


def test_a_memory_goes_on_after_loading_though_it_shrinks(tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption("gem", "mlp", tmp_path, memory=50)
    for one, other in zip(straight.memories, after.memories, strict=True):
        assert len(other) == 25
        assert all(torch.equal(one.columns[name], column) for name, column in other.columns.items())


def test_what_is_left_of_a_memory_is_drawn_uniformly() -> None:
    counts = torch.zeros(20)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        memory = Reservoir(10)
        memory.add({"x": torch.arange(20)}, generator)
        counts[memory.reduced(4, generator).columns["x"]] += 1
    assert bool(((counts / 400 - 4 / 20).abs() < 0.08).all())
    assert memory.reduced(10, generator) is memory


def test_steps_go_where_no_memory_gets_worse() -> None:
    method, seen = make("gem", dropout=0.0, memory_per_task=40), tasks()
    learn(method, seen[:2], epochs=10)
    method.begin_task(seen[2])
    method.train_mode(True)
    x, y = seen[2].train.load()
    parameters = method.trained_parameters()
    optimizer = method.protect(torch.optim.SGD(parameters, lr=0.0))
    hurt = 0
    for start in range(0, 96, 8):
        optimizer.zero_grad()
        F.cross_entropy(method.network(x[start : start + 8], ["t2"]), y[start : start + 8]).backward()
        plain = [None if p.grad is None else p.grad.clone() for p in parameters]
        optimizer.step()
        worse = []
        for memory, name in zip(method.memories, ("t0", "t1"), strict=True):
            loss = F.cross_entropy(method.network(memory.columns["x"], [name]), memory.columns["y"])
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
            for gradients, bound in ((plain, None), ([p.grad for p in parameters], -1e-6)):
                pairs = [(a, b) for a, b in zip(slopes, gradients, strict=True) if a is not None and b is not None]
                inner = float(sum((a * b).sum() for a, b in pairs))
                if bound is None:
                    worse.append(inner < 0)
                else:
                    assert inner >= bound
        hurt += any(worse)
        if not any(worse):
            now = [p.grad for p in parameters]
            assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(plain, now, strict=True))
    assert hurt > 0, "no gradient had to be changed, so that the test would say nothing"


@pytest.mark.slow
def test_gem_forgets_less() -> None:
    seen = rival_tasks()
    left = {}
    for method in (make("sgd", dropout=0.0), make("gem", memory_per_task=100, dropout=0.0)):
        learn(method, seen, epochs=40, lr=0.1)
        left[method.name] = accuracy(method, seen[0])
    assert left["gem"] > left["sgd"] + 0.05


def test_a_memory_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="memory_per_task must be at least 1"):
        make("gem", memory_per_task=0)
    with pytest.raises(InputError, match="memory must be at least 1"):
        make("gem", memory=0)
