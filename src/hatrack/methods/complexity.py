"""Complexity of samples, by the local entropy of their pixels; learning from the simple to the complex."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["curriculum_threshold", "local_entropy", "sample_complexity", "scaled_epochs"]

RADIUS = 5
"""Radius of the window, in pixels."""

LEVELS = 256
"""Grey levels that pixels are told apart by."""

WINDOWS_AT_ONCE = 2**17
"""So many windows are sorted at once: some 100 MiB."""


def local_entropy(grey: Tensor, radius: int = RADIUS) -> Tensor:
    """Return the entropy in bits of the grey levels around every pixel: ``−Σ_g p_g log2 p_g``.

    The window is a disk, the pixels at most ``radius`` away; what of it lies outside of the picture does not count.

    Args:
        grey: levels ``(N, H, W)``, integers in 0..255.
        radius: of the window, 0 or more.

    Returns:
        ``(N, H, W)``, float32: 0 where all levels in the window are the same, at most log2 of their number.
    """
    per_picture = max(1, grey[:1].numel())
    pieces = torch.split(grey, max(1, WINDOWS_AT_ONCE // per_picture))
    return torch.cat([_entropy_of(piece, radius) for piece in pieces])


def _entropy_of(grey: Tensor, radius: int) -> Tensor:
    """Return, with n pixels in a window, of which a level has c, ``log2 n − Σ c log2 c / n``."""
    disk = _disk(radius)
    pixels = int(disk.sum())
    size = 2 * radius + 1

    def windows(values: Tensor) -> Tensor:
        padded = F.pad(values, (radius,) * 4, value=-1)
        return padded.unfold(1, size, 1).unfold(2, size, 1)[..., disk.to(values.device)]

    levels = windows(grey.to(torch.int16))
    outside = levels < 0
    count = (~outside).sum(-1)
    # Outside of the picture every position has a level of its own, so that it adds 1 · log2 1 = 0.
    unique = torch.arange(LEVELS, LEVELS + pixels, dtype=torch.int16, device=grey.device)
    ordered = torch.where(outside, unique, levels).sort(dim=-1).values
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    position = torch.arange(pixels, device=grey.device)
    run_start = torch.where(starts, position, 0).cummax(dim=-1).values
    total = _steps(pixels).to(grey.device)[position - run_start].sum(-1)
    entropy: Tensor = torch.log2(count) - total / count
    return entropy


@lru_cache(maxsize=8)
def _steps(longest: int) -> Tensor:
    """Return by how much ``c log2 c`` grows when c becomes 1, 2, …; a run of c equal levels sums up to ``c log2 c``."""
    c = torch.arange(longest + 1, dtype=torch.float64)
    steps: Tensor = (torch.special.xlogy(c, c) / math.log(2)).diff()
    return steps.float()


@lru_cache(maxsize=8)
def _disk(radius: int) -> Tensor:
    offsets = torch.arange(-radius, radius + 1)
    return offsets.square().unsqueeze(1) + offsets.square() <= radius**2


def sample_complexity(x: Tensor) -> Tensor:
    """Measure the complexity ζ of every sample of a data set, from 0 (its simplest) to 1 (its most complex).

    The mean over the pixels of the local entropy, scaled to [0, 1] over the set. Pictures become grey as the mean of
    their channels, in 256 levels from the darkest pixel of the set to the brightest. What is no picture ``(C, H, W)``
    has no pixels around another, and is as simple as can be.

    Args:
        x: samples ``(N, ...)``, N at least 1.

    Returns:
        ``(N,)``, float32; all 0 if the samples are equally complex, or no pictures.
    """
    if x.dim() != 4:
        return torch.zeros(len(x), device=x.device)
    grey = (_scaled(x.float().mean(dim=1)) * (LEVELS - 1)).round().to(torch.int16)
    return _scaled(local_entropy(grey).mean(dim=(1, 2)))


def _scaled(values: Tensor) -> Tensor:
    """Return values from 0 (the lowest) to 1 (the highest)."""
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if high == low else (values - low) / (high - low)


def curriculum_threshold(epoch: int, length: int, start: float) -> float:
    """Return the complexity up to which samples are learned: ``start`` in the first epoch, linearly to 1.

    Args:
        epoch: counted from 1.
        length: number of epochs before all samples take part; 0 for none.
        start: the first threshold, in [0, 1].

    Returns:
        In [start, 1]: 1 in every epoch after the first ``length``.
    """
    return 1.0 if epoch > length else start + (1.0 - start) * (epoch - 1) / length


def scaled_epochs(length: int, epochs: int, full: int) -> int:
    """Shorten a part of the schedule, in proportion, for a training of fewer epochs than it was made for.

    Args:
        length: epochs of the part in a training of ``full`` epochs.
        epochs: number of epochs of the training.
        full: number of epochs that the schedule was made for; a longer training leaves the part as it is.
    """
    return length if epochs >= full else round(length * epochs / full)
