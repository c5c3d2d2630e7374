"""Twins of networks, which compute with other parameters and leave the original alone."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

__all__ = ["twin"]

_OF_TORCH = frozenset(vars(nn.Module()))


def twin(network: nn.Module, values: Mapping[int, Tensor], norms: Mapping[int, nn.Module]) -> nn.Module:
    """Make a network of the same modules that computes with other parameters.

    Every module gets a shallow twin: an object of its class with its attributes, buffers, hooks and mode, and with
    other parameters and parts. The original is neither changed nor called, so that several threads can each run a twin
    of one network, and what is recomputed in a backward pass is computed as it was in the forward pass. Making one
    costs some microseconds per module.

    Args:
        network: the original.
        values: replacements of parameters and buffers, by the identity of the original; others stay.
        norms: replacements of modules, by the identity of the original: their parameters, buffers and settings are
            used, with the original's hooks.

    Returns:
        The twin. Containers of modules, parameters and bound methods among its attributes refer to twins, too;
        functions and other objects refer to the original.
    """
    made: dict[int, nn.Module] = {}
    root = _twin_of(network, values, norms, made)
    for original, other in [(part, made[id(part)]) for part in network.modules() if id(part) in made]:
        for name, value in vars(original).items():
            if name not in _OF_TORCH and vars(other).get(name) is value:
                vars(other)[name] = _about(value, made, values)
    return root


def _twin_of(
    original: nn.Module, values: Mapping[int, Tensor], norms: Mapping[int, nn.Module], made: dict[int, nn.Module]
) -> nn.Module:
    """Make the twin of a module and of its parts, or return the one that was made.

    It is no function within a function: one that calls itself refers to itself, so that its twins and their tensors
    would stay in memory until Python collects cycles.

    Args:
        original: the module.
        values: replacements of parameters and buffers, by the identity of the original.
        norms: replacements of modules, by the identity of the original.
        made: the twins so far, by the identity of the original; this one and those of its parts are added.
    """
    if id(original) in made:
        return made[id(original)]
    other: nn.Module = object.__new__(type(original))
    made[id(original)] = other
    attributes = vars(other)
    attributes.update(vars(original))
    attributes.pop("_compiled_call_impl", None)  # which would call the original
    if id(original) in norms:
        attributes.update({k: v for k, v in vars(norms[id(original)]).items() if "hooks" not in k})
    for table in ("_parameters", "_buffers"):
        attributes[table] = {
            name: value if value is None else values.get(id(value), value) for name, value in attributes[table].items()
        }
    stand_in = getattr(attributes.get("forward"), "__self__", None)
    forward_of = getattr(stand_in, "forward_of", None)
    if forward_of is not None:  # it computes with the module's own parameters
        attributes["forward"] = partial(forward_of, other)
    attributes["_modules"] = {
        name: part if part is None else _twin_of(part, values, norms, made)
        for name, part in attributes["_modules"].items()
    }
    if isinstance(original, nn.RNNBase):  # it reads its weights from a list
        attributes["_flat_weights"] = [attributes["_parameters"][name] for name in original._flat_weights_names]
        # Else torch would note the change, and on a GPU move these tensors, among them the original's, elsewhere.
        attributes["_flat_weight_refs"] = [None] * len(attributes["_flat_weights"])
    return other


def _about(value: Any, made: Mapping[int, nn.Module], values: Mapping[int, Tensor]) -> Any:
    """Return an attribute for a twin, in which containers and methods refer to twins where these exist.

    Args:
        value: the attribute of the original.
        made: the twins, by the identity of the original.
        values: replacements of parameters and buffers, likewise.
    """
    if isinstance(value, nn.Module):
        return made.get(id(value), value)
    if isinstance(value, Tensor):
        return values.get(id(value), value)
    if isinstance(value, MethodType):
        owner = made.get(id(value.__self__))
        return value if owner is None else MethodType(value.__func__, owner)
    if isinstance(value, partial):
        keywords = {key: _about(part, made, values) for key, part in value.keywords.items()}
        return partial(
            _about(value.func, made, values), *(_about(part, made, values) for part in value.args), **keywords
        )
    if not isinstance(value, (list, tuple, dict, deque, set, frozenset)):
        return value
    items = value.values() if isinstance(value, dict) else value
    others = [_about(item, made, values) for item in items]
    if all(one is other for one, other in zip(items, others, strict=True)):
        return value  # which a forward pass may write to
    return _like(value, others)


def _like(container: Any, items: list[Any]) -> Any:
    """Return a container of the same kind with other items, in its order."""
    if isinstance(container, dict):
        copied = copy.copy(container)  # of a class of one's own, with its default
        copied.update(zip(container, items, strict=True))
        return copied
    if isinstance(container, tuple) and hasattr(container, "_make"):
        return container._make(items)
    return deque(items, container.maxlen) if type(container) is deque else type(container)(items)
