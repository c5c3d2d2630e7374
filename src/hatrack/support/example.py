"""Example of a backbone's input, from which batches to try it with are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hatrack.support.inputs import Inputs, Kind, Nested, TensorKind, kind_from_json, kind_of, kind_to_json
from hatrack.support.interface import Interface

__all__ = ["Example", "is_mask"]

_Path = tuple[str | int, ...]


def is_mask(tensor: Tensor) -> bool:
    """Return whether real numbers among several inputs are taken for a mask: zeros and ones, and not zeros alone."""
    return tensor.is_floating_point() and bool(((tensor == 0) | (tensor == 1)).all() and tensor.any())


@dataclass(frozen=True)
class Example:
    """Record of an example input: its structure, shapes and types.

    Values are kept only where there are several inputs, and only of whole numbers, truth values and masks: what these
    mean, such as lengths, padding and identifiers of tokens, cannot be guessed.

    Attributes:
        kind: kind of the input.
        samples: number of its samples.
        batch_axis: axis of every tensor that counts samples.
        values: values that are kept, by their place in the structure.
    """

    kind: Kind
    samples: int
    batch_axis: int = 0
    values: Mapping[_Path, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Inputs, interface: Interface) -> Example:
        """Return the record of an example, which :meth:`Interface.accepted` has accepted."""
        kind = kind_of(inputs, interface.batch_axis)
        values = {
            path: tensor.detach().cpu().clone()
            for path, tensor in _leaves(inputs)
            if path and (not tensor.is_floating_point() or is_mask(tensor))
        }
        return cls(_without_gradients(kind), interface.samples(inputs), interface.batch_axis, values)

    def batch(self, samples: int | None = None, device: torch.device | None = None, kind: Kind = None) -> Inputs:
        """Return a batch: zeros, with the values that are kept.

        Args:
            samples: number of samples; as many as the example had if left out.
            device: device of the batch.
            kind: kind of the batch, if it is to have other shapes than the example; kept values are repeated or cut.
        """
        count = self.samples if samples is None else samples

        return self._made(self.kind if kind is None else kind, (), count, device)

    def _made(self, kind: Kind, path: _Path, count: int, device: torch.device | None) -> Any:
        """Return the part of a batch that lies at a path."""
        if isinstance(kind, Nested):
            places: Sequence[str | int] = kind.keys or range(len(kind.parts))
            each = zip(places, kind.parts, strict=True)
            parts = [self._made(part, (*path, place), count, device) for place, part in each]
            if kind.container == "dict":
                return dict(zip(kind.keys, parts, strict=True))
            return tuple(parts) if kind.container == "tuple" else parts
        if isinstance(kind, TensorKind):
            zeros = kind.zeros(count, self.batch_axis, device)
            value = self.values.get(path)
            return zeros if value is None else _fitted(value, zeros)
        return kind

    def converted(self, change: Callable[[Tensor], Tensor]) -> Example:
        """Return the record of an example whose real numbers were converted, as a network's parameters are."""

        def convert(kind: Kind) -> Kind:
            if isinstance(kind, Nested):
                return replace(kind, parts=tuple(map(convert, kind.parts)))
            if isinstance(kind, TensorKind):
                dtype = change(torch.zeros(1, dtype=getattr(torch, kind.dtype))).dtype
                return replace(kind, dtype=str(dtype).partition(".")[2])
            return kind

        return replace(self, kind=convert(self.kind))

    @property
    def shape(self) -> Any:
        """Shape of the example, a :class:`torch.Size`; of several inputs, the same structure of shapes."""
        if isinstance(self.kind, TensorKind):
            return self.batch().shape

        def shapes(kind: Kind) -> Any:
            if isinstance(kind, Nested):
                parts = [shapes(part) for part in kind.parts]
                return dict(zip(kind.keys, parts, strict=True)) if kind.keys else tuple(parts)
            return kind.zeros(self.samples, self.batch_axis, None).shape if isinstance(kind, TensorKind) else kind

        return shapes(self.kind)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; for a single tensor its shape and type."""
        if isinstance(self.kind, TensorKind):
            said = {"shape": list(self.shape), "dtype": self.kind.dtype}
            return {**said, **({"batch_axis": self.batch_axis} if self.batch_axis else {})}
        return {
            "kind": kind_to_json(self.kind),
            "samples": self.samples,
            "batch_axis": self.batch_axis,
            "values": [
                {"path": list(path), "shape": list(v.shape), "dtype": _name(v), "values": v.flatten().tolist()}
                for path, v in self.values.items()
            ],
        }

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Example:
        """Make the record that :meth:`to_json` described."""
        axis = described.get("batch_axis", 0)
        if "kind" not in described:
            zeros = torch.zeros(described["shape"], dtype=getattr(torch, described["dtype"]))
            return cls.of(zeros, Interface(batch_axis=axis))
        values = {
            tuple(each["path"]): torch.tensor(each["values"], dtype=getattr(torch, each["dtype"])).view(each["shape"])
            for each in described["values"]
        }
        return cls(kind_from_json(described["kind"]), described["samples"], axis, values)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).partition(".")[2]


def _leaves(tree: Any, path: _Path = ()) -> Iterator[tuple[_Path, Tensor]]:
    """Yield the tensors in a structure, each with its place."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, branch in tree.items():
            yield from _leaves(branch, (*path, str(key)))
    elif isinstance(tree, (tuple, list)):
        for index, branch in enumerate(tree):
            yield from _leaves(branch, (*path, index))


def _without_gradients(kind: Kind) -> Kind:
    if isinstance(kind, Nested):
        return replace(kind, parts=tuple(map(_without_gradients, kind.parts)))
    return replace(kind, differentiable=False) if isinstance(kind, TensorKind) else kind


def _fitted(value: Tensor, zeros: Tensor) -> Tensor:
    """Return values of another shape, repeated and cut along every axis; zeros where the number of axes differs."""
    if value.dim() != zeros.dim() or not value.numel():
        return zeros
    times = [-(-size // have) for size, have in zip(zeros.shape, value.shape, strict=True)]
    repeated = value.repeat(times) if value.dim() else value
    fitted = repeated[tuple(slice(size) for size in zeros.shape)] if value.dim() else repeated
    return fitted.to(zeros).contiguous()
