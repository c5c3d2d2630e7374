from __future__ import annotations

from itertools import pairwise
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
from hatrack.methods import Batch, Schedule
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
from support.toys import TASKS, accuracy, learn, logits, make, tasks

ADAM: dict[str, Any] = {"optimizer": OptimizerKind.ADAM, "lr": 0.005}


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def dense(weight: Tensor, bias: list[float] | None = None) -> DenseLayer:
    return DenseLayer(weight, torch.tensor(bias) if bias is not None else torch.zeros(len(weight)))


def output(layers: tuple[DenseLayer, ...], head: Tensor, x: Tensor) -> Tensor:
    for weight, bias in layers:
        x = torch.relu(x @ weight.T + bias)
    return x @ head.T


def drawn(seed: int, *widths: int) -> tuple[DenseLayer, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        DenseLayer(torch.randn(n, m, generator=generator), torch.randn(n, generator=generator))
        for m, n in pairwise(widths)
    )


# The parts, by hand

LAYERS = (
    dense(rows([1, 0], [0, 2], [0, 0])),
    dense(rows([0, 3, 0], [4, 0, 5])),
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
    wide = widened(dense(rows([1, 2]), [3.0]), dense(torch.full((2, 3), 9.0), [9.0, 9.0]))
    assert wide.weight.tolist() == [[1, 2, 9], [9, 9, 9]]
    assert wide.bias.tolist() == [3, 9]


def test_units_without_weights_are_cut_with_what_reads_them() -> None:
    below, above = dense(rows([1, 1], [0, 0], [0, 0]), [1.0, 2.0, 3.0]), dense(rows([5, 6, 7]), [8.0])
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
    before = (dense(rows([1], [2]), [0.0, 0.1]), dense(rows([10, 20])))
    now = (dense(rows([1], [3]), [0.0, 0.4]), dense(rows([11, 22], [33, 44])))
    none = torch.empty(0, dtype=torch.int64)
    (low, high), head = after_split(now, before, rows([5, 6]), (torch.tensor([1]), none))
    assert low.weight.tolist() == [[1], [2], [3]]
    assert low.bias.tolist() == pytest.approx([0, 0.1, 0.4])
    assert high.weight.tolist() == [[11, 22, 0], [33, 0, 44]]  # the old one reads the original, the new one the copy
    assert head.tolist() == [[5, 6]]


@given(seed=st.integers(0, 10**6))
def test_old_tasks_have_their_function_again_where_all_that_drifted_is_split(seed: int) -> None:
    before, noise = drawn(seed, 3, 4, 5), drawn(seed + 1, 3, 4, 5)
    now = tuple(DenseLayer(w + 0.3 * dw, b + 0.3 * db) for (w, b), (dw, db) in zip(before, noise, strict=True))
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


def begun(**settings: Any) -> DEN:
    """A method that has learned a task and begun another, of which nothing is trained yet."""
    method: DEN = make("den", dropout=0.0, **settings)
    learn(method, TASKS[:1], epochs=2, batch_size=80, **ADAM)
    method.begin_task(TASKS[1])
    method.phases(4)
    return method


def steps(method: DEN, number: int = 3, **optimizer: Any) -> None:
    """Make steps on all samples of the second task."""
    x, y = TASKS[1].train.load()
    batch = Batch(x, y, ("second",), torch.zeros(len(y), dtype=torch.int64), 1.0)
    made = method.protect(
        torch.optim.Adam(method.trained_parameters(), **{"lr": 0.05, "weight_decay": 0.1, **optimizer})
    )
    for _ in range(number):
        made.zero_grad()
        method.loss(batch).value.backward()  # type: ignore[no-untyped-call]
        made.step()


def moved(method: DEN, before: tuple[DenseLayer, ...]) -> tuple[DenseLayer, ...]:
    """Which entries of the layers as they were are others now."""
    found = []
    for now, old in zip(method.network.copies(), before, strict=True):
        outputs, inputs = old.weight.shape
        found.append(DenseLayer(now.weight[:outputs, :inputs] != old.weight, now.bias[:outputs] != old.bias))
    return tuple(found)


def anything(layers: tuple[DenseLayer, ...]) -> bool:
    return any(bool(entries.any()) for layer in layers for entries in layer)


def test_a_task_reads_no_unit_that_came_after_it() -> None:
    method = make("den", dropout=0.0)
    learn(method, TASKS[:1], epochs=1)
    promised = logits(method, TASKS[0])
    learn(method, TASKS, first=1, epochs=4, batch_size=80, **ADAM)
    widths = list(method.network.widths.values())
    assert widths[0] == (16, 12)
    changed = method.changes["second"]
    assert widths[1] == tuple(map(sum, zip(widths[0], changed.added, changed.split, strict=True)))
    assert all(low < high for low, high in zip(widths[1], widths[2], strict=True))
    before = [logits(method, task) for task in TASKS]
    assert not torch.equal(before[0], promised)  # retraining moves shared weights: forgetting is measured, not excluded
    with torch.no_grad():
        for layer, width in zip(method.network.tensors(), widths[1], strict=True):
            layer.weight[width:] = layer.bias[width:] = 1e9
        method.network.tensors()[1].weight[:, widths[1][0] :] = 1e9
    assert [torch.equal(logits(method, task), was) for task, was in zip(TASKS, before, strict=True)] == [
        True,
        True,
        False,
    ]


def test_the_head_is_trained_alone_and_becomes_sparse() -> None:
    method = begun(l1=0.02)
    before, head = method.network.copies(), method.network.head("second").weight.detach().clone()
    method.begin_phase(Part.HEAD)
    steps(method, 8, lr=0.01)
    assert not anything(moved(method, before))
    now = method.network.head("second").weight
    assert not torch.equal(now, head)
    assert 0 < int((now == 0).sum()) < now.numel()


def test_retraining_moves_the_selected_entries_alone() -> None:
    method = begun()
    with torch.no_grad():
        method.network.head("second").weight[:, 4:] = 0
        method.network.tensors()[1].weight[:, 10:] = 0
    before = method.network.copies()
    units = selected_units(before, method.network.head("second").weight)
    method.begin_phase(Part.RETRAINING)
    steps(method)
    assert [int(own.sum()) for own in units] == [10, 4]
    changed = moved(method, before)
    assert anything(changed)
    for entries, free in zip(changed, free_entries(before, units), strict=True):
        assert not bool((entries.weight & ~free.weight).any() or (entries.bias & ~free.bias).any())
    assert bool((method.network.head("second").weight[:, 4:] == 0).all())


def test_an_expansion_trains_new_units_alone_and_keeps_those_with_weights() -> None:
    method = begun(expansion=3, group_l1=0.02)
    method.begin_phase(Part.RETRAINING)
    method.end_phase(Part.RETRAINING, Schedule(0.1, 1, best_loss=0.5))
    before = method.network.copies()
    method.begin_phase(Part.EXPANSION)
    assert method.network.current_widths == (19, 15)
    wide = method.network.copies()
    with torch.no_grad():
        method.network.tensors()[0].weight[17] = 1e-3  # shorter than one step of the group, longer than one of l1
    steps(method, 1, lr=1e-6)
    assert not anything(moved(method, before))
    assert bool((method.network.tensors()[1].weight[:12, 16:] != wide[1].weight[:12, 16:]).any())
    method.end_phase(Part.EXPANSION, Schedule(0.1, 1, best_loss=0.4))
    assert method.network.current_widths == (18, 15)


@pytest.mark.parametrize(("loss", "expands"), [(0.3, False), (0.30001, True)])
def test_the_network_expands_where_the_loss_is_above_its_threshold(loss: float, expands: bool) -> None:
    method, reached, fresh = begun(loss_threshold=0.3), Schedule(0.1, 1, best_loss=loss), Schedule(0.1, 1)
    method.phases(2)  # without a part after the expansion
    assert method.goes_on(Part.RETRAINING, 2, reached, 0.0) is expands
    method.phases(4)
    assert method.goes_on(Part.RETRAINING, 2, reached, 0.0)
    method.end_phase(Part.RETRAINING, reached)
    method.begin_phase(Part.EXPANSION)
    assert (method.schedule(Part.EXPANSION, fresh) == fresh) is expands
    assert (method.network.current_widths == (16, 12)) is not expands


def test_no_epochs_of_an_expansion_that_is_left_out() -> None:
    for threshold, epochs in ((0.0, 4), (1e9, 3)):
        method = make("den", dropout=0.0, loss_threshold=threshold)
        learn(method, TASKS[:1], epochs=1)
        method.begin_task(TASKS[1])
        training = Training(method, TASKS[:2], TrainingSettings(epochs=4, batch_size=80, **ADAM, lr_min=0.0))
        over = [training.over for event in training if isinstance(event, EpochDone)]
        assert over == [False] * (epochs - 1) + [True]


def test_units_that_drifted_are_split_with_the_weights_of_before() -> None:
    method = begun(split_threshold=0.5, expansion=2)
    before = method.network.copies()
    with torch.no_grad():
        method.network.tensors()[0].weight[[1, 5, 7]] += torch.tensor([[1.0], [3.0], [2.0]])
    now = method.network.copies()
    method.begin_phase(Part.SPLITTING)
    assert method.network.current_widths == (18, 12)
    weight = method.network.tensors()[0].weight
    assert torch.equal(weight[[5, 7]], before[0].weight[[5, 7]])
    assert torch.equal(weight[16:], now[0].weight[[5, 7]])
    assert torch.equal(weight[1], now[0].weight[1])


def test_a_strong_penalty_keeps_old_weights_and_frees_new_ones() -> None:
    gone = []
    for strength in (0.0, 1e9):
        method = begun(strength=strength, l1=0.0)
        before = method.network.copies()
        with torch.no_grad():
            method.network.tensors()[0].weight[3] += 1.0
        method.begin_phase(Part.SPLITTING)
        steps(method, weight_decay=0.0)
        now = method.network.copies()
        pairs = zip(now, before, strict=True)
        gone.append(max(float(drift_of_units(new.weight, old.weight).max()) for new, old in pairs))
        assert method.network.current_widths == (17, 12)
        assert not torch.equal(now[0].weight[16], before[0].weight[3] + 1.0)  # the copy is free
    assert gone[1] < 1e-4 < gone[0]


def test_a_training_without_parts_moves_everything_near_the_old_values() -> None:
    gone = []
    for strength in (0.0, 1e9):
        method = begun(strength=strength, l1=0.0)
        before = method.network.copies()
        steps(method, weight_decay=0.0)
        assert method.network.current_widths == (16, 12)
        pairs = zip(method.network.copies(), before, strict=True)
        gone.append(min(float(drift_of_units(new.weight, old.weight).max()) for new, old in pairs))
    assert gone[1] < 1e-4 < gone[0]


def test_old_tasks_are_remembered_better_than_by_fine_tuning() -> None:
    after = {}
    for name in ("den", "sgd"):
        method, seen = make(name, dropout=0.0), tasks()
        learn(method, seen[:2], epochs=6, batch_size=32, **{**ADAM, "lr": 0.02})
        after[name] = accuracy(method, seen[0])
    assert after["den"] > after["sgd"] + 0.05


def test_what_a_task_did_is_kept_in_its_file(tmp_path: Path) -> None:
    method = make("den")
    learn(method, TASKS[:2], epochs=4, batch_size=80, **ADAM)
    method.save(tmp_path / "net.hat")
    again = make("den")
    again.load(tmp_path / "net.hat")
    assert again.changes == method.changes
    assert again.network.widths == method.network.widths
    assert method.changes["first"].added == (0, 0)
    assert sum(method.changes["second"].added) > 0


def test_a_task_in_training_is_not_saved(tmp_path: Path) -> None:
    method = make("den")
    method.begin_task(TASKS[0])
    with pytest.raises(InputError, match="task 'first' is in training and has no time stamp yet; end it"):
        method.save(tmp_path / "net.hat")
    assert not (tmp_path / "net.hat").exists()


def test_a_widened_network_goes_on_after_loading_as_if_nothing_had_happened(tmp_path: Path) -> None:
    straight, before, after = (make("den") for _ in range(3))
    schedule: dict[str, Any] = {"epochs": 4, "batch_size": 80, **ADAM}
    learn(straight, TASKS, **schedule)
    learn(before, TASKS[:2], **schedule)
    before.save(tmp_path / "net.hat")
    after.load(tmp_path / "net.hat")
    learn(after, TASKS, first=2, **schedule)
    assert after.changes == straight.changes
    assert after.network.widths == straight.network.widths
    assert all(torch.equal(logits(after, task), logits(straight, task)) for task in TASKS)


def test_the_weights_in_use_are_those_that_are_not_zero() -> None:
    method = begun()
    with torch.no_grad():
        method.network.tensors()[0].weight[:8] = 0.0
    capacity = method.capacity()
    assert capacity.groups == {"dense1": 0.5, "dense2": 1.0}
    assert capacity.weights == method.usage() == (32 + 192) / (64 + 192)
    assert capacity.parameters == 64 + 192 + 16 + 12


class Odd(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x


RELU, DENSE = nn.ReLU(), nn.Linear(4, 4)
UNTRAINED = nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        (AlexNet((3, 32, 32), width=0.1), "part 0 of the backbone is Conv2d"),
        (nn.Linear(4, 4), "the backbone is a Linear"),
        (Odd(nn.Linear(4, 4)), "the backbone is a Odd"),
        (nn.Sequential(nn.Flatten()), "no dense layer"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "part 1 of the backbone is BatchNorm1d"),
        (nn.Sequential(nn.Linear(4, 4, bias=False)), "part 0 of the backbone is Linear"),
        (nn.Sequential(UNTRAINED), "part 0 of the backbone is Linear"),
        (nn.Sequential(DENSE, nn.ReLU(), DENSE), "part 0 of the backbone is Linear"),
        (nn.Sequential(nn.Linear(4, 4), nn.Flatten()), "part 1 of the backbone is Flatten"),
    ],
)
def test_what_is_no_row_of_dense_layers_is_refused_in_one_line(backbone: nn.Module, named: str) -> None:
    with pytest.raises(InputError, match="choose network mlp") as caught:
        ExpandableNetwork(backbone)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_stands_twice_is_run_twice() -> None:
    first, second = nn.Linear(4, 5), nn.Linear(5, 3)
    network = ExpandableNetwork(nn.Sequential(first, RELU, second, RELU))
    network.add_task("task", nn.Linear(3, 2))
    x = torch.randn(8, 4)
    assert torch.equal(network(x, "task"), network.head("task")(RELU(second(RELU(first(x))))))


def test_a_run_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(InputError, match="choose network mlp"):
        prepare(RunRequest("demo", "den", overrides={"network": "resnet18", "limit": 40}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("l1", -1.0), ("group_l1", -1.0), ("strength", -0.1), ("expansion", -1), ("split_threshold", -1.0)],
)
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=key):
        DENSettings(**{key: value})
