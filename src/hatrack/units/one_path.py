"""The one path of a labelled run: what is computed must not depend on values that it sees by chance.

Values of an input, of a unit or of a buffer that moves are others at other times. Where one of them is read into Python
or into a shape, other computations may follow, which the run has not seen. Truth values that depend on the input alone
are decisions, which are followed both ways; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import UnsupportedError
from hatrack.support.inputs import tensors_in
from hatrack.units.decisions import Decisions, reads_truth
from hatrack.units.functions import function_name
from hatrack.units.rules import RuleBook
from hatrack.units.trace import Call, Trace
from hatrack.units.values import READING, READING_SETTINGS, Memory, checks_values, chosen_axes, reads_values

__all__ = ["OnePath"]

PATH_OF_VALUES = (
    "which computations follow would depend on values of the input or of units, or of a buffer that moves, and only "
    "those of the example were seen; choose with torch.where or masks, or vouch that every path uses the same layers "
    "in the same way: "
)


class OnePath:
    """Record of the values that vary, and judge of the calls that read them.

    Args:
        model: the network.
        inside: names and modules without a rule that are being called, innermost last; the run keeps the list.
        trace: the labels of all values.
        rules: say which modules are vouched for.
        decisions: outcomes of the truth values that are read of the input.
    """

    def __init__(
        self,
        model: nn.Module,
        inside: Sequence[tuple[str, nn.Module]],
        trace: Trace,
        rules: RuleBook,
        decisions: Decisions,
    ) -> None:
        self._model, self._inside, self._trace, self._rules, self._decisions = model, inside, trace, rules, decisions
        self._variable = trace.variable
        self._of_weights = Memory()  # what depends on weights, or on state that moves, and not on the input alone
        self._is_deciding = False

    def follow(self, value: Any, of_weights: bool = True) -> None:
        """Record that tensors have other values for other inputs, and whether for other weights, too."""
        tensors = list(tensors_in(value))
        self._variable.add(tensors)
        if of_weights:
            self._of_weights.add(tensors)

    def depends_on_weights(self, value: Tensor) -> bool:
        """Return whether a tensor has other values for other weights, such as those of a unit."""
        return self._trace.is_gated(value) or value in self._of_weights

    def is_variable(self, value: Tensor) -> bool:
        """Return whether a tensor has other values for other inputs, or for other weights."""
        return self._trace.is_gated(value) or value in self._variable

    def why_not_computed(
        self, operation: Any, values: list[Tensor], caller: tuple[Any, tuple[Any, ...], dict[str, Any]] | None
    ) -> UnsupportedError | None:
        """Return the refusal of an operation of torch's lowest level if it reads values and must not; else None.

        Args:
            operation: the operation.
            values: its arguments that are tensors.
            caller: the function that computes it, with its arguments; None where there is none.
        """
        if self._is_deciding or not reads_values(operation) or not any(map(self.is_variable, values)):
            return None
        if self._is_vouched():
            return None
        func, args, kwargs = (operation, tuple(values), {}) if caller is None else caller
        name = str(operation) if caller is None else function_name(func)
        if checks_values(name, args, kwargs):
            return None
        if name.rpartition(".")[2] in ("__getitem__", "__setitem__") and len(args) > 1:
            rows = [index for index, _ in chosen_axes(args[1], args[0].dim())]
            if any(value is index for value in values for index in rows):
                return None  # any row may be chosen, which has a rule
        return self._refused(Call(func, name, args, kwargs, None))

    def why_not_called(self, call: Call) -> UnsupportedError | None:
        """Return the refusal of a function that reads values, outside of modules that are vouched for; else None.

        Args:
            call: the call of the function, before it is made.
        """
        own, args, kwargs = call.name.rpartition(".")[2], call.args, call.kwargs
        tensors: list[Tensor] = []
        if own in READING or (own == "where" and len(args) + len(kwargs) == 1):
            tensors = list(tensors_in((args, kwargs)))
        elif own == "__getitem__" and len(args) > 1:
            tensors = [index for index in tensors_in(args[1:]) if index.dtype in (torch.bool, torch.uint8)]
        elif own in READING_SETTINGS:
            tensors = list(tensors_in((args[1:], {key: value for key, value in kwargs.items() if key != "input"})))
        return self._refused(call) if any(map(self.is_variable, tensors)) and not self._is_vouched() else None

    def may_decide(self, call: Call) -> bool:
        """Return whether a function reads a truth value that depends on the input, and on nothing else."""
        return (
            reads_truth(call.name.rpartition(".")[2], call.args)
            and self.is_variable(call.args[0])
            and not self.depends_on_weights(call.args[0])
            and not self._is_vouched()
        )

    def decide(self, call: Call) -> bool:
        """Return the outcome of a decision in this run."""
        self._is_deciding = True
        try:
            natural = bool(call.target(*call.args, **call.kwargs))
        finally:
            self._is_deciding = False
        return self._decisions.take(natural, self._refused(call))

    def _is_vouched(self) -> bool:
        return any(map(self._rules.vouches_for, [self._model, *(module for _, module in self._inside)]))

    def _refused(self, call: Call) -> UnsupportedError:
        name, module = self._inside[-1] if self._inside else ("", self._model)
        target = repr(name) if name else type(module).__name__
        remedy = f"rules={{{target}: hatrack.units.same_on_every_path()}}"
        return self._trace.refuse(call, f"{PATH_OF_VALUES}{remedy}")
