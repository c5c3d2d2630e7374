"""Learning rate of embeddings, which with Adam have to go another way than weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from hatrack.methods.base import Pace, ParameterGroup
from hatrack.support.parameters import divided

__all__ = ["MOST_FACTOR", "REACH", "embeddings_apart"]

REACH, MOST_FACTOR = 6.0, 50.0
"""Way that embeddings are to be able to go in all steps of a task with Adam, from one end of their range to its middle;
and bound of the factor of their learning rate that follows.

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
            lets them go ``REACH`` in the steps there are; then weight decay leaves them alone.
        pace: the steps there will be; None if nobody said, which is taken as if it were SGD.
    """
    steps = 0 if pace is None or not pace.adaptive else pace.batches * pace.epochs
    if factor == 1.0 or (factor is None and not steps):
        return [ParameterGroup(list(parameters))]
    weights, masks = divided(parameters, embeddings)
    if factor is not None:
        return [ParameterGroup(weights), ParameterGroup(masks, factor)]
    assert pace is not None
    reached = min(max(REACH / (pace.mean_lr(0.0, 1.0) * steps), 1.0), MOST_FACTOR)
    return [ParameterGroup(weights), ParameterGroup(masks, reached, decays=False)]
