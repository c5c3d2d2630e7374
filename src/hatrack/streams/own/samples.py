"""Samples of a task from its own files, made ready: targets numbered, features standardised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hatrack.data.arrays import note_of_identical
from hatrack.errors import DataError, UnfitDataError
from hatrack.objectives import Objective
from hatrack.streams.base import Split
from hatrack.streams.files_read import FilesRead
from hatrack.streams.own.targets import UNSAID, OwnTargets, TargetChoice
from hatrack.streams.sampling import stratified_split
from hatrack.streams.transforms import Normalise, Standardise, Transform

__all__ = ["OwnSamples", "ReadSamples", "as_splits", "divided_samples", "fitted", "note_of_shared_pictures"]

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True, eq=False)
class OwnSamples:
    """Labelled samples as they were read.

    Attributes:
        x: images uint8 ``(N, C, H, W)``, values 0 to 255, or finite numbers ``(N, ...)``: float32, or
            float64 where that could not hold them.
        targets: their targets, as they were read.
        origin: their file or folder, for messages.
        names: the file of every sample within ``origin``; empty where a file holds several.
    """

    x: torch.Tensor
    targets: OwnTargets
    origin: str
    names: tuple[str, ...] = ()


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


def pick_samples(samples: OwnSamples, rows: torch.Tensor) -> OwnSamples:
    """Return some of the samples, by their positions."""
    positions = rows.tolist()
    names = tuple(samples.names[row] for row in positions) if samples.names else ()
    return OwnSamples(samples.x[rows], samples.targets.part(positions), samples.origin, names)


def divided_samples(samples: OwnSamples, share: float, generator: torch.Generator) -> tuple[OwnSamples, OwnSamples]:
    """Divide samples into training and test samples, stratified by class.

    Args:
        samples: the samples to divide.
        share: share to test on, above 0 and below 1.
        generator: draws which.
    """
    train, test = stratified_split(samples.targets.strata(), share, generator)
    return pick_samples(samples, train), pick_samples(samples, test)


def as_splits(
    train: OwnSamples, test: OwnSamples, choice: TargetChoice | None = None
) -> tuple[Objective, Split, Split]:
    """Number the targets, and standardise the samples by the mean and deviation of the training samples.

    Images of bytes have one mean and deviation per channel, and so have images of numbers; other samples have them for
    every feature. What does not vary in training is only shifted.

    Args:
        train: the training samples.
        test: the test samples.
        choice: what is said about the targets; None for nothing.

    Returns:
        The objective, with classes that are numbers in their order and anything else in the order of the alphabet; the
        training and test samples.

    Raises:
        DataError: there is nothing to learn, such as but one class, a test sample has an unknown class or one in
            another spelling, or the shapes differ.
    """
    origins = (train.origin, test.origin)
    if type(train.targets) is not type(test.targets):
        raise DataError(f"{test.origin}: test samples have targets of another kind than training samples")
    objective, *targets = train.targets.numbered(test.targets, choice or UNSAID, origins)
    said = ["bytes" if samples.x.dtype == torch.uint8 else "numbers" for samples in (test, train)]
    if train.x.shape[1:] != test.x.shape[1:] or said[0] != said[1]:
        raise DataError(
            f"{test.origin}: test samples are {said[0]} {tuple(test.x.shape[1:])}, "
            f"training samples {said[1]} {tuple(train.x.shape[1:])}"
        )
    mean, std = _statistics(train.x)
    transform: Transform = Standardise(mean, std)
    if train.x.dtype == torch.uint8:
        transform = Normalise(*(tuple((values.flatten() / 255).tolist()) for values in (mean, std)))
    splits = [
        Split(samples.x, torch.arange(len(y)), y, transform) for samples, y in zip((train, test), targets, strict=True)
    ]
    return objective, splits[0], splits[1]


def note_of_shared_pictures(train: OwnSamples, test: OwnSamples) -> str:
    """Say how many test pictures are training pictures, too, pixel by pixel; empty where none is or there are none."""
    if not all(samples.x.dtype == torch.uint8 and samples.x.dim() == 4 for samples in (train, test)):
        return ""
    return note_of_identical(train.x, test.x, train.names, test.names)


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
