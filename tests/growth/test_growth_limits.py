"""Growth by itself, what cannot grow, and grown networks in files, copies and compiled code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import hatrack
from hatrack import (
    CheckpointError,
    Growth,
    GuaranteeError,
    HATNetwork,
    InputError,
    WeightMaskedNetwork,
)
from hatrack.backbones import MLP
from hatrack.growth.policy import free_units, plan_growth
from support.growing_networks import ROUNDING, assert_close_to, every_group, network, sizes
from support.helpers import (
    NETS,
    accuracy,
    assert_poison_harmless,
    attach,
    easy_task,
    learn,
    logits,
    mode,
    open_task,
    progress,
    train,
)
from support.zoo import ZOO

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


@pytest.mark.slow
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


class OutOfFeatures(Averaging):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(torch.relu(self.first(x)))) / self.first.out_features**0.5


class Asserting(Averaging):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        assert h.shape[1] == 8, "eight"
        return torch.relu(self.last(h))


class LookingUp(Averaging):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return torch.relu(self.last(h * {8: 1.0}[h.shape[1]]))


class Branching(Averaging):
    """Has its units read elsewhere when it is wider."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return torch.relu(self.last(h.cumsum(1) if h.shape[1] > 8 else h))


class Reading(Averaging):
    """Does what no rule explains when it is wider."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return torch.relu(self.last(h * float(self.first.bias[0]) if h.shape[1] > 8 else h))


class FullAlone(nn.Module):
    """Changes its outputs as soon as its two layers have more than 20 units together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(torch.cat([self.first(x), self.second(x)], 1))
        return torch.relu(self.last(2 * h if h.shape[1] > 20 else h))


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


WIDTH_IN_CODE = {
    "divided by the width": (Averaging, "would change the outputs of a; nothing was changed"),
    "divided by an attribute": (OutOfFeatures, "would change the outputs of a; nothing was changed"),
    "an assertion": (Asserting, r"AssertionError: eight.* \(at test_growth_limits.py:\d+\)"),
    "a table": (LookingUp, "KeyError: 1[01]"),
    "units read elsewhere": (Branching, "units are then read at other places"),
    "a way that is not understood": (Reading, "__float__"),
}


@pytest.mark.parametrize("make", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize("kind", WIDTH_IN_CODE)
def test_a_group_that_the_code_counts_stays_while_others_grow(make: Any, kind: str) -> None:
    build, reason = WIDTH_IN_CODE[kind]
    net, x = full_network(make, build())
    before = logits(net, x, "a")
    refused = rf"first.* .*{reason}.*[Ll]et it go by a number that stays"
    with pytest.raises((InputError, GuaranteeError), match=refused):
        net.grow({"last": 2, "first": 2})
    assert torch.equal(logits(net, x, "a"), before)
    for number, name in enumerate("bc" if make is HATNetwork else "b"):
        with pytest.warns(UserWarning, match=r"^'first' cannot grow, though nearly full: .*net.growth = None") as seen:
            fill(net, name)
        assert [warning.filename for warning in seen] == [__file__]
        assert (net.backbone.first.out_features, net.backbone.last.out_features) == (8, 11 + 3 * number)
    assert_answers_agree(net, x, before)
    net.check()


@pytest.mark.parametrize("make", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize(("dtype", "added"), [(torch.bfloat16, 8), (torch.float16, 1)])
def test_in_half_precision_a_change_of_few_percent_is_found(make: Any, dtype: torch.dtype, added: int) -> None:
    torch.manual_seed(0)
    for counts in (True, False):
        net = make(Dividing(64, counts).to(dtype), torch.zeros(2, 6, dtype=dtype))
        net.add_task("a", 3)
        with torch.no_grad():
            net.tasks[-1].head.bias.zero_()
        net.consolidate("a")
        if counts:
            with pytest.raises(GuaranteeError, match="would change the outputs of a"):
                net.grow({"first": added})
        else:
            net.grow({"first": added, "last": 1})


class Dividing(nn.Module):
    """Divides by the number of its units, or by as many as it was made with; all else is linear."""

    def __init__(self, width: int, counts: bool) -> None:
        super().__init__()
        self.first, self.last, self.width = nn.Linear(6, width), nn.Linear(width, 8, bias=False), float(width)
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h / (h.shape[1] if self.counts else self.width))


@pytest.mark.parametrize("make", [HATNetwork, WeightMaskedNetwork])
def test_groups_that_cannot_grow_together_grow_as_far_as_they_can(make: Any) -> None:
    net, x = full_network(make, FullAlone())
    before = logits(net, x, "a")
    with pytest.raises(GuaranteeError, match="widening 'first', 'second' would change the outputs of a"):
        net.grow({"first": 3, "second": 3})
    with pytest.warns(UserWarning, match=r"^'second' cannot grow, .*: widening 'first', 'second' would"):
        net.add_task("b", 3)
    assert [layer.out_features for layer in net.backbone.children()] == [11, 8, 11]
    assert_answers_agree(net, x, before)


def test_nothing_is_drawn_or_left_by_an_attempt() -> None:
    net, x = full_network(HATNetwork, Asserting())
    net.growth = None
    other = copy.deepcopy(net)
    net.growth = Growth(0.3, 0.3)
    state = net.masking.calls.trace
    with pytest.raises(InputError, match="first"):
        net.grow({"first": 1})
    assert net.masking.calls.trace is state
    with pytest.warns(UserWarning, match="'first' cannot grow"):
        net.add_task("b", 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    other.grow({"last": 3}, generator=generator)
    other.add_task("b", 3, generator=generator)
    ours, theirs = net.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(net, x, "a"), logits(other, x, "a"))


def full_network(make: Any, backbone: nn.Module) -> tuple[Any, Tensor]:
    """Return a network whose groups are all full and get three units, with samples of its only task."""
    torch.manual_seed(0)
    net = make(backbone, torch.zeros(2, 6), growth=Growth(0.3, 0.3))
    fill(net, "a")
    return net, torch.randn(5, 6)


def fill(net: Any, name: str) -> None:
    """Add a task that uses everything."""
    net.add_task(name, 3)
    state = net.tasks[-1]
    with torch.no_grad():
        for values in [state.embedding] if isinstance(net, HATNetwork) else state.choice:
            values.fill_(2.0)
    net.consolidate(name)


def assert_answers_agree(net: Any, x: Tensor, before: Tensor) -> None:
    assert (logits(net, x, "a") - before).abs().max() <= ROUNDING * before.abs().max()


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
        net.tasks[0].head.weight.data.add_(1.0)  # which leaves no count of changes
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


@pytest.mark.slow
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


@pytest.mark.parametrize("make", [HATNetwork, WeightMaskedNetwork])
def test_a_state_dict_of_another_width_says_how_to_load_it(make: Any) -> None:
    def build() -> Any:
        torch.manual_seed(0)
        return make(MLP((6,), (8, 8)), torch.zeros(2, 6))

    net, narrow, x = build(), build(), torch.randn(5, 6)
    for each in (net, narrow):
        each.add_task("a", 3)
        each.consolidate("a")
    net.grow({"dense1": 4, "dense2": 1})
    before, there = logits(narrow, x, "a"), r"has shape \(12, 6\) there and \(8, 6\) here"
    added = r"\{'dense1': 4, 'dense2': 1\}"
    with pytest.raises(InputError, match=rf"other widths: .*{there}.*grow this one first, net\.grow\({added}\); or"):
        narrow.load_state_dict(net.state_dict())
    assert torch.equal(logits(narrow, x, "a"), before)
    with pytest.raises(InputError, match=r"has shape \(8, 6\) there and \(12, 6\) here.*build and widen this one as"):
        net.load_state_dict(narrow.state_dict())
    with pytest.raises(InputError, match="other widths"):  # as a part of a larger module
        nn.ModuleList([narrow]).load_state_dict(nn.ModuleList([net]).state_dict())
    narrow.grow({"dense1": 4, "dense2": 1})
    narrow.load_state_dict(net.state_dict())
    assert torch.equal(logits(narrow, x, "a"), logits(net, x, "a"))
    narrow.check()
    late = build()
    late.add_task("a", 3)
    with pytest.raises(InputError, match="grow this one before the task in training is added"):
        late.load_state_dict(net.state_dict())


def test_a_network_that_grows_no_longer_is_saved_and_loaded_again_and_again(tmp_path: Path) -> None:
    net = WeightMaskedNetwork(MLP((6,), (8, 8)), torch.zeros(2, 6), growth=Growth())
    net.growth = None
    for _ in range(3):
        net.save(tmp_path / "net.hat")
        net = hatrack.load(tmp_path / "net.hat", MLP((6,), (8, 8)))  # type: ignore[assignment]


@pytest.mark.slow
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


@pytest.mark.slow
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
