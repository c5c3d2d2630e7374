from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hatrack.backbones import AlexNet, ResNet18, ViT
from hatrack.errors import InputError
from hatrack.masks import Magnitude
from hatrack.methods import Setup
from hatrack.methods.packnet import PackNet, PackNetSettings
from hatrack.streams import Task
from support.toys import (
    EVERY_OPTIMIZER,
    KINDS,
    assert_goes_on_as_without_interruption,
    assert_nothing_forgotten,
    learn,
    logits,
    make,
    tasks,
)
from support.unwatched import without_spots


@KINDS
@EVERY_OPTIMIZER
def test_earlier_tasks_keep_every_bit(kind: str, optimizer: str) -> None:
    assert_nothing_forgotten(make("packnet", kind), kind, optimizer)


@KINDS
def test_it_goes_on_after_loading_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption("packnet", kind, tmp_path)
    assert all(torch.equal(after.owners[name], owner) for name, owner in straight.owners.items())


def test_pruning_by_hand() -> None:
    weight = torch.tensor([[0.5, -3.0, 0.1], [2.0, -0.2, 1.0]])
    held = torch.tensor([[False, True, False], [False, False, False]])
    second = Magnitude(prune=0.6).final(
        None, weight, held
    )  # five are free: three stay so, and the two largest are kept
    assert second.tolist() == [[False, True, False], [True, False, True]]
    third = Magnitude(prune=0.0).final(None, weight, second)
    assert third.all()
    assert Magnitude(prune=0.5).final(None, weight, third).all()  # nothing is left


def test_of_equal_weights_the_first_are_kept() -> None:
    kept = Magnitude(prune_first=0.5).final(None, torch.ones(6), torch.zeros(6, dtype=torch.bool))
    assert kept.tolist() == [True] * 3 + [False] * 3


@pytest.mark.slow
def test_every_layer_frees_the_shares_that_were_asked_for() -> None:
    method = make("packnet", "conv", prune_first=0.5, prune=0.75)
    learn(method, tasks("conv"), epochs=2)
    assert set(method.owners) == {"0.weight", "4.weight", "9.weight"}
    for owner in method.owners.values():
        free = size = owner.numel()
        for task, share in ((1, 0.5), (2, 0.75), (3, 0.75)):
            left = round(share * free)
            assert int((owner == task).sum()) == free - left
            free = left
        assert 0 < free < size


@pytest.mark.slow
def test_capacity_counts_what_no_later_task_may_change() -> None:
    method, seen = make("packnet", "conv", prune_first=0.5, prune=0.75), tasks("conv")
    backbone = method.network.backbone
    assert method.capacity().weights == 0.0
    for index, share in enumerate((0.5, 0.625, 0.71875)):  # of what is free a quarter is taken each time
        learn(method, seen[: index + 1], first=index, epochs=2)
        capacity = method.capacity()
        assert capacity.units is None
        for name, owner in method.owners.items():
            assert (
                capacity.groups[name] == float((owner != 0).float().mean()) == pytest.approx(share, abs=2 / len(owner))
            )
        free = sum(int((owner == 0).sum()) for owner in method.owners.values())
        assert capacity.weights == pytest.approx(1 - free / sum(owner.numel() for owner in method.owners.values()))
    before = [p.clone() for p in backbone.parameters()]
    learn(method, [*seen, *tasks("conv", 4)[3:]], first=3, epochs=2)
    moved = sum(int((p != old).sum()) for p, old in zip(backbone.parameters(), before, strict=True))
    assert 0 < moved <= free


def test_what_is_free_is_zero_and_what_is_no_weight_is_the_first_tasks() -> None:
    method, seen = make("packnet", "conv"), tasks("conv", 2)
    learn(method, seen[:1])
    backbone, first = method.network.backbone, method.network.tasks[0]
    fixed = {name: value.clone() for name, value in first.state_dict().items()}
    assert len(first.norms) == 2
    assert len(first.copies) == 2
    learn(method, seen, first=1, weight_decay=0.1, momentum=0.9)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in fixed.items())
    assert not method.network.tasks[1].norms
    assert not method.network.tasks[1].copies
    for name, owner in method.owners.items():
        weight = backbone.get_parameter(name)
        assert bool((weight[owner == 0] == 0).all())
        assert bool((weight[owner == 2] != 0).any())


def test_a_later_task_uses_the_weights_of_an_earlier_one_but_not_the_other_way_round() -> None:
    method, seen = make("packnet"), tasks(count=2)
    learn(method, seen)
    first, second = (logits(method, task) for task in seen)
    for name, owner in method.owners.items():  # by way of .data: a count of changes would have them put back
        method.network.backbone.get_parameter(name).data[owner == 2] = float("nan")
    with without_spots():
        assert torch.equal(logits(method, seen[0]), first)
        assert not torch.equal(logits(method, seen[1]), second)


@pytest.mark.parametrize(("epochs", "phases"), [(30, (20, 10)), (200, (133, 67)), (2, (1, 1)), (1, (1, 0))])
def test_a_third_of_the_epochs_retrains(epochs: int, phases: tuple[int, int]) -> None:
    assert tuple(make("packnet").phases(epochs)) == phases


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda: AlexNet((3, 20, 20), width=1 / 32),
        lambda: ResNet18((3, 20, 20), width=2),
        lambda: ViT((3, 20, 20), width=12, depth=1, heads=2),
    ],
)
def test_larger_networks(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    built = build()
    state = {name: value.clone() for name, value in built.state_dict().items()}

    def again() -> nn.Module:
        network = build()
        network.load_state_dict(state)
        return network

    method = PackNet(Setup(again, (3, 20, 20), 0, torch.device("cpu")), PackNetSettings())
    seen = []
    for number in range(2):
        x, y = torch.randn(24, 3, 20, 20), torch.arange(24) % 2
        seen.append(Task.from_tensors(f"t{number}", x, y, x, y))
    learn(method, seen[:1], epochs=2, momentum=0.9)
    promised = logits(method, seen[0])
    learn(method, seen, first=1, epochs=2, momentum=0.9, weight_decay=0.1)
    assert torch.equal(logits(method, seen[0]), promised)
    assert not torch.equal(logits(method, seen[1]), promised)


def test_wrong_settings() -> None:
    with pytest.raises(InputError, match="prune must be at least 0 and below 1"):
        make("packnet", prune=1.0)
