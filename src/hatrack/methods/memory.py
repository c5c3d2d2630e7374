"""Samples of earlier tasks, kept in a memory of fixed size, and learned again beside the new ones."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hatrack.methods.base import Batch, Loss, Setup, joined
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.objectives import Classification, Objective
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task
from hatrack.support.ranges import require_range

__all__ = ["RehearsalMethod", "RehearsalSettings", "Reservoir", "gathers_statistics"]


class Reservoir:
    """Rows drawn uniformly out of all that were ever offered (Vitter's algorithm R, ACM TOMS 1985).

    Args:
        budget: largest number of rows, 1 or more.

    Attributes:
        columns: tensors ``(rows, ...)`` by name, a row being what belongs to one sample.
        seen: number of rows offered so far.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.columns: dict[str, Tensor] = {}
        self.seen = 0

    def __len__(self) -> int:
        return min(self.seen, self.budget)

    def add(self, columns: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Offer rows, in order: the n-th ever offered is taken with probability ``budget / n``, for a random other.

        Args:
            columns: tensors ``(N, ...)`` by name; names, types and shapes of a row are the same in every call.
            generator: on the CPU.
        """
        offered = len(next(iter(columns.values())))
        numbers = torch.arange(self.seen, self.seen + offered)
        draws = torch.rand(offered, generator=generator, dtype=torch.float64)
        places = torch.where(numbers < self.budget, numbers, (draws * (numbers + 1)).long())
        taken = {place: row for row, place in enumerate(places.tolist()) if place < self.budget}  # the last one stays
        self.seen += offered
        for name, rows in columns.items():
            kept = self.columns.get(name)
            missing = len(self) - (0 if kept is None else len(kept))
            grown = rows.new_zeros(missing, *rows.shape[1:])
            kept = grown if kept is None else torch.cat([kept, grown]) if missing else kept
            kept[torch.tensor(list(taken), device=kept.device, dtype=torch.int64)] = rows.detach()[
                torch.tensor(list(taken.values()), device=rows.device, dtype=torch.int64)
            ]
            self.columns[name] = kept

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw different rows at random, at most ``count``; all rows if there are no more."""
        rows = torch.randperm(len(self), generator=generator)[:count]
        return {name: column[rows.to(column.device)] for name, column in self.columns.items()}

    def copy(self) -> Reservoir:
        """Return a copy of everything, which further rows do not change."""
        copied = Reservoir(self.budget)
        copied.load({name: column.clone() for name, column in self.columns.items()} | {"seen": torch.tensor(self.seen)})
        return copied

    def reduced(self, budget: int, generator: torch.Generator) -> Reservoir:
        """Return a reservoir of a smaller budget with some of the rows, drawn uniformly; this one if it has no more.

        Args:
            budget: largest number of rows, 1 or more.
            generator: on the CPU.
        """
        if len(self) <= budget:
            return self
        smaller = Reservoir(budget)
        smaller.columns, smaller.seen = self.draw(budget, generator), self.seen
        return smaller

    def state(self) -> dict[str, Tensor]:
        """Return everything, as tensors by name."""
        return {**self.columns, "seen": torch.tensor(self.seen)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self.columns = {name: column for name, column in state.items() if name != "seen"}
        self.seen = int(state["seen"])


def gathers_statistics(network: nn.Module) -> bool:
    """Return whether a forward pass now would reach the statistics of a batch norm."""
    return any(isinstance(module, _NormBase) and module.training for module in network.modules())


@dataclass(frozen=True)
class RehearsalSettings:
    """Settings of methods that learn from a memory.

    Attributes:
        memory: samples to remember, of all tasks together.
        replay: remembered samples per step.
    """

    memory: int = 500
    replay: int = 64

    def __post_init__(self) -> None:
        require_range(self, "memory", "replay", least=1)


class RehearsalMethod(MultiHeadMethod):
    """Method that learns from a memory beside the new samples.

    The memory's samples go through the network in one batch with the new ones, so that batch norms see them together.
    Validation looks at the new task's samples alone.

    Attributes:
        memory: the remembered samples.
        offering: generator that decides which samples are remembered; started anew with every task.
        drawing: generator that decides which samples are learned again; started anew with every task.
    """

    settings_type: ClassVar[type] = RehearsalSettings
    objectives = (Classification,)

    @classmethod
    def learns(cls, objective: Objective) -> bool:
        """Return whether the method can learn tasks of a kind: classes without weights, as it remembers no more."""
        return isinstance(objective, Classification) and objective.weights is None

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.memory = Reservoir(settings.memory)
        self._before: tuple[str, Reservoir] | None = None  # the task in training, and the memory before it
        self.offering = self.drawing = torch.Generator()

    def begin_task(self, task: Task) -> None:
        """Open the task's head, and start the streams of random numbers that belong to the task."""
        super().begin_task(task)
        self._before = task.name, self.memory.copy()
        self.offering = self.setup.generator("memory", task.name)
        self.drawing = self.setup.generator("replay", task.name)

    def give_up(self, task: str) -> None:
        """Remove the task's head, and take up the memory from before the task, which has no samples for it."""
        super().give_up(task)
        if self._before is not None and self._before[0] == task:
            self.memory, self._before = self._before[1], None

    def end_task(self, task: Task) -> None:
        """Drop the copy of the memory from before the task."""
        self._before = None

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of new and remembered samples; the new ones' cross-entropy where the memory does not matter.

        It matters in training steps, and where batch norms gather statistics.
        """
        rehearses = len(self.memory) > 0 and (torch.is_grad_enabled() or gathers_statistics(self.network))
        return self.rehearsed_loss(batch) if rehearses else super().loss(batch)

    @abc.abstractmethod
    def rehearsed_loss(self, batch: Batch) -> Loss:
        """Return the loss of new samples and of some that are drawn from the memory."""

    def logits_of(self, batch: Batch, *remembered: Mapping[str, Tensor]) -> list[Tensor]:
        """Return logits of a batch of the newest task, and of rows of the memory; −inf behind a task's last class."""
        names = self.network.task_names
        x = torch.cat([batch.x, *(rows["x"] for rows in remembered)])
        newest = torch.full_like(batch.task_of, len(names) - 1)
        task_of = torch.cat([newest, *(rows["task"] for rows in remembered)])
        logits = self.network(x, tuple(names), task_of)
        return list(torch.split(logits, [len(batch.x), *(len(rows["x"]) for rows in remembered)]))

    def remembered(self) -> int:
        """Return the number of samples in the memory."""
        return len(self.memory)

    def extra_state(self) -> dict[str, Tensor]:
        """Return the memory."""
        return joined({"memory": self.memory.state()})

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up the memory."""
        self.memory.load({name: value.to(self.setup.device) for name, value in part_of(state, "memory.").items()})

    def training_state(self) -> dict[str, Tensor]:
        """Return the network, the memory, and how far the streams of random numbers are."""
        streams = {"offering": self.offering.get_state(), "drawing": self.drawing.get_state()}
        return {**super().training_state(), **self.extra_state(), **streams}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`training_state` gave."""
        super().load_training_state(state)
        self.load_extra_state(state)
        self.offering.set_state(state["offering"])
        self.drawing.set_state(state["drawing"])
