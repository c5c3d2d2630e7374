"""Quadratic penalties: the proximal step agrees with the explicit one where that is stable, and is bounded always."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.functional import proximal
from hatrack.methods import Batch, Method
from hatrack.methods.proximal import Penalty, proximal_step, step_size
from hatrack.train import OptimizerKind
from support.marks import slow_but
from support.toys import TASKS, learn, logits, make

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.006, momentum=0.7),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.002, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.005),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.005, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.005, weight_decay=0.0),
}

PENALISED = ("l2", "ewc", "si", "mas", "imm-mean", "imm-mode")


def test_the_step_is_the_minimum_of_penalty_and_distance() -> None:
    value, anchor = torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor([1.0, 1.0, 0.0, -1.0])
    k = torch.tensor([0.0, 0.3, 1e-6, 50.0])
    torch.testing.assert_close(proximal(value, anchor, k), (value + k * anchor) / (1 + k), rtol=1e-6, atol=0)
    x = proximal(value.double(), anchor.double(), k.double())
    torch.testing.assert_close((x - value.double()) + k.double() * (x - anchor.double()), torch.zeros(4).double())
    for each, row in ((0.0, value), (torch.zeros(4), value), (float("inf"), anchor), (torch.full((4,), 3e38), anchor)):
        assert torch.equal(proximal(value, anchor, each), row)
    torch.testing.assert_close(proximal(value, anchor, 0.5), (value + 0.5 * anchor) / 1.5)


def descend(make_optimizer: Any, strength: float, implicit: bool, steps: int = 4000) -> tuple[Tensor, Tensor]:
    """Minimise ``½ Σ a (θ − b)²`` and a penalty; the end, and the minimum."""
    a, b = torch.tensor([1.0, 3.0, 0.5]), torch.tensor([1.0, -2.0, 4.0])
    omega, anchor = torch.tensor([0.2, 1.0, 0.0]), torch.tensor([0.5, 0.5, -1.0])
    theta = nn.Parameter(anchor.clone())
    optimizer = make_optimizer([theta])
    for _ in range(steps):
        loss = (a * (theta - b) ** 2).sum() / 2
        if not implicit:
            loss = loss + strength * (omega * (theta - anchor) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if implicit:
            proximal_step(optimizer, {"": theta}, {"": anchor}, {"": omega}, strength)
    return theta.detach(), (a * b + 2 * strength * omega * anchor) / (a + 2 * strength * omega)


@pytest.mark.parametrize("name", slow_but(["dampened"], ["sgd", "momentum", "dampened", "nesterov"]))
def test_both_steps_of_sgd_rest_at_the_minimum_where_the_explicit_one_is_stable(name: str) -> None:
    for implicit in (False, True):
        end, minimum = descend(OPTIMIZERS[name], 2.0, implicit, 600)
        torch.testing.assert_close(end[:2], minimum[:2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", slow_but(["amsgrad"], ["adam", "amsgrad", "adamw"]))
def test_adam_comes_to_rest_at_the_same_minimum(name: str) -> None:
    end, minimum = descend(OPTIMIZERS[name], 2.0, True, 800)
    assert bool(((end - minimum)[:2].abs() < 0.02).all())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_strength_makes_the_step_pass_the_anchor(name: str) -> None:
    end, _ = descend(OPTIMIZERS[name], 1e12, True, 50)
    torch.testing.assert_close(end[:2], torch.tensor([0.5, 0.5]), rtol=0, atol=1e-4)
    if "adam" not in name and name != "amsgrad":
        end, _ = descend(OPTIMIZERS[name], 1e4, False, 50)
        assert not bool((end[:2].abs() < 1e3).all())


def test_one_step_differs_by_the_square_of_its_stiffness() -> None:
    theta, anchor, gradient = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0])
    for k in (0.01, 0.1):
        explicit = theta - gradient - k * (theta - anchor)
        assert float((proximal(theta, anchor, k) - explicit).abs()) < 1.01 * k**2


def test_the_step_size_is_that_of_a_constant_gradient() -> None:
    for name, make_optimizer in OPTIMIZERS.items():
        theta = nn.Parameter(torch.zeros(2))
        optimizer = make_optimizer([theta])
        group = optimizer.param_groups[0]
        assert "adam" not in name or step_size(optimizer, group, theta) == 0.0
        for _ in range(300):
            theta.grad = torch.tensor([0.5, -2.0])
            before = theta.detach().clone()
            optimizer.step()
        moved = before - theta.detach()
        torch.testing.assert_close(step_size(optimizer, group, theta) * theta.grad, moved, rtol=1e-3, atol=1e-7)


def test_parameters_of_other_optimizers_stay() -> None:
    mine, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([mine], lr=0.1)
    zero = torch.zeros(2)
    proximal_step(optimizer, {"a": mine, "b": other}, {"a": zero, "b": zero}, None, 1.0)
    assert torch.equal(other, torch.ones(2))
    torch.testing.assert_close(mine.detach(), torch.full((2,), 1 / 1.2))


def trained(name: str, penalty: Penalty, strength: float, steps: int, optimizer: Any) -> tuple[Method, Tensor, Tensor]:
    """A method in its second task, its shared weights after some steps, and how far they are from where they began."""
    method = make(name, "shallow", strength=strength, penalty=penalty)
    learn(method, TASKS[:1], epochs=3)
    method.begin_task(TASKS[1])
    before = flat(method)
    stepper = method.protect(optimizer(method.trained_parameters()))
    x, y = TASKS[1].train.load()
    for step in range(steps):
        rows = torch.arange(16 * step, 16 * (step + 1)) % len(x)
        stepper.zero_grad()
        method.loss(Batch(x[rows], y[rows], ("second",), torch.zeros(16, dtype=torch.int64), 1.0)).value.backward()
        stepper.step()
    return method, flat(method), flat(method) - before


def flat(method: Method) -> Tensor:
    return torch.cat([value.flatten() for value in method.copy_of_shared().values()])


STABLE = {"l2": 1.0, "ewc": 20.0, "si": 1.0, "mas": 1.0, "imm-mean": 1.0, "imm-mode": 1.0}


@pytest.mark.parametrize(("optimizer", "close"), [("sgd", 0.05), ("momentum", 0.15)])
@pytest.mark.parametrize("name", PENALISED)
def test_methods_agree_where_the_explicit_step_is_stable(name: str, optimizer: str, close: float) -> None:
    """With momentum the explicit penalty sets in some steps late."""
    implicit, explicit, free = (
        trained(name, penalty, strength, 60, OPTIMIZERS[optimizer])[1]
        for penalty, strength in (
            (Penalty.PROXIMAL, STABLE[name]),
            (Penalty.EXPLICIT, STABLE[name]),
            (Penalty.EXPLICIT, 0.0),
        )
    )
    acts = float((explicit - free).norm())
    assert acts > 0
    assert float((implicit - explicit).norm()) < close * acts


@pytest.mark.parametrize("name", slow_but(["ewc", "si"], PENALISED))
def test_a_strength_that_makes_explicit_steps_explode_holds_the_weights(name: str) -> None:
    for optimizer in ("sgd", "momentum", "adam"):
        method, _, moved = trained(name, Penalty.PROXIMAL, 1e9, 12, OPTIMIZERS[optimizer])
        assert float(moved.abs().max()) < 0.1
        assert bool(torch.isfinite(logits(method, TASKS[0])).all())
        if optimizer != "adam":
            _, _, exploded = trained(name, Penalty.EXPLICIT, 1e9, 12, OPTIMIZERS[optimizer])
            assert not bool((exploded.abs() < 1e3).all())


@pytest.mark.parametrize("name", [*PENALISED, "pmask"])
def test_other_optimizers_are_refused(name: str) -> None:
    method = make(name, "shallow", **({"ewc": 5.0} if name == "pmask" else {}))
    method.begin_task(TASKS[0])
    with pytest.raises(InputError, match=r"SGD, Adam and AdamW, and not with RMSprop; .*`penalty=explicit`"):
        method.protect(torch.optim.RMSprop(method.trained_parameters()))
    explicit = {"ewc": 5.0, "ewc_penalty": Penalty.EXPLICIT} if name == "pmask" else {"penalty": Penalty.EXPLICIT}
    method = make(name, "shallow", **explicit)
    method.begin_task(TASKS[0])
    method.protect(torch.optim.RMSprop(method.trained_parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pmask_draws_elastic_weights_back(optimizer: str) -> None:
    training: dict[str, Any] = {"lr": 0.02} if optimizer == "sgd" else {"lr": 1e-3, "optimizer": OptimizerKind.ADAM}
    moved = {}
    for penalty in Penalty:
        for strength in (2.0, 1e9):
            if strength > 2.0 and penalty is Penalty.EXPLICIT:
                continue
            method = make("pmask", "shallow", ewc=strength, ewc_penalty=penalty)
            learn(method, TASKS[:1], epochs=3, **training)
            before = {name: value.clone() for name, value in method.network.quadratic_penalty.anchors.items()}
            important = torch.cat(
                [(value > 1e-6).flatten() for value in method.network.quadratic_penalty.importance.values()]
            )
            learn(method, TASKS[:2], first=1, epochs=3, **training)
            weights = [method.network.backbone.get_parameter(name).detach() - old for name, old in before.items()]
            moved[penalty, strength] = torch.cat([value.flatten() for value in weights])[important]
    gently, strongly = moved[Penalty.PROXIMAL, 2.0], moved[Penalty.PROXIMAL, 1e9]
    assert float(strongly.norm()) < 0.5 * float(gently.norm())
    if optimizer == "sgd":
        difference = float((gently - moved[Penalty.EXPLICIT, 2.0]).norm())
        assert difference < 0.05 * float(gently.norm())


def test_the_loss_of_a_training_step_has_no_penalty_and_that_of_validation_has() -> None:
    x, y = TASKS[1].train.load()
    batch = Batch(x[:16], y[:16], ("second",), torch.zeros(16, dtype=torch.int64), 1.0)
    for penalty, in_training in ((Penalty.PROXIMAL, False), (Penalty.EXPLICIT, True)):
        method, _, _ = trained("ewc", penalty, 20.0, 5, OPTIMIZERS["sgd"])
        with torch.no_grad():
            for parameter in method.shared_parameters().values():
                parameter.add_(0.1)
        plain = float(nn.functional.cross_entropy(method.network(x[:16], "second"), y[:16]).detach())
        assert (float(method.loss(batch).value.detach()) > plain + 1e-4) is in_training
        with torch.no_grad():
            assert float(method.loss(batch).value) > plain + 1e-4
