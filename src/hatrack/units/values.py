"""Values that differ from input to input during a run, and the operations that depend on them.

Only computations of the example are seen. Other values may lead elsewhere: a row that is chosen by an index may be any
row, and after a value is read into Python anything may follow.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hatrack.state.tryouts import storage_of
from hatrack.support.inputs import tensors_in
from hatrack.support.names import words

__all__ = [
    "READING",
    "READING_SETTINGS",
    "Memory",
    "checks_values",
    "chosen_axes",
    "reads_values",
    "written_by",
]

READING = words(
    """
    __bool__ __float__ __int__ __index__ __complex__ __contains__ __array__ __repr__ __format__ __dlpack__ item tolist
    numpy nonzero argwhere masked_select unique unique_consecutive equal allclose is_nonzero storage untyped_storage
    """
)
"""Names of functions that read values into Python, or into a shape: later computations depend on them."""

READING_SETTINGS = frozenset(["tensor_split", "_pack_padded_sequence"])
"""Names of functions that read values of their settings alone, and call no operation that could be seen."""

_CHECKING = words("inverse cholesky pinverse logdet slogdet det embedding_bag")
"""Names of functions that read values only to refuse wrong ones, beside those of ``torch.linalg``."""

_TAGS = frozenset([torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape])


def reads_values(operation: Any) -> bool:
    """Return whether an operation of torch's lowest level reads values into a number or a shape.

    An operation that takes a number and is given a tensor reads it, too: a slice, a start, a shift, a size.
    """
    name = operation.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_"):
        return False  # only masks are read, which are found where they are used
    return name == "equal" or not _TAGS.isdisjoint(operation.tags)


def checks_values(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a function reads values only to check them, and computes the same whatever they are.

    Args:
        name: the function's full name in torch.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    own = name.rpartition(".")[2]
    if own == "one_hot":
        return bool((args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) >= 0)  # else it counts them
    return own in _CHECKING or own.startswith("linalg_") or name.startswith("torch.linalg.")


def written_by(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation of torch's lowest level writes to in place, ``out=`` included."""
    if not operation._schema.is_mutable:
        return
    for position, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in(args[position] if position < len(args) else kwargs.get(argument.name))


class Memory:
    """Set of tensors by their memory, so that all views of a member belong to it, too; it keeps none of them alive."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors, and all that share their memory."""
        for tensor in tensors:
            storage = storage_of(tensor)
            self._known[id(storage)] = weakref.ref(storage)

    def __contains__(self, tensor: Tensor) -> bool:
        storage = storage_of(tensor)
        known = self._known.get(id(storage))
        return known is not None and known() is storage  # and no other one that has got its identity


def chosen_axes(index: Any, dimensions: int) -> Iterator[tuple[Tensor, range]]:
    """Yield the tensors of integers in an index, each with the axes of the indexed value that it chooses from.

    Args:
        index: the index between the brackets.
        dimensions: number of axes of the value.

    Yields:
        A tensor and the axis that it indexes; all axes, where a part of the index is not understood.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    widths = [0 if part is Ellipsis else _axes_covered(part) for part in parts]
    if None in widths:
        yield from ((tensor, range(dimensions)) for tensor in tensors_in(parts))
        return
    axis, left = 0, dimensions - sum(width or 0 for width in widths)
    for part, width in zip(parts, widths, strict=True):
        if isinstance(part, Tensor) and not _is_mask(part):
            yield part, range(axis, axis + 1)
        axis += left if part is Ellipsis else width or 0


def _axes_covered(part: Any) -> int | None:
    """Return the number of axes that a part of an index covers; None if that is not known."""
    if part is None or isinstance(part, bool):
        return 0
    if isinstance(part, Tensor):
        return part.dim() if _is_mask(part) else 1
    if isinstance(part, list) and not list(tensors_in(part)) and part:
        return _axes_covered(torch.tensor(part))
    return 1 if isinstance(part, (int, slice)) else None


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)
