from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.errors import InputError
from hatrack.streams import Chain, Normalise, Permute, Rotate


def test_normalise_each_channel_by_its_own_constants() -> None:
    x = torch.tensor([[[[0, 51]], [[255, 102]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-2.0, -1.0]], [[0.0, -6.0]]]])
    torch.testing.assert_close(Normalise((0.4, 1.0), (0.2, 0.1))(x), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalise_leaves_its_argument_alone(dtype: torch.dtype) -> None:
    x = torch.full((2, 1, 3, 3), 7, dtype=dtype)
    assert Normalise((0.5,), (0.5,))(x).dtype == torch.float32
    assert torch.equal(x, torch.full((2, 1, 3, 3), 7, dtype=dtype))


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0.5,), (float("nan"),))]
)
def test_normalise_refuses_unusable_constants(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="a mean and a positive std per channel"):
        Normalise(mean, std)


def test_normalise_refuses_other_channels() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 2, 2\) do not have the 1 channels"):
        Normalise((0.5,), (0.5,))(torch.zeros(1, 3, 2, 2))


@given(st.integers(0, 5), st.integers(1, 3), st.permutations(range(6)))
def test_permutation_reorders_every_channel_of_every_image_alike(count: int, channels: int, order: list[int]) -> None:
    x = torch.arange(count * channels * 6).reshape(count, channels, 2, 3)
    permuted = Permute(torch.tensor(order))(x)
    assert permuted.shape == x.shape
    for image in range(count):
        for channel in range(channels):
            pixels = x[image, channel].flatten().tolist()
            assert permuted[image, channel].flatten().tolist() == [pixels[position] for position in order]


@given(st.permutations(range(12)))
def test_permutation_is_undone_by_its_inverse(order: list[int]) -> None:
    x = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    permutation = torch.tensor(order)
    assert torch.equal(Permute(permutation.argsort())(Permute(permutation)(x)), x)


@pytest.mark.parametrize(
    "order",
    [
        torch.tensor([0, 1, 1]),
        torch.tensor([1, 2, 3]),
        torch.tensor([-1, 0, 1]),
        torch.tensor([[0, 1]]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([], dtype=torch.int64),
    ],
)
def test_what_is_no_permutation_is_refused(order: torch.Tensor) -> None:
    with pytest.raises(InputError, match="exactly once"):
        Permute(order)


def test_permutation_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"permutation of 5 positions does not fit samples of shape \(1, 2, 3\)"):
        Permute(torch.arange(5))(torch.zeros(4, 1, 2, 3))


def test_chain_applies_its_steps_in_order() -> None:
    x = torch.tensor([[3.0]])
    assert Chain((lambda y: y + 1, lambda y: y * 10))(x).item() == 40
    assert Chain(())(x) is x


# --- rotations


def test_quarter_turns_move_pixels_as_they_are() -> None:
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    for quarters in range(-2, 5):
        assert torch.equal(Rotate(90.0 * quarters)(x), x.rot90(quarters, dims=(2, 3)))


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (7, 3)])
@pytest.mark.parametrize("angle", [10.0, 45.0, 90.0, 133.0, -70.0])
def test_turning_agrees_with_a_slow_oracle(shape: tuple[int, int], angle: float) -> None:
    height, width = shape
    x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    turned = Rotate(angle)(x)[0, 0]
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    for row in range(height):
        for column in range(width):
            # The place in the original that an anticlockwise turn carries to this place; rows count downwards.
            right, up = column - (width - 1) / 2, (height - 1) / 2 - row
            from_right, from_up = cos * right + sin * up, -sin * right + cos * up
            wanted = bilinear(x[0, 0], (height - 1) / 2 - from_up, (width - 1) / 2 + from_right)
            assert abs(float(turned[row, column]) - wanted) < 1e-5


def bilinear(image: torch.Tensor, row: float, column: float) -> float:
    """The value between four pixels; beyond the edge all pixels are 0."""
    value = 0.0
    for y in (math.floor(row), math.floor(row) + 1):
        for x in (math.floor(column), math.floor(column) + 1):
            if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                value += float(image[y, x]) * (1 - abs(row - y)) * (1 - abs(column - x))
    return value


def test_what_cannot_be_turned() -> None:
    with pytest.raises(InputError, match="only images"):
        Rotate(5.0)(torch.zeros(3, 4))
    with pytest.raises(InputError, match="finite number of degrees"):
        Rotate(float("nan"))
