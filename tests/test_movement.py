"""State that is no parameter: every task's own where it is a buffer, refused or harmless where it is an attribute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, UnsupportedError, WeightMaskedNetwork
from helpers import logits

KINDS = [HATNetwork, WeightMaskedNetwork]


class Stateful(nn.Module):
    """Two layers, and some state that a forward pass moves."""

    def __init__(self, state: str) -> None:
        super().__init__()
        self.first, self.second, self.state = nn.Linear(6, 20), nn.Linear(20, 12), state
        self.query = nn.Parameter(torch.randn(1, 20))
        self.kept: Any = None
        self.table: dict[int, Tensor] = {}
        self.calls, self.seen = 0, []
        self.plain = torch.zeros(20)
        self.register_buffer("mean", torch.zeros(20))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if self.training:
            new = h.detach().mean(0)
            match self.state:
                case "buffer in place":
                    self.mean.lerp_(new, 0.1)
                case "buffer replaced":
                    self.mean = 0.9 * self.mean + 0.1 * new
                case "attribute":
                    self.plain = 0.9 * self.plain + 0.1 * new
                case "attribute in place":
                    self.plain.lerp_(new, 0.1)
        match self.state:
            case "counter":
                self.calls += 1
            case "counter buffer":
                self.count += 1
            case "list":
                self.seen.append(len(x))
        out = torch.relu(self.second(h - self.mean - self.plain))
        constant = self.second(self.query * 1.0)
        if self.state == "kept in evaluation" and not self.training:
            if self.kept is None:
                self.kept = constant
            return out + self.kept
        if self.state == "table in evaluation" and not self.training:
            return out + self.table.setdefault(0, constant)
        return out + constant


OWN = ["buffer in place", "buffer replaced", "counter buffer"]
HARMLESS = ["counter", "list"]
REFUSED = ["attribute", "attribute in place", "kept in evaluation", "table in evaluation"]


def learn_stateful(net: Any, task: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(task), lr=1e-2))
    net.train()
    for step in range(6):
        x = 3 * torch.randn(16, 6, generator=generator) + seed
        net.anneal(step / 5)
        optimizer.zero_grad()
        F.cross_entropy(net(x, task), torch.arange(16) % 2).backward()
        optimizer.step()
    net.consolidate(task)
    return torch.randn(9, 6, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [*OWN, *HARMLESS])
def test_old_outputs_keep_their_bits(kind: Any, state: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = kind(Stateful(state), torch.zeros(1, 6))
    samples, promised = {}, {}
    for seed, task in enumerate("abc"):
        samples[task] = learn_stateful(net, task, seed)
        promised[task] = logits(net, samples[task], task)
        assert all(torch.equal(logits(net, samples[t], t), kept) for t, kept in promised.items())
    net.check()
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", Stateful(state))
    for each in (net, again):
        assert all(torch.equal(logits(each, samples[t], t), kept) for t, kept in promised.items())
        small = each.extract("a", samples["a"])
        torch.testing.assert_close(small(samples["a"]), promised["a"], rtol=0, atol=1e-5)
    net.forget("b")
    assert torch.equal(logits(net, samples["c"], "c"), promised["c"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_has_its_own_and_moves_no_other(kind: Any) -> None:
    torch.manual_seed(0)
    backbone = Stateful("buffer in place")
    net = kind(backbone, torch.zeros(1, 6))
    learn_stateful(net, "a", 0)
    learn_stateful(net, "b", 5)
    first, second = (state.moving.values[0] for state in net.tasks)
    assert not torch.equal(first, second)
    assert first.any()
    assert not backbone.mean.any(), "the backbone's own is what tasks start from"
    assert any(value is second for value in net.task_buffers("b"))
    before = first.clone()
    net.train()
    net(torch.randn(5, 6), "a")
    assert torch.equal(first, before), "a consolidated task was asked in training mode"


@pytest.mark.parametrize("state", REFUSED)
def test_state_that_outputs_depend_on_is_refused_with_the_remedy(state: str) -> None:
    backbone = Stateful(state)
    with pytest.raises(UnsupportedError, match=r"running the backbone changes .*register_buffer"):
        HATNetwork(backbone, torch.zeros(1, 6))
    assert backbone.kept is None
    assert not backbone.table
    assert not backbone.plain.any()
    backbone.state = "nothing"
    HATNetwork(backbone, torch.zeros(1, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [*OWN, *HARMLESS])
def test_attaching_leaves_the_state_as_it_was(kind: Any, state: str) -> None:
    backbone = Stateful(state)
    kind(backbone, torch.zeros(1, 6))
    assert (backbone.calls, backbone.seen, int(backbone.count)) == (0, [], 0)
    assert not backbone.mean.any()
