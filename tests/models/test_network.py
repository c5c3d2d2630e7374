from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, InputError, UnsupportedError, WeightMaskedNetwork
from hatrack.units import Role
from support.helpers import NETS, accuracy, attach, easy_task, learn, logits, open_task, rounding_announced, train
from support.marks import slow_but

KINDS = list(NETS)


def small(**settings: object) -> HATNetwork:
    torch.manual_seed(0)
    return HATNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU()), torch.zeros(1, 2, 2), **settings)


# -------------------------------------------------------------------------------------------- attaching and detaching


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_gives_the_backbone_back(kind: str) -> None:
    torch.manual_seed(0)
    backbone = NETS[kind].build()
    backbone.eval()
    x = torch.randn(4, *NETS[kind].shape)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    clean = backbone(x)
    attributes = {name: dict(vars(module)) for name, module in backbone.named_modules()}
    net = HATNetwork(backbone, torch.zeros(2, *NETS[kind].shape))
    assert torch.equal(net.backbone(x), clean), "without a task, nothing is gated"
    net.add_task("a", 2)
    net.consolidate("a")
    net.eval()
    net(x, "a")
    assert net.detach() is backbone
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(backbone(x), clean)
    for name, module in backbone.named_modules():
        assert set(vars(module)) == set(attributes[name])
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    net.detach()  # again: nothing left to do
    HATNetwork(backbone, torch.zeros(2, *NETS[kind].shape))


@pytest.mark.parametrize(
    "backbone",
    [
        nn.Sequential(nn.Linear(4, 8), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)),
        nn.Identity(),
    ],
)
def test_attaching_twice_is_refused(backbone: nn.Module) -> None:
    net = HATNetwork(backbone, torch.zeros(1, 4))
    with pytest.raises(InputError, match=r"already inside a HATNetwork: call its detach\(\) first"):
        HATNetwork(backbone, torch.zeros(1, 4))
    with pytest.raises(InputError, match="already inside"):
        HATNetwork(nn.Sequential(backbone, nn.ReLU()), torch.zeros(1, 4))
    net.detach()
    HATNetwork(backbone, torch.zeros(1, 4))


def test_attaching_leaves_weights_gradients_and_randomness_alone() -> None:
    backbone = NETS["conv-bn"].build()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    HATNetwork(backbone, torch.zeros(2, *NETS["conv-bn"].shape))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in backbone.parameters())


# ------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("kind", ["mlp", "conv-bn", "residual"])
def test_a_copy_keeps_the_law_and_is_independent(kind: str) -> None:
    net = attach(kind)
    x, _ = learn(net, "a")
    promised = logits(net, x, "a")
    twin = copy.deepcopy(net)
    assert torch.equal(logits(twin, x, "a"), promised)
    learn(twin, "b", 1)
    assert torch.equal(logits(twin, x, "a"), promised)
    assert net.task_names == ("a",)
    net.check()
    twin.check()
    learn(net, "c", 2)
    assert torch.equal(logits(net, x, "a"), promised)
    assert twin.task_names == ("a", "b")
    net.detach()
    assert torch.equal(logits(twin, x, "a"), promised)


@pytest.mark.parametrize("kind", slow_but(["mlp"], ["mlp", "conv-bn", "residual"]))
@pytest.mark.parametrize("hard", [True, False])
def test_a_state_dict_carries_tasks_and_protection(kind: str, hard: bool) -> None:
    net = attach(kind, hard=hard)
    samples = {name: learn(net, name, seed)[0] for seed, name in enumerate("ab")}
    open_task(net, "c", 2)
    fresh = attach(kind, seed=99, hard=hard)
    for name, classes in (("a", 3), ("b", 3), ("c", 3)):
        fresh.masking.open_task(name, classes)
    fresh.load_state_dict(net.state_dict())
    assert fresh.task_in_training == "c"
    assert all(torch.equal(logits(fresh, x, name), logits(net, x, name)) for name, x in samples.items())
    protected = net.protected()
    assert all(torch.equal(held, protected[name]) for name, held in fresh.protected().items())
    promised = {name: logits(fresh, x, name) for name, x in samples.items()}
    x, y = easy_task(net.example_shape[1:], 2)
    train(fresh, "c", x, y, fresh.protect(torch.optim.AdamW(fresh.task_parameters("c"), lr=0.01, weight_decay=0.1)))
    fresh.consolidate("c")
    if hard:
        assert all(torch.equal(logits(fresh, x, name), promised[name]) for name, x in samples.items())


def test_going_back_to_an_earlier_state_of_a_training() -> None:
    net = attach("mlp")
    x, y = easy_task(net.example_shape[1:], 0)
    open_task(net, "a")
    state = copy.deepcopy(net.state_dict())
    train(net, "a", x, y.flip(0), net.protect(torch.optim.SGD(net.task_parameters("a"), lr=0.1)), steps=10)
    net.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.task_in_training == "a"
    assert not any(held.any() for held in net.protected().values())
    train(net, "a", x, y, net.protect(torch.optim.SGD(net.task_parameters("a"), lr=0.1, momentum=0.9)), steps=40)
    net.consolidate("a")
    assert accuracy(net, x, y, "a") > 0.9


@pytest.mark.parametrize("kind", ["mlp", "conv-bn", "residual"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_type_after_the_first_task(kind: str, dtype: torch.dtype) -> None:
    net = attach(kind)
    x, _ = learn(net, "a")
    with rounding_announced(dtype):
        net = net.to(dtype)
    net.check()
    promised = logits(net, x.to(dtype), "a")
    learn(net, "b", 1)
    assert torch.equal(logits(net, x.to(dtype), "a"), promised)
    net.check()


# --------------------------------------------------------------------------------------------------------- batch norm


def test_statistics_belong_to_their_task() -> None:
    net = attach("conv-bn")
    with torch.no_grad():
        net.backbone[1].running_mean.fill_(0.5)
        net.backbone[1].weight.fill_(2.0)
    backbone = {name: value.clone() for name, value in net.backbone.state_dict().items() if name.startswith("1.")}
    x, _ = learn(net, "a")
    old = {name: value.clone() for name, value in net.tasks[0].state_dict().items() if "norm" in name}
    assert not torch.equal(net.tasks[0].norms["1"].running_mean, backbone["1.running_mean"])
    net.train()
    for _ in range(3):
        net(torch.randn_like(x), "a")
    open_task(net, "b", 1)
    assert torch.equal(net.tasks[1].norms["1"].running_mean, backbone["1.running_mean"])
    assert torch.equal(net.tasks[1].norms["1"].weight, backbone["1.weight"])
    assert all(p.requires_grad for p in net.tasks[1].parameters())
    net(torch.randn_like(x), "b")
    assert not torch.equal(net.tasks[1].norms["1"].running_mean, backbone["1.running_mean"])
    net.consolidate("b")
    for name, value in old.items():
        assert torch.equal(net.tasks[0].state_dict()[name], value), name
    for name, value in backbone.items():
        assert torch.equal(net.backbone.state_dict()[name], value), name


def test_the_backbones_own_norms_are_trained_for_no_task() -> None:
    net = attach("conv-bn")
    open_task(net, "a")
    ours = {id(p) for p in net.task_parameters("a")}
    for name, parameter in net.named_parameters():
        of_template = name.startswith("backbone.") and net.units.roles[name] is Role.PER_TASK
        assert (id(parameter) in ours) == (not of_template), name
    assert len(ours) == len(net.task_parameters("a"))
    own = net.task_parameters("a", new_only=True)
    assert {id(p) for p in own} == {id(p) for p in net.tasks[0].parameters()}


# ------------------------------------------------------------------------------------------------------- task by task


def test_a_task_per_sample() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    net.add_task("b", 5)
    net.consolidate("b")
    names = ["a", "b", "b", "a", "a", "b"]
    net.eval()
    with torch.no_grad():
        mixed = net(x[:6], names)
        for row, name in enumerate(names):
            classes = 3 if name == "a" else 5
            torch.testing.assert_close(mixed[row, :classes], net(x[:6], name)[row])
            assert (mixed[row, classes:] == -math.inf).all()
        assert mixed.shape == (6, 5)
        assert net(x[:2], ("a", "a")).shape == (2, 3)
        assert net(x[:0], []).shape == (0, 0)
        assert net(x[:0], "a").shape == (0, 3)


def test_a_task_per_sample_passes_gradients() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    open_task(net, "b", 1)
    net(x[:4], ["a", "b", "b", "a"]).square().sum().backward()
    assert net.tasks[1].head.weight.grad is not None
    assert net.tasks[0].head.weight.grad is None


def test_randomness_comes_from_the_generator() -> None:
    first, second = small(), small()
    for seed, net in ((1, first), (2, second)):
        torch.manual_seed(seed)
        net.add_task("a", 3, generator=torch.Generator().manual_seed(5))
    for one, other in zip(first.tasks[0].parameters(), second.tasks[0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_evaluation_before_and_after_consolidation_is_the_same() -> None:
    net = attach("mlp")
    x, y = easy_task(net.example_shape[1:], 0)
    open_task(net, "a")
    train(net, "a", x, y, net.protect(torch.optim.SGD(net.task_parameters("a"), lr=0.1)))
    masks, before = net.masks("a"), logits(net, x, "a")
    net.consolidate("a")
    assert torch.equal(logits(net, x, "a"), before)
    assert all(torch.equal(mask, masks[name]) for name, mask in net.masks("a").items())
    net.masks("a")["1"].fill_(False)
    assert all(torch.equal(mask, masks[name]) for name, mask in net.masks("a").items())


def test_names() -> None:
    net = small()
    assert net.task_names == ()
    assert net.task_in_training is None
    for name in ("a.b", "tasks.0", "ü/ 任务\n'\"", "-", "a"):
        net.add_task(name, 2)
        assert net.task_in_training == name
        net.consolidate(name)
    assert net.task_names == ("a.b", "tasks.0", "ü/ 任务\n'\"", "-", "a")
    net.check()


def test_regularisation_is_of_the_units_still_free() -> None:
    net = small()
    net.add_task("a", 2)
    with torch.no_grad():
        net.tasks[0].embedding.copy_(torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]))
    net.eval()
    assert net.regularization().item() == 0.5
    net.consolidate("a")
    net.add_task("b", 2)
    with torch.no_grad():
        net.tasks[1].embedding.copy_(torch.tensor([1.0, 1, 1, 1, 1, -1, -1, -1]))
    net.eval()
    assert net.regularization().item() == 0.25
    with torch.no_grad():
        net.tasks[1].embedding.fill_(1.0)
    net.consolidate("b")
    net.train()
    net.add_task("c", 2)
    assert net.regularization().item() == 0.0


def test_coupled_units_count_once() -> None:
    """A skip connection makes one unit of two, and nothing is left over that no task can ever use."""
    net = attach("residual")
    net.add_task("a", 2)
    with torch.no_grad():
        net.tasks[0].embedding.fill_(1.0)
    net.eval()
    assert net.regularization().item() == 1.0
    assert len(net.tasks[0].embedding) == sum(group.size for group in net.units.groups)
    net.consolidate("a")
    assert net.capacity().units == 1.0


# -------------------------------------------------------------------------------------------------------------- errors


def test_unknown_tasks_are_told_the_closest_name() -> None:
    net = small()
    with pytest.raises(InputError, match="there is no task 'shoes'; there is no task yet"):
        net(torch.zeros(1, 2, 2), "shoes")
    net.add_task("shoes", 2)
    for action in (
        lambda: net(torch.zeros(1, 2, 2), "shoos"),
        lambda: net(torch.zeros(1, 2, 2), ["shoos"]),
        lambda: net.masks("shoos"),
        lambda: net.consolidate("shoos"),
        lambda: net.task_parameters("shoos"),
    ):
        with pytest.raises(InputError, match="there is no task 'shoos', did you mean 'shoes'"):
            action()


def test_one_task_at_a_time() -> None:
    net = small()
    net.add_task("a", 2)
    with pytest.raises(InputError, match="there is a task 'a' already"):
        net.add_task("a", 2)
    with pytest.raises(InputError, match="task 'a' is still in training: consolidate it before adding 'b'"):
        net.add_task("b", 2)
    net.consolidate("a")
    with pytest.raises(InputError, match="there is a task 'a' already"):
        net.add_task("a", 2)
    with pytest.raises(InputError, match="task 'a' is consolidated already"):
        net.consolidate("a")
    with pytest.raises(InputError, match="task 'a' is consolidated and cannot be trained again"):
        net.task_parameters("a")
    assert net.task_names == ("a",)


@pytest.mark.parametrize("name", ["", 3, None])
def test_bad_names(name: object) -> None:
    with pytest.raises(InputError, match="name must be a text"):
        small().add_task(name, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [0, -1, 2.0, "2", None])
def test_bad_numbers_of_classes(classes: object) -> None:
    with pytest.raises(
        InputError, match=r"must (have at least one class|be a whole number)|exactly one of num_classes and head"
    ):
        small().add_task("a", classes)  # type: ignore[arg-type]


def test_any_whole_number_of_classes() -> None:
    net = small()
    net.add_task("a", np.int64(3))  # type: ignore[arg-type]
    assert net.tasks[0].num_classes == 3
    assert type(net.tasks[0].num_classes) is int


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: HATNetwork(lambda x: x, torch.zeros(1, 4)), "backbone must be a torch.nn.Module, not a function"),
        (lambda: HATNetwork(nn.Linear(4, 4), [1, 4]), "inputs are a tensor, a tuple of .*, not a list"),
        (lambda: small().protect("sgd"), "protect takes a torch optimizer, not a str"),
        (lambda: small()(torch.zeros(1, 4), 0), "name a task, or a task per sample; 0 is neither"),
        (lambda: hatrack.load("net.hat", None), "backbone must be a torch.nn.Module, not a NoneType"),
    ],
)
def test_things_of_another_kind(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mistake()


@pytest.mark.parametrize("s_max", [0.0, -3.0, math.nan, math.inf])
def test_bad_scales(s_max: float) -> None:
    with pytest.raises(InputError, match="s_max must be positive and finite"):
        small(s_max=s_max)


def test_annealing_and_regularisation_need_a_task_in_training() -> None:
    net = small()
    for prepare in (lambda: None, lambda: (net.add_task("a", 2), net.consolidate("a"))):
        prepare()
        with pytest.raises(InputError, match="anneal acts on the task in training, and there is none"):
            net.anneal(0.5)
        with pytest.raises(InputError, match="regularization acts on the task in training, and there is none"):
            net.regularization()
    net.add_task("b", 2)
    with pytest.raises(InputError, match=r"progress must lie in \[0, 1\], not 1.5"):
        net.anneal(1.5)


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 3), (3,), ()])
def test_inputs_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    net = small()
    net.add_task("a", 2)
    with pytest.raises(InputError, match=r"the input has shape .* the network expects \(N, 2, 2\)"):
        net(torch.zeros(shape), "a")
    assert net(torch.zeros(3, 2, 2), "a").shape == (3, 2)
    assert torch.equal(net.backbone(torch.ones(1, 2, 2)), copy.deepcopy(net).detach()(torch.ones(1, 2, 2)))


def test_lists_of_tasks_of_the_wrong_length() -> None:
    net = small()
    net.add_task("a", 2)
    with pytest.raises(InputError, match="2 tasks were named for 3 samples"):
        net(torch.zeros(3, 2, 2), ["a", "a"])


class FailsLater(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fail = nn.Linear(4, 8), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        if self.fail:
            raise RuntimeError("out of memory")
        return h


def test_a_failing_backbone_leaves_no_task_active() -> None:
    backbone = FailsLater()
    net = HATNetwork(backbone, torch.zeros(1, 4))
    net.add_task("a", 2)
    backbone.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        net(torch.zeros(1, 4), "a")
    backbone.fail = False
    active = net.masking.attachment._active
    assert active.attention is active.cleared is active.norms is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_an_input_of_another_type_is_refused_with_the_remedy(dtype: torch.dtype) -> None:
    net = attach("mlp")
    learn(net, "a")
    x = torch.ones(3, *net.example_shape[1:])
    with pytest.raises(InputError, match=rf"the input is of type {dtype}, the network expects torch.float32; convert"):
        net(x.to(dtype), "a")


class Noisy(nn.Module):
    """Layer behind dropout that is never off."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(F.dropout(x, 0.5)))


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_random_numbers_in_evaluation_mode_are_named_as_the_cause(kind: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"draws random numbers there.*training=self\.training"):
        kind(Noisy(), torch.randn(4, 6))


ALONE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "gru": (lambda: nn.GRU(8, 8, batch_first=True), (5, 8), {"features": 0}),
    "lstm": (lambda: nn.LSTM(8, 8, batch_first=True), (5, 8), {"features": 0}),
    "cell": (lambda: nn.GRUCell(6, 8), (6,), {}),
    "dense": (lambda: nn.Linear(6, 8), (6,), {}),
    "convolution": (lambda: nn.Conv2d(2, 4, 3), (2, 6, 6), {"unit_axis": 1}),
    "norm": (lambda: nn.BatchNorm1d(6), (6,), {}),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8), {}),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_backbone_may_be_a_single_layer(name: str) -> None:
    torch.manual_seed(0)
    build, shape, options = ALONE[name]
    net, x, promised = HATNetwork(build(), torch.randn(3, *shape), **options), torch.randn(4, *shape), {}
    for task in "abc":
        net.add_task(task, 3)
        optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), 0.1))
        net.train()
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, *shape), task).square().mean().backward()
            optimizer.step()
        net.consolidate(task)
        promised[task] = logits(net, x, task)
    assert all(torch.equal(logits(net, x, task), said) for task, said in promised.items())


def test_features_are_what_heads_read_and_keep_every_bit() -> None:
    net = attach("mlp")
    x, _ = learn(net, "first", 0)
    net.eval()
    with torch.no_grad():
        features = net.features(x, "first")
        assert torch.equal(net.tasks.named("first").head(features), net(x, "first"))
    learn(net, "second", 1)
    net.eval()
    with torch.no_grad():
        assert torch.equal(net.features(x, "first"), features)
    with pytest.raises(InputError, match="no task 'third'"):
        net.features(x, "third")
    with pytest.raises(InputError, match="has shape"):
        net.features(x.flatten(1)[:, :3], "first")
