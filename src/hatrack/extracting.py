"""Masks of units in use: several tasks in one pass, and a task as a network of its own."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.attachment import Attachment, without_gates
from hatrack.compact import CompactNetwork, TaskParts, cut_task, extract_task
from hatrack.compilers import start_compilers_inside
from hatrack.errors import InputError, UnsupportedError
from hatrack.gated import GatedNetwork
from hatrack.masked import MaskedNetwork
from hatrack.mixing import mixed_norms, mixes_samples
from hatrack.modes import evaluation_mode
from hatrack.movement import set_buffers
from hatrack.tasks import UnitTask
from hatrack.tryouts import random_like, says_something

__all__ = ["ExtractableNetwork"]


class ExtractableNetwork(GatedNetwork):
    """A network of masked units whose tasks can be asked together, and taken out one by one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mixing: tuple[Attachment, bool] | None = None
        start_compilers_inside(ExtractableNetwork._features_mixed, ExtractableNetwork._mixes_samples)

    @abc.abstractmethod
    def _norms(self, state: UnitTask) -> dict[str, nn.Module]:
        """The batch norms that a task uses: its own, or the first task's."""

    @abc.abstractmethod
    def _attention(self, state: UnitTask) -> Tensor:
        """Attention over all units: annealed while training, final otherwise; booleans where it is hard."""

    @torch.no_grad()
    def extract(self, task: str, example: Tensor | None = None) -> CompactNetwork:
        """A consolidated task as a plain module of its own, without gates, dropout and the units that it does not use.

        Its logits are the gated network's up to rounding (1e-5, relative to the largest), since kernels sum in another
        order for another width; that is checked before it is returned. This network stays as it is.

        Args:
            task: the task.
            example: samples to compare on, and to count operations with; random ones if left out, integers among what
                the network looks up. Where nothing tells the outputs of samples apart, nothing is cut.

        Returns:
            The network in evaluation mode, ``summary`` saying how large it is and which groups could not be cut.

        Raises:
            InputError: there is no such task, or it is not consolidated.
            UnsupportedError: masks are soft, or the backbone without gates does not give the gated network's logits.
        """
        return self._asked([self._state(task)], partial(_extract, task, example))

    @torch.no_grad()
    def logits_of_tasks(self, samples: Mapping[str, Tensor], *, batch_size: int = 1000) -> dict[str, Tensor]:
        """Logits of many samples of several consolidated tasks, in evaluation mode, in less time than one by one.

        Every task is extracted from the weights as they are now, and its own network is asked, which has only its units
        to compute. That pays from some hundred samples per task on. A task whose weights have not moved gets
        bit-identical logits, in whichever order and with whichever others it is asked; the gated network's are the same
        up to rounding (1e-5, relative to the largest). Where masks are soft, the gated network is asked.

        Args:
            samples: a batch ``(N, ...)`` by name of the task.
            batch_size: samples per pass; logits are reproducible to the bit for equal batches only.

        Returns:
            By name of the task ``(N, classes)``, in the order of ``samples``.

        Raises:
            InputError: there is no such task, or it is not consolidated.
            UnsupportedError: the backbone without gates does not give the gated network's logits.
        """
        results = {}
        for task, x in samples.items():
            soft = self._state(task).consolidated and self._state(task).mask.dtype != torch.bool
            with evaluation_mode(self):
                ask = (
                    partial(self.forward, task=task) if soft else self._asked([self._state(task)], partial(_cut, task))
                )
                parts = [ask(part) for part in torch.split(x, batch_size)]
            results[task] = torch.cat(parts)
        return results

    def _source(self, task: str, example: Tensor | None = None) -> TaskParts:
        """Return what a task's own network is made of."""
        self._require_attached()
        state = self._state(task)
        if not state.consolidated:
            raise InputError(f"task {task!r} is still in training: consolidate it before it is extracted")
        mask = state.mask
        if mask.dtype != torch.bool:
            raise UnsupportedError(
                f"the mask of {task!r} is soft: every unit is used a little, and none can be cut out"
            )
        with evaluation_mode(self):
            ask = partial(self._forward_one, state=state)
            tried = [] if example is None else [(example, ask(example))]
            if not tried or len(tried[0][0]) < 2 or not says_something(tried[0][1]):
                samples = torch.zeros(16, *self.example_shape[1:]).to(self._example())
                drawn = random_like(samples, torch.Generator().manual_seed(0), ask)
                tried.append((drawn, ask(drawn)))
        backbone = without_gates(self.backbone)
        set_buffers(backbone, self._movement.buffers, [value.clone() for value in state.moving.values])
        return TaskParts(task, backbone, self._norms(state), self._graph, mask, state.head, tried)

    def _features_mixed(self, x: Tensor, states: Sequence[UnitTask], task_of: Tensor) -> Tensor | None:
        expected = x.shape[1:] == self.example_shape[1:]
        if (
            self._movement.buffers
            or self.training
            or len(states) < 2
            or not len(x)
            or not expected
            or not self._mixes_samples()
        ):
            return None
        self._look_at(x, states)
        attentions = [self._attention(state) for state in states]
        soft = next((each.dtype for each in attentions if each.dtype != torch.bool), torch.bool)
        attention = torch.stack([each.to(soft) for each in attentions])
        norms = mixed_norms([self._norms(state) for state in states], task_of)
        return self._attachment.run(self.backbone, x, attention[task_of], norms)

    def _used_features(self, features: Tensor, state: UnitTask) -> Tensor:
        if state.mask.dtype != torch.bool:
            return features
        on = torch.cat([state.mask, state.mask.new_ones(1)])
        return features[:, on[self._graph.features().units.to(on.device)]]

    def _mixes_samples(self) -> bool:
        """Return whether samples of several tasks may go through the backbone together; tried out once."""
        if self._mixing is None or self._mixing[0] is not self._attachment:
            try_out = torch.compiler.disable(mixes_samples)  # type: ignore[no-untyped-call]
            mixes = try_out(self._attachment, self.backbone, self._graph.num_units, self._example())
            self._mixing = (self._attachment, mixes)
        return self._mixing[1]


def _extract(task: str, example: Tensor | None, net: MaskedNetwork[UnitTask], states: object) -> CompactNetwork:
    assert isinstance(net, ExtractableNetwork)
    return extract_task(net._source(task, example))


def _cut(task: str, net: MaskedNetwork[UnitTask], states: object) -> CompactNetwork:
    assert isinstance(net, ExtractableNetwork)
    return cut_task(net._source(task))[0]
