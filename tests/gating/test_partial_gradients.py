"""Gradients without what is held: what is free gets its gradient, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork
from hatrack.gating.partial_gradients import PartialGradient, partial_gradient_for
from support.helpers import easy_task, learn, logits

SHAPE = (6,)


def outer(rows: float, columns: float, shape: tuple[int, int] = (40, 30)) -> Tensor:
    """Held entries of a weight whose first units are held."""
    return (torch.arange(shape[0]) < rows * shape[0])[:, None] & (torch.arange(shape[1]) < columns * shape[1])[None]


@pytest.mark.parametrize(
    ("held", "pays"),
    [
        (outer(0.0, 0.0), False),
        (outer(0.1, 1.0), False),
        (outer(0.5, 1.0), True),  # a layer that reads the input
        (outer(1.0, 1.0), True),
        (outer(0.5, 0.5), False),
        (outer(0.9, 0.9), True),
        (outer(1.0, 0.9), True),
        (outer(0.9, 0.9) | outer(0.3, 1.0), True),
        (
            torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) < 0.9,
            False,
        ),  # conditioning per task
        (torch.zeros(0, 3, dtype=torch.bool), False),
    ],
)
def test_every_free_entry_gets_its_gradient(held: Tensor, pays: bool) -> None:
    wanted = partial_gradient_for(held)
    assert (wanted is not None) is pays
    if wanted is not None:
        outputs, inputs = torch.randn(9, held.shape[0]).double(), torch.randn(9, held.shape[1]).double()
        found, plain = wanted.product(outputs, inputs), outputs.t() @ inputs
        torch.testing.assert_close(found[~held], plain[~held], rtol=0, atol=1e-12)
        rest = found[held]
        assert ((rest == 0) | torch.isclose(rest, plain[held], rtol=0, atol=1e-12)).all()
        assert (rest == 0).float().mean() > 0.3, "next to no gradient was partial"


def test_nothing_is_left_to_compute() -> None:
    wanted = partial_gradient_for(torch.ones(3, 4, dtype=torch.bool))
    assert wanted is not None
    assert len(wanted.rows) == 0
    assert torch.equal(wanted.product(torch.randn(2, 3), torch.randn(2, 4)), torch.zeros(3, 4))


def full_network(share: float = 0.9) -> tuple[HATNetwork, Tensor, Tensor, Tensor]:
    """A network of which one task holds most, with a second one in training."""
    torch.manual_seed(0)
    net = HATNetwork(
        nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 8)),
        torch.zeros(2, *SHAPE),
        s_max=100.0,
    )
    on = torch.rand(net.units.num_units, generator=torch.Generator().manual_seed(2)) < share
    net.add_task("first", 3, embedding=torch.where(on, 1.0, -1.0))
    net.consolidate("first")
    net.add_task("second", 3)
    x, y = easy_task(SHAPE, 1)
    return net, x, y, torch.randn(24, *SHAPE)


def gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_plain_layers(dtype: torch.dtype) -> None:
    net, x, y, _ = full_network()
    net.to(dtype)
    x = x.to(dtype).requires_grad_()
    loss = F.cross_entropy(net(x, "second"), y) + net.regularization()
    found, of_x = gradients(net, loss), x.grad
    assert len(net.masking.attachment.partial_gradients) == 3, "no gradient was partial"
    net.masking.attachment.partial_gradients.clear()
    x.grad = None
    plain_loss = F.cross_entropy(net(x, "second"), y) + net.regularization()
    assert torch.equal(loss, plain_loss), "the forward pass is another one"
    plain = gradients(net, plain_loss)
    assert found.keys() == plain.keys()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(x.grad, of_x, rtol=0, atol=tolerance)
    for name, held in net.protected().items():
        if name in plain:
            torch.testing.assert_close(found[name][~held], plain[name][~held], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        pytest.param(lambda p: torch.optim.LBFGS(p, lr=0.1), marks=pytest.mark.slow),
    ],
    ids=["sgd", "momentum", "adamw", "lbfgs"],
)
def test_old_outputs_stay_and_new_tasks_learn(make) -> None:  # type: ignore[no-untyped-def]
    net, x, y, others = full_network()
    promised = logits(net, others, "first")
    optimizer = net.protect(make(net.task_parameters("second")))
    losses = []
    for _ in range(20):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x, "second"), y)
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            losses.append(float(optimizer.step(closure).detach()))
        else:
            losses.append(float(closure().detach()))
            optimizer.step()
    assert losses[-1] < losses[0]
    assert torch.equal(logits(net, others, "first"), promised)
    net.consolidate("second")
    net.check()


def test_switches_follow_the_network_and_leave_it_again() -> None:
    net, x, y, _ = full_network()
    twin = copy.deepcopy(net)
    for each in (net, twin):
        found = gradients(each, F.cross_entropy(each(x, "second"), y))["backbone.2.weight"]
        held = each.protected()["backbone.2.weight"]
        assert (found[held] == 0).all(), "not spared"
        assert (found[~held] != 0).any()
    twin.forget("second")
    twin.forget("first")
    assert not twin.masking.attachment.partial_gradients, "partial for a task that is forgotten"
    assert net.masking.attachment.partial_gradients, "copies share their partial gradients"
    backbone = net.detach()
    assert not any("forward" in vars(module) for module in backbone.modules())


def test_second_derivatives_and_mixed_precision() -> None:
    net, x, y, _ = full_network()
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x, "second").dtype == torch.bfloat16
    found = []
    for _ in range(2):
        (slope,) = torch.autograd.grad(F.cross_entropy(net(x, "second"), y), x, create_graph=True)
        found.append(gradients(net, slope.square().sum())["backbone.0.weight"])
        net.masking.attachment.partial_gradients.clear()
    free = ~net.protected()["backbone.0.weight"]
    torch.testing.assert_close(found[0][free], found[1][free], rtol=0, atol=1e-6)


def test_a_layer_with_a_forward_of_its_own_keeps_it() -> None:
    layer = nn.Linear(4, 5)
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias)  # type: ignore[method-assign]
    before = layer.forward
    try:
        net = HATNetwork(nn.Sequential(nn.Linear(3, 4), layer), torch.zeros(2, 3))
    except Exception:
        assert layer.forward is before
        return
    assert layer.forward is before
    net.detach()
    assert layer.forward is before


def test_a_task_that_is_learned_twice_gives_the_same_bits() -> None:
    found = []
    for _ in range(2):
        net, x, _, _ = full_network()
        net.forget("second")
        learn(net, "second", 1)
        found.append(logits(net, x, "second"))
    assert torch.equal(*found)
    assert PartialGradient(torch.arange(2)).columns is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_derivatives_that_the_layers_own_forward_has() -> None:
    """Batched gradients, forward-mode derivatives and calls with other weights are those of the plain layers."""
    net, x, _, _ = full_network()
    assert net.masking.attachment.partial_gradients
    net.eval()
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z, "second"), x[:2], vectorize=True)
    slow = torch.autograd.functional.jacobian(lambda z: net(z, "second"), x[:2])
    torch.testing.assert_close(jacobian, slow)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[:2], torch.ones_like(x[:2]))
        tangent = torch.autograd.forward_ad.unpack_dual(net(dual, "second")).tangent
    torch.testing.assert_close(tangent, slow.sum((2, 3)))
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in net.named_parameters()}
    torch.func.functional_call(net, weights, (x, "second")).sum().backward()
    own = torch.autograd.grad(net(x, "second").sum(), net.backbone[2].weight)[0]
    given = weights["backbone.2.weight"].grad
    assert given is not None
    held = net.protected()["backbone.2.weight"]
    torch.testing.assert_close(given[~held], own[~held])
    assert given[held].any(), "nobody holds weights that a caller brings along"
