"""Learning rate of embeddings, which with Adam have to go another way than weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from hatrack.functional import EMBEDDING_BOUND
from hatrack.methods.base import Pace, ParameterGroup
from hatrack.support.parameters import divided

__all__ = ["MOST_FACTOR", "REACH", "embeddings_apart"]

REACH, MOST_FACTOR = EMBEDDING_BOUND, 50.0
"""Way that embeddings could go in the steps of all epochs with Adam, from one end of their range to its middle; and
bound of the factor of their learning rate that follows.

A step of Adam is of the learning rate's size. With a rate for weights, embeddings would stay on the side of 0 where
they begin.
"""


def embeddings_apart(
    parameters: Iterable[nn.Parameter], embeddings: Iterable[Tensor], factor: float | None, pace: Pace | None
) -> Sequence[ParameterGroup]:
    """Return the parameters of a task in groups, its embeddings apart where they learn at another rate than weights.

    Args:
        parameters: all that is trained.
        embeddings: those of the parameters that masks are learned by.
        factor: how much faster embeddings learn; None is 1 with SGD, and with Adam as much, 1 to ``MOST_FACTOR``, as
            lets them go ``REACH`` in the steps of all epochs; then weight decay leaves them alone.
        pace: the steps there will be; None if nobody said, which is taken as if it were SGD.
    """
    steps = 0 if pace is None or not pace.adaptive else pace.batches * pace.epochs
    if factor == 1.0 or (factor is None and not steps):
        return [ParameterGroup(list(parameters))]
    rest, apart = divided(parameters, embeddings)
    if not apart:
        return [ParameterGroup(rest)]
    if factor is not None:
        return [ParameterGroup(rest), ParameterGroup(apart, factor)]
    assert pace is not None
    needed = REACH / (pace.mean_lr(0.0, 1.0) * steps)
    return [ParameterGroup(rest), ParameterGroup(apart, min(max(needed, 1.0), MOST_FACTOR), decays=False)]
