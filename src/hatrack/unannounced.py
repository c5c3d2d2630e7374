"""Learning a stream whose task switches are not announced: notice a switch, recognise a known task, or open a new one.

The detector is :class:`hatrack.streams.LossDetector`. What this cannot do: tell tasks apart whose labels the task at
hand predicts as well; and it needs labels for all it is shown, since it goes by the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.functional import batch_progress
from hatrack.methods import Batch, Method
from hatrack.streams import DetectorSettings, LossDetector, Split, Surprise, Task, usual_limit

__all__ = ["Step", "UnannouncedLearner"]

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Step:
    """What became of a batch.

    Attributes:
        task: the task that it was taken for.
        loss: its loss with that task, before anything was learned from it.
        surprise: what the detector made of it.
        opened: whether a new task was opened with it.
    """

    task: str
    loss: float
    surprise: Surprise
    opened: bool


@dataclass(frozen=True)
class _Usual:
    """The usual loss of a task that was learned."""

    mean: float
    deviation: float


class UnannouncedLearner:
    """Trains a method on batches that do not say of which task they are.

    Every batch is first tested with the task at hand. What looks like another task's is kept back; once the detector
    is sure, it is tested with every task known. Where the loss is usual for one, that one is the task at hand from now
    on: it answers, and is not trained any further unless it is the one still in training. Otherwise the task in
    training is consolidated and a new one opened, which learns from what was kept back first. A suspicion that passes
    is learned from, late.

    Tasks are called ``found-1``, ``found-2``, ... in the order in which they are opened. There are no epochs and no
    validation: the annealing of the gates runs through once in ``cycle`` steps, again and again.

    Args:
        method: a method that was just made; it must be able to predict earlier tasks while it trains one.
        classes: number of classes of each task's head, as many as the largest task may have.
        optimizer: makes the optimizer of a task from its parameters.
        detector: when a loss is taken for another task's.
        announced: switches are told by :meth:`announce` alone, and not detected.
        cycle: steps from the softest gates to the hardest, at least 1.

    Attributes:
        tasks: names of the tasks found so far.
        current: the task at hand; None before the first batch.
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
        if cycle < 1:
            raise InputError(f"cycle must be at least 1, not {cycle}")
        self.method = method
        self.tasks: list[str] = []
        self.current: str | None = None
        self._classes = classes
        self._make_optimizer = optimizer
        self._detecting = not announced
        self._settings = detector or DetectorSettings()
        self._detector = LossDetector(self._settings)
        self._cycle = cycle
        self._open: Task | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0
        self._usual: dict[str, _Usual] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._recent: list[tuple[Tensor, Tensor]] = []
        self._told = False

    def announce(self) -> None:
        """Say that the next batches are of another task: a known one if one fits, else a new one.

        As when a switch is detected, ``patience`` batches are looked at before that is decided.
        """
        self._told, self._kept = True, []

    def observe(self, x: Tensor, y: Tensor) -> Step:
        """Take a batch: test it, decide whose it is, and learn from it.

        Args:
            x: samples ``(N, ...)``.
            y: their classes within their task, int64 ``(N,)``.
        """
        x, y = x.to(self.method.setup.device), y.to(self.method.setup.device)
        if self.current is None:
            self._open_task(x, y)
            return self._learnt(x, y, opened=True)
        if self._told:
            return self._after_announcement(x, y)
        loss = self.loss_of(self.current, [(x, y)])
        surprise = self._detector.observe(loss)
        if not self._detecting:
            surprise = Surprise.USUAL
        if surprise is Surprise.SWITCH:
            return self._switch([*self._kept, (x, y)])
        if surprise is Surprise.SUSPICIOUS:
            self._kept.append((x, y))
            return Step(self.current, loss, surprise, opened=False)
        batches, self._kept = [*self._kept, (x, y)], []  # a suspicion that has passed is learned from, too
        self._train(batches)
        return Step(self.current, loss, surprise, opened=False)

    def _after_announcement(self, x: Tensor, y: Tensor) -> Step:
        assert self.current is not None
        self._kept.append((x, y))
        if len(self._kept) >= self._settings.patience:
            self._told = False
            return self._switch(self._kept)
        return Step(self.current, self.loss_of(self.current, [(x, y)]), Surprise.SUSPICIOUS, opened=False)

    def finish(self) -> None:
        """Consolidate the task in training, after the last batch; a suspicion that stayed one counts for nothing."""
        self._consolidate()
        self._kept = []

    def loss_of(self, task: str, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean cross-entropy of batches with a task that was found, in evaluation mode."""
        self.method.train_mode(False)
        losses = []
        with torch.no_grad():
            for x, y in batches:
                logits = self._logits(x, y, task)
                losses.append(float(F.cross_entropy(logits, y)))
        return sum(losses) / len(losses)

    def best_task(self, x: Tensor, y: Tensor) -> str:
        """The task found whose loss on some labelled samples is the lowest."""
        return min(self.tasks, key=lambda task: self.loss_of(task, [(x, y)]))

    def _logits(self, x: Tensor, y: Tensor, task: str) -> Tensor:
        if self._open is not None and self._open.name == task:
            return self.method.loss(self._batch(x, y, progress=1.0)).logits
        return self.method.predict(x, task)

    def _switch(self, batches: list[tuple[Tensor, Tensor]]) -> Step:
        """Decide whose the batches are, and go on with that task."""
        self._kept = []
        self._remember()
        known = {task: self.loss_of(task, batches) for task in self.tasks if task != self.current}
        fits = [t for t, loss in known.items() if loss <= usual_limit(*self._usual_of(t), self._settings)]
        x, y = batches[-1]
        if not fits:
            self._consolidate()
            self._open_task(x, y)
            self._train(batches)
            return self._learnt(x, y, opened=True, trained=True)
        self.current = min(fits, key=lambda task: known[task])
        self._detector.resume(*self._usual_of(self.current))
        self._train(batches)
        return Step(self.current, known[self.current], Surprise.SWITCH, opened=False)

    def _learnt(self, x: Tensor, y: Tensor, *, opened: bool, trained: bool = False) -> Step:
        """The step of the first batch of a task that was just opened."""
        assert self.current is not None
        loss = self.loss_of(self.current, [(x, y)])
        if not trained:
            self._train([(x, y)])
        return Step(self.current, loss, Surprise.SWITCH, opened)

    def _open_task(self, x: Tensor, y: Tensor) -> None:
        name = f"found-{len(self.tasks) + 1}"
        window = Split(x.cpu(), torch.arange(len(y)), y.cpu())
        self._open = Task(name, tuple(map(str, range(self._classes))), window, window, window)
        self.method.begin_task(self._open)
        self._optimizer = self.method.protect(self._make_optimizer(self.method.trained_parameters()))
        self._steps = 0
        self.tasks.append(name)
        self.current = name
        self._recent = []
        self._detector.restart()

    def _train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """One step per batch, if the task at hand is the one in training."""
        if self._open is None or self._open.name != self.current:
            return
        assert self._optimizer is not None
        self.method.train_mode(True)
        for x, y in batches:
            progress = batch_progress(self._steps % self._cycle, self._cycle)
            loss = self.method.loss(self._batch(x, y, progress)).value
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._steps += 1
            self._recent = [*self._recent[1 - self._settings.memory :], (x, y)]

    def _batch(self, x: Tensor, y: Tensor, progress: float) -> Batch:
        assert self._open is not None
        return Batch(x, y, (self._open.name,), torch.zeros(len(x), dtype=torch.int64, device=x.device), progress)

    def _remember(self) -> None:
        """Keep the usual loss of the task in training while it is the one at hand."""
        if self._open is not None and self._open.name == self.current:
            self._usual[self.current] = _Usual(self._detector.mean, self._detector.deviation)

    def _usual_of(self, task: str) -> tuple[float, float]:
        return self._usual[task].mean, self._usual[task].deviation

    def _consolidate(self) -> None:
        """End the task in training; its usual loss is that of its last batches, as its masks have become hard."""
        if self._open is None:
            return
        task, self._open, self._optimizer = self._open, None, None
        self.method.end_task(task)
        deviation = self._usual[task.name].deviation if task.name in self._usual else 0.0
        self._usual[task.name] = _Usual(self.loss_of(task.name, self._recent), deviation)
