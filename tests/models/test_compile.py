"""torch.compile: one graph serves every task, and keeps the law."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, WeightMaskedNetwork
from hatrack.masks import Embedding, MaskSource, Scores
from support.helpers import SAMPLES, attach, easy_task, learn, logits, mode, open_task, progress

TASKS = 20

# torch's compiler does itself what torch warns of.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated"),
]

needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def counters() -> Iterator[dict[str, Any]]:
    """Start to compile from scratch, and yield what torch counts of it."""
    dynamo = importlib.import_module("torch._dynamo")  # here, since it takes seconds: quick runs leave these tests out
    dynamo.reset()
    dynamo.utils.counters.clear()
    with dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield dynamo.utils.counters
    dynamo.reset()


def small_with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def graphs(counters: dict[str, Any]) -> int:
    return counters["stats"]["unique_graphs"]


@needs_a_compiler
@pytest.mark.parametrize("kind", ["mlp", "conv-bn"])
def test_twenty_tasks_in_compiled_code(kind: str, counters: dict[str, Any]) -> None:
    if kind == "mlp":
        net = attach("mlp")
    else:
        torch.manual_seed(0)
        net = HATNetwork(small_with_batch_norm(), torch.zeros(2, 2, 5, 5), s_max=100.0)
    compiled = torch.compile(net, fullgraph=True)
    samples: dict[str, Tensor] = {}
    promised: dict[str, Tensor] = {}
    for number in range(TASKS):
        task = f"task {number}"
        x, y = easy_task(net.example_shape[1:], number)
        open_task(net, task, number)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(task), lr=0.05, momentum=0.9))
        net.train()
        for step in range(5):
            net.anneal(progress(step))
            optimizer.zero_grad()
            (F.cross_entropy(compiled(x, task), y) + 0.1 * net.regularization()).backward()
            optimizer.step()
        net.consolidate(task)
        samples[task] = x
        with mode(net, False), torch.no_grad():
            promised[task] = compiled(x, task)
            for earlier, kept in promised.items():
                assert torch.equal(compiled(samples[earlier], earlier), kept), earlier
        if number == 1:
            after_two = graphs(counters)
    assert graphs(counters) == after_two <= 3, "later tasks were compiled anew"
    assert not counters["graph_break"]
    torch.compiler.reset()
    again = torch.compile(net)
    with mode(net, False), torch.no_grad():
        for task, kept in promised.items():
            torch.testing.assert_close(again(samples[task], task), kept, rtol=0, atol=1e-6)
            torch.testing.assert_close(net(samples[task], task), kept, rtol=0, atol=1e-6)


def test_tasks_with_other_numbers_of_classes_share_the_graphs(counters) -> None:
    net = attach("mlp")
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x, _ = easy_task(net.example_shape[1:], 0)
    seen = []
    for number in range(12):
        net.add_task(f"task {number}", num_classes=2 + number)
        net.consolidate(f"task {number}")
        with mode(net, False), torch.no_grad():
            assert torch.equal(compiled(x, f"task {number}"), net(x, f"task {number}"))
        seen.append(graphs(counters))
    assert seen[-1] == seen[2], "the compiler does not treat the number of classes as one that varies"


def test_gradients_are_those_of_the_plain_network() -> None:
    found = {}
    for compiled in (False, True):
        net = attach("residual")
        learn(net, "old")
        open_task(net, "new", 1)
        x, y = easy_task(net.example_shape[1:], 1)
        net.train()
        net.anneal(0.7)
        run = torch.compile(net, backend="aot_eager") if compiled else net
        F.cross_entropy(run(x, "new"), y).backward()
        found[compiled] = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert found[True].keys() == found[False].keys()
    for name, gradient in found[False].items():
        free = ~net.protected()[name]  # gradients of the others are cleared by the step, where they are computed at all
        torch.testing.assert_close(found[True][name][free], gradient[free], msg=name)


def test_a_task_per_sample_and_two_scales() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    learn(net, "b", 1)
    compiled = torch.compile(net, backend="eager")
    with mode(net, False), torch.no_grad():
        both = ["a", "b"] * (SAMPLES // 2)
        assert torch.equal(compiled(x, both), net(x, both))
    open_task(net, "c", 2)
    net.train()
    answers = []
    for position in (0.1, 0.9):
        net.anneal(position)
        torch.manual_seed(0)
        answers.append(compiled(x, "c"))
    assert not torch.equal(*answers), "the scale of the first call was compiled in"


def test_export_follows_one_task() -> None:
    net = attach("conv-bn")
    x, _ = learn(net, "a")
    with mode(net, False):
        exported = torch.export.export(net, (x, "a")).module()
    assert torch.equal(exported(x, "a"), logits(net, x, "a"))


class Broken(nn.Module):
    """A dense layer, a place where the compiler has to stop, and another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        torch._dynamo.graph_break()
        return self.last(h).relu()


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.memory = nn.Linear(6, 8), nn.LSTM(8, 16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(self.first(x).relu().unflatten(-1, (2, 4)).repeat(1, 1, 2))[0].mean(1)


class Attentive(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(8, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).unflatten(-1, (2, 8))
        return self.attention(h, h, h, need_weights=False)[0].flatten(1)


@pytest.mark.parametrize("heads", [4, 1])
def test_heads_of_attention_are_gated_within_the_graph(heads: int, counters: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Attentive(heads), torch.zeros(2, 6))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x, y = easy_task((6,), 0)
    for number in range(4):
        task = f"task {number}"
        open_task(net, task, number)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(task), lr=0.05))
        net.train()
        for step in range(3):
            net.anneal(progress(step))
            optimizer.zero_grad()
            F.cross_entropy(compiled(x, task), y).backward()
            optimizer.step()
        net.consolidate(task)
        with mode(net, False), torch.no_grad():
            for earlier in net.task_names:
                assert torch.equal(compiled(x, earlier), net(x, earlier))
    assert graphs(counters) == 2, "one in training and one in evaluation"
    assert not counters["graph_break"]
    names = [f"task {number % 4}" for number in range(SAMPLES)]
    with mode(net, False), torch.no_grad():
        torch.testing.assert_close(torch.compile(net, backend="eager")(x, names), net(x, names))


@pytest.mark.parametrize("build", [Broken, Sequence])
def test_tasks_stay_active_where_a_graph_breaks(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = HATNetwork(build(), torch.zeros(2, 6))
    for number, task in enumerate(("a", "b")):
        learn(net, task, number)
    x = torch.randn(4, 6)
    expected = {task: logits(net, x, task) for task in ("a", "b")}
    compiled = torch.compile(net, backend="eager")
    net.eval()
    with torch.no_grad():
        plain = net.backbone(x)
        for task, kept in expected.items():
            assert torch.equal(compiled(x, task), kept)
            assert not torch.equal(net.tasks.named(task).head(plain), kept)


@pytest.mark.parametrize("source", [Embedding(), Scores(0.5)], ids=lambda source: source.kind)
def test_masks_of_weights_are_computed_as_without(source: MaskSource, counters: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = WeightMaskedNetwork(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), torch.zeros(2, 6), source=source)
    compiled = torch.compile(net, backend="eager")
    x, y = easy_task((6,), 0)
    promised: dict[str, Tensor] = {}
    for number in range(10):
        task = f"task {number}"
        net.add_task(task, 3)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(task), lr=0.05))
        net.train()
        for step in range(10):  # at as many scales
            net.anneal(progress(step))
            optimizer.zero_grad()
            (F.cross_entropy(compiled(x, task), y) + net.regularization()).backward()
            optimizer.step()
        net.consolidate(task)
        with mode(net, False), torch.no_grad():
            promised[task] = net(x, task)
            for earlier, kept in promised.items():
                assert torch.equal(compiled(x, earlier), kept), earlier
    assert graphs(counters) == 0, "code of masks, which change with every step and task, was compiled"
