"""Fixed maps of features: against slow loops, the same in all versions, and what they leave out of a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatrack import InputError
from hatrack.recognition import FeatureMap, RandomFilters, RandomUnits, default_feature_map, feature_map_from

SMALL = RandomFilters(filters=3, size=3, regions=2, largest=8, seed=5)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def slow_features(of: RandomFilters, picture: np.ndarray) -> list[float]:
    """Features of one picture ``(C, H, W)``, place by place, in float64."""
    channels, height, width = picture.shape
    size = of.size
    drawn = np.random.RandomState(of.seed).standard_normal((of.filters, channels * size**2)).astype(np.float32)
    filters = drawn - drawn.mean(1, keepdims=True)
    filters = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    rows, columns = height - size + 1, width - size + 1
    patches = {(i, j): picture[:, i : i + size, j : j + size].ravel() for i in range(rows) for j in range(columns)}
    usual = np.mean([patch.var() for patch in patches.values()])
    answers = {at: (patch - patch.mean()) / math.sqrt(patch.var() + 0.1 * usual) for at, patch in patches.items()}
    found = [1.0]
    for each in filters:
        for a in range(of.regions):
            for b in range(of.regions):
                total = weight = 0.0
                for (i, j), answer in answers.items():
                    down = (i + 0.5 - (a + 0.5) * rows / of.regions) / (rows / of.regions / 2)
                    right = (j + 0.5 - (b + 0.5) * columns / of.regions) / (columns / of.regions / 2)
                    share = math.exp(-(down**2 + right**2) / 2)
                    total, weight = total + share * max(0.0, float(each @ answer)), weight + share
                found.append(math.sqrt(total / weight))
    return found


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 8)])
def test_filters_are_those_of_a_slow_loop(shape: tuple[int, ...]) -> None:
    x = pictures(2, *shape)
    expected = [slow_features(SMALL, each.double().numpy()) for each in x]
    assert SMALL.features(x).shape == (2, SMALL.count(shape))
    torch.testing.assert_close(SMALL.features(x).double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-4)


def test_units_are_those_of_a_slow_loop() -> None:
    of, x = RandomUnits(units=4, seed=3), torch.tensor([[0.5, -2.0], [30.0, 0.0]])
    drawn = np.random.RandomState(3).standard_normal((3, 4)).astype(np.float32)
    for row, sample in zip(of.features(x).tolist(), x.tolist(), strict=True):
        units = []
        for unit in range(4):
            threshold = 0.0 if unit % 2 == 0 else float(drawn[2, unit])
            total = sum(math.asinh(value) * float(drawn[k, unit]) for k, value in enumerate(sample)) / math.sqrt(2)
            units.append(max(0.0, total + threshold))
        assert row == pytest.approx([1.0, *sample, *units], rel=1e-5, abs=1e-5)
    assert of.count((2,)) == 7


def test_what_is_drawn_is_the_same_in_all_versions() -> None:
    """Sums in files rely on it: another generator would mean other features."""
    x = torch.arange(64.0).view(1, 1, 8, 8).sin()
    expected = torch.tensor(PINNED_FILTERS)
    torch.testing.assert_close(RandomFilters(filters=1, regions=3).features(x)[0], expected, rtol=1e-4, atol=1e-5)
    units = RandomUnits(units=4, inputs=False).features(torch.tensor([[0.5, -0.5]]))[0]
    torch.testing.assert_close(units, torch.tensor(PINNED_UNITS), rtol=1e-4, atol=1e-5)


PINNED_FILTERS = [1.0, 0.575085, 0.210446, 0.029906, 0.204371, 0.149551, 0.216722, 0.121255, 0.375073, 0.62253]
PINNED_UNITS = [1.0, 0.0, 0.879296, 0.009749, 2.268280]


@given(st.floats(0.05, 20.0), st.floats(-5.0, 5.0))
def test_filters_see_neither_brightness_nor_contrast(contrast: float, brightness: float) -> None:
    x = pictures(2, 1, 8, 8)
    found = SMALL.features(contrast * x + brightness)
    torch.testing.assert_close(found, SMALL.features(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("of", [SMALL, RandomUnits(units=5)])
def test_samples_are_treated_alone(of: FeatureMap) -> None:
    x = pictures(19, 2, 8, 8)
    alone = torch.cat([of.features(each) for each in x.split(1)])
    torch.testing.assert_close(of.features(x), alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(of.features(x)[:, 0], torch.ones(19))
    assert of.features(x[:0]).shape == (0, of.count((2, 8, 8)))


def test_flat_and_large_pictures_have_features() -> None:
    flat = SMALL.features(torch.full((1, 1, 8, 8), 7.0))
    assert torch.equal(flat[0, 1:], torch.zeros(12))
    assert SMALL.features(pictures(1, 3, 40, 9)).shape == (1, 13)
    wide = pictures(1, 1, 16, 16)
    small = torch.nn.functional.avg_pool2d(wide, 2)
    torch.testing.assert_close(SMALL.features(wide), SMALL.features(small))
    assert RandomFilters(filters=2, size=8, regions=3).features(pictures(1, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    "of", [RandomFilters(), RandomFilters(12, 5, 2, 20, 7), RandomUnits(), RandomUnits(3, False, 1)]
)
def test_descriptions_are_read(of: FeatureMap) -> None:
    assert feature_map_from(of.describe()) == of


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "other"}', '{"kind": "random-units", "depth": 2}'])
def test_unknown_descriptions_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not know"):
        feature_map_from(text)


def test_the_default_suits_the_samples_and_keeps_to_the_memory() -> None:
    assert default_feature_map((1, 28, 28)) == RandomFilters()
    assert default_feature_map((3, 224, 224)) == RandomFilters()
    for shape in [(1, 28, 28), (3, 32, 32), (784,), (257,), (256,), (3,), (10, 30), (1, 6, 6), (3072,), ()]:
        features = default_feature_map(shape).count(shape)
        assert 8 * (features * (features + 1) // 2 + 43 * features) <= 33.0e6, shape
        assert features >= 10
    assert isinstance(default_feature_map((1, 6, 28)), RandomUnits)


def test_what_does_not_suit_is_refused() -> None:
    for x in (torch.zeros(2, 5), torch.zeros(2, 1, 5, 9), torch.zeros(2, 1, 9, 9, dtype=torch.complex64)):
        with pytest.raises(InputError, match="RandomUnits"):
            RandomFilters().features(x)
    with pytest.raises(InputError, match="real numbers"):
        RandomUnits().features(torch.zeros(2, 3, dtype=torch.complex64))
    for change in ({"filters": 0}, {"largest": 5}, {"seed": -1}, {"regions": 0}):
        with pytest.raises(InputError, match=next(iter(change))):
            RandomFilters(**change)
    with pytest.raises(InputError, match="units"):
        RandomUnits(units=0)
