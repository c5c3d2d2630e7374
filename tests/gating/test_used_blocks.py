"""Layers compute with the blocks of their weights that a final mask uses: the same results, and old bits hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork
from hatrack.gating import used_blocks
from hatrack.gating.norms import BatchNorms
from hatrack.gating.used_blocks import UsedBlock
from hatrack.units import ParameterUse
from support.helpers import CLASSES, SAMPLES, loss_of, open_task
from support.marks import slow_but
from support.zoo import CHEAP, ZOO

WITHOUT_LAYERS = {"words", "bare-parameters"}
"""Architectures without a dense layer or a convolution that units lie on both sides of."""


@contextmanager
def taking(most: float = 1.0) -> Iterator[list[UsedBlock]]:
    """Take blocks of up to such a share of a weight; gives those that were computed with."""
    taken: list[UsedBlock] = []
    result = UsedBlock.result

    def noted(block: UsedBlock, module: nn.Module, x: Tensor, compute: Callable[..., Tensor]) -> Tensor:
        taken.append(block)
        return result(block, module, x, compute)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(used_blocks, "WORTH", most)
        patch.setattr(UsedBlock, "result", noted)
        yield taken


def gradients(net: HATNetwork, x: Tensor, task: str = "one") -> list[Tensor]:
    """Return logits in training and gradients of all that a task trains, with dropout drawn from one seed."""
    net.train().zero_grad()
    torch.manual_seed(3)
    logits = net(x, task)
    logits.square().mean().backward()
    given = [p.grad for p in net.task_parameters(task) if p.grad is not None]
    return [logits.detach(), *given]


def settled(backbone: nn.Module, x: Tensor, **settings: BatchNorms) -> HATNetwork:
    net = HATNetwork(backbone, x[:2], **settings)
    open_task(net, "one")
    net.settle("one")
    return net


def dense() -> tuple[HATNetwork, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    backbone = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
    return settled(backbone, x), x


@pytest.mark.parametrize("name", slow_but(CHEAP, ZOO))
def test_results_and_gradients_are_those_of_whole_layers(name: str) -> None:
    torch.manual_seed(0)
    architecture = ZOO[name]
    x = architecture.samples(SAMPLES, torch.Generator().manual_seed(1))
    x = x.double() if x.is_floating_point() else x
    net = settled(architecture.build().double(), x)
    twin = copy.deepcopy(net)
    with taking() as taken:
        found = gradients(net, x)
    with taking(0.0) as none:
        expected = gradients(twin, x)
    assert not none
    assert taken or name in WITHOUT_LAYERS
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pictures_keep_their_layout(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 2, 8, 8).to(memory_format=layout)
    backbone = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 2, dilation=2))
    net = settled(nn.Sequential(*backbone, nn.Flatten()).to(memory_format=layout), x)
    twin = copy.deepcopy(net)
    results: list[Tensor] = []
    result = used_blocks._among_zeros

    def seen(values: Tensor, index: Tensor, axis: int, length: int) -> Tensor:
        results.append(result(values, index, axis, length))
        return results[-1]

    with taking() as taken, pytest.MonkeyPatch.context() as patch:
        patch.setattr(used_blocks, "_among_zeros", seen)
        found = gradients(net, x)
    with taking(0.0):
        expected = gradients(twin, x)
    assert len(taken) == 2
    assert [
        each.shape for each in results if len(each) == SAMPLES and not each.is_contiguous(memory_format=layout)
    ] == []
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


class Turned(nn.Module):
    """Dense layers along the channels of pictures, whose memory then looks like that of channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(2, 6, 3), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.third(torch.relu(self.second(torch.relu(self.first(x)).permute(0, 2, 3, 1))))
        features: Tensor = h.mean((1, 2))
        return features


def test_dense_layers_are_given_turned_pictures() -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 2, 8, 8, dtype=torch.float64)
    net = settled(Turned().double(), x)
    twin = copy.deepcopy(net)
    with taking() as taken:
        found = gradients(net, x)
    with taking(0.0):
        expected = gradients(twin, x)
    assert len(taken) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_second_derivatives_are_those_of_whole_layers() -> None:
    net, x = dense()
    net, x = net.double(), x.double().requires_grad_()
    twin = copy.deepcopy(net)

    def second(net: HATNetwork) -> list[Tensor]:
        first = torch.autograd.grad(net.train()(x, "one").square().sum(), x, create_graph=True)[0]
        weights = [net.backbone[0].weight, net.backbone[3].weight]
        return [first, *torch.autograd.grad(first.square().sum(), weights)]

    with taking() as taken:
        found = second(net)
    with taking(0.0):
        expected = second(twin)
    assert taken
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_old_tasks_keep_their_bits_while_blocks_are_trained() -> None:
    torch.manual_seed(0)
    architecture = ZOO["densenet"]
    generator = torch.Generator().manual_seed(1)
    x, y = architecture.samples(SAMPLES, generator), torch.arange(SAMPLES) % CLASSES
    net = HATNetwork(architecture.build(), x[:2])
    promised: dict[str, Tensor] = {}
    with taking() as taken:
        for number, task in enumerate(("one", "two", "three")):
            open_task(net, task, number)
            net.settle(task)
            optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), 5e-3, weight_decay=0.1))
            net.train()
            for _ in range(6):
                optimizer.zero_grad()
                loss_of(net, task, x, y).backward()
                optimizer.step()
            net.consolidate(task)
            promised[task] = net.eval()(x, task).detach()
    assert taken
    for task, logits in promised.items():
        assert torch.equal(net(x, task), logits)


def test_answers_have_the_bits_that_stay_once_the_task_is_consolidated() -> None:
    net, x = dense()
    with taking() as taken, torch.no_grad():
        before = net.eval()(x, "one")
        assert not taken
        with net.validating():
            torch.testing.assert_close(net(x, "one"), before)
        assert len(taken) == 2
        assert torch.equal(net(x, "one"), before)
        net.consolidate("one")
        with net.validating():
            assert torch.equal(net(x, "one"), before)
        assert len(taken) == 2


@pytest.mark.parametrize("is_settled", [False, True])
def test_validation_in_inference_mode_spoils_no_training(is_settled: bool) -> None:
    net, x = dense()
    if not is_settled:
        net.forget("one")
        open_task(net, "one")
    with taking() as taken:
        with torch.inference_mode(), net.eval().validating():
            net(x, "one")
        if not is_settled:
            net.settle("one")
        gradients(net, x)
    assert len(taken) == 4


def test_the_mask_of_the_moment_is_validated() -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    net = HATNetwork(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)), x[:2])
    open_task(net, "one")
    net.eval()
    with taking() as taken, torch.no_grad():
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            net.tasks[0].embedding.copy_(torch.randn(net.units.num_units, generator=generator))
            with net.validating():
                found = net(x, "one")
            torch.testing.assert_close(found, net(x, "one"))
    assert len({tuple(block.rows.tolist()) for block in taken}) > 1


def test_other_threads_do_not_validate() -> None:
    net, x = dense()
    net.eval()
    with taking() as taken, net.validating(), ThreadPoolExecutor(1) as pool:
        pool.submit(net, x, "one").result()
        assert not taken
        net(x, "one")
    assert taken


def test_units_that_grow_and_masks_in_copies_are_their_own() -> None:
    net, x = dense()
    net.consolidate("one")
    with taking() as taken:
        open_task(net, "two", 1)
        net.settle("two")
        gradients(net, x, "two")
        first = taken[-1]
        twin = copy.deepcopy(net)
        net.consolidate("two")
        net.grow({group.name: 3 for group in net.units.groups})
        open_task(net, "three", 2)
        net.settle("three")
        gradients(net, x, "three")
        assert taken[-1] is not first
        assert int(taken[-1].rows.max()) < 15
        count = len(taken)
        gradients(twin, x, "two")
        assert len(taken) == count + 2
        assert torch.equal(taken[-1].rows, first.rows)


def test_hooks_of_others_see_whole_layers() -> None:
    net, x = dense()
    seen: list[Tensor] = []
    net.backbone[0].register_forward_hook(lambda module, given, result: seen.append(result.detach()))
    with taking() as taken:
        gradients(net, x)
    assert len(taken) == 1  # the other layer's
    assert torch.equal(seen[0], F.linear(x, net.backbone[0].weight, net.backbone[0].bias))


def test_norms_that_are_shared_learn_from_all_units() -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    net = settled(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU()), x, batch_norms=BatchNorms.SHARED)
    with taking() as taken:
        gradients(net, x)
        assert not taken
        with net.eval().validating(), torch.no_grad():
            net(x, "one")
        assert taken


def test_mixed_precision_and_compilers_have_whole_layers() -> None:
    net, x = dense()
    with taking() as taken:
        with torch.autocast("cpu", torch.bfloat16):
            net.train()(x, "one")
        assert not taken


def test_no_block_is_taken_where_nothing_is_used_or_almost_all() -> None:
    net, _ = dense()
    weight = net.backbone[3].weight
    uses, of_bias = net.units.uses["backbone.3.weight"], net.units.uses["backbone.3.bias"]
    none = torch.zeros(net.units.num_units, dtype=torch.bool)
    assert UsedBlock.under(none, weight, uses, of_bias) is None
    assert UsedBlock.under(~none, weight, uses, of_bias) is None


def test_a_unit_that_reads_nothing_keeps_its_bias() -> None:
    net, _ = dense()
    first, second = net.units.groups
    mask = torch.zeros(net.units.num_units, dtype=torch.bool)
    mask[[first.start, second.start, second.start + 1]] = True
    uses, of_bias = net.units.uses["backbone.3.weight"], net.units.uses["backbone.3.bias"]
    one = tuple(ParameterUse((*use.sides, torch.full((12, 1), second.start))) for use in uses)
    block = UsedBlock.under(mask, net.backbone[3].weight, one, of_bias)
    assert block is not None
    assert block.rows.tolist() == [0, 1]
    assert block.columns.tolist() == [0]
