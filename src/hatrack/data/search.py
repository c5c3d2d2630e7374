"""Trying one form of a data set after the other, and saying in one error why none can be had."""

from __future__ import annotations

import dataclasses

from hatrack.data.sources import Absence, NotFoundError
from hatrack.errors import DataError

__all__ = ["FormSearch"]


class FormSearch:
    """Attempts to obtain the forms of a data set: a context around each gathers why it failed."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._errors: list[DataError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, DataError):  # a damaged form must not hide a sound one
            self._errors.append(error)
            return True
        return False

    def failure(self) -> DataError:
        """Return the one error that names all places that were searched, all faults there, and the remedy."""
        absences = [error.absence for error in self._errors if isinstance(error, NotFoundError)]
        faults = [str(error) for error in self._errors if not isinstance(error, NotFoundError)]
        if len({str(error) for error in self._errors}) == 1:
            return self._errors[-1]
        if not absences:
            return DataError("; ".join(dict.fromkeys(faults)))
        whole = Absence.of_all(absences)
        whole = dataclasses.replace(whole, faults=tuple(dict.fromkeys((*whole.faults, *faults))))
        return NotFoundError(f"{self._dataset}:", whole)
