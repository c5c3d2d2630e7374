"""The bare arrays of a data set, and how one labelled set of images is divided into training and test images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

__all__ = [
    "ImageArrays",
    "channel_statistics",
    "every_nth_of_each_class",
    "identical_images",
    "note_of_identical",
    "rows_by_class",
]


class ImageArrays(NamedTuple):
    """The bare arrays of a data set: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)``."""

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def rows_by_class(labels: torch.Tensor) -> list[torch.Tensor]:
    """Return the rows of every class that occurs, ascending, by ascending label."""
    return [(labels == label).nonzero().flatten() for label in sorted(set(labels.tolist()))]


def every_nth_of_each_class(images: torch.Tensor, labels: torch.Tensor, n: int) -> ImageArrays:
    """Divide a set that is published without a test part: of each class, every n-th image is for testing.

    It depends on nothing but the order of the images, so that it is the same everywhere, and for every seed.

    Args:
        images: all images, uint8 ``(N, C, H, W)``.
        labels: their classes, int64 ``(N,)``.
        n: at least 2; the share of test images is 1 / n, within less than one image of each class.
    """
    test = torch.zeros(len(labels), dtype=torch.bool)
    for rows in rows_by_class(labels):
        test[rows[n - 1 :: n]] = True
    return ImageArrays(images[~test], labels[~test], images[test], labels[test])


def identical_images(train: torch.Tensor, test: torch.Tensor) -> list[tuple[int, int]]:
    """Return the rows of test images that are training images, too, each with the first such row.

    Args:
        train: uint8 ``(N, C, H, W)``.
        test: uint8 ``(M, C, H, W)``.
    """
    first: dict[bytes, int] = {}
    for row, digest in enumerate(_digests(train)):
        first.setdefault(digest, row)
    return [(row, first[digest]) for row, digest in enumerate(_digests(test)) if digest in first]


def note_of_identical(
    train: torch.Tensor, test: torch.Tensor, train_names: Sequence[str] = (), test_names: Sequence[str] = ()
) -> str:
    """Say how many test pictures are training pictures, too; empty where none is.

    Args:
        train: uint8 ``(N, C, H, W)``.
        test: uint8 ``(M, C, H, W)``.
        train_names: the files of the training pictures; their rows if left out.
        test_names: the files of the test pictures, likewise.
    """
    pairs = identical_images(train, test)
    if not pairs:
        return ""
    row, twin = pairs[0]
    such = f"{test_names[row] if test_names else row} and {train_names[twin] if train_names else twin}"
    count = f"{len(pairs):,} of {len(test):,} test pictures are"
    return f"{count} identical with training pictures (such as {such}), so that tests on them are no tests"


def _digests(images: torch.Tensor) -> list[bytes]:
    return [hashlib.blake2b(image, digest_size=16).digest() for image in images.contiguous().numpy()]


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, after scaling to [0, 1].

    They are computed from counts of the 256 values, so that nothing is lost by adding up many small numbers.

    Args:
        images: uint8 ``(N, C, H, W)``, at least one.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for start in range(0, len(images), 4096):  # bincount needs eight times the memory
            counts += images[start : start + 4096, channel].flatten().bincount(minlength=256)
        mean = float(counts @ values / counts.sum())
        means.append(mean)
        deviations.append(float(counts @ (values - mean) ** 2 / counts.sum()) ** 0.5)
    return tuple(means), tuple(deviations)
