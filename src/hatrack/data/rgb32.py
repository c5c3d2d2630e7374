"""The common form of the HAT paper's mixture: every data set as colour images of 32 x 32.

Source: J. Serrà, D. Surís, M. Miron, A. Karatzoglou, ICML 2018, section 3: images are padded or resized to 32 x 32, and
grey ones are repeated over three channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from hatrack.data.dataset import Fitting, ImageDataset
from hatrack.errors import InputError

__all__ = ["SIDE", "as_rgb32", "padded_constants"]

SIDE = 32
"""Height and width of the common form."""
CHUNK = 4096
"""Images that are resized at a time, so that the work in floats needs little memory."""


def as_rgb32(dataset: ImageDataset) -> ImageDataset:
    """Return a data set in the paper's common form, 3 x 32 x 32.

    Images of another size are padded with zeros around them, or resized (bilinear, antialiased, whatever their
    proportions), as ``dataset.common_form`` says; grey ones are repeated over the channels. Repeated channels share
    their memory: copy the images before writing to them.

    The constants are those published for the common form where there are such. Otherwise, padded images get those that
    follow from the unpadded ones, and resized images keep their own, since resizing hardly changes them.

    Args:
        dataset: images of one or three channels.

    Returns:
        A data set whose images are uint8 ``(N, 3, 32, 32)``; the same object if it had this form already.

    Raises:
        InputError: the images have another number of channels, or are to be padded and larger than 32 x 32.
    """
    channels, height, width = dataset.x_train.shape[1:]
    if (channels, height, width) == (3, SIDE, SIDE):
        return dataset
    if channels not in (1, 3):
        raise InputError(f"{dataset.name}: images of {channels} channels cannot be made RGB; only 1 or 3 can")
    form = dataset.common_form
    mean, std = dataset.mean, dataset.std
    if (height, width) == (SIDE, SIDE):
        parts = [dataset.x_train, dataset.x_test]
    elif form.fitting is Fitting.PAD:
        if height > SIDE or width > SIDE:
            raise InputError(f"{dataset.name}: images of {width} x {height} cannot be padded to 32 x 32; resize them")
        parts = [_padded(images) for images in (dataset.x_train, dataset.x_test)]
        mean, std = padded_constants(mean, std, share=height * width / SIDE**2)
    else:
        parts = [_resized(images) for images in (dataset.x_train, dataset.x_test)]
    x_train, x_test = (images.expand(-1, 3, -1, -1) for images in parts)
    return dataclasses.replace(
        dataset,
        x_train=x_train,
        x_test=x_test,
        mean=_for_three_channels(form.mean or mean),
        std=_for_three_channels(form.std or std),
    )


def padded_constants(
    mean: Sequence[float], std: Sequence[float], share: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel once zeros surround the images.

    With a share q of the pixels left, m' = q m and s'² + m'² = q (s² + m²).

    Args:
        mean: mean of each channel before.
        std: standard deviation of each channel before.
        share: part of the padded image's area that is the image, in (0, 1].
    """
    means = tuple(share * one for one in mean)
    squares = (share * (one**2 + deviation**2) for one, deviation in zip(mean, std, strict=True))
    return means, tuple((square - one**2) ** 0.5 for square, one in zip(squares, means, strict=True))


def _padded(images: torch.Tensor) -> torch.Tensor:
    """Put zeros on all sides; an odd one goes to the right and to the bottom."""
    height, width = images.shape[2:]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    return F.pad(images, (left, SIDE - width - left, top, SIDE - height - top))


def _resized(images: torch.Tensor) -> torch.Tensor:
    resized = torch.empty(*images.shape[:2], SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK].float()
        smooth = F.interpolate(chunk, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        resized[start : start + CHUNK] = smooth.round_().clamp_(0, 255).byte()
    return resized


def _for_three_channels(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * 3 if len(values) == 1 else values
