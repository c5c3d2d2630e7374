"""Gradient episodic memory: no step may increase the loss on the remembered samples of any earlier task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.methods.at_once import at_once
from hatrack.methods.base import Batch, Earlier, Loss, Setup, joined
from hatrack.methods.memory import Reservoir, gathers_statistics
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.objectives import Classification, Objective
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task
from hatrack.support.ranges import require_range

__all__ = ["GEM", "GEMSettings", "nonnegative_minimum", "project"]


@dataclass(frozen=True)
class GEMSettings:
    """Settings of GEM, with the margin that its authors' code has for all three of its experiments.

    Attributes:
        memory: samples to remember, of all tasks together, as for ``er`` and ``derpp``. They are shared out evenly
            among the tasks so far, so that old tasks keep fewer as others come (section 3 of the paper, for an unknown
            number of tasks), and at least one each.
        memory_per_task: samples to remember of each task instead, however many tasks there are; 256 in the authors'
            code. They are drawn at random; the last ones seen in the authors' code.
        margin: least weight of every earlier task's gradient in a projected one; it favours going back to what was
            known (γ in the paper, section 3).
    """

    memory: int = 500
    memory_per_task: int | None = None
    margin: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "memory", least=1)
        if self.memory_per_task is not None:
            require_range(self, "memory_per_task", least=1)

    def share(self, tasks: int) -> int:
        """Return the number of samples to remember of each of some tasks, 1 or more."""
        return self.memory_per_task or max(1, self.memory // tasks)


def nonnegative_minimum(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the u ≥ 0 that minimises ``½ uᵀ P u + cᵀ u``, by active sets (Lawson and Hanson 1974, chapter 23).

    Args:
        matrix: P, symmetric and positive semidefinite, ``(T, T)``.
        vector: c, in the range of P, ``(T,)``.

    Returns:
        u, in double precision on the CPU.
    """
    p, c = matrix.double().cpu(), vector.double().cpu()
    u = torch.zeros_like(c)
    positive = torch.zeros_like(c, dtype=torch.bool)
    tolerance = 1e-12 * float(torch.maximum(p.abs().max(), c.abs().max()))
    for _ in range(10 * len(c)):  # three rounds per entry are usual; the bound is for what rounding may do
        gain = torch.where(positive, -torch.inf, -(p @ u + c))
        if float(gain.max()) <= tolerance:
            break
        positive[gain.argmax()] = True
        while positive.any():
            wanted = torch.zeros_like(u)
            inner = p[positive][:, positive]
            wanted[positive] = torch.linalg.lstsq(inner, -c[positive, None], driver="gelsd").solution[:, 0]
            blocking = positive & (wanted <= 0)
            if not blocking.any():
                u = wanted
                break
            ratio = torch.where(blocking, u / (u - wanted).clamp_min(1e-300), torch.inf)
            step = ratio.min()  # as far as all stay above 0
            positive &= ratio > step
            u = torch.where(positive, u + (wanted - u) * step, 0.0)
    return u


def project(gradient: Tensor, memories: Tensor, margin: float = 0.0) -> Tensor:
    """Return the gradient nearest to ``gradient`` that makes no remembered task worse (Eqs. 8–11).

    With G the remembered tasks' gradients, minimises ``½ vᵀ G Gᵀ v + gᵀ Gᵀ v`` over ``v ≥ margin`` and returns
    ``Gᵀ v + g``. As in the authors' code the margin bounds v from below instead of being added to the solution: then
    no remembered task's loss increases, whatever the margin.

    Args:
        gradient: g, ``(P,)``.
        memories: G, ``(T, P)``.
        margin: least entry of v; 0 gives the nearest gradient.

    Returns:
        The projected gradient; ``gradient`` itself if no inner product with a row of G is negative.
    """
    rows = torch.cat([memories, gradient[None]])
    # In double precision, a part at a time: all of it at once would take twice the memory that the gradients do.
    inner = torch.stack([part.double() @ part.double().T for part in torch.split(rows, 2**18, dim=1)]).sum(0).cpu()
    gram, products = inner[:-1, :-1], inner[:-1, -1]
    if not (products < 0).any():
        return gradient
    least = torch.full_like(products, margin)
    weights = least + nonnegative_minimum(gram, products + gram @ least)
    return gradient + memories.T @ weights.to(memories)


class GEM(MultiHeadMethod):
    """Trains on the new samples with gradients that are projected onto those which hurt no earlier task's memory."""

    name = "gem"
    description = "gradient episodic memory: no step that increases the loss on earlier tasks' remembered samples"
    source = "Lopez-Paz and Ranzato, NIPS 2017"
    objectives = (Classification,)
    settings_type = GEMSettings
    earlier = Earlier({"memory_per_task": 256})

    @classmethod
    def learns(cls, objective: Objective) -> bool:
        """Return whether the method can learn tasks of a kind: classes without weights, as it remembers no more."""
        return isinstance(objective, Classification) and objective.weights is None

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.memories: list[Reservoir] = []

    def loss(self, batch: Batch) -> Loss:
        """Return the new samples' cross-entropy; norms that gather statistics see the memories, too, as in training."""
        if not torch.is_grad_enabled() and gathers_statistics(self.network):
            for name, memory in zip(self.network.task_names, self.memories, strict=False):
                self.network(memory.columns["x"], name)
        return super().loss(batch)

    @at_once()
    def end_task(self, task: Task) -> None:
        """Remember some of the task's training samples, drawn uniformly, and as many of each earlier task."""
        x, y = task.train.load()
        names = self.network.task_names
        share = self.settings.share(len(names))
        earlier = [
            memory.reduced(share, self.setup.generator("fewer memories", name, len(names)))
            for name, memory in zip(names, self.memories, strict=False)
        ]
        memory = Reservoir(share)
        columns = {"x": x.to(self.setup.device), "y": y.to(self.setup.device)}
        memory.add(columns, self.setup.generator("memory", task.name))
        self.memories = [*earlier, memory]

    def before_step(self) -> None:
        """Replace the gradient."""
        if not self.memories:
            return
        parameters = self.trained_parameters()
        gradient = _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        remembered = torch.stack([self._remembered(index) for index in range(len(self.memories))])
        projected = project(gradient, remembered, self.settings.margin)
        if projected is gradient:
            return
        parts = torch.split(projected, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape)

    @torch.enable_grad()
    def _remembered(self, index: int) -> Tensor:
        """Return the gradient of the loss on a task's memory."""
        columns, parameters = self.memories[index].columns, self.trained_parameters()
        loss = F.cross_entropy(self.network(columns["x"], self.network.task_names[index]), columns["y"])
        return _flat(torch.autograd.grad(loss, parameters, materialize_grads=True))

    def remembered(self) -> int:
        """Return the number of samples in the memories of all tasks."""
        return sum(map(len, self.memories))

    def extra_state(self) -> dict[str, Tensor]:
        """Return the memories, by their task's number."""
        return joined(dict(enumerate(memory.state() for memory in self.memories)))

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up the memories."""
        for index in range(len(self.network.task_names)):
            memory = Reservoir(self.settings.share(len(self.network.task_names)))
            memory.load(part_of(state, f"{index}."))
            self.memories.append(memory)


def _flat(gradients: Iterable[Tensor]) -> Tensor:
    """Return all gradients in a row."""
    return torch.cat([gradient.detach().reshape(-1) for gradient in gradients])
