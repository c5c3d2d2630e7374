"""Gradients of weights that leave out what must not move anyway: steps get cheaper as the network fills.

A third of a training step goes into gradients of weights. Those of held entries are of no use: they are cleared, or
what they did is taken back. Where whole rows of a dense layer's weight are held, or all but few rows and columns,
smaller products give the rest. The forward pass and the gradient of the input are the layer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SparingSwitch", "Wanted", "wanted_entries"]

ROWS_WORTH = 0.2
"""Share of a weight's rows that has to be held for smaller products to pay (measured; see benchmarks/results)."""

ENTRIES_WORTH = 100_000
"""Number of entries that a weight has to have, likewise: below, the whole gradient takes less time than choosing."""

BLOCK_WORTH = 0.35
"""Largest share of free rows and of free columns together with which two smaller products pay, likewise."""


@dataclass(frozen=True)
class Wanted:
    """The entries of a weight ``(O, I)`` whose gradient is wanted.

    Attributes:
        rows: indices of the rows that are wanted whole.
        columns: indices of the columns that are wanted whole; None if there are none.
        weight: the weight; whoever computes with another one in its place is given its gradient whole.
    """

    rows: Tensor
    columns: Tensor | None = None
    weight: nn.Parameter | None = None

    def product(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """``outputsᵀ · inputs`` at the entries that are wanted, and 0 elsewhere.

        Args:
            outputs: ``(N, O)``.
            inputs: ``(N, I)``.
        """
        result = outputs.new_zeros(outputs.shape[1], inputs.shape[1])
        if self.columns is not None:
            result.index_copy_(1, self.columns, outputs.t() @ inputs.index_select(1, self.columns))
        return result.index_copy_(0, self.rows, outputs.index_select(1, self.rows).t() @ inputs)


def wanted_entries(held: Tensor) -> Wanted | None:
    """Return what of a weight's gradient to compute.

    Args:
        held: True where an entry must not move, ``(O, I)``.

    Returns:
        All that is free, and perhaps more; None where computing all of it is faster.
    """
    if not held.numel() or held.numel() < ENTRIES_WORTH:
        return None
    rows, columns = ~held.all(1), ~held.any(0)
    if float(rows.float().mean()) <= 1 - ROWS_WORTH:
        return Wanted(rows.nonzero().flatten())
    rows = (~held & ~columns).any(1)  # what is free in them does not lie in free columns
    if float(rows.float().mean() + columns.float().mean()) <= BLOCK_WORTH:
        return Wanted(rows.nonzero().flatten(), columns.nonzero().flatten())
    return None


class _SparingLinear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, rows, columns = inputs
        ctx.save_for_backward(x, weight, rows, columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, columns = ctx.saved_tensors
        of_x, of_weight, of_bias, _, _ = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient @ weight if of_x else None,
            Wanted(rows, columns).product(flat, x.reshape(-1, x.shape[-1])) if of_weight else None,
            flat.sum(0) if of_bias else None,
            None,
            None,
        )


class SparingSwitch:
    """Stands in for the ``forward`` of one dense layer of the backbone: the same, with a cheaper gradient.

    Where anything but plain training goes on (compiling, tracing, mixed precision, function transforms), and where it
    does not pay, the layer's own forward is called.

    Args:
        name: the layer's name in the backbone.
        module: the layer.
        wanted: what to compute, by names of layers.
    """

    def __init__(self, name: str, module: nn.Linear, wanted: Mapping[str, Wanted]) -> None:
        self._name = name
        self._module = module
        self._wanted = wanted

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether a module is one of torch's own dense layers, as torch made it."""
        own = isinstance(module._parameters.get("weight"), nn.Parameter)  # not computed from others
        return own and type(module) is nn.Linear and "forward" not in vars(module)

    def attach(self) -> None:
        """Put the switch in the place of the layer's forward."""
        vars(self._module)["forward"] = self.forward

    def detach(self) -> None:
        """Give the layer its own forward back."""
        del vars(self._module)["forward"]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        """Return what the layer gives."""
        return self.forward_of(self._module, input)

    def forward_of(self, module: nn.Module, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        """Return what the layer, or a twin of it with other parameters, gives."""
        assert isinstance(module, nn.Linear)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self._name not in self._wanted:
            return nn.Linear.forward(module, input)
        wanted, weight = self._wanted[self._name], module.weight
        plain = (
            weight.requires_grad
            and input.dim() >= 2
            and input.dtype == weight.dtype
            and not torch.is_autocast_enabled(input.device.type)
            and not torch._C._get_tracing_state()
            and not torch._C._are_functorch_transforms_active()
            and torch.autograd.forward_ad._current_level < 0
            and weight is wanted.weight
        )
        if not plain:
            return nn.Linear.forward(module, input)
        result: Tensor = _SparingLinear.apply(input, weight, module.bias, wanted.rows, wanted.columns)  # type: ignore[no-untyped-call]
        return result
