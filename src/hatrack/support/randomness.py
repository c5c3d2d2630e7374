"""Random numbers of code that takes no generator, such as initial weights and dropout, drawn without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["random_numbers_apart", "seed_generators"]


@contextmanager
def random_numbers_apart(seed: int | None = None) -> Iterator[None]:
    """Draw from torch's global generators in a block, and give them back as they were.

    These are the one of the processor and, once CUDA is in use, those of all its devices.

    Args:
        seed: what to seed them with in the block; None to draw on from where they are.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        if seed is not None:
            seed_generators(seed)
        yield


def seed_generators(seed: int) -> None:
    """Seed torch's global generators, in a block of :func:`random_numbers_apart`.

    Other than :func:`torch.manual_seed`, it leaves devices alone that are not in use: there a seed would wait, with the
    trace of the stack, for the first use of the device, and take the place of one that the user has set.

    Args:
        seed: the seed.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
