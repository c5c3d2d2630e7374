"""Labels of units, and the coupling of units that must share one gate.

Beside every value of a labelled run travels an integer tensor of the same shape: entry by entry the *label* of the unit
that the value belongs to. Label 0 means "no unit": the network's input and constants, which nothing gates. Two units
that are added together must be on or off together; they are *coupled*, and :class:`Coupling` keeps track of that.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hatrack.errors import UnsupportedError

__all__ = ["UNGATED", "Coupling", "Producer", "compact", "first_axis", "is_constant", "is_uniform", "touches_units"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

UNGATED = 0
"""The label of positions that belong to no unit."""

_MANY = 10_000
"""Number of labels from which on it pays to find out that they are repeated."""


def _unobserved(function: FunctionT) -> FunctionT:
    """Decorate a function of labels so that a labelled run, which sees all that torch computes, does not see it.

    It would let these computations pass, but look at each of them, which takes longer than they do.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            return function(*args, **kwargs)

    return cast(FunctionT, wrapped)


@dataclass(frozen=True)
class Producer:
    """Layer that opened units of its own.

    Attributes:
        name: the layer's name in the model.
        start: its first label; its units are ``start`` to ``start + count − 1``.
        count: number of units that it opened.
    """

    name: str
    start: int
    count: int


def compact(labels: Tensor) -> Tensor:
    """Return a view of labels that is 1 wide along every axis that merely repeats them, such as pixels of a channel.

    Most labels are repeated over whole images; computing with the view costs a thousandth.
    """
    strides = labels.stride()
    shape = [size if stride or not size else 1 for size, stride in zip(labels.shape, strides, strict=True)]
    return labels if shape == list(labels.shape) else labels.as_strided(shape, strides, labels.storage_offset())


def _repeated(labels: Tensor) -> Tensor:
    """Return labels without memory for axes that merely repeat them, as tokens do once their channels are coupled.

    Finding that out costs as much as one computation with them, and all later ones then cost next to nothing.
    """
    if labels.numel() < _MANY:
        return labels
    for axis, size in enumerate(labels.shape):
        first = labels.narrow(axis, 0, 1)
        if size > 1 and torch.equal(first, labels.narrow(axis, 1, 1)) and bool((labels == first).all()):
            labels = first
    return labels


@_unobserved
def touches_units(labels: Tensor) -> bool:
    """Return whether any position belongs to a unit."""
    return bool(compact(labels).any())  # which are not UNGATED


@_unobserved
def is_constant(labels: Tensor, axis: int) -> bool:
    """Return whether labels are the same all along an axis."""
    labels = compact(labels)
    return bool((labels == labels.narrow(axis, 0, 1)).all())


@_unobserved
def is_uniform(labels: Tensor) -> bool:
    """Return whether labels are the same everywhere."""
    labels = compact(labels)
    return bool((labels == labels.flatten()[0]).all())


def first_axis(labels: Tensor, dimensions: int) -> Tensor:
    """View a vector as a tensor of several axes that is 1 wide in all but the first.

    Args:
        labels: the vector, ``(n,)``.
        dimensions: number of axes, at least 1.
    """
    return labels.view(-1, *(1,) * (dimensions - 1))


class Coupling:
    """Union-find over labels: units with the same root share one gate."""

    def __init__(self) -> None:
        self._parent = array("q", [UNGATED])  # an array, which becomes a tensor a hundred times as fast as a list
        self.producers: list[Producer] = []

    def open_units(self, name: str, count: int) -> Tensor:
        """Open units for a layer.

        Args:
            name: the layer's name, for messages and tables.
            count: number of units, at least 1.

        Returns:
            New labels, ``(count,)``.
        """
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self.producers.append(Producer(name, start, count))
        return torch.arange(start, start + count)

    @_unobserved
    def include(self, other: Coupling) -> Tensor:
        """Add the layers of another run of the same network, and couple what it coupled.

        Returns:
            The label here of every label there, int64.

        Raises:
            UnsupportedError: a layer has another number of units there.
        """
        mine: dict[str, list[Producer]] = {}
        for producer in self.producers:
            mine.setdefault(producer.name, []).append(producer)
        there = torch.zeros(1 + sum(producer.count for producer in other.producers), dtype=torch.int64)
        for producer in other.producers:
            same = mine.get(producer.name)
            if same:
                found = same.pop(0)
                if found.count != producer.count:
                    raise UnsupportedError(
                        f"{producer.name} has {found.count} units for some inputs and {producer.count} for others"
                    )
                labels = torch.arange(found.start, found.start + found.count)
            else:
                labels = self.open_units(producer.name, producer.count)
            there[producer.start : producer.start + producer.count] = labels
        roots = other.roots(torch.arange(len(there)))
        coupled = (roots != torch.arange(len(there))).nonzero().flatten()
        self._unite(there[roots[coupled]], there[coupled])
        return there

    def root(self, label: int) -> int:
        """Return the label that stands for all those coupled with this one."""
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    @_unobserved
    def couple(self, a: Tensor, b: Tensor) -> Tensor:
        """Couple units that meet in an element-wise operation of two values.

        Args:
            a: labels of one value.
            b: labels of the other, broadcastable with ``a``.

        Returns:
            Labels of the result, of the broadcast shape: where one value is ungated, those of the other.
        """
        shape = torch.broadcast_tensors(a, b)[0].shape  # type: ignore[no-untyped-call]
        a, b = compact(a), compact(b)
        meeting = (a != b) & (a != UNGATED) & (b != UNGATED)
        if meeting.any():
            pairs = torch.unique((a * len(self._parent) + b)[meeting])
            self._unite(pairs // len(self._parent), pairs % len(self._parent))
        return torch.where(a == UNGATED, b, a).expand(shape)

    @_unobserved
    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        """Couple units that meet in a product, but for one that meets several units of a layer: that is always on.

        Coupling would merge all of them into one, as where the scores of an attention with a single head weigh its
        values.

        Args:
            a: labels of one value.
            b: labels of the other, broadcastable with ``a``.

        Returns:
            Labels of the result, of the broadcast shape.
        """
        for one, other in ((a, b), (b, a)):
            roots = self.roots(compact(one))
            if touches_units(roots) and is_uniform(roots) and self.is_across_any_but(other, ()):
                self.pin(roots)
        return self.couple(self.roots(a), self.roots(b))

    @_unobserved
    def pin(self, labels: Tensor) -> None:
        """Make units always-on: every task uses them, as it uses what belongs to no unit."""
        self._parents()[self._roots(torch.unique(compact(labels)))] = UNGATED

    def _unite(self, ones: Tensor, others: Tensor) -> None:
        """Couple units pair by pair, int64 ``(n,)`` each: the smallest label stands for all.

        All pairs at once, since a loop over those of a large network takes longer than a forward pass.
        """
        while True:
            ones, others = self._roots(ones), self._roots(others)
            apart = ones != others
            if not apart.any():
                return
            ones, others = ones[apart], others[apart]
            low, high = torch.minimum(ones, others), torch.maximum(ones, others)
            self._parents().scatter_reduce_(0, high, low, "amin")

    @_unobserved
    def roots(self, labels: Tensor) -> Tensor:
        """Replace labels by those that stand for all coupled with them; always-on units become "no unit"."""
        return _repeated(self._roots(compact(labels))).expand(labels.shape)

    def _roots(self, labels: Tensor) -> Tensor:
        """Return the roots of labels, and let these refer to them at once from now on."""
        parents = self._parents()
        found = first = parents[labels]
        while not torch.equal(further := parents[found], found):
            found = further
        if found is not first:
            parents[labels] = found
        return found

    def _parents(self) -> Tensor:
        """Return the labels that labels refer to, int64: a view of the array, which cannot grow while it is there."""
        return torch.frombuffer(self._parent, dtype=torch.int64)

    @_unobserved
    def along(self, labels: Tensor, axis: int) -> Tensor:
        """Couple all positions that share an index of one axis, such as the pixels of a channel.

        Args:
            labels: labels of a value.
            axis: the axis that counts units.

        Returns:
            One label per index of that axis, ``(labels.shape[axis],)``.
        """
        kept = compact(labels).movedim(axis, 0)
        rows = kept.flatten(1) if kept.dim() > 1 else kept.unsqueeze(1)
        representative = rows.amax(dim=1)
        self.couple(rows, representative.unsqueeze(1))
        return representative.expand(labels.shape[axis])

    @_unobserved
    def merge(self, labels: Tensor, axis: int) -> Tensor:
        """Couple all positions along an axis, and keep one label of them.

        Args:
            labels: labels of a value.
            axis: the axis.

        Returns:
            Labels of the same shape, but 1 wide along the axis.
        """
        kept = compact(labels)
        representative = kept.amax(dim=axis, keepdim=True)
        self.couple(kept, representative)
        shape = list(labels.shape)
        shape[axis] = 1
        return representative.expand(shape)

    def is_across_any_but(self, labels: Tensor, axes: Collection[int]) -> bool:
        """Return whether an axis other than these (counted from the front) runs through several units of a layer."""
        return any(self.is_across(labels, axis) for axis in range(labels.dim()) if axis not in axes)

    @_unobserved
    def is_across(self, labels: Tensor, axis: int) -> bool:
        """Return whether an axis runs through several units of one layer, which coupling along it would merge.

        Units of different layers, such as a class token's and the patches', may be coupled, as they are by a sum.
        """
        kept = compact(labels)
        if kept.shape[axis] < 2:
            return False
        lines = self.roots(kept).movedim(axis, -1).reshape(-1, kept.shape[axis])
        if bool(((lines == lines.amax(dim=1, keepdim=True)) | (lines == UNGATED)).all()):
            return False
        starts = torch.tensor([producer.start for producer in self.producers])
        for line in torch.unique(lines, dim=0):
            units = torch.unique(line[line != UNGATED])
            if len(torch.unique(torch.bucketize(units, starts, right=True))) < len(units):
                return True
        return False
