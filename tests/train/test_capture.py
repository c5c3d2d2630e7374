"""Steps that are repeated without Python train to the same bits as steps that are made one by one."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hatrack.errors import InputError, TrainingError
from hatrack.functional import Conditioning, Regularization
from hatrack.gating import partial_gradients
from hatrack.methods import METHODS
from hatrack.methods.hat import MaskSchedule
from hatrack.methods.proximal import Penalty
from hatrack.train import Training, TrainingSettings
from hatrack.train import capture as capture_module
from hatrack.train.capture import WARM_UP, CapturedSteps, as_cuda_graph
from hatrack.train.parallel import ALONE, Ranks
from support.marks import slow_but
from support.replaying import recorded
from support.toys import make, setup, tasks

CAPTURABLE = [name for name, method in METHODS.items() if method.capturable]


@pytest.fixture(autouse=True)
def convolutions_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only on a CPU do convolutions look at values, for channels that they may leave out."""
    monkeypatch.setattr(partial_gradients, "PRODUCTS_WORTH", math.inf)


SCHEDULE = TrainingSettings(epochs=5, batch_size=8, momentum=0.9, lr_patience=1, lr_min=0.001)
"""So impatient that the learning rate falls between epochs."""


def learned(name: str, kind: str, path: Path, training: TrainingSettings, **settings: Any) -> bytes:
    method, stream = make(name, kind, **settings), tasks(kind, 3, samples=44)  # 5 batches of 8, and one of 4
    for number, task in enumerate(stream, 1):
        method.begin_task(task)
        for _ in Training(method, stream[:number], training, capture=recorded):
            pass
        method.end_task(task)
    method.save(path)
    return path.read_bytes()


def assert_same_bits(
    name: str, kind: str, folder: Path, training: TrainingSettings = SCHEDULE, **settings: Any
) -> None:
    one_by_one = learned(name, kind, folder / "one.hat", training, **settings)
    assert learned(name, kind, folder / "all.hat", replace(training, captured=True), **settings) == one_by_one


@pytest.mark.parametrize("name", slow_but(["sgd", "hat"], CAPTURABLE))
def test_a_recorded_step_is_as_good_as_a_new_one(name: str, tmp_path: Path) -> None:
    assert_same_bits(name, "dropout", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_recorded_step_with_batch_norms_and_clipped_gradients_is_as_good(name: str, tmp_path: Path) -> None:
    assert_same_bits(name, "conv", tmp_path, replace(SCHEDULE, clip_norm=0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hat", {"schedule": MaskSchedule.PAPER}),
        ("hat", {"regularizer": Regularization.LAYERED_L1, "hard": False}),
        ("hat", {"conditioning": Conditioning.PER_TASK, "embedding_lr_factor": 5.0}),
        ("ewc", {"penalty": Penalty.EXPLICIT}),
        ("si", {"penalty": Penalty.EXPLICIT}),
    ],
)
def test_a_recorded_step_with_other_choices_is_as_good(name: str, settings: Any, tmp_path: Path) -> None:
    assert_same_bits(name, "mlp", tmp_path, **settings)


def test_a_step_is_captured_anew_in_every_epoch_and_only_for_whole_batches() -> None:
    captured: list[int] = []
    made: list[tuple[int, list[int], float]] = []

    def capture(work: Any) -> Any:
        captured.append(len(made))
        return work

    steps = CapturedSteps(4, capture)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    for epoch in range(3):
        step = steps.of_epoch(lambda rows, at, epoch=epoch: made.append((epoch, rows.tolist(), float(at))), order)
        for batch in range(5):
            step(batch)
    batches = [(order[4 * batch : 4 * batch + 4].tolist(), batch / 4) for batch in range(5)]
    expected: list[tuple[int, list[int], float]] = []
    for epoch in range(3):
        first = 1 if epoch else WARM_UP  # is captured, and made twice to be compared
        assert captured[epoch] == len(expected) + first
        expected += [(epoch, *batch) for batch in (*batches[: first + 1], *batches[first:])]
    assert made == expected


def test_the_only_batch_of_an_epoch_is_its_last() -> None:
    made: list[float] = []
    steps = CapturedSteps(2, lambda work: work)
    for _ in range(WARM_UP + 2):
        steps.of_epoch(lambda rows, at: made.append(float(at)), torch.arange(2))(0)
    assert made == [1.0] * (WARM_UP + 2)


def test_steps_to_warm_up_are_counted_over_epochs() -> None:
    made: list[str] = []

    def capture(work: Any) -> Any:
        def replay() -> None:
            made.append("replay")
            work()

        return replay

    steps = CapturedSteps(1, capture)
    for _ in range(3):
        step = steps.of_epoch(lambda rows, at: made.append("step"), torch.arange(2))
        for batch in range(2):
            step(batch)
    captured = ["step", "replay", "step"]  # the step, and its first replay, which makes it again
    assert made == ["step", "step", "step", *captured, "step", *captured]


@pytest.mark.parametrize(
    ("name", "settings", "ranks", "why"),
    [
        ("sgd", {}, ALONE, "steps are captured as CUDA graphs, and this run is on a cpu device"),
        ("sgd", {}, Ranks(0, 2), "steps that several processes share cannot be captured"),
        ("wsn", {}, ALONE, "the steps of wsn with these settings differ within an epoch"),
        ("hat", {"keep": 0.5, "s_max": 1.0}, ALONE, "the steps of hat with these settings differ within an epoch"),
        ("adahat", {}, ALONE, "the steps of adahat with these settings differ within an epoch"),
    ],
)
def test_what_cannot_be_captured_is_refused(name: str, settings: Any, ranks: Ranks, why: str) -> None:
    with pytest.raises(InputError, match=rf"{why}.*captured=false"):
        Training(make(name, **settings), tasks()[:1], TrainingSettings(captured=True), ranks)


def test_work_that_no_graph_can_hold_is_explained_and_want_of_memory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())

    def fails(error: Exception) -> None:
        def work() -> None:
            raise error

        as_cuda_graph(work)

    with pytest.raises(TrainingError, match=r"cannot be captured as a CUDA graph \(not permitted\).*captured=false"):
        fails(RuntimeError("not permitted\nat all"))
    with pytest.raises(torch.OutOfMemoryError):
        fails(torch.OutOfMemoryError("none left"))


@pytest.mark.parametrize("progress", [torch.zeros(2), torch.zeros(1), torch.zeros((), device="meta"), torch.tensor(1j)])
def test_progress_is_one_number_where_the_network_is(progress: Tensor) -> None:
    method = make("hat")
    method.begin_task(tasks()[0])
    with pytest.raises(InputError, match="a real 0-dimensional tensor on cpu"):
        method.network.anneal(progress)


@pytest.mark.parametrize("value", [-0.2, 1.5, math.nan])
def test_progress_outside_of_an_epoch_is_refused_as_a_number_and_as_a_tensor(value: float) -> None:
    method = make("hat")
    method.begin_task(tasks()[0])
    for progress in (value, torch.tensor(value)):
        with pytest.raises(InputError, match=r"progress must lie in \[0, 1\]"):
            method.network.anneal(progress)


def test_progress_that_wants_a_gradient_gets_none() -> None:
    method = make("hat")
    method.begin_task(tasks()[0])
    method.network.anneal(torch.tensor(0.5, requires_grad=True))
    copy.deepcopy(method.network)


class Whimsical(nn.Module):
    """Network whose training pass does something else each time, in a way of its own."""

    def __init__(self, whim: Callable[[Whimsical, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.whim, self.passes = nn.Linear(4, 16), nn.Linear(16, 12), whim, 0
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        if self.training:
            self.passes += 1
            h = self.whim(self, h)
        return self.second(h).relu()


def replace_mean(net: Whimsical, h: Tensor) -> Tensor:
    net.mean = 0.9 * net.mean + 0.1 * h.detach().mean(0)
    return h


WHIMS: dict[str, Callable[[Whimsical, Tensor], Tensor]] = {
    "counter": lambda net, h: h * (1 + 1 / net.passes),
    "every other step": lambda net, h: h if net.passes % 2 else 0.5 * h,
    "random number": lambda net, h: h * random.uniform(0.5, 1.5),
    "numpy's random number": lambda net, h: h * float(np.random.rand()),
    "falling dropout": lambda net, h: nn.functional.dropout(h, 0.5 / net.passes),
    "buffer that is replaced": replace_mean,
}


@pytest.mark.parametrize("whim", WHIMS)
@pytest.mark.parametrize("name", ["sgd", "hat"])
def test_a_network_that_does_something_else_each_time_is_refused(name: str, whim: str) -> None:
    plain = setup("mlp")
    method = METHODS[name](replace(plain, build_backbone=lambda: Whimsical(WHIMS[whim])), METHODS[name].settings_type())
    seen = tasks("mlp", 1, samples=44)
    method.begin_task(seen[0])
    with pytest.raises(TrainingError, match=r"captured=false"):
        for _ in Training(method, seen, replace(SCHEDULE, captured=True), capture=recorded):
            pass


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_a_replay_has_changed_is_compared(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    where = torch.device("cpu") if deterministic else torch.device("meta")

    class Elsewhere(Tensor):
        """A tensor that says to be on another device."""

        device = where

    def agree(found: list[float], wanted: list[float], before: list[float]) -> bool:
        return capture_module._agree(*(torch.tensor(v).as_subclass(Elsewhere) for v in (found, wanted, before)))

    before = [1.0, -2.0, 3.0]
    wanted = [1.0 + 1e-4, -2.0 - 2e-4, 3.0]
    assert agree(wanted, wanted, before)
    assert not agree(before, wanted, before)  # nothing learned
    assert not agree([1.0 + 3e-4, -2.0 - 6e-4, 3.0], wanted, before)  # thrice as much
    assert not agree([0.0, 1.0], [math.nan, 1.0], [0.0, 0.0])
    assert not agree([math.inf, 1.0], [math.inf, 500.0], [0.0, 0.0])
    assert agree([math.nan, 1.0], [math.nan, 1.0], [0.0, 0.0])
    assert agree([], [], [])
