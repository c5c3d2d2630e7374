"""Classes in four quarter turns: what tells a task's pictures from those of other tasks that it never sees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hatrack.backbones import QuarterTurns
from hatrack.errors import InputError
from hatrack.functional import turned_logits
from hatrack.methods.base import Batch, Loss, Setup
from hatrack.objectives import Classification, Objective
from hatrack.streams import Task
from hatrack.support.ranges import require_range, require_types

__all__ = ["TurningSettings", "require_classes", "turned_loss", "with_turns"]


@dataclass(frozen=True)
class TurningSettings:
    """Settings that all methods with masks have, of training that makes tasks recognisable (Kim et al., 2022).

    Attributes:
        rotations: 4 makes four classes of every class, one for each quarter turn of a picture, and answers with the
            mean over the turns: an epoch and an answer take four times as long. 1 turns nothing.
        contrastive: share of the epochs that draw features of a class together and push those of other classes away, in
            which the mask is learned; the rest of the epochs train the head alone. 0, or below 1.
    """

    rotations: int = field(default=1, kw_only=True)
    contrastive: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        require_types(self)
        if self.rotations not in (1, QuarterTurns.turns):
            raise InputError(f"rotations must be 1 (none) or 4 (quarter turns), not {self.rotations!r}")
        require_range(self, "contrastive", least=0, below=1)


def with_turns(backbone: nn.Module, setup: Setup, rotations: int) -> nn.Module:
    """Return a backbone that sees pictures in as many turns; the backbone itself for one, or if it does so already.

    Raises:
        InputError: samples are no square pictures, or features are picked out of the backbone's result.
    """
    if rotations == 1 or isinstance(backbone, QuarterTurns):
        return backbone
    if not setup.is_plain:
        raise InputError(
            "turns are for samples of one tensor of real numbers and backbones that map them to features (N, F): "
            "leave turns out (`rotations=1`)"
        )
    QuarterTurns.require_square(setup.input_shape)
    return QuarterTurns(backbone)


def require_classes(task: Task) -> None:
    """Check that a task can be learned in turns, and by contrast.

    Raises:
        InputError: its outputs are no classes.
    """
    if not isinstance(task.objective, Classification):
        raise InputError(
            f"task {task.name!r} is {task.objective.kind}, and only classes are turned and contrasted: leave that out "
            "(`rotations=1`, `contrastive=0`)"
        )


def turned_loss(head: nn.Linear, features: Tensor, batch: Batch) -> Loss:
    """Return the cross-entropy of classes and turns, of every sample in every turn.

    Args:
        head: head of the task, for C classes.
        features: features of the samples by :class:`~hatrack.backbones.QuarterTurns`, ``(N, 4F)``.
        batch: the samples, all of one task.

    Returns:
        The loss, with logits ``(4N, 4C)``.
    """
    turns = QuarterTurns.turns
    logits = turned_logits(features, head.weight, head.bias, turns)
    y = turns * batch.y.unsqueeze(1) + torch.arange(turns, device=batch.y.device)
    turned = replace(
        batch,
        y=y.flatten(),
        task_of=batch.task_of.repeat_interleave(turns),
        objectives=tuple(_in_turns(objective, turns) for objective in batch.objectives),
    )
    return Loss.of(logits.flatten(0, 1), turned)


def _in_turns(objective: Objective, turns: int) -> Classification:
    """Return the objective of classes in their turns, which weigh as their class does."""
    assert isinstance(objective, Classification)
    names = tuple(f"{name}, turn {turn}" for name in objective.names for turn in range(turns))
    weights = objective.weights
    return Classification(names, None if weights is None else tuple(w for w in weights for _ in range(turns)))
