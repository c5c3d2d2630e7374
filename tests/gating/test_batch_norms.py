"""Batch norms that tasks share: the first task's, frozen; exact like those of their own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hatrack
from hatrack import BatchNorms, HATNetwork
from hatrack.backbones import ResNet18
from support.helpers import NETS, assert_poison_harmless, learn, logits, mode
from support.marks import slow_unless
from support.zoo import ZOO

BUILDS = {"conv-bn": (NETS["conv-bn"].build, (2, 6, 6)), "resnet": (ZOO["resnet-basic"].build, (2, 8, 8))}


def network(kind: str, batch_norms: BatchNorms) -> HATNetwork:
    torch.manual_seed(0)
    build, shape = BUILDS[kind]
    return HATNetwork(build(), torch.zeros(2, *shape), s_max=100.0, batch_norms=batch_norms)


def norm_parameters(net: HATNetwork) -> list[Tensor]:
    return [value for task in net.tasks for value in task.batch_norms.state_dict().values()]


@pytest.mark.parametrize("batch_norms", BatchNorms)
@pytest.mark.parametrize("kind", slow_unless(lambda kind: kind not in ("resnet", "conv-bn"), BUILDS))
def test_the_law_and_the_poison(kind: str, batch_norms: BatchNorms) -> None:
    net = network(kind, batch_norms)
    samples, promised = {}, {}
    for number in range(3):
        task = f"task {number}"
        samples[task], _ = learn(net, task, number, steps=10)
        promised[task] = logits(net, samples[task], task)
        for earlier, kept in promised.items():
            assert torch.equal(logits(net, samples[earlier], earlier), kept), earlier
    assert_poison_harmless(net, samples)


def test_shared_ones_move_with_the_first_task_and_never_again() -> None:
    net = network("resnet", BatchNorms.SHARED)
    fresh = {name: value.clone() for name, value in net.backbone.state_dict().items() if "norm" in name}
    learn(net, "first")
    after_first = copy.deepcopy(norm_parameters(net))
    assert any(not torch.equal(value, torch.zeros_like(value)) for value in after_first)
    learn(net, "second", 1)
    learn(net, "third", 2)
    assert len(norm_parameters(net)) == len(after_first)
    assert all(torch.equal(value, kept) for value, kept in zip(norm_parameters(net), after_first, strict=True))
    now = net.backbone.state_dict()
    assert all(torch.equal(now[name], value) for name, value in fresh.items()), "the backbone's own are nobody's"


@pytest.mark.slow
def test_later_tasks_do_not_see_their_batch() -> None:
    net = network("resnet", BatchNorms.SHARED)
    x, _ = learn(net, "first")
    net.add_task("second", 2)
    with mode(net, True), torch.no_grad():
        torch.testing.assert_close(net(x, "second")[:2], net(x[:2], "second"))
    own = network("resnet", BatchNorms.PER_TASK)
    learn(own, "first")
    own.add_task("second", 2)
    with mode(own, True), torch.no_grad():
        assert not torch.allclose(own(x, "second")[:2], own(x[:2], "second"), atol=1e-3)


@pytest.mark.slow
def test_the_choice_is_saved_and_copied(tmp_path: Path) -> None:
    net = network("conv-bn", BatchNorms.SHARED)
    x, _ = learn(net, "a")
    learn(net, "b", 1)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", NETS["conv-bn"].build())
    twin = copy.deepcopy(net)
    for other in (again, twin):
        assert other.batch_norms is BatchNorms.SHARED
        assert torch.equal(logits(other, x, "a"), logits(net, x, "a"))
        learn(other, "c", 2)
        assert torch.equal(logits(other, x, "a"), logits(net, x, "a"))


@pytest.mark.slow
def test_a_resnet_without_batch_norm() -> None:
    torch.manual_seed(0)
    backbone = ResNet18((3, 16, 16), width=8, batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert all(m.bias is not None for m in backbone.modules() if isinstance(m, nn.Conv2d))
    net = HATNetwork(backbone, torch.zeros(2, 3, 16, 16))
    x, _ = learn(net, "a", lr=0.01)
    kept = logits(net, x, "a")
    learn(net, "b", 1, lr=0.01)
    assert torch.equal(logits(net, x, "a"), kept)


def test_fresh_statistics_are_means_over_the_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    norm, unreached = model[1], nn.BatchNorm2d(4)
    model.add_module("unreached", nn.ModuleList([unreached]))
    frozen = nn.BatchNorm2d(4).eval()
    batches = torch.randn(3, 16, 2, 6, 6)
    model[:4](batches[0] + 5)
    whole = nn.ModuleList([model, frozen])
    before = unreached.running_mean.clone()
    with hatrack.fresh_statistics(whole):
        for x in batches:
            frozen(model[:4](x))
    with torch.no_grad():
        gave = torch.stack([model[0](x) for x in batches])
    torch.testing.assert_close(norm.running_mean, gave.mean((0, 1, 3, 4)))
    torch.testing.assert_close(norm.running_var, gave.var((1, 3, 4)).mean(0))
    assert norm.momentum == 0.1
    assert norm.training
    assert model[3].training
    assert not frozen.training
    assert torch.equal(frozen.running_mean, torch.zeros(4))
    assert torch.equal(unreached.running_mean, before)


@pytest.mark.slow
def test_fresh_statistics_are_those_of_the_mask_to_come_and_spare_old_tasks() -> None:
    net = network("resnet", BatchNorms.PER_TASK)
    x, _ = learn(net, "old")
    promised = logits(net, x, "old")
    net.add_task("new", 2)
    net.anneal(0.0)  # soft gates: half of every unit, were they used
    with hatrack.fresh_statistics(net):
        answers = net(x, "new")
    assert torch.equal(logits(net, x, "old"), promised)
    net.consolidate("new")
    with mode(net, False), torch.no_grad():
        features = net(x, "new")
    assert (features - answers).abs().max() < 0.2 * answers.abs().max()
    assert torch.equal(logits(net, x, "old"), promised)


def test_fresh_statistics_in_evaluation_mode_are_refused_instead_of_gathering_nothing() -> None:
    net = network("conv-bn", BatchNorms.PER_TASK)
    net.eval()
    with pytest.raises(hatrack.InputError, match=r"call train\(\) on the model first"), hatrack.fresh_statistics(net):
        pass
