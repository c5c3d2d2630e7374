"""Gates multiplied with the weight that reads what they gate, in the place of what it reads."""

from __future__ import annotations

import abc
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from hatrack.gating.used_blocks import UsedBlock

__all__ = ["FoldsGates", "is_called_with_hooks_of"]


class FoldsGates(abc.ABC):
    """Object that computes a layer's result, and may multiply the layer's weight with the gates of its input.

    ``(h ⊙ a) Wᵀ`` is ``h (W ⊙ a)ᵀ``. Where an activation has more numbers than the weight, as in convolutions and where
    samples are rows of tokens, that saves most of what gates cost: passes over the activation in both directions.
    """

    module: nn.Module

    @abc.abstractmethod
    def folds(self, module: nn.Module, value: Tensor) -> bool:
        """Return whether the gates of a value are to be left to the layer, which must then ask for them."""

    @abc.abstractmethod
    def block_for(self, module: nn.Module, value: Tensor) -> UsedBlock | None:
        """Return the block of its weight that the layer computes a call with; None where it is the whole weight."""

    @staticmethod
    def takes(module: nn.Module, gates: Tensor) -> bool:
        """Return whether gates are a number for every input channel or feature of a layer.

        They are not where every sample has gates of its own, nor where a convolution goes along its units, as in
        efficient channel attention.
        """
        weight = module.weight
        assert isinstance(weight, Tensor)
        return gates.dim() == weight.dim() - 1 and gates.numel() == len(gates) == weight.shape[1]

    @staticmethod
    def of(module: nn.Module) -> FoldsGates | None:
        """Return the object that computes a layer's result now; None where something else does, or for another layer.

        A shallow copy of a layer has its ``forward``, which computes with the layer and would look for no gates of the
        copy.
        """
        forward = vars(module).get("forward")
        owner = getattr(getattr(forward, "func", forward), "__self__", None)
        if not isinstance(owner, FoldsGates):
            return None
        layer = forward.args[0] if isinstance(forward, partial) else owner.module  # twins are bound by partial
        return owner if layer is module else None


def is_called_with_hooks_of(module: nn.Module, kind: type) -> bool:
    """Return whether all hooks that a call of a module runs are methods of objects of a kind."""
    tables = (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
    if has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    return all(isinstance(getattr(hook, "__self__", None), kind) for table in tables for hook in table.values())
