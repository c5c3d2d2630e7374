"""Statistics over a few seeds: means with standard deviations, and differences with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hatrack.errors import InputError

__all__ = ["Interval", "Spread", "paired_difference", "spread", "student_t_quantile"]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of some values.

    Attributes:
        mean: their mean.
        sd: their standard deviation, with n − 1 in the denominator; None for a single value.
        n: number of values.
    """

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a mean difference, for normal differences.

    Attributes:
        mean: the mean difference.
        low: lower end.
        high: upper end.
        confidence: probability that such an interval contains the true difference, in (0, 1).
        n: number of pairs.
    """

    mean: float
    low: float
    high: float
    confidence: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """True for a significant difference: all of the interval is on one side of 0."""
        return self.low > 0.0 or self.high < 0.0


def spread(values: Sequence[float]) -> Spread:
    """Compute mean and standard deviation of values.

    Raises:
        InputError: there are none.
    """
    if not values:
        raise InputError("there are no values to take the mean of")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute the mean difference ``ours − theirs``, with Student's interval for paired samples.

    Seeds make pairs: two runs of one seed have the same data, order and initial weights, so that what they have in
    common cancels. The interval is ``d̄ ± t · s / √n`` for the differences d, t being Student's quantile for n − 1
    degrees of freedom (Student, Biometrika 1908).

    Args:
        ours: a figure by seed, ``(n,)`` with n of 2 or more.
        theirs: the same figure of the other method, for the same seeds in the same order.
        confidence: in (0, 1).

    Raises:
        InputError: there are fewer than two pairs, a value has no partner, or a value is not finite.
    """
    if len(ours) != len(theirs):
        raise InputError(
            f"differences need pairs: there are {len(ours)} values on one side, {len(theirs)} on the other"
        )
    if len(ours) < 2:
        raise InputError("an interval needs at least two seeds; run more (`seeds`)")
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise InputError("differences of values that are not finite have no interval")
    n = len(differences)
    mean = statistics.fmean(differences)
    half = student_t_quantile(confidence, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, confidence, n)


def student_t_quantile(confidence: float, degrees: int) -> float:
    """Compute the t for which ``P(|T| ≤ t)`` is ``confidence``, T having Student's distribution.

    Args:
        confidence: in (0, 1).
        degrees: degrees of freedom, 1 or more.

    Returns:
        t, by bisection of the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4, in ``θ = atan(t / √ν)``.

    Raises:
        InputError: an argument is out of range.
    """
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must be between 0 and 1, such as 0.95, not {confidence}")
    if degrees < 1:
        raise InputError(f"degrees of freedom must be at least 1, not {degrees}")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _central_probability(theta: float, degrees: int) -> float:
    """Compute ``P(|T| ≤ √ν tan θ)``, which rises in θ."""
    sine, square = math.sin(theta), math.cos(theta) ** 2
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):  # the power of the cosine in a term is k − 1 + odd
        total += term
        term *= square * (k / (k + 1))
    if not odd:
        return sine * total
    return 2.0 / math.pi * (theta + sine * total)
