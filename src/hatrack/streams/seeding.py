"""One seed for a run, and an own, independent stream of random numbers for every purpose within it."""

from __future__ import annotations

import hashlib
import json

import torch

__all__ = ["derive_seed", "seeded_generator"]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return the seed for one purpose within a run.

    Different purposes get unrelated seeds, so that drawing more numbers for one never changes another.

    Args:
        seed: the run's seed, any integer.
        purpose: purpose of the numbers, for example ``"permutation", 3``. ``3`` and ``"3"`` are different.

    Returns:
        An integer in 0..2**63 - 1, the same on every machine: the leading bits of a SHA-256.
    """
    # JSON separates and types the parts, so that ("a", "bc") and ("ab", "c") do not meet.
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a new generator on the CPU, seeded with :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
