from __future__ import annotations

import pytest
import torch
from torch import nn

from hatrack import HATNetwork
from hatrack.protection.capacity import _shared_by_sides, common_entries
from hatrack.protection.frozen import attention_on_entries
from hatrack.units import Role
from support.helpers import NETS, attach, learn


def test_by_hand() -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 2))
    assert net.capacity().weights == 0.0
    assert net.capacity().units == 0.0
    assert net.reuse().shape == (0, 0)
    for name, values in (("a", [1, 1, -1, -1, 1, -1]), ("b", [-1, 1, 1, -1, 1, -1])):
        net.add_task(name, 2)
        with torch.no_grad():
            net.tasks[-1].embedding.copy_(torch.tensor(values))
        net.consolidate(name)
    capacity = net.capacity()
    assert capacity.groups == {"0": 0.75, "2": 0.5}
    assert capacity.units == pytest.approx(4 / 6)
    # weights: 3·2 of 4·2, biases 3 of 4; 1·3 of 2·4, biases 1 of 2
    assert capacity.weights == pytest.approx((6 + 3 + 3 + 1) / (8 + 4 + 8 + 2))
    # weights of a: 2·2 + 1·2 = 6; those that b uses, too: 1·2 + 1·1 = 3
    torch.testing.assert_close(net.reuse(), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    assert str(capacity) == "units 67% (0 75%, 2 50%), weights 59%"
    assert {name: mask.tolist() for name, mask in net.masks("a").items()} == {
        "0": [True, True, False, False],
        "2": [True, False],
    }


@pytest.mark.parametrize("kind", NETS)
def test_against_loops(kind: str) -> None:
    net = attach(kind)
    for index in range(3):
        learn(net, str(index), seed=index, steps=2)
    graph = net.units
    masks = [torch.cat([*net.masks(str(i)).values(), torch.ones(1, dtype=torch.bool)]) for i in range(3)]
    used = torch.stack(masks).any(0)
    capacity = net.capacity()
    for group in graph.groups:
        assert capacity.groups[group.name] == pytest.approx(sum(used[group.span].tolist()) / group.size)
    assert capacity.units == pytest.approx(float(used[:-1].float().mean()))
    held = entries = 0
    protected = net.protected()
    for name, _ in net.backbone.named_parameters(prefix="backbone"):
        if graph.roles[name].value != "per-task":
            held, entries = held + int(protected[name].sum()), entries + protected[name].numel()
    assert capacity.weights == pytest.approx(held / entries)

    def weights(mask: torch.Tensor) -> torch.Tensor:
        """Return the entries of mixing weights that a task uses, one by one."""
        found = []
        for name, uses in graph.uses.items():
            if graph.roles[name].value == "mixing":
                entry = torch.zeros(graph.shapes[name], dtype=torch.bool)
                for use in uses:
                    sides = [side.expand(graph.shapes[name]) for side in use.sides]
                    entry |= torch.stack([mask[side] for side in sides]).all(0)
                found.append(entry.flatten())
        return torch.cat(found)

    used_by = [weights(mask) for mask in masks]
    for i in range(3):
        for j in range(3):
            share = int((used_by[i] & used_by[j]).sum()) / int(used_by[i].sum())
            assert net.reuse()[i, j].item() == pytest.approx(share)


def test_soft_masks_count_what_is_exactly_one() -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), torch.zeros(1, 2), hard=False, s_max=10)
    net.add_task("a", 2)
    with torch.no_grad():
        net.tasks[-1].embedding.copy_(torch.tensor([6.0, 0.1, -0.1, -6.0]))
    net.consolidate("a")
    assert net.capacity().units == 0.25
    assert net.reuse().tolist() == [[1.0]]


@pytest.mark.parametrize("at_once", [1, 20, 1 << 24])
def test_common_entries_are_those_of_every_pair(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatrack.protection.capacity._ENTRIES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(7, 5, generator=generator) < share for share in (0.1, 0.5, 0.9, 1.1)]
    naive = [[int((one & other).sum()) for other in masks] for one in masks]
    assert common_entries(masks).tolist() == naive
    assert common_entries([]).shape == (0, 0)


@pytest.mark.parametrize("kind", NETS)
def test_weights_that_two_tasks_share_are_counted_by_their_sides(kind: str) -> None:
    net = attach(kind)
    on = torch.rand(5, net.units.num_units + 1, generator=torch.Generator().manual_seed(0)) < 0.6
    on[:, -1] = True
    counted = 0
    for name, uses in net.units.uses.items():
        if net.units.roles[name] is Role.MIXING:
            quickly = _shared_by_sides(uses, on, net.units.shapes[name])
            if quickly is not None:
                counted += 1
                entries = [attention_on_entries(uses, mask, net.units.shapes[name]) for mask in on]
                assert torch.equal(quickly, common_entries(entries).double()), name
    assert counted
