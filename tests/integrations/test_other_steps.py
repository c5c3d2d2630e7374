"""Optimizers that do not step once, at the end, by a step of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from support.old_task import KINDS, assert_learned, loss_of, says, with_old_task

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]
kinds = pytest.mark.parametrize("kind", KINDS)


def outcome(kind: str, train: Callable[[Any], None]) -> None:
    """Let a training learn the new task, and compare."""
    net = with_old_task(kind)
    promised, before = says(net), net.tasks[1].head.weight.detach().clone()
    train(net)
    assert_learned(net, before, net.tasks[1].head.weight.detach().clone(), promised)


@kinds
def test_schedule_free(kind: str) -> None:
    schedulefree = pytest.importorskip("schedulefree")

    def train(net: Any) -> None:
        promised = says(net)
        optimizer = net.protect(
            schedulefree.AdamWScheduleFree(net.task_parameters("new"), lr=0.05, weight_decay=0.1, warmup_steps=2)
        )
        for _ in range(3):
            optimizer.train()
            net.train()
            for _ in range(3):
                optimizer.zero_grad()
                loss_of(net).backward()
                optimizer.step()
            optimizer.eval()
            assert torch.equal(says(net), promised)

    outcome(kind, train)


class SAM(Optimizer):
    """Sharpness-aware minimization: a step up by the gradient, and the base optimizer's from where it came."""

    def __init__(self, params: Iterable[Tensor], base: type[Optimizer], rho: float = 0.05, **settings: Any) -> None:
        super().__init__(params, {"rho": rho, **settings})
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    def _with_gradients(self) -> Iterable[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self) -> None:
        found = self._with_gradients()
        norm = torch.stack([p.grad.norm() for _, p in found]).norm()
        for group, p in found:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (group["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for _, p in self._with_gradients():
            p.copy_(self.state[p]["old"])
        self.base.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


@kinds
def test_sam_in_two_calls(kind: str) -> None:
    def train(net: Any) -> None:
        optimizer = net.protect(SAM(net.task_parameters("new"), torch.optim.AdamW, lr=0.05, weight_decay=0.1))
        for _ in range(5):
            loss_of(net).backward()
            optimizer.first_step()
            loss_of(net).backward()
            optimizer.second_step()

    outcome(kind, train)


@kinds
def test_sam_with_a_closure(kind: str) -> None:
    def train(net: Any) -> None:
        optimizer = net.protect(SAM(net.task_parameters("new"), torch.optim.AdamW, lr=0.05, weight_decay=0.1))
        for _ in range(5):
            optimizer.step(lambda: loss_of(net).backward())

    outcome(kind, train)


@kinds
def test_an_optimizer_per_parameter_that_steps_within_the_backward_pass(kind: str) -> None:
    def train(net: Any) -> None:
        optimizers = {
            p: net.protect(torch.optim.AdamW([p], lr=0.05, weight_decay=0.1)) for p in net.task_parameters("new")
        }

        def step(parameter: Tensor) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        hooks = [p.register_post_accumulate_grad_hook(step) for p in optimizers if p.requires_grad]
        for _ in range(5):
            loss_of(net).backward()
        for hook in hooks:
            hook.remove()

    outcome(kind, train)


@kinds
def test_a_small_optimizer_that_steps_between_forward_and_backward(kind: str) -> None:
    """Of a parameter that the rest of the backward pass does not read, as torch itself asks for."""

    def train(net: Any) -> None:
        bias = net.tasks[1].head.bias
        rest = [p for p in net.task_parameters("new") if p is not bias]
        small = net.protect(torch.optim.SGD([bias], lr=0.05, weight_decay=0.1))
        large = net.protect(torch.optim.AdamW(rest, lr=0.05, weight_decay=0.1))
        for _ in range(5):
            net.zero_grad()
            loss = loss_of(net)
            (bias.grad,) = torch.autograd.grad(loss, bias, retain_graph=True)
            small.step()
            loss.backward(inputs=[p for p in rest if p.requires_grad])
            large.step()

    outcome(kind, train)
