"""Layers compute with the blocks of their weights that a final mask uses: the same results, and old bits hold."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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


LAYOUTS = [torch.contiguous_format, torch.channels_last, torch.channels_last_3d]


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_keep_their_layout_and_may_be_changed_in_place(layout: torch.memory_format, share: float) -> None:
    torch.manual_seed(0)
    flat = layout is not torch.channels_last_3d
    kind = nn.Conv2d if flat else nn.Conv3d
    x = torch.randn(SAMPLES, 2, *(8,) * (2 if flat else 3), dtype=torch.float64).to(memory_format=layout)
    backbone = nn.Sequential(kind(2, 6, 3, padding=1, stride=2), nn.ReLU(inplace=True), kind(6, 8, 2, dilation=2))
    backbone = nn.Sequential(*backbone, nn.ReLU(inplace=True), nn.Flatten()).double().to(memory_format=layout)
    net = HATNetwork(backbone, x[:2])
    open_task(net, "one", share=share)
    net.settle("one")
    twin = copy.deepcopy(net)
    with taking() as taken:
        found = gradients(net, x)
        result = taken[0].result(net.backbone[0], x, partial(_convolution, stride=2, padding=1))
    with taking(0.0):
        expected = gradients(twin, x)
    assert len(taken) == 3
    whole = net.backbone[0]._conv_forward(x, net.backbone[0].weight, net.backbone[0].bias)
    assert result.stride() == whole.stride()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, **settings: int) -> Tensor:
    convolution = F.conv2d if x.dim() == 4 else F.conv3d
    return convolution(x, weight, bias, **settings)


class Along(nn.Module):
    """A convolution that goes along the units of a dense layer, none of which is 0 where its input is."""

    def __init__(self, outputs: int, channels: int, window: tuple[int, ...]) -> None:
        super().__init__()
        kind = nn.Conv1d if len(window) == 1 else nn.Conv2d
        self.first, self.along = nn.Linear(6, 12), kind(channels, outputs, window)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.first(x))
        if self.along.weight.dim() == 4:
            return self.along(h.view(len(h), 1, -1, 12).expand(-1, self.channels, 8, -1)).flatten(2).mean(2)
        return self.along(h.unsqueeze(1).expand(-1, self.channels, -1)).mean(2)


@pytest.mark.parametrize(("channels", "window"), [(1, (3,)), (12, (3,)), (1, (3, 3)), (1, (8, 1)), (12, (8, 1))])
def test_convolutions_along_units_are_given_gated_inputs(channels: int, window: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6, dtype=torch.float64)
    net = settled(Along(8, channels, window).double(), x)
    twin = copy.deepcopy(net)
    with taking():
        found = gradients(net, x)
    with taking(0.0):
        expected = gradients(twin, x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


class Singular(nn.Module):
    """Functions of single units that have no slope at 0, before parameters of these units."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(6, 12), nn.Linear(12, 8), kind
        self.scale, self.shift = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h / h.abs() if self.kind == "sign" else h.abs().log()
        return self.second(torch.relu(h * self.scale + self.shift))


@pytest.mark.parametrize("kind", ["sign", "logarithm"])
def test_units_that_are_off_make_no_gradient_of_no_number(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6, dtype=torch.float64)
    net = settled(Singular(kind).double(), x)
    twin = copy.deepcopy(net)
    with taking() as taken:
        found = gradients(net, x)
    with taking(0.0):
        expected = gradients(twin, x)
    assert taken
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


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
    shape = net.backbone[3].weight.shape
    uses, of_bias = net.units.uses["backbone.3.weight"], net.units.uses["backbone.3.bias"]
    none = torch.zeros(net.units.num_units, dtype=torch.bool)
    assert UsedBlock.under(none, shape, uses, of_bias) is None
    assert UsedBlock.under(~none, shape, uses, of_bias) is None


def test_a_unit_that_reads_nothing_keeps_its_bias() -> None:
    net, _ = dense()
    first, second = net.units.groups
    mask = torch.zeros(net.units.num_units, dtype=torch.bool)
    mask[[first.start, second.start, second.start + 1]] = True
    uses, of_bias = net.units.uses["backbone.3.weight"], net.units.uses["backbone.3.bias"]
    one = tuple(ParameterUse((*use.sides, torch.full((12, 1), second.start))) for use in uses)
    block = UsedBlock.under(mask, net.backbone[3].weight.shape, one, of_bias)
    assert block is not None
    assert block.rows.tolist() == [0, 1]
    assert block.columns.tolist() == [0]


class Ask(nn.Module):
    def __init__(self, net: HATNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x, "one")
        return logits


def test_transforms_tracers_and_other_weights_are_computed_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    net = settled(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)), x)
    others = {name: value.detach().clone() for name, value in net.named_parameters()}

    def cost(weights: dict[str, Tensor]) -> Tensor:
        logits: Tensor = functional_call(net, weights, (x, "one"))
        return logits.square().sum()

    with taking() as taken:
        net.train()
        first = functional_call(net, others, (x, "one"))
        by_function = torch.func.grad(cost)(others)
        with net.eval().validating(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, which says what it cannot follow, and is deprecated
            traced = torch.jit.trace(Ask(net), x, check_trace=False)
        assert not taken
        torch.testing.assert_close(net.train()(x, "one"), first, rtol=1e-4, atol=1e-5)
        assert len(taken) == 2
    net.zero_grad()
    net(x, "one").square().sum().backward()
    torch.testing.assert_close(by_function["backbone.0.weight"], net.backbone[0].weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(traced(x), net.eval()(x, "one"))


@pytest.mark.parametrize("pictures", [False, True])
def test_gradients_may_be_asked_for_in_batches(pictures: bool) -> None:
    torch.manual_seed(0)
    net, x = dense()
    if pictures:
        x = torch.randn(SAMPLES, 2, 6, 6).to(memory_format=torch.channels_last)
        backbone = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 2), nn.Flatten())
        net = settled(backbone.to(memory_format=torch.channels_last), x)
    weight = net.backbone[0].weight
    with taking() as taken:
        logits = net.train()(x, "one")
    assert taken
    wanted = torch.eye(CLASSES)[:, None, :].expand(CLASSES, SAMPLES, CLASSES)
    (found,) = torch.autograd.grad(logits, [weight], wanted, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(logits, [weight], each, retain_graph=True)[0] for each in wanted]
    torch.testing.assert_close(found, torch.stack(one_by_one))


def test_parts_that_are_computed_again_are_computed_whole() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 12)

        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.first, x, use_reentrant=False)
            features: Tensor = self.second(torch.relu(h))
            return features

    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    net = settled(Again(), x)
    twin = copy.deepcopy(net)
    with taking():
        found = gradients(net, x)
        again = checkpoint(twin.train(), x, "one", use_reentrant=False)
        twin.eval()
        again.square().mean().backward()
    given = [p.grad for p in twin.task_parameters("one") if p.grad is not None]
    for one, other in zip(found[1:], given, strict=True):
        torch.testing.assert_close(one, other)


def test_settling_is_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    net = HATNetwork(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)), x[:2])
    open_task(net, "one")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(net.protection.hooks, "remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            net.settle("one")
    assert not net.is_settled("one")
    net.settle("one")
    assert net.is_settled("one")


def test_nothing_of_a_mask_stays_that_is_consolidated_or_forgotten() -> None:
    for end in (HATNetwork.consolidate, HATNetwork.forget):
        net, x = dense()
        with taking() as taken:
            gradients(net, x)
        alive = [weakref.ref(block) for block in taken]
        del taken
        end(net, "one")
        gc.collect()
        assert [each() for each in alive] == [None, None]


def test_padding_of_another_kind_is_done() -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 2, 6, 6)
    net = settled(nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten()), x)
    net.backbone[0].padding_mode = "circular"
    with taking() as taken:
        found = gradients(net, x)
    assert not taken
    net.backbone[0].padding_mode = "zeros"
    assert not torch.allclose(gradients(net, x)[0], found[0])
