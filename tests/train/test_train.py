from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError, TrainingError
from hatrack.methods import Batch, EpochPlan, Loss, Method, ParameterGroup, Schedule, Setup
from hatrack.streams import Task
from hatrack.train import (
    BatchDone,
    EpochDone,
    LearningRateDecay,
    OptimizerKind,
    TrainingSettings,
    fit,
    predict_split,
    score,
)
from hatrack.train.loop import clip


class Scripted(Method):
    """A method with one weight, which every step raises by the learning rate, and validation losses by a script."""

    name = "scripted"
    description = source = "for this test"

    def __init__(self, valid_losses: Sequence[float], train_loss: float = 1.0) -> None:
        super().__init__(Setup(nn.Identity, (1,), 0, torch.device("cpu")), None)
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.module.register_buffer("seen", torch.zeros(()))
        self.valid_losses = list(valid_losses)
        self.train_loss = train_loss
        self.batches: list[Batch] = []
        self.weights: list[float] = []

    @property
    def raised(self) -> list[float]:
        """Rise of the weight by every step but the last one."""
        return [after - before for before, after in itertools.pairwise(self.weights)]

    def loss(self, batch: Batch) -> Loss:
        logits = torch.zeros(len(batch.x), 2)
        if not self.module.training:
            return Loss(torch.tensor(self.valid_losses.pop(0)), logits)
        self.batches.append(batch)
        self.weights.append(self.module.weight.item())
        self.module.seen += 1
        return Loss(self.train_loss - self.module.weight.sum(), logits)

    def begin_task(self, task: Task) -> None: ...
    def end_task(self, task: Task) -> None: ...
    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> tuple[str, ...]:
        return ()

    def predict(self, x: Tensor, task: str) -> Tensor:
        return torch.cat([x, -x], dim=1)

    def trained_modules(self) -> Sequence[nn.Module]:
        return [self.module]

    def trained_parameters(self) -> list[nn.Parameter]:
        return [self.module.weight]


def task(samples: int = 10) -> Task:
    x = torch.arange(samples, dtype=torch.float32).unsqueeze(1)
    y = torch.arange(samples) % 2
    return Task.from_tensors("only", x, y, x, y)


def train(method: Scripted, *, samples: int = 10, **settings: Any) -> list[EpochDone]:
    chosen = TrainingSettings(batch_size=4, **settings)
    return [event for event in fit(method, [task(samples)], chosen) if isinstance(event, EpochDone)]


def test_the_learning_rate_is_divided_after_bad_epochs_until_it_is_too_small() -> None:
    method = Scripted([1.0, 0.9] + [0.95] * 100)
    epochs = train(method, epochs=100, lr=0.05, lr_factor=3.0, lr_patience=5, lr_min=0.005)
    rates = [0.05] * 7 + [0.05 / 3] * 5 + [0.05 / 9] * 5  # then 0.05 / 27, which is below the least
    assert [epoch.lr for epoch in epochs] == pytest.approx(rates)
    assert [epoch.best for epoch in epochs] == [True, True] + [False] * 15


def test_along_a_cosine_the_learning_rate_falls_with_every_step_to_the_last_one() -> None:
    method = Scripted([1.0] + [2.0] * 3)  # never better again, and all epochs are made, whatever lr_min says
    cosine = {"lr_decay": LearningRateDecay.COSINE, "lr": 0.2, "lr_min": 0.3, "lr_patience": 1}
    epochs = train(method, epochs=4, **cosine)
    falling = [0.2 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]  # 4 epochs of 3 batches
    assert method.raised == pytest.approx(falling[:-1], abs=1e-6)
    assert [epoch.lr for epoch in epochs] == pytest.approx(falling[::3])


@pytest.mark.parametrize("continued", [(), (1,), (1, 2), (2,)])
def test_parts_have_a_cosine_of_their_own_or_go_on_along_one(continued: tuple[int, ...]) -> None:
    class InParts(Scripted):
        def phases(self, epochs: int) -> Sequence[int]:
            return (2, 1, epochs - 3)

        def continues(self, index: int) -> bool:
            return index in continued

    made = train(InParts([1.0] * 6), epochs=6, lr=0.2, lr_decay=LearningRateDecay.COSINE)
    lengths: list[int] = []
    for index, length in enumerate((2, 1, 3)):
        if index in continued:
            lengths[-1] += length
        else:
            lengths.append(length)
    falling = [(1 + math.cos(math.pi * epoch / length)) / 2 for length in lengths for epoch in range(length)]
    assert [epoch.lr for epoch in made] == pytest.approx([0.2 * left for left in falling])


def test_a_learning_rate_along_a_cosine_is_not_captured() -> None:
    with pytest.raises(InputError, match="keeps its learning rate through an epoch"):
        TrainingSettings(lr_decay=LearningRateDecay.COSINE, captured=True)


def test_the_best_epochs_weights_and_buffers_come_back() -> None:
    method = Scripted([1.0, 0.5, 0.7, 0.6])
    train(method, epochs=4, lr=0.1)
    steps = 2 * 3  # two epochs of three batches
    assert method.module.weight.item() == pytest.approx(0.1 * steps)
    assert method.module.seen.item() == steps


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    method = Scripted([1.0] * 3)
    train(method, epochs=3)
    epochs = [method.batches[3 * epoch : 3 * epoch + 3] for epoch in range(3)]
    orders = [torch.cat([batch.x for batch in epoch]).flatten().tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [[batch.progress for batch in epoch] for epoch in epochs] == [[0.0, 0.5, 1.0]] * 3
    again = Scripted([1.0] * 3)
    train(again, epochs=3)
    assert all(torch.equal(a.x, b.x) for a, b in zip(method.batches, again.batches, strict=True))


def test_one_batch_is_a_whole_epoch() -> None:
    method = Scripted([1.0])
    train(method, samples=3, epochs=1)
    assert [batch.progress for batch in method.batches] == [1.0]


def test_losses_are_means_and_steps_are_reported() -> None:
    method = Scripted([0.25])
    events = list(fit(method, [task()], TrainingSettings(epochs=1, batch_size=4, lr=0.1)))
    assert [(e.epoch, e.done, e.total) for e in events if isinstance(e, BatchDone)] == [(1, 1, 3), (1, 2, 3), (1, 3, 3)]
    (epoch,) = (e for e in events if isinstance(e, EpochDone))
    assert epoch.train_loss == pytest.approx((1.0 + 0.9 + 0.8) / 3)
    assert (epoch.valid_loss, epoch.valid_score) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Scripted([1.0], train_loss=math.nan), "the loss of task 'only' became nan in epoch 1"),
        (Scripted([math.inf]), "the validation loss of task 'only' became inf"),
    ],
)
def test_a_loss_that_is_not_finite_is_an_error(method: Scripted, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(method, epochs=1)


@pytest.mark.parametrize("kind", OptimizerKind)
def test_sparse_gradients_are_refused_with_what_to_do(kind: OptimizerKind) -> None:
    class Sparse(Scripted):
        def loss(self, batch: Batch) -> Loss:
            row = F.embedding(torch.tensor([0]), self.module.weight, sparse=True)
            return Loss(row.sum(), torch.zeros(len(batch.x), 2))

    with pytest.raises(TrainingError, match=r"of shape \(1, 1\) is sparse.*sparse=False"):
        train(Sparse([1.0]), optimizer=kind)


def test_gradients_are_clipped() -> None:
    method = Scripted([1.0])
    train(method, epochs=1, lr=1.0, clip_norm=0.01)
    assert method.module.weight.item() == pytest.approx(3 * 0.01, rel=1e-3)


@pytest.mark.parametrize("kind", OptimizerKind)
def test_every_optimizer_trains(kind: OptimizerKind) -> None:
    method = Scripted([1.0])
    train(method, epochs=1, optimizer=kind)
    assert method.module.weight.item() > 0


def test_training_leaves_the_global_random_state_alone() -> None:
    method = Scripted([1.0])
    before = torch.random.get_rng_state()
    train(method, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_scores_by_hand() -> None:
    only = task(4)  # logits (x, -x): the first class wins but for x = 0, where the first one does as well
    logits = predict_split(Scripted([]), only.test, "only", batch_size=3)
    assert logits.tolist() == [[0.0, 0.0], [1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]
    result = score(logits, only.test.labels)
    assert result.value == 0.5
    losses = [math.log(2), math.log(1 + math.exp(2)), math.log(1 + math.exp(-4)), math.log(1 + math.exp(6))]
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert score(logits.clone(), only.test.labels).logits_sha256 == result.logits_sha256
    assert score(torch.nextafter(logits, logits + 1), only.test.labels).logits_sha256 != result.logits_sha256


def test_phases_follow_each_other_and_each_ends_with_its_best_weights() -> None:
    class InTwoParts(Scripted):
        def phases(self, epochs: int) -> Sequence[int]:
            return (epochs - 1, 1)

        def begin_phase(self, index: int) -> None:
            happened.append(("begin", index, self.module.weight.item()))

        def end_phase(self, index: int, reached: Schedule) -> None:
            happened.append(("end", index, self.module.weight.item(), reached.best_loss))

    happened: list[tuple[Any, ...]] = []
    method = InTwoParts([0.5, 0.7, 0.9])
    epochs = train(method, epochs=3, lr=0.1, samples=4)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert [epoch.best for epoch in epochs] == [True, False, True], "the second part has a best of its own"
    assert happened == [
        ("begin", 0, 0.0),
        ("end", 0, pytest.approx(0.1), 0.5),
        ("begin", 1, pytest.approx(0.1)),
        ("end", 1, pytest.approx(0.2), pytest.approx(0.9)),
    ]


class TwoRates(Scripted):
    """The scripted weight at the schedule's rate, and a second one that learns ten times as fast."""

    def __init__(self, valid_losses: Sequence[float]) -> None:
        super().__init__(valid_losses)
        self.module.fast = nn.Parameter(torch.zeros(1, 1))

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        return loss._replace(value=loss.value - self.module.fast.sum()) if self.module.training else loss

    def trained_parameters(self) -> list[nn.Parameter]:
        return [self.module.weight, self.module.fast]

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return [ParameterGroup([self.module.weight]), ParameterGroup([self.module.fast], lr_factor=10.0)]


def test_a_group_keeps_its_factor_when_the_learning_rate_falls() -> None:
    method = TwoRates([1.0, 2.0, 0.5])
    train(method, epochs=3, lr=0.1, lr_patience=1, lr_factor=2.0)
    moved = 3 * (0.1 + 0.1 + 0.05)  # three steps an epoch
    assert float(method.module.weight.detach()) == pytest.approx(moved)
    assert float(method.module.fast.detach()) == pytest.approx(10 * moved)


class Planned(Scripted):
    """Learns from the even samples, at a tenth of the rate, in the first two epochs."""

    def begin_epoch(self, epoch: int, epochs: int, samples: Batch) -> EpochPlan:
        self.asked.append((epoch, epochs, len(samples.x)))
        return EpochPlan(torch.arange(0, len(samples.x), 2), 0.1) if epoch <= 2 else EpochPlan()

    def __init__(self, valid_losses: Sequence[float]) -> None:
        super().__init__(valid_losses)
        self.asked: list[tuple[int, int, int]] = []


def test_a_method_says_which_samples_an_epoch_learns_from() -> None:
    method = Planned([1.0] * 3)
    train(method, epochs=3)
    assert method.asked == [(1, 3, 10), (2, 3, 10), (3, 3, 10)]
    epochs = [method.batches[:2], method.batches[2:4], method.batches[4:]]
    seen = [torch.cat([batch.x for batch in epoch]).flatten().tolist() for epoch in epochs]
    assert [sorted(values) for values in seen] == [[0, 2, 4, 6, 8], [0, 2, 4, 6, 8], list(range(10))]
    assert seen[0] != seen[1]
    assert [batch.progress for batch in method.batches] == [0.0, 1.0, 0.0, 1.0, 0.0, 0.5, 1.0]
    for batch in method.batches:
        assert batch.rows is not None
        assert batch.rows.tolist() == batch.x.flatten().tolist()  # sample i is the number i


def test_a_warm_up_lowers_the_rate_and_takes_no_patience() -> None:
    method = Planned([1.0, 1.0, 1.0, 1.0, 1.0])
    epochs = train(method, epochs=5, lr=0.05, lr_patience=1)
    assert [epoch.lr for epoch in epochs] == pytest.approx([0.005, 0.005, 0.05, 0.05 / 3, 0.05 / 9])


def test_epochs_of_a_plan_are_counted_within_the_part() -> None:
    class InTwoParts(Planned):
        def phases(self, epochs: int) -> Sequence[int]:
            return (epochs - 1, 1)

    method = InTwoParts([1.0] * 3)
    train(method, epochs=3)
    assert method.asked == [(1, 2, 10), (2, 2, 10), (1, 1, 10)]


def test_validation_has_no_rows() -> None:
    seen: list[Batch] = []

    class Watching(Scripted):
        def loss(self, batch: Batch) -> Loss:
            if not self.module.training:
                seen.append(batch)
            return super().loss(batch)

    train(Watching([1.0]), epochs=1)
    assert [batch.rows for batch in seen] == [None]


@pytest.mark.parametrize("largest", [1e-3, 1.0, 3.0, 1e4])
@pytest.mark.parametrize("poison", [0.0, float("inf"), float("nan")])
def test_gradients_are_clipped_as_torch_does(largest: float, poison: float) -> None:
    found = []
    for scale_down in (nn.utils.clip_grad_norm_, partial(clip, read=False), partial(clip, read=True)):
        layer = nn.Linear(5, 4)
        layer.weight.grad = torch.linspace(-1, 1, 20).view(4, 5)
        layer.weight.grad[0, 0] += poison
        scale_down([*layer.parameters()], largest)
        found.append(layer.weight.grad)
    assert all(torch.equal(each.view(torch.int32), found[0].view(torch.int32)) for each in found)
