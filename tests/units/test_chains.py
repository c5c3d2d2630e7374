"""The analysis on chains of layers: groups, readers, roles, and a slow oracle for what matters to whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import GuaranteeError, HATNetwork, InputError, UnsupportedError
from hatrack.units import Role, UnitGraph, analyze
from hatrack.units.rules import mixing
from support.helpers import NETS, Residual, attach, open_task
from support.unwatched import without_spots


def sizes(graph: UnitGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


def readers(graph: UnitGraph) -> dict[str, tuple[str, ...]]:
    return {group.name: group.readers for group in graph.groups}


# ------------------------------------------------------------------------------------------------------------ chains


def test_an_mlp() -> None:
    graph = analyze(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Tanh()), torch.zeros(2, 4), "net.")
    assert sizes(graph) == {"0": 5, "2": 3}
    assert readers(graph) == {"0": ("2",), "2": ("",)}
    assert graph.num_units == 8
    assert [(r.module, r.axis, r.units.tolist()) for r in graph.readers] == [
        ("2", -1, [0, 1, 2, 3, 4]),
        ("", -1, [5, 6, 7]),
    ]
    assert graph.roles == {
        "net.0.weight": Role.MIXING,
        "net.0.bias": Role.PER_UNIT,
        "net.2.weight": Role.MIXING,
        "net.2.bias": Role.PER_UNIT,
    }
    weight = graph.uses["net.2.weight"][0]
    assert [side.shape for side in weight.sides] == [(3, 1), (1, 5)]
    assert [side.flatten().tolist() for side in weight.sides] == [[5, 6, 7], [0, 1, 2, 3, 4]]
    first = graph.uses["net.0.weight"][0]
    assert first.sides[1].flatten().tolist() == [8, 8, 8, 8]  # the network's input: ungated


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_down_to_a_dense_layer(dimensions: int) -> None:
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimensions - 1]
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dimensions - 1]
    pool = [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d][dimensions - 1]
    adaptive = [nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d][dimensions - 1]
    model = nn.Sequential(
        conv(2, 3, 2), norm(3), nn.PReLU(3), pool(2), conv(3, 4, 1), nn.PReLU(), adaptive(2), nn.Flatten(),
        nn.Dropout(), nn.Linear(4 * 2**dimensions, 5),
    )  # fmt: skip
    graph = analyze(model, torch.zeros(1, 2, *[7] * dimensions))
    assert sizes(graph) == {"0": 3, "4": 4, "9": 5}
    assert readers(graph) == {"0": ("4",), "4": ("9",), "9": ("",)}
    flat = next(r for r in graph.readers if r.module == "9")
    assert flat.units.tolist() == [3 + unit for unit in range(4) for _ in range(2**dimensions)]
    assert graph.roles == {
        **{"0.weight": Role.MIXING, "0.bias": Role.PER_UNIT, "1.weight": Role.PER_TASK, "1.bias": Role.PER_TASK},
        **{"2.weight": Role.PER_UNIT, "4.weight": Role.MIXING, "4.bias": Role.PER_UNIT, "5.weight": Role.WHOLE},
        **{"9.weight": Role.MIXING, "9.bias": Role.PER_UNIT},
    }
    assert graph.per_task_modules == ("1",)


@pytest.mark.parametrize("kind", NETS)
def test_every_parameter_has_one_role_and_every_unit_one_place(kind: str) -> None:
    net = attach(kind)
    open_task(net, "a")
    graph = net.units
    assert set(graph.roles) == {name for name, _ in net.named_parameters()} == set(graph.uses) == set(graph.shapes)
    covered = [position for group in graph.groups for position in range(group.start, group.start + group.size)]
    assert covered == list(range(graph.num_units))
    table = str(graph)
    for name in [*graph.roles, *(group.name for group in graph.groups)]:
        assert name in table
    for reader in graph.readers:
        assert ((reader.units >= 0) & (reader.units <= graph.num_units)).all()


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.PReLU())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    analyze(model, torch.randn(3, 4))
    assert model.training
    assert not model[2].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


ODD_ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.sigmoid,
    F.softplus,
    torch.cos,
    torch.exp,
    F.hardsigmoid,
    lambda x: F.threshold(x, 0.1, 20.0),
    lambda x: x.clamp(1.0, 2.0),
    lambda x: 3 - x,
    lambda x: x.double().float() * 2,
]


@pytest.mark.parametrize("activation", ODD_ACTIVATIONS)
def test_activations_that_do_not_map_zero_to_zero(activation: Callable[[Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return activation(self.b(activation(self.a(x))))

    assert sizes(HATNetwork(Model(), torch.zeros(3, 4)).units) == {"a": 6, "b": 5}


# --------------------------------------------------------------------------------------------------------- couplings


def test_a_skip_connection_couples_and_a_tied_weight_has_several_uses() -> None:
    graph = analyze(Residual(), torch.zeros(2, 6))
    assert sizes(graph) == {"first+twice": 24, "tied": 24, "last": 20} or sizes(graph) == {
        "first+twice+tied": 24,
        "last": 20,
    }
    assert len(graph.uses["twice.weight"]) == 2  # two of its three uses are between the same units
    assert "tied.weight" not in graph.roles


def test_a_layer_called_twice_couples_its_units() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(torch.relu(self.a(x))))

    net = HATNetwork(Model(), torch.zeros(2, 4))
    assert sizes(net.units) == {"a": 4}
    assert readers(net.units) == {"a": ("a", "")}


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a + b,
        lambda a, b: a * b,
        lambda a, b: torch.maximum(a, b),
        lambda a, b: torch.clamp(a, min=b),
        lambda a, b: a.clamp_max(b),
        lambda a, b: torch.sub(a, other=b),
        lambda a, b: a.add_(b),
    ],
)
def test_what_meets_is_coupled(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return combine(self.a(x), self.b(x))

    assert sizes(HATNetwork(Model(), torch.zeros(2, 4)).units) == {"a+b": 6}


@pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit")
def test_pooling_over_units_couples_them() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.max_pool1d(self.a(x).unsqueeze(1), 2).squeeze(1))

    assert sizes(HATNetwork(Model(), torch.zeros(2, 4)).units) == {"a": 1, "b": 5}


def test_arguments_given_by_name() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.p, self.n, self.b = nn.Linear(4, 6), nn.PReLU(6), nn.BatchNorm1d(6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(input=self.n(input=self.p(input=self.a(input=x))))

    net = HATNetwork(Model(), torch.zeros(2, 4))
    net.add_task("a", 2)
    assert net(torch.zeros(3, 4), "a").shape == (3, 2)


# ------------------------------------------------------------------------------------------------- unusual backbones


@pytest.mark.parametrize(
    ("backbone", "shape", "groups"),
    [
        (nn.Flatten(), (2, 3), {}),
        (nn.Identity(), (4,), {}),
        (nn.Linear(4, 7), (4,), {"": 7}),
        (nn.Linear(4, 4, bias=False), (4,), {"": 4}),
        (nn.BatchNorm1d(4), (4,), {}),
        (nn.PReLU(), (4,), {}),
        (nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3)), (4,), {"0": 1, "2": 3}),
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)), (4,), {"0": 3, "1": 2}),
    ],
)
def test_unusual_backbones(backbone: nn.Module, shape: tuple[int, ...], groups: dict[str, int]) -> None:
    net = HATNetwork(backbone, torch.zeros(1, *shape))
    assert sizes(net.units) == groups
    x = torch.randn(6, *shape)
    promised = []
    for index in range(3):
        net.add_task(str(index), 2)
        with torch.no_grad():
            net.tasks[-1].embedding.copy_(-net.tasks[-1].embedding.abs() - 0.1)  # nothing wants to be used
        optimizer = net.protect(torch.optim.Adam(net.task_parameters(str(index)), lr=0.1))
        for step in range(3):
            net.anneal(step / 2)
            optimizer.zero_grad()
            (net(x, str(index)).square().mean() + net.regularization()).backward()
            optimizer.step()
        net.consolidate(str(index))
        assert all(int(mask.sum()) >= 1 for mask in net.masks(str(index)).values())
        net.eval()
        promised.append(net(x, str(index)).detach())
        assert all(torch.equal(net(x, str(i)), logits) for i, logits in enumerate(promised))
        net.train()
    net.capacity()
    assert net.reuse().shape == (3, 3)


# ----------------------------------------------------------------------------------------------------------- refusals


class Custom(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 12), nn.Linear(12, 5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.from_numpy(x.numpy()), "numpy"),
        (lambda x: torch.tensor(x.tolist()), "tolist"),
        (lambda x: x if x.sum() > 0 else -x, "__bool__"),
        (lambda x: x.to_sparse().to_dense(), "to_sparse"),
    ],
)
def test_operations_without_a_rule_are_refused_by_name_and_line(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"{name}.*\(at test_chains\.py:\d+\)"):
        HATNetwork(Custom(function), torch.zeros(2, 4))


class NormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.n(self.a(self.n(x)))


@pytest.mark.parametrize(
    ("backbone", "shape", "message"),
    [
        (NormTwice(), (4,), r"n: a batch norm that is called twice"),
        (nn.Sequential(nn.Linear(4, 4), Custom(torch.Tensor.to_sparse)), (4,), r"to_sparse"),
    ],
)
def test_layers_without_a_rule_are_refused(backbone: nn.Module, shape: tuple[int, ...], message: str) -> None:
    example = torch.zeros(2, *shape)
    if any(isinstance(module, nn.Embedding) for module in backbone.modules()):
        example = example.long()
    with pytest.raises(UnsupportedError, match=message):
        HATNetwork(backbone, example)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


class Pair(nn.Linear):
    """A layer that gives two results."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x + 1, x


@pytest.mark.parametrize(
    ("backbone", "shape", "message"),
    [
        (nn.Conv2d(4, 3, 1), (4, 2, 2), r"features of shape \(N, 3, 2, 2\) have their units along axis 1.*unit_axis=1"),
        (Pair(), (4,), r"the features are no tensor, but a tuple of 2; say which part of it the heads read"),
        (nn.Flatten(0), (4,), r"must map a batch to features \(N, …, F\), and gave \(8,\)"),
        (nn.Linear(4, 3), (5,), r"does not run on the example input of shape \(2, 5\)"),
        (nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm1d(3)), (4, 2, 2), r"does not run on the example input"),
        (nn.Flatten(3), (4,), r"does not run on the example input"),
    ],
)
def test_backbones_that_give_no_features(backbone: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HATNetwork(backbone, torch.zeros(2, *shape))


class Cosine(nn.Linear):
    """A subclass whose forward does more than the rule for its base class knows, which therefore does not apply."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1))


def test_a_layer_that_breaks_its_rule_is_caught_when_attaching() -> None:
    backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Cosine(8, 8, bias=False))
    with pytest.raises(GuaranteeError, match=r"backbone\.2\.weight"):
        HATNetwork(backbone, torch.zeros(2, 4), rules={Cosine: mixing.linear})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


# -------------------------------------------------------------------------------------------------------- slow oracle


@without_spots()
def matters(net: HATNetwork, task: str, x: Tensor) -> dict[str, Tensor]:
    """Find the entries that change a task's logits when they alone are changed, one at a time."""
    found = {}
    net.eval()
    clean = net(x, task)
    for name, parameter in net.named_parameters():
        flat = parameter.data.view(-1)
        moved = torch.zeros(len(flat), dtype=torch.bool)
        for index in range(len(flat)):
            kept = flat[index].clone()
            for value in (kept + 3.0, kept - 3.0):
                flat[index] = value
                moved[index] |= not torch.equal(net(x, task), clean)
            flat[index] = kept
        found[name] = moved.view(parameter.shape)
    return found


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
        self.c2 = nn.Linear(4, 3)
        self.c2.weight = self.c.weight
        self.p = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.p(self.a(x))
        h = h + torch.sigmoid(self.b(h))
        return self.c(h) + self.c2(torch.tanh(h))


SMALL: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.PReLU()), (3,)),
    (Skip, (3,)),
    (
        lambda: nn.Sequential(
            nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3), nn.Softplus(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(6, 4)
        ),
        (1, 5),
    ),
    (lambda: nn.Sequential(nn.Conv2d(1, 3, 2, bias=False), nn.PReLU(3), nn.Flatten(), nn.Linear(12, 3)), (1, 3, 3)),
]


@settings(max_examples=5)
@given(case=st.integers(0, len(SMALL) - 1), seed=st.integers(0, 10_000))
def test_nothing_that_matters_is_free(case: int, seed: int) -> None:
    torch.manual_seed(seed)
    build, shape = SMALL[case]
    net = HATNetwork(build(), torch.zeros(1, *shape))
    x = torch.randn(5, *shape)
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    needed = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    with torch.no_grad():
        for task in ("a", "b"):
            for name, moved in matters(net, task, x).items():
                needed[name] |= moved
    protected = net.protected()
    for name, moved in needed.items():
        assert not (moved & ~protected[name]).any(), name


def test_protection_is_no_larger_than_equation_2_says() -> None:
    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU()), torch.zeros(1, 3))
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    first = net.masks("a")["0"] | net.masks("b")["0"]
    second = net.masks("a")["2"] | net.masks("b")["2"]
    protected = net.protected()
    for i in range(5):
        assert protected["backbone.0.bias"][i] == first[i]
        assert all(protected["backbone.0.weight"][i, j] == first[i] for j in range(3))
    for i in range(4):
        assert protected["backbone.2.bias"][i] == second[i]
        assert all(protected["backbone.2.weight"][i, j] == (second[i] and first[j]) for j in range(5))
