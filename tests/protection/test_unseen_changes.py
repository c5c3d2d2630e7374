"""Changes that torch does not count: replaced buffers, norms in training mode, and calls inside transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import BatchNorms, GuaranteeError, HATNetwork, UnsupportedError, WeightMaskedNetwork

KINDS = [HATNetwork, WeightMaskedNetwork]


class Shifted(nn.Module):
    """Layer with a constant in a buffer, which a forward pass may register again."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.layer, self.again = nn.Linear(6, 12), again
        self.register_buffer("shift", torch.linspace(-1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        if self.again:
            self.register_buffer("shift", torch.linspace(-1, 1, 12))
        return torch.relu(self.layer(x) + self.shift)


def consolidated(kind: Any, backbone: nn.Module, **options: Any) -> Any:
    net = kind(backbone, torch.randn(4, 6), **options)
    for task in "ab":
        net.add_task(task, 3)
        net.consolidate(task)
    return net.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda backbone: setattr(backbone, "shift", torch.ones(12)),
        lambda backbone: backbone.register_buffer("shift", torch.zeros(12)),
        lambda backbone: backbone._buffers.pop("shift"),
    ],
    ids=["assigned", "registered", "removed"],
)
def test_a_buffer_that_is_replaced_is_refused_when_asked(kind: Any, change: Callable[[Any], object]) -> None:
    torch.manual_seed(0)
    net = consolidated(kind, Shifted())
    x = torch.randn(5, 6)
    before, kept = net(x, "a"), net.backbone.shift
    change(net.backbone)
    with pytest.raises(GuaranteeError, match=r"backbone\.shift has been replaced"):
        net(x, "a")
    net.backbone.register_buffer("shift", kept)
    assert torch.equal(net(x, "a"), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_of_the_same_bits_gives_way_to_the_recorded_one(kind: Any) -> None:
    torch.manual_seed(0)
    net = consolidated(kind, Shifted(again=True))
    x = torch.randn(5, 6)
    before = net(x, "a")
    for _ in range(3):
        assert torch.equal(net(x, "a"), before)
    net.check()


class Normed(nn.Module):
    """Head with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(12), nn.Linear(12, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(self.norm(features))


@pytest.mark.parametrize("norms", BatchNorms)
@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_old_tasks_stay_in_evaluation_whoever_turns_them_on(kind: Any, norms: BatchNorms) -> None:
    torch.manual_seed(0)
    options = {"batch_norms": norms} if kind is HATNetwork else {}
    net = kind(nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU()), torch.randn(4, 6), **options)
    for task, head in (("a", Normed()), ("b", None)):
        net.add_task(task, **({"num_classes": 3} if head is None else {"head": head}))
        net.train()
        net(torch.randn(8, 6), task).sum().backward()
        net.consolidate(task)
    net.eval()
    x = torch.randn(5, 6)
    before = {task: net(x, task) for task in "ab"}
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()
    for task in "ab":
        net(3 * x + 2, task)
    assert all(torch.equal(net(x, task), said) for task, said in before.items())
    net.check()


@pytest.mark.parametrize("kind", KINDS)
def test_inside_of_transforms_moved_entries_are_refused(kind: Any) -> None:
    torch.manual_seed(0)
    net = consolidated(kind, nn.Sequential(nn.Linear(6, 12), nn.ReLU()))
    x = torch.randn(4, 6)

    def each(z: Tensor) -> Tensor:
        logits: Tensor = net(z[None], "a")[0]
        return logits

    before = torch.func.vmap(each)(x)
    net.add_task("c", 3)
    moved = next(p for p in (net.tasks[0].head.weight, net.backbone[0].bias) if net.protected()[name_of(net, p)].any())
    with torch.no_grad():
        moved.add_(1)
    for ask in (lambda: torch.func.vmap(each)(x), lambda: torch.func.jacrev(lambda z: net(z, "a"))(x)):
        with pytest.raises(
            GuaranteeError,
            match=r"have moved, and they cannot be put back inside of a transform of torch\.func.*net\.restore",
        ):
            ask()
    net.restore()
    assert torch.equal(torch.func.vmap(each)(x), before)
    net.backbone[0] = nn.Linear(6, 12)
    with pytest.raises(GuaranteeError, match="has been replaced"):
        torch.func.vmap(each)(x)


def name_of(net: nn.Module, parameter: Tensor) -> str:
    return next(name for name, each in net.named_parameters() if each is parameter)


class PlainTensor(nn.Module):
    """Layer that multiplies with a tensor that is trained and no parameter."""

    def __init__(self, made_inside: bool) -> None:
        super().__init__()
        self.layer, self.made_inside = nn.Linear(6, 12), made_inside
        self.scale = torch.ones(12, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.ones(12, requires_grad=True) if self.made_inside else self.scale
        return torch.relu(self.layer(x) * scale)


def called(net: Any) -> Tensor:
    net.add_task("a", 3)
    logits: Tensor = net(torch.randn(5, 6, requires_grad=True), "a")
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_tensor_that_is_no_parameter_is_refused(kind: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"is no parameter|reached past the masks"):
        called(kind(PlainTensor(made_inside=False), torch.randn(4, 6)))
    assert called(kind(PlainTensor(made_inside=True), torch.randn(4, 6))).shape == (5, 3)


@pytest.mark.parametrize("in_training", [False, True], ids=["done", "in training"])
@pytest.mark.parametrize("share", [lambda net: net.share_memory(), lambda net: net.backbone.share_memory()])
@pytest.mark.parametrize("kind", KINDS)
def test_what_another_process_writes_to_shared_memory_reaches_no_old_answer(
    kind: Any, share: Callable[[Any], object], in_training: bool
) -> None:
    """Writing through NumPy stands for the other process: neither leaves a count in this one."""
    torch.manual_seed(0)
    net = consolidated(kind, nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()))
    if in_training:
        net.add_task("c", 3)
    x = torch.randn(4, 6)
    with torch.no_grad():
        before = net(x, "a")
        share(net)
        for factor in (1.5, 0.1):
            assert torch.equal(net(x, "a"), before)
            for parameter in net.backbone.parameters():
                parameter.numpy()[...] *= factor
            assert torch.equal(net(x, "a"), before)
    with pytest.raises(GuaranteeError, match="protected entries have moved"):
        net.check()
    net.restore()
    assert torch.equal(net(x, "a"), before)
