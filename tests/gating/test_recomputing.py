"""Large gated inputs are not kept for the backward pass, and gradients have the bits that they have where these are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from hatrack import HATNetwork
from hatrack.backbones import AlexNet, ResNet18, ViT
from hatrack.gating import recomputing
from hatrack.gating.recomputing import counting

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU()),
    "alexnet": lambda: AlexNet(width=0.05),
    "alexnet in channels_last": lambda: AlexNet(width=0.05).to(memory_format=torch.channels_last),
    "resnet": lambda: ResNet18((3, 32, 32), 4),
    "vit": lambda: ViT((3, 32, 32), patch=8, width=16, depth=1, heads=2),
}


def network(kind: str) -> tuple[HATNetwork, Tensor]:
    """A network in its second task, and a batch."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    net = HATNetwork(NETWORKS[kind](), x[:1])
    net.add_task("first", num_classes=2)
    net.consolidate("first")
    net.add_task("second", num_classes=2)
    net.train()
    net.anneal(0.3)
    return net, x


def gradients(kind: str, ask: Callable[[HATNetwork, Tensor], Tensor] = lambda net, x: net(x, "second")) -> list[Tensor]:
    net, x = network(kind)
    torch.manual_seed(1)
    (ask(net, x).square().sum() + net.regularization()).backward()
    return [p.grad for p in net.task_parameters("second") if p.grad is not None]


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether all gated inputs are large, or none."""
    return lambda all_large: monkeypatch.setattr(recomputing, "WORTH", 0 if all_large else 10**12)


ASKING: dict[str, Callable[[HATNetwork, Tensor], Tensor]] = {
    "as it is": lambda net, x: net(x, "second"),
    "checkpointed": lambda net, x: checkpoint(net, x, "second", use_reentrant=False),
    "under a hook": lambda net, x: _hooked(net, x),
    "in mixed precision": lambda net, x: _mixed(net, x),
}


def _hooked(net: HATNetwork, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return net(x, "second")


def _mixed(net: HATNetwork, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net(x, "second").float()


@pytest.mark.parametrize("how", ASKING)
@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_have_the_same_bits(kind: str, how: str, every_size: Callable[[bool], None]) -> None:
    found = []
    for all_large in (False, True):
        every_size(all_large)
        found.append(gradients(kind, ASKING[how]))
    assert len(found[0]) == len(found[1]) > 3
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["dense", "alexnet"])
def test_gradients_of_gradients_have_the_same_bits(kind: str, every_size: Callable[[bool], None]) -> None:
    found = []
    for all_large in (False, True):
        every_size(all_large)
        net, x = network(kind)
        net.eval().backbone.train(False)
        net.train()
        torch.manual_seed(1)
        parameters = [p for p in net.task_parameters("second") if p.requires_grad]
        first = torch.autograd.grad(net(x, "second").square().sum(), parameters, create_graph=True, allow_unused=True)
        penalty = sum(each.square().sum() for each in first if each is not None)
        assert isinstance(penalty, Tensor)
        penalty.backward()
        found.append([p.grad for p in parameters if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 3
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("kind", "share"), [("alexnet", 0.97), ("resnet", 0.85)])
def test_what_is_kept_is_less(kind: str, share: float, every_size: Callable[[bool], None]) -> None:
    kept = []
    for all_large in (False, True):
        every_size(all_large)
        net, x = network(kind)
        held: dict[int, int] = {}

        def note(tensor: Tensor, held: dict[int, int] = held) -> None:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

        with counting(note):
            out = net(x, "second")
        kept.append(sum(held.values()))
        del out
    assert kept[1] < share * kept[0]


class Spoiling(nn.Module):
    """Network that writes in place to what a gate was computed of, or to a weight, after its layers have run."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.first, self.second, self.what = nn.Linear(8, 16), nn.Linear(16, 12), what
        self.spoils = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh().clone()
        out = self.second(h)
        if self.spoils and self.what == "activation":
            h.add_(1.0)
        if self.spoils and self.what == "weight":
            self.second.weight.data = self.second.weight.data  # the same memory, on another count
            with torch.no_grad():
                self.second.weight.add_(1.0)
        return out.relu()


@pytest.mark.parametrize("what", ["activation", "weight"])
@pytest.mark.parametrize("all_large", [False, True])
def test_what_was_written_to_in_place_is_refused(
    what: str, all_large: bool, every_size: Callable[[bool], None]
) -> None:
    every_size(all_large)
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    backbone = Spoiling(what)
    net = HATNetwork(backbone, x)
    net.add_task("only", num_classes=2)
    net.train()
    backbone.spoils = True
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        net(x, "only").sum().backward()


def test_a_second_backward_pass_goes_over_what_was_retained(every_size: Callable[[bool], None]) -> None:
    every_size(True)
    net, x = network("alexnet")
    torch.manual_seed(1)
    loss = net(x, "second").square().sum()
    parameters: list[Any] = [p for p in net.task_parameters("second") if p.requires_grad]
    once = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    twice = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(a is b or torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_tensors_without_memory_are_left_alone(every_size: Callable[[bool], None]) -> None:
    every_size(True)
    net, x = network("dense")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = net(mode.from_tensor(x), "second")
        out.sum().backward()
    assert out.shape == (4, 2)


@pytest.mark.parametrize("all_large", [False, True])
def test_hooks_that_a_layer_puts_around_itself_decide_on_what_is_kept(
    all_large: bool, every_size: Callable[[bool], None]
) -> None:
    every_size(all_large)
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
    net = HATNetwork(backbone, x)
    net.add_task("only", num_classes=2)
    packed = []

    def begin(module: nn.Module, args: Any) -> None:
        around = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t * 4, lambda t: t / 4)
        around.__enter__()
        module.around = around  # type: ignore[assignment]

    def end(module: Any, args: Any, result: Any) -> None:
        module.around.__exit__(None, None, None)

    backbone[2].register_forward_pre_hook(begin)
    backbone[2].register_forward_hook(end)
    net.train()
    net(x, "only").sum().backward()
    assert packed
    gradient = backbone[0].weight.grad
    assert gradient is not None
    for hooks in (backbone[2]._forward_pre_hooks, backbone[2]._forward_hooks):
        hooks.popitem()
    net.zero_grad()
    net(x, "only").sum().backward()
    assert torch.equal(backbone[0].weight.grad, gradient)


def test_where_no_hooks_may_be_inputs_are_kept(every_size: Callable[[bool], None]) -> None:
    every_size(True)
    net, x = network("dense")
    net(x, "second")  # a kind of call that is known by now
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        net(x, "second").sum().backward()


def test_an_embedding_that_does_not_learn_asks_for_no_activation(every_size: Callable[[bool], None]) -> None:
    every_size(True)
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    backbone = Spoiling("activation")
    net = HATNetwork(backbone, x)
    net.add_task("only", num_classes=2)
    net.tasks.named("only").embedding.requires_grad_(False)
    net.train()
    backbone.spoils = True
    net(x, "only").sum().backward()
