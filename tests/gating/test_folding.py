"""Gates of large inputs are multiplied with the weight: the same results, and old tasks keep their bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook

from hatrack import HATNetwork
from hatrack.gating import partial_gradients
from hatrack.gating.folding import FoldsGates
from hatrack.gating.gates import ActiveTask
from hatrack.gating.partial_gradients import PartialGradientSwitch


class Tokens(nn.Module):
    """Dense layers along tokens, with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.third(torch.relu(self.second(self.norm(h.transpose(1, 2)).transpose(1, 2))))
        return h.mean(1)


class Along(nn.Module):
    """A convolution that goes along three channels, with a window of three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.along, self.last = nn.Conv2d(2, 3, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        weights = torch.sigmoid(self.along(h.mean((2, 3)).unsqueeze(1))).squeeze(1)
        features: Tensor = self.last((h * weights[..., None, None]).flatten(2).transpose(1, 2)).mean(1)
        return features


def pictures(convolution: Any, pool: Any, flat: int) -> nn.Module:
    return nn.Sequential(
        convolution(2, 6, 3, padding=1),
        nn.ReLU(),
        convolution(6, 8, 2, stride=2),
        nn.ReLU(),
        pool(2),
        nn.Flatten(),
        nn.Linear(flat, 7),
        nn.ReLU(),
        nn.Linear(7, 5),
    )


class Plain(nn.Module):
    """Dense layers along tokens, of which training may call a shallow copy."""

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.copies = nn.Linear(5, 12), nn.Linear(12, 6), copies

    def forward(self, x: Tensor) -> Tensor:
        second = copy.copy(self.second) if self.copies and self.training else self.second
        return second(torch.relu(self.first(x))).mean(1)


def hook(kind: str, net: HATNetwork, part: Tensor, stack: ExitStack) -> list[Tensor]:
    """Put a hook on the second layer of a network; gives the list of what it sees."""
    layer: nn.Linear = net.backbone.second
    seen: list[Tensor] = []
    calls: list[None] = []

    def act(module: nn.Module, args: Any) -> Any:
        if kind == "changes":
            return (args[0] + 1.0,)
        if kind == "calls the layer":
            layer.forward(args[0] + 1.0)
        elif not calls:
            calls.append(None)
            net(part, "old")
            calls.clear()
        return None

    def look(module: nn.Module, given: Any, _: Any) -> None:
        seen.extend([given[0]] if module is layer else [])

    if kind == "sees":
        stack.callback(layer.register_forward_hook(look).remove)
    elif kind == "of all layers":
        stack.callback(register_module_forward_hook(look).remove)
    elif kind == "sees gradients":
        stack.callback(layer.register_full_backward_hook(look).remove)
    else:
        stack.callback(layer.register_forward_pre_hook(act).remove)
    return seen


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tokens": (Tokens, (40, 9, 5)),
    "pictures": (lambda: pictures(nn.Conv2d, nn.AvgPool2d, 32), (60, 2, 8, 8)),
    "along channels": (Along, (60, 2, 6, 6)),
    "series": (lambda: pictures(nn.Conv1d, nn.AvgPool1d, 16), (60, 2, 8)),
    "volumes": (lambda: pictures(nn.Conv3d, nn.AvgPool3d, 8), (60, 2, 4, 4, 4)),
}


@contextmanager
def folding(least: float) -> Iterator[list[nn.Module]]:
    """Fold gates of inputs from so many entries on; gives the layers whose weights took gates."""
    folded: list[nn.Module] = []
    take = ActiveTask.gates_left_to

    def noted(active: ActiveTask, module: nn.Module) -> Tensor | None:
        gates = take(active, module)
        folded.extend([module] if gates is not None else [])
        return gates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_gradients, "FOLDING_WORTH", least)
        patch.setattr(ActiveTask, "gates_left_to", noted)
        yield folded


def build(case: str) -> tuple[HATNetwork, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[case]
    net = HATNetwork(make(), torch.zeros(3, *shape[1:])).double()
    net.add_task("old", 3)
    return net, torch.randn(shape, dtype=torch.float64)


def gradients(net: HATNetwork, x: Tensor, task: str, progress: float) -> list[Tensor]:
    net.train()
    net.anneal(progress)
    net.zero_grad()
    logits = net(x, task)
    (logits.square().mean() + net.regularization()).backward()
    return [logits.detach(), *(p.grad for p in net.task_parameters(task) if p.grad is not None)]


@pytest.mark.parametrize("progress", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_gated_inputs(case: str, progress: float) -> None:
    net, x = build(case)
    twin = copy.deepcopy(net)
    with folding(0) as folded:
        found = gradients(net, x, "old", progress)
    with folding(float("inf")) as none:
        expected = gradients(twin, x, "old", progress)
    assert folded
    assert not none
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_old_tasks_keep_their_bits(case: str) -> None:
    net, x = build(case)
    with folding(0) as folded:
        for task in ("old", "new"):
            if task == "new":
                net.consolidate("old")
                net.eval()
                before = net(x, "old").detach()
                net.add_task("new", 3)
            optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=0.05, weight_decay=0.1))
            for step in range(12):
                gradients(net, x, task, step / 11)
                optimizer.step()
    net.eval()
    assert len(folded) >= 12
    assert torch.equal(net(x, "old").detach(), before)


def test_a_gate_of_a_hundred_percent_and_one_of_nothing_change_no_bit() -> None:
    net, x = build("pictures")
    net.consolidate("old")
    on = torch.rand(net.units.num_units) < 0.6
    net.add_task("other", 3, embedding=torch.where(on, 6.0, -6.0))
    results = []
    for least in (0, float("inf")):
        with folding(least), torch.enable_grad():
            net.train()
            net.anneal(1.0)
            results.append(net(x, "other").detach())
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(
    "kind", ["sees", "changes", "calls the layer", "calls the network", "sees gradients", "of all layers"]
)
def test_a_layer_with_hooks_is_given_gated_inputs(kind: str) -> None:
    results = []
    for least in (0, float("inf")):
        torch.manual_seed(0)
        net = HATNetwork(Plain(), torch.zeros(3, 9, 5)).double()
        net.add_task("old", 3)
        net.train()
        net.anneal(0.3)
        x = torch.randn(40, 9, 5, dtype=torch.float64)
        with ExitStack() as stack, folding(least) as folded:
            seen = hook(kind, net, x[:5], stack)
            logits = net(x, "old")
            logits.square().mean().backward()
            assert net.backbone.second not in folded
        results.append([logits.detach(), net.backbone.second.weight.grad, *(each.detach() for each in seen)])
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_shallow_copy_of_a_layer_is_given_gated_inputs() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Plain(copies=True), torch.zeros(3, 9, 5)).double()
    net.add_task("old", 3)
    x = torch.randn(40, 9, 5, dtype=torch.float64)
    with folding(0):
        found = gradients(net, x, "old", 0.3)
    with folding(float("inf")):
        expected = gradients(net, x, "old", 0.3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_layer_gates_its_input_where_its_weight_cannot_take_the_gates() -> None:
    net, _ = build("tokens")
    layer, gates = net.backbone.third, torch.rand(12, dtype=torch.float64)
    switch = FoldsGates.of(layer)
    assert isinstance(switch, PartialGradientSwitch)
    given = torch.randn(40, 9, 12, dtype=torch.float64)
    switch._active.leave(layer, gates)
    torch.testing.assert_close(layer.forward(given), nn.functional.linear(given * gates, layer.weight, layer.bias))
    switch._active.leave(layer, gates)
    with torch.autocast("cpu", torch.bfloat16):  # under which no gates are left: it has begun in between
        found = layer.forward(given.float())
    expected = nn.functional.linear((given * gates).bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05, check_dtype=False)


def test_gates_are_left_to_no_layer_whose_forward_is_another() -> None:
    net, _ = build("tokens")
    layer = net.backbone.third
    switch = FoldsGates.of(layer)
    assert switch is not None
    assert FoldsGates.of(nn.Linear(2, 2)) is None
    vars(layer)["forward"] = lambda given: nn.functional.linear(given, layer.weight, layer.bias)
    assert FoldsGates.of(layer) is None


def test_gates_that_were_left_to_a_layer_that_failed_are_of_no_other_call() -> None:
    net, x = build("tokens")
    layer = net.backbone.third

    def fail(module: nn.Module, given: Any) -> None:
        raise KeyboardInterrupt

    with folding(0):
        expected = gradients(copy.deepcopy(net), x, "old", 0.5)
        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            gradients(net, x, "old", 0.5)
        handle.remove()
        given = torch.randn(40, 9, 12, dtype=torch.float64)
        torch.testing.assert_close(layer.forward(given), nn.functional.linear(given, layer.weight, layer.bias))
        for one, other in zip(gradients(net, x, "old", 0.5), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_other_parameters_in_their_place_take_the_gates() -> None:
    net, x = build("pictures")
    others = {name: torch.randn_like(p, requires_grad=True) for name, p in net.named_parameters() if "backbone" in name}
    net.train()
    net.anneal(0.5)
    results = []
    for least in (0, float("inf")):
        with folding(least):
            logits = functional_call(net, others, (x, "old"))
            results.append([logits, *torch.autograd.grad(logits.square().sum(), list(others.values()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
