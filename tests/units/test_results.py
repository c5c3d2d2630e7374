"""Functions that mix units of a layer in the same forward: these are gated at the layer's result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, UnsupportedError
from hatrack.units import OUTPUT
from support.helpers import assert_poison_harmless, learn, logits

WIDTH = 12
Function = Callable[[Tensor, Tensor], Tensor]

FUNCTIONS: dict[str, Function] = {
    "normalize": lambda g, h: F.normalize(g, dim=-1) + h,
    "vector_norm": lambda g, h: g / torch.linalg.vector_norm(g, dim=-1, keepdim=True) + h,
    "mean": lambda g, h: h * g.mean(-1, keepdim=True),
    "softmax of what is computed": lambda g, h: (g.relu() * 2).softmax(-1) * h,
    "sum of products": lambda g, h: (g * h).sum(-1, keepdim=True) + h,
    "layer_norm": lambda g, h: F.layer_norm(g, (WIDTH,)),
    "fft": lambda g, h: torch.fft.fft(g, dim=-1).real + h,
    "sort": lambda g, h: g.sort(-1)[0],
}


class Mixed(nn.Module):
    """A function of the results of two layers, and a layer that reads it."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 10)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.a(x), self.b(x))).relu()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_units_are_kept_apart_and_the_law_holds(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixed(FUNCTIONS[name]), torch.zeros(2, 6))
    assert all(group.size in (WIDTH, 10) for group in net.units.groups), str(net.units)
    assert ("a", OUTPUT) in [(reader.module, reader.argument) for reader in net.units.readers]
    samples, promised = {}, {}
    for number in range(3):
        task = f"task {number}"
        samples[task], _ = learn(net, task, number)
        promised[task] = logits(net, samples[task], task)
        for earlier, kept in promised.items():
            assert torch.equal(logits(net, samples[earlier], earlier), kept), earlier
    assert_poison_harmless(net, samples)
    x = samples["task 0"]
    torch.testing.assert_close(net.extract("task 0", x)(x), logits(net, x, "task 0"), rtol=1e-5, atol=1e-5)


def test_detaching_takes_the_gates_off() -> None:
    backbone = Mixed(FUNCTIONS["normalize"]).eval()
    x = torch.randn(3, 6)
    with torch.no_grad():
        plain = backbone(x)
        net = HATNetwork(backbone, x)
        assert backbone.a._forward_hooks
        net.add_task("a", 2)
        net.tasks[0].embedding.fill_(1.0)
        assert torch.equal(net.eval()(x, "a"), net.tasks[0].head(plain))
        net.detach()
        assert not backbone.a._forward_hooks
        assert torch.equal(backbone(x), plain)


def test_a_layer_that_is_called_twice_has_one_gate_for_both_results() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.normalize(self.a(x), dim=-1) + self.a(x.flip(-1))).relu()

    torch.manual_seed(0)
    net = HATNetwork(Twice(), torch.zeros(2, 6))
    assert [group.size for group in net.units.groups] == [WIDTH, 10]
    samples = {}
    for number, task in enumerate(("a", "b")):
        samples[task], _ = learn(net, task, number)
    assert_poison_harmless(net, samples)


def test_a_module_of_the_users_own_is_gated_at_its_result_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = Own(), nn.Linear(WIDTH, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x).softmax(-1)).relu()

    torch.manual_seed(0)
    net = HATNetwork(Model(), torch.zeros(2, 6))
    assert [group.size for group in net.units.groups] == [WIDTH, 10]
    samples = {}
    for number, task in enumerate(("a", "b")):
        samples[task], _ = learn(net, task, number)
    assert_poison_harmless(net, samples)


def test_a_module_that_returns_what_it_is_given_is_no_gate_for_it() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.same, self.shift = nn.Linear(6, WIDTH), Same(), nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) + self.shift
            return self.same(h) * h.mean(-1, keepdim=True)

    with pytest.raises(UnsupportedError, match="mean: it mixes several units where no gate can stand"):
        HATNetwork(Model(), torch.zeros(2, 6))
