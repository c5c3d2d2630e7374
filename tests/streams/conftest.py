from __future__ import annotations

import pytest
import torch

from hatrack.data import ImageDataset


@pytest.fixture(scope="session")
def tiny() -> ImageDataset:
    """200 + 60 random images of 2 channels and 3 x 4 pixels, of 5 classes of unequal size in random order."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 2, 3, 4), dtype=torch.uint8, generator=generator)

    def labels(sizes: list[int]) -> torch.Tensor:
        ordered = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return ordered[torch.randperm(len(ordered), generator=generator)]

    return ImageDataset(
        name="tiny",
        x_train=images(200),
        y_train=labels([70, 50, 40, 30, 10]),
        x_test=images(60),
        y_test=labels([20, 15, 10, 10, 5]),
        class_names=("Ant/bug", "Bee", "Cat", "Dog", "Big eel"),
        mean=(0.4, 0.6),
        std=(0.2, 0.3),
    )
