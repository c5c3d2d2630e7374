"""Learning of a stream without announced switches: tasks are recognised by their loss, or opened anew.

The detector is :class:`hatrack.streams.LossDetector`. It has two limits: tasks whose labels the
present task predicts as well are not told apart, and all samples need labels, since the loss decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.functional import batch_progress
from hatrack.learning.samples import as_inputs, converted, read_targets
from hatrack.methods import Batch, Method
from hatrack.objectives import Classification, TargetKind, as_targets
from hatrack.streams import DetectorSettings, LossDetector, Split, Surprise, Task, usual_limit
from hatrack.support.inputs import Inputs, map_tensors
from hatrack.support.ranges import require_range

__all__ = ["Step", "UnannouncedLearner"]

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Step:
    """Outcome of one batch.

    Attributes:
        task: the task that the batch was attributed to.
        loss: its loss with that task, before a step was made with it.
        surprise: the detector's judgement of the loss.
        opened: whether a new task was opened with it.
    """

    task: str
    loss: float
    surprise: Surprise
    opened: bool


class UnannouncedLearner:
    """Learner that trains a method on batches whose task is not named.

    Every batch is first tested with the task at hand. A batch that seems to be another task's is set aside; once the
    detector is sure, it is tested with every known task. Where the loss is usual for one, that one is the task at hand
    from now on: it answers, and is not trained any further unless it is the one still in training. Otherwise the task
    in training is consolidated and a new one opened, which learns first from the batches that were set aside. If the
    suspicion passes, they are learned from late.

    Tasks are called ``found-1``, ``found-2``, ... in the order in which they are opened. There are no epochs and no
    validation: the annealing of the gates runs through once in ``cycle`` steps, again and again.

    Args:
        method: a new method; it must be able to predict earlier tasks while it trains one.
        classes: number of classes of each task's head, as many as the largest task may have.
        optimizer: makes the optimizer of a task from its parameters.
        detector: settings by which a loss counts as another task's; those of :class:`DetectorSettings` if None.
        announced: whether switches are told by :meth:`announce` alone, and not detected.
        cycle: steps from the softest gates to the hardest, at least 1.

    Attributes:
        tasks: names of the tasks found so far.
        current: the task at hand; None before the first batch.
        cycle: steps from the softest gates to the hardest.
    """

    def __init__(
        self,
        method: Method,
        classes: int,
        optimizer: MakeOptimizer,
        *,
        detector: DetectorSettings | None = None,
        announced: bool = False,
        cycle: int = 25,
    ) -> None:
        self.method = method
        self.cycle = cycle
        require_range(self, "cycle", least=1)
        self.tasks: list[str] = []
        self.current: str | None = None
        self._classes = classes
        self._make_optimizer = optimizer
        self._detecting = not announced
        self._settings = detector or DetectorSettings()
        self._detector = LossDetector(self._settings)
        self._open: Task | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0
        self._usual: dict[str, tuple[float, float]] = {}  # mean and deviation of the loss, by task
        self._suspicious: list[tuple[Inputs, Tensor]] = []
        self._recent: list[tuple[Inputs, Tensor]] = []
        self._announced = False

    def announce(self) -> None:
        """Announce that the next batches are of another task: a known one if one fits, else a new one.

        As when a switch is detected, this is decided after ``patience`` batches.
        """
        self._announced, self._suspicious = True, []

    def observe(self, x: Inputs, y: Tensor) -> Step:
        """Attribute a batch to a task, and learn from it.

        Args:
            x: samples ``(N, ...)``, nested as the method's setup says; NumPy arrays serve as tensors.
            y: their classes within their task, integers ``(N,)`` from 0 to ``classes`` − 1.

        Raises:
            InputError: samples are of another kind, or classes are none or not as many as samples.
        """
        x, y = self._read(x, y)
        if self.current is None:
            first = self._open_task(x, y)
            loss = self.loss_of(first, [(x, y)])
            self._train([(x, y)])
            return Step(first, loss, Surprise.SWITCH, opened=True)
        if self._announced:
            self._suspicious.append((x, y))
            if len(self._suspicious) < self._settings.patience:
                return Step(self.current, self.loss_of(self.current, [(x, y)]), Surprise.SUSPICIOUS, opened=False)
            self._announced = False
            return self._switch(self._suspicious)
        loss = self.loss_of(self.current, [(x, y)])
        surprise = self._detector.observe(loss)
        if not self._detecting:
            surprise = Surprise.USUAL
        if surprise is Surprise.SWITCH:
            return self._switch([*self._suspicious, (x, y)])
        if surprise is Surprise.SUSPICIOUS:
            self._suspicious.append((x, y))
            return Step(self.current, loss, surprise, opened=False)
        batches, self._suspicious = [*self._suspicious, (x, y)], []  # a suspicion that has passed is learned from, too
        self._train(batches)
        return Step(self.current, loss, surprise, opened=False)

    def finish(self) -> None:
        """Consolidate the task in training, after the last batch; batches that were set aside are dropped."""
        self._consolidate()
        self._suspicious = []

    def _read(self, x: Inputs, y: Tensor) -> tuple[Inputs, Tensor]:
        """Return samples and classes as tensors on the method's device."""
        setup = self.method.setup
        x = setup.interface.accepted(converted(as_inputs(x, "samples"), setup.example_input, "samples"))
        y = as_targets(read_targets(y, "classes"), TargetKind.CLASSES, "classes")
        samples = setup.interface.samples(x)
        if len(y) != samples or int(y.max()) >= self._classes:
            raise InputError(f"{samples} samples need as many classes from 0 to {self._classes - 1}, not {y.tolist()}")
        return map_tensors(lambda tensor: tensor.to(setup.device), x), y.to(setup.device)

    def loss_of(self, task: str, batches: Iterable[tuple[Inputs, Tensor]]) -> float:
        """Return the mean cross-entropy of batches with a task that was found, in evaluation mode.

        Args:
            task: name of the task.
            batches: samples ``(N, ...)`` and classes, int64 ``(N,)``, of every batch, on the method's device.
        """
        self.method.train_mode(False)
        with torch.no_grad():
            losses = [float(F.cross_entropy(self._logits(x, y, task), y)) for x, y in batches]
        return sum(losses) / len(losses)

    def best_task(self, x: Inputs, y: Tensor) -> str:
        """Return the task found whose loss on some labelled samples is the lowest.

        Args:
            x: samples ``(N, ...)``.
            y: their classes, int64 ``(N,)``.
        """
        x, y = self._read(x, y)
        return min(self.tasks, key=lambda task: self.loss_of(task, [(x, y)]))

    def _in_training(self, task: str | None) -> bool:
        return self._open is not None and self._open.name == task

    def _logits(self, x: Inputs, y: Tensor, task: str) -> Tensor:
        if self._in_training(task):
            return self.method.loss(self._batch(x, y, progress=1.0)).logits
        return self.method.predict(x, task)

    def _switch(self, batches: list[tuple[Inputs, Tensor]]) -> Step:
        """Attribute batches to a known or a new task, which becomes the one at hand."""
        self._suspicious = []
        if self.current is not None and self._in_training(self.current):
            self._usual[self.current] = (self._detector.mean, self._detector.deviation)
        known = {task: self.loss_of(task, batches) for task in self.tasks if task != self.current}
        fits = [t for t, loss in known.items() if loss <= usual_limit(*self._usual[t], self._settings)]
        x, y = batches[-1]
        if not fits:
            self._consolidate()
            new = self._open_task(x, y)
            self._train(batches)
            return Step(new, self.loss_of(new, [(x, y)]), Surprise.SWITCH, opened=True)
        self.current = min(fits, key=lambda task: known[task])
        self._detector.resume(*self._usual[self.current])
        self._train(batches)
        return Step(self.current, known[self.current], Surprise.SWITCH, opened=False)

    def _open_task(self, x: Inputs, y: Tensor) -> str:
        """Open a new task, which becomes the one at hand, for a batch; return its name."""
        name = f"found-{len(self.tasks) + 1}"
        kept = map_tensors(lambda tensor: tensor.cpu(), x)
        window = Split(kept, torch.arange(len(y)), y.cpu(), interface=self.method.setup.interface)
        self._open = Task(name, Classification(tuple(map(str, range(self._classes)))), window, window, window)
        self.method.begin_task(self._open)
        self._optimizer = self.method.protect(self._make_optimizer(self.method.trained_parameters()))
        self._steps = 0
        self.tasks.append(name)
        self.current = name
        self._recent = []
        self._detector.restart()
        return name

    def _train(self, batches: Iterable[tuple[Inputs, Tensor]]) -> None:
        """Make one step per batch, if the task at hand is the one in training."""
        if not self._in_training(self.current):
            return
        assert self._optimizer is not None
        self.method.train_mode(True)
        for x, y in batches:
            progress = batch_progress(self._steps % self.cycle, self.cycle)
            loss = self.method.loss(self._batch(x, y, progress)).value
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._steps += 1
            self._recent = [*self._recent[1 - self._settings.memory :], (x, y)]

    def _batch(self, x: Inputs, y: Tensor, progress: float) -> Batch:
        assert self._open is not None
        return Batch(x, y, (self._open.name,), torch.zeros_like(y), progress, interface=self.method.setup.interface)

    def _consolidate(self) -> None:
        """End the task in training; its usual loss is that of its last batches, as its masks have become hard."""
        if self._open is None:
            return
        task, self._open, self._optimizer = self._open, None, None
        self.method.end_task(task)
        _, deviation = self._usual.get(task.name, (0.0, 0.0))
        self._usual[task.name] = (self.loss_of(task.name, self._recent), deviation)
