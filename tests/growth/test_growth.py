"""Growth: a network that is widened between tasks keeps every old output, and learns on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hatrack
from hatrack import (
    Adaptive,
    BatchNorms,
    Conditioning,
    Fading,
    HATNetwork,
    InputError,
)
from hatrack.backbones import MLP, initialize_xavier
from support.growing_networks import ROUNDING, TINY, assert_close_to, every_group, network, say
from support.helpers import (
    accuracy,
    assert_poison_harmless,
    attach,
    easy_task,
    learn,
    logits,
    loss_of,
    open_task,
    train,
)
from support.marks import examples, slow_but

# ------------------------------------------------------------------------------------------------------------ the law

WIDENED = [
    *("mlp", "alexnet", "conv-bn", "resnet-basic", "depthwise", "densenet", "u-net", "gated-linear", "pixel-shuffle"),
    *("squeeze-excite", "called-twice"),
]


@pytest.mark.parametrize("kind", slow_but(["mlp"], WIDENED))
def test_old_outputs_survive_two_widenings_and_new_tasks(kind: str) -> None:
    net = network(kind)
    samples: dict[str, Tensor] = {}
    for number in range(4):
        if number >= 2:
            widths = {group.name: group.size for group in net.units.groups}
            before = say(net, samples)
            net.grow(every_group(net, number))
            assert {group.name: group.size - number for group in net.units.groups} == widths
            assert_close_to(net, samples, before, ROUNDING)
            assert not any(mask[-number:].any() for task in samples for mask in net.masks(task).values())
        promised = say(net, samples)
        samples[f"task {number}"], _ = learn(net, f"task {number}", number, steps=8)
        for task, kept in promised.items():
            assert torch.equal(logits(net, samples[task], task), kept), task
    assert_poison_harmless(net, samples)
    net.check()


@pytest.mark.parametrize("kind", ["mlp", "conv-bn"])
def test_in_double_precision_they_agree_to_the_last_digits(kind: str) -> None:
    net = attach(kind, dtype=torch.float64)
    samples = {name: learn(net, name, seed)[0] for seed, name in enumerate("ab")}
    before = say(net, samples)
    net.grow(every_group(net))
    assert_close_to(net, samples, before, 1e-14)


def test_new_units_serve_new_tasks() -> None:
    net = HATNetwork(copy.deepcopy(TINY), torch.zeros(2, 6), s_max=100.0)
    samples = {"full": torch.randn(4, 6)}
    net.add_task("full", 3)
    with torch.no_grad():
        net.tasks[0].embedding.fill_(1.0)
    net.consolidate("full")
    assert net.capacity().units == net.capacity().weights == 1.0
    before = logits(net, samples["full"], "full")
    net.grow({"dense1": 24, "dense2": 24}, generator=torch.Generator().manual_seed(0))
    assert_close_to(net, samples, {"full": before}, ROUNDING)
    assert net.capacity().groups == {"dense1": 0.25, "dense2": 0.25}
    x, y = easy_task((6,), 1)
    before = logits(net, samples["full"], "full")
    net.add_task("new", 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for group in net.units.groups:
            net.tasks[1].embedding[group.span] = torch.tensor([-6.0] * 8 + [1.0] * 24)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("new"), lr=0.1, momentum=0.9))
    train(net, "new", x, y, optimizer)
    net.consolidate("new")
    assert accuracy(net, x, y, "new") == 1.0
    assert not any(mask[:8].any() for mask in net.masks("new").values()), "it learned without the old units"
    assert torch.equal(logits(net, samples["full"], "full"), before)


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", Conditioning)
@pytest.mark.parametrize("batch_norms", BatchNorms)
def test_other_ways_to_hold_and_to_normalise(batch_norms: BatchNorms, conditioning: Conditioning) -> None:
    net = network("resnet-basic", batch_norms=batch_norms, conditioning=conditioning)
    samples = {name: learn(net, name, seed)[0] for seed, name in enumerate("ab")}
    before = say(net, samples)
    net.grow(every_group(net))
    assert_close_to(net, samples, before, ROUNDING)
    promised = say(net, samples)
    samples["c"], _ = learn(net, "c", 2)
    assert all(torch.equal(logits(net, samples[task], task), kept) for task, kept in promised.items())
    assert_poison_harmless(net, samples)


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", [Fading(0.5), Adaptive()])
def test_tasks_that_may_fade_do_not_notice_a_widening(conditioning: Fading | Adaptive) -> None:
    net = network("resnet-basic", conditioning=conditioning)
    samples = {name: learn(net, name, seed)[0] for seed, name in enumerate("ab")}
    before = say(net, samples)
    net.grow(every_group(net))
    assert_close_to(net, samples, before, ROUNDING)
    learn(net, "c", 2)
    net.check()


def test_soft_masks_are_0_for_new_units() -> None:
    net = attach("mlp", hard=False)
    samples = {"a": learn(net, "a")[0]}
    before = say(net, samples)
    net.grow({"1": 5})
    assert net.masks("a")["1"][-5:].tolist() == [0.0] * 5
    assert_close_to(net, samples, before, ROUNDING)


def test_convolutions_in_groups_grow_by_whole_groups() -> None:
    net = network("grouped-dilated-transposed")
    samples = {"a": learn(net, "a")[0]}
    before = say(net, samples)
    with pytest.raises(InputError, match="each more takes 3 inputs and 4 outputs"):
        net.grow({"0": 6, "2": 4})
    assert all(torch.equal(logits(net, samples["a"], "a"), kept) for kept in before.values())
    net.grow({"0": 6, "2": 8, "5": 6})
    assert [net.backbone[i].groups for i in (2, 5)] == [6, 3]
    assert_close_to(net, samples, before, ROUNDING)
    assert_poison_harmless(net, samples)


@pytest.mark.slow
@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    channels=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    dense=st.integers(1, 6),
    added=st.lists(st.integers(1, 7), min_size=5, max_size=5),
    side=st.integers(1, 3),
    skip=st.booleans(),
)
def test_any_widths(channels: list[int], dense: int, added: list[int], side: int, skip: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inputs = [2, *channels]
            self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(inputs, channels, strict=False))
            self.norm = nn.BatchNorm2d(sum(channels) if skip else channels[-1])
            self.out = nn.Linear(self.norm.num_features * side**2, dense)

        def forward(self, x: Tensor) -> Tensor:
            seen = []
            for conv in self.convs:
                x = torch.relu(conv(x))
                seen.append(x)
            return torch.sigmoid(self.out(self.norm(torch.cat(seen, 1) if skip else x).flatten(1)))

    torch.manual_seed(0)
    net = HATNetwork(Net(), torch.zeros(2, 2, side, side), s_max=100.0)
    samples = {"a": learn(net, "a", steps=2)[0]}
    before = say(net, samples)
    net.grow({group.name: count for group, count in zip(net.units.groups, added, strict=False)})
    assert_close_to(net, samples, before, 2e-6)  # logits of single units may cancel
    assert_poison_harmless(net, samples)


# --------------------------------------------------------------------------------------------------- the slow oracle


@pytest.mark.slow
def test_it_is_the_network_that_was_wide_from_the_start() -> None:
    """Two convolutions, flattened 2×2, and a dense layer; every old entry is looked for by its meaning."""

    def build(first: int, second: int, dense: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(2, first, 3), nn.BatchNorm2d(first), nn.PReLU(first), nn.Conv2d(first, second, 3)),
            *(nn.ReLU(), nn.Flatten(), nn.Linear(4 * second, dense), nn.Tanh()),
        )

    torch.manual_seed(0)
    net = HATNetwork(build(5, 6, 7), torch.zeros(2, 2, 6, 6), s_max=100.0)
    samples = {name: learn(net, name, seed)[0] for seed, name in enumerate("ab")}
    old = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    masks = [state.mask for state in net.tasks]
    net.grow({"0": 2, "3": 1, "6": 3})
    new = net.state_dict()

    for o in range(6):
        for i in range(5):
            assert torch.equal(new["backbone.3.weight"][o, i], old["backbone.3.weight"][o, i])
    for o in range(7):
        for channel in range(6):
            for position in range(4):
                entry = new["backbone.6.weight"][o, 4 * channel + position]
                assert entry == old["backbone.6.weight"][o, 4 * channel + position]
    for task, tensor, fresh in [(0, "weight", 1.0), (1, "bias", 0.0), (1, "running_mean", 0.0), (0, "running_var", 1)]:
        values = new[f"tasks.{task}.batch_norms.0.{tensor}"]
        assert values[:5].tolist() == old[f"tasks.{task}.batch_norms.0.{tensor}"].tolist()
        assert values[5:].tolist() == [fresh] * 2
    for task in (0, 1):
        mask, before = net.tasks[task].mask.tolist(), masks[task].tolist()
        off = [False]
        assert mask == [*before[:5], *2 * off, *before[5:11], *off, *before[11:], *3 * off]
        assert new[f"tasks.{task}.head.weight"][:, :7].equal(old[f"tasks.{task}.head.weight"])
        assert not new[f"tasks.{task}.head.weight"][:, 7:].any()

    wide = HATNetwork(build(7, 7, 10), torch.zeros(2, 2, 6, 6), s_max=100.0)
    for name in samples:
        wide.add_task(name, 3)
        wide.consolidate(name)
    wide.load_state_dict(net.state_dict())
    assert str(wide.units) == str(net.units)
    assert all(torch.equal(logits(wide, x, task), logits(net, x, task)) for task, x in samples.items())
    held = wide.protected()
    assert all(torch.equal(kept, held[name]) for name, kept in net.protected().items())
    results = []
    for each in (wide, net):
        generator = torch.Generator().manual_seed(3)
        each.add_task("c", 3, generator=generator)
        x, y = easy_task((2, 6, 6), 3)
        train(each, "c", x, y, each.protect(torch.optim.Adam(each.task_parameters("c"), lr=0.01)), steps=5)
        results.append(logits(each, x, "c"))
    assert torch.equal(*results)


# -------------------------------------------------------------------------------------------------- new weights


def test_new_weights_are_spread_as_the_layers_were_at_first() -> None:
    backbone = MLP((40,), (60, 60))
    initialize_xavier(backbone, torch.Generator().manual_seed(0))
    net = HATNetwork(backbone, torch.zeros(2, 40))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(7.0)  # training moves weights; what counts is what they were
    state = torch.get_rng_state()
    net.grow({"dense1": 300, "dense2": 300}, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    for layer, fan_in, fan_in_before in ((backbone.dense1, 40, 40), (backbone.dense2, 360, 60)):
        new = layer.weight.detach()[60:]
        xavier = (2 / (fan_in_before + 60)) ** 0.5
        assert float(new.std()) == pytest.approx(xavier * (fan_in_before / fan_in) ** 0.5, rel=0.05)
        assert float(new.abs().max()) <= 1.05 * 3**0.5 * float(new.std())
        assert not layer.bias[60:].any(), "Xavier's biases are 0"


@pytest.mark.slow
def test_the_generator_decides_alone() -> None:
    grown = []
    for seed in (1, 1, 2):
        net = attach("conv-bn")
        torch.manual_seed(len(grown))
        net.grow({"4": 3}, generator=torch.Generator().manual_seed(seed))
        grown.append(net.backbone.state_dict()["4.weight"])
    assert torch.equal(grown[0], grown[1])
    assert not torch.equal(grown[0], grown[2])
    assert torch.equal(grown[0][:12], grown[2][:12])


# --------------------------------------------------------------------------------------------------- optimizers

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_are_carried_over(kind: str) -> None:
    net = attach("conv-bn")
    samples: dict[str, Tensor] = {}
    x, y = easy_task(net.example_shape[1:], 0)
    open_task(net, "a")
    optimizer = net.protect(OPTIMIZERS[kind](net.task_parameters("a")))
    train(net, "a", x, y, optimizer, steps=5)
    net.consolidate("a")
    samples["a"] = x
    weight = net.backbone[9].weight
    remembered = {key: value.clone() for key, value in optimizer.state[weight].items() if value.dim()}
    assert remembered
    net.grow(every_group(net))
    assert net.backbone[9].weight is weight
    assert weight.shape == (23, 60)
    for key, before in remembered.items():
        now = optimizer.state[weight][key]
        assert torch.equal(now[:20, :48], before), key
        assert not now[20:].any(), key
        assert not now[:, 48:].any(), key
    promised = say(net, samples)
    open_task(net, "b", 1)
    optimizer.add_param_group({"params": net.task_parameters("b", new_only=True)})
    samples["b"], y = easy_task(net.example_shape[1:], 1)
    before_training = weight.detach().clone()
    train(net, "b", samples["b"], y, optimizer, steps=5)
    net.consolidate("b")
    assert not torch.equal(weight[20:], before_training[20:]), "new units are trained"
    assert all(torch.equal(logits(net, samples[task], task), kept) for task, kept in promised.items())
    assert_poison_harmless(net, samples)


@pytest.mark.parametrize("kind", ["lbfgs", "lbfgs, first parameter as it was", "adafactor"])
def test_memory_of_another_form_is_dropped_and_the_optimizer_begins_anew_there(kind: str) -> None:
    """Adafactor remembers sums over rows and columns, LBFGS all past steps with its first parameter."""
    net = attach("mlp")
    x, y = easy_task(net.example_shape[1:], 0)
    open_task(net, "a")
    parameters = net.task_parameters("a")
    if "as it was" in kind:
        parameters.sort(key=lambda parameter: parameter.dim())
    if kind == "adafactor":
        optimizer: torch.optim.Optimizer = torch.optim.Adafactor(parameters, lr=0.01)
    else:
        optimizer = torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)
    net.protect(optimizer)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(net, net.task_names[-1], x, y)
        loss.backward()
        return float(loss.detach())

    net.train()
    net.anneal(1.0)
    optimizer.step(closure)
    net.consolidate("a")
    kept = logits(net, x, "a")
    wide, narrow = net.backbone.get_parameter("1.weight"), net.backbone.get_parameter("4.bias")
    remembered = dict(optimizer.state.get(narrow, {}))
    with pytest.raises(InputError, match="at least 1"):
        net.grow({"1": 0})
    assert dict(optimizer.state.get(narrow, {})) == remembered
    net.grow({"1": 2})
    assert not optimizer.state.get(wide)
    torch.testing.assert_close(logits(net, x, "a"), kept)
    kept = logits(net, x, "a")
    open_task(net, "b", 1)
    if kind == "adafactor":
        optimizer.add_param_group({"params": net.task_parameters("b", new_only=True)})
    else:  # which takes no further parameters
        optimizer = net.protect(torch.optim.LBFGS(net.task_parameters("b"), lr=0.1, max_iter=2))
    before = wide.detach().clone()
    net.train()
    net.anneal(1.0)
    optimizer.step(closure)
    net.consolidate("b")
    assert not torch.equal(wide, before)
    assert torch.equal(logits(net, x, "a"), kept)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_memory_of_a_parameter_of_one_entry_is_widened_and_a_count_of_steps_is_not(kind: str) -> None:
    backbone = nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 8), nn.Tanh())
    net = hatrack.HATNetwork(backbone, torch.zeros(2, 6))
    x, y = easy_task((6,), 0)
    open_task(net, "a")
    optimizer = net.protect(OPTIMIZERS[kind](list(net.parameters())))
    train(net, "a", x, y, optimizer, steps=2)
    net.consolidate("a")
    steps = [memory["step"].clone() for memory in optimizer.state.values() if "step" in memory]
    net.grow({net.units.groups[0].name: 2})
    assert backbone[0].bias.shape == (3,)
    for memory in (optimizer.state[backbone[0].bias], optimizer.state[backbone[2].weight]):
        assert memory, "nothing was dropped"
    assert all(value.shape == (3,) for key, value in optimizer.state[backbone[0].bias].items() if key != "step")
    assert [memory["step"] for memory in optimizer.state.values() if "step" in memory] == steps
    kept = logits(net, x, "a")
    open_task(net, "b", 1)
    optimizer.add_param_group({"params": net.task_parameters("b", new_only=True)})
    train(net, "b", x, y, optimizer, steps=2)
    net.consolidate("b")
    assert torch.equal(logits(net, x, "a"), kept)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("scorer", list(hatrack.Scorer))
def test_tasks_are_recognised_as_before(scorer: hatrack.Scorer, hard: bool, tmp_path: Path) -> None:
    """Statistics are of the features that a task uses; with soft masks these are all, of which there are more now."""
    backbone = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
    net = hatrack.HATNetwork(backbone, torch.zeros(2, 6), hard=hard)
    x, y = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    for name in "ab":
        net.add_task(name, 3)
        net.consolidate(name)
        net.calibrate(name, x, y)
    before = net.eval().infer(x, scorer).scores
    net.grow({net.units.groups[0].name: 4})
    torch.testing.assert_close(net.eval().infer(x, scorer).scores, before, rtol=1e-3, atol=1e-4)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", nn.Sequential(nn.Linear(6, 10), nn.ReLU()))
    assert torch.equal(again.eval().infer(x, scorer).scores, net.infer(x, scorer).scores)


def test_a_loss_that_is_still_held_does_not_matter() -> None:
    net = attach("mlp")
    open_task(net, "a")
    x, y = easy_task(net.example_shape[1:], 0)
    net.train()
    loss = loss_of(net, "a", x, y)
    loss.backward()
    net.consolidate("a")
    net.grow(every_group(net))
    open_task(net, "b", 1)
    loss_of(net, "b", x, y).backward()
    assert net.backbone[4].weight.grad.shape == (35, 35)
    assert loss.requires_grad
