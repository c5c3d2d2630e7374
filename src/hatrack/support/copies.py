"""Quick deep copies of modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

__all__ = ["deep_copy"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_CONTAINERS = frozenset([dict, OrderedDict, list, set])


def deep_copy(module: ModuleT, shared: Mapping[int, Any] | None = None) -> ModuleT:
    """Copy a module as :func:`copy.deepcopy` does, in about two thirds of the time.

    Torch gives every module a dozen tables of hooks, nearly all of them empty, and copying these takes as long as all
    the rest. Each gets an empty one in its place beforehand.

    Args:
        module: the module.
        shared: objects to be used in the place of copies, by the identity of the original; None for none.
    """
    attributes = (value for part in module.modules() for value in vars(part).values())
    empty = {id(value): type(value)() for value in attributes if type(value) in _CONTAINERS and not value}
    return copy.deepcopy(module, {**empty, **(shared or {})})
