"""Costs of hard attention for a backbone, on this machine: time and memory of a step, and seconds of the rest."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from hatrack.errors import DOES_NOT_RUN, HatrackError, InputError, TrainingError, UnsupportedError
from hatrack.gating.recomputing import counting
from hatrack.methods import ParameterGroup
from hatrack.models.hat import HATNetwork
from hatrack.support.copies import deep_copy
from hatrack.support.heads import apply_head, linear_head
from hatrack.support.inputs import Inputs, device_of, map_tensors, tensors_in
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import in_one_line
from hatrack.support.randomness import random_numbers_apart
from hatrack.support.ranges import require_range
from hatrack.train import TrainingSettings
from hatrack.train.capture import WARM_UP, Capture, CapturedSteps, StepByIndex, one_by_one
from hatrack.train.optimizers import build_optimizer

__all__ = ["CostPlan", "Costs", "StepCosts", "measure_costs", "measuring_costs"]

ResultT = TypeVar("ResultT")

STRENGTH = 0.75
"""Weight of the regularization cost in a HAT step; that of the paper."""

STEPS_OF_A_GPU = 10
"""Steps of a GPU that are timed as one; waiting after each would leave it idle while Python prepares the next."""

_GRAPHS = "steps as CUDA graphs"

MEMORY: Mapping[str, str] = MappingProxyType(
    {
        "cpu": "parameters, buffers, gradients, states of the optimizer, records of frozen entries, and tensors saved "
        "for the backward pass; what kernels take for a moment is not in it",
        "cuda": "the most that torch has allocated during a step (torch.cuda.max_memory_allocated), without what the "
        "other network holds",
    }
)
"""Meaning of the memory of a step, by type of device."""


@dataclass(frozen=True)
class CostPlan:
    """Choices of what is measured.

    Attributes:
        tasks: number of tasks that are consolidated before the later steps are measured, at least 1.
        used: share of the units, drawn at random, that each of them uses, above 0 and below 1.
        classes: classes of every task, at least 2.
        repetitions: pairs of a plain and a HAT step that are timed, at least 2; on a GPU pairs of ten of each.
        training: the optimizer, with its momentum and weight decay. Its learning rate is so small by default that
            weights stay finite with any network: no time depends on it.
        interface: how the backbone is called, and what of its result the heads read.
        seed: seed of heads, embeddings and dropout.

    Raises:
        InputError: a number is out of its range.
    """

    tasks: int = 2
    used: float = 0.5
    classes: int = 10
    repetitions: int = 20
    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(lr=1e-6))
    interface: Interface = PLAIN
    seed: int = 0

    def __post_init__(self) -> None:
        require_range(self, "tasks", least=1)
        require_range(self, "classes", "repetitions", least=2)
        require_range(self, "used", above=0, below=1)


@dataclass(frozen=True)
class StepCosts:
    """Costs of a HAT step beside those of a plain step, that of the same backbone with a linear head.

    Attributes:
        tasks: number of consolidated tasks.
        units: share of the units that these use, in [0, 1].
        weights: share of the shared weights that are frozen for them, in [0, 1].
        captured: whether both steps were replays of CUDA graphs.
        plain: seconds of plain steps, one by one.
        hat: seconds of the HAT steps that took turns with them.
        plain_bytes: memory of a plain step, see :data:`MEMORY`; None where it was not measured.
        hat_bytes: memory of a HAT step.
    """

    tasks: int
    units: float
    weights: float
    captured: bool
    plain: tuple[float, ...]
    hat: tuple[float, ...]
    plain_bytes: int | None
    hat_bytes: int | None

    @property
    def plain_ms(self) -> float:
        """Median milliseconds of a plain step."""
        return 1e3 * statistics.median(self.plain)

    @property
    def hat_ms(self) -> float:
        """Median milliseconds of a HAT step."""
        return 1e3 * statistics.median(self.hat)

    @property
    def ratio(self) -> float:
        """Median over the pairs of how many times a plain step's time the HAT step took."""
        return statistics.median(self._ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of these ratios: how much they are to be trusted."""
        if len(self._ratios) == 1:
            return self.ratio, self.ratio
        first, _, third = statistics.quantiles(self._ratios, n=4, method="inclusive")
        return first, third

    @property
    def _ratios(self) -> list[float]:
        return [ours / theirs for theirs, ours in zip(self.plain, self.hat, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "tasks": self.tasks,
            "units": self.units,
            "weights": self.weights,
            "captured": self.captured,
            "repetitions": len(self.plain),
            "plain_ms": self.plain_ms,
            "hat_ms": self.hat_ms,
            "ratio": self.ratio,
            "quartiles": list(self.quartiles),
            "plain_bytes": self.plain_bytes,
            "hat_bytes": self.hat_bytes,
        }


@dataclass(frozen=True)
class Costs:
    """Costs of hard attention for a backbone, as far as they are measured.

    Attributes:
        steps: costs of steps: at the first task, at a later one, and of both as CUDA graphs.
        seconds: seconds of what is done once per network or task, by name.
        missing: reason by name for what could not be measured.
        memory: meaning of the memory of a step.
        doing: what is measured next; empty at the end.
        done: parts of the measurement that are made.
        total: parts of all of it.
    """

    steps: tuple[StepCosts, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    memory: str = ""
    doing: str = ""
    done: int = 0
    total: int = 0

    @property
    def complete(self) -> bool:
        """True once all is measured."""
        return not self.doing

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "complete": self.complete,
            "steps": [step.to_json() for step in self.steps],
            "seconds": dict(self.seconds),
            "missing": dict(self.missing),
            "memory": self.memory,
        }


def measure_costs(
    backbone: nn.Module, batch: Inputs, plan: CostPlan | None = None, capture: Capture | None = None
) -> Costs:
    """Measure what hard attention costs for a backbone, on the device that it is on.

    Everything is done with copies: the backbone stays as it is, and torch's generators, too. Plain steps and HAT steps
    take turns in this process, with the threads that torch has.

    Args:
        backbone: the backbone, as :class:`hatrack.HATNetwork` takes it.
        batch: inputs of a step, as the backbone takes them; as many samples as steps are to have.
        plan: what is measured; None for :class:`CostPlan` as it is.
        capture: how steps are captured, to measure them captured, too: on a GPU
            :func:`hatrack.train.capture.as_cuda_graph`. None leaves that out.

    Raises:
        InputError: the backbone does not train on such a batch, or does not give features.
        UnsupportedError: it cannot be attached.
        GuaranteeError: it does not pass the leak test.

    Example:
        >>> backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        >>> costs = measure_costs(backbone, torch.randn(4, 6), CostPlan(repetitions=2))
        >>> [step.tasks for step in costs.steps]
        [0, 2]
    """
    *_, costs = measuring_costs(backbone, batch, plan, capture)
    return costs


def measuring_costs(
    backbone: nn.Module, batch: Inputs, plan: CostPlan | None = None, capture: Capture | None = None
) -> Generator[Costs, None, None]:
    """Measure as :func:`measure_costs` does, part by part.

    Torch's generators are back as they were when the last part is made, or the iterator closed.

    Yields:
        What is measured so far, steps under way included.
    """
    plan = plan or CostPlan()
    with random_numbers_apart(plan.seed):
        yield from _Measurement(backbone, batch, plan).parts(capture)


@dataclass(frozen=True)
class Trained:
    """A network in training.

    Attributes:
        module: the network.
        optimizer: its optimizer.
        step: makes one step at a position within the epoch.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[float | Tensor], None]


class _WithHead(nn.Module):
    """A copy of the backbone with a linear head, as one would train it without hatrack."""

    def __init__(self, backbone: nn.Module, batch: Inputs, plan: CostPlan) -> None:
        super().__init__()
        self.backbone, self._interface = backbone, plan.interface
        with torch.no_grad(), evaluation_mode(backbone):
            features = self._interface.run(backbone, batch)
        self._interface.require_rows(features, batch)
        self.axis = self._interface.axis_of(features)
        self.head = linear_head(features.shape[self.axis], plan.classes).to(features)
        self.rows = features.numel() // features.shape[self.axis]

    def forward(self, x: Inputs) -> Tensor:
        """Return logits."""
        return apply_head(self.head, self._interface.run(self.backbone, x), self.axis)


class _Measurement:
    """A measurement, and what it has found so far.

    Args:
        backbone: the backbone, of which copies are trained.
        batch: inputs of a step.
        plan: what is measured.
    """

    def __init__(self, backbone: nn.Module, batch: Inputs, plan: CostPlan) -> None:
        self._backbone, self._plan = backbone, plan
        first = next(backbone.parameters(), None)
        self._device = device_of(batch) if first is None else first.device
        self._batch = map_tensors(lambda tensor: tensor.to(self._device), plan.interface.accepted(batch))
        self._costs = Costs(memory=MEMORY.get(self._device.type, MEMORY["cpu"]))

    def parts(self, capture: Capture | None) -> Iterator[Costs]:
        """Make the measurement, part by part."""
        plan = self._plan
        of_steps = 2 * plan.repetitions + plan.tasks
        once = 3  # attaching, extracting, saving
        self._costs = replace(self._costs, total=of_steps * (1 if capture is None else 2) + once)
        yield self._doing("attaching")
        with _explained(plan.interface.samples(self._batch)):
            plain = self._plain(capturing=False)
            plain.step(0.0)
        net = yield from self._steps_of_a_network(plain, None)
        yield from self._once(net)
        if capture is not None:
            before = len(self._costs.steps)
            try:
                yield from self._steps_of_a_network(self._plain(capturing=True), capture)
            except (TrainingError, *DOES_NOT_RUN) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._costs = replace(self._costs, steps=self._costs.steps[:before])
                self._miss(_GRAPHS, error)
        self._costs = replace(self._costs, doing="", done=self._costs.total)
        yield self._costs

    # ------------------------------------------------------------------------------------------------------------ parts

    def _steps_of_a_network(self, plain: Trained, capture: Capture | None) -> Generator[Costs, None, HATNetwork]:
        """Attach, and measure steps at the first task and at a later one; return the network with its tasks.

        Captured steps are those of a network of their own: what its attaching takes is not noted again.
        """
        plan, notes = self._plan, self._note if capture is None else _forget
        example = plan.interface.take(self._batch, slice(1))
        backbone = deep_copy(self._backbone)
        net, seconds = self._timed(partial(HATNetwork, backbone, example, **vars(plan.interface)))
        notes("attach", seconds)
        if capture is None:
            yield self._made("steps at the first task")
        start = Normal(NormalDist().inv_cdf(plan.used), 1.0)
        for number in range(plan.tasks + 1):
            name = _name(number)
            _, seconds = self._timed(partial(net.add_task, name, plan.classes, embedding=start))
            notes("add a task", seconds)
            net.train()
            if number in (0, plan.tasks):
                yield from self._steps(plain, self._hat(net, plain, name, capture is not None), net, number, capture)
            if number < plan.tasks:
                _, seconds = self._timed(partial(net.consolidate, name))
                notes("consolidate", seconds)
                later = "steps at a later task" if number + 1 == plan.tasks else "consolidating tasks"
                yield self._made(later if capture is None else _GRAPHS)
        return net

    def _steps(
        self, plain: Trained, hat: Trained, net: HATNetwork, tasks: int, capture: Capture | None
    ) -> Iterator[Costs]:
        """Measure plain steps and HAT steps in turns."""
        device, held, repetitions = self._device, net.capacity(), self._plan.repetitions
        at_once = STEPS_OF_A_GPU if device.type == "cuda" else 1
        warm_up = WARM_UP + 1  # the last of them captures
        pair = [_steps_of(each.step, warm_up + repetitions * at_once, capture, device) for each in (plain, hat)]
        for index in range(warm_up):
            for make in pair:
                make(index)
        memory = [None if capture is not None else memory_of_step(each, device) for each in (plain, hat)]
        earlier, doing = self._costs.steps, self._costs.doing
        found = StepCosts(tasks, held.units or 0.0, held.weights, capture is not None, (), (), *memory)
        for repetition in range(repetitions):
            first = warm_up + repetition * at_once
            theirs, ours = (self._timed(partial(_make, make, first, at_once))[1] / at_once for make in pair)
            found = replace(found, plain=(*found.plain, theirs), hat=(*found.hat, ours))
            self._costs = replace(self._costs, steps=(*earlier, found))
            yield self._made(doing)

    def _once(self, net: HATNetwork) -> Iterator[Costs]:
        """Measure extracting a task, and saving."""
        yield self._doing("extracting a task")
        try:
            self._note("extract", self._timed(partial(net.extract, _name(0)))[1])
        except UnsupportedError as error:
            self._miss("extract", error)
        yield self._made("saving")
        with tempfile.TemporaryDirectory() as folder:
            self._note("save", self._timed(partial(net.save, Path(folder) / "net.hat"))[1])
        yield self._made(_GRAPHS)

    # ------------------------------------------------------------------------------------------------------------- both

    def _plain(self, *, capturing: bool) -> Trained:
        """Return a copy of the backbone in training with a head of its own."""
        model = _WithHead(deep_copy(self._backbone), self._batch, self._plan).train()
        optimizer = self._optimizer([each for each in model.parameters() if each.requires_grad], capturing)
        loss = self._loss(model)

        def step(progress: float | Tensor) -> None:
            _descend(loss(model(self._batch)), optimizer)

        return Trained(model, optimizer, step)

    def _hat(self, net: HATNetwork, plain: Trained, task: str, capturing: bool) -> Trained:
        """Return the network in training on a task."""
        optimizer = net.protect(self._optimizer(net.task_parameters(task), capturing))
        loss = self._loss(plain.module)

        def step(progress: float | Tensor) -> None:
            net.anneal(progress)
            _descend(loss(net(self._batch, task)) + STRENGTH * net.regularization(), optimizer)

        return Trained(net, optimizer, step)

    def _loss(self, model: Any) -> Callable[[Tensor], Tensor]:
        """Return the cross-entropy of logits with made-up classes."""
        y = torch.arange(model.rows, device=self._device) % self._plan.classes
        return lambda logits: F.cross_entropy(logits.movedim(model.axis, -1).flatten(0, -2), y)

    def _optimizer(self, parameters: list[nn.Parameter], capturing: bool) -> torch.optim.Optimizer:
        on_a_gpu = self._device.type == "cuda"  # elsewhere no optimizer can be captured, and none has to be
        return build_optimizer(
            [ParameterGroup(parameters)], replace(self._plan.training, captured=capturing and on_a_gpu)
        )

    def _timed(self, work: Callable[[], ResultT]) -> tuple[ResultT, float]:
        """Do work; return what it gives, and the seconds until the device is done with it."""
        _wait(self._device)
        start = time.perf_counter()
        given = work()
        _wait(self._device)
        return given, time.perf_counter() - start

    # ------------------------------------------------------------------------------------------------------------ notes

    def _note(self, name: str, seconds: float) -> None:
        self._costs = replace(self._costs, seconds={**self._costs.seconds, name: seconds})

    def _miss(self, name: str, error: Exception) -> None:
        self._costs = replace(self._costs, missing={**self._costs.missing, name: in_one_line(error)})

    def _doing(self, doing: str) -> Costs:
        self._costs = replace(self._costs, doing=doing)
        return self._costs

    def _made(self, doing: str) -> Costs:
        """Count a part as made, and say what comes next."""
        self._costs = replace(self._costs, done=self._costs.done + 1)
        return self._doing(doing)


def _name(number: int) -> str:
    return f"task {number + 1}"


def _forget(name: str, seconds: float) -> None:
    """Note nothing."""


@contextmanager
def _explained(samples: int) -> Iterator[None]:
    """Say of what a plain training step was made when an exception of torch or of the backbone came up.

    Raises:
        InputError: in the place of the exception, with its message.
    """
    try:
        yield
    except DOES_NOT_RUN as error:
        if isinstance(error, HatrackError) or "alloc" in str(error):
            raise
        said = f"{type(error).__name__}: {in_one_line(error)}"
        raise InputError(f"the backbone does not train on a batch of {samples} such samples ({said})") from error


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _steps_of(
    step: Callable[[float | Tensor], None], count: int, capture: Capture | None, device: torch.device
) -> StepByIndex:
    """Return what makes the steps of an epoch with as many, in which gates go from soft to hard."""

    def of_rows(rows: Tensor, progress: float | Tensor, /) -> None:
        step(progress)

    order = torch.arange(count, device=device)
    return one_by_one(of_rows, order, 1) if capture is None else CapturedSteps(1, capture).of_epoch(of_rows, order)


def _make(make: StepByIndex, first: int, count: int) -> None:
    for index in range(first, first + count):
        make(index)


def _wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_of_step(trained: Trained, device: torch.device) -> int:
    """Make a step, and return its memory in bytes; see :data:`MEMORY`."""
    held = _memory_held(trained)
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        trained.step(0.5)
        _wait(device)
        return sum(held.values()) + torch.cuda.max_memory_allocated(device) - before
    saved: dict[int, int] = {}

    with counting(lambda tensor: saved.update(_storages([tensor]))):
        trained.step(0.5)
    return sum({**saved, **held}.values())


def _memory_held(trained: Trained) -> dict[int, int]:
    """Return bytes by address of the memory that a network and its optimizer hold between two steps."""
    module = trained.module
    parameters = list(module.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    states = tensors_in(list(trained.optimizer.state.values()))
    records: list[Any] = []
    if isinstance(module, HATNetwork):
        records = [vars(record) for _, record in module.protection.plan.all()]
    return _storages([*parameters, *module.buffers(), *gradients, *states, *tensors_in(records)])


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return bytes by address of the memory of tensors; views of the same memory have one."""
    dense = (tensor for tensor in tensors if tensor.layout is torch.strided)
    storages = (tensor.untyped_storage() for tensor in dense)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
