"""Samples of earlier tasks, kept in a memory of fixed size, and learned again beside the new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hatrack.checkpoint import part_of
from hatrack.methods.base import Batch, Loss, Setup
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.streams import Task, seeded_generator

__all__ = ["RehearsalMethod", "Reservoir", "gathers_statistics"]


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
        """Different rows at random, at most ``count``; all rows if there are no more."""
        rows = torch.randperm(len(self), generator=generator)[:count]
        return {name: column[rows.to(column.device)] for name, column in self.columns.items()}

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors by name."""
        return {**self.columns, "seen": torch.tensor(self.seen)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self.columns = {name: column for name, column in state.items() if name != "seen"}
        self.seen = int(state["seen"])


def gathers_statistics(network: nn.Module) -> bool:
    """Whether a forward pass now would reach the statistics of a batch norm."""
    return any(isinstance(module, _NormBase) and module.training for module in network.modules())


class RehearsalMethod(MultiHeadMethod):
    """What methods have in common that learn from a memory beside the new samples.

    The memory's samples go through the network in one batch with the new ones, so that batch norms see them together.
    Validation looks at the new task's samples alone.
    """

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.memory = Reservoir(settings.memory)
        self._offering = self._drawing = torch.Generator()

    def begin_task(self, task: Task) -> None:
        """Open the task's head, and start the streams of random numbers that belong to the task."""
        super().begin_task(task)
        self._offering = seeded_generator(self.setup.seed, "memory", task.name)
        self._drawing = seeded_generator(self.setup.seed, "replay", task.name)

    def _rehearses(self) -> bool:
        """Whether the memory matters to this forward pass: a training step, or batch norms that gather statistics."""
        return len(self.memory) > 0 and (torch.is_grad_enabled() or gathers_statistics(self.network))

    def _forward(self, batch: Batch, *remembered: Mapping[str, Tensor]) -> list[Tensor]:
        """Logits of a batch of the newest task and of rows of the memory; −inf behind the last class of a task."""
        names = self.network.task_names
        x = torch.cat([batch.x, *(rows["x"] for rows in remembered)])
        newest = torch.full_like(batch.task_of, len(names) - 1)
        task_of = torch.cat([newest, *(rows["task"] for rows in remembered)])
        logits = self.network(x, tuple(names), task_of)
        return list(torch.split(logits, [len(batch.x), *(len(rows["x"]) for rows in remembered)]))

    def _plain_loss(self, batch: Batch) -> Loss:
        """The new samples' cross-entropy alone."""
        return super().loss(batch)

    def _extra_state(self) -> dict[str, Tensor]:
        return {f"memory.{name}": value for name, value in self.memory.state().items()}

    def _load_extra_state(self, extra: Mapping[str, Tensor]) -> None:
        self.memory.load(part_of(extra, "memory."))

    def training_state(self) -> dict[str, Tensor]:
        """The network, the memory, and how far the streams of random numbers are."""
        streams = {"offering": self._offering.get_state(), "drawing": self._drawing.get_state()}
        return {**super().training_state(), **self._extra_state(), **streams}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        super().load_training_state(state)
        device = self.setup.device
        self.memory.load({name: value.to(device) for name, value in part_of(state, "memory.").items()})
        self._offering.set_state(state["offering"])
        self._drawing.set_state(state["drawing"])
