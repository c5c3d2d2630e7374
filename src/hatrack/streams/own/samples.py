"""Samples of a task from its own files, made ready: targets numbered, features standardised."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from hatrack.errors import UnfitDataError
from hatrack.objectives import Objective
from hatrack.streams.base import Split
from hatrack.streams.files_read import FilesRead
from hatrack.streams.own.columns import (
    Column,
    ColumnKind,
    TableRows,
    recoded,
    spread,
    unknown_categories,
)
from hatrack.streams.own.spelling import refuse_alike
from hatrack.streams.own.targets import UNSAID, OwnTargets, TargetChoice
from hatrack.streams.sampling import stratified_split
from hatrack.streams.transforms import Normalise, Standardise, Transform

__all__ = [
    "OwnSamples",
    "OwnSplits",
    "ReadSamples",
    "as_splits",
    "divided_samples",
    "fitted",
]

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class OwnSamples:
    """Labelled samples as they were read.

    Attributes:
        x: images uint8 ``(N, C, H, W)``, values 0 to 255, or finite numbers ``(N, ...)``: float32, or
            float64 where that could not hold them; of tables, rows as :class:`hatrack.streams.own.columns.TableRows`
            takes them.
        targets: their targets, as they were read.
        origin: their file or folder, for messages.
        names: the place of every sample within ``origin``: a file, a line or row, or an array and the position in it.
        pictures: whether numbers ``(N, C, H, W)`` were said to be images; bytes are.
        columns: the columns of a table; empty for others.
        notes: what was found in the files that a person would want to know.
    """

    x: torch.Tensor
    targets: OwnTargets
    origin: str
    names: tuple[str, ...]
    pictures: bool = False
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ReadSamples:
    """Samples of a task as they were read, and what is to be said of it.

    Attributes:
        train: the training samples.
        test: the test samples; None where the files do not say which these are.
        files: the files that were read, and those that were passed over.
        notes: sentences for people about what was decided by looking at the files.
    """

    train: OwnSamples
    test: OwnSamples | None
    files: FilesRead
    notes: tuple[str, ...] = ()


class OwnSplits(NamedTuple):
    """Samples of a task, ready to be learned.

    Attributes:
        objective: what the targets mean.
        train: the training samples.
        test: the test samples.
        notes: what was found that a person would want to know.
    """

    objective: Objective
    train: Split
    test: Split
    notes: tuple[str, ...]


def pick_samples(samples: OwnSamples, rows: torch.Tensor) -> OwnSamples:
    """Return some of the samples, by their positions."""
    positions = rows.tolist()
    names = tuple(samples.names[row] for row in positions)
    return replace(samples, x=samples.x[rows], targets=samples.targets.part(positions), names=names)


def divided_samples(samples: OwnSamples, share: float, generator: torch.Generator) -> tuple[OwnSamples, OwnSamples]:
    """Divide samples into training and test samples, stratified by class.

    Args:
        samples: the samples to divide.
        share: share to test on, above 0 and below 1.
        generator: draws which.
    """
    train, test = stratified_split(samples.targets.strata(), share, generator)
    return pick_samples(samples, train), pick_samples(samples, test)


def as_splits(train: OwnSamples, test: OwnSamples, choice: TargetChoice | None = None) -> OwnSplits:
    """Number the targets, and standardise the samples by the mean and deviation of the training samples.

    These are all of the training part, whichever of them are then held out for validation, or left out.

    Images have one mean and deviation per channel. Of all others every position of a sample has its own, whatever the
    order of their axes: a sequence ``(T, F)`` is standardised as its numbers in a row ``(T · F,)`` are. What does not
    vary in training is only shifted. Categories of a table become features of 0 and 1, those that occur in training.

    Args:
        train: the training samples.
        test: the test samples.
        choice: what is said about the targets; None for nothing.

    Returns:
        The objective, with classes that are numbers in their order and anything else in the order of the alphabet; the
        training and test samples; notes.

    Raises:
        UnfitDataError: there is nothing to learn, such as but one class, a test sample has an unknown class or one in
            another spelling or is too far from all training samples, or the shapes differ.
    """
    origins = (train.origin, test.origin)
    if type(train.targets) is not type(test.targets):
        raise UnfitDataError(f"{test.origin}: test samples have targets of another kind than training samples")
    objective, *targets = train.targets.numbered(test.targets, choice or UNSAID, origins)
    said = ["bytes" if samples.x.dtype == torch.uint8 else "numbers" for samples in (test, train)]
    if train.x.shape[1:] != test.x.shape[1:] or said[0] != said[1]:
        raise UnfitDataError(
            f"{test.origin}: test samples are {said[0]} {tuple(test.x.shape[1:])}, "
            f"training samples {said[1]} {tuple(train.x.shape[1:])}"
        )
    notes = [*train.notes, *(note for note in test.notes if note not in train.notes)]
    if train.columns:
        train, test, found = _with_categories_of_training(train, test)
        notes += found
    is_image = train.x.dtype == torch.uint8 or train.pictures
    values = spread(train.columns, train.x) if train.columns else train.x
    mean, std = _statistics(values, by_channel=is_image and train.x.dim() == 4)
    transform: Transform = Standardise(mean, std)
    if train.columns:
        transform = TableRows(train.columns, Standardise(mean, std))
        notes += _constant(transform, values)
    if train.x.dtype == torch.uint8:
        transform = Normalise(*(tuple((values.flatten() / 255).tolist()) for values in (mean, std)))
    splits = [
        Split(samples.x, torch.arange(len(y)), y, transform) for samples, y in zip((train, test), targets, strict=True)
    ]
    if not is_image:
        _refuse_far(test, transform)
    return OwnSplits(objective, splits[0], splits[1], tuple(notes))


def _with_categories_of_training(train: OwnSamples, test: OwnSamples) -> tuple[OwnSamples, OwnSamples, list[str]]:
    """Return the samples with codes for the categories that occur in training, and notes on those that do not."""
    columns: list[Column] = []
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    notes: list[str] = []
    for place, (known, other) in enumerate(zip(train.columns, test.columns, strict=True)):
        values = train.x[:, place].numpy(), test.x[:, place].numpy()
        if known.kind is ColumnKind.CATEGORIES:
            occurring = np.unique(values[0].astype(int))
            where = f"{test.origin}: column {known.name!r}"
            refuse_alike([*known.categories, *other.categories], functools.partial(_at, where))
            column = replace(known, categories=tuple(known.categories[code] for code in occurring))
            codes = recoded(values[0], known, column), recoded(values[1], other, column)
            notes += unknown_categories(codes[1], values[1], other, test.origin)
        else:
            column, codes = known, values
        columns.append(column)
        for part, code in zip(parts, codes, strict=True):
            part.append(torch.from_numpy(code))
    x_train, x_test = (torch.stack(part, dim=1) for part in parts)
    both = tuple(columns)
    return replace(train, x=x_train, columns=both), replace(test, x=x_test, columns=both), notes


def _at(where: str, _: int) -> str:
    return where


def _constant(rows: TableRows, values: torch.Tensor) -> list[str]:
    """Say which numbers of a table are the same in all training samples."""
    numbers = {column.name for column in rows.columns if column.kind is not ColumnKind.CATEGORIES}
    constant = (values == values[0]).all(dim=0).tolist()
    plain = [name for name, same in zip(rows.features, constant, strict=True) if same and name in numbers]
    if not plain:
        return []
    shown = ", ".join(map(repr, plain[:5])) + (", …" if len(plain) > 5 else "")
    return [f"the same in all training samples, so that nothing can be learned from it: {shown}"]


def _refuse_far(test: OwnSamples, transform: Transform) -> None:
    """Refuse test samples that float32 cannot hold once they are standardised."""
    for start in range(0, len(test.x), 4096):
        finite = transform(test.x[start : start + 4096]).isfinite().flatten(1).all(dim=1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise UnfitDataError(
                f"{test.origin}: test sample {row} is infinitely far from all training samples, measured by how much "
                "these differ; leave out what hardly varies in training"
            )


def fitted(images: torch.Tensor, resize: tuple[int, int] | None, channels: int | None) -> torch.Tensor:
    """Give images the size and the channels that were asked for.

    Args:
        images: uint8 or floats ``(N, C, H, W)``.
        resize: height and width, bilinear and antialiased whatever the proportions; None leaves them.
        channels: 1 takes the luminance of colours, 3 repeats grey; None leaves them.

    Raises:
        UnfitDataError: ``channels`` is given, and the images have neither one nor three.
    """
    if channels is not None and images.shape[1] not in (1, 3):
        raise UnfitDataError(
            f"images of {images.shape[1]} channels cannot be made images of {channels}, for it is not known what they "
            "mean; save those that are wanted, such as x[..., :3], or leave out channels"
        )
    if channels == 3 and images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    elif channels == 1 and images.shape[1] == 3:
        weights = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
        images = _as_before((_as_floats(images) * weights).sum(dim=1, keepdim=True), images.dtype)
    if resize is not None and tuple(images.shape[-2:]) != resize:
        resized = F.interpolate(_as_floats(images), list(resize), mode="bilinear", antialias=True, align_corners=False)
        images = _as_before(resized, images.dtype)
    return images


def _as_floats(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() else x.float()


def _as_before(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else x


def _statistics(x: torch.Tensor, *, by_channel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation in float64, shaped to go with the samples: per channel of images, else per position.

    The deviation of what does not vary is 1.
    """
    over = (0, *range(2, x.dim())) if by_channel else (0,)
    count = x.numel() // x.shape[1] if by_channel else len(x)
    mean = sum((part.double().sum(dim=over, keepdim=True) for part in torch.split(x, 4096)), torch.zeros(())) / count
    squares = ((part.double() - mean).square().sum(dim=over, keepdim=True) for part in torch.split(x, 4096))
    std = (sum(squares, torch.zeros(())) / count).sqrt()
    # Computing leaves a trace of deviation where there is none, some 1e-16 of the numbers; dividing by it would make
    # noise of it. Whole numbers are not computed so: those of a clock differ by as little and mean it.
    split = torch.split(x, 4096)
    floats = split if x.is_floating_point() else ()
    fractions = sum((part.double().frac().abs().sum(dim=over, keepdim=True) for part in floats), torch.zeros(()))
    low = torch.stack([part.amin(dim=over, keepdim=True) for part in split]).amin(dim=0)
    high = torch.stack([part.amax(dim=over, keepdim=True) for part in split]).amax(dim=0)
    constant = (low == high) | (std == 0) | ((std <= 1e-13 * mean.abs()) & (fractions > 0))
    mean = torch.where(low == high, low.double(), mean)
    return mean, torch.where(constant, 1.0, std)
