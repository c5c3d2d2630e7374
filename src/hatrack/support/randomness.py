"""Random numbers of code that takes no generator, such as initial weights and dropout, drawn without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["random_numbers_apart", "random_state", "seed_generators", "set_random_state"]


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


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the states of torch's generators of the processor and, if the device is a GPU, of that."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put the generators back to where :func:`random_state` found them, in a block of :func:`random_numbers_apart`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
