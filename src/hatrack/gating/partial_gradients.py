"""Partial gradients: gradients of weights without entries that must not move, so that steps get cheaper over tasks.

A third of a training step goes into gradients of weights. Those of frozen entries are of no use: they are cleared, or
their effect is undone. Where whole rows of a dense layer's weight are frozen, or all but few rows and columns,
smaller products give the rest. The forward pass and the gradient of the input are the layer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.protection.frozen import all_of, any_of

__all__ = ["PartialGradient", "PartialGradientSwitch", "partial_gradient_for"]

ROWS_WORTH = 0.2
"""Smallest share of frozen rows of a weight for which smaller products pay (measured; see benchmarks/results)."""

ENTRIES_WORTH = 100_000
"""Smallest number of entries of a weight for which they pay, likewise: below, choosing takes longer than it saves."""

BLOCK_WORTH = 0.35
"""Largest share of free rows plus free columns for which two smaller products pay, likewise."""


@dataclass(frozen=True)
class PartialGradient:
    """Entries of a weight ``(O, I)`` whose gradient is computed.

    Attributes:
        rows: indices of the rows that are computed whole.
        columns: indices of the columns that are computed whole; None if there are none.
        weight: the weight; a layer that computes with another one in its place gets the whole gradient.
    """

    rows: Tensor
    columns: Tensor | None = None
    weight: nn.Parameter | None = None

    def product(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Compute ``outputsᵀ · inputs`` at these entries, with 0 elsewhere.

        Args:
            outputs: gradient of the layer's result, ``(N, O)``.
            inputs: the layer's input, ``(N, I)``.
        """
        result = outputs.new_zeros(outputs.shape[1], inputs.shape[1])
        if self.columns is not None:
            result.index_copy_(1, self.columns, outputs.t() @ inputs.index_select(1, self.columns))
        return result.index_copy_(0, self.rows, outputs.index_select(1, self.rows).t() @ inputs)


def partial_gradient_for(frozen: Tensor) -> PartialGradient | None:
    """Choose the part of a weight's gradient to compute.

    Args:
        frozen: booleans, ``(O, I)``, True for frozen entries.

    Returns:
        A part with all free entries, and perhaps others; None where computing the whole gradient is faster.
    """
    if not frozen.numel() or frozen.numel() < ENTRIES_WORTH:
        return None
    rows, columns = ~all_of(frozen, 1), ~any_of(frozen, 0)
    if float(rows.float().mean()) <= 1 - ROWS_WORTH:
        return PartialGradient(rows.nonzero().flatten())
    rows = any_of(~frozen & ~columns, 1)  # rows with free entries outside of free columns
    if float(rows.float().mean() + columns.float().mean()) <= BLOCK_WORTH:
        return PartialGradient(rows.nonzero().flatten(), columns.nonzero().flatten())
    return None


class _PartialGradientLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows, columns)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, columns = ctx.saved_tensors
        of_x, of_weight, of_bias, _, _ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient @ weight if of_x else None,
            PartialGradient(rows, columns).product(flat, x.reshape(-1, x.shape[-1])) if of_weight else None,
            flat.sum(0) if of_bias else None,
            None,
            None,
        )


class PartialGradientSwitch:
    """Replacement for the ``forward`` of one dense layer of the backbone: the same result, with a cheaper gradient.

    Where anything but plain training goes on (compiling, tracing, mixed precision, function transforms), and where it
    does not pay, the layer's own forward is called.

    Args:
        name: the layer's name in the backbone.
        module: the layer.
        partial_gradients: partial gradients by the names of layers; layers missing here compute all of theirs.
    """

    def __init__(self, name: str, module: nn.Linear, partial_gradients: Mapping[str, PartialGradient]) -> None:
        self._name = name
        self.module = module
        self._partial_gradients = partial_gradients

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether a module is one of torch's own dense layers, as torch made it."""
        own = isinstance(module._parameters.get("weight"), nn.Parameter)  # not computed from others
        return own and type(module) is nn.Linear and "forward" not in vars(module)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        """Compute the layer's result."""
        return self.forward_of(self.module, input)

    def forward_of(self, module: nn.Module, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        """Compute the result of the layer, or of a twin of it with other parameters."""
        assert isinstance(module, nn.Linear)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self._name not in self._partial_gradients:
            return nn.Linear.forward(module, input)
        partial, weight = self._partial_gradients[self._name], module.weight
        plain = (
            weight.requires_grad
            and input.dim() >= 2
            and input.dtype == weight.dtype
            and not torch.is_autocast_enabled(input.device.type)
            and not torch._C._get_tracing_state()
            and not torch._C._are_functorch_transforms_active()
            and torch.autograd.forward_ad._current_level < 0
            and weight is partial.weight
        )
        if not plain:
            return nn.Linear.forward(module, input)
        result: Tensor = _PartialGradientLinear.apply(input, weight, module.bias, partial.rows, partial.columns)  # type: ignore[no-untyped-call]
        return result
