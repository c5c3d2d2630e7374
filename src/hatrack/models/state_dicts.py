"""The ``state_dict`` of a network: what it holds beside tensors, and how one is loaded, wholly or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hatrack.errors import GuaranteeError, InputError
from hatrack.masks.task_list import StateT
from hatrack.state.undo import Snapshot
from hatrack.support.layouts import lay_out, strides_of

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["StateLoading", "extra_state_of"]

_STRIDES = "strides"
"""Key of strides among the digests of a ``state_dict``, whose names are those of parameters, buffers and tasks."""


def extra_state_of(net: MaskedNetwork[StateT]) -> Tensor:
    """Return the digests of a network and the strides of what does not lie in memory row by row.

    Returns:
        JSON in a tensor of bytes, ``(B,)``, since many programs keep nothing but tensors.
    """
    digests: dict[str, Any] = net.protection.digests
    described = {**digests, _STRIDES: strides_of(net)} if digests else {}
    return torch.tensor(list(json.dumps(described, sort_keys=True).encode()), dtype=torch.uint8)


class StateLoading:
    """Loading of a ``state_dict`` into a network, whose tensors torch loads between beginning and end."""

    def __init__(self) -> None:
        self._before: Snapshot | None = None
        self._strides: Mapping[str, Sequence[int]] | None = None

    def begin(self, net: MaskedNetwork[StateT]) -> None:
        """Note how the network is before anything is loaded."""
        self._before = Snapshot(net, values_of=[*net.parameters(), *net.buffers()])
        self._strides = None

    def take(self, state: Tensor | Mapping[str, Any], net: MaskedNetwork[StateT]) -> None:
        """Take what :func:`extra_state_of` returned, or digests by name, as in earlier versions.

        Raises:
            InputError: it is neither.
        """
        try:
            digests = json.loads(bytes(state.tolist())) if isinstance(state, Tensor) else dict(state)
        except (TypeError, ValueError) as error:
            raise InputError(f"the digests (_extra_state) in this state_dict are damaged: {error}") from error
        self._strides = digests.pop(_STRIDES, None)
        net.protection.digests = digests

    def finish(self, net: MaskedNetwork[StateT]) -> None:
        """Renew the protection, or restore the network if it is of other tasks or its digests do not match.

        Raises:
            GuaranteeError: protected entries are not those that its tasks were consolidated with.
            InputError: other tasks are consolidated there than here.
        """
        before, self._before = self._before, None
        strides, self._strides = self._strides, None
        there = {name.removeprefix("task ") for name in net.protection.digests if name.startswith("task ")}
        here = {state.name for state in net.tasks.consolidated}
        torch.clear_autocast_cache()  # within torch.autocast it holds the values of before
        try:
            if there != here:
                raise InputError(
                    f"this state_dict is of a network with consolidated tasks {sorted(there)}, and this one would have "
                    f"{sorted(here)}; {_advice_for_other_tasks(there, here)}"
                )
            if strides is not None:  # only now, since parameters may be others (assign=True)
                lay_out(net, strides)
                net.protection.take_layouts()
                net.protection.hooks.lay_memory_out()
            net.renew_protection()
            moved = net.protection.find_moved()
            if moved:
                raise GuaranteeError(
                    f"protected entries have moved in {', '.join(moved)}: this state_dict has other values there than "
                    "its tasks were consolidated with, as after a conversion, an average of states, or steps without "
                    "net.protect(...); call restore() on that network before its state_dict is taken, or take one that "
                    "passes check()"
                )
        except BaseException:
            if before is not None:  # the state before was good
                before.restore()
            raise


def _advice_for_other_tasks(there: Collection[str], here: Collection[str]) -> str:
    """Return what to do where other tasks are consolidated in a ``state_dict`` than in the network that loads it."""
    if not set(there) < set(here):
        return "add the same tasks first, or keep whole networks with net.save and hatrack.load"
    only_here = sorted(set(here) - set(there))
    task, stays, it = ("task", "stays", "it") if len(only_here) == 1 else ("tasks", "stay", "them")
    return (
        f"{task} {', '.join(map(repr, only_here))} {stays} consolidated, which no loading takes back: load a snapshot "
        f"of a training before net.consolidate, or into another network; to learn {it} again, net.forget {it} and add "
        f"{it} anew"
    )
