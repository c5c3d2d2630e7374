"""The anchors of dynamic weight allocation: where the embeddings of a task's samples are to be, and where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.methods.dwa.losses import orthogonal_candidates
from hatrack.methods.dwa.network import DWANetwork
from hatrack.support.modes import evaluation_mode

__all__ = ["Anchors", "choose_anchors", "positive_anchor", "simple_samples"]


class Anchors(NamedTuple):
    """Points that a task's embeddings are drawn to and pushed away from, each ``(D,)``.

    Attributes:
        positive: P.
        negative: N.
        task_negative: N_T; None where there is no earlier task.
    """

    positive: Tensor
    negative: Tensor
    task_negative: Tensor | None


def simple_samples(complexity: Tensor, below: float, most: int, generator: torch.Generator) -> Tensor:
    """Choose the samples to make anchors of: random ones less complex than a bound, or the simplest if none is.

    Args:
        complexity: ζ, ``(N,)``, N at least 1.
        below: the bound.
        most: at most so many.
        generator: on the CPU.
    """
    simple = (complexity < below).nonzero().squeeze(1)
    if not len(simple):
        return complexity.argmin().unsqueeze(0)
    return simple[torch.randperm(len(simple), generator=generator)[:most].to(simple.device)]


@torch.no_grad()
def positive_anchor(network: DWANetwork, task: str, x: Tensor) -> Tensor:
    """Measure P, the mean embedding of samples ``(N, ...)`` of a task, in evaluation mode."""
    with evaluation_mode(network):
        return network.embeddings(x, task).mean(dim=0)


@torch.no_grad()
def choose_anchors(
    network: DWANetwork,
    task: str,
    x: Tensor,
    y: Tensor,
    earlier: Sequence[Tensor],
    candidates: int,
    generator: torch.Generator,
) -> Anchors:
    """Choose the anchors of a task, from some of its samples.

    N is the one of some random vectors orthogonal to P, and N_T the one of the earlier tasks' positive anchors, with
    which the samples would have the highest cross-entropy if it were the embedding of all of them.

    Args:
        network: has a head for the task.
        task: its name.
        x: simple samples of it, ``(N, ...)``.
        y: their classes, ``(N,)``.
        earlier: positive anchors of the tasks before.
        candidates: number of vectors that N is chosen from.
        generator: draws them, on the CPU.
    """
    positive = positive_anchor(network, task, x)

    def worst(embeddings: Sequence[Tensor]) -> Tensor:
        logits = [network.logits(network.backbone(x, embedding.unsqueeze(0)), [task]) for embedding in embeddings]
        losses = torch.stack([F.cross_entropy(values, y) for values in logits])
        return embeddings[int(losses.argmax())]

    with evaluation_mode(network):
        negative = worst(list(orthogonal_candidates(positive, candidates, generator)))
        return Anchors(positive, negative, worst(earlier) if earlier else None)
