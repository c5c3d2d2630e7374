"""The one training loop: epochs, the learning-rate schedule, early stopping, the best weights kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hatrack.errors import CheckpointError, TrainingError
from hatrack.methods import Batch, EpochPlan, Method, Pace, Schedule, joined
from hatrack.objectives import common_metric, joined_targets
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Split, Task, derive_seed, seeded_generator
from hatrack.support.inputs import map_tensors
from hatrack.support.interface import PLAIN
from hatrack.support.modes import fresh_statistics
from hatrack.support.randomness import random_numbers_apart
from hatrack.train.capture import Capture, CapturedSteps, as_cuda_graph, one_by_one, require_capturable, require_cuda
from hatrack.train.optimizers import build_optimizer, load_optimizer, optimizer_tensors
from hatrack.train.parallel import ALONE, Ranks
from hatrack.train.scoring import require_finite
from hatrack.train.settings import OptimizerKind, Precision, TrainingSettings
from hatrack.train.state import BestEpoch, Place, TrainingState

__all__ = ["BatchDone", "EpochDone", "Training", "fit"]

STATISTICS_BATCHES = 32
"""Largest number of batches that the statistics of batch norms are taken over."""


@dataclass(frozen=True)
class BatchDone:
    """Steps were made: ``done`` of ``total`` in this epoch; ``loss`` is the epoch's mean so far, where it is known.

    There is one for every step, and for every 25 where these are captured.
    """

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
        valid_score: metric on the validation set; the mean over tasks where several are trained together, and None
            where these have different metrics.
        lr: learning rate of its first step.
        best: whether the validation loss is the lowest so far.
    """

    epoch: int
    train_loss: float
    valid_loss: float
    valid_score: float | None
    lr: float
    best: bool


def fit(
    method: Method, seen: Sequence[Task], settings: TrainingSettings, ranks: Ranks = ALONE
) -> Iterator[BatchDone | EpochDone]:
    """Train a method on a task that it has begun; :class:`Training` for those who need no more than that."""
    return iter(Training(method, seen, settings, ranks))


class Training:
    """The training of a method on a task that it has begun; whoever iterates over it trains.

    Every step and every epoch yields an event. The training leaves the method with the weights of the best epoch. Stop
    iterating, and training stops. The method is told at what pace it will learn (``note_pace``). Just after an
    :class:`EpochDone`, :meth:`state` gives all that the rest of the training depends on; a training that takes it up
    ends with the same bits.

    Args:
        method: the method, after ``begin_task``.
        seen: the tasks so far, the one to train last.
        settings: the schedule.
        ranks: the processes that share the work, of which this is one.
        taken_up: where an earlier training of the same task stopped; None begins it.
        capture: how steps are captured where the settings ask for that; as CUDA graphs if left out.

    Raises:
        InputError: steps are to be captured, and the method, the device or several processes do not allow that.
        TrainingError: the loss is not a finite number; or a graph cannot hold a step, or does something else.
        CheckpointError: what is taken up belongs to another network.
    """

    def __init__(
        self,
        method: Method,
        seen: Sequence[Task],
        settings: TrainingSettings,
        ranks: Ranks = ALONE,
        taken_up: TrainingState | None = None,
        capture: Capture | None = None,
    ) -> None:
        self._method, self._settings, self._ranks = method, settings, ranks
        self._task = seen[-1].name
        self._phases = tuple(method.phases(settings.epochs))
        tasks, device = method.training_tasks(seen), method.setup.device
        self._train = _all_samples(tasks, [task.train for task in tasks], device)
        same = all(task.valid is task.train for task in tasks)
        self._valid = self._train if same else _all_samples(tasks, [task.valid for task in tasks], device)
        self._place = Place(0, 0, math.inf, settings.lr_patience, settings.lr)
        self._taken_up = taken_up
        self._captured: CapturedSteps | None = None
        if settings.captured:
            require_capturable(method, ranks)
            if capture is None:
                require_cuda(device)
            self._captured = CapturedSteps(settings.batch_size, capture or as_cuda_graph, self._written)
        batches = math.ceil(len(self._train) / settings.batch_size)
        adaptive = settings.optimizer is not OptimizerKind.SGD
        method.note_pace(Pace(settings.lr, batches, settings.lr_left, settings.epochs, adaptive))

    def __iter__(self) -> Iterator[BatchDone | EpochDone]:
        """Train, and yield events."""
        method, taken_up, self._taken_up = self._method, self._taken_up, None
        if taken_up is not None:
            self._place = taken_up.place
            self._take_up(part_of(taken_up.tensors, "method."))
            method.train_mode(False)  # as validation leaves it after every epoch
        for phase in range(self._place.phase, len(self._phases)):
            if taken_up is None:
                method.begin_phase(phase)
                self._place = self._start_of(phase)
            yield from self._fit_phase({} if taken_up is None else taken_up.tensors)
            method.end_phase(phase, self._place.schedule)
            taken_up = None

    def _take_up(self, state: Mapping[str, Tensor]) -> None:
        try:
            self._method.load_training_state(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"the training of task {self._task!r} cannot be taken up: it was one of another network; build the "
                "network as it was, or run again in another folder (`out`)"
            ) from error

    def _start_of(self, phase: int) -> Place:
        fresh = Schedule(self._settings.lr, self._settings.lr_patience)
        begun = self._method.schedule(phase, fresh)
        spent = begun != fresh and begun.lr < self._settings.lr_least
        return Place(phase, 0, begun.best_loss, begun.patience, begun.lr, spent)

    @property
    def over(self) -> bool:
        """Return whether the epoch that was made last is the last one."""
        place, left = self._place, self._phases[self._place.phase + 1 :]
        return place.ended and not (
            any(left) and self._method.goes_on(place.phase, len(left), place.schedule, self._settings.lr_least)
        )

    def state(self) -> TrainingState:
        """Return all that the rest of the training depends on, just after an epoch; the tensors are not copied."""
        own = joined({"method": self._method.training_state()})
        return TrainingState(self._place, {**own, **self._best.tensors(), **optimizer_tensors(self._optimizer)})

    def _fit_phase(self, taken_up: Mapping[str, Tensor]) -> Iterator[BatchDone | EpochDone]:
        """Train for some epochs with a schedule of their own, and go back to the best of them."""
        method, settings = self._method, self._settings
        groups = method.parameter_groups()
        parameters = [parameter for group in groups for parameter in group.parameters]
        optimizer = self._optimizer = build_optimizer(groups, settings, method.protect)
        best = self._best = BestEpoch(method, taken_up)
        load_optimizer(optimizer, taken_up)
        epochs = self._phases[self._place.phase]
        before = sum(self._phases[: self._place.phase])
        # No epoch is told of it: its loss, with statistics seeded by the epoch before, is there to be compared alone.
        if not self._place.epochs and method.begins_learned(self._place.phase, epochs):
            loss, _ = self._end_epoch(parameters, before)
            best.take()
            self._place = replace(self._place, best_loss=loss)
        while self._place.epochs < epochs and not self._place.ended:
            place = self._place
            number = before + place.epochs + 1
            plan = method.begin_epoch(place.epochs + 1, epochs, self._train)
            lr = place.lr * plan.lr_factor
            rates = [lr * group.lr_factor for group in groups]
            train_loss = 0.0
            for done in self._train_epoch(plan, parameters, rates, number):
                train_loss = train_loss if done.loss is None else done.loss
                yield done
            valid_loss, valid_score = self._end_epoch(parameters, number)
            improved = valid_loss < place.best_loss
            if improved:
                best.take()
            self._place = place.after_epoch(valid_loss, settings, counts=plan.lr_factor == 1.0, epochs=epochs)
            yield EpochDone(number, train_loss, valid_loss, valid_score, lr * self._lr_left(number - 1), improved)
        best.restore()

    def _lr_left(self, epochs: float) -> float:
        """Return the share of the learning rate that a cosine leaves after some epochs of the task, of all parts."""
        first = self._place.phase
        while first and self._method.continues(first):
            first -= 1
        last = self._place.phase + 1
        while last < len(self._phases) and self._method.continues(last):
            last += 1
        return self._settings.lr_left((epochs - sum(self._phases[:first])) / sum(self._phases[first:last]))

    def _set_rates(self, rates: Sequence[float], epochs: float) -> None:
        """Set the learning rate of every group of parameters for the step after some epochs of the task.

        Args:
            rates: learning rate of every group, before a cosine takes its share.
            epochs: epochs of all parts, with the part of the present one that is made.
        """
        left = self._lr_left(epochs)
        for rate, learning in zip(rates, self._optimizer.param_groups, strict=True):
            learning["lr"] = rate * left

    def _written(self) -> list[Tensor]:
        """Return the tensors that a step may write to, but for the sum of losses."""
        gathered = optimizer_tensors(self._optimizer)
        return [*self._method.trained_parameters(), *self._method.trained_buffers(), *gathered.values()]

    def _end_epoch(self, parameters: Sequence[nn.Parameter], epoch: int) -> tuple[float, float | None]:
        """Validate; return the loss and the metric."""
        method, ranks = self._method, self._ranks
        ranks.require_same(parameters, self._task)
        if self._settings.fresh_statistics:
            self._renew_statistics(epoch)
        ranks.share_buffers(method.trained_modules())
        valid_loss, valid_score = self._validate()
        require_finite(valid_loss, "validation loss", self._task, epoch)
        return valid_loss, valid_score

    def _train_epoch(
        self, plan: EpochPlan, parameters: Sequence[nn.Parameter], rates: Sequence[float], epoch: int
    ) -> Iterator[BatchDone]:
        method, settings, ranks, train = self._method, self._settings, self._ranks, self._train
        seed, device = method.setup.seed, train.y.device
        count = len(train) if plan.rows is None else len(plan.rows)
        order = torch.randperm(count, generator=seeded_generator(seed, "shuffle", self._task, epoch)).to(device)
        order = order if plan.rows is None else plan.rows.to(device)[order]
        batches = math.ceil(count / settings.batch_size)
        total, penalties = torch.zeros((), device=device), torch.zeros((), device=device)
        # Asking another device for the norm would wait for it, which costs more than multiplying by one.
        read = device.type == "cpu" and self._captured is None

        def step(rows: Tensor, progress: float | Tensor, /) -> None:
            rows, weight = ranks.share(rows)
            with self._autocast(), _batch_norms_explained(self._task):
                made = method.loss(train.part(rows, progress))
            loss = made.value if ranks.size == 1 else made.value * weight
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            _require_dense(parameters)
            ranks.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])
            clip(parameters, settings.clip_norm, read=read)
            self._optimizer.step()
            total.add_(loss.detach())
            if made.penalty is not None:
                penalties.add_(made.penalty.detach(), alpha=weight)

        captured = self._captured
        make = (
            one_by_one(step, order, settings.batch_size)
            if captured is None
            else captured.of_epoch(step, order, [total, penalties])
        )
        method.train_mode(True)
        # Dropout draws from torch's global generator and takes no other: seed it here, and give it back as it was.
        own = (ranks.rank,) if ranks.size > 1 else ()
        with random_numbers_apart(derive_seed(seed, "dropout", self._task, epoch, *own)):
            for index in range(batches):
                self._set_rates(rates, epoch - 1 + index / batches)
                make(index)
                mean = None
                if index == batches - 1 or index % 25 == 24:  # reading a loss waits for the device
                    whole = total.clone()
                    ranks.add_up([whole])
                    mean = float(whole) / (index + 1)
                    require_finite(mean, "loss", self._task, epoch)
                if mean is not None or captured is None:
                    yield BatchDone(epoch, index + 1, batches, mean)
        of_answers = total - penalties
        ranks.add_up([of_answers])
        method.note_loss(float(of_answers) / batches)

    def _autocast(self) -> torch.autocast:
        mixed = self._settings.precision is Precision.BFLOAT16
        return torch.autocast(self._train.y.device.type, torch.bfloat16, enabled=mixed)

    def _renew_statistics(self, epoch: int) -> None:
        """Gather the statistics of batch norms anew, if there are any; in full batches, which all count alike."""
        method, train, batch_size = self._method, self._train, self._settings.batch_size
        method.train_mode(True)
        learning = [module for module in method.trained_modules() if module.training]  # a head alone leaves norms as is
        modules = [m for m in learning if any(isinstance(part, _NormBase) for part in m.modules())]
        if not modules:
            return
        generator = seeded_generator(method.setup.seed, "statistics", self._task, epoch)
        rows = torch.randperm(len(train), generator=generator)[: STATISTICS_BATCHES * batch_size].to(train.y.device)
        whole = len(rows) // batch_size * batch_size or len(rows)
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(fresh_statistics(module))
            for batch in torch.split(rows[:whole], batch_size):
                method.loss(replace(train.part(batch, progress=1.0), rows=None))

    def _validate(self) -> tuple[float, float | None]:
        method, valid, size = self._method, self._valid, self._settings.eval_batch_size
        method.train_mode(False)
        loss, outputs = 0.0, []
        with torch.no_grad(), method.validating():
            for start in range(0, len(valid), size):
                batch = valid.part(slice(start, start + size), progress=1.0)
                with self._autocast():
                    result = method.loss(batch)
                loss += float(result.value) * len(batch)
                outputs.append(result.logits.float().cpu())
        return loss / len(valid), _measured(torch.cat(outputs), valid)


def _all_samples(tasks: Sequence[Task], splits: Sequence[Split], device: torch.device) -> Batch:
    """Load one split of each task, as one batch on a device."""
    loaded = [split.load() for split in splits]
    interface = splits[0].interface or PLAIN
    x = loaded[0][0] if len(loaded) == 1 else interface.joined([x for x, _ in loaded])
    objectives = tuple(task.objective for task in tasks)
    y = joined_targets(objectives, [y for _, y in loaded])
    task_of = torch.cat([torch.full((len(y),), index) for index, (_, y) in enumerate(loaded)])
    names = tuple(task.name for task in tasks)
    x = map_tensors(lambda tensor: tensor.to(device), x)
    return Batch(x, y.to(device), names, task_of.to(device), 0.0, objectives=objectives, interface=interface)


def _measured(outputs: Tensor, samples: Batch) -> float | None:
    """Return the metric of outputs ``(N, most outputs)`` on the CPU; the mean over the samples of several tasks."""
    objectives = samples.objectives
    if common_metric(tuple(objective.metric for objective in objectives)) is None:
        return None
    y, task_of = samples.y.cpu(), samples.task_of.cpu()
    total = 0.0
    for index, objective in enumerate(objectives):
        rows = (task_of == index).nonzero().squeeze(1)
        targets = y if len(objectives) == 1 else objective.unpacked(y[rows])
        total += objective.measure(outputs[rows, : objective.outputs], targets) * len(rows)
    return total / len(outputs)


@contextmanager
def _batch_norms_explained(task: str) -> Iterator[None]:
    """Say what to do where torch says only that a batch norm has one value per channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch norm needs two values per channel, and a batch of task {task!r} has a single sample; choose "
            "another batch size (`batch_size`), or a network without batch norms"
        ) from error


def _require_dense(parameters: Sequence[nn.Parameter]) -> None:
    """Refuse sparse gradients, whose norm torch does not compute, and which processes cannot add up."""
    sparse = next((p for p in parameters if p.grad is not None and p.grad.layout is not torch.strided), None)
    if sparse is not None:
        raise TrainingError(
            f"the gradient of a parameter of shape {tuple(sparse.shape)} is sparse, as of an embedding with "
            "sparse=True, and gradients are clipped to a norm, which torch does not compute of these; build the layer "
            "without (sparse=False)"
        )


def clip(parameters: Sequence[nn.Parameter], largest: float, *, read: bool) -> None:
    """Scale gradients down to a norm, as ``clip_grad_norm_`` does.

    Args:
        parameters: parameters whose gradients together are to have at most that norm.
        largest: the norm.
        read: whether to look at the norm, and write small gradients not again; to the same bits.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not read or not float(norm) + 1e-6 <= largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
