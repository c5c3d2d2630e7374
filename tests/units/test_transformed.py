"""Backbones that transform or compile their own functions, and inputs that are not dense: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork, InputError, Learner, UnsupportedError, WeightMaskedNetwork
from hatrack.units import shared_layer
from support.helpers import mode

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Within(nn.Module):
    """A layer, a function of it that torch transforms, and another layer."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 6)
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.between(self, x)))


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a function": lambda net, x: torch.vmap(torch.relu)(net.first(x)),
    "a layer": lambda net, x: torch.vmap(net.first)(x),
    "a parameter": lambda net, x: torch.vmap(lambda row: net.weight @ row)(net.first(x)),
    "two of them": lambda net, x: torch.vmap(torch.vmap(torch.sin))(net.first(x)),
    "gradients": lambda net, x: torch.func.grad(lambda h: (h**2).sum())(net.first(x)),
    "products": lambda net, x: torch.func.jvp(torch.sin, (net.first(x),), (net.first(x),))[1],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_units_inside_of_transforms_are_refused_in_one_line(name: str) -> None:
    backbone = Within(TRANSFORMS[name])
    before = backbone(X)
    with pytest.raises(
        UnsupportedError, match=r"inside of a transform of torch\.func.* \(at test_transformed\.py:"
    ) as caught:
        HATNetwork(backbone, X)
    assert "\n" not in str(caught.value)
    assert torch.equal(backbone(X), before)
    assert not backbone.first._forward_pre_hooks


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["a function", "a layer", "a parameter", "products"])
def test_masks_of_weights_need_no_units_and_take_them(name: str) -> None:
    torch.manual_seed(0)
    backbone = Within(TRANSFORMS[name])
    net = WeightMaskedNetwork(backbone, X)
    net.add_task("a", 2)
    net.consolidate("a")
    before = net.eval()(X, "a")
    net.add_task("b", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("b"), lr=0.1, weight_decay=0.1))
    net.train()(X, "b").square().mean().backward()
    optimizer.step()
    assert torch.equal(net.eval()(X, "a"), before)


def test_what_is_computed_of_inputs_alone_may_be_transformed() -> None:
    """As transformers make their masks of attention."""
    net = HATNetwork(Within(lambda net, x: net.first(x) * torch.vmap(lambda row: row.sum())(x).unsqueeze(1)), X)
    net.add_task("a", 2)
    net.consolidate("a")
    assert net.eval()(X, "a").shape == (5, 2)


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = torch.vmap(lambda row: row.flip(0))(x)
        return turned


def test_a_module_that_is_explained_by_hand_may_transform() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Turned(), nn.Linear(8, 6), nn.ReLU())
    net = HATNetwork(backbone, X, rules={Turned: shared_layer()})
    net.add_task("a", 2)
    net.consolidate("a")
    with torch.no_grad(), mode(net, False):
        before = net(X, "a")
    net.add_task("b", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("b"), lr=0.1, momentum=0.9))
    net.train()
    net.anneal(1.0)
    net(X, "b").square().mean().backward()
    optimizer.step()
    with torch.no_grad(), mode(net, False):
        assert torch.equal(net(X, "a"), before)


def test_a_backbone_that_fails_inside_of_a_transform_says_so_itself() -> None:
    with pytest.raises(InputError, match="the backbone does not run on the example input") as caught:
        HATNetwork(Within(lambda net, x: net.first(torch.vmap(lambda row: row @ torch.zeros(3))(x))), X)
    assert "\n" not in str(caught.value)


def chosen(net: nn.Module, x: Tensor) -> Tensor:
    h: Tensor = net.first(x)
    result: Tensor = torch.cond(h.sum() > 0, lambda h: torch.relu(h), lambda h: -h, (h,))
    return result


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_functions_that_torch_compiles_are_refused_and_go_on_working_elsewhere() -> None:
    compiled = torch.compile(torch.relu, backend="eager")
    for between in (chosen, lambda net, x: compiled(net.first(x))):
        with pytest.raises(UnsupportedError, match=r"hands functions over to torch, which compiles them") as caught:
            HATNetwork(Within(between), X)
        assert "\n" not in str(caught.value)
        assert Within(chosen)(X).shape == (5, 6), "the compiler is as good as new"
        WeightMaskedNetwork(Within(between), X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_attached_for_another_reason_is_told_in_one_line() -> None:
    backbone = nn.Sequential(nn.Linear(4, 8), torch.jit.script(nn.ReLU()))  # type: ignore[no-untyped-call]
    for kind in (HATNetwork, WeightMaskedNetwork):
        with pytest.raises(UnsupportedError, match="it runs by itself, but") as caught:
            kind(backbone, X)
        assert "\n" not in str(caught.value)


ODD = {
    "coo": (lambda: X.to_sparse(), r"dense, and one has the layout torch\.sparse_coo: give x\.to_dense\(\)"),
    "csr": (lambda: X.to_sparse_csr(), r"dense, and one has the layout torch\.sparse_csr: give x\.to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([X[:2], X[:3]]), r"nested tensors .*pad them"),
    "jagged": (lambda: torch.nested.nested_tensor([X[:2], X[:3]], layout=torch.jagged), r"nested tensors .*pad them"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize("name", ODD)
def test_inputs_that_are_not_dense_are_refused_in_one_line(name: str, kind: type) -> None:
    make, said = ODD[name]
    odd = make()

    def backbone() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU())

    net = kind(backbone(), X)
    net.add_task("a", 2)
    net.consolidate("a")
    net.eval()
    for door in (
        lambda: kind(backbone(), odd),
        lambda: net(odd, "a"),
        lambda: net(odd, ["a"] * 5),
        lambda: net.infer(odd),
        lambda: net.extract("a", odd),
        lambda: net.calibrate("a", odd, torch.zeros(5).long()),
        lambda: Learner(backbone(), odd),
        lambda: Learner(backbone(), (4,)).fit("a", (odd, torch.zeros(5).long())),
    ):
        with pytest.raises(InputError, match=said) as caught:
            door()
        assert "\n" not in str(caught.value)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 8).requires_grad_(False), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.layer(x) * self.scale
        return scaled


def test_warnings_at_the_door_name_the_line_that_attaches() -> None:
    with pytest.warns(UserWarning, match="the first task freezes all") as caught:
        HATNetwork(Scaled(), X)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
