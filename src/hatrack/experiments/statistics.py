"""Statistics over a few seeds: means with standard deviations, and differences with confidence intervals."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hatrack.errors import InputError
from hatrack.objectives.metrics import evenly, readable

__all__ = [
    "LEAST_SEEDS",
    "Interval",
    "Spread",
    "error_of_mean_share",
    "error_of_shares",
    "paired_difference",
    "spread",
    "student_t_quantile",
]

LEAST_SEEDS = 3
"""Least number of seeds with which a difference can count as more than luck.

The spread of two seeds is a single number, which is small by chance as easily as large.
"""


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

    def say(self, form: Callable[[float], str] | None = None) -> str:
        """Return mean and standard deviation as people read them, ``49.2 ± 0.5``; the mean alone without the other.

        Args:
            form: writes a number; None gives both the decimals of the larger one.
        """
        values = [self.mean + 0.0] if self.sd is None else [self.mean + 0.0, self.sd]  # no "-0"
        if form is None:
            return readable(*values) if len(values) == 1 else " ± ".join(evenly(*values))
        return " ± ".join(map(form, values))


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a mean difference, for normal differences.

    Attributes:
        mean: the mean difference.
        low: lower end.
        high: upper end.
        confidence: probability that such an interval contains the true difference, in (0, 1).
        n: number of pairs.
        has_samples: whether the error by the choice of the test samples is in it.
    """

    mean: float
    low: float
    high: float
    confidence: float
    n: int
    has_samples: bool = True

    @property
    def excludes_zero(self) -> bool:
        """True where all of the interval is on one side of 0."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def has_width(self) -> bool:
        """False where all differences are the same and no sampling error is known, so that the interval is a point.

        Such an interval shows that the seeds agree, but not how far all of them may be wrong by the same amount.
        """
        return self.high > self.low

    @property
    def is_significant(self) -> bool | None:
        """True for a difference that is more than luck: an interval of some width that excludes 0.

        None with fewer than :data:`LEAST_SEEDS` pairs, which are too few to tell, and where only an error that is not
        in the interval could make it luck.
        """
        if self.n < LEAST_SEEDS:
            return None
        if not (self.has_width and self.excludes_zero):
            return False
        return True if self.has_samples else None


def spread(values: Sequence[float]) -> Spread:
    """Compute mean and standard deviation of values.

    Raises:
        InputError: there are none.
    """
    if not values:
        raise InputError("there are no values to take the mean of")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def error_of_shares(shares: Sequence[float], samples: Sequence[int]) -> float:
    """Compute the standard error of a mean of shares of test samples, such as the average accuracy over tasks.

    It is ``√(Σ p̃ (1 − p̃) / ñ · (ñ / n)²) / T`` with ``p̃ = (n p + 1) / ñ`` and ``ñ = n + 2``: one more sample is right,
    and one more wrong (Agresti and Caffo, The American Statistician 2000). With ``p (1 − p) / n`` five right answers on
    five samples would be certain. Their interval is centred on the difference of the p̃. The factor ``ñ / n`` widens it,
    so that an interval centred on the difference of the p excludes 0 where theirs does.

    Args:
        shares: share p of right answers by task, ``(T,)`` in [0, 1].
        samples: number n of test samples by task, ``(T,)`` of 1 or more.

    Raises:
        InputError: there are no tasks, or a value is out of range.
    """
    if not shares or len(shares) != len(samples):
        raise InputError(f"every task has a share and its samples: there are {len(shares)} and {len(samples)}")
    if not all(0.0 <= share <= 1.0 for share in shares) or min(samples) < 1:
        raise InputError("shares must be between 0 and 1, of at least one sample")
    adjusted = [((share * n + 1.0) / (n + 2.0), n) for share, n in zip(shares, samples, strict=True)]
    return math.sqrt(math.fsum(p * (1.0 - p) * (n + 2.0) / n**2 for p, n in adjusted)) / len(shares)


def error_of_mean_share(mean: float, samples: Sequence[int]) -> float:
    """Compute the largest standard error of a mean of shares, such as the balanced accuracy of a task.

    Which shares have that mean is not known, so these are the ones with the largest :func:`error_of_shares`. A share of
    n samples adds ``p (1 − p) / (n + 2)`` to the square of that, and what does not depend on p. By Lagrange's rule the
    sum is largest at ``p = 1/2 + m (n + 2)``, within [0, 1], with the one m that gives the mean.

    Args:
        mean: the mean of the shares, in [0, 1].
        samples: number of test samples by share, such as by class, 1 or more.

    Raises:
        InputError: there are no shares, or a value is out of range.
    """
    if not samples or min(samples) < 1 or not 0.0 <= mean <= 1.0:
        raise InputError("the mean of shares must be between 0 and 1, each of them of at least one sample")

    def shares(slope: float) -> list[float]:
        return [min(1.0, max(0.0, 0.5 + slope * (n + 2.0))) for n in samples]

    low, high = -0.5, 0.5  # all shares are 0, or 1, long before
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(shares(middle)) < mean * len(samples) else (low, middle)
    return error_of_shares(shares(high), samples)


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    confidence: float = 0.95,
    *,
    sampling_error: float | None = 0.0,
    drawn: float = 0.0,
) -> Interval:
    """Compute the mean difference ``ours − theirs``, with Student's interval for paired samples.

    Seeds make pairs: two runs of one seed have the same data, order and initial weights, so that what they have in
    common cancels. The interval is ``d̄ ± t · s / √n`` for the differences d, t being Student's quantile for n − 1
    degrees of freedom (Student, Biometrika 1908). Where all seeds are tested on the same samples, their spread does
    not contain the error by the choice of these samples. Therefore the interval is never narrower than the normal one
    of the sampling error.

    Where every seed draws its test samples, a share ρ of all that there are, the spread contains that error, but draws
    overlap, so that two seeds have a correlation of about ρ. The interval is ``d̄ ± t · s · √(1/n + ρ / (1 − ρ))`` then:
    the corrected resampled t-test of Nadeau and Bengio (Machine Learning 2003).

    Args:
        ours: a figure by seed, ``(n,)`` with n of 2 or more.
        theirs: the same figure of the other method, for the same seeds in the same order.
        confidence: in (0, 1).
        sampling_error: standard error of the mean difference by the choice of the test samples alone, 0 or more; None
            where it is not known, so that no difference is more than luck. Of two average accuracies it is at most the
            root of the sum of the squares of their :func:`error_of_shares`, if answers to the same samples are not
            correlated negatively. By default it is 0, for a verdict by the seeds alone.
        drawn: share ρ of all samples that every seed draws to test on, in [0, 1); 0 where all are tested on the same.

    Raises:
        InputError: there are fewer than two pairs, a value has no partner, a value is not finite, the sampling error
            is not finite or below 0, or the share drawn is out of range.
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
    if sampling_error is not None and not 0.0 <= sampling_error < math.inf:
        raise InputError(f"a sampling error must be 0 or more, not {sampling_error}")
    if not 0.0 <= drawn < 1.0:
        raise InputError(f"the share of samples drawn must be 0 or more, and below 1, not {drawn}")
    n = len(differences)
    mean = statistics.fmean(differences)
    # Differences that are equal but for rounding have no spread; their deviation would pass for a tiny one.
    rounding = 8.0 * sys.float_info.epsilon * max(map(abs, (*ours, *theirs)))
    deviation = statistics.stdev(differences)
    of_means = (deviation if deviation > rounding else 0.0) * math.sqrt(1.0 / n + drawn / (1.0 - drawn))
    of_seeds = student_t_quantile(confidence, n - 1) * of_means
    of_samples = statistics.NormalDist().inv_cdf((1.0 + confidence) / 2.0) * (sampling_error or 0.0)
    half = max(of_seeds, of_samples)
    return Interval(mean, mean - half, mean + half, confidence, n, has_samples=sampling_error is not None)


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
