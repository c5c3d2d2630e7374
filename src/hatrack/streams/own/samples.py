"""Samples of a task from its own files, made ready: labels as texts checked and numbered, features standardised."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import torch
from torch.nn import functional as F

from hatrack.errors import DataError
from hatrack.streams.base import Split
from hatrack.streams.sampling import stratified_split
from hatrack.streams.transforms import Normalise, Standardise, Transform

__all__ = ["OwnSamples", "as_splits", "divided_samples", "fitted", "order_of", "refuse_alike", "refuse_missing"]

_WORDS = "? #N/A #NA -1.#IND -1.#QNAN 1.#IND 1.#QNAN <NA> N/A NA NULL None NaT n/a null"
MISSING = frozenset(["", "#N/A N/A", *_WORDS.split()])
"""Words for a missing value in tables of pandas, R, Weka and databases; NaN counts as well, in any spelling."""


def refuse_missing(labels: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuse labels that stand for a missing one: they would become a class of their own.

    Args:
        labels: the labels of all samples.
        where: names the place of a label, given its position.

    Raises:
        DataError: a label is missing; its place is named.
    """
    missing = {label for label in set(labels) if label.strip() in MISSING or _is_nan(label)}
    for position, label in enumerate(labels):
        if label in missing:
            said = f" ({label!r}); fill it in, remove the sample, or" if label.strip() else "; fill it in or"
            other = " write another word if it is a class of its own" if label.strip() else " remove the line"
            raise DataError(f"{where(position)}: the label is missing{said}{other}")


def refuse_alike(labels: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuse two spellings of one label: the same number, or texts that differ only in what is not seen.

    Args:
        labels: the labels of all samples.
        where: names the place of a label, given its position.

    Raises:
        DataError: there are two spellings; both and the place of the later one are named.
    """
    spellings: dict[Decimal | str, str] = {}
    for label in dict.fromkeys(labels):
        first = spellings.setdefault(_as_seen(label), label)
        if first != label:
            both = [repr(each) if each.isascii() else f"{each!r} ({each!a})" for each in (first, label)]
            raise DataError(
                f"{where(labels.index(label))}: writes a class as {both[1]} that is {both[0]} elsewhere; write it one "
                "way, or give two classes names that differ to the eye"
            )


def order_of(label: str) -> tuple[int, Decimal, str]:
    """Return the sorting key of a label: numbers before words, each in their own order; no two labels share a key."""
    number = _number(label)
    return (1, Decimal(0), label) if number is None else (0, number, label)


def _is_nan(label: str) -> bool:
    try:
        return Decimal(label).is_nan()
    except InvalidOperation:
        return False


def _number(label: str) -> Decimal | None:
    """Return the exact number that a label is; None where it is none. NaN is none: it has no place among numbers."""
    try:
        number = Decimal(label)
    except InvalidOperation:
        return None
    return None if number.is_nan() else number


def _as_seen(label: str) -> Decimal | str:
    """Return a label as a person reads it: its number, or its text without the differences that no font shows."""
    number = _number(label)
    if number is not None:
        return number
    shown = "".join(letter for letter in unicodedata.normalize("NFC", label) if unicodedata.category(letter) != "Cf")
    return " ".join(shown.split())


LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class OwnSamples:
    """Labelled samples as they were read.

    Attributes:
        x: images uint8 ``(N, C, H, W)``, values 0 to 255, or finite numbers ``(N, ...)``: float32, or
            float64 where that could not hold them.
        labels: the class of each, as it was written.
        origin: their file or folder, for messages.
    """

    x: torch.Tensor
    labels: tuple[str, ...]
    origin: str


def pick_samples(samples: OwnSamples, rows: torch.Tensor) -> OwnSamples:
    """Return some of the samples, by their positions."""
    return OwnSamples(samples.x[rows], tuple(samples.labels[row] for row in rows.tolist()), samples.origin)


def divided_samples(samples: OwnSamples, share: float, generator: torch.Generator) -> tuple[OwnSamples, OwnSamples]:
    """Divide samples into training and test samples, stratified by class.

    Args:
        samples: the samples to divide.
        share: share to test on, above 0 and below 1.
        generator: draws which.
    """
    numbers = {label: number for number, label in enumerate(sorted(set(samples.labels)))}
    labels = torch.tensor([numbers[label] for label in samples.labels])
    train, test = stratified_split(labels, share, generator)
    return pick_samples(samples, train), pick_samples(samples, test)


def as_splits(train: OwnSamples, test: OwnSamples) -> tuple[tuple[str, ...], Split, Split]:
    """Number the classes, and standardise the samples by the mean and deviation of the training samples.

    Images of bytes have one mean and deviation per channel, and so have images of numbers; other samples have them for
    every feature. What does not vary in training is only shifted.

    Returns:
        The classes: numbers in their order, anything else in the order of the alphabet; the training and test samples.

    Raises:
        DataError: there is but one class, a test sample has an unknown one or one in another spelling, or the shapes
            differ.
    """
    refuse_alike([*sorted(set(train.labels)), *test.labels], lambda row: test.origin)
    classes = tuple(sorted(set(train.labels), key=order_of))
    if len(classes) < 2:
        raise DataError(f"{train.origin}: all training samples are of class {classes[0]!r}; a task needs two or more")
    unknown = sorted(set(test.labels) - set(classes))
    if unknown:
        raise DataError(f"{test.origin}: no training sample is of the test sample's class {unknown[0]!r}")
    said = ["bytes" if samples.x.dtype == torch.uint8 else "numbers" for samples in (test, train)]
    if train.x.shape[1:] != test.x.shape[1:] or said[0] != said[1]:
        raise DataError(
            f"{test.origin}: test samples are {said[0]} {tuple(test.x.shape[1:])}, "
            f"training samples {said[1]} {tuple(train.x.shape[1:])}"
        )
    numbers = {label: number for number, label in enumerate(classes)}
    mean, std = _statistics(train.x)
    transform: Transform = Standardise(mean, std)
    if train.x.dtype == torch.uint8:
        transform = Normalise(*(tuple((values.flatten() / 255).tolist()) for values in (mean, std)))
    splits = []
    for samples in (train, test):
        y = torch.tensor([numbers[label] for label in samples.labels])
        splits.append(Split(samples.x, torch.arange(len(y)), y, transform))
    return classes, splits[0], splits[1]


def fitted(images: torch.Tensor, resize: tuple[int, int] | None, channels: int | None) -> torch.Tensor:
    """Give images the size and the channels that were asked for.

    Args:
        images: uint8 or floats ``(N, C, H, W)`` with one or three channels.
        resize: height and width, bilinear and antialiased whatever the proportions; None leaves them.
        channels: 1 takes the luminance of colours, 3 repeats grey; None leaves them.
    """
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


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation in float64, shaped to go with the samples: per channel of images, else per feature.

    The deviation of what does not vary is 1.
    """
    over = (0, *range(2, x.dim())) if x.dim() > 2 else (0,)
    count = x.numel() // (x.shape[1] if x.dim() > 1 else 1)
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
