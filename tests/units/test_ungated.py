"""Units of what is untrained: which labels belong to no unit, kind by kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from hatrack import HATNetwork, UnsupportedError
from hatrack.units import Role, UnitGraph, analyze
from support.untrained import ADAPTED, WITHOUT_UNITS, tokens


def off(module: nn.Module | nn.Parameter) -> nn.Module:
    module.requires_grad_(False)
    return module  # type: ignore[return-value]


def graph_of(backbone: nn.Module, shape: tuple[int, ...] = (6,)) -> UnitGraph:
    return analyze(backbone, torch.zeros(2, *shape))


def groups(graph: UnitGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


class Written(nn.Module):
    """Parameters and layers, and a function of the input and of them."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weight(*shape: int, trained: bool = True) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape), trained)


def test_what_untrained_layers_write_is_no_unit() -> None:
    graph = graph_of(nn.Sequential(off(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 5)))
    assert groups(graph) == {"2": 10, "4": 5}
    assert [reader.module for reader in graph.readers] == ["4", ""]
    assert [graph.roles[f"{name}.weight"] for name in "024"] == [Role.UNTRAINED, Role.MIXING, Role.MIXING]
    (use,) = graph.uses["2.weight"]
    assert (use.sides[1] == graph.num_units).all(), "inputs that no task gates count as used by all"
    assert ["0.weight", "8×6", "untrained", "always"] in [line.split() for line in str(graph).splitlines()]


def test_an_untrained_layer_between_trained_ones_reads_gated_units_and_writes_none() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(6, 8), off(nn.Linear(8, 10)), nn.Linear(10, 5)))
    assert groups(graph) == {"0": 8, "2": 5}
    assert [reader.module for reader in graph.readers] == ["1", ""]


def test_a_trained_bias_of_an_untrained_weight_is_frozen_with_the_first_task() -> None:
    layer = nn.Linear(6, 8)
    off(layer.weight)
    graph = graph_of(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 5)))
    assert groups(graph) == {"2": 5}
    assert (graph.roles["0.weight"], graph.roles["0.bias"]) == (Role.UNTRAINED, Role.WHOLE)


def test_an_untrained_bias_is_a_constant() -> None:
    layer = nn.Linear(6, 8)
    off(layer.bias)
    graph = graph_of(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 5)))
    assert groups(graph) == {"0": 8, "2": 5}
    assert graph.roles["0.bias"] is Role.UNTRAINED


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.Sequential(nn.Linear(6, 8), off(nn.LayerNorm(8)), nn.Linear(8, 5)), (6,)),
    "batch": (lambda: nn.Sequential(nn.Linear(6, 8), off(nn.BatchNorm1d(8)), nn.Linear(8, 5)), (6,)),
    "group": (lambda: nn.Sequential(nn.Conv1d(2, 8, 1), off(nn.GroupNorm(2, 8)), nn.Conv1d(8, 5, 1)), (2, 3)),
    "slopes": (lambda: nn.Sequential(nn.Linear(6, 8), off(nn.PReLU(8)), nn.Linear(8, 5)), (6,)),
    "depthwise": (lambda: nn.Sequential(nn.Conv1d(2, 8, 1), off(nn.Conv1d(8, 8, 1, groups=8)), nn.Conv1d(8, 5, 1)),
                  (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", NORMS)
def test_what_passes_units_on_leaves_them_as_they_are(kind: str) -> None:
    build, shape = NORMS[kind]
    model = build()
    graph = analyze(nn.Sequential(model, nn.Flatten(1)), torch.zeros(2, *shape))
    assert groups(graph)["0.0"] == 8
    assert graph.roles["0.1.weight"] is Role.UNTRAINED
    assert not graph.per_task_modules


def test_norms_behind_untrained_layers_are_frozen_with_the_first_task_if_trained() -> None:
    graph = graph_of(nn.Sequential(off(nn.Linear(6, 8)), nn.LayerNorm(8), nn.Linear(8, 5)))
    assert groups(graph) == {"2": 5}
    assert graph.roles["1.weight"] is Role.WHOLE


def test_a_batch_norm_is_untrained_as_a_whole_or_not_at_all() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    off(model[1].weight)
    graph = graph_of(model)
    assert graph.per_task_modules == ("1",)
    assert graph.roles["1.weight"] is graph.roles["1.bias"] is Role.PER_TASK
    assert graph_of(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False))).per_task_modules == ("1",)


def test_an_untrained_batch_norm_may_be_called_twice() -> None:
    twice = Written(lambda own, x: own.norm(own.second(own.norm(own.first(x)))),
                    first=nn.Linear(6, 8), second=nn.Linear(8, 8), norm=off(nn.BatchNorm1d(8)))  # fmt: skip
    assert groups(graph_of(twice)) == {"first": 8, "second": 8}


SUMS: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: Written(lambda own, x: own.w(x) + own.b(own.a(x)),
                              w=off(nn.Linear(6, 8)), a=nn.Linear(6, 3), b=nn.Linear(3, 8)),
    "functions": lambda: Written(lambda own, x: F.linear(x, own.w) + own.b(own.a(x)),
                                 w=weight(8, 6, trained=False), a=nn.Linear(6, 3), b=nn.Linear(3, 8)),
    "products": lambda: Written(lambda own, x: x @ own.w + own.b(own.a(x)),
                                w=weight(6, 8, trained=False), a=nn.Linear(6, 3), b=nn.Linear(3, 8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SUMS)
def test_units_that_meet_untrained_ones_in_a_sum_are_gated_no_more(kind: str) -> None:
    graph = graph_of(SUMS[kind]())
    assert groups(graph) == {"a": 3}
    assert graph.roles["b.weight"] is Role.MIXING
    assert graph.roles["b.bias"] is Role.WHOLE


def test_a_weight_that_is_computed_from_an_untrained_one_writes_no_units() -> None:
    merged = Written(lambda own, x: F.linear(x, own.w + own.b @ own.a),
                     w=weight(8, 6, trained=False), a=weight(2, 6), b=weight(8, 2))  # fmt: skip
    graph = graph_of(merged)
    assert not graph.groups
    assert graph.roles == {"w": Role.UNTRAINED, "a": Role.WHOLE, "b": Role.WHOLE}


class Plus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weight(2, 6), weight(8, 2)

    def forward(self, w: Tensor) -> Tensor:
        return w + self.b @ self.a


def test_parametrizations_of_an_untrained_weight_write_no_units() -> None:
    layer = nn.Linear(6, 8)
    off(layer.weight)
    parametrize.register_parametrization(layer, "weight", Plus())
    assert groups(graph_of(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 5)))) == {"2": 5}
    for untrained, expected in (
        (("original0", "original1"), {"2": 5}),
        (("original1",), {"2": 5}),
        ((), {"0": 8, "2": 5}),
    ):
        normed = weight_norm(nn.Linear(6, 8))
        for name in untrained:
            off(normed.parametrizations.weight.get_parameter(name))
        assert groups(graph_of(nn.Sequential(normed, nn.ReLU(), nn.Linear(8, 5)))) == expected


def test_an_untrained_parameter_by_itself_is_a_constant() -> None:
    for trained in (True, False):
        positions = Written(
            lambda own, x: own.layer(x) + own.shift, layer=nn.Linear(6, 8), shift=weight(8, trained=trained)
        )
        (group,) = graph_of(positions).groups
        assert group.size == 8
    alone = Written(lambda own, x: own.layer(x + own.shift), layer=nn.Linear(6, 8), shift=weight(6, trained=False))
    assert groups(graph_of(alone)) == {"layer": 8}
    behind = Written(
        lambda own, x: own.layer(x) + own.shift, layer=off(nn.Linear(6, 8)), shift=weight(8, trained=False)
    )
    assert not graph_of(behind).groups
    prompt = Written(lambda own, x: torch.cat([own.prompt.expand(len(x), -1, -1), own.layer(x)], 1).mean(1),
                     layer=off(nn.Linear(6, 8)), prompt=weight(1, 2, 8))  # fmt: skip
    graph = graph_of(prompt, (3, 6))
    assert not graph.groups
    assert graph.roles["prompt"] is Role.WHOLE


def test_tables_tied_weights_and_attention() -> None:
    table = nn.Embedding(20, 8)
    off(table)
    looked_up = Written(lambda own, x: own.out(own.table(x)).mean(1), table=table, out=nn.Linear(8, 5))
    graph = analyze(looked_up, torch.zeros(2, 3, dtype=torch.int64))
    assert groups(graph) == {"out": 5}
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    tied[2].weight = off(tied[0].weight)  # type: ignore[assignment]
    assert not graph_of(tied, (8,)).groups
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attends = Written(lambda own, x: own.attend(own.into(x), own.into(x), own.into(x))[0].mean(1),
                      into=nn.Linear(6, 8), attend=attention)  # fmt: skip
    assert groups(graph_of(attends, (3, 6))) == {"into": 8, "attend.heads": 2, "attend": 8}
    off(attention.out_proj)
    assert groups(graph_of(attends, (3, 6))) == {"into": 8, "attend.heads": 2}
    off(attention)
    assert groups(graph_of(attends, (3, 6))) == {"into": 8}


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapted_encoders_gate_what_the_adapters_bring(kind: str) -> None:
    graph = analyze(ADAPTED[kind](), tokens(2))
    expected = {
        "lora": {"encoder.query.a": 4, "encoder.value.a": 4, "encoder.up.a": 4},
        "adapter": {"encoder.into": 8},
        "layer behind": {"out": 16},
    }
    assert groups(graph) == expected.get(kind, {})


@pytest.mark.slow
def test_a_network_with_nothing_left_for_later_tasks_says_so() -> None:
    for kind in WITHOUT_UNITS[:2]:
        with pytest.warns(UserWarning, match="later tasks learn nothing but their heads"):
            HATNetwork(ADAPTED[kind](), tokens(2))
    for kind in ("lora", "adapter", "layer behind", "nothing trained"):
        HATNetwork(ADAPTED[kind](), tokens(2))  # warnings are errors


def test_the_analysis_may_count_everything_as_trained() -> None:
    model = nn.Sequential(off(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 5))
    assert groups(analyze(model, torch.zeros(2, 6), untrained=())) == {"0": 8, "2": 5}
    assert groups(analyze(model, torch.zeros(2, 6))) == {"2": 5}


class Inside(nn.Module):
    """Functions that read what their own module computes, where no gate can stand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 8), weight(8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(self.layer(x), (8,), self.scale)
        return h - h.cumsum(-1)


def test_operations_that_cannot_be_gated_are_let_be_between_untrained_values() -> None:
    with pytest.raises(UnsupportedError, match="no gate can stand before it"):
        graph_of(nn.Sequential(Inside(), nn.Linear(8, 5)))
    graph = graph_of(nn.Sequential(off(Inside()), nn.Linear(8, 5)))
    assert groups(graph) == {"1": 5}
    adapted = Written(lambda own, x: own.inside(x) + own.b(own.a(x)),
                      inside=off(Inside()), a=nn.Linear(6, 3), b=nn.Linear(3, 8))  # fmt: skip
    assert groups(graph_of(adapted)) == {"a": 3}


def test_operations_that_cannot_be_gated_are_refused_where_they_are_given_units() -> None:
    half = Inside()
    off(half.scale)
    with pytest.raises(UnsupportedError, match="no gate can stand before it"):
        graph_of(half)
    half = Inside()
    off(half.layer)
    graph = graph_of(half)
    assert not graph.groups
    assert graph.roles["scale"] is Role.WHOLE


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_untrained_recurrent_layers_write_no_units(kind: type[nn.RNNBase]) -> None:
    def sequences(untrained: str) -> UnitGraph:
        memory = kind(6, 8, num_layers=2, batch_first=True)
        for name, parameter in memory.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(untrained.split())))
        return graph_of(
            Written(lambda own, x: own.out(own.memory(x)[0].mean(1)), memory=memory, out=nn.Linear(8, 5)), (3, 6)
        )

    assert groups(sequences("none")) == {"memory.weight_hh_l0": 8, "memory.weight_hh_l1": 8, "out": 5}
    assert groups(sequences("weight bias")) == {"out": 5}
    assert groups(sequences("weight")) == {"out": 5}
    assert groups(sequences("weight_ih")) == {"out": 5}
    assert groups(sequences("weight_ih_l1")) == {"memory.weight_hh_l0": 8, "out": 5}
    assert groups(sequences("bias")) == groups(sequences("none"))


def test_untrained_recurrent_layers_run_as_they_are() -> None:
    model = Written(lambda own, x: own.memory(x)[0].mean(1), memory=off(nn.GRU(6, 8, batch_first=True)))
    x = torch.randn(4, 3, 6)
    with torch.no_grad():
        expected = model(x)
        net = HATNetwork(model, torch.zeros(2, 3, 6)).eval()
        assert "forward" not in vars(model.memory)
        assert torch.equal(net.masking.features_of_random_mask(x, 0), expected)
