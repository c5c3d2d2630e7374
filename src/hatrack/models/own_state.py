"""State of a backbone that runs move: every task has its own buffers; on other such state no output may depend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hatrack.errors import DOES_NOT_RUN, UnsupportedError
from hatrack.gating.attachment import scratch_without_gates
from hatrack.masks.tasks import TaskState
from hatrack.state.dependence import depends_on_state
from hatrack.state.movement import (
    Movement,
    OwnBuffers,
    ScratchRuns,
    get_buffers,
    movement_of,
    set_buffers,
    without_trace,
)
from hatrack.state.tryouts import random_batches, random_like
from hatrack.support.inputs import Inputs, map_tensors

if TYPE_CHECKING:
    from hatrack.models.masking import Masking

__all__ = ["FirstRuns", "OwnState"]


@dataclass(frozen=True)
class OwnState:
    """Names of buffers and attributes of a backbone that runs move.

    Attributes:
        movement: what moves: buffers, of which every task has its own, and attributes that no output depends on.
    """

    movement: Movement = field(default_factory=lambda: Movement((), ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of everything that moves."""
        return *self.movement.buffers, *self.movement.attributes

    @property
    def is_empty(self) -> bool:
        """Return whether tasks have no buffers of their own."""
        return not self.movement.buffers

    def for_new_task(self, backbone: nn.Module) -> OwnBuffers:
        """Return a new task's buffers, which begin as the backbone's."""
        return OwnBuffers([value.detach().clone() for value in get_buffers(backbone, self.movement.buffers)])

    def write_into(self, backbone: nn.Module, state: TaskState) -> None:
        """Put copies of a task's buffers into a copy of the backbone.

        Args:
            backbone: a copy of the backbone, whose buffers are replaced.
            state: the task.
        """
        set_buffers(backbone, self.movement.buffers, [value.clone() for value in state.moving.values])

    def run(self, state: TaskState, backbone: nn.Module, run: Callable[[nn.Module], Tensor]) -> Tensor:
        """Run a backbone with a task's own buffers, which only a task in training moves.

        Args:
            state: the task.
            backbone: a twin of the backbone, whose buffers are replaced.
            run: computes features with the twin.

        Returns:
            The features.
        """
        if state.consolidated:
            self.write_into(backbone, state)
            return run(backbone)
        set_buffers(backbone, self.movement.buffers, state.moving.values)
        features = run(backbone)
        state.moving.replace(get_buffers(backbone, self.movement.buffers))
        return features

    @torch.no_grad()
    def extended_by(self, masking: Masking[Any], x: Inputs, training: bool, scratch: nn.Module) -> OwnState | None:
        """Return the record extended by the state that a call of a new kind moves; None where it moves nothing new.

        Args:
            masking: the masking.
            x: the batch.
            training: whether the call is made in training mode.
            scratch: a copy of the backbone that was run on the batch.

        Raises:
            UnsupportedError: the call moves state that outputs depend on.
        """

        def run(backbone: nn.Module) -> object:
            with without_trace(), torch.no_grad():
                return masking.interface.run(backbone.train(training), detached)

        detached = map_tensors(Tensor.detach, x)
        found = movement_of(masking.backbone, scratch, masking.per_task_modules).without(self.movement)
        moved = Movement((), (*found.buffers, *found.attributes))  # too late for buffers to become each task's own
        shared = (*self.movement.attributes, *moved.attributes)
        if not shared:
            return None
        generator = torch.Generator().manual_seed(0)
        plain = scratch_without_gates(masking.backbone).eval()
        example = masking.interface.several(masking.example())
        asked = random_like(example, generator, lambda drawn: masking.interface.run(plain, drawn))
        if moved.attributes:
            _require_independent(masking, shared, asked, run)
        _require_independent(masking, shared, detached, run if moved.attributes else None)
        return OwnState(self.movement.joined_with(moved)) if moved.attributes else None


class FirstRuns:
    """Random batches to try a network with that is being attached, and runs of copies on them and on the example.

    Args:
        masking: the masking.
        example: the example input.

    Attributes:
        drawn: a random batch of as many samples as the example.
    """

    def __init__(self, masking: Masking[Any], example: Inputs) -> None:
        self._masking, self._begun = masking, masking.runs_on_example()
        interface = masking.interface
        self._several = self._begun[False][1] if False in self._begun else interface.several(example)
        self._evaluated = self._runs(training=False)
        generator, one = torch.Generator().manual_seed(0), interface.take(example, slice(1))
        self._batches = random_batches(self._several, generator, self._evaluated.run, 2, one)
        self.drawn = interface.take(self._batches[0], slice(interface.samples(example)))

    def _runs(self, training: bool) -> ScratchRuns:
        return ScratchRuns(self._masking.backbone, self._masking.interface, training, self._begun.get(training))

    def find_own_state(self) -> OwnState:
        """Find the buffers that every task needs copies of, by what runs in evaluation and in training mode move.

        The batches are a random one, since a mean of zeros would not move, and the example, since some state depends on
        the batch before.

        Raises:
            UnsupportedError: other state moves, and outputs depend on it.
        """
        masking, (first, second) = self._masking, self._batches
        interface, per_task = masking.interface, masking.per_task_modules
        movement = self._evaluated.movement([first, self._several], per_task)
        with suppress(*DOES_NOT_RUN):  # such as a batch norm that would get one sample
            in_training = self._runs(training=True).movement([first, self._several], per_task)
            movement = movement.joined_with(in_training)
        if movement.attributes:
            _require_independent(
                masking, movement.attributes, first, lambda backbone: interface.run(backbone.train(), second)
            )
        return OwnState(movement)


def _require_independent(
    masking: Masking[Any], names: Sequence[str], x: Inputs, move: Callable[[nn.Module], object] | None
) -> None:
    """Check that outputs do not depend on state that all tasks share.

    Args:
        masking: the masking.
        names: names of the attributes and buffers that runs move.
        x: the batch to ask about.
        move: runs a backbone in a way that moves them; None where that was tried already.
    """
    if depends_on_state(masking.scratch, names, x, move):
        raise UnsupportedError(
            f"running the backbone changes {', '.join(names)}, and its outputs depend on that: what one task does "
            "would change the outputs of others; keep such state in a buffer of one shape "
            "(self.register_buffer), which every task then has its own of, or compute it anew in every pass"
        )
