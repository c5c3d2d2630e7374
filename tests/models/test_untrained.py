"""Networks around backbones of which a part is untrained: what is frozen, refused, saved and given back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import (
    BatchNorms,
    CheckpointError,
    GuaranteeError,
    HATNetwork,
    InputError,
    UnsupportedError,
    WeightMaskedNetwork,
)
from hatrack.compact.export import Labels, export_task
from hatrack.masks import Magnitude, Scores, WeightRole
from support.helpers import CLASSES, easy_task, logits, mode, open_task, progress
from support.untrained import ADAPTED, WITHOUT_UNITS, tokens

Net = HATNetwork | WeightMaskedNetwork

pytestmark = pytest.mark.filterwarnings("ignore:the first task freezes all that is trained")


def half(norm: bool = True) -> nn.Module:
    """A backbone whose first layer and norm are untrained."""
    norms = [nn.BatchNorm1d(16)] if norm else []
    pretrained = nn.Sequential(nn.Linear(6, 16), *norms, nn.ReLU()).requires_grad_(False)
    return nn.Sequential(pretrained, nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU())


def hat(backbone: nn.Module, x: Tensor | None = None, **settings: Any) -> HATNetwork:
    return HATNetwork(backbone, torch.zeros(2, 6) if x is None else x, s_max=100.0, **settings)


def weights(backbone: nn.Module, x: Tensor | None = None, **settings: Any) -> WeightMaskedNetwork:
    return WeightMaskedNetwork(backbone, torch.zeros(2, 6) if x is None else x, **settings)


KINDS: dict[str, Callable[..., Net]] = {"hat": hat, "weights": weights}
both = pytest.mark.parametrize("kind", KINDS)


def samples_of(net: Net, seed: int) -> tuple[Tensor, Tensor]:
    if net.masking.example().is_floating_point():
        return easy_task(net.example_shape[1:], seed)
    return tokens(24, seed), torch.arange(24) % CLASSES


def train(net: Net, task: str, seed: int = 0, steps: int = 4, make: Callable[..., Any] | None = None) -> Tensor:
    x, y = samples_of(net, seed)
    if isinstance(net, HATNetwork):
        open_task(net, task, seed)
    else:
        net.add_task(task, CLASSES, generator=torch.Generator().manual_seed(seed))
    make = make or (lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1))
    optimizer = net.protect(make(net.task_parameters(task)))
    net.train()
    for step in range(steps):
        net.anneal(progress(step * 3))
        optimizer.zero_grad()
        (F.cross_entropy(net(x, task), y) + 0.1 * net.regularization()).backward()
        optimizer.step()
    return x


def learn(net: Net, task: str, seed: int = 0, **settings: Any) -> Tensor:
    x = train(net, task, seed, **settings)
    net.consolidate(task)
    return x


def untrained(net: Net) -> dict[str, nn.Parameter]:
    return {f"backbone.{name}": net.backbone.get_parameter(name) for name in net.masking.untrained}


def values_of(net: Net) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in untrained(net).items()}


# ----------------------------------------------------------------------------------------------------------- what it is


@both
@pytest.mark.parametrize("way", ADAPTED)
def test_old_tasks_stay_and_nothing_untrained_moves(kind: str, way: str) -> None:
    torch.manual_seed(0)
    net = KINDS[kind](ADAPTED[way](), tokens(2))
    before, moved, promised = values_of(net), [], {}
    assert len(before) >= 8
    for number in range(3):
        trained = [p.detach().clone() for p in net.masking.shared_parameters()]
        x = learn(net, f"task {number}", number)
        promised[f"task {number}"] = (x, logits(net, x, f"task {number}"))
        moved.append(
            any(not torch.equal(p, old) for p, old in zip(net.masking.shared_parameters(), trained, strict=True))
        )
        for task, (asked, kept) in promised.items():
            assert torch.equal(logits(net, asked, task), kept)
    assert all(torch.equal(parameter, before[name]) for name, parameter in untrained(net).items())
    assert moved[0] or way == "nothing trained" or kind == "weights"
    assert moved[1:] == [False, False] if way in WITHOUT_UNITS else all(moved)
    net.check()


@both
def test_untrained_parameters_are_frozen_from_attaching_on_and_given_to_no_optimizer(kind: str) -> None:
    net = KINDS[kind](half())
    names = {f"backbone.{name}" for name in ("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias")}
    assert set(untrained(net)) == names
    protected = net.protected()
    assert all(protected[name].all() and protected[name].shape == p.shape for name, p in untrained(net).items())
    assert not any(held.any() for name, held in protected.items() if name not in names)
    net.add_task("a", CLASSES)
    given = {id(parameter) for parameter in net.task_parameters("a")}
    assert not given & {id(parameter) for parameter in untrained(net).values()}
    assert {id(p) for p in net.parameters() if p.requires_grad} >= given
    roles = net.units.roles if isinstance(net, HATNetwork) else net.roles
    assert {name for name, role in roles.items() if role.value == "untrained"} == names


@pytest.mark.parametrize("way", ["adapter", "layer behind", "scales", "nothing trained"])
def test_features_of_what_is_untrained_are_its_own_under_any_mask(way: str) -> None:
    torch.manual_seed(0)
    backbone, x, seen = ADAPTED[way]().eval(), tokens(8), []
    last = backbone.get_submodule("encoder.down")  # before anything that is trained
    last.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        backbone(x)
        net = hat(backbone, tokens(2)).eval()
        del seen[1:]
        for seed in range(4):
            net.masking.features_of_random_mask(x, seed)
    assert len(seen) == 5
    assert all(torch.equal(output, seen[0]) for output in seen)


def test_no_gate_and_no_switch_stands_where_nothing_is_gated() -> None:
    net = hat(ADAPTED["nothing trained"](), tokens(2))
    backbone = net.backbone
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in backbone.modules())
    x = tokens(3)
    net.add_task("a", CLASSES)
    with mode(net, False), torch.no_grad():
        assert torch.equal(net.masking.features(x, net.tasks[0]), backbone(x))
        assert torch.equal(net(x, ["a"] * 3), net(x, "a"))


@pytest.mark.parametrize("settings", [{"source": Scores(0.3)}, {"source": Scores(None)}, {"source": Magnitude()}, {}])
def test_masks_of_weights_leave_untrained_weights_alone(settings: dict[str, Any]) -> None:
    net = weights(half(), **settings)
    assert net.masking.layout.masked == ("1.weight", "3.weight")
    assert net.masking.layout.copied == ("1.bias", "3.bias")
    assert net.masking.layout.norms == ()
    assert net.roles["backbone.0.0.weight"] is WeightRole.UNTRAINED
    net.add_task("a", CLASSES)
    assert len(net.tasks[0].copies) == 2
    x = torch.randn(4, 6)
    with torch.no_grad():
        expected, seen = net.backbone[0].eval()(x), []
        handle = net.backbone[0].register_forward_hook(lambda module, args, output: seen.append(output))
        logits(net, x, "a")
    handle.remove()
    assert torch.equal(seen[-1], expected)


@both
def test_a_backbone_without_anything_trained_is_probed_by_heads(kind: str) -> None:
    net = KINDS[kind](half().requires_grad_(False))
    promised = {}
    for number, task in enumerate("abc"):
        x = learn(net, task, number)
        promised[task] = x, logits(net, x, task)
    with mode(net, False), torch.no_grad():
        x, _ = promised["a"]
        torch.testing.assert_close(net(x[:6], ["a", "b"] * 3)[::2], logits(net, x[:6], "a")[::2])
    assert (net.capacity().weights, net.capacity().parameters, net.usage()) == (0.0, 0, 0.0)
    assert net.reuse().shape == (3, 3)
    assert str(net.plan())
    assert net.masks("a") == {}
    assert net.forget("b").erased == 0
    assert all(torch.equal(logits(net, x, task), kept) for task, (x, kept) in promised.items() if task != "b")
    plain = net.extract("a", promised["a"][0])
    torch.testing.assert_close(plain(promised["a"][0]), promised["a"][1], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- batch norms


@both
def test_untrained_batch_norms_keep_their_statistics_in_training(kind: str) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
    backbone(5 * torch.randn(100, 6))
    backbone[1].requires_grad_(False)
    state = {name: value.clone() for name, value in backbone[1].state_dict().items()}
    net = KINDS[kind](backbone)
    assert net.masking.own_state.is_empty
    x = learn(net, "a")
    learn(net, "b", 1)
    assert not net.tasks[0].norms
    net.train()
    assert not backbone[1].training
    assert backbone[0].training
    assert all(torch.equal(value, state[name]) for name, value in backbone[1].state_dict().items())
    with mode(net, False), torch.no_grad():
        single, mixed = net(x[:6], "a"), net(x[:6], ["a", "b"] * 3)
    torch.testing.assert_close(mixed[::2], single[::2])
    plain = net.extract("a", x)
    torch.testing.assert_close(plain(x), logits(net, x, "a"), rtol=1e-5, atol=1e-5)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    copied.train()
    assert not copied.backbone[1].training
    assert torch.equal(logits(copied, x, "a"), logits(net, x, "a"))
    net.train()
    detached = net.detach()
    assert detached[1].training
    detached.eval().train()
    assert detached[1].training
    assert all(torch.equal(value, state[name]) for name, value in detached[1].state_dict().items())


def test_batch_norms_with_shared_statistics_and_fresh_ones_leave_untrained_ones_alone() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU())
    backbone[1].requires_grad_(False)
    net = hat(backbone, batch_norms=BatchNorms.SHARED)
    assert list(net.masking.per_task_modules) == ["3"]
    x = train(net, "a")
    before = backbone[1].running_mean.clone()
    with hatrack.fresh_statistics(net):
        net(x, "a")
    net.consolidate("a")
    assert torch.equal(backbone[1].running_mean, before)


def test_a_norm_that_was_in_evaluation_mode_stays_so_when_detached() -> None:
    backbone = half()
    backbone[0].eval()
    assert not hat(backbone).train().detach()[0][1].training
    assert backbone[1].training


@both
def test_dropout_in_an_untrained_part_follows_the_mode(kind: str) -> None:
    backbone = nn.Sequential(nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5)).requires_grad_(False), nn.Linear(16, 12))
    net = KINDS[kind](backbone)
    net.add_task("a", CLASSES)
    x = torch.randn(8, 6)
    net.train()
    assert not torch.equal(net(x, "a"), net(x, "a"))
    net.eval()
    assert torch.equal(net(x, "a"), net(x, "a"))


# --------------------------------------------------------------------------------------------------- turned on, and off


@both
@pytest.mark.parametrize("after", [False, True])
def test_turning_it_on_is_refused_and_named(kind: str, after: bool) -> None:
    net = KINDS[kind](half())
    x = learn(net, "old") if after else torch.randn(4, 6)
    promised = logits(net, x, "old") if after else None
    net.add_task("a", CLASSES)
    net.backbone[0][0].weight.requires_grad_(True)
    for refused in (lambda: net(x, "a"), lambda: net.train()(x, "a"), lambda: net.consolidate("a"), net.check):
        with pytest.raises(GuaranteeError, match=r"backbone\.0\.0\.weight had requires_grad=False"):
            refused()
    if after:
        with pytest.raises(GuaranteeError, match=r"backbone\.0\.0\.weight"):
            logits(net, x, "old")
    net.backbone[0][0].weight.requires_grad_(False)
    net(x, "a")
    if promised is not None:
        assert torch.equal(logits(net, x, "old"), promised)


@both
def test_turning_off_later_pauses_training_and_changes_nothing_else(kind: str) -> None:
    net, twin = KINDS[kind](half()), KINDS[kind](half())
    twin.backbone.load_state_dict(net.backbone.state_dict())
    x = learn(net, "a")
    promised, weight = logits(net, x, "a"), net.backbone[1].weight
    weight.requires_grad_(False)
    before = weight.detach().clone()
    learn(net, "b", 1)
    assert torch.equal(weight, before)
    assert torch.equal(logits(net, x, "a"), promised)
    assert "1.weight" not in net.masking.untrained
    assert not net.protected()["backbone.1.weight"].all()
    net.analyze(torch.zeros(3, 6)) if isinstance(net, HATNetwork) else None
    assert net.masking.sizes == twin.masking.sizes
    weight.requires_grad_(True)
    learn(net, "c", 2)
    assert not torch.equal(weight, before)
    assert torch.equal(logits(net, x, "a"), promised)


# ------------------------------------------------------------------------------------------------ who else writes there


class Halving(torch.optim.SGD):
    """An optimizer that moves everything, with or without a gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.9)
        return result


@both
@pytest.mark.parametrize("make", [Halving, torch.optim.AdamW])
def test_optimizers_of_all_parameters_move_nothing_untrained(kind: str, make: Callable[..., Any]) -> None:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)  # whose step has hooks from then on, inside Halving's too
    net = KINDS[kind](half())
    before = values_of(net)
    for parameter in untrained(net).values():
        parameter.grad = torch.ones_like(parameter)  # left from earlier training
    for number, task in enumerate("ab"):
        x = learn(net, task, number, make=lambda _: make(net.parameters(), lr=0.01, weight_decay=0.1))
        assert all(torch.equal(parameter, before[name]) for name, parameter in untrained(net).items())
        assert number or torch.isfinite(logits(net, x, task)).all()
    net.check()


@both
def test_weights_may_be_loaded_until_a_task_relies_on_them(kind: str) -> None:
    net = KINDS[kind](half())
    other = half()
    net.backbone.load_state_dict(other.state_dict())
    x = learn(net, "a")
    assert torch.equal(net.backbone[0][0].weight, other[0][0].weight)
    promised = logits(net, x, "a")
    with torch.no_grad():
        net.backbone[0][0].weight.mul_(2)
    with pytest.raises(GuaranteeError, match=r"moved in backbone\.0\.0\.weight"):
        net.check()
    with pytest.warns(UserWarning, match=r"frozen entries of backbone\.0\.0\.weight"):
        assert torch.equal(logits(net, x, "a"), promised)
    net.check()
    net.backbone[0][0].weight.data.mul_(2)  # which torch does not count
    with pytest.raises(GuaranteeError, match=r"moved in backbone\.0\.0\.weight"):
        net.check()
    net.restore()
    assert torch.equal(logits(net, x, "a"), promised)


def test_infinite_values_of_what_is_untrained_are_as_they_should_be() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 16)
            self.hide = nn.Parameter(torch.tensor([0.0, float("-inf")] * 8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(x) + self.hide)

    net = hat(Masked())
    learn(net, "a")
    net.check()
    net.restore()
    assert net.backbone.hide.isinf().sum() == 8


# ---------------------------------------------------------------------------------------------------------------- files


@both
def test_files_say_what_is_untrained(kind: str, tmp_path: Path) -> None:
    net = KINDS[kind](half())
    x = learn(net, "a")
    train(net, "b", 1)
    promised = logits(net, x, "a")
    net.save(tmp_path / "net")
    again = hatrack.load(tmp_path / "net", half())
    assert again.masking.untrained == net.masking.untrained
    assert torch.equal(logits(again, x, "a"), promised)
    again.check()
    with pytest.raises(CheckpointError, match=r"in which 0\.0\.weight, 0\.0\.bias, .* had requires_grad=False: call"):
        hatrack.load(tmp_path / "net", half().requires_grad_(True))
    more = half()
    more[1].weight.requires_grad_(False)
    with pytest.raises(
        CheckpointError, match=r"in which 1\.weight had requires_grad=True: call .*\(True\) on it before"
    ):
        hatrack.load(tmp_path / "net", more)
    more[1].weight.requires_grad_(True)
    assert torch.equal(logits(hatrack.load(tmp_path / "net", more), x, "a"), promised)


@both
def test_files_of_networks_that_are_trained_as_a_whole_say_nothing_of_it(kind: str, tmp_path: Path) -> None:
    net = KINDS[kind](half().requires_grad_(True))
    learn(net, "a")
    assert "untrained" not in net.to_checkpoint().description
    net.save(tmp_path / "net")
    with pytest.raises(CheckpointError, match=r"requires_grad=True"):
        hatrack.load(tmp_path / "net", half())


@both
def test_state_dicts_are_compared_with_what_is_untrained(kind: str) -> None:
    net = KINDS[kind](half())
    x = learn(net, "a")
    saved = copy.deepcopy(net.state_dict())
    promised = logits(net, x, "a")
    other = KINDS[kind](half())
    learn(other, "a", 3)
    other.load_state_dict(saved)
    assert torch.equal(logits(other, x, "a"), promised)
    saved["backbone.0.0.weight"] = saved["backbone.0.0.weight"] + 1
    with pytest.raises(GuaranteeError, match=r"backbone\.0\.0\.weight"):
        other.load_state_dict(saved)
    assert torch.equal(logits(other, x, "a"), promised)


# ----------------------------------------------------------------------------------------------- forgetting and growing


@both
def test_unlearning_draws_nothing_untrained_anew(kind: str) -> None:
    net = KINDS[kind](half())
    before = values_of(net)
    x = learn(net, "a")
    learn(net, "b", 1)
    promised = logits(net, x, "a")
    report = net.forget("b")
    assert report.erased > 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in untrained(net).items())
    assert torch.equal(logits(net, x, "a"), promised)
    shared = sum(p.numel() for p in net.masking.shared_parameters())
    assert net.capacity().parameters == shared
    assert report.kept + report.erased <= 2 * shared


@both
def test_growing_widens_what_is_trained_and_refuses_the_rest(kind: str) -> None:
    net = KINDS[kind](half())
    before = values_of(net)
    x = learn(net, "a")
    promised = logits(net, x, "a")
    net.grow({"1": 4})
    torch.testing.assert_close(logits(net, x, "a"), promised)
    learn(net, "b", 1)
    assert all(torch.equal(parameter, before[name]) for name, parameter in untrained(net).items())
    between = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10).requires_grad_(False), nn.Linear(10, 5))
    net = KINDS[kind](between)
    shape = between[2].weight.shape
    with pytest.raises(InputError, match=r"read by '2', whose 'backbone\.2\.weight' is untrained"):
        net.grow({"0": 4})
    assert between[2].weight.shape == shape
    net.grow({"3": 4})
    batch = KINDS[kind](nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8).requires_grad_(False), nn.Linear(8, 5)))
    with pytest.raises(InputError, match=r"'1', whose 'backbone\.1\.weight' is untrained"):
        batch.grow({"0": 4})


def test_growth_by_itself_leaves_untrained_layers_out() -> None:
    net = hat(half(), growth=hatrack.Growth(threshold=0.9))
    for number, task in enumerate("abc"):
        learn(net, task, number)
    assert net.backbone[1].out_features > 20
    assert net.backbone[0][0].out_features == 16


@pytest.mark.slow
@pytest.mark.parametrize("way", ["lora", "adapter"])
def test_adapters_grow_with_the_number_of_tasks(way: str) -> None:
    torch.manual_seed(0)
    net = hat(ADAPTED[way](), tokens(2), growth=hatrack.Growth(threshold=0.5))
    before, promised = values_of(net), {}
    for number, task in enumerate("abcd"):
        x = learn(net, task, number)
        promised[task] = x, logits(net, x, task)
    for task, (x, kept) in promised.items():
        torch.testing.assert_close(logits(net, x, task), kept)
    assert max(group.size for group in net.units.groups) > {"lora": 4, "adapter": 8}[way]
    assert all(torch.equal(parameter, before[name]) for name, parameter in untrained(net).items())


# ------------------------------------------------------------------------------------------------------------ elsewhere


@both
@pytest.mark.parametrize("way", ADAPTED)
def test_extracted_tasks_agree(kind: str, way: str) -> None:
    torch.manual_seed(0)
    net = KINDS[kind](ADAPTED[way](), tokens(2))
    x = learn(net, "a")
    learn(net, "b", 1)
    for task in "ab":
        plain, expected = net.extract(task, x), logits(net, x, task)
        assert (plain(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not any("train" in vars(module) for module in plain.modules())


@both
@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_extracted_tasks_are_exported(kind: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = KINDS[kind](half())
    x = learn(net, "a")
    assert export_task(net, "a", tmp_path / f"a.{suffix}", x, Labels(("0", "1", "2"))).deviation < 1e-5


@both
@pytest.mark.parametrize("way", ADAPTED)
def test_detaching_gives_back_what_was_given(kind: str, way: str) -> None:
    backbone, x = ADAPTED[way]().eval(), tokens(4)
    state, flags = copy.deepcopy(backbone.state_dict()), [p.requires_grad for p in backbone.parameters()]
    modes = [module.training for module in backbone.modules()]
    attributes = [set(vars(module)) for module in backbone.modules()]
    with torch.no_grad():
        expected = backbone(x)
    detached = KINDS[kind](backbone, tokens(2)).detach()
    assert detached is backbone
    with torch.no_grad():
        assert torch.equal(backbone(x), expected)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert [p.requires_grad for p in backbone.parameters()] == flags
    assert [module.training for module in backbone.modules()] == modes
    assert [set(vars(module)) for module in backbone.modules()] == attributes


def test_what_cannot_be_attached_is_left_as_it_was() -> None:
    class Reading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum())

    backbone = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16).requires_grad_(False), Reading())
    with pytest.raises(UnsupportedError, match="float"):
        hat(backbone)
    assert backbone[1].training
    assert "train" not in vars(backbone[1])
