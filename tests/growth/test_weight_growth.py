"""Growth where masks are about weights: old outputs survive, new weights are nobody's, and tasks have no bound."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import CheckpointError, Growth, GuaranteeError, InputError, WeightMaskedNetwork
from hatrack.backbones import MLP
from hatrack.masks import ElasticWeights, Embedding, Magnitude, Scores, Unmasked
from hatrack.units import analyze
from support.helpers import CLASSES, NETS, assert_poison_harmless, easy_task, logits, progress
from support.marks import examples, slow_but
from support.zoo import ZOO

ROUNDING = 1e-6
"""How far old outputs may be from what they were, of their scale: kernels sum in another order for another shape."""

WIDENED = ["mlp", "alexnet", "conv-bn", "residual-free", "depthwise", "resnet-basic", "u-net"]


def build(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if kind == "residual-free":
        return nn.Sequential(nn.Linear(6, 10), nn.PReLU(10), nn.Linear(10, 8), nn.Sigmoid()), (6,)
    if kind in NETS:
        return NETS[kind].build(), NETS[kind].shape
    return ZOO[kind].build(), tuple(ZOO[kind].shape or ())


def attach(kind: str, **options: object) -> WeightMaskedNetwork:
    backbone, shape = build(kind)
    options = {"source": Embedding(100.0), **options}
    return WeightMaskedNetwork(backbone, torch.zeros(2, *shape), **options)  # type: ignore[arg-type]


def groups(net: WeightMaskedNetwork) -> dict[str, int]:
    return {group.name: group.size for group in analyze(net.backbone, torch.zeros(net.example_shape)).groups}


def learn(net: WeightMaskedNetwork, name: str, seed: int, steps: int = 4) -> Tensor:
    x, y = easy_task(net.example_shape[1:], seed)
    net.add_task(name, CLASSES, generator=torch.Generator().manual_seed(seed))
    for phase in range(1 + isinstance(net.source, Magnitude)):
        if phase:
            net.settle(name)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(name), lr=0.02, momentum=0.9, weight_decay=0.01))
        net.train()
        for step in range(steps):
            net.anneal(progress(step))
            optimizer.zero_grad()
            (F.cross_entropy(net(x, name), y) + 0.1 * net.regularization()).backward()
            optimizer.step()
    net.consolidate(name)
    return x


def say(net: WeightMaskedNetwork, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: logits(net, x, task) for task, x in samples.items()}  # type: ignore[arg-type]


def assert_close_to(now: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    for task, kept in before.items():
        assert (now[task] - kept).abs().max() <= ROUNDING * kept.abs().max(), task


@pytest.mark.parametrize("kind", slow_but(["mlp"], WIDENED))
def test_old_outputs_survive_two_widenings_and_new_tasks(kind: str) -> None:
    net = attach(kind)
    samples: dict[str, Tensor] = {}
    for number in range(4):
        if number >= 2:
            widths, before = groups(net), say(net, samples)
            masks = {task: net.masks(task) for task in samples}
            net.grow(dict.fromkeys(widths, number))
            assert groups(net) == {name: size + number for name, size in widths.items()}
            assert_close_to(say(net, samples), before)
            for task, old in masks.items():
                for name, mask in net.masks(task).items():
                    assert mask.shape == net.backbone.get_parameter(name).shape
                    assert int(mask.sum()) == int(old[name].sum()), "new weights are in no old mask"
        promised = say(net, samples)
        samples[f"task {number}"] = learn(net, f"task {number}", number)
        for task, kept in promised.items():
            assert torch.equal(logits(net, samples[task], task), kept), task  # type: ignore[arg-type]
    assert_poison_harmless(net, samples)  # type: ignore[arg-type]
    net.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"source": Scores(0.3)},
        {"source": Magnitude(), "unmasked": Unmasked.FIRST_TASK},
        {"unmasked": Unmasked.FIRST_TASK},
    ],
)
def test_other_members_of_the_family_grow_too(options: dict[str, object]) -> None:
    net = attach("conv-bn", **options)
    samples = {"a": learn(net, "a", 0), "b": learn(net, "b", 1)}
    before = say(net, samples)
    net.grow(dict.fromkeys(groups(net), 4))
    assert_close_to(say(net, samples), before)
    promised = say(net, samples)
    samples["c"] = learn(net, "c", 2)
    assert all(torch.equal(logits(net, samples[task], task), kept) for task, kept in promised.items())  # type: ignore[arg-type]
    assert_poison_harmless(net, samples)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=examples(15), suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.integers(0, 2**31),
)
@pytest.mark.slow
def test_every_old_entry_is_where_it_was(widths: list[int], added: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    net = WeightMaskedNetwork(MLP((5,), widths), torch.zeros(2, 5))
    names = [f"dense{index}" for index in range(1, len(widths) + 1)]
    net.add_task("old", 2)
    net.consolidate("old")
    x = torch.randn(7, 5)
    said, masks = logits(net, x, "old"), net.masks("old")  # type: ignore[arg-type]
    weights = {name: net.backbone.get_parameter(name).detach().clone() for name in masks}
    net.grow(dict(zip(names, added, strict=False)), generator=torch.Generator().manual_seed(seed))
    assert_close_to({"old": logits(net, x, "old")}, {"old": said})  # type: ignore[arg-type]
    for name, old in weights.items():
        now, mask = net.backbone.get_parameter(name), net.masks("old")[name]
        rows, columns = old.shape
        assert torch.equal(now[:rows, :columns], old)
        assert torch.equal(mask[:rows, :columns], masks[name])
        assert not mask[rows:].any()
        assert not mask[:, columns:].any()
        assert torch.equal(net.protected()[f"backbone.{name}"], mask)
    head = net.tasks[0].head
    assert head.in_features == head.weight.shape[1] == widths[-1] + added[len(widths) - 1]
    assert not head.weight[:, widths[-1] :].any()
    used = sum(int(mask.sum()) for mask in masks.values())
    assert net.capacity().weights == pytest.approx(used / net.capacity().parameters)


def test_one_optimizer_goes_on_across_a_widening() -> None:
    net = attach("mlp")
    x = learn(net, "first", 0)
    carried = net.protect(torch.optim.Adam(net.parameters(), lr=0.01))
    names: list[str] = []
    for number in range(3):
        names.append(f"task {number}")
        net.add_task(names[-1], CLASSES)
        for group in carried.param_groups:
            group["params"] = list(net.parameters())
        net.train()
        y = torch.arange(len(x)) % CLASSES
        for step in range(3):
            net.anneal(progress(step))
            carried.zero_grad(set_to_none=False)
            F.cross_entropy(net(x, names[-1]), y).backward()
            carried.step()
        net.consolidate(names[-1])
        before = say(net, dict.fromkeys(names, x))
        net.grow(dict.fromkeys(groups(net), 2))
        assert_close_to(say(net, dict.fromkeys(names, x)), before)
        weight = net.backbone.get_parameter("4.weight")
        assert carried.state[weight]["exp_avg"].shape == weight.shape
        assert not carried.state[weight]["exp_avg"][-2:].any()
    net.check()


def test_elastic_weights_grow_and_new_ones_are_drawn_nowhere() -> None:
    net = attach("mlp", conditioning=ElasticWeights(10.0))
    samples = {"first": learn(net, "first", 0)}
    net.anchor({name: torch.rand(mask.shape) * mask for name, mask in net.masks("first").items()})
    with torch.no_grad():
        net.backbone.get_parameter("4.weight").add_(0.1)
    penalty, before = float(net.penalty().detach()), say(net, samples)
    net.grow({"1": 3, "4": 5})
    assert_close_to(say(net, samples), before)
    assert net.quadratic_penalty is not None
    assert net.quadratic_penalty.importance["4.weight"].shape == (37, 35)
    assert float(net.penalty().detach()) == pytest.approx(penalty, rel=1e-5)
    net.zero_grad()
    net.penalty().backward()
    gradient = net.backbone.get_parameter("4.weight").grad
    assert gradient is not None
    assert not gradient[32:].any()
    assert not gradient[:, 32:].any()


def test_what_a_task_is_recognised_by_survives() -> None:
    net = attach("residual-free")
    x = learn(net, "first", 0)
    _, y = easy_task((6,), 0)
    net.calibrate("first", x, y)
    learn(net, "second", 1)
    net.calibrate("second", x, y)
    before = net.eval().infer(x, scorer=hatrack.Scorer.DISTANCE).scores
    net.grow(dict.fromkeys(groups(net), 3))
    torch.testing.assert_close(net.eval().infer(x, scorer=hatrack.Scorer.DISTANCE).scores, before, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_grown_network_is_read_again_and_goes_on_alike(tmp_path: Path) -> None:
    options = {"growth": Growth(0.6, 0.5)}
    net = attach("conv-bn", **options)
    samples = {task: learn(net, task, seed) for seed, task in enumerate("abc")}
    assert groups(net) != groups(attach("conv-bn"))
    net.save(tmp_path / "net.hat")
    for backbone in (build("conv-bn")[0], copy.deepcopy(net).detach()):  # as wide as at first, and as it had grown
        again = hatrack.load(tmp_path / "net.hat", backbone)
        assert isinstance(again, WeightMaskedNetwork)
        assert again.growth == net.growth
        assert groups(again) == groups(net)
        assert all(torch.equal(one, say(net, samples)[task]) for task, one in say(again, samples).items())
        straight = copy.deepcopy(net)
        torch.manual_seed(0)
        learn(straight, "d", 3)
        torch.manual_seed(0)
        learn(again, "d", 3)
        straight.save(tmp_path / "straight.hat")
        again.save(tmp_path / "again.hat")
        assert (tmp_path / "again.hat").read_bytes() == (tmp_path / "straight.hat").read_bytes()
    with pytest.raises(CheckpointError, match="another backbone"):
        hatrack.load(tmp_path / "net.hat", build("mlp")[0])


@pytest.mark.slow
def test_it_grows_by_itself_and_the_number_of_tasks_has_no_bound() -> None:
    torch.manual_seed(0)
    net = WeightMaskedNetwork(MLP((6,), (8, 8)), torch.zeros(2, 6), growth=Growth(0.5, 0.5))
    fixed = WeightMaskedNetwork(MLP((6,), (8, 8)), torch.zeros(2, 6))
    samples: dict[str, Tensor] = {}
    promised: dict[str, Tensor] = {}
    for number in range(6):
        name = f"task {number}"
        samples[name] = learn(net, name, number, steps=2)
        learn(fixed, name, number, steps=2)
        assert_close_to(say(net, samples), promised)
        promised = say(net, samples)
    assert fixed.capacity().weights > 0.9
    assert net.capacity().parameters > 2 * fixed.capacity().parameters
    net.add_task("next", 2)
    room, widths = net.masking.room(net.masking.units_now()), net.masking.origin.widths
    assert all(room[name] >= 0.5 * width for name, width in widths.items()), "every task finds room"
    assert max(fixed.masking.room(fixed.masking.units_now()).values()) < 0.1 * 8
    net.check()


def test_the_free_units_of_a_group_are_those_that_its_free_weights_would_make() -> None:
    net = WeightMaskedNetwork(MLP((4,), (10, 5)), torch.zeros(2, 4), growth=Growth(0.5, 0.2))
    net.add_task("first", 2)
    with torch.no_grad():
        for values, share in zip(net.tasks[0].choice, (0.75, 0.2), strict=True):
            values.fill_(-1.0)
            values.view(-1)[: round(share * values.numel())] = 1.0
    net.consolidate("first")
    room, widths = net.masking.room(net.masking.units_now()), net.masking.origin.widths
    assert room == pytest.approx({"dense1": 2.5, "dense2": 4.0})
    assert widths == {"dense1": 10, "dense2": 5}
    net.add_task("second", 2)
    assert groups(net) == {"dense1": 13, "dense2": 5}, "2.5 of the 5 that the threshold asks for were there"


def test_what_cannot_grow_says_so_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8))
    net = WeightMaskedNetwork(backbone, torch.zeros(2, 6))
    samples = {"first": learn(net, "first", 0)}
    state = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    said = say(net, samples)
    with pytest.raises(InputError, match="takes a fixed number of units"):
        net.grow({"0": 2})
    with pytest.raises(InputError, match="group of units"):
        net.grow({"nowhere": 2})
    net.check()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(say(net, samples)["first"], said["first"])
    net.add_task("second", 2)
    with pytest.raises(InputError, match="consolidate 'second' first"):
        net.grow({"3": 2})
    net.consolidate("second")
    backbone[0].weight.data.add_(1.0)  # which leaves no count of changes
    with pytest.raises(GuaranteeError, match="protected entries have moved"):
        net.grow({"3": 2})
