"""Units that untrained parameters make: no task gates them, and whoever reads them reads what they always were.

Gates of a task would destroy the features of a pretrained part, and give nothing in return, since nothing in it is
learned. Therefore

- what an untrained matrix computes belongs to no unit: outputs of a dense layer with an untrained weight, say, whether
  or not its bias is trained, and columns of an untrained table;
- so do all units that meet it in a sum, as in LoRA: ``W x + B A x`` is read as a whole;
- nothing has to be known of operations on such values: no rule has to explain them;
- an untrained parameter that is used by itself, such as a table of positions, is a constant, as a buffer would be: it
  belongs to the units that it meets, and to none where it meets no trained ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hatrack.units.coupling import UNGATED, Producer
from hatrack.units.graph import Role, UnitGraph
from hatrack.units.trace import Trace

__all__ = ["warn_of_nothing_to_learn", "with_untrained_ungated"]

_WITHIN = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers with units inside, which have the names of weights or of parts of theirs."""

_ALL = slice(None)


def with_untrained_ungated(trace: Trace, model: nn.Module, untrained: Collection[str]) -> Trace:
    """Return findings in which units that untrained parameters make belong to no unit.

    Args:
        trace: findings of runs; they stay as they are.
        model: the network.
        untrained: names of its untrained parameters; with none the same findings are returned.

    Raises:
        UnsupportedError: an operation that no rule explains was given a unit.
    """
    if not untrained:
        return trace
    found, makers = trace.without_values(), _Makers(trace, model, frozenset(untrained))
    coupling = found.coupling
    constants = [_labels(each) for each in coupling.producers if makers.is_constant(each)]
    others = [_labels(each) for each in coupling.producers if not makers.is_constant(each)]
    ungated = [_labels(each) for each in coupling.producers if makers.is_untrained(each)]
    weights = torch.cat([torch.tensor([UNGATED]), *(labels.flatten() for labels in trace.weights)])
    for labels in constants:  # a weight that is computed from an untrained parameter, such as W + B A
        ungated.append(labels[torch.isin(coupling.roots(labels), coupling.roots(weights))])
    for labels in ungated:
        coupling.pin(coupling.roots(labels))
    met = coupling.roots(torch.cat([torch.tensor([UNGATED]), *others]))
    for labels in constants:
        roots = coupling.roots(labels)
        coupling.pin(roots[~torch.isin(roots, met)])
    for given, refusal in found.deferred:
        if bool(coupling.roots(given).any()):
            raise refusal
    return found


def _labels(producer: Producer) -> Tensor:
    return torch.arange(producer.start, producer.start + producer.count)


class _Makers:
    """Parameters that make the units of layers.

    Args:
        trace: findings of runs.
        model: the network.
        untrained: names of its untrained parameters.
    """

    def __init__(self, trace: Trace, model: nn.Module, untrained: Collection[str]) -> None:
        self._untrained = untrained
        self._modules = dict(model.named_modules())
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._axes = {name: parameter.dim() for name, parameter in model.named_parameters()}
        self._by_themselves = {int(labels.flatten()[0]) for labels in trace.by_themselves.values()}
        self._unexplained = {int(label) for label in trace.unexplained}
        self._uses: dict[str, list[tuple[Tensor, ...]]] = {}
        for use in trace.uses:
            self._uses.setdefault(use.parameter, []).append(use.sides)

    def is_constant(self, producer: Producer) -> bool:
        """Return whether labels are those of an untrained parameter that is used by itself."""
        return producer.start in self._by_themselves and producer.name in self._untrained

    def is_untrained(self, producer: Producer) -> bool:
        """Return whether an untrained matrix makes the units of a layer.

        Where no use of a parameter says which of a module's parameters make them, all its matrices must be untrained.
        """
        if producer.start in self._by_themselves:
            return False
        if producer.start in self._unexplained:
            return True
        module, around = self._modules.get(producer.name), self._modules.get(producer.name.rpartition(".")[0])
        if module is None and isinstance(around, _WITHIN):
            own, holder = self._of(around), around
            makers = {name for name in own if self._makes(name, producer, slice(1))}  # rows are what it writes
            makers = {name for name in makers if not name.endswith(("bias_k", "bias_v"))}  # which have three axes
        elif module is None:  # a function with this weight, or the input
            return producer.name in self._untrained
        else:
            own, holder = self._of(module), module
            makers = {name for name in own if self._makes(name, producer)}
        if parametrize.is_parametrized(holder):
            makers |= self._of(holder.get_submodule("parametrizations"))
        judge = any if makers else all
        matrices = [name for name in makers or own if self._axes[name] > 1] or [*(makers or own)]
        return bool(matrices) and judge(name in self._untrained for name in matrices)

    def _of(self, module: nn.Module) -> set[str]:
        """Return the network's names of a module's parameters, which may be another module's too."""
        return {self._names[id(parameter)] for parameter in module.parameters()}

    def _makes(self, name: str, producer: Producer, ends: slice = _ALL) -> bool:
        """Return whether one of a parameter's ends, of those that are asked for, is at units of a producer."""
        first, behind = producer.start, producer.start + producer.count
        sides = (side for use in self._uses.get(name, ()) for side in use[ends])
        return any(bool(((side >= first) & (side < behind)).any()) for side in sides)


def warn_of_nothing_to_learn(graph: UnitGraph) -> None:
    """Warn of a network in which all that is trained belongs to no unit, so that the first task freezes all of it."""
    roles = [role for role in graph.roles.values() if role is not Role.PER_TASK]
    whole = [name for name, role in graph.roles.items() if role is Role.WHOLE]
    if Role.UNTRAINED in roles and whole and all(role in (Role.WHOLE, Role.UNTRAINED) for role in roles):
        named = ", ".join(whole[:3]) + (f" and {len(whole) - 3} more" if len(whole) > 3 else "")
        warnings.warn(
            f"the first task freezes all that is trained of the backbone ({named}), since it acts on what untrained "
            "parameters compute, which no task gates: later tasks learn nothing but their heads. Add layers with units "
            "of their own, such as adapters or LoRA, or give every task its own biases, scales and prompts with a "
            "WeightMaskedNetwork",
            stacklevel=5,
        )
