"""The bare arrays of a data set, and how one labelled set of images is divided into training and test images."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["ImageArrays", "every_nth_of_each_class"]


class ImageArrays(NamedTuple):
    """The bare arrays of a data set: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)``."""

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def every_nth_of_each_class(images: torch.Tensor, labels: torch.Tensor, n: int) -> ImageArrays:
    """Divide a set that is published without a test part: of each class, every n-th image is for testing.

    It depends on nothing but the order of the images, so that it is the same everywhere, and for every seed.

    Args:
        images: All images, uint8 ``(N, C, H, W)``.
        labels: Their classes, int64 ``(N,)``.
        n: At least 2; the share of test images is 1 / n, within less than one image of each class.
    """
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        test[(labels == label).nonzero().flatten()[n - 1 :: n]] = True
    return ImageArrays(images[~test], labels[~test], images[test], labels[test])
