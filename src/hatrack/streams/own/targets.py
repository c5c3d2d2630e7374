"""Targets of a person's own samples: classes as texts, columns of numbers, or sets of labels; and which they are."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hatrack.errors import InputError, UnfitDataError
from hatrack.objectives import (
    ClassWeights,
    MetricName,
    Objective,
    TargetKind,
    objective_of,
    strata,
)
from hatrack.streams.own.numerals import DecimalMark, fault_of_number, read_number, uses_comma
from hatrack.streams.own.spelling import order_of, refuse_alike, refuse_missing

__all__ = [
    "UNSAID",
    "ClassTexts",
    "LabelSets",
    "NumberColumns",
    "OwnTargets",
    "TargetChoice",
    "kind_of_own",
    "looks_like_numbers",
    "targets_of_array",
    "targets_of_texts",
]

MANY = 20
"""Number of different numbers up to which a column of numbers is taken for classes."""
NOTABLE = 10
"""Number of different numbers from which on it is said that they are taken for classes."""
TRUTH = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "no": False, "yes": True}


@dataclass(frozen=True)
class TargetChoice:
    """Description of the targets of a task by its user; the data tell what it leaves out.

    Attributes:
        kind: kind of the targets.
        columns: names of the columns of a table that hold them.
        separator: text between the labels of a cell, for a column with several.
        metric: the metric.
        class_weights: weights of the classes or labels in the loss.
        drop: names of columns of a table to leave out, which may be none; None for nothing said.
    """

    kind: TargetKind | None = None
    columns: tuple[str, ...] = ()
    separator: str | None = None
    metric: MetricName | None = None
    class_weights: ClassWeights | None = None
    drop: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.separator == "":
            raise InputError("separator must be a text between labels, such as ; or a space")
        if self.separator is not None and self.kind not in (None, TargetKind.LABELS):
            raise InputError(f"separator is for labels, not for target = {self.kind.value if self.kind else ''!r}")

    def over(self, other: TargetChoice) -> TargetChoice:
        """Return what this choice says, and what another one says beside it."""
        mine = {each: value for each, value in vars(self).items() if value != getattr(UNSAID, each)}
        return replace(other, **mine)


UNSAID = TargetChoice()
"""Nothing said: all is told by the data."""


class OwnTargets(abc.ABC):
    """Targets of some samples, as they were read."""

    @abc.abstractmethod
    def part(self, rows: Sequence[int]) -> OwnTargets:
        """Return those of some of the samples, by their positions."""

    @abc.abstractmethod
    def strata(self) -> Tensor:
        """Return classes ``(N,)``, int64, by which samples are divided evenly."""

    @abc.abstractmethod
    def numbered(
        self, test: OwnTargets, choice: TargetChoice, origins: tuple[str, str]
    ) -> tuple[Objective, Tensor, Tensor]:
        """Return the objective of these training targets, and training and test targets as tensors.

        Args:
            test: targets of the test samples.
            choice: what is said about them.
            origins: files or folders of training and test samples, for messages.

        Raises:
            UnfitDataError: there is nothing to learn, or the test samples have other classes, labels or columns.
        """

    @abc.abstractmethod
    def note(self) -> str:
        """Say what these targets were taken for, and how to choose otherwise; empty where nobody would wonder."""


@dataclass(frozen=True)
class ClassTexts(OwnTargets):
    """One class for every sample, as it was written.

    Attributes:
        labels: the classes.
        one_hot: number of columns of rows of which one entry was 1; None where the classes were written otherwise.
    """

    labels: tuple[str, ...]
    one_hot: int | None = None

    def part(self, rows: Sequence[int]) -> ClassTexts:
        """Return the classes of some samples."""
        return replace(self, labels=tuple(self.labels[row] for row in rows))

    def strata(self) -> Tensor:
        """Return the classes, numbered by the alphabet."""
        numbers = {label: number for number, label in enumerate(sorted(set(self.labels)))}
        return torch.tensor([numbers[label] for label in self.labels])

    def numbered(
        self, test: OwnTargets, choice: TargetChoice, origins: tuple[str, str]
    ) -> tuple[Objective, Tensor, Tensor]:
        """Number the classes: numbers in their order, anything else in the order of the alphabet."""
        assert isinstance(test, ClassTexts)
        if self.one_hot is not None and test.one_hot is not None:
            _require_same(self.one_hot, test.one_hot, origins)
        refuse_alike([*sorted(set(self.labels)), *test.labels], lambda row: origins[1])
        classes = tuple(sorted(set(self.labels), key=order_of))
        if len(classes) < 2:
            raise UnfitDataError(
                f"{origins[0]}: all training samples are of class {classes[0]!r}; a task needs two or more"
            )
        unknown = sorted(set(test.labels) - set(classes))
        if unknown:
            raise UnfitDataError(f"{origins[1]}: no training sample is of the test sample's class {unknown[0]!r}")
        numbers = {label: number for number, label in enumerate(classes)}
        train, tests = (torch.tensor([numbers[label] for label in each.labels]) for each in (self, test))
        return _made(train, classes, choice, origins[0]), train, tests

    def note(self) -> str:
        """Say that numbers were taken for classes, where there are many of them, or texts of which few are alike."""
        if self.one_hot is not None:
            return (
                f"rows with one 1 among zeros were taken for {self.one_hot} classes; for labels of which a sample may "
                "have several, choose `target=labels`"
            )
        different, count = set(self.labels), len(set(self.labels))
        if count <= NOTABLE:
            return ""
        if _numbers(different) is None:
            text = next(label for label in self.labels if _numbers({label}) is None)
            rare = len(self.labels) < 5 * count
            return (
                f"{count} different texts such as {text!r} were taken for classes; numbers to predict are written "
                "without units, with a decimal point"
                if rare
                else ""
            )
        return f"{count} different numbers were taken for classes; to predict the number, choose `target=numbers`"


@dataclass(frozen=True, eq=False)
class NumberColumns(OwnTargets):
    """One number or several for every sample.

    Attributes:
        names: names of the columns.
        values: the numbers, float64 ``(N, K)``.
    """

    names: tuple[str, ...]
    values: Tensor

    def part(self, rows: Sequence[int]) -> NumberColumns:
        """Return the numbers of some samples."""
        return replace(self, values=self.values[list(rows)])

    def strata(self) -> Tensor:
        """Return that all samples are of one stratum."""
        return strata(self.values)

    def numbered(
        self, test: OwnTargets, choice: TargetChoice, origins: tuple[str, str]
    ) -> tuple[Objective, Tensor, Tensor]:
        """Standardise the columns by mean and deviation of the training samples."""
        assert isinstance(test, NumberColumns)
        _require_same(self.values.shape[1], test.values.shape[1], origins)
        objective = _made(self.values, self.names, choice, origins[0])
        return objective, self.values, test.values

    def note(self) -> str:
        """Say that these are numbers to predict."""
        columns = f"{', '.join(self.names)}: " if self.names[0] else ""
        otherwise = "; for classes, choose `target=classes`" if len(self.names) == 1 else ""
        return f"{columns}taken for numbers to predict (regression){otherwise}"


@dataclass(frozen=True)
class LabelSets(OwnTargets):
    """Any number of labels for every sample.

    Attributes:
        sets: labels of every sample.
        names: names of all labels; None where they are those that occur in training.
    """

    sets: tuple[frozenset[str], ...]
    names: tuple[str, ...] | None

    def part(self, rows: Sequence[int]) -> LabelSets:
        """Return the labels of some samples."""
        return replace(self, sets=tuple(self.sets[row] for row in rows))

    def strata(self) -> Tensor:
        """Return the rarest label of every sample."""
        return strata(self._table(self._all()))

    def numbered(
        self, test: OwnTargets, choice: TargetChoice, origins: tuple[str, str]
    ) -> tuple[Objective, Tensor, Tensor]:
        """Return truth values, a column for every label, in their order or in that of the alphabet."""
        assert isinstance(test, LabelSets)
        names = self._all()
        if self.names is not None and test.names is not None:
            _require_same(len(self.names), len(test.names), origins)
        refuse_alike([*names, *(label for each in test.sets for label in sorted(each))], lambda row: origins[1])
        unknown = sorted({label for each in test.sets for label in each} - set(names))
        if unknown:
            raise UnfitDataError(f"{origins[1]}: no training sample has the test sample's label {unknown[0]!r}")
        train = self._table(names)
        for name, count in zip(names, train.sum(0).tolist(), strict=True):
            if not 0 < count < len(train):
                raise UnfitDataError(
                    f"{origins[0]}: label {name!r} is on {count or 'none'} of {len(train)} training samples; there is "
                    "nothing to learn, leave it out"
                )
        return _made(train, names, choice, origins[0]), train, test._table(names)

    def note(self) -> str:
        """Say that these are labels of which a sample may have several."""
        count = len(self._all())
        return f"taken for {count} labels, of which a sample may have several; for numbers, choose `target=numbers`"

    def _all(self) -> tuple[str, ...]:
        return self.names or tuple(sorted({label for each in self.sets for label in each}, key=order_of))

    def _table(self, names: Sequence[str]) -> Tensor:
        return torch.tensor([[name in each for name in names] for each in self.sets], dtype=torch.bool)


def _require_same(train: int, test: int, origins: tuple[str, str]) -> None:
    if train != test:
        raise UnfitDataError(f"{origins[1]}: test samples have {test} targets each, training samples {train}")


def _made(targets: Tensor, names: Sequence[str], choice: TargetChoice, origin: str) -> Objective:
    names = [name or str(index) for index, name in enumerate(names)]
    try:
        return objective_of(targets, names, None if choice.metric is None else choice.metric.metric)
    except InputError as error:
        raise UnfitDataError(f"{origin}: {error}") from error


def kind_of_own(targets: OwnTargets) -> TargetKind:
    """Return the kind of targets that were read."""
    if isinstance(targets, ClassTexts):
        return TargetKind.CLASSES
    return TargetKind.NUMBERS if isinstance(targets, NumberColumns) else TargetKind.LABELS


def looks_like_numbers(values: np.ndarray) -> bool:
    """Return whether a column of numbers is more likely to be predicted than to name classes.

    That is so for more than 20 different ones, of which some have decimals or most occur but once.

    Args:
        values: finite numbers, ``(N,)``.
    """
    different = len(np.unique(values))
    return different > MANY and (bool((values != np.trunc(values)).any()) or 2 * different > len(values))


def targets_of_texts(
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    choice: TargetChoice,
    where: Callable[[int, str], str],
    mark: DecimalMark = DecimalMark.POINT,
) -> OwnTargets:
    """Read the targets of a table.

    Args:
        columns: names of the columns that hold them.
        cells: cells of every column, without spaces around them.
        choice: what is said about them.
        where: names the place of a cell, given its row and the name of its column.
        mark: character in front of the decimals of numbers.

    Raises:
        UnfitDataError: a target is missing, or is not what it should be; its place is named.
        InputError: the choice does not fit so many columns.
    """
    kind = choice.kind
    if kind is None:
        kind = TargetKind.LABELS if choice.separator is not None else _kind_of(cells, mark)
        if kind is TargetKind.CLASSES and mark is DecimalMark.POINT:
            _refuse_commas(cells[0], lambda row: where(row, columns[0]))
    if kind is TargetKind.CLASSES:
        if len(columns) > 1:
            raise InputError(f"target = classes takes one column, not {', '.join(columns)}; choose numbers or labels")
        place = columns[0]
        refuse_missing(cells[0], lambda row: where(row, place))
        refuse_alike(cells[0], lambda row: where(row, place))
        return ClassTexts(tuple(cells[0]))
    if kind is TargetKind.NUMBERS:
        pairs = zip(columns, cells, strict=True)
        values = [[_number(cell, where(row, name), mark) for row, cell in enumerate(of)] for name, of in pairs]
        return NumberColumns(tuple(columns), torch.tensor(values, dtype=torch.float64).T.contiguous())
    if len(columns) == 1:
        separator = choice.separator
        if separator is None:
            raise InputError(
                f"several labels in column {columns[0]!r} need the text between them (`separator=...`), or a column of "
                "zeros and ones for every label"
            )
        split = tuple(frozenset(part.strip() for part in cell.split(separator) if part.strip()) for cell in cells[0])
        for row, labels in enumerate(split):
            refuse_missing(sorted(labels), lambda _, row=row: where(row, columns[0]))  # type: ignore[misc]
        refuse_alike(sorted({label for labels in split for label in labels}), lambda _: where(0, columns[0]))
        return LabelSets(split, None)
    pairs = zip(columns, cells, strict=True)
    truths = [[_truth(cell, where(row, name)) for row, cell in enumerate(of)] for name, of in pairs]
    return _label_sets(columns, np.array(truths).T)


def targets_of_array(array: np.ndarray, count: int, kind: TargetKind | None, where: str) -> OwnTargets:
    """Read the targets of an array.

    Args:
        array: classes ``(N,)`` or ``(N, 1)``: whole numbers of any type, truth values, or texts; or ``(N, C)`` with
            one 1 among zeros in every row; numbers to predict, floats ``(N,)`` or ``(N, K)``; labels, truth values or
            zeros and ones ``(N, L)``.
        count: number of samples, N.
        kind: which of these; None tells it by type, shape and values.
        where: name of the array, for messages.

    Raises:
        UnfitDataError: they are none of these.
    """
    flat = array[:, 0] if array.shape == (count, 1) else array
    if kind is None:
        kind = _kind_of_array(flat, count)
    if kind is TargetKind.CLASSES:
        if _is_one_hot(flat, count):
            return ClassTexts(tuple(map(str, flat.argmax(axis=1).tolist())), flat.shape[1])
        return ClassTexts(_class_texts(flat, array, count, where))
    if flat.shape[:1] != (count,) or flat.ndim not in (1, 2) or array.dtype.kind not in "buif" or not flat.size:
        raise UnfitDataError(f"{where} must hold numbers, ({count},) or ({count}, K), not {array.dtype} {array.shape}")
    table = flat.reshape(count, -1)
    if kind is TargetKind.NUMBERS:
        values = torch.from_numpy(np.ascontiguousarray(table.astype(np.float64)))
        if not values.isfinite().all():
            row = int((~values.isfinite()).any(1).nonzero()[0])
            raise UnfitDataError(f"{where}[{row}]: the number to predict is missing or infinite; remove the sample")
        names = ("",) if table.shape[1] == 1 else tuple(map(str, range(table.shape[1])))
        return NumberColumns(names, values)
    if not ((table == 0) | (table == 1)).all():
        raise UnfitDataError(f"{where} must hold truth values, or zeros and ones, ({count}, L), for several labels")
    return _label_sets(tuple(map(str, range(table.shape[1]))), table.astype(bool))


def _kind_of(cells: Sequence[Sequence[str]], mark: DecimalMark) -> TargetKind:
    if len(cells) > 1:
        truths = all(cell.lower() in TRUTH for of in cells for cell in of)
        return TargetKind.LABELS if truths else TargetKind.NUMBERS
    numbers = _numbers(cells[0], mark)
    likely = numbers is not None and looks_like_numbers(numbers)
    return TargetKind.NUMBERS if likely else TargetKind.CLASSES


def _kind_of_array(flat: np.ndarray, count: int) -> TargetKind:
    if flat.ndim == 2 and len(flat) == count and flat.shape[1] > 1:
        if flat.dtype.kind == "f" and not ((flat == 0) | (flat == 1)).all():
            return TargetKind.NUMBERS
        truths = flat.dtype.kind in "buif" and bool(((flat == 0) | (flat == 1)).all())
        if truths and not _is_one_hot(flat, count):
            return TargetKind.LABELS
    if flat.ndim == 1 and flat.dtype.kind == "f" and np.isfinite(flat).all() and looks_like_numbers(flat):
        return TargetKind.NUMBERS
    if flat.ndim == 1 and flat.dtype.kind in "ui" and looks_like_numbers(flat.astype(np.float64)):
        return TargetKind.NUMBERS
    return TargetKind.CLASSES


def _is_one_hot(flat: np.ndarray, count: int) -> bool:
    """Return whether every row is of zeros and a single 1, which tells its class."""
    if flat.ndim != 2 or len(flat) != count or flat.shape[1] < 2 or flat.dtype.kind not in "buif":
        return False
    return bool(((flat == 0) | (flat == 1)).all() and (flat.sum(axis=1, dtype=np.int64) == 1).all())


def _class_texts(flat: np.ndarray, array: np.ndarray, count: int, where: str) -> tuple[str, ...]:
    """Return classes as texts, from ``(N,)`` whole numbers of any type, truth values, or texts."""
    remedy = ""
    if flat.ndim == 2 and len(flat) == count:
        remedy = "; if the largest entry of a row tells its class, save y.argmax(axis=1)"
        remedy += ", and if each is a label of its own, choose target=labels"
    if flat.dtype.kind == "f" and flat.shape == (count,):
        refuse_missing([str(label) for label in flat.tolist()], lambda row: f"{where}[{row}]")
        whole = np.isfinite(flat) & (flat == np.trunc(flat))
        if whole.all():
            flat = np.array([int(label) for label in flat])
        else:
            remedy = f"; {flat[~whole][0]:g} is no class, or save y.astype(str) if it is"
            remedy += "; to predict the number, choose target=numbers"
    if flat.dtype.kind == "S":
        try:
            flat = np.char.decode(flat, "utf-8")
        except UnicodeDecodeError:
            remedy = "; its bytes are no UTF-8, so save them decoded"
    if flat.shape != (count,) or flat.dtype.kind not in "buiU":
        raise UnfitDataError(
            f"{where} must hold {count} whole numbers or texts, not {array.dtype} {array.shape}{remedy}"
        )
    labels = tuple(str(label) for label in flat.tolist())
    refuse_missing(labels, lambda row: f"{where}[{row}]")
    refuse_alike(labels, lambda row: f"{where}[{row}]")
    return labels


def _label_sets(names: Sequence[str], table: np.ndarray) -> LabelSets:
    sets = (frozenset(name for name, there in zip(names, row, strict=True) if there) for row in table.tolist())
    return LabelSets(tuple(sets), tuple(names))


def _numbers(texts: Sequence[str] | set[str], mark: DecimalMark = DecimalMark.POINT) -> np.ndarray | None:
    """Return texts as finite numbers; None where one is none."""
    found = [read_number(text, mark) for text in texts]
    return None if any(number is None for number in found) else np.array(found, dtype=np.float64)


def _refuse_commas(labels: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuse numbers with decimal commas that would be taken for the names of classes."""
    row = next((row for row, label in enumerate(labels) if uses_comma(label)), None)
    if row is not None and all(uses_comma(label) or read_number(label) is not None for label in labels):
        raise UnfitDataError(
            f"{where(row)}: {fault_of_number(labels[row])}; if these are the names of classes, choose `target=classes`"
        )


def _number(cell: str, where: str, mark: DecimalMark) -> float:
    number = read_number(cell, mark)
    if number is None:
        said = fault_of_number(cell, mark) if cell else "the number to predict is missing"
        raise UnfitDataError(f"{where}: {said}; fix the cell or remove the line")
    return number


def _truth(cell: str, where: str) -> bool:
    if cell.lower() not in TRUTH:
        said = f"{cell!r} is neither 0 nor 1" if cell else "the label is missing"
        raise UnfitDataError(f"{where}: {said}; a column of a label holds 0 or 1, true or false, yes or no")
    return TRUTH[cell.lower()]
