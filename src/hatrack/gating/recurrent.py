"""Recurrent layers under a task: their hidden units are gated by weights, since no gate reaches between time steps.

Under a hard mask a task computes with weights in which all entries are cleared of which it does not use both ends: the
state of a unit that is off stays 0, whatever its weights are, and nobody reads it. Under a soft mask the columns of the
weights that read the state are scaled, which is the same as to gate the state wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import UnsupportedError
from hatrack.gating.gates import ActiveTask
from hatrack.masks.packing import move_along
from hatrack.support.compilers import keep_compilers_out
from hatrack.units import ParameterUse

__all__ = ["RecurrentSwitch", "is_recurrent", "is_ungated"]

_KINDS = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def is_recurrent(module: nn.Module, uses: Mapping[str, tuple[ParameterUse, ...]], prefix: str) -> bool:
    """Return whether the hidden units of a layer are units of the network.

    Args:
        module: the layer.
        uses: the uses of all parameters, by name.
        prefix: what comes before the layer's own names of its parameters.
    """
    if not isinstance(module, _KINDS):
        return False
    name = "weight_hh_l0" if isinstance(module, nn.RNNBase) else "weight_hh"
    return any(len(use.sides) == 2 for use in uses.get(prefix + name, ()))


def is_ungated(module: nn.Module, uses: Mapping[str, tuple[ParameterUse, ...]], prefix: str, ungated: int) -> bool:
    """Return whether no hidden unit of a recurrent layer is gated, as where it is untrained.

    Args:
        module: the layer.
        uses: the uses of all parameters, by name.
        prefix: what comes before the layer's own names of its parameters.
        ungated: position that stands for no unit.
    """
    names = [prefix + own for own, _ in module.named_parameters() if own.startswith("weight_hh")]
    return all(bool((side == ungated).all()) for name in names for use in uses[name] for side in use.sides)


class RecurrentSwitch(nn.Module):
    """Replacement for the ``forward`` of one recurrent layer: it computes with the active task's part of the weights.

    It is a module so that its index tensors move along with the network; it has no parameters.

    Args:
        name: the layer's name in the backbone.
        module: the layer.
        uses: the uses of all parameters, by name.
        prefix: what comes before the layer's own names of its parameters.
        active: the state shared by all gates of the network.

    Raises:
        UnsupportedError: the layer has a weight together with another layer, which reads other units with it.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        uses: Mapping[str, tuple[ParameterUse, ...]],
        prefix: str,
        active: ActiveTask,
    ) -> None:
        super().__init__()
        self._of = (module,)  # in a tuple, so that it is no part of the switch
        self._active = active
        self._sides: dict[str, tuple[Tensor, ...]] = {}
        for own, _ in module.named_parameters():
            if len(uses[prefix + own]) != 1:
                raise UnsupportedError(
                    f"{name}: {own!r} is shared with another layer, so it cannot be cleared for both"
                )
            self._sides[own] = tuple(side.clone() for side in uses[prefix + own][0].sides)

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self._of[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RecurrentSwitch:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._sides = {own: tuple(move_along(side, fn) for side in sides) for own, sides in self._sides.items()}
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the layer's result under the active task, or with all of its weights while no task is active."""
        return self.forward_of(self.module, *args, **kwargs)

    def forward_of(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Compute the result of the layer, or of a twin of it with other parameters."""
        active = self._active
        per_unit = active.attention if active.cleared is None else active.cleared
        if per_unit is None:
            active.require_forward()
            return type(module).forward(module, *args, **kwargs)
        if per_unit.dim() > 1:
            raise ValueError("a recurrent layer computes with the weights of one task at a time")
        hard = active.cleared is not None
        change = self._clear if hard else self._scale
        weights = {own: change(own, getattr(module, own), per_unit) for own in self._sides}
        if hard:
            args, kwargs = self._with_states_cleared(module, args, kwargs, per_unit)
        return type(module).forward(_twin(module, weights), *args, **kwargs)

    def _clear(self, own: str, weight: Tensor, cleared: Tensor) -> Tensor:
        """Set all entries of a weight to 0 of which an end is off, however large they are."""
        off = cleared[self._sides[own][0]]
        for side in self._sides[own][1:]:
            off = off | cleared[side]
        return weight.masked_fill(off, 0.0)

    def _scale(self, own: str, weight: Tensor, attention: Tensor) -> Tensor:
        """Scale the columns of a weight that reads hidden units; the layer's input is gated before it."""
        sides = self._sides[own]
        if len(sides) < 2 or own in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"):
            return weight
        return weight * attention[sides[1]].to(weight.dtype)

    def _with_states_cleared(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], cleared: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Set initial states of units that are off to 0."""
        given = args[1] if len(args) > 1 else kwargs.get("hx")
        if given is None:
            return args, kwargs
        names = [own for own in self._sides if own.startswith("weight_hh")]
        hidden = torch.stack([self._sides[own][1].flatten() for own in names])
        cells = torch.stack([self._sides[own][0].flatten()[: module.hidden_size] for own in names])

        def clear(state: Tensor, units: Tensor) -> Tensor:
            off = cleared[units]
            if not isinstance(module, nn.RNNBase):
                return state.masked_fill(off[0], 0.0)
            return state.masked_fill(off.view(len(off), *(1,) * (state.dim() - 2), -1), 0.0)

        if isinstance(given, (tuple, list)):
            given = (clear(given[0], hidden), clear(given[1], cells))
        else:
            given = clear(given, hidden)
        return args[:1], {**({"input": kwargs["input"]} if "input" in kwargs else {}), "hx": given}


keep_compilers_out(RecurrentSwitch.forward, RecurrentSwitch.forward_of)


def _twin(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Make an object like a layer that computes with other weights; the layer itself is not touched."""
    twin: nn.Module = object.__new__(type(module))
    attributes = vars(twin)
    attributes.update(vars(module))
    attributes.pop("forward", None)
    attributes["_parameters"] = weights
    if isinstance(module, nn.RNNBase):  # it reads its weights from a list
        attributes["_flat_weights"] = [weights[own] for own in module._flat_weights_names]
        attributes["_flat_weight_refs"] = [None] * len(weights)
    return twin
