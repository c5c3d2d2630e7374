"""Values that differ from input to input during a run, and the operations that depend on them.

Only computations of the example are seen. What other values would make of them must therefore be known by other means:
a row that is chosen by an index may be any row; a number that leaves the tensors may lead anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "READING",
    "READING_SETTINGS",
    "Memory",
    "checks_values",
    "chosen_axes",
    "reads_values",
    "tensors_in",
    "written_by",
]

READING = frozenset(
    [
        *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__", "item", "tolist", "numpy"),
        *("__array__", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "equal", "allclose"),
        *("is_nonzero", "__repr__", "__format__", "__dlpack__", "storage", "untyped_storage"),
    ]
)
"""Names of functions that read values into Python, or into a shape: what is computed then depends on them."""

READING_SETTINGS = frozenset(["tensor_split", "_pack_padded_sequence"])
"""Names of functions that read values of their settings alone, past all operations that could be seen."""

_CHECKING = frozenset(["inverse", "cholesky", "pinverse", "logdet", "slogdet", "det", "embedding_bag"])
"""Names of functions that read values only to say that they do not fit, beside those of ``torch.linalg``."""

_TAGS = frozenset([torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape])


def reads_values(operation: Any) -> bool:
    """Return whether an operation of torch's lowest level reads values into a number or a shape.

    So does whatever takes a number and is given a tensor: a slice, a start, a shift, a size.
    """
    name = operation.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_"):
        return False  # by masks alone, which are looked for where they are used
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
    for position, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in(args[position] if position < len(args) else kwargs.get(argument.name))


class Memory:
    """A set of tensors by the memory that they lie in, so that all views of one are in it, too."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}  # kept, so that nothing else gets their memory, or their identity

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Remember tensors, and all that share their memory."""
        self._kept.update({_memory(tensor): tensor for tensor in tensors})

    def __contains__(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self._kept


def _memory(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        try:
            return int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # a sparse tensor has none
            return id(tensor)


def chosen_axes(index: Any, dimensions: int) -> Iterator[tuple[Tensor, range]]:
    """Yield the tensors of integers in an index, each with the axes of the indexed value that it chooses from.

    Args:
        index: what stands between the brackets.
        dimensions: the number of the value's axes.

    Yields:
        A tensor and the one axis that it is for; or all axes, where the index has a part that is not understood.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    widths = [0 if part is Ellipsis else _axes_taken(part) for part in parts]
    if None in widths:
        yield from ((tensor, range(dimensions)) for tensor in tensors_in(parts))
        return
    axis, left = 0, dimensions - sum(width or 0 for width in widths)
    for part, width in zip(parts, widths, strict=True):
        if isinstance(part, Tensor) and not _is_mask(part):
            yield part, range(axis, axis + 1)
        axis += left if part is Ellipsis else width or 0


def _axes_taken(part: Any) -> int | None:
    """Return the number of axes that a part of an index is for; None if that is not known."""
    if part is None or isinstance(part, bool):
        return 0
    if isinstance(part, Tensor):
        return part.dim() if _is_mask(part) else 1
    if isinstance(part, list) and not list(tensors_in(part)) and part:
        return _axes_taken(torch.tensor(part))
    return 1 if isinstance(part, (int, slice)) else None


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from tensors_in(branch)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))
