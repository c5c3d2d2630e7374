"""The errors that hatrack raises: one clear line each, saying what to do.

Arguments and settings that would help stand in backticks; the command line puts its options in their place.
"""

from __future__ import annotations

__all__ = [
    "DOES_NOT_RUN",
    "CheckpointError",
    "DamagedFileError",
    "DataError",
    "GuaranteeError",
    "HatrackError",
    "InputError",
    "NewerFileError",
    "TrainingError",
    "UnfitDataError",
    "UnsupportedError",
]


DOES_NOT_RUN = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""Exceptions of networks that do not run on an input; InputError is one of them, refusals of other kinds are not."""


class HatrackError(Exception):
    """Base of every error that hatrack raises on purpose; its message is one line for a person to act on."""


class InputError(HatrackError, ValueError):
    """The caller asked for something that cannot be: an unknown name, a wrong shape, a label outside the head."""


class DataError(HatrackError):
    """A data file is missing, damaged, or not what its name says."""


class UnfitDataError(DataError):
    """Data is whole and not what was said about it: other settings, such as columns to leave out, make it fit."""


class UnsupportedError(HatrackError):
    """The network uses an operation that no rule explains, so its parameters could not be protected."""


class GuaranteeError(HatrackError):
    """Something that must not move has moved: a consolidated task would no longer give its old outputs."""


class CheckpointError(HatrackError):
    """A saved file is damaged, foreign, from another version, or made for another network."""


class DamagedFileError(CheckpointError):
    """A file is missing, cannot be read, or is not what was written."""


class NewerFileError(CheckpointError):
    """A file is whole, but a newer version of hatrack wrote it."""


class TrainingError(HatrackError):
    """Training cannot go on, for example because the loss is not a number."""
