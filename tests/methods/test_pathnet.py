from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack.backbones import build_reproducibly
from hatrack.errors import CheckpointError, InputError
from hatrack.experiments import RunRequest, TaskBegun, prepare, run
from hatrack.methods import METHODS, Loss, Schedule, Setup
from hatrack.methods.narrow import sections_of
from hatrack.methods.pathnet import GenerationSchedule, PathNet, growth, mutated, random_genes
from hatrack.train import EpochDone, Training, TrainingSettings
from support.toys import (
    EVERY_OPTIMIZER,
    KINDS,
    MIXTURE,
    SHAPES,
    assert_goes_on_as_without_interruption,
    assert_nothing_forgotten,
    learn,
    logits,
    make,
    setup_of,
    tasks,
)

SMALL = {"modules": 4, "active": 2, "generations": 2, "module_width": 0.5}


def weights(method: PathNet) -> dict[tuple[int, int], list[Tensor]]:
    return {
        (layer, number): [value.clone() for value in module.state_dict().values()]
        for layer, modules in enumerate(method.layers)
        for number, module in enumerate(modules)  # type: ignore[arg-type]
    }


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@KINDS
@EVERY_OPTIMIZER
def test_earlier_tasks_keep_every_bit(kind: str, optimizer: str) -> None:
    assert_nothing_forgotten(make("pathnet", kind, **SMALL), kind, optimizer)


@KINDS
def test_it_goes_on_after_loading_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption("pathnet", kind, tmp_path, **SMALL)
    assert straight.paths == after.paths
    assert straight.frozen == after.frozen


@KINDS
def test_the_path_is_frozen_and_all_else_starts_anew(kind: str) -> None:
    method, seen = make("pathnet", kind, **SMALL), tasks(kind, 2)
    initial = weights(method)
    learn(method, seen[:1], epochs=4)
    learned = weights(method)
    path = {(layer, number) for layer, numbers in enumerate(method.paths["t0"]) for number in numbers}
    assert method.frozen == path
    assert all(not same(learned[place], initial[place]) for place in path)
    assert all(not p.requires_grad for place in path for p in method.module(*place).parameters())
    method.begin_task(seen[1])
    anew = weights(method)
    for place, values in anew.items():
        assert same(values, learned[place]) == (place in path)
        assert not same(values, initial[place])  # other draws than for the first task


def test_a_part_trains_the_free_modules_of_its_path_alone() -> None:
    method, seen = make("pathnet", "conv", **SMALL), tasks("conv", 2)
    learn(method, seen[:1])
    method.begin_task(seen[1])
    for index in (0, 1):
        method.begin_phase(index)
        path = {(layer, number) for layer, numbers in enumerate(method._genes) for number in numbers}
        expected = [p for place in path - method.frozen for p in method.module(*place).parameters()]
        trained = method.trained_parameters()
        assert {id(p) for p in trained} == {id(p) for p in [*expected, *method._heads["t1"].parameters()]}
    assert method._individuals[0] != method._individuals[1]


@pytest.mark.parametrize(
    ("epochs", "phases"), [(200, (10,) * 40), (30, (1,) * 40), (20, (1,) * 40), (5, (1,) * 10), (1, (1, 1))]
)
def test_epochs_are_divided_by_generations(epochs: int, phases: tuple[int, ...]) -> None:
    assert tuple(make("pathnet").phases(epochs)) == phases


def test_a_run_announces_the_epochs_of_all_parts() -> None:
    request = RunRequest("demo", "pathnet", overrides={"epochs": 3, "limit": 40, "num_tasks": 1, "hidden": (20, 20)})
    events = list(run(prepare(request)))
    assert isinstance(events[0], TaskBegun)
    assert events[0].max_epochs == 6
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("better", [0, 1])
def test_the_better_path_wins_with_its_weights(better: int) -> None:
    method, seen = make("pathnet", **SMALL), tasks(count=1)
    method.begin_task(seen[0])
    individuals = list(method._individuals)
    states = []
    for index in (0, 1):
        method.begin_phase(index)
        assert method._genes == individuals[index]
        with torch.no_grad():
            for parameter in method.trained_parameters():
                parameter.fill_(float(index))  # what training does
        states.append({id(p): p.clone() for p in method.trained_parameters()})
        method.end_phase(index, Schedule(0.05, 5, 0.5 if index == better else 0.9))
    assert method._genes == individuals[better]
    assert all(torch.equal(p, states[better][id(p)]) for p in method.trained_parameters())
    assert method._individuals[0] == individuals[better]
    method.begin_phase(2)
    with torch.no_grad():
        for parameter in method.trained_parameters():
            parameter.fill_(7.0)
    method.end_phase(2, Schedule(0.05, 5, 0.6))
    method.begin_phase(3)
    method.end_phase(3, Schedule(0.05, 5))
    method.end_task(seen[0])  # nothing got better: the champion of the first generation stays
    assert method.paths["t0"] == individuals[better]
    assert all(bool((p == float(better)).all()) for p in method.trained_parameters())


def tournament(losses: list[float], generations: int, epochs: int, settings: TrainingSettings) -> list[float]:
    """Learning rate of every epoch, as in the HAT authors' code; the winner is the first path from then on."""
    lr, left, best = [settings.lr] * 2, [settings.lr_patience] * 2, [math.inf] * 2
    overall, winner, rates, script = math.inf, 0, [], iter(losses)
    for _ in range(generations):
        for path in (0, 1):
            for _ in range(epochs):
                if lr[path] < settings.lr_min:
                    break
                rates.append(lr[path])
                loss = next(script)
                if loss < overall:
                    overall, winner = loss, path
                if loss < best[path]:
                    best[path], left[path] = loss, settings.lr_patience
                    continue
                left[path] -= 1
                if left[path] == 0:
                    lr[path], left[path] = lr[path] / settings.lr_factor, settings.lr_patience
        lr, left, best = [lr[winner]] * 2, [left[winner], settings.lr_patience], [best[winner], math.inf]
        winner = 0
    return rates


@pytest.mark.parametrize("seed", range(6))
def test_learning_rate_and_patience_go_on_from_generation_to_generation(seed: int) -> None:
    patience, drift = (2, 3)[seed % 2], (0.0, 0.02, 0.1)[seed % 3]
    settings = TrainingSettings(epochs=24, batch_size=48, lr=0.05, lr_factor=3.0, lr_patience=patience, lr_min=0.004)
    drawn = torch.rand(48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    losses = [round(float(loss) - drift * at, 6) for at, loss in enumerate(drawn)]
    expected = tournament(losses, 8, 3, settings)
    method, seen = make("pathnet", **{**SMALL, "generations": 8}), tasks(count=1)
    assert method.settings.schedule is GenerationSchedule.CARRIED
    script, loss_of = iter(losses), method.loss

    def scripted(batch: Any) -> Loss:
        found = loss_of(batch)
        return found if torch.is_grad_enabled() else Loss(torch.tensor(next(script), dtype=torch.float64), found.logits)

    method.loss = scripted
    method.begin_task(seen[0])
    training, rates, over = Training(method, seen, settings), [], []
    for event in training:
        if isinstance(event, EpochDone):
            rates.append(event.lr)
            over.append(training.over)
    assert rates == pytest.approx(expected)
    assert over == [False] * (len(over) - 1) + [True]
    if seed < 3:
        assert min(expected) < 0.05 / 2, "the rate falls in this script"


def test_the_learning_rate_can_start_anew_in_every_generation() -> None:
    method, seen = make("pathnet", **{**SMALL, "schedule": GenerationSchedule.ANEW}), tasks(count=1)
    method.begin_task(seen[0])
    settings = TrainingSettings(epochs=6, batch_size=16, lr_patience=1, lr=0.05, lr_min=0.01)
    rates = [e.lr for e in Training(method, seen, settings) if isinstance(e, EpochDone)]
    assert rates[0] == rates[len(rates) // 2] == 0.05


@pytest.mark.slow
def test_genes_move_with_the_papers_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    genes = random_genes(5, 16, 3, generator)
    assert len(genes) == 5
    assert all(len(set(layer)) == 3 and max(layer) < 16 for layer in genes)
    moves = []
    for _ in range(3000):
        other = mutated(genes, 16, generator)
        pairs = [(a, b) for x, y in zip(genes, other, strict=True) for a, b in zip(x, y, strict=True)]
        moves += [min((b - a) % 16, (a - b) % 16) for a, b in pairs]
    assert max(moves) == 2
    share = sum(move > 0 for move in moves) / len(moves)
    assert share == pytest.approx(0.8 / 15, rel=0.1)  # a fifth of the moves is by 0


def test_outputs_of_modules_are_summed_and_one_named_twice_counts_once() -> None:
    method = make("pathnet", dropout=0.0, **SMALL)
    method.begin_task(tasks(count=1)[0])
    x = torch.randn(5, *SHAPES["mlp"])
    hidden = method.module(0, 0)(x) + method.module(0, 2)(x)
    expected = method._heads["t0"](method.module(1, 3)(hidden))
    torch.testing.assert_close(method._forward(x, "t0", ((2, 0), (3, 3))), expected)


@pytest.mark.slow
def test_the_papers_width_is_found_for_the_mixture_on_alexnet() -> None:
    """The HAT paper: 16 modules per layer, width factor 0.258, 7.1 million parameters."""
    method = METHODS["pathnet"](setup_of("alexnet", (3, 32, 32), MIXTURE), METHODS["pathnet"].settings_type())
    assert method.width == pytest.approx(0.258, abs=0.003)
    heads = sum(MIXTURE) * (method._features + 1)
    assert sum(p.numel() for p in method.layers.parameters()) + heads == pytest.approx(7.1e6, rel=0.02)
    assert len(method.layers) == 5


@pytest.mark.slow
def test_residual_blocks_are_modules() -> None:
    method = METHODS["pathnet"](
        setup_of("resnet18", (3, 16, 16)), METHODS["pathnet"].settings_type(2, 1, 1, module_width=1 / 32)
    )
    assert len(method.layers) == 9
    x = torch.randn(2, 3, 16, 16)
    genes = ((0, 1),) + ((1,),) * 8
    method.open("t0", 3)
    assert method._forward(x, "t0", genes).shape == (2, 3)


@KINDS
def test_capacity_counts_frozen_modules(kind: str, tmp_path: Path) -> None:
    method, seen = make("pathnet", kind, **SMALL), tasks(kind, 2)
    assert method.capacity().weights == 0.0
    learn(method, seen)
    capacity = method.capacity()
    paths = list(method.paths.values())
    used = [len({number for path in paths for number in path[layer]}) for layer in range(len(method.layers))]
    assert list(capacity.groups.values()) == [number / 4 for number in used]
    assert capacity.units is None
    frozen = sum(p.numel() for p in method.layers.parameters() if not p.requires_grad)
    assert capacity.weights == pytest.approx(frozen / sum(p.numel() for p in method.layers.parameters()))
    method.save(tmp_path / "net.hat")
    other = make("pathnet", kind, **SMALL)
    other.load(tmp_path / "net.hat")
    assert other.capacity() == capacity


def test_all_modules_start_differently() -> None:
    method = make("pathnet", **SMALL)
    first = [next(iter(module.parameters())) for module in method.layers[0]]
    assert len({tuple(value.flatten().tolist()) for value in first}) == len(first) == 4


@pytest.mark.parametrize("active", [1, 3, 6])
def test_sums_of_modules_start_no_larger_than_one_modules_output(active: int) -> None:
    settings = METHODS["pathnet"].settings_type(modules=6, active=active, module_width=0.1)
    start = setup_of("alexnet", (3, 32, 32))
    method = METHODS["pathnet"](start, settings)
    method.layers.eval()
    x = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one = start.build_narrow(0.1, 0).eval()  # type: ignore[misc]
    with torch.no_grad():
        usual = float(one(x).square().mean())
        method._heads["t0"] = nn.Identity()
        several = float(method._forward(x, "t0", (tuple(range(active)),) * 5).square().mean())
    assert 0.1 < several / usual < 10  # with weights as they are, 3 give 1800 times as much, 6 a million times


def test_how_much_sums_of_modules_grow() -> None:
    x = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(0)).relu()
    for number in (1, 2, 6):
        ratio = x[:, :number].sum(dim=1).square().mean().sqrt() / x[:, 0].square().mean().sqrt()
        assert growth(number) == pytest.approx(float(ratio), rel=0.01)


def test_a_norm_before_the_first_layer_belongs_to_the_modules() -> None:
    def build_narrow(share: float, seed: int) -> nn.Module:
        width = max(1, round(8 * share))
        return build_reproducibly(
            lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, width), nn.ReLU()), seed, xavier=True
        )

    stem, sections = sections_of(build_narrow(1.0, 0))
    assert len(stem.state_dict()) == 0
    assert [type(part) for part in sections[0]] == [nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU]
    start = Setup(lambda: build_narrow(1.0, 0), SHAPES["mlp"], 0, torch.device("cpu"), build_narrow)
    method, seen = METHODS["pathnet"](start, METHODS["pathnet"].settings_type(**SMALL)), tasks(count=2)
    learn(method, seen[:1])
    promised = logits(method, seen[0])
    learn(method, seen, first=1)
    assert torch.equal(logits(method, seen[0]), promised)


def test_the_width_is_that_of_the_file(tmp_path: Path) -> None:
    method, seen = make("pathnet", **SMALL), tasks(count=1)
    learn(method, seen, epochs=1)
    method.save(tmp_path / "net.hat")
    other = make("pathnet", **{**SMALL, "module_width": 0.25})
    other.load(tmp_path / "net.hat")
    assert torch.equal(logits(other, seen[0]), logits(method, seen[0]))
    with pytest.raises(CheckpointError, match="was saved with modules=4, not 5"):
        make("pathnet", **{**SMALL, "modules": 5}).load(tmp_path / "net.hat")


@pytest.mark.parametrize(
    ("key", "value"),
    [("modules", 0), ("active", 0), ("active", 17), ("generations", 0), ("module_width", 0.0), ("module_width", 2.0)],
)
def test_wrong_settings(key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{key} must be"):
        make("pathnet", **{key: value})
