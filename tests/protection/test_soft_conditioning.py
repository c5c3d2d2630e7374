"""Conditioning that gives way: AdaHAT's, and tasks that fade; and HAT's own alternatives, which give nothing away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributions, nn
from torch.nn import functional as F

import hatrack
from hatrack import Adaptive, AdaptiveScaling, Fading, GateFunction, HATNetwork, InputError, Regularization
from hatrack.functional import Compensation
from hatrack.protection.conditioning import UnitConditioning, describe_unit_conditioning, unit_conditioning_from
from support.helpers import NETS, assert_poison_harmless, learn, logits


def network(conditioning: UnitConditioning = hatrack.Conditioning.CUMULATIVE, **options: Any) -> HATNetwork:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU()]
    return HATNetwork(nn.Sequential(*layers), torch.zeros(2, 6), s_max=50.0, conditioning=conditioning, **options)


def with_masks(net: HATNetwork, *masks: tuple[list[int], list[int]]) -> HATNetwork:
    """A network whose consolidated tasks use these units of the two layers, and a further task in training."""
    for index, (first, second) in enumerate(masks):
        embedding = torch.full((9,), -1.0)
        embedding[first] = 1.0
        embedding[[5 + unit for unit in second]] = 1.0
        net.add_task(f"task {index}", 2, embedding=embedding)
        net.consolidate(f"task {index}")
    net.add_task("last", 2, embedding=torch.linspace(-0.05, 0.05, 9))
    return net


MASKS = (([0, 1], [0]), ([1, 2], [0, 1]), ([1], [0, 3]))
USES = ([1, 3, 1, 0, 0], [3, 1, 0, 1])
"""How many of the three tasks use each unit."""


def a_step(net: HATNetwork, optimizer: torch.optim.Optimizer) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights before and after one step on a fixed batch, by name."""
    net.train()
    net.anneal(0.5)
    before = {name: p.detach().clone() for name, p in net.backbone.named_parameters()}
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    F.cross_entropy(net(x, "last"), torch.arange(16) % 2).backward()
    optimizer.step()
    return {name: (before[name], p.detach().clone()) for name, p in net.backbone.named_parameters()}


def rates(net: HATNetwork, rule: Adaptive) -> list[float]:
    """r of the two layers, from the attention that training uses at half of the epoch."""
    attention = torch.sigmoid((1 / 50 + (50 - 1 / 50) * 0.5) * net.tasks[-1].embedding.detach())
    result = []
    for start, uses in ((0, USES[0]), (5, USES[1])):
        free = [unit for unit, count in enumerate(uses) if count == 0]
        share = sum(float(attention[start + unit]) for unit in free) / len(free)
        result.append(rule.alpha / (rule.epsilon + share))
    return result


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_adahat_scales_every_step_as_its_formula_says(optimizer: str) -> None:
    rule = Adaptive(alpha=0.05, epsilon=0.2, scaled=AdaptiveScaling.STEPS)
    net = with_masks(network(rule), *MASKS)
    free = with_masks(network(Adaptive(alpha=1e30)), *MASKS)  # leaves every step as it is
    first, second = rates(net, rule)
    moved = a_step(net, net.protect(OPTIMIZERS[optimizer](net.task_parameters("last"))))
    unhindered = a_step(free, free.protect(OPTIMIZERS[optimizer](free.task_parameters("last"))))
    for name, (before, after) in moved.items():
        step = unhindered[name][1] - before
        rate = first if name.startswith("1.") else second
        for place in torch.cartesian_prod(*[torch.arange(size) for size in before.shape]):
            at = tuple(torch.atleast_1d(place).tolist())
            count = USES[0][at[0]] if name.startswith("1.") else USES[1][at[0]]
            if name == "3.weight":
                count = min(count, USES[0][at[1]])
            expected = float(before[at]) + float(step[at]) * rate / (count + rate)
            assert float(after[at]) == pytest.approx(expected, abs=1e-6), (name, at)
    assert any(float((after - before).abs().max()) > 1e-3 for before, after in moved.values())


def freedom(name: str, shape: torch.Size, rule: Adaptive, net: HATNetwork) -> torch.Tensor:
    """``r / (n + r)`` of every entry of a parameter."""
    first, second = rates(net, rule)
    uses, rate = (USES[0], first) if name.startswith("1.") else (USES[1], second)
    counts = torch.tensor(uses, dtype=torch.float32).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    counts = torch.minimum(counts, torch.tensor(USES[0], dtype=torch.float32)) if name == "3.weight" else counts
    return rate / (counts + rate)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_adahat_can_scale_gradients_for_every_optimizer(optimizer: str) -> None:
    """Whatever the optimizer makes of it: the same as a step of it on gradients that were scaled by hand."""
    rule = Adaptive(alpha=0.05, epsilon=0.2, scaled=AdaptiveScaling.GRADIENTS)
    net = with_masks(network(rule), *MASKS)
    free = with_masks(network(Adaptive(alpha=1e30)), *MASKS)  # leaves every gradient as it is
    shapes = {name: value.shape for name, value in free.backbone.named_parameters()}
    by_hand = {name: freedom(name, shape, rule, net) for name, shape in shapes.items()}
    moved = a_step(net, net.protect(OPTIMIZERS[optimizer](net.task_parameters("last"))))
    stepper = free.protect(OPTIMIZERS[optimizer](free.task_parameters("last")))

    def scale(*_: object) -> None:
        for name, parameter in free.backbone.named_parameters():
            parameter.grad = parameter.grad * by_hand[name]

    stepper.register_step_pre_hook(scale)
    expected = a_step(free, stepper)
    for name, (_, after) in moved.items():
        torch.testing.assert_close(after, expected[name][1], rtol=1e-5, atol=1e-7)
    assert any(float((after - before).abs().max()) > 1e-3 for before, after in moved.values())


def test_with_sgd_gradients_and_steps_are_the_same_and_with_adam_they_are_not() -> None:
    for optimizer, same in (("sgd", True), ("adam", False)):
        ends = []
        for scaled in AdaptiveScaling:
            net = with_masks(network(Adaptive(alpha=0.05, epsilon=0.2, scaled=scaled)), *MASKS)
            ends.append(a_step(net, net.protect(OPTIMIZERS[optimizer](net.task_parameters("last")))))
        moves = [torch.cat([(after - before).flatten() for before, after in each.values()]) for each in ends]
        assert torch.allclose(*moves, rtol=1e-5, atol=1e-7) is same
        if not same:  # Adam makes up for a factor that is there from the first step on
            assert float(moves[0].norm()) > 1.5 * float(moves[1].norm())


def test_a_closure_makes_gradients_too_late_and_steps_are_scaled() -> None:
    moved = []
    for scaled in AdaptiveScaling:
        net = with_masks(network(Adaptive(alpha=0.05, epsilon=0.2, scaled=scaled)), *MASKS)
        optimizer = net.protect(OPTIMIZERS["adam"](net.task_parameters("last")))
        step = optimizer.step
        optimizer.step = lambda step=step: step(lambda: torch.zeros(()))
        moved.append(a_step(net, optimizer))
    assert all(torch.equal(moved[0][name][1], moved[1][name][1]) for name in moved[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_are_after_a_step_what_they_were_before(optimizer: str) -> None:
    """So that a step that failed, and is made again, does not scale them twice."""
    gradients = []
    for alpha in (0.05, 1e30):  # the second leaves every gradient as it is
        net = with_masks(network(Adaptive(alpha, epsilon=0.2)), *MASKS)
        a_step(net, net.protect(OPTIMIZERS[optimizer](net.task_parameters("last"))))
        gradients.append([p.grad for p in net.backbone.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_files_that_do_not_say_what_is_scaled_scale_steps() -> None:
    described = {"kind": "adaptive", "alpha": 0.5, "epsilon": 0.2}
    assert unit_conditioning_from(described) == Adaptive(0.5, 0.2, AdaptiveScaling.STEPS)
    for scaled in AdaptiveScaling:
        rule = Adaptive(0.5, 0.2, scaled)
        assert unit_conditioning_from(json.loads(json.dumps(describe_unit_conditioning(rule)))) == rule


def test_adahat_forgets_what_hat_keeps() -> None:
    drift = {}
    for alpha in (1e-6, 0.1):
        torch.manual_seed(0)
        net = HATNetwork(NETS["mlp"].build(), torch.zeros(2, *NETS["mlp"].shape), conditioning=Adaptive(alpha))
        samples, _ = learn(net, "a")
        promised = logits(net, samples, "a")
        for number in range(1, 4):
            learn(net, f"task {number}", number)
        drift[alpha] = float((logits(net, samples, "a") - promised).abs().max())
        assert not any(held.any() for name, held in net.protected().items() if name.startswith("backbone."))
        net.check()
    assert 0.0 < 100 * drift[1e-6] < drift[0.1]


def test_what_fades_moves_by_what_is_no_longer_held() -> None:
    net = with_masks(network(Fading(0.5)), *MASKS)
    free = with_masks(network(Adaptive(alpha=1e30)), *MASKS)
    moved = a_step(net, net.protect(torch.optim.SGD(net.task_parameters("last"), lr=0.5)))
    unhindered = a_step(free, free.protect(torch.optim.SGD(free.task_parameters("last"), lr=0.5)))
    held = ([0.25, 1.0, 0.5, 0.0, 0.0], [1.0, 0.5, 0.0, 1.0])  # of the last task 1, of the one before 1/2, then 1/4
    for name, attention in (("1.bias", held[0]), ("3.bias", held[1])):
        before, after = moved[name]
        step = unhindered[name][1] - before
        assert after.tolist() == pytest.approx((before + (1 - torch.tensor(attention)) * step).tolist(), abs=1e-6)
        still = torch.tensor(attention) == 1
        assert torch.equal(after[still], before[still])
    net.consolidate("last")  # what the last task held has kept its bits


@pytest.mark.parametrize("conditioning", [Adaptive(0.01, 0.3), Fading(0.25)])
def test_softer_conditionings_are_saved(conditioning: UnitConditioning, tmp_path: Path) -> None:
    net = network(conditioning, gate_function=GateFunction.ARCTAN, regularizer=Regularization.L2)
    learn(net, "a")
    learn(net, "b", 1)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", network().detach())
    assert again.conditioning == conditioning
    assert (again.gate_function, again.regularizer) == (GateFunction.ARCTAN, Regularization.L2)
    x = torch.randn(4, 6)
    assert torch.equal(logits(again, x, "a"), logits(net, x, "a"))


@pytest.mark.parametrize(
    "options",
    [
        *({"gate_function": function} for function in GateFunction),
        *({"regularizer": kind} for kind in Regularization),
        {"gate_function": GateFunction.SOFTSIGN, "compensation": Compensation.NONE},
    ],
    ids=lambda options: "-".join(value.value for value in options.values()),
)
def test_alternatives_of_hat_keep_the_law(options: dict[str, Any]) -> None:
    net = network(**options)
    samples, promised = {}, {}
    for number in range(3):
        task = f"task {number}"
        samples[task], _ = learn(net, task, number)
        promised[task] = logits(net, samples[task], task)
        assert all(torch.equal(logits(net, samples[name], name), kept) for name, kept in promised.items())
    assert_poison_harmless(net, samples)


def test_unweighted_regularizers_count_units_in_use_again() -> None:
    embedding = torch.full((9,), 6.0)
    weighted = ((Regularization.WEIGHTED_L1, 0.0), (Regularization.LAYERED_L1, 0.0))
    for kind, expected in (*weighted, (Regularization.L1, 1.0), (Regularization.L2, 1.0)):
        net = network(regularizer=kind)
        net.add_task("a", 2, embedding=embedding)
        net.consolidate("a")  # it takes all there is
        net.add_task("b", 2, embedding=embedding)
        net.train()
        net.anneal(1.0)
        assert float(net.regularization().detach()) == pytest.approx(expected)


def test_embeddings_start_where_one_says() -> None:
    generator = torch.Generator().manual_seed(3)
    net = network()
    net.add_task("plain", 2, generator=generator)
    head = net.tasks[0].head.weight.detach().clone()
    net.consolidate("plain")
    state = torch.random.get_rng_state()
    net.add_task("uniform", 2, generator=generator.manual_seed(3), embedding=distributions.Uniform(0.5, 2.0))
    drawn = net.tasks[1].embedding.detach().clone()
    assert ((drawn >= 0.5) & (drawn <= 2.0)).all()
    assert len(drawn.unique()) == 9
    assert torch.equal(torch.random.get_rng_state(), state)
    net.consolidate("uniform")
    net.add_task("wide", 2, embedding=distributions.Normal(0.0, 100.0))
    assert float(net.tasks[2].embedding.detach().abs().max()) == 6.0
    net.consolidate("wide")
    net.add_task("by hand", 2, embedding=torch.arange(9) / 3.0)
    assert torch.equal(net.tasks[3].embedding.detach(), torch.arange(9) / 3.0)
    assert head.shape == net.tasks[1].head.weight.shape


@pytest.mark.parametrize(
    "embedding",
    [torch.zeros(8), torch.full((9,), 7.0), torch.full((9,), float("nan")), distributions.Normal(torch.zeros(9), 1.0)],
)
def test_embeddings_that_do_not_fit_are_refused(embedding: Any) -> None:
    net = network()
    with pytest.raises(InputError, match="embedding"):
        net.add_task("a", 2, embedding=embedding)
    assert net.task_names == ()


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": float("inf")}, {"epsilon": -1.0}])
def test_rates_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        Adaptive(**wrong)


@pytest.mark.parametrize("keep", [1.0, -0.1, 2.0])
def test_keeping_all_or_more_is_refused(keep: float) -> None:
    with pytest.raises(InputError, match="keep must be"):
        Fading(keep)
