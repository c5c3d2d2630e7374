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
from torch.nn.utils.parametrizations import weight_norm

import hatrack
from hatrack import (
    Adaptive,
    BatchNorms,
    CheckpointError,
    Conditioning,
    Fading,
    Growth,
    GuaranteeError,
    HATNetwork,
    InputError,
)
from hatrack.growth import free_units, plan_growth
from hatrack.networks import MLP, initialize_xavier
from helpers import (
    NETS,
    accuracy,
    assert_poison_harmless,
    attach,
    easy_task,
    learn,
    logits,
    loss_of,
    mode,
    open_task,
    progress,
    train,
)
from zoo import ZOO

ROUNDING = 1e-6
"""How far old outputs may be from what they were, of their scale: kernels sum in another order for another shape."""

TINY = MLP((6,), (8, 8))


def network(kind: str, **options: object) -> HATNetwork:
    if kind in NETS:
        return attach(kind)
    torch.manual_seed(0)
    return HATNetwork(ZOO[kind].build(), torch.zeros(2, *(ZOO[kind].shape or ())), s_max=100.0, **options)  # type: ignore[arg-type]


def every_group(net: HATNetwork, units: int = 3) -> dict[str, int]:
    return {group.name: units for group in net.units.groups}


def assert_close_to(net: HATNetwork, samples: dict[str, Tensor], before: dict[str, Tensor], share: float) -> None:
    for task, kept in before.items():
        distance = (logits(net, samples[task], task) - kept).abs().max()
        assert distance <= share * kept.abs().max(), (task, float(distance / kept.abs().max()))


def say(net: HATNetwork, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: logits(net, x, task) for task, x in samples.items()}


# ------------------------------------------------------------------------------------------------------------ the law

WIDENED = [
    *("mlp", "alexnet", "conv-bn", "resnet-basic", "depthwise", "densenet", "u-net", "gated-linear", "pixel-shuffle"),
    *("squeeze-excite", "called-twice"),
]


@pytest.mark.parametrize("kind", WIDENED)
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


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
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


def test_memory_of_another_shape_is_refused() -> None:
    net = attach("mlp")
    x, y = easy_task(net.example_shape[1:], 0)
    open_task(net, "a")
    optimizer = net.protect(torch.optim.LBFGS(net.task_parameters("a"), lr=0.1, max_iter=2))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, "a", x, y)
        loss.backward()
        return loss

    net.train()
    net.anneal(1.0)
    optimizer.step(closure)
    net.consolidate("a")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match="LBFGS remembers"):
        net.grow({"1": 2})
    now = net.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items() if isinstance(value, Tensor))


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


# ---------------------------------------------------------------------------------------------------- growing by itself


def use(net: HATNetwork, name: str, units: dict[str, int], generator: torch.Generator | None = None) -> None:
    """Consolidate a task that takes so many more units of each group, without training."""
    net.add_task(name, 3, generator=generator)
    with torch.no_grad():
        embedding = net.tasks[-1].embedding.fill_(-1.0)
        for group in net.units.groups:
            used = sum(net.masks(task)[group.name].long() for task in net.task_names[:-1]) + torch.zeros(group.size)
            free = (used == 0).nonzero().flatten()
            embedding[group.start + free[: units[group.name]]] = 1.0
    net.consolidate(name)


def test_a_group_grows_when_too_little_of_it_is_free() -> None:
    net = HATNetwork(MLP((6,), (20, 10)), torch.zeros(2, 6), growth=Growth(threshold=0.3, share=0.35))
    use(net, "a", {"dense1": 14, "dense2": 2})
    assert sizes(net) == {"dense1": 20, "dense2": 10}
    use(net, "b", {"dense1": 1, "dense2": 2})  # 6 of 20 were free, which is not below 0.3
    assert sizes(net) == {"dense1": 20, "dense2": 10}
    use(net, "c", {"dense1": 9, "dense2": 5})  # 5 of 20: 7 more, which is 0.35 of 20
    assert sizes(net) == {"dense1": 27, "dense2": 10}
    use(net, "d", {"dense1": 1, "dense2": 1})  # 3 and 1 left: 7 more, and 4 more (0.35 of 10, rounded up)
    assert sizes(net) == {"dense1": 34, "dense2": 14}
    net.check()


def sizes(net: HATNetwork) -> dict[str, int]:
    return {group.name: group.size for group in net.units.groups}


def test_the_plan_counts_free_units_of_the_original_width() -> None:
    net = HATNetwork(MLP((6,), (20, 10)), torch.zeros(2, 6))
    used = torch.zeros(30, dtype=torch.bool)
    used[:19] = True
    free, origin = free_units(net.units, used), {"dense1": 20, "dense2": 10}
    assert free == free_units(net.units, used.double()) == {"dense1": 1, "dense2": 10}
    assert plan_growth(Growth(0.2, 0.1), free, origin) == {"dense1": 3}, "as many as the threshold asks for"
    assert plan_growth(Growth(0.2, 0.5), free, origin) == {"dense1": 10}
    assert plan_growth(Growth(0.05, 0.5), free, origin) == {}
    assert plan_growth(Growth(1.0, 0.1), free, {"dense1": 1, "dense2": 11}) == {"dense2": 2}
    assert plan_growth(Growth(0.2, 0.1), {"dense1": 1.5}, origin) == {"dense1": 3}, "2.5, of whole units"


def test_the_number_of_tasks_has_no_bound() -> None:
    torch.manual_seed(0)
    net = HATNetwork(MLP((6,), (6, 6)), torch.zeros(2, 6), s_max=100.0, growth=Growth(0.5, 1.0))
    promised: dict[str, tuple[Tensor, Tensor]] = {}
    for number in range(8):
        name = f"task {number}"
        x, y = easy_task((6,), number)
        widths, before = sizes(net), {task: (x, logits(net, x, task)) for task, (x, _) in promised.items()}
        net.add_task(name, 3, generator=torch.Generator().manual_seed(number))
        for task, (seen, kept) in before.items():
            if sizes(net) == widths:
                assert torch.equal(logits(net, seen, task), kept)
            else:
                assert_close_to(net, {task: seen}, {task: kept}, ROUNDING)
            promised[task] = (seen, logits(net, seen, task))
        train(net, name, x, y, net.protect(torch.optim.Adam(net.task_parameters(name), lr=0.03)), steps=100)
        net.consolidate(name)
        assert all(torch.equal(logits(net, seen, task), kept) for task, (seen, kept) in promised.items())
        assert accuracy(net, x, y, name) == 1.0, name
        promised[name] = (x, logits(net, x, name))
    assert min(sizes(net).values()) > 6


def test_what_cannot_grow_stays_and_a_warning_says_so() -> None:
    backbone = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    net = HATNetwork(backbone, torch.zeros(2, 6), growth=Growth())
    use(net, "a", {"0": 8, "3": 1})
    with pytest.warns(UserWarning, match=r"no full group can grow: .*\(LayerNorm\), which takes a fixed number"):
        use(net, "b", {"0": 0, "3": 7})
    use(net, "c", {"0": 0, "3": 1})
    assert sizes(net) == {"0": 8, "3": 10}


@pytest.mark.parametrize("wrong", [{"threshold": -0.1}, {"threshold": 1.1}, {"share": 0.0}, {"share": float("inf")}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="of growth must be"):
        Growth(**wrong)


# ------------------------------------------------------------------------------------------------------- refusals


class Averaging(nn.Module):
    """Divides by the number of units, which a wider network would change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return torch.sigmoid(self.last(h / h.shape[1]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


REFUSED = {
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)), "0", "LayerNorm"),
    "group norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 8)), "0", "GroupNorm"),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 8)),
        "0",
        "ParametrizedLinear",
    ),
    "tied weights": (Tied, "second", "shared by the layers 'second', 'third'"),
    "a shape in the code": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 8)),
        "0",
        "does not run on the example",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_groups_that_cannot_grow(kind: str) -> None:
    build, group, reason = REFUSED[kind]
    torch.manual_seed(0)
    net = HATNetwork(build(), torch.zeros(2, 6), s_max=100.0)
    x, _ = learn(net, "a")
    before, state = logits(net, x, "a"), copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=reason):
        net.grow({group: 2})
    assert all(torch.equal(value, state[n]) for n, value in net.state_dict().items() if isinstance(value, Tensor))
    assert torch.equal(logits(net, x, "a"), before)
    net.check()
    learn(net, "b", 1)


def test_inputs_do_not_grow() -> None:
    net = HATNetwork(MLP((6,), (8, 8)), torch.zeros(2, 6), gate_inputs=True)
    with pytest.raises(InputError, match="'inputs' come from 'inputs', which is no layer"):
        net.grow({"inputs": 1})
    net.grow({"dense1": 1})
    assert sizes(net) == {"inputs": 6, "dense1": 9, "dense2": 8}


def test_a_change_of_old_outputs_is_found_and_taken_back() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Averaging(), torch.zeros(2, 6), s_max=100.0)
    open_task(net, "a")
    x, y = easy_task((6,), 0)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("a"), lr=0.1, momentum=0.9))
    train(net, "a", x, y, optimizer)
    net.consolidate("a")
    before, state = logits(net, x, "a"), copy.deepcopy(net.state_dict())
    memory = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(GuaranteeError, match="would change the outputs of a; nothing was changed"):
        net.grow({"first": 4})
    assert torch.equal(logits(net, x, "a"), before)
    assert all(torch.equal(value, state[n]) for n, value in net.state_dict().items() if isinstance(value, Tensor))
    for number, each in memory["state"].items():
        now = optimizer.state_dict()["state"][number]
        assert torch.equal(now["momentum_buffer"], each["momentum_buffer"])
    learn(net, "b", 1)
    assert torch.equal(logits(net, x, "a"), before)


def test_what_a_request_may_be() -> None:
    net = attach("mlp")
    with pytest.raises(InputError, match="there is no group of units '2'"):
        net.grow({"2": 1})
    for count in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="a whole number of units, at least 1"):
            net.grow({"1": count})
    net.add_task("a", 2)
    with pytest.raises(InputError, match="consolidate 'a' first"):
        net.grow({"1": 1})
    net.consolidate("a")
    with torch.no_grad():
        net.tasks[0].head.weight.add_(1.0)
    with pytest.raises(GuaranteeError, match="have moved in task a"):
        net.grow({"1": 1})
    assert sizes(net) == {"1": 32, "4": 32}
    net.restore()
    net.detach()
    with pytest.raises(InputError, match="was detached"):
        net.grow({"1": 1})
    net.growth = Growth(1.0)
    net.add_task("c", 2)
    assert not any(module._forward_pre_hooks for module in net.backbone.modules())


# --------------------------------------------------------------------------------------------------- keeping it


@pytest.mark.parametrize("kind", ["mlp", "conv-bn", "resnet-basic"])
@pytest.mark.parametrize("given_grown", [False, True])
def test_a_grown_network_is_saved_and_loaded(kind: str, given_grown: bool, tmp_path: Path) -> None:
    build = NETS[kind].build if kind in NETS else ZOO[kind].build
    net = network(kind)
    net.growth = Growth(0.9, 0.5)
    samples = {"a": learn(net, "a")[0]}
    samples["b"], _ = learn(net, "b", 1)  # grows
    net.grow(every_group(net, 1))
    net.save(tmp_path / "net.hat")
    backbone = copy.deepcopy(net).detach() if given_grown else build()
    again = hatrack.load(tmp_path / "net.hat", backbone)
    assert again.growth == net.growth
    assert sizes(again) == sizes(net)
    assert str(again.units) == str(net.units)
    assert all(torch.equal(logits(again, x, task), logits(net, x, task)) for task, x in samples.items())
    for each in (net, again):
        torch.manual_seed(1)
        learn(each, "c", 2)
    assert sizes(again) == sizes(net) != {}
    state = net.state_dict()
    assert all(torch.equal(value, state[n]) for n, value in again.state_dict().items() if isinstance(value, Tensor))
    assert_poison_harmless(again, samples)


def test_files_of_other_networks(tmp_path: Path) -> None:
    net = HATNetwork(MLP((6,), (8, 8)), torch.zeros(2, 6))
    net.grow({"dense1": 4})
    net.save(tmp_path / "net.hat")
    for other in (MLP((6,), (14, 8)), MLP((6,), (8, 9)), MLP((5,), (8, 8))):
        with pytest.raises(CheckpointError, match="was saved with another backbone"):
            hatrack.load(tmp_path / "net.hat", other)
    assert sizes(hatrack.load(tmp_path / "net.hat", MLP((6,), (8, 8)))) == {"dense1": 12, "dense2": 8}


def test_detach_gives_the_wide_backbone_back() -> None:
    net = network("resnet-basic")
    backbone = net.backbone
    x, _ = learn(net, "a")
    net.grow(every_group(net, 2))
    assert net.detach() is backbone
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in backbone.modules())
    assert backbone.eval()(x).shape == (len(x), 16)
    assert sizes(HATNetwork(backbone, x)) == {group.name: group.size for group in net.units.groups}


def test_a_copy_grows_alone() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    before = logits(net, x, "a")
    twin = copy.deepcopy(net)
    twin.grow(every_group(twin))
    assert sizes(net) == {"1": 32, "4": 32}
    assert torch.equal(logits(net, x, "a"), before)
    assert_close_to(twin, {"a": x}, {"a": before}, ROUNDING)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
def test_compiled_code_follows() -> None:
    torch._dynamo.reset()
    net = attach("mlp")
    compiled = torch.compile(net, backend="eager")
    x, _ = learn(net, "a")
    with mode(net, False), torch.no_grad():
        before = compiled(x, "a")
        net.grow(every_group(net))
        assert torch.allclose(compiled(x, "a"), before, rtol=0, atol=1e-5)
        assert torch.equal(compiled(x, "a"), net(x, "a"))
    open_task(net, "b", 1)
    net.train()
    net.anneal(progress(3))
    compiled(x, "b").sum().backward()
    assert net.backbone[4].weight.grad.shape == (35, 35)
    torch._dynamo.reset()
