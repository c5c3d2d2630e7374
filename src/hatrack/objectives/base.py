"""The protocol of an objective: what a task's outputs and targets mean."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.objectives.metrics import Metric

__all__ = ["Objective", "check_targets", "names_as_text", "require_different", "strata"]


class Objective(abc.ABC):
    """Meaning of the outputs and targets of a task; immutable.

    There is one output for every name. Targets are ``(N, ...)`` of the type of :meth:`check`.

    Attributes:
        kind: name of the kind of task.
        names: names of the outputs: classes, labels, or columns of numbers.
        metric: metric of the task.
    """

    kind: ClassVar[str]
    names: tuple[str, ...]
    metric: Metric

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self.names)

    @abc.abstractmethod
    def check(self, targets: Tensor, part: str) -> None:
        """Check the targets of a part of the samples, such as ``training``.

        Raises:
            InputError: they are not what this objective takes.
        """

    @abc.abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of outputs ``(N, outputs)`` for targets, a scalar to minimise."""

    @abc.abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric of all outputs ``(N, outputs)`` of a split for its targets, both on the CPU."""

    def unmeasured(self, targets: Tensor) -> str:
        """Say what the metric does not measure on these targets, such as a class that none of them is of.

        Args:
            targets: targets of a split, on the CPU.

        Returns:
            A clause that goes on after "of its 20 test samples", for a message; empty where everything is measured.
        """
        return ""

    @abc.abstractmethod
    def drawn(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw targets from the distribution that outputs ``(N, outputs)`` stand for, both on the CPU.

        It is the one whose negative log-likelihood is the loss, up to a constant.
        """

    @abc.abstractmethod
    def guesses(self, targets: Tensor) -> Tensor:
        """Return parameters ``(outputs,)`` of guessing without a look at a sample, from training targets."""

    @abc.abstractmethod
    def guessed(self, guesses: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return outputs ``(count, outputs)`` that guess, given :meth:`guesses`."""

    @abc.abstractmethod
    def packed(self, targets: Tensor) -> Tensor:
        """Return targets as float64 ``(N, width)``, in which targets of any objective can be joined."""

    @abc.abstractmethod
    def unpacked(self, packed: Tensor) -> Tensor:
        """Return targets from what :meth:`packed` gave, with any number of further columns; or as they were."""

    @abc.abstractmethod
    def weighted(self, weights: Sequence[float]) -> Objective:
        """Return the objective with other weights of its classes or labels.

        Raises:
            InputError: it has no classes or labels, or the weights do not fit.
        """

    @abc.abstractmethod
    def balance(self, targets: Tensor) -> tuple[float, ...]:
        """Return the weights that make up for rare classes or labels in training targets.

        Raises:
            InputError: it has no classes or labels, or one does not occur.
        """

    @abc.abstractmethod
    def say(self, outputs: Tensor) -> list[str]:
        """Return what outputs ``(N, outputs)`` say of each sample, for people."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return a description as JSON values, from which ``objective_from_json`` makes an equal one."""


def names_as_text(names: Sequence[str], what: str = "classes") -> tuple[str, ...]:
    """Return names of outputs that a person gives, numbers among them as text.

    Args:
        names: the names.
        what: the argument, for messages.

    Raises:
        InputError: they are one text instead of several, or one of them is neither a text nor a whole number.
    """
    if isinstance(names, (str, bytes)) or not hasattr(names, "__iter__"):
        raise InputError(f"{what} must be a list of names, one for each, not {names!r}")
    for name in names:
        if not isinstance(name, (str, int, np.integer)) or isinstance(name, bool):
            raise InputError(f"{what} must be names, and one is {name!r}, of type {type(name).__name__}: give texts")
    return tuple(map(str, names))


def require_different(names: Sequence[str]) -> None:
    """Check that no two outputs of a task have one name: answers could not be told apart.

    Raises:
        InputError: a name is given twice.
    """
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        first = seen.setdefault(name, index)
        if first != index:
            raise InputError(f"numbers {first} and {index} are both named {name!r}; give every class a name of its own")


def check_targets(targets: Tensor) -> None:
    """Check that targets are of one of the types that there are.

    These are int64 ``(N,)`` for classes, float64 ``(N, K)`` for columns of numbers, bool ``(N, L)`` for labels.

    Raises:
        InputError: they are of another type, negative, or not finite.
    """
    fits = {torch.int64: 1, torch.float64: 2, torch.bool: 2}.get(targets.dtype) == targets.dim()
    if not fits:
        raise InputError(
            "the labels of a split must be int64 (N,) for classes, float64 (N, K) for numbers or bool (N, L) for "
            f"several labels, not {targets.dtype} {tuple(targets.shape)}"
        )
    if targets.dtype == torch.int64 and len(targets) and targets.min() < 0:
        raise InputError("the labels of a split must be 0 or more")
    if not targets.isfinite().all():
        raise InputError("the numbers of a split must be finite")


def strata(targets: Tensor) -> Tensor:
    """Return classes ``(N,)``, int64, by which samples are divided evenly into parts.

    Classes are their own. A sample of several labels counts by the rarest of them, so that rare ones come into every
    part. Numbers are all of one stratum.

    Args:
        targets: as for :func:`check_targets`.
    """
    if targets.dtype == torch.int64:
        return targets
    if targets.dtype != torch.bool:
        return torch.zeros(len(targets), dtype=torch.int64)
    rarest_first = targets.sum(0).argsort(stable=True)
    ordered = targets[:, rarest_first]
    found = torch.where(ordered.any(1), ordered.int().argmax(1), targets.shape[1])
    numbers: Tensor = torch.unique(found, return_inverse=True)[1]
    return numbers
