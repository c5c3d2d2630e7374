"""Weights that tasks use and share in a network of masked weights, and tasks taken out of it."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hatrack.capacity import Capacity, common_entries
from hatrack.compact import CompactNetwork, bake, extract_baked
from hatrack.elastic import ElasticNetwork
from hatrack.errors import InputError
from hatrack.masked import MaskedNetwork
from hatrack.masks import CostCache, Unmasked, WeightRole, WeightTask, union
from hatrack.modes import evaluation_mode
from hatrack.movement import set_buffers
from hatrack.tryouts import random_like

__all__ = ["HoldingWeights"]


class HoldingWeights(ElasticNetwork):
    """A network of masked weights that knows what its tasks hold.

    Attributes:
        unmasked: whose copies a task uses of what has no mask.
    """

    unmasked: Unmasked
    _unpacked: tuple[Tensor, int, Sequence[Tensor]] | None
    _free: list[Tensor] | None

    @abc.abstractmethod
    def _copies_of(self, state: WeightTask) -> tuple[list[Tensor], dict[str, nn.Module]]:
        """The copies that a task uses of what has no mask: parameters and norms."""

    @abc.abstractmethod
    def _final_masks(self, state: WeightTask) -> Sequence[Tensor]:
        """The masks that a task in training has if it is consolidated now."""

    def _settled_masks(self, state: WeightTask) -> Sequence[Tensor]:
        """Bits as booleans; those of the task that was asked for last are kept."""
        if state.packed.is_inference():
            return [state.mask(index) for index in range(len(self._layout.masked))]
        kept = self._unpacked
        if kept is not None and kept[0] is state.packed and kept[1] == state.packed._version:
            return kept[2]
        masks = [state.mask(index) for index in range(len(self._layout.masked))]
        self._unpacked = (state.packed, state.packed._version, masks)
        return masks

    @torch.no_grad()
    def extract(self, task: str, example: Tensor | None = None) -> CompactNetwork:
        """A consolidated task as a plain module of its own: masks are written into the weights as zeros.

        Units that are dead then are cut out, and logits are this network's up to rounding (1e-5, relative to the
        largest), which is checked. What is dead is seen by looking at ``example`` and at random samples near and far: a
        backbone whose own code switches on what samples are like is best shown real ones of all kinds. Where no unit is
        dead, as is usual for masks of weights, the shape stays, and logits are the same to the bit; ``summary`` says
        which, and how many weights are not 0. This network stays as it is.

        Args:
            task: the task.
            example: samples to compare on, and to count operations with; random ones if left out, which is not enough
                where inputs are integers.

        Returns:
            The network in evaluation mode.

        Raises:
            InputError: there is no such task, or it is not consolidated.
            UnsupportedError: the backbone with zeros written in does not give this network's logits.
        """
        self._require_attached()
        state = self._state(task)
        if not state.consolidated:
            raise InputError(f"task {task!r} is still in training: consolidate it before it is extracted")
        return self._asked([state], partial(_extract, task, example))

    def _extracted(self, task: str, example: Tensor | None) -> CompactNetwork:
        state = self._state(task)
        if example is None:
            samples = torch.zeros(16, *self.example_shape[1:], dtype=self._example_dtype)
            samples = samples.to(state.head.weight.device)
            with evaluation_mode(self):
                run = partial(self._forward_one, state=state)
                example = random_like(samples, torch.Generator().manual_seed(0), run)
        masks = dict(zip(self._layout.masked, self._settled_masks(state), strict=True))
        copies, norms = self._copies_of(state)
        backbone = bake(self.backbone, masks, dict(zip(self._layout.copied, copies, strict=True)), norms)
        set_buffers(backbone, self._movement.buffers, [value.clone() for value in state.moving.values])

        def ask(x: Tensor) -> Tensor:
            with evaluation_mode(self):
                return self._forward_one(x, state)

        return extract_baked(task, backbone, state.head, ask, example)

    # ------------------------------------------------------------------------------------------------- inspection

    @property
    def roles(self) -> dict[str, WeightRole]:
        """The role of every parameter of ``named_parameters()``, by name."""
        masked = {f"backbone.{name}" for name in self._layout.masked}
        return {
            name: WeightRole.MASKED if name in masked else WeightRole.PER_TASK for name, _ in self.named_parameters()
        }

    def masks(self, task: str) -> dict[str, Tensor]:
        """The weights that a task uses, by the backbone's names: booleans of their shapes.

        For a task in training it is what consolidating it now would give.
        """
        state = self._state(task)
        masks = self._settled_masks(state) if state.is_settled else self._final_masks(state)
        return {name: mask.clone() for name, mask in zip(self._layout.masked, masks, strict=True)}

    def capacity(self) -> Capacity:
        """Share of the weights that consolidated tasks use, per parameter and over all."""
        shares = {name: float(used.float().mean()) for name, used in zip(self._layout.masked, self._used, strict=True)}
        taken = sum(int(used.sum()) for used in self._used)
        entries = sum(used.numel() for used in self._used)
        return Capacity(shares, None, taken / entries, entries)

    def usage(self) -> float:
        """Share of all masked weights that tasks use, a task in training with what consolidating it now would give."""
        state, used = self._in_training(), self._used
        if state is not None:
            masks = self._settled_masks(state) if state.is_settled else self._final_masks(state)
            used = [held | mask for held, mask in zip(used, masks, strict=True)]
        return sum(int(mask.sum()) for mask in used) / sum(mask.numel() for mask in used)

    def reuse(self) -> Tensor:
        """Share of the weights of task i that task j uses too, ``(T, T)``, over consolidated tasks."""
        states = self._consolidated_states()
        common = torch.zeros(len(states), len(states), dtype=torch.int64)
        for index in range(len(self._layout.masked)):
            common += common_entries([state.mask(index) for state in states])
        return common / common.diagonal().clamp_min(1).unsqueeze(1)

    # ----------------------------------------------------------------------------------------------- the guarantee

    def _attention_on_parameters(self) -> Mapping[str, Tensor]:
        states, attention = self._consolidated_states(), {}
        self._used: list[Tensor] = []
        self._free = None
        self._taken = CostCache()
        for index, (name, weight) in enumerate(zip(self._layout.masked, self._weights(), strict=True)):
            masks = [state.mask(index) for state in states]
            self._used.append(union(masks, weight))
            attention[f"backbone.{name}"] = self.conditioning.attention(masks, weight)
        self._num_free = sum(int((~used).sum()) for used in self._used)
        return attention

    def _entries_of(self, state: WeightTask) -> Mapping[str, Tensor]:
        return self.masks(state.name)

    def _hand_over(self, state: WeightTask, heir: WeightTask) -> None:
        if self.unmasked is not Unmasked.PER_TASK:
            heir.take_norms_of(state)
            heir.copies = state.copies

    def _remove(self, state: WeightTask) -> None:
        super()._remove(state)
        self._unpacked = None

    def _sizes(self) -> Mapping[str, int]:
        return {name: weight.numel() for name, weight in zip(self._layout.masked, self._weights(), strict=True)}

    def _per_task_modules(self) -> Sequence[str]:
        return self._layout.norms


def _extract(task: str, example: Tensor | None, net: MaskedNetwork[WeightTask], states: object) -> CompactNetwork:
    assert isinstance(net, HoldingWeights)
    return net._extracted(task, example)
