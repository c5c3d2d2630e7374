"""Copies keep the law, and are independent: a deep copy, a state_dict in a fresh network, a saved file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hatrack
from hatrack import HATNetwork
from support.helpers import CLASSES, assert_poison_harmless, logits, open_task, train
from support.marks import in_turn, slow_unless
from support.zoo import QUICK, ZOO

SAMPLES = 6


def fresh(name: str) -> HATNetwork:
    architecture = ZOO[name]
    return HATNetwork(architecture.build(), architecture.samples(2, torch.Generator().manual_seed(0)))


def learn(net: HATNetwork, name: str, task: str, seed: int) -> Tensor:
    """Learn a task and consolidate it; returns its samples."""
    x, y = ZOO[name].samples(SAMPLES, torch.Generator().manual_seed(seed)), torch.arange(SAMPLES) % CLASSES
    open_task(net, task, seed)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=5e-3, weight_decay=0.1))
    train(net, task, x, y, optimizer, steps=3)
    net.consolidate(task)
    return x


def deep_copy(net: HATNetwork, name: str, folder: Path) -> HATNetwork:
    return copy.deepcopy(net)


def by_state_dict(net: HATNetwork, name: str, folder: Path) -> HATNetwork:
    again = fresh(name)
    for task in net.task_names:
        again.add_task(task, CLASSES)
    again.load_state_dict(net.state_dict())
    return again


def by_file(net: HATNetwork, name: str, folder: Path) -> HATNetwork:
    net.save(folder / "net.hat")
    return hatrack.load(folder / "net.hat", ZOO[name].build())


WAYS: dict[str, Callable[[HATNetwork, str, Path], HATNetwork]] = {
    "deepcopy": deep_copy,
    "state_dict": by_state_dict,
    "file": by_file,
}


def bits(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if isinstance(value, Tensor)}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(("name", "way"), slow_unless(lambda name, way: name in QUICK, in_turn(ZOO, tuple(WAYS))))
def test_original_and_copy_learn_on_without_forgetting_or_disturbing_each_other(
    name: str, way: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = fresh(name)
    samples = {"old": learn(net, name, "old", 0)}
    promised = logits(net, samples["old"], "old")
    twin = WAYS[way](net, name, tmp_path)
    assert_same(bits(twin), bits(net))
    assert torch.equal(logits(twin, samples["old"], "old"), promised)
    assert all(torch.equal(held, twin.protected()[key]) for key, held in net.protected().items())

    before = bits(net)
    of_twin = samples | {"of the copy": learn(twin, name, "of the copy", 1)}
    assert_same(bits(net), before)
    after = bits(twin)
    of_net = samples | {"of the original": learn(net, name, "of the original", 2)}
    assert_same(bits(twin), after)

    for each, tasks in ((net, of_net), (twin, of_twin)):
        assert torch.equal(logits(each, samples["old"], "old"), promised)
        each.check()
        assert_poison_harmless(each, tasks)


@pytest.mark.parametrize("name", ["resnet-basic", "vit-module", "bare-parameters"])
def test_a_copy_made_in_the_middle_of_a_task_goes_on_alone(name: str) -> None:
    torch.manual_seed(0)
    net = fresh(name)
    old = learn(net, name, "old", 0)
    promised = logits(net, old, "old")
    open_task(net, "new", 1)
    x, y = ZOO[name].samples(SAMPLES, torch.Generator().manual_seed(1)), torch.arange(SAMPLES) % CLASSES
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("new"), lr=0.05, momentum=0.9))
    train(net, "new", x, y, optimizer, steps=2)
    twin = copy.deepcopy(net)
    before = bits(net)
    its_own = twin.protect(torch.optim.SGD(twin.task_parameters("new"), lr=0.05, momentum=0.9))
    train(twin, "new", x, y, its_own, steps=2)
    twin.consolidate("new")
    assert_same(bits(net), before)
    train(net, "new", x, y, optimizer, steps=2)
    net.consolidate("new")
    assert all(torch.equal(logits(each, old, "old"), promised) for each in (net, twin))


@pytest.mark.parametrize("name", ["resnet-basic", "vit-by-hand"])
def test_a_copied_optimizer_is_not_protected_and_the_copy_says_so(name: str) -> None:
    """Torch copies an optimizer without its hooks; what it moves is put back, with a warning."""
    torch.manual_seed(0)
    net = fresh(name)
    old = learn(net, name, "old", 0)
    promised = logits(net, old, "old")
    open_task(net, "new", 1)
    x, y = ZOO[name].samples(SAMPLES, torch.Generator().manual_seed(1)), torch.arange(SAMPLES) % CLASSES
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("new"), lr=0.05, weight_decay=0.1))
    twin, its_own = copy.deepcopy((net, optimizer))
    train(twin, "new", x, y, its_own, steps=2)
    with pytest.raises(hatrack.GuaranteeError, match="protected entries have moved"):
        twin.check()
    with pytest.warns(UserWarning, match="something other than a step of a protected optimizer"):
        twin.consolidate("new")
    assert torch.equal(logits(twin, old, "old"), promised)
    twin.check()


def test_an_optimizer_of_the_original_that_serves_a_copy_too_must_and_can_be_protected_for_both() -> None:
    torch.manual_seed(0)
    net = fresh("called-twice")
    old = learn(net, "called-twice", "old", 0)
    promised = logits(net, old, "old")
    open_task(net, "new", 1)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("new"), lr=0.05, weight_decay=0.1))
    twin = copy.deepcopy(net)
    optimizer.add_param_group({"params": twin.task_parameters("new")})
    twin.protect(optimizer)
    x, y = ZOO["called-twice"].samples(SAMPLES, torch.Generator().manual_seed(1)), torch.arange(SAMPLES) % CLASSES
    for each in (net, twin):
        train(each, "new", x, y, optimizer, steps=2)
    for each in (net, twin):
        each.consolidate("new")
        assert torch.equal(logits(each, old, "old"), promised)


@pytest.mark.parametrize("name", ["resnet-basic", "vit-module"])
def test_pickling_a_whole_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = fresh(name)
    old = learn(net, name, "old", 0)
    torch.save(net, tmp_path / "net.pt")
    twin = torch.load(tmp_path / "net.pt", weights_only=False)
    learn(twin, name, "new", 1)
    assert torch.equal(logits(twin, old, "old"), logits(net, old, "old"))
