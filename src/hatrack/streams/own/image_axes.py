"""Order of the axes of images in arrays: channels first or last, as it is said or as their sizes tell it."""

from __future__ import annotations

import enum

import numpy as np

from hatrack.errors import UnfitDataError

__all__ = ["CHANNELS", "ImageAxes", "channels_first"]

CHANNELS = (1, 3, 4)
"""Numbers of channels that pictures have: grey, colour, and colour with opaqueness or a fourth band."""


class ImageAxes(enum.Enum):
    """Order of the axes of images: number, channels, height, width."""

    CHANNELS_FIRST = "NCHW"
    CHANNELS_LAST = "NHWC"


def channels_first(array: np.ndarray, axes: ImageAxes | None, where: str) -> np.ndarray:
    """Return an array of four axes with the channels first; any other array as it is.

    What nobody has said is told by the sizes: channels are last if the last axis is 1, 3 or 4 and the second is not,
    and first if it is the other way round. Where both or neither are, they are first if images are square then and not
    otherwise; or if images are square in neither order, and neither axis is 1, 3 or 4.

    Args:
        array: samples ``(N, ...)``.
        axes: the order that was said; None lets the sizes tell it.
        where: name of the array, for the message.

    Raises:
        UnfitDataError: either order would do by the sizes, or an order was said for an array without four axes.
    """
    if array.ndim != 4:
        if axes is not None:
            raise UnfitDataError(f"{where} has the shape {array.shape}, which is not {axes.value}; leave out axes")
        return array
    axes = axes or _told_by(array.shape)
    if axes is None:
        raise UnfitDataError(
            f"{where} has the shape {array.shape}, which could be (N, C, H, W) as well as (N, H, W, C); say "
            'axes = "NCHW" or axes = "NHWC" for the task in a tasks.toml'
        )
    return array.transpose(0, 3, 1, 2) if axes is ImageAxes.CHANNELS_LAST else array


def _told_by(shape: tuple[int, ...]) -> ImageAxes | None:
    """Return the order that the sizes tell; None if they do not."""
    _, second, third, last = shape
    if (second in CHANNELS) != (last in CHANNELS):
        return ImageAxes.CHANNELS_FIRST if second in CHANNELS else ImageAxes.CHANNELS_LAST
    square_if_first, square_if_last = third == last, second == third
    likely = not square_if_last and (square_if_first or second not in CHANNELS)
    return ImageAxes.CHANNELS_FIRST if likely else None
