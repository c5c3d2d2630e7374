from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatrack.errors import InputError
from hatrack.experiments.statistics import (
    error_of_mean_share,
    error_of_shares,
    paired_difference,
    spread,
    student_t_quantile,
)

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


COUNTS = st.integers(1, 4).flatmap(lambda samples: st.tuples(st.integers(0, samples), st.just(samples)))
"""Right answers of a task, and its test samples."""


@given(st.lists(COUNTS, min_size=1, max_size=3))
def test_the_error_of_a_mean_of_shares_is_that_of_all_outcomes(tasks: list[tuple[int, int]]) -> None:
    """The oracle goes through every way in which ñ samples can be right or wrong, the chance of each being p̃."""
    chances = [Fraction(right + 1, samples + 2) for right, samples in tasks]
    mean = square = Fraction(0)
    for outcome in itertools.product(*(range(samples + 3) for _, samples in tasks)):
        probability, value = Fraction(1), Fraction(0)
        for right, p, (_, samples) in zip(outcome, chances, tasks, strict=True):
            n = samples + 2
            probability *= math.comb(n, right) * p**right * (1 - p) ** (n - right)
            value += Fraction(right, samples) / len(tasks)  # n / samples times the share of ñ
        mean += probability * value
        square += probability * value**2
    shares = [right / samples for right, samples in tasks]
    error = error_of_shares(shares, [samples for _, samples in tasks])
    assert error == pytest.approx(math.sqrt(square - mean**2))
    assert error > 0, "no number of right answers makes a share certain"


@pytest.mark.parametrize("samples", [1, 2, 5, 12, 20])
def test_methods_that_are_alike_seldom_differ_however_much_seeds_agree(samples: int) -> None:
    """Three seeds that answer all alike are one look at the samples: 5 % of such looks may call a difference one."""
    errors = [error_of_shares([right / samples], [samples]) for right in range(samples + 1)]
    both = [*itertools.product(range(samples + 1), repeat=2)]
    significant = [
        (one, other)
        for one, other in both
        if paired_difference(
            [one / samples] * 3, [other / samples] * 3, sampling_error=math.hypot(errors[one], errors[other])
        ).is_significant
    ]
    for chance in (0.1, 0.5, 0.7, 0.95):
        weight = [math.comb(samples, k) * chance**k * (1 - chance) ** (samples - k) for k in range(samples + 1)]
        assert sum(weight[one] * weight[other] for one, other in significant) < 0.065
    assert samples < 5 or (0, samples) in significant


GRID = 12


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 3 * GRID))
def test_the_error_of_a_mean_share_is_the_largest_of_all_shares_with_that_mean(samples: list[int], total: int) -> None:
    """The oracle goes through all shares on a grid."""
    total = min(total, GRID * len(samples))
    grids = itertools.product(range(GRID + 1), repeat=len(samples))
    errors = [error_of_shares([k / GRID for k in grid], samples) for grid in grids if sum(grid) == total]
    found = error_of_mean_share(total / GRID / len(samples), samples)
    assert found >= max(errors) - 1e-9
    assert found**2 <= max(errors) ** 2 + 2 / GRID**2, "the best shares are within a step of the grid"
    if len(set(samples)) == 1:
        assert found == pytest.approx(error_of_shares([total / GRID / len(samples)] * len(samples), samples))


@pytest.mark.parametrize(("mean", "samples"), [(1.1, [1]), (0.5, []), (0.5, [3, 0])])
def test_what_is_no_mean_of_shares_has_no_error(mean: float, samples: list[int]) -> None:
    with pytest.raises(InputError, match="must be between 0 and 1"):
        error_of_mean_share(mean, samples)


@pytest.mark.parametrize("share", [1, 2])
def test_seeds_that_draw_from_the_same_samples_err_by_as_much_as_the_interval_says(share: int) -> None:
    """The oracle goes through all answers to four samples, and through all draws of two seeds."""
    size, seeds = 4, 2
    t = student_t_quantile(0.95, seeds - 1)
    means, squares = [], []
    for right in itertools.product((0, 1), repeat=size):
        for draws in itertools.product(itertools.combinations(right, share), repeat=seeds):
            values = [sum(draw) / share for draw in draws]
            interval = paired_difference(values, [0.0] * seeds, drawn=share / size)
            means.append(interval.mean)
            squares.append(((interval.high - interval.low) / 2 / t) ** 2)
    assert statistics.fmean(squares) == pytest.approx(statistics.pvariance(means)), "the mean square is the variance"


def test_an_unknown_error_takes_the_verdict_and_nothing_else() -> None:
    apart, level = ([3.0, 5.0, 8.0], [2.0, 3.5, 6.0]), ([3.0, 5.0, 7.0], [2.0, 6.0, 7.0])
    for ours, theirs in (apart, level):
        known, unknown = (paired_difference(ours, theirs, sampling_error=error) for error in (0.0, None))
        assert (unknown.low, unknown.high) == (known.low, known.high)
        assert unknown.is_significant == (None if known.is_significant else False)
    assert paired_difference(*apart).is_significant
    with pytest.raises(InputError, match="below 1"):
        paired_difference(*apart, drawn=1.0)


VALUES = st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=5)


@given(VALUES, st.floats(-1.0, 1.0), st.floats(0.0, 1.0))
def test_an_interval_is_never_narrower_than_seeds_or_samples_allow(
    theirs: list[float], lead: float, error: float
) -> None:
    ours = [value**2 + lead for value in theirs]
    of_seeds, both = paired_difference(ours, theirs), paired_difference(ours, theirs, sampling_error=error)
    half = statistics.NormalDist().inv_cdf(0.975) * error
    assert both.mean == of_seeds.mean
    assert both.high - both.low == pytest.approx(max(2 * half, of_seeds.high - of_seeds.low), abs=1e-12)
    assert (both.is_significant is None) == (len(ours) == 2)


@given(VALUES, st.floats(-1.0, 1.0))
def test_seeds_that_all_differ_by_the_same_are_no_verdict(theirs: list[float], lead: float) -> None:
    interval = paired_difference([value + lead for value in theirs], theirs)
    assert not interval.has_width, "whatever adding and taking away has left in the last bit"
    assert not interval.is_significant


def test_shares_and_errors_out_of_range_are_refused() -> None:
    for shares, samples in (([], []), ([0.5], []), ([1.5], [3]), ([0.5], [0])):
        with pytest.raises(InputError, match="share"):
            error_of_shares(shares, samples)
    with pytest.raises(InputError, match="sampling error"):
        paired_difference([1.0, 2.0], [1.0, 1.0], sampling_error=-0.1)
