from __future__ import annotations

import math
import statistics

import pytest

from hatrack.errors import InputError
from hatrack.experiments.statistics import paired_difference, spread, student_t_quantile

# The two-sided quantiles of any printed table of Student's distribution.
TABLE = [
    (0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 3, 3.1824), (0.95, 4, 2.7764), (0.95, 9, 2.2622),
    (0.95, 29, 2.0452), (0.95, 120, 1.9799), (0.99, 2, 9.9248), (0.99, 5, 4.0321), (0.9, 10, 1.8125),
]  # fmt: skip


@pytest.mark.parametrize(("confidence", "degrees", "quantile"), TABLE)
def test_quantiles_are_those_of_the_table(confidence: float, degrees: int, quantile: float) -> None:
    assert student_t_quantile(confidence, degrees) == pytest.approx(quantile, abs=6e-5)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 11])
def test_quantiles_agree_with_an_integral_of_the_density(degrees: int) -> None:
    t = student_t_quantile(0.9, degrees)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    steps = 4000
    density = [scale * (1 + (i * t / steps) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps + 1)]
    trapezoids = (sum(density) - (density[0] + density[-1]) / 2) * t / steps
    assert 2 * trapezoids == pytest.approx(0.9, abs=1e-6)


@pytest.mark.slow
def test_many_degrees_are_nearly_normal() -> None:
    assert student_t_quantile(0.95, 100_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-4)


def test_a_difference_worked_by_hand() -> None:
    interval = paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    # differences 1, 2, 3: mean 2, s = 1, t = 4.3027, half width 4.3027 / √3
    assert interval.mean == pytest.approx(2.0)
    assert interval.high - interval.mean == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)
    assert not interval.excludes_zero
    assert paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0], confidence=0.8).excludes_zero


def test_what_seeds_have_in_common_cancels() -> None:
    ours, theirs = [0.91, 0.55, 0.73], [0.90, 0.54, 0.72]
    assert paired_difference(ours, theirs).excludes_zero
    assert not paired_difference(ours, theirs[::-1]).excludes_zero


def test_the_other_way_round_is_the_mirror_image() -> None:
    there = paired_difference([1.0, 4.0, 2.0, 8.0], [0.5, 3.0, 2.5, 6.0])
    back = paired_difference([0.5, 3.0, 2.5, 6.0], [1.0, 4.0, 2.0, 8.0])
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [([1.0], [2.0], "at least two"), ([1.0, 2.0], [1.0], "pairs"), ([1.0, math.nan], [1.0, 2.0], "not finite")],
)
def test_what_has_no_interval_is_refused(ours: list[float], theirs: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired_difference(ours, theirs)


def test_confidence_and_degrees_in_range() -> None:
    with pytest.raises(InputError, match="confidence"):
        student_t_quantile(95, 3)
    with pytest.raises(InputError, match="degrees"):
        student_t_quantile(0.95, 0)


def test_spread() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert (found.mean, found.n) == (pytest.approx(7 / 3), 3)
    assert found.sd == pytest.approx(math.sqrt(7 / 3))
    assert spread([0.5]).sd is None
    with pytest.raises(InputError, match="no values"):
        spread([])
