from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hatrack.backbones import AlexNet
from hatrack.errors import InputError
from hatrack.experiments import RunRequest, prepare
from hatrack.methods import Schedule, Setup
from hatrack.methods.den import DEN, DENSettings
from hatrack.methods.den.layers import (
    DenseLayer,
    after_split,
    drift_of_units,
    free_entries,
    selected_units,
    shrunk_rows,
    silent_units,
    soft_threshold,
    units_to_split,
    widened,
    without_units,
)
from hatrack.methods.den.method import Part, divided
from hatrack.methods.den.network import ExpandableNetwork
from hatrack.train import EpochDone, OptimizerKind, Training, TrainingSettings
from support.toys import SHAPE, TASKS, learn, logits, make, rival_tasks, setup, tasks

ADAM: dict[str, Any] = {"optimizer": OptimizerKind.ADAM, "lr": 0.005}


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def layer(weight: Tensor, bias: list[float] | None = None) -> DenseLayer:
    return DenseLayer(weight, torch.tensor(bias) if bias is not None else torch.zeros(len(weight)))


def output(layers: tuple[DenseLayer, ...], head: Tensor, x: Tensor) -> Tensor:
    for weight, bias in layers:
        x = torch.relu(x @ weight.T + bias)
    return x @ head.T


def drawn(seed: int, *widths: int) -> tuple[DenseLayer, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        DenseLayer(torch.randn(n, m, generator=generator), torch.randn(n, generator=generator))
        for m, n in zip(widths, widths[1:], strict=False)
    )


# The parts, by hand

LAYERS = (
    layer(rows([1, 0], [0, 2], [0, 0])),
    layer(rows([0, 3, 0], [4, 0, 5])),
)


@pytest.mark.parametrize(
    ("head", "first", "second"),
    [
        (rows([1, 0]), [False, True, False], [True, False]),
        (rows([0, 1]), [True, False, True], [False, True]),
        (rows([0, 0], [0, -1]), [True, False, True], [False, True]),  # any output counts, not the first one alone
        (rows([1, 1]), [True, True, True], [True, True]),
        (rows([0, 0]), [False, False, False], [False, False]),
    ],
)
def test_the_search_finds_every_unit_that_leads_to_an_output(
    head: Tensor, first: list[bool], second: list[bool]
) -> None:
    one, other = selected_units(LAYERS, head)
    assert one.tolist() == first
    assert other.tolist() == second


def test_free_entries_have_both_ends_among_the_units() -> None:
    one, other = free_entries(LAYERS, selected_units(LAYERS, rows([0, 1])))
    assert one.weight.tolist() == [[True, True], [False, False], [True, True]]  # inputs are all there
    assert one.bias.tolist() == [True, False, True]
    assert other.weight.tolist() == [[False] * 3, [True, False, True]]
    assert other.bias.tolist() == [False, True]


@given(seed=st.integers(0, 10**6), share=st.floats(0.2, 0.9))
def test_what_is_not_selected_says_nothing_to_the_task(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(
        DenseLayer(torch.where(torch.rand(w.shape, generator=generator) < share, w, 0.0), b)
        for w, b in drawn(seed, 3, 5, 4, 4)
    )
    head = torch.randn(2, 4, generator=generator) * (torch.rand(2, 4, generator=generator) < share)
    units = selected_units(layers, head)
    other = tuple(
        DenseLayer(torch.where(own.unsqueeze(1), w, 9.0), torch.where(own, b, -7.0))
        for (w, b), own in zip(layers, units, strict=True)
    )
    x = torch.randn(6, 3, generator=generator)
    assert torch.equal(output(other, head, x), output(layers, head, x))


def test_the_l1_step_brings_weights_closer_to_zero_and_not_past_it() -> None:
    values = torch.tensor([0.5, -0.5, 0.1, -0.1, 0.0])
    assert torch.allclose(soft_threshold(values, 0.2), torch.tensor([0.3, -0.3, 0.0, 0.0, 0.0]))
    assert torch.equal(soft_threshold(values, 0.0), values)


def test_the_group_step_shortens_each_row_and_clears_short_ones() -> None:
    weight = rows([3, 4, 7], [0.3, 0.4, 7], [0, 0, 7])
    entries = torch.tensor([[True, True, False]] * 3)
    assert torch.allclose(shrunk_rows(weight, entries, 1.0), rows([2.4, 3.2, 7], [0, 0, 7], [0, 0, 7]))
    assert torch.equal(shrunk_rows(weight, entries, 0.0), weight)
    weight[0] = weight[0] * torch.tensor([0.0, 0.0, 1.0])
    assert shrunk_rows(weight, entries, 1.0)[0].tolist() == [0, 0, 7]


def test_a_wider_layer_begins_with_the_old_one() -> None:
    wide = widened(layer(rows([1, 2]), [3.0]), layer(torch.full((2, 3), 9.0), [9.0, 9.0]))
    assert wide.weight.tolist() == [[1, 2, 9], [9, 9, 9]]
    assert wide.bias.tolist() == [3, 9]


def test_units_without_weights_are_cut_with_what_reads_them() -> None:
    below, above = layer(rows([1, 1], [0, 0], [0, 0]), [1.0, 2.0, 3.0]), layer(rows([5, 6, 7]), [8.0])
    silent = silent_units(below, first=2)
    assert silent.tolist() == [False, False, True]  # the second is old, and stays
    (low, high), head = without_units((below, above), rows([9]), (silent, torch.tensor([False])))
    assert low.weight.tolist() == [[1, 1], [0, 0]]
    assert low.bias.tolist() == [1, 2]
    assert high.weight.tolist() == [[5, 6]]
    assert head.tolist() == [[9]]


def test_drift_is_measured_over_old_weights_alone() -> None:
    now, before = rows([3, 4, 100], [0, 1, 100], [100, 100, 100]), rows([0, 0], [0, 0])
    assert drift_of_units(now, before).tolist() == [5, 1]


def test_the_units_that_went_furthest_are_split() -> None:
    drift = torch.tensor([0.3, 0.0, 0.9, 0.5, 0.1])
    assert units_to_split(drift, 0.1, 10).tolist() == [0, 2, 3]
    assert units_to_split(drift, 0.1, 2).tolist() == [2, 3]
    assert units_to_split(drift, 0.1, 0).tolist() == []
    assert units_to_split(drift, 1.0, 10).tolist() == []


def test_a_split_by_hand() -> None:
    """Two old units below, of which the second is split; above an old unit, and one that the task added."""
    before = (layer(rows([1], [2]), [0.0, 0.1]), layer(rows([10, 20])))
    now = (layer(rows([1], [3]), [0.0, 0.4]), layer(rows([11, 22], [33, 44])))
    none = torch.empty(0, dtype=torch.int64)
    (low, high), head = after_split(now, before, rows([5, 6]), (torch.tensor([1]), none))
    assert low.weight.tolist() == [[1], [2], [3]]
    assert low.bias.tolist() == pytest.approx([0, 0.1, 0.4])
    assert high.weight.tolist() == [[11, 22, 0], [33, 0, 44]]  # the old one reads the original, the new one the copy
    assert head.tolist() == [[5, 6]]


@given(seed=st.integers(0, 10**6))
def test_old_tasks_have_their_function_again_where_all_that_drifted_is_split(seed: int) -> None:
    before, noise = drawn(seed, 3, 4, 5), drawn(seed + 1, 3, 4, 5)
    now = tuple(
        DenseLayer(w + 0.3 * dw, b + 0.3 * db) for (w, b), (dw, db) in zip(before, noise, strict=True)
    )
    head, old_head = torch.randn(2, 5), torch.randn(3, 5)
    x = torch.randn(6, 3)
    layers, wide = after_split(now, before, head, (torch.arange(4), torch.arange(5)))
    old = (
        DenseLayer(layers[0].weight[:4], layers[0].bias[:4]),
        DenseLayer(layers[1].weight[:5, :4], layers[1].bias[:5]),
    )
    assert torch.equal(output(old, old_head, x), output(before, old_head, x))
    torch.testing.assert_close(output(layers, wide, x), output(now, head, x))  # and the task keeps its own
    assert not torch.allclose(output(now, old_head, x), output(before, old_head, x))


def test_epochs_are_divided_and_none_is_lost() -> None:
    assert [divided(epochs) for epochs in (1, 2, 3, 4, 10, 20)] == [
        (0, 1, 0, 0),
        (0, 1, 1, 0),
        (0, 1, 1, 1),
        (1, 1, 1, 1),
        (1, 3, 3, 3),
        (2, 6, 6, 6),
    ]
    assert all(sum(divided(epochs)) == epochs and divided(epochs)[1] >= 1 for epochs in range(1, 60))


# The method

def epochs_of(method: DEN, seen: list[Any], **training: Any) -> int:
    method.begin_task(seen[-1])
    done = 0
    for event in Training(method, seen, TrainingSettings(epochs=8, batch_size=32, **training)):
        done += isinstance(event, EpochDone)
    method.end_task(seen[-1])
    return done


def begun(**settings: Any) -> tuple[DEN, Training]:
    """A method with a learned task that has begun another, and its training, of which nothing has happened yet."""
    method = make("den", dropout=0.0, **settings)
    learn(method, TASKS[:1], epochs=2, **ADAM)
    method.begin_task(TASKS[1])
    return method, Training(method, TASKS[:2], TrainingSettings(epochs=4, batch_size=32, **ADAM))


def test_a_task_reads_no_unit_that_came_after_it() -> None:
    method = make("den", dropout=0.0)
    learn(method, TASKS[:1], epochs=1)
    promised = logits(method, TASKS[0])
    learn(method, TASKS, first=1, epochs=4, **ADAM)
    widths = list(method.network.widths.values())
    assert widths[0] == (16, 12)
    assert all(low < high for one, other in zip(widths, widths[1:], strict=False) for low, high in zip(one, other, strict=True))
    changed = method.changes["second"]
    added = [n + m for n, m in zip(changed.added, changed.split, strict=True)]
    assert widths[1] == (16 + added[0], 12 + added[1])
    before = [logits(method, task) for task in TASKS[:2]]
    assert not torch.equal(before[0], promised)  # which is why forgetting is measured
    with torch.no_grad():
        for layer_, width in zip(method.network.layers, widths[1], strict=True):
            layer_.weight[width:] = 1e9
            layer_.bias[width:] = 1e9
        method.network.layers[1].weight[:, widths[1][0] :] = 1e9
    assert [torch.equal(logits(method, task), was) for task, was in zip(TASKS, before, strict=False)] == [True, True]


def test_the_head_is_trained_alone_then_the_selected_entries() -> None:
    method, training = begun(l1=0.004)
    with torch.no_grad():
        method.network.layers[1].weight[:5] *= 0  # units that nothing leads to, and that stay
        method.network.head("second").weight[:, 5:8] = 0
        before = method.network.copies()
    parts = []
    for event in training:
        if isinstance(event, EpochDone):
            parts.append(method.network.copies())
            if len(parts) == 1:
                assert all(torch.equal(*both) for old, new in zip(before, parts[0], strict=True) for both in zip(old, new, strict=True))
            if len(parts) == 2:
                break
    selected = selected_units(parts[0], method.network.head("second").weight)
    assert not bool(selected[0].all() and selected[1].all()) or method._free is not None
    assert method._free is not None
    moved = [(new != old) for o, n in zip(parts[0], parts[1], strict=True) for old, new in zip(o, n, strict=True)]
    assert any(bool(entries.any()) for entries in moved)
    assert not any(bool((entries & ~free).any()) for entries, free in zip(moved, method._free, strict=False))
