"""Registry of rules by the module type or function that they explain."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hatrack.errors import InputError
from hatrack.support.layers import overrides_forward
from hatrack.support.names import unknown_name
from hatrack.units.trace import Call, Labels, Rule, Trace

__all__ = [
    "TURNING",
    "RuleBook",
    "SamePath",
    "functions",
    "rule",
    "same_on_every_path",
    "takes_parameters",
    "takes_turned_parameters",
]

_RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for module types or functions.

    The decorated function gets the :class:`~hatrack.units.Trace` and the :class:`~hatrack.units.Call` and returns the
    labels of the call's result. A rule registered later replaces an earlier one for the same target.

    Args:
        *targets: subclasses of :class:`torch.nn.Module`, and functions that torch can intercept.

    Example:
        A module of your own that works on every unit by itself, and has no parameters::

            @hatrack.units.rule(MyActivation)
            def my_activation(trace, call):
                return trace.labels(call.args[0])
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            _RULES[target] = function
        return function

    return register


class SamePath:
    """Permission for a module to read values: the user vouches that it uses its layers alike for all values."""

    def __call__(self, trace: Trace, call: Call) -> Labels:
        """Fail: a module that is vouched for is followed like one without a rule."""
        raise AssertionError("a module that is vouched for is followed")


def same_on_every_path() -> Rule:
    """Vouch that a module computes in the same way for all values of its inputs, though it reads them.

    Such as a branch that both ways uses the same layers on the same units, or a loop whose length is a value.

    Example:
        >>> from hatrack import HATNetwork, units
        >>> class Checked(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, 8)
        ...     def forward(self, x):
        ...         if bool((x > 100).any()):
        ...             x = x / 100
        ...         return torch.relu(self.layer(x))
        >>> net = HATNetwork(Checked(), torch.zeros(1, 4), rules={Checked: units.same_on_every_path()})
    """
    return SamePath()


def functions(text: str) -> list[Any]:
    """Find every function of torch with one of these names, be it free, a method or functional.

    Args:
        text: the names, with spaces or line breaks between them.

    Raises:
        AttributeError: torch has no function of some name.
    """
    names = text.split()
    homes = (torch, torch.Tensor, nn.functional, torch.special)
    found = [getattr(home, name) for name in names for home in homes if hasattr(home, name)]
    found = [each.__get__ if inspect.isgetsetdescriptor(each) else each for each in found]  # such as Tensor.mT
    missing = [name for name in names if not any(hasattr(home, name) for home in homes)]
    if missing:
        raise AttributeError(f"torch has no function named {', '.join(missing)}")
    return found


_PRODUCTS = frozenset(
    [F.linear, torch.einsum, *functions("matmul mm bmm __matmul__ addmm baddbmm grouped_mm _grouped_mm")]
)
_TAKING = _PRODUCTS | {F.multi_head_attention_forward, F.conv1d, F.conv2d, F.conv3d, F.embedding, F.embedding_bag}

TURNING = frozenset(functions("t T mT transpose permute swapaxes swapdims movedim moveaxis adjoint"))
"""Functions that put axes in another order."""


def takes_parameters(function: Any) -> bool:
    """Return whether a function's rule treats parameters as weights; elsewhere their entries become units."""
    try:
        return function in _TAKING
    except TypeError:  # not hashable
        return False


def takes_turned_parameters(function: Any) -> bool:
    """Return whether a function's rule treats a parameter as a weight though its axes are in another order."""
    try:
        return function in _PRODUCTS
    except TypeError:  # not hashable
        return False


class RuleBook:
    """Rules for one model: those given for it, and the registered ones.

    Args:
        model: the model.
        given: rules for it alone, by a module's name, a module's type, or a function.

    Raises:
        InputError: a rule is given for a module that the model does not have, or is none.
    """

    def __init__(self, model: nn.Module, given: Mapping[Any, Rule]) -> None:
        modules = dict(model.named_modules())
        for target, own in given.items():
            if isinstance(target, str) and target not in modules:
                raise unknown_name("module", target, list(filter(None, modules)))
            if not callable(own):
                raise InputError(f"the rule for {target!r} must be a function, such as hatrack.units.shared_layer()")
        self._rules = {**_RULES, **given}
        self._of_module = {id(modules[target]): own for target, own in given.items() if isinstance(target, str)}

    def vouches_for(self, module: nn.Module) -> bool:
        """Return whether the user vouches for a module, by its name, its type, or a base class."""
        by_name = self._of_module.get(id(module))
        kinds = [self._rules.get(kind) for kind in type(module).__mro__]
        return any(isinstance(rule, SamePath) for rule in (by_name, *kinds))

    def for_module(self, module: nn.Module) -> Rule | None:
        """Return the rule for a module, by its name, its type or the nearest base class; None if there is none."""
        by_name = self._of_module.get(id(module))
        kinds = type(module).__mro__
        rule = by_name or next(
            (self._rules[kind] for kind in kinds if kind in self._rules and not _computes_otherwise(module, kind)),
            None,
        )
        return None if isinstance(rule, SamePath) else rule

    def for_function(self, function: Any) -> Rule | None:
        """Return the rule for a function; None if there is none."""
        try:
            return self._rules.get(function)
        except TypeError:  # not hashable: certainly not registered
            return None

    def is_registered(self, function: Any) -> bool:
        """Return whether the rule for a function is none that was given for this model alone."""
        rule = self.for_function(function)
        return rule is not None and rule is _RULES.get(function)


def _computes_otherwise(module: nn.Module, kind: Any) -> bool:
    """Return whether a module derives from a layer of torch, but computes in a way of its own.

    Batch norms are left to their rule: every task has a copy of all that is in them.
    """
    of_torch = kind.__module__.startswith("torch.") and not issubclass(kind, _BatchNorm)
    return of_torch and overrides_forward(module, kind)
