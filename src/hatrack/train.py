"""The one training loop: epochs, the learning-rate schedule, early stopping, the best weights kept; and evaluation."""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from hatrack.errors import InputError, TrainingError
from hatrack.functional import batch_progress
from hatrack.methods import Batch, EpochPlan, Method, ParameterGroup
from hatrack.modes import fresh_statistics
from hatrack.parallel import ALONE, Ranks
from hatrack.streams import Split, Task, derive_seed, seeded_generator

__all__ = [
    "BatchDone",
    "EpochDone",
    "OptimizerKind",
    "Precision",
    "Score",
    "TrainingSettings",
    "fit",
    "predict_split",
    "require_finite",
    "score",
]

STATISTICS_BATCHES = 32
"""How many batches the statistics of batch norms are taken over at most."""


class OptimizerKind(enum.Enum):
    """The optimizers to choose from."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Precision(enum.Enum):
    """What training computes with; tests are always in float32."""

    FLOAT32 = "float32"
    """Float32 throughout."""

    BFLOAT16 = "bfloat16"
    """Mixed: torch's autocast takes bfloat16 where that is safe; weights and their steps stay float32."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a task is trained, with the HAT paper's values.

    Attributes:
        epochs: largest number of epochs per task.
        batch_size: samples per step.
        optimizer: sgd, adam or adamw.
        lr: learning rate to begin with.
        lr_factor: what the learning rate is divided by after ``lr_patience`` epochs without a better validation loss.
        lr_patience: see ``lr_factor``.
        lr_min: training stops when the learning rate falls below this.
        momentum: of SGD.
        weight_decay: of any optimizer.
        clip_norm: largest norm of the gradient of all parameters together.
        eval_batch_size: samples per batch in validation and testing; part of what makes test logits reproducible.
        fresh_statistics: before every validation, batch norms take the mean over up to 32 batches of the training set
            for their running averages, which lag behind the weights; see :func:`hatrack.fresh_statistics`.
        precision: float32, or bfloat16 for mixed precision in training and validation.
    """

    epochs: int = 200
    batch_size: int = 64
    optimizer: OptimizerKind = OptimizerKind.SGD
    lr: float = 0.05
    lr_factor: float = 3.0
    lr_patience: int = 5
    lr_min: float = 1e-4
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 10000.0
    eval_batch_size: int = 1000
    fresh_statistics: bool = True
    precision: Precision = Precision.FLOAT32

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "lr_patience", "eval_batch_size"):
            if getattr(self, key) < 1:
                raise InputError(f"{key} must be at least 1, not {getattr(self, key)}")
        for key in ("lr", "clip_norm"):
            if getattr(self, key) <= 0:
                raise InputError(f"{key} must be above 0, not {getattr(self, key)}")
        if self.lr_factor <= 1:
            raise InputError(f"lr_factor must be above 1, not {self.lr_factor}: the learning rate is divided by it")


@dataclass(frozen=True)
class BatchDone:
    """A step was made: ``done`` of ``total`` in this epoch; ``loss`` is the epoch's mean so far, where it is known."""

    epoch: int
    done: int
    total: int
    loss: float | None


@dataclass(frozen=True)
class EpochDone:
    """An epoch was made and validated.

    Attributes:
        epoch: counted from 1.
        train_loss: mean loss of the epoch's batches.
        valid_loss: loss on the validation set.
        valid_accuracy: accuracy on the validation set.
        lr: the learning rate that was used.
        best: whether the validation loss is the lowest so far.
    """

    epoch: int
    train_loss: float
    valid_loss: float
    valid_accuracy: float
    lr: float
    best: bool


@dataclass(frozen=True)
class Score:
    """What a test gave.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of right answers, in [0, 1].
        logits_sha256: SHA-256 of the float32 logits in test order, little-endian: the proof of what the network said.
    """

    loss: float
    accuracy: float
    logits_sha256: str


@dataclass(frozen=True)
class _Samples:
    """The samples of one or several tasks, on the training device."""

    x: Tensor
    y: Tensor
    task_of: Tensor
    tasks: tuple[str, ...]

    @classmethod
    def of(cls, tasks: Sequence[Task], splits: Sequence[Split], device: torch.device) -> _Samples:
        loaded = [split.load() for split in splits]
        x = loaded[0][0] if len(loaded) == 1 else torch.cat([x for x, _ in loaded])
        y = torch.cat([y for _, y in loaded])
        task_of = torch.cat([torch.full((len(y),), index) for index, (_, y) in enumerate(loaded)])
        return cls(x.to(device), y.to(device), task_of.to(device), tuple(task.name for task in tasks))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor | slice, progress: float) -> Batch:
        return Batch(self.x[rows], self.y[rows], self.tasks, self.task_of[rows], progress)

    def step(self, rows: Tensor, progress: float) -> Batch:
        return replace(self.batch(rows, progress), rows=rows)


def fit(
    method: Method, seen: Sequence[Task], settings: TrainingSettings, ranks: Ranks = ALONE
) -> Iterator[BatchDone | EpochDone]:
    """Train a method on a task that it has begun, and leave it with the weights of the best epoch.

    Args:
        method: the method, after ``begin_task``.
        seen: the tasks so far, the one to train last.
        settings: the schedule.
        ranks: the processes that share the work, of which this is one.

    Yields:
        What happened, after every step and every epoch; stop iterating and training stops.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    setup, task = method.setup, seen[-1]
    tasks = method.training_tasks(seen)
    train = _Samples.of(tasks, [t.train for t in tasks], setup.device)
    same = all(t.valid is t.train for t in tasks)
    valid = train if same else _Samples.of(tasks, [t.valid for t in tasks], setup.device)
    first = 1
    for index, epochs in enumerate(method.phases(settings.epochs)):
        method.begin_phase(index)
        best_loss = yield from _fit_phase(
            method, train, valid, settings, ranks, task.name, range(first, first + epochs)
        )
        method.end_phase(index, best_loss)
        first += epochs


def _fit_phase(
    method: Method,
    train: _Samples,
    valid: _Samples,
    settings: TrainingSettings,
    ranks: Ranks,
    task: str,
    epochs: range,
) -> Generator[BatchDone | EpochDone, None, float]:
    """Train for some epochs with a schedule of their own, and go back to the best of them; returns its loss."""
    groups = method.parameter_groups()
    parameters = [parameter for group in groups for parameter in group.parameters]
    optimizer = method.protect(_optimizer(groups, settings))
    best_loss, best, patience, lr = math.inf, _Snapshot(method), settings.lr_patience, settings.lr
    for epoch in epochs:
        plan = method.begin_epoch(epoch - epochs.start + 1, len(epochs), train.batch(slice(None), progress=0.0))
        epoch_lr = lr * plan.lr_factor
        for group, learning in zip(groups, optimizer.param_groups, strict=True):
            learning["lr"] = epoch_lr * group.lr_factor
        train_loss = 0.0
        for done in _train_epoch(method, train, plan, optimizer, parameters, settings, ranks, task, epoch):
            train_loss = train_loss if done.loss is None else done.loss
            yield done
        ranks.require_same(parameters, task)
        if settings.fresh_statistics:
            _renew_statistics(method, train, settings.batch_size, task, epoch)
        ranks.share_buffers(method.trained_modules())
        valid_loss, valid_accuracy = _validate(method, valid, settings)
        require_finite(valid_loss, "validation loss", task, epoch)
        improved = valid_loss < best_loss
        if improved:
            best_loss, patience = valid_loss, settings.lr_patience
            best.take()
        yield EpochDone(epoch, train_loss, valid_loss, valid_accuracy, epoch_lr, improved)
        if not improved and plan.lr_factor == 1.0:
            patience -= 1
            if patience <= 0:
                lr, patience = lr / settings.lr_factor, settings.lr_patience
                if lr < settings.lr_min:
                    break
    best.restore()
    return best_loss


def _train_epoch(
    method: Method,
    train: _Samples,
    plan: EpochPlan,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    settings: TrainingSettings,
    ranks: Ranks,
    task: str,
    epoch: int,
) -> Iterator[BatchDone]:
    seed = method.setup.seed
    count = len(train) if plan.rows is None else len(plan.rows)
    order = torch.randperm(count, generator=seeded_generator(seed, "shuffle", task, epoch)).to(train.x.device)
    order = order if plan.rows is None else plan.rows.to(train.x.device)[order]
    batches = math.ceil(count / settings.batch_size)
    total = torch.zeros((), device=train.x.device)
    method.train_mode(True)
    # Dropout draws from torch's global generator and takes no other: seed it here, and give it back as it was.
    devices = [train.x.device] if train.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(seed, "dropout", task, epoch, *((ranks.rank,) if ranks.size > 1 else ())))
        for index in range(batches):
            rows = order[index * settings.batch_size : (index + 1) * settings.batch_size]
            rows, weight = ranks.share(rows)
            with _autocast(train.x.device, settings):
                loss = method.loss(train.step(rows, batch_progress(index, batches))).value
            loss = loss if ranks.size == 1 else loss * weight
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            total += loss.detach()
            mean = None
            if index == batches - 1 or index % 25 == 24:  # reading a loss waits for the device
                whole = total.clone()
                ranks.add_up([whole])
                mean = float(whole) / (index + 1)
                require_finite(mean, "loss", task, epoch)
            yield BatchDone(epoch, index + 1, batches, mean)


def _autocast(device: torch.device, settings: TrainingSettings) -> AbstractContextManager[object]:
    if settings.precision is Precision.FLOAT32:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _renew_statistics(method: Method, train: _Samples, batch_size: int, task: str, epoch: int) -> None:
    """Gather the statistics of batch norms anew, if there are any; in full batches, which all count alike."""
    method.train_mode(True)
    modules = [m for m in method.trained_modules() if any(isinstance(part, _NormBase) for part in m.modules())]
    if not modules:
        return
    generator = seeded_generator(method.setup.seed, "statistics", task, epoch)
    rows = torch.randperm(len(train), generator=generator)[: STATISTICS_BATCHES * batch_size].to(train.x.device)
    whole = len(rows) // batch_size * batch_size or len(rows)
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(fresh_statistics(module))
        for batch in torch.split(rows[:whole], batch_size):
            method.loss(train.batch(batch, progress=1.0))


def _validate(method: Method, valid: _Samples, settings: TrainingSettings) -> tuple[float, float]:
    method.train_mode(False)
    loss = right = 0.0
    with torch.no_grad():
        for start in range(0, len(valid), settings.eval_batch_size):
            batch = valid.batch(slice(start, start + settings.eval_batch_size), progress=1.0)
            with _autocast(valid.x.device, settings):
                result = method.loss(batch)
            loss += float(result.value) * len(batch.x)
            right += int((result.logits.argmax(dim=1) == batch.y).sum())
    return loss / len(valid), right / len(valid)


def predict_split(method: Method, split: Split, task: str, batch_size: int) -> Tensor:
    """Run a method on the test samples of a task that it has learned.

    Args:
        method: the method.
        split: the test samples.
        task: the task's name.
        batch_size: samples per batch; logits are reproducible to the bit for equal batches only.

    Returns:
        Logits in test order, float32 on the CPU, ``(N, classes)``.
    """
    method.train_mode(False)
    x, _ = split.load()
    with torch.no_grad():
        parts = [
            method.predict(part.to(method.setup.device), task).float().cpu() for part in torch.split(x, batch_size)
        ]
    return torch.cat(parts).contiguous()


def score(logits: Tensor, labels: Tensor) -> Score:
    """Loss and accuracy of logits ``(N, classes)`` for labels ``(N,)``, and the hash of the logits."""
    little_endian = logits.numpy().astype("<f4", copy=False)
    return Score(
        loss=float(F.cross_entropy(logits, labels)),
        accuracy=int((logits.argmax(dim=1) == labels).sum()) / len(labels),
        logits_sha256=hashlib.sha256(little_endian.tobytes()).hexdigest(),
    )


class _Snapshot:
    """A copy of everything in training, to go back to the best epoch."""

    def __init__(self, method: Method) -> None:
        modules = method.trained_modules()
        self._live = [*method.trained_parameters(), *(buffer for module in modules for buffer in module.buffers())]
        self._kept: list[Tensor] = []

    def take(self) -> None:
        self._kept = [tensor.detach().clone() for tensor in self._live]

    def restore(self) -> None:
        with torch.no_grad():
            for live, kept in zip(self._live, self._kept, strict=False):  # nothing was kept if no epoch was made
                live.copy_(kept)


def _optimizer(groups: Sequence[ParameterGroup], settings: TrainingSettings) -> torch.optim.Optimizer:
    lr, weight_decay = settings.lr, settings.weight_decay
    parameters = [{"params": group.parameters, "lr": lr * group.lr_factor} for group in groups]
    match settings.optimizer:
        case OptimizerKind.SGD:
            return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=weight_decay)
        case OptimizerKind.ADAM:
            return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
        case OptimizerKind.ADAMW:
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def require_finite(loss: float, what: str, task: str, epoch: int | None = None) -> None:
    """Check a loss.

    Raises:
        TrainingError: it is infinite or not a number.
    """
    if not math.isfinite(loss):
        when = "" if epoch is None else f" in epoch {epoch}"
        raise TrainingError(
            f"the {what} of task {task!r} became {loss}{when}; lower the learning rate (--set lr=...), or "
            "look for extreme values in the data"
        )
