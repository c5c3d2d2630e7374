"""Inputs of networks: one tensor, or tensors nested in tuples, lists and dictionaries, beside constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatrack.errors import InputError

__all__ = [
    "Inputs",
    "Kind",
    "Nested",
    "TensorKind",
    "are_alike",
    "constants_in",
    "detached",
    "device_of",
    "has_shape",
    "is_numbers",
    "is_usual",
    "kind_from_json",
    "kind_of",
    "kind_to_json",
    "map_tensors",
    "outside_inference",
    "require_dense",
    "tensor_kinds",
    "tensor_of",
    "tensors_in",
]

Inputs = Any
"""Input of a backbone: a tensor, its only argument; a tuple, its positional arguments; or a mapping, its keyword
arguments. Values may be nested in tuples, lists and mappings, and be None, numbers, truth values or texts besides."""

_CONSTANTS = (bool, int, float, str, type(None))

_LEAVES = frozenset([*_CONSTANTS, slice, torch.dtype, torch.device])
"""Types that hold no tensors and are common: to ask whether they are mappings takes longer than all else."""


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Return the tensors in nested tuples, lists and mappings."""
    found: list[Tensor] = []
    _collect(tree, found)
    return iter(found)


def _collect(tree: Any, found: list[Tensor]) -> None:
    """Append the tensors among nested values to a list; nested generators would take several times as long."""
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            _collect(branch, found)
    elif isinstance(tree, dict) or (type(tree) not in _LEAVES and isinstance(tree, Mapping)):
        for branch in list(tree.values()):
            _collect(branch, found)


def map_tensors(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return a copy of nested tuples, lists and mappings with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(change, branch) for key, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        branches = [map_tensors(change, branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return tree


def constants_in(tree: Any, path: str = "") -> dict[str, Any]:
    """Return what among nested inputs is no tensor, by its place: ``flag``, or ``options.0``.

    Args:
        tree: the inputs.
        path: place of the inputs in others.
    """
    if isinstance(tree, Tensor):
        return {}
    if isinstance(tree, Mapping):
        branches = [(str(key), branch) for key, branch in tree.items()]
    elif isinstance(tree, (tuple, list)):
        branches = [(str(index), branch) for index, branch in enumerate(tree)]
    else:
        return {path: tree}
    found = [constants_in(branch, f"{path}.{key}" if path else key) for key, branch in branches]
    return {place: value for each in found for place, value in each.items()}


def outside_inference(tensor: Tensor) -> Tensor:
    """Return a tensor that gradients can be computed with: one that was made in inference mode is copied.

    Args:
        tensor: the tensor; called outside of inference mode.
    """
    return tensor.clone() if tensor.is_inference() else tensor


def require_dense(tensor: Tensor) -> None:
    """Check that a tensor has a value at every place of one shape.

    Raises:
        InputError: it is sparse, or of samples of several shapes.
    """
    if tensor.is_nested:
        raise InputError(
            "nested tensors (torch.nested) hold samples of several shapes, of which units cannot be followed: pad "
            "them, torch.nested.to_padded_tensor(x, 0.0), and give a mask beside them"
        )
    if tensor.layout is not torch.strided:
        raise InputError(f"inputs must be dense, and one has the layout {tensor.layout}: give x.to_dense()")


def is_numbers(inputs: Inputs) -> bool:
    """Return whether inputs are one tensor of real numbers, or of bytes, which are amounts and no names of tokens."""
    return isinstance(inputs, Tensor) and (inputs.is_floating_point() or inputs.dtype in (torch.uint8, torch.bool))


def device_of(tree: Any) -> torch.device:
    """Return the device of the first tensor; the CPU where there is none."""
    return next((tensor.device for tensor in tensors_in(tree)), torch.device("cpu"))


def tensor_of(outputs: Any) -> Tensor:
    """Return outputs as one tensor: as they are if they are one, or all their numbers side by side.

    Args:
        outputs: a tensor, or nested tensors with one row per sample.

    Returns:
        The tensor, or ``(N, numbers per sample)``; ``(1, all numbers)`` where first axes differ.
    """
    if isinstance(outputs, Tensor):
        return outputs
    parts = [part for part in tensors_in(outputs) if not part.is_complex()]
    if not parts:
        return torch.zeros(1, 0)
    rows = {part.shape[0] if part.dim() else None for part in parts}
    count = rows.pop() if len(rows) == 1 else None
    widest = max((part.dtype for part in parts), key=lambda dtype: (dtype.is_floating_point, dtype.itemsize))
    return torch.cat([part.reshape(1 if count is None else count, -1).to(widest) for part in parts], dim=1)


# ---------------------------------------------------------------------------------------------------------------- kinds


@dataclass(frozen=True)
class TensorKind:
    """Kind of a tensor among the inputs: all of it that a network may choose its path by, except values and samples.

    Attributes:
        shape: shape of one sample.
        dtype: type, by its name in torch.
        contiguous: whether it lies in memory in the order of its axes.
        differentiable: whether gradients with respect to it are asked for.
        batched: whether it has an axis that counts samples.
    """

    shape: tuple[int, ...]
    dtype: str
    contiguous: bool = True
    differentiable: bool = False
    batched: bool = True

    @classmethod
    def of(cls, tensor: Tensor, batch_axis: int = 0) -> TensorKind:
        """Return the kind of a tensor.

        Args:
            tensor: the tensor.
            batch_axis: its axis that counts samples; a tensor without axes has none.
        """
        batched = tensor.dim() > 0
        shape = (*tensor.shape[:batch_axis], *tensor.shape[batch_axis + 1 :]) if batched else ()
        name = str(tensor.dtype).partition(".")[2]
        return cls(tuple(shape), name, tensor.is_contiguous(), tensor.requires_grad, batched)

    def zeros(self, samples: int, batch_axis: int, device: torch.device | None) -> Tensor:
        """Return a tensor of zeros of this kind, without a demand for gradients."""
        size = (*self.shape[:batch_axis], samples, *self.shape[batch_axis:]) if self.batched else self.shape
        zeros = torch.zeros(size if self.contiguous else size[::-1], dtype=getattr(torch, self.dtype), device=device)
        return zeros if self.contiguous else zeros.permute(*reversed(range(len(size))))


@dataclass(frozen=True)
class Nested:
    """Kind of a tuple, list or mapping among the inputs.

    Attributes:
        container: name of the container: ``"tuple"``, ``"list"`` or ``"dict"``.
        keys: keys of a mapping; empty otherwise.
        parts: kinds of what it holds.
    """

    container: str
    keys: tuple[str, ...]
    parts: tuple[Kind, ...]


Kind = TensorKind | Nested | bool | int | float | str | None
"""Kind of inputs: of tensors, of nested ones, and constants themselves."""


def kind_of(inputs: Inputs, batch_axis: int = 0) -> Kind:
    """Return the kind of inputs.

    Raises:
        InputError: there is something among them that is neither a tensor nor a constant, or a container of a type of
            its own, which files could not make again.
    """
    if isinstance(inputs, Tensor):
        return TensorKind.of(inputs, batch_axis)
    if type(inputs) is dict:
        parts = tuple(kind_of(part, batch_axis) for part in inputs.values())
        return Nested("dict", tuple(map(str, inputs)), parts)
    if type(inputs) in (tuple, list):
        container = "list" if isinstance(inputs, list) else "tuple"
        return Nested(container, (), tuple(kind_of(part, batch_axis) for part in inputs))
    if isinstance(inputs, _CONSTANTS):
        return inputs
    if isinstance(inputs, (Mapping, tuple, list)):
        raise InputError(
            f"a {type(inputs).__name__} among the inputs could not be made again: give plain tuples, lists and "
            "dictionaries, and build it inside the backbone"
        )
    raise InputError(
        f"a {type(inputs).__name__} among the inputs is neither a tensor nor None, a number, a truth value or a text; "
        "make a tensor of it, or keep it in the backbone"
    )


def kind_to_json(kind: Kind) -> Any:
    """Convert a kind to JSON values."""
    if isinstance(kind, TensorKind):
        odd = {"contiguous": True, "differentiable": False, "batched": True}
        said = {name: getattr(kind, name) for name, usual in odd.items() if getattr(kind, name) != usual}
        return {"tensor": {"shape": list(kind.shape), "dtype": kind.dtype, **said}}
    if isinstance(kind, Nested):
        parts = [kind_to_json(part) for part in kind.parts]
        return {kind.container: [list(pair) for pair in zip(kind.keys, parts, strict=True)] if kind.keys else parts}
    return kind


def kind_from_json(described: Any) -> Kind:
    """Make the kind that :func:`kind_to_json` described."""
    if not isinstance(described, Mapping):
        constant: Kind = described
        return constant
    [(container, content)] = described.items()
    if container == "tensor":
        return TensorKind(**{**content, "shape": tuple(content["shape"])})
    if container == "dict":
        keys, parts = tuple(key for key, _ in content), [part for _, part in content]
    else:
        keys, parts = (), content
    return Nested(container, keys, tuple(map(kind_from_json, parts)))


def are_alike(one: Kind, other: Kind) -> bool:
    """Return whether inputs have the same structure, shapes, types and constants."""
    if isinstance(one, Nested) and isinstance(other, Nested):
        same = (one.container, one.keys, len(one.parts)) == (other.container, other.keys, len(other.parts))
        return same and all(map(are_alike, one.parts, other.parts))
    if isinstance(one, TensorKind) and isinstance(other, TensorKind):
        return (one.shape, one.dtype, one.batched) == (other.shape, other.dtype, other.batched)
    return type(one) is type(other) and one == other


def is_usual(kind: Kind) -> bool:
    """Return whether all tensors lie in memory in the order of their axes."""
    if isinstance(kind, Nested):
        return all(map(is_usual, kind.parts))
    return not isinstance(kind, TensorKind) or kind.contiguous


def detached(inputs: Inputs, kind: Kind) -> Inputs:
    """Return a batch apart from the graph that it was computed in, with the demands for gradients of a kind.

    Args:
        inputs: the batch.
        kind: kind of a batch of the same structure.
    """
    kinds = iter(list(tensor_kinds(kind)))
    return map_tensors(lambda tensor: tensor.detach().requires_grad_(next(kinds).differentiable), inputs)


def tensor_kinds(kind: Kind) -> Iterator[TensorKind]:
    """Yield the kinds of the tensors among inputs, in their order."""
    if isinstance(kind, TensorKind):
        yield kind
    elif isinstance(kind, Nested):
        for part in kind.parts:
            yield from tensor_kinds(part)


def has_shape(kind: Kind, batch: str = "N") -> str:
    """Return how a message names inputs of a kind: their shapes, with a text for the number of samples."""
    if isinstance(kind, TensorKind):
        return f"({', '.join(map(str, (batch,) * kind.batched + kind.shape))})"
    if isinstance(kind, Nested):
        parts = [has_shape(part, batch) for part in kind.parts]
        named = (f"{key}: {part}" for key, part in zip(kind.keys, parts, strict=True))
        return ", ".join(named if kind.keys else parts)
    return repr(kind)
