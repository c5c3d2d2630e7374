"""What hard attention costs is measured on copies, in full, and means what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork
from hatrack.errors import InputError, TrainingError, UnsupportedError
from hatrack.experiments import CostPlan, Costs, StepCosts, measure_costs, measuring_costs
from hatrack.experiments import costs as costs_module
from hatrack.gating import partial_gradients
from hatrack.support.interface import Interface
from hatrack.train import OptimizerKind, TrainingSettings
from support.replaying import recorded

QUICK = CostPlan(repetitions=2)
ONCE = ["attach", "add a task", "consolidate", "extract", "save"]


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU())


def with_norms() -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(128, 12)]
    return nn.Sequential(*layers, nn.ReLU())


def assert_all_there(costs: Costs, expected: list[tuple[int, bool]]) -> None:
    assert costs.complete
    assert (costs.done, dict(costs.missing)) == (costs.total, {})
    assert list(costs.seconds) == ONCE
    assert [(step.tasks, step.captured) for step in costs.steps] == expected
    times = [*costs.seconds.values(), *(each for step in costs.steps for each in (*step.plain, *step.hat))]
    times += [each for step in costs.steps for each in (step.plain_ms, step.hat_ms, step.ratio, *step.quartiles)]
    assert all(0 < each < math.inf for each in times)
    for step in costs.steps:
        assert len(step.plain) == len(step.hat) == 2
        if not step.captured:
            assert step.plain_bytes is not None
            assert step.hat_bytes is not None
            assert 0 < step.plain_bytes < step.hat_bytes
        if step.tasks:
            assert 0 < step.units < 1
            assert 0 < step.weights < 1
        else:
            assert step.units == step.weights == 0


@pytest.mark.parametrize("kind", OptimizerKind)
def test_all_is_measured(kind: OptimizerKind) -> None:
    plan = CostPlan(repetitions=2, tasks=1, training=TrainingSettings(lr=1e-6, optimizer=kind, weight_decay=0.1))
    assert_all_there(measure_costs(dense(), torch.randn(4, 6), plan), [(0, False), (1, False)])


def test_the_backbone_stays_as_it_is_and_so_do_torchs_generators() -> None:
    backbone = with_norms().train()
    backbone[3].eval()
    backbone[0].bias.requires_grad_(False)
    calls: list[Any] = []
    backbone.register_forward_hook(lambda *_: calls.append(_))
    backbone(torch.randn(4, 3, 6, 6)).sum().backward()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    gradients = [None if each.grad is None else each.grad.clone() for each in backbone.parameters()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in backbone.modules()]
    modes, random_state = [part.training for part in backbone.modules()], torch.get_rng_state()
    assert_all_there(measure_costs(backbone, torch.randn(4, 3, 6, 6), QUICK), [(0, False), (2, False)])
    torch.set_rng_state(random_state)
    for costs in measuring_costs(backbone, torch.zeros(4, 3, 6, 6), QUICK):
        if costs.steps:
            break  # in the middle of it
    del costs
    assert torch.equal(torch.get_rng_state(), random_state)
    after = backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(after) == list(before)
    assert [part.training for part in backbone.modules()] == modes
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in backbone.modules()] == hooks
    assert [each.requires_grad for each in backbone.parameters()] == [True, False, *[True] * 4]
    for parameter, gradient in zip(backbone.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("training", "states"),
    [
        (TrainingSettings(lr=1e-6), 0),
        (TrainingSettings(lr=1e-6, momentum=0.9), 4 * 146),
        (TrainingSettings(lr=1e-6, optimizer=OptimizerKind.ADAM), 2 * 4 * 146 + 4 * 4),
    ],
)
def test_memory_of_a_plain_step_is_what_can_be_counted_by_hand(training: TrainingSettings, states: int) -> None:
    """Saved for the backward pass are inputs, activations, logarithms of probabilities, classes, and their number."""
    parameters = 6 * 8 + 8 + 8 * 10 + 10
    saved = 4 * (4 * 6 + 4 * 8 + 4 * 10) + 8 * 4 + 4
    first, _ = measure_costs(dense(), torch.randn(4, 6), CostPlan(repetitions=2, training=training)).steps
    assert first.plain_bytes == 2 * 4 * parameters + states + saved


def test_memory_on_a_gpu_is_the_most_of_a_step_without_what_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torch's counters: 5000 bytes are allocated, 700 more in the middle of a step."""
    module = nn.Linear(3, 4)
    steps: list[float] = []
    trained = costs_module.Trained(module, torch.optim.SGD(module.parameters()), steps.append)
    most = {"reset": 9000}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: most.update(reset=5000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: most["reset"] + 700 * len(steps))
    assert costs_module.memory_of_step(trained, torch.device("cuda")) == 4 * 16 + 700


def test_the_second_of_two_tasks_costs_more_memory_than_the_first() -> None:
    """For every frozen weight its bits and a mask of as many are kept."""
    first, later = measure_costs(dense(), torch.randn(4, 6), CostPlan(repetitions=2, tasks=1, used=0.9)).steps
    assert first.hat_bytes is not None
    assert later.hat_bytes is not None
    assert later.hat_bytes - first.hat_bytes > 2 * 4 * 6 * 8


def test_tasks_use_as_many_units_as_asked_for() -> None:
    wide = nn.Sequential(nn.Linear(6, 4000), nn.ReLU())
    for used in (0.1, 0.7):
        _, later = measure_costs(wide, torch.randn(2, 6), CostPlan(tasks=2, used=used, repetitions=2)).steps
        assert later.units == pytest.approx(1 - (1 - used) ** 2, abs=0.05)


def test_on_a_gpu_both_steps_are_measured_as_graphs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the GPU's: operations that are recorded, and done again without Python."""
    monkeypatch.setattr(partial_gradients, "PRODUCTS_WORTH", math.inf)  # only on a CPU do convolutions look at values
    captured: list[int] = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        captured.append(1)
        return recorded(work)

    costs = measure_costs(with_norms(), torch.randn(4, 3, 6, 6), QUICK, capture)
    assert_all_there(costs, [(0, False), (2, False), (0, True), (2, True)])
    assert len(captured) == 4
    assert all(step.plain_bytes is None and step.hat_bytes is None for step in costs.steps[2:])


def test_steps_that_cannot_be_captured_are_said_to_be_so() -> None:
    def refuse(work: Callable[[], None]) -> Callable[[], None]:
        raise TrainingError("this reads a value")

    costs = measure_costs(dense(), torch.randn(4, 6), QUICK, refuse)
    assert [step.captured for step in costs.steps] == [False, False]
    assert dict(costs.missing) == {"steps as CUDA graphs": "this reads a value"}
    assert costs.complete


def test_a_task_that_cannot_be_extracted_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedError("it differs")

    monkeypatch.setattr(HATNetwork, "extract", refuse)
    costs = measure_costs(dense(), torch.randn(4, 6), QUICK)
    assert dict(costs.missing) == {"extract": "it differs"}
    assert "save" in costs.seconds


def test_parts_are_counted_and_figures_come_in_one_by_one() -> None:
    for capture in (None, recorded):
        parts = list(measuring_costs(dense(), torch.randn(4, 6), QUICK, capture))
        done = [part.done for part in parts]
        assert done == sorted(done)
        assert {part.total for part in parts} == {parts[-1].done}
        assert [part.complete for part in parts] == [False] * (len(parts) - 1) + [True]
        assert set(done) == set(range(parts[-1].total + 1))
        assert any(len(part.steps) == 1 and len(part.steps[0].hat) == 1 for part in parts)


class Maps(nn.Module):
    """Maps of features under a name, of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 16, 3)

    def forward(self, picture: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"maps": self.layer(picture).relu() * scale[:, None, None, None]}


def test_other_interfaces_are_measured_too() -> None:
    plan = CostPlan(repetitions=2, classes=3, interface=Interface("maps", unit_axis=1))
    batch = {"picture": torch.randn(4, 3, 6, 6), "scale": torch.rand(4)}
    assert_all_there(measure_costs(Maps(), batch, plan), [(0, False), (2, False)])


@pytest.mark.parametrize(
    ("backbone", "batch", "error", "said"),
    [
        (dense(), torch.randn(4, 7), InputError, "does not train on a batch of 4 such samples .*4x7 and 6x8"),
        (nn.Sequential(dense(), nn.BatchNorm1d(8)), torch.randn(1, 6), InputError, "a batch of 1 such.*more than 1"),
        (nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5), InputError, "units along axis 1.*flatten them in the backbone"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(24, 5)), torch.randn(4, 6), InputError, "features"),
        (nn.Sequential(dense(), nn.CosineSimilarity()), torch.randn(4, 6), InputError, "train"),
    ],
)
def test_what_cannot_be_measured_is_refused(backbone: nn.Module, batch: Tensor, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        measure_costs(backbone, batch, QUICK)


class Branching(nn.Module):
    """Follows the sign of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layer(x)
        return h if h.sum() > 0 else h.relu()


def test_a_backbone_that_cannot_be_attached_is_refused_as_hatnetwork_does() -> None:
    with pytest.raises(UnsupportedError) as by_itself:
        HATNetwork(Branching(), torch.randn(1, 6))
    with pytest.raises(UnsupportedError) as measured:
        measure_costs(Branching(), torch.randn(4, 6), QUICK)
    assert str(measured.value) == str(by_itself.value)


@pytest.mark.parametrize("choice", [{"tasks": 0}, {"classes": 1}, {"repetitions": 1}, {"used": 0.0}, {"used": 1.0}])
def test_choices_have_ranges(choice: Any) -> None:
    with pytest.raises(InputError, match=next(iter(choice))):
        CostPlan(**choice)


def test_ratios_are_those_of_pairs() -> None:
    step = StepCosts(0, 0.0, 0.0, False, (0.001, 0.002, 0.004), (0.002, 0.002, 0.02), 1, 2)
    assert (step.plain_ms, step.hat_ms, step.ratio) == (2.0, 2.0, 2.0)
    assert step.quartiles == (1.5, 3.5)
    one = StepCosts(0, 0.0, 0.0, False, (0.001,), (0.003,), None, None)
    assert one.quartiles == (3.0, 3.0)
