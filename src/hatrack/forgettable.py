"""Unlearning tasks, recognising them, and planning for more."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hatrack.calibration import fit_calibration
from hatrack.errors import GuaranteeError, InputError
from hatrack.forgetting import Forgotten, entries_to_erase, forget_in_optimizer, report
from hatrack.masked import MaskedNetwork
from hatrack.modes import evaluation_mode
from hatrack.multitask import StateT
from hatrack.plan import Plan, make_plan
from hatrack.undo import all_or_nothing

__all__ = ["ForgettableNetwork"]


class ForgettableNetwork(MaskedNetwork[StateT]):
    """A network of masks whose tasks can be forgotten again, one by one and exactly."""

    @abc.abstractmethod
    def _entries_of(self, state: StateT) -> Mapping[str, Tensor]:
        """Return masks of the shared parameters that a task's outputs depend on, by the backbone's names."""

    @abc.abstractmethod
    def _sizes(self) -> Mapping[str, int]:
        """Return how many of what :meth:`masks` are about there are, by its names."""

    @all_or_nothing(lambda net: [*net.backbone.parameters(), *net.backbone.buffers(), *net.buffers()])
    def forget(self, name: str, *, generator: torch.Generator | None = None) -> Forgotten:
        """Remove a task exactly: its masks, head and norms, and all weights that no other task uses.

        These are drawn anew and are free again; what a weight was before is not kept. All other tasks stay
        bit-identical. Weights that other tasks use too stay as they are, though the forgotten task may have shaped
        them; the report says how many, and with whom they are shared. Also gives up a task in training. Files that were
        saved before still hold the task: see :func:`hatrack.forget_in_files`.

        Args:
            name: the task.
            generator: draws new values, on the CPU; torch's global one if left out.

        Returns:
            What was erased, and what is shared with whom.

        Raises:
            InputError: there is no such task, or another one is in training.
            GuaranteeError: protected entries had moved before, or other tasks would change; nothing is changed then.
        """
        self._require_attached()
        state = self._state(name)
        if self.task_in_training not in (None, name):
            raise InputError(f"consolidate or forget {self.task_in_training!r}, which is in training, before {name!r}")
        self._put_back()
        self.check()
        with torch.inference_mode(False), torch.no_grad():
            others = {other.name: self._entries_of(other) for other in self._states() if other is not state}
            shared = {id(parameter) for parameter in self._shared_parameters()}
            parameters = {n: p for n, p in self.backbone.named_parameters() if id(p) in shared}
            used: dict[str, Tensor] = {}
            for uses in others.values():
                used.update({key: used[key] | value if key in used else value for key, value in uses.items()})
            erased = entries_to_erase(parameters, used)
            result = report(name, self._entries_of(state), others, erased.values())
            self._erase(erased, [other for other in self._states() if other is not state], generator)
            self._remove(state)
            for optimizer in self._guard.optimizers():
                where = {parameters[key]: entries for key, entries in erased.items()}
                forget_in_optimizer(optimizer, list(state.parameters()), where)
            self._renew_guarantee()
            self._digests = self._take_digests()
        return result

    def _erase(self, erased: Mapping[str, Tensor], others: Sequence[StateT], generator: torch.Generator | None) -> None:
        """Draw entries anew, after which other tasks must say what they said before, to the bit."""
        before = {name: self.backbone.get_parameter(name).detach().clone() for name in erased}
        answers = [self._answer(state, self.example_shape) for state in others]
        for name, where in erased.items():
            parameter = self.backbone.get_parameter(name)
            parameter.copy_(torch.where(where, self._initialization.draw(self.backbone, name, generator), parameter))
            parameter.grad = None
        now = [self._answer(state, self.example_shape) for state in others]
        moved = [s.name for s, was, says in zip(others, answers, now, strict=True) if not torch.equal(was, says)]
        if moved:
            for name, values in before.items():
                self.backbone.get_parameter(name).copy_(values)
            raise GuaranteeError(f"forgetting would change the outputs of {', '.join(moved)}; nothing was changed")

    def _remove(self, state: StateT) -> None:
        """Take a state out of the list of tasks; if all tasks use its copies, the next one takes them over."""
        states = self._states()
        if states[0] is state and len(states) > 1:
            self._hand_over(state, states[1])
        del self.tasks[states.index(state)]

    @abc.abstractmethod
    def _hand_over(self, state: StateT, heir: StateT) -> None:
        """Give the first task's norms and copies to the task that is going to be first, if all tasks use them."""

    @all_or_nothing()
    def calibrate(self, name: str, x: Tensor, y: Tensor, *, batch_size: int = 500) -> None:
        """Keep of a consolidated task's training data what :meth:`infer` recognises it by: some numbers, no samples.

        They are saved with the network, guarded as all of the task, and forgotten with it.

        Args:
            name: the task.
            x: its training samples ``(N, ...)``.
            y: their classes, int64 ``(N,)``.
            batch_size: samples per pass.

        Raises:
            InputError: there is no such task, it is not consolidated, or samples and classes do not fit.
            GuaranteeError: protected entries had moved before.
        """
        self._require_attached()
        state = self._state(name)
        if not state.consolidated:
            raise InputError(f"task {name!r} is still in training: consolidate it before it is calibrated")
        if not len(x) or y.shape != x.shape[:1] or int(y.min()) < 0 or int(y.max()) >= state.num_classes:
            raise InputError(f"calibrating {name!r} takes samples with classes 0 to {state.num_classes - 1} each")
        self._put_back()
        self.check()
        with torch.inference_mode(False), torch.no_grad(), evaluation_mode(self):
            parts = torch.split(x, batch_size)
            for part in parts:
                self._look_at(part, [state])
            features = torch.cat([self._features(part, state) for part in parts])
            logits = self._classify(features, state)
            state.calibration = fit_calibration(self._used_features(features, state), logits, y.to(logits.device))
            self._renew_guarantee()
        self._digests = self._take_digests()

    def plan(self) -> Plan:
        """Return the room left per group of units (or masked parameter), and roughly for how many more tasks."""
        return make_plan(self._sizes(), [self.masks(state.name) for state in self._consolidated_states()])
