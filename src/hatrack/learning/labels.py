"""Labels that are named: texts and truth values as the classes of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatrack.errors import DataError, InputError
from hatrack.learning.samples import read_targets
from hatrack.objectives import Classification, Objective, TargetKind, as_targets
from hatrack.streams.own.spelling import order_of, refuse_alike, refuse_missing

__all__ = ["Labels", "numbered", "read_labels", "targets_for"]

Labels = Tensor | tuple[str, ...]
"""Targets as people have them: numbers or truth values, or a text for every sample."""

TRUTH = ("False", "True")
"""Names of the classes of truth values."""


def read_labels(given: Any, what: str) -> Labels:
    """Return the targets of samples, or of one: a text for every sample as it is, all else as a tensor.

    Args:
        given: a tensor, an array, a number, a text, or a list of these.
        what: name of them, for messages.

    Raises:
        InputError: there are texts beside something else, several texts for a sample, or objects.
    """
    if isinstance(given, (str, bytes)):
        return (_text(given),)
    if isinstance(given, (list, tuple)) and any(isinstance(each, (str, bytes, list, tuple, set)) for each in given):
        return _texts(list(given), what) if _has_text(given) else read_targets(given, what)
    if hasattr(given, "__array__") and not isinstance(given, (Tensor, np.generic)):
        array = np.asanyarray(given)
        has_text = array.dtype.kind in "US" or (array.dtype.kind == "O" and _has_text(array.flat))
        if has_text and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if has_text:
            return _texts(list(array) if array.ndim else [array.item()], what)
    return read_targets(given, what)


def _has_text(values: Any) -> bool:
    """Return whether a text is among values, or among the first that is a collection itself."""
    return any(
        isinstance(each, (str, bytes)) or (isinstance(each, (list, tuple, set)) and any(map(_is_text, each)))
        for each in values
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes))


def _text(given: str | bytes) -> str:
    return given.decode() if isinstance(given, bytes) else str(given)


def _texts(given: list[Any], what: str) -> tuple[str, ...]:
    for place, each in enumerate(given):
        if isinstance(each, (list, tuple, set, np.ndarray)):
            raise InputError(
                f"{what} are several texts for one sample: give truth values (N, L), one column for every label, and "
                "the labels' names, classes=names"
            )
        if not _is_text(each):
            raise InputError(
                f"{what} are texts, but number {place} is {each!r}, of type {type(each).__name__}: make all of them "
                "texts, or leave the sample out"
            )
    return tuple(map(_text, given))


def numbered(
    given: Labels, names: Sequence[str] | None, kind: TargetKind | None, what: str
) -> tuple[Tensor, Sequence[str] | None]:
    """Return targets as numbers or truth values, with the names of their classes where these are known.

    Texts are the names of classes themselves. Without other names these are all that occur, numbers before words, each
    in their own order. Truth values, one for every sample, are the classes ``False`` and ``True``.

    Args:
        given: targets, as from :func:`read_labels`.
        names: names of the classes, labels or columns; None where they are not given.
        kind: kind of the targets; None tells it by their type and shape.
        what: name of the targets, for messages.

    Raises:
        InputError: a text is no name of a class, stands for a missing one, or there are two spellings of one; or texts
            are said to be something else than classes.
    """
    if isinstance(given, Tensor):
        column = given[:, 0] if kind is TargetKind.CLASSES and given.dim() == 2 and given.shape[1] == 1 else given
        if column.dtype != torch.bool or column.dim() != 1 or kind not in (None, TargetKind.CLASSES):
            return given, names
        if names is not None and len(names) != len(TRUTH):
            raise InputError(f"{what} are truth values, and there are {len(names)} classes: {', '.join(names)}")
        return column.long(), TRUTH if names is None else names
    if kind not in (None, TargetKind.CLASSES):
        raise InputError(f"{what} are texts, such as {given[0]!r}, which name classes and are no {kind.value}")
    if names is None:
        try:
            refuse_missing(given, lambda place: f"{what}, number {place}")
            refuse_alike(given, lambda place: f"{what}, number {place}")
        except DataError as error:
            raise InputError(str(error)) from error
        names = sorted(set(given), key=order_of)
    index = {str(name): number for number, name in enumerate(names)}
    for place, text in enumerate(given):
        if text not in index:
            raise InputError(f"{what}: number {place} is {text!r}, and the classes are {', '.join(map(repr, index))}")
    return torch.tensor([index[text] for text in given], dtype=torch.int64), names


def targets_for(given: Labels, objective: Objective, kind: TargetKind, what: str) -> Tensor:
    """Return the targets of further samples of a task, as its objective takes them.

    Args:
        given: targets, as from :func:`read_labels`.
        objective: the task's objective.
        kind: kind of its targets.
        what: name of the targets, for messages.

    Raises:
        InputError: they are not the task's; or they are whole numbers that may be names as well as numbers of classes.
    """
    targets, _ = numbered(given, objective.names, kind, what)
    if isinstance(given, Tensor) and isinstance(objective, Classification):
        spelled = {int(name): number for number, name in enumerate(objective.names) if name.isdecimal()}
        other = {name for name, number in spelled.items() if name != number}
        found = set() if given.dtype == torch.bool or given.dim() != 1 else set(given.tolist())
        if found & other and found <= spelled.keys():
            raise InputError(
                f"{what} are numbers, and classes are named by other numbers, {', '.join(objective.names)}: say which "
                "is meant by giving the names, as texts"
            )
    return as_targets(targets, kind, what)
