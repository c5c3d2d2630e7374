from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from hatrack.methods.complexity import curriculum_threshold, local_entropy, sample_complexity, scaled_epochs


def by_pixel(grey: Tensor, radius: int) -> Tensor:
    """The entropy of each pixel's disk, counted by hand."""
    height, width = grey.shape
    result = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            counts = Counter(
                int(grey[r, c])
                for r in range(height)
                for c in range(width)
                if (r - row) ** 2 + (c - column) ** 2 <= radius**2
            )
            total = sum(counts.values())
            result[row, column] = -sum(n / total * math.log2(n / total) for n in counts.values())
    return result


@pytest.mark.parametrize(("shape", "levels"), [((13, 9), 256), ((12, 12), 3), ((1, 20), 5), ((4, 4), 256)])
@pytest.mark.parametrize("radius", [5, 1, 0])
def test_the_local_entropy_is_that_of_a_loop_over_pixels(shape: tuple[int, int], levels: int, radius: int) -> None:
    grey = torch.randint(0, levels, (3, *shape), generator=torch.Generator().manual_seed(levels))
    expected = torch.stack([by_pixel(picture, radius) for picture in grey])
    torch.testing.assert_close(local_entropy(grey, radius), expected, atol=1e-5, rtol=1e-5)


def test_entropies_by_hand() -> None:
    halves = torch.tensor([[[0, 0, 7, 7]]])  # radius 5 sees all four: two levels, half each
    assert local_entropy(halves).tolist() == [[[1.0] * 4]]
    assert local_entropy(torch.arange(8).view(1, 2, 4)).flatten().tolist() == pytest.approx([3.0] * 8)


def test_many_pictures_are_measured_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = torch.randint(0, 256, (7, 6, 6), generator=torch.Generator().manual_seed(0))
    whole = local_entropy(grey)
    monkeypatch.setattr("hatrack.methods.complexity.WINDOWS_AT_ONCE", 80)
    assert torch.equal(local_entropy(grey), whole)


def test_complexity_goes_from_0_to_1_over_the_set() -> None:
    generator = torch.Generator().manual_seed(0)
    flat, noise = torch.zeros(3, 8, 8), torch.rand(3, 8, 8, generator=generator)
    edge = torch.zeros(3, 8, 8)
    edge[:, :, 4:] = 1.0
    x = torch.stack([edge, flat, noise])
    complexity = sample_complexity(x)
    assert complexity[1] == 0.0
    assert complexity[2] == 1.0
    assert 0.0 < complexity[0] < 0.5
    torch.testing.assert_close(sample_complexity(3.0 * x - 1.0), complexity)  # the range of the pixels is no matter
    assert sample_complexity(torch.ones(4, 1, 5, 5)).tolist() == [0.0] * 4
    assert sample_complexity(torch.randn(6, 12, generator=generator)).tolist() == [0.0] * 6, "vectors are simple"
    colours = torch.rand(5, 3, 8, 8, generator=generator)
    torch.testing.assert_close(sample_complexity(colours), sample_complexity(colours.mean(dim=1, keepdim=True)))


def test_the_threshold_grows_linearly_and_stays_at_1() -> None:
    assert [curriculum_threshold(epoch, 4, 0.2) for epoch in range(1, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert curriculum_threshold(1, 100, 0.2) == 0.2
    assert curriculum_threshold(51, 100, 0.2) == pytest.approx(0.6)
    assert curriculum_threshold(101, 100, 0.2) == 1.0
    assert curriculum_threshold(1, 0, 0.2) == 1.0


def test_parts_of_the_schedule_shrink_with_it_and_do_not_grow() -> None:
    assert [scaled_epochs(100, epochs, 200) for epochs in (400, 200, 100, 30, 1)] == [100, 100, 50, 15, 0]
    assert [scaled_epochs(10, epochs, 200) for epochs in (200, 30, 5)] == [10, 2, 0]
