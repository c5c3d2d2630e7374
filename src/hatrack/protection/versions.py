"""Version counters: whether anything but hatrack has written to tensors with frozen entries, by comparing integers.

Torch counts the changes in place of every tensor. A stamp records the count at which frozen entries last had their
saved values, and the address of the tensor's values. Changes through ``.data``, NumPy arrays, DLPack and captured CUDA
graphs leave no count; on a CPU spots of all tensors show those of whole tensors.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hatrack.protection.frozen import Backup, FrozenEntries
from hatrack.protection.plan import ProtectionPlan
from hatrack.protection.spots import Spots

__all__ = ["CountsSteps", "VersionWatch", "count_fused_steps", "count_step", "has_closure", "is_shared", "stamp_of"]

_UNCOUNTED = itertools.count(1)


def stamp_of(tensor: Tensor) -> tuple[int, int]:
    """Return the count of a tensor's changes in place, and the address of its values.

    Tensors made in inference mode have no count: each stamp of them is another one, so that values are compared.
    """
    return (-next(_UNCOUNTED) if tensor.is_inference() else tensor._version), tensor.data_ptr()


def is_shared(tensor: Tensor) -> bool:
    """Return whether other processes may write to a tensor, which no count of this one shows.

    Torch calls all tensors on a GPU shared.
    """
    return tensor.device.type == "cpu" and tensor.is_shared()  # type: ignore[no-untyped-call]


def _kept_stamp(tensor: Tensor) -> tuple[int, int]:
    """Return the stamp to compare with later: one that no tensor will have, where other processes may write to it.

    Torch moves the values of a tensor that it begins to share, so that its address is another one.
    """
    return (-next(_UNCOUNTED), 0) if is_shared(tensor) else stamp_of(tensor)


def has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a step was called with a closure.

    Args:
        args: positional arguments of a step's hook, of which torch counts the optimizer as the first.
        kwargs: keyword arguments of the hook.
    """
    return (args[1] if len(args) > 1 else kwargs.get("closure")) is not None


class CountsSteps:
    """Owner of a step pre-hook that calls :func:`count_step` itself, once it has looked at the counts."""


def count_step(optimizer: Optimizer) -> None:
    """Count the changes of a fused optimizer's step, since torch does not."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            changed = [p for p in group["params"] if p.grad is not None and not p.is_inference()]
            torch.autograd.graph.increment_version(changed)


def _count_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if not any(isinstance(getattr(hook, "__self__", None), CountsSteps) for hook in hooks):
        count_step(optimizer)


def _count_step_with_closure(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if has_closure(args, kwargs):  # gradients came after the step began
        count_step(optimizer)


@functools.cache
def count_fused_steps() -> None:
    """Count the steps of all fused optimizers from now on, protected or not."""
    register_optimizer_step_pre_hook(_count_step)
    register_optimizer_step_post_hook(_count_step_with_closure)


class VersionWatch:
    """Stamps of all tensors of which entries are frozen.

    Args:
        plan: the protection plan, whose entries all have their saved values at this moment.
        touched: indices in ``plan.all()`` of tensors that may have moved already.
    """

    def __init__(self, plan: ProtectionPlan, touched: Collection[int] = ()) -> None:
        self.plan = plan
        self._stamps = {
            id(tensor): _kept_stamp(tensor) for index, (tensor, _) in enumerate(plan.all()) if index not in touched
        }

        self._spots: dict[str, Spots] = {}  # by key of the tensors

    def __reduce__(self) -> tuple[type[VersionWatch], tuple[Any, ...]]:
        """Copies watch the copied tensors, which have counts of their own."""
        touched = [index for index, (tensor, _) in enumerate(self.plan.all()) if self.is_touched(tensor)]
        return type(self), (self.plan, touched)

    def is_touched(self, tensor: Tensor) -> bool:
        """Return whether something has written to a tensor since its last stamp."""
        return self._stamps.get(id(tensor)) != stamp_of(tensor)

    def look_closer(self, key: str, tensors: Iterable[Tensor]) -> bool:
        """Return whether a write that torch did not count has moved frozen entries; then all tensors count as touched.

        Args:
            key: name of these tensors, always the same.
            tensors: tensors to look at.
        """
        if key not in self._spots or self._spots[key].are_elsewhere():
            wanted = {id(tensor) for tensor in tensors}
            self._spots[key] = Spots(pair for pair in self.plan.all() if id(pair[0]) in wanted)
        if not self._spots[key].have_moved():
            return False
        self._stamps.clear()
        return True

    def note(self, tensor: Tensor) -> None:
        """Stamp a tensor whose frozen entries have their saved values now."""
        self._stamps[id(tensor)] = _kept_stamp(tensor)

    def moved(
        self, watched: Iterable[tuple[Tensor, FrozenEntries | Backup]]
    ) -> list[tuple[Tensor, FrozenEntries | Backup]]:
        """Return the tensors whose frozen entries have moved; only tensors that were written to are compared.

        Args:
            watched: tensors with the records of their frozen entries.
        """
        moved = []
        for tensor, record in watched:
            if self.is_touched(tensor):
                stamp = _kept_stamp(tensor)  # before the comparison: another thread may write meanwhile
                if record.has_moved(tensor):
                    moved.append((tensor, record))
                else:
                    self._stamps[id(tensor)] = stamp
        return moved
