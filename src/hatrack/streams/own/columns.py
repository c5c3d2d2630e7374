"""Columns of features in a table: numbers, truth values or categories; and rows of them as samples."""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import torch

from hatrack.errors import UnfitDataError
from hatrack.streams.own.numerals import DecimalMark, fault_of_number, looks_like_number, read_number
from hatrack.streams.own.spelling import is_missing, order_of, refuse_alike
from hatrack.streams.transforms import Scaling, Standardise

__all__ = [
    "UNKNOWN",
    "Column",
    "ColumnKind",
    "ColumnReader",
    "TableRows",
    "as_categories",
    "dropping",
    "quoted",
    "recoded",
    "spread",
    "unknown_categories",
]

UNKNOWN = -1
"""Code of a category that a column does not have."""
MOST_CATEGORIES = 100
"""Number of different texts beyond which a column is taken for categories only where its user says so."""
FEW_CATEGORIES = 20
"""Number of different texts up to which a column is taken for categories even where hardly any text comes twice."""
EXACT = 1 << 53
"""Largest number up to which float64 holds every whole number."""
TRUTH = {"false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
"""Words for truth values, in small letters."""
_CODE = re.compile(r"0\d+|\d+[eE]\d+", re.ASCII)
"""Cells that are numbers, and more likely codes."""
_DAY = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])", re.ASCII)
"""Cells that are numbers, and could be days: year, month, day."""


class ColumnKind(Enum):
    """Meaning of the cells of a column."""

    NUMBERS = auto()
    """Finite numbers."""

    TRUTH = auto()
    """Truth values, which become 0 and 1."""

    CATEGORIES = auto()
    """Texts, of which each becomes a feature of its own: 1 where it stands, else 0."""


@dataclass(frozen=True)
class Column:
    """Column of features.

    Attributes:
        name: its name in the file.
        kind: meaning of its cells.
        categories: its different texts, in their order; empty for other kinds.
    """

    name: str
    kind: ColumnKind = ColumnKind.NUMBERS
    categories: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it becomes."""
        if self.kind is not ColumnKind.CATEGORIES:
            return (self.name,)
        return tuple(f"{self.name}={category}" for category in self.categories)


@dataclass(frozen=True, eq=False)
class TableRows:
    """Transform of the rows of a table: categories become features of 0 and 1, and every feature is standardised.

    Attributes:
        columns: the columns of a row.
        scale: standardises the features.
    """

    columns: tuple[Column, ...]
    scale: Standardise

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in their order."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def scaling(self) -> Scaling:
        """The kind of scaling, that of the features."""
        return self.scale.scaling

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """Return features, float32 ``(N, F)``.

        Args:
            x: rows, float64 ``(N, columns)``; a category is its position in :attr:`Column.categories`, or
                :data:`UNKNOWN`, which makes all features of its column 0 before they are standardised.
        """
        return self.scale(spread(self.columns, x))


def spread(columns: tuple[Column, ...], x: torch.Tensor) -> torch.Tensor:
    """Return rows ``(N, columns)`` as features, float64 ``(N, F)``: one-hot for categories (see :class:`TableRows`)."""
    x = x.double()
    if all(column.kind is not ColumnKind.CATEGORIES for column in columns):
        return x
    parts = [
        (x[:, [place]] == torch.arange(len(column.categories), dtype=torch.float64, device=x.device)).double()
        if column.kind is ColumnKind.CATEGORIES
        else x[:, [place]]
        for place, column in enumerate(columns)
    ]
    return torch.cat(parts, dim=1)


class ColumnReader:
    """Reader of the cells of one column, from the first row to the last.

    The first cell says what all must be: numbers, or words. Words are truth values (true, false, yes, no) or
    categories. A cell that is neither a number nor certainly a word, such as ``1,5`` or a date, is refused.

    Args:
        name: name of the column.
        mark: character in front of decimals.
        kind: what the cells are; None lets them tell.
        typed: whether the file says that the cells are texts, so that ``7`` is no number.
        source: path of the file, for messages.

    Attributes:
        counts: whether each cell so far is by one larger than the one before.
        code: the first cell so far that was read as a number and is more likely a code: a whole number with zeros in
            front (``00331``), or with an exponent (``3e5``); None where there is none.
        are_days: whether all cells so far are numbers that could be days, such as ``20260131``.
    """

    def __init__(
        self, name: str, mark: DecimalMark, kind: ColumnKind | None = None, *, typed: bool = False, source: str = ""
    ) -> None:
        self.name = name
        self.counts = True
        self.code: str | None = None
        self.are_days = True
        self._mark = mark
        self._said = kind
        self._kind = kind
        self._typed = typed
        self._source = source
        self._values = array("d")
        self._codes: dict[str, int] = {}
        self._large: dict[float, int] = {}

    def add(self, cell: str, where: str) -> None:
        """Read the cell of the next row.

        Args:
            cell: the cell.
            where: names the row, for messages.

        Raises:
            UnfitDataError: the cell is missing, or not what the others are.
        """
        text = cell.strip()
        if self._kind is None:
            self._kind = self._kind_of(text, where)
        if self._kind is ColumnKind.NUMBERS:
            self._add_number(text, where)
        elif self._kind is ColumnKind.TRUTH:
            self._add_truth(text, where)
        else:
            self._add_word(text, where)

    def finish(self) -> tuple[Column, np.ndarray]:
        """Return the column, and its values: numbers, or positions in its categories, float64 ``(N,)``.

        Raises:
            UnfitDataError: there are too many different texts for categories, or two spellings of one.
        """
        values = np.frombuffer(self._values, dtype=np.float64) if self._values else np.zeros(0)
        if self._kind is not ColumnKind.CATEGORIES:
            return Column(self.name, self._kind or ColumnKind.NUMBERS), values
        words = list(self._codes)
        if self._said is None and words and all(word.lower() in TRUTH for word in words):
            return Column(self.name, ColumnKind.TRUTH), np.array([TRUTH[word.lower()] for word in words])[
                values.astype(int)
            ]
        few = len(words) <= FEW_CATEGORIES or 2 * len(words) <= len(values)
        if self._said is None and not (few and len(words) <= MOST_CATEGORIES):
            raise UnfitDataError(
                f"{self._source}: column {self.name!r} holds {len(words)} different texts, such as {words[0]!r}, no "
                f"numbers; leave it out ({dropping(self.name)}), or {self._saying('if they are categories')}"
            )
        refuse_alike(words, lambda row: f"{self._source}: column {self.name!r}")
        categories = tuple(sorted(words, key=order_of))
        places = {word: float(place) for place, word in enumerate(categories)}
        codes = np.array([places[word] for word in words], dtype=np.float64)
        return Column(self.name, ColumnKind.CATEGORIES, categories), codes[values.astype(int)]

    def _kind_of(self, text: str, where: str) -> ColumnKind:
        if is_missing(text):
            raise self._refusal("the value is missing" + (f" ({text!r})" if text else ""), where)
        if self._typed and looks_like_number(text):
            raise UnfitDataError(
                f"{where}, column {self.name!r}: {text!r} looks like a number in a column of texts; save the column as "
                f"numbers, {self._saying('if they are categories')}, or drop the column ({dropping(self.name)})"
            )
        if read_number(text, self._mark) is not None:
            return ColumnKind.NUMBERS
        if looks_like_number(text):
            raise self._refusal(fault_of_number(text, self._mark), where, self._saying("if these are categories"))
        return ColumnKind.CATEGORIES

    def _add_number(self, text: str, where: str) -> None:
        number = read_number(text, self._mark)
        if number is None:
            raise self._refusal(fault_of_number(text, self._mark), where)
        if self.code is None and _CODE.fullmatch(text):
            self.code = text
        self.are_days = self.are_days and _DAY.fullmatch(text) is not None
        if self.counts:
            first = self._values[0] if self._values else number
            self.counts = text.isdigit() and number == first + len(self._values)
        if abs(number) >= EXACT and text.lstrip("+-").isdigit():
            whole = int(text)
            if self._large.setdefault(number, whole) != whole:
                raise UnfitDataError(
                    f"{where}, column {self.name!r}: {whole} and {self._large[number]} above are the same in 64 bits; "
                    f"subtract what all of the column have in common, or drop it ({dropping(self.name)})"
                )
        self._values.append(number)

    def _add_truth(self, text: str, where: str) -> None:
        value = {**TRUTH, "0": 0.0, "1": 1.0}.get(text.lower())
        if value is None:
            raise self._refusal(f"{text!r} is no truth value as in the training table", where)
        self._values.append(value)

    def _add_word(self, text: str, where: str) -> None:
        code = self._codes.get(text)
        if code is None:
            if is_missing(text):
                raise self._refusal("the value is missing" + (f" ({text!r})" if text else ""), where)
            if self._said is None and looks_like_number(text):
                first = next(iter(self._codes))
                raise self._refusal(
                    f"{text!r} looks like a number, and {first!r} above like none",
                    where,
                    self._saying("if these are categories"),
                )
            code = self._codes[text] = len(self._codes)
        self._values.append(code)

    def _saying(self, condition: str) -> str:
        return f"{condition}, say {as_categories(self.name)}"

    def _refusal(self, said: str, where: str, further: str = "") -> UnfitDataError:
        remedies = f"fix the cell, remove the line or drop the column ({dropping(self.name)})"
        return UnfitDataError(f"{where}, column {self.name!r}: {said}; {remedies}{further and '; or, '}{further}")


def recoded(values: np.ndarray, found: Column, known: Column) -> np.ndarray:
    """Return the values of a column with the codes of another one's categories.

    Args:
        values: values of ``found``, float64 ``(N,)``.
        found: the column as it was read.
        known: the column of training; categories that it lacks become :data:`UNKNOWN`.
    """
    if known.kind is not ColumnKind.CATEGORIES:
        return values
    places = {category: float(place) for place, category in enumerate(known.categories)}
    codes = np.array([places.get(category, UNKNOWN) for category in found.categories], dtype=np.float64)
    found_codes: np.ndarray = codes[values.astype(int)]
    return found_codes


def unknown_categories(codes: np.ndarray, values: np.ndarray, found: Column, origin: str) -> list[str]:
    """Say which categories no training sample has, and how often they come.

    Args:
        codes: codes of the cells among the categories of training, ``(N,)``.
        values: codes among those of ``found``, ``(N,)``.
        found: the column as it was read.
        origin: its file, for the message.
    """
    if found.kind is not ColumnKind.CATEGORIES:
        return []
    different, counts = np.unique(values[codes == UNKNOWN].astype(int), return_counts=True)
    if not len(different):
        return []
    shown = ", ".join(
        f"{found.categories[code]!r} ({count})" for code, count in zip(different[:5], counts, strict=False)
    )
    more = ", …" if len(different) > 5 else ""
    return [
        f"{origin}: column {found.name!r} has categories that no training sample has: {shown}{more}; they count as "
        "none of those of training"
    ]


def quoted(name: str) -> str:
    """Return the name of a column as it stands in a ``tasks.toml``."""
    return json.dumps(name, ensure_ascii=False)


def dropping(column: str) -> str:
    """Return the setting that leaves a column out, for a message."""
    return _setting("drop", column)


def as_categories(column: str) -> str:
    """Return, for a message, the setting that reads a column of numbers as categories."""
    return f"categories = [{quoted(column)}] ({_setting('categories', column)})"


def _setting(key: str, column: str) -> str:
    return f"`{key}={column}`" if re.fullmatch(r"\w+", column) else f"`{key}='{quoted(column)}'`"
