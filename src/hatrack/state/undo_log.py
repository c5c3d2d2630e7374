"""Undo log: record of changes in place, which are undone in reverse order."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["UndoLog"]


class UndoLog:
    """Record of changes of parameters, attributes and tables in place, by which all of them are undone."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set_data(self, parameter: Tensor, data: Tensor) -> None:
        """Give a parameter other values, of any shape; it stays the same object, so that optimizers keep it.

        Args:
            parameter: the parameter.
            data: its new values.
        """
        before, gradient = parameter.data, parameter.grad
        _replace(parameter, data)

        def undo() -> None:
            _replace(parameter, before)
            parameter.grad = gradient

        self._undo.append(undo)

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, such as ``in_features`` or a buffer.

        Args:
            owner: the object.
            name: name of the attribute, which exists.
            value: its new value.
        """
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def set_item(self, table: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Replace an entry of a table.

        Args:
            table: the table.
            key: key of the entry, which exists.
            value: its new value.
        """
        before = table[key]
        table[key] = value
        self._undo.append(lambda: table.__setitem__(key, before))

    def undo(self) -> None:
        """Undo all changes, the last one first."""
        while self._undo:
            self._undo.pop()()


def _replace(parameter: Tensor, data: Tensor) -> None:
    parameter.grad = None
    # A graph that is still referenced (by a loss, say) keeps the node that collects the gradient, with the old shape.
    # A change of the type makes torch drop that node.
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data
