"""Analysis of the masks of dynamic weight allocation: are those of related tasks more alike?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.methods.dwa.network import DWANetwork
from hatrack.streams import Task
from hatrack.support.modes import evaluation_mode

__all__ = ["Profile", "Relatedness", "cosine_similarities", "relatedness", "task_profile"]

SAMPLES_AT_ONCE = 256


@dataclass(frozen=True)
class Profile:
    """Mean embeddings and masks of a task's test samples.

    Attributes:
        embedding: mean embedding, ``(D,)``.
        masks: mean mask of all layers, flattened and joined, ``(M,)``.
    """

    embedding: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Relatedness:
    """Comparison of related tasks with others.

    Attributes:
        related: mean similarity of related pairs.
        unrelated: mean similarity of all other pairs.
        pairings: share of all the ways to pair the tasks up whose mean similarity is at least that of the related
            pairs: the exact probability of doing as well by chance. None unless the related pairs are a pairing.
    """

    related: float
    unrelated: float
    pairings: float | None


@torch.no_grad()
def task_profile(network: DWANetwork, task: Task) -> Profile:
    """Measure the mean embedding and mean mask over a task's test samples, in evaluation mode."""
    x = task.test.load()[0].to(next(network.parameters()).device)
    with evaluation_mode(network):
        embeddings = torch.cat([network.embeddings(part, task.name) for part in torch.split(x, SAMPLES_AT_ONCE)])
        means = [
            torch.stack([layer.masks(part).sum(dim=0) for part in torch.split(embeddings, layer.chunk())]).sum(dim=0)
            for layer in network.backbone.layers().values()
        ]
    masks = [mean.flatten() / len(x) for mean in means]
    return Profile(embeddings.mean(dim=0), torch.cat(masks) if masks else x.new_zeros(0))


def cosine_similarities(vectors: Sequence[Tensor], *, centred: bool = False) -> Tensor:
    """Return the cosines between vectors of one length.

    Args:
        vectors: T of them.
        centred: subtract their mean before, that is, leave out what all of them have in common.

    Returns:
        ``(T, T)``, symmetric, 1 on the diagonal (0 for a vector of zeros).
    """
    stacked = torch.stack(list(vectors))
    if centred:
        stacked = stacked - stacked.mean(dim=0)
    directions = F.normalize(stacked, dim=1)
    return directions @ directions.T


def relatedness(similarities: Tensor, related: Sequence[tuple[int, int]]) -> Relatedness:
    """Compare the similarity of pairs of tasks that were called related beforehand with that of all others.

    Args:
        similarities: ``(T, T)``, symmetric.
        related: pairs of different tasks, at least one, and not all pairs.
    """
    chosen = {tuple(sorted(pair)) for pair in related}
    tasks = range(len(similarities))
    by_pair = {pair: float(similarities[pair]) for pair in combinations(tasks, 2)}
    inside = [value for pair, value in by_pair.items() if pair in chosen]
    outside = [value for pair, value in by_pair.items() if pair not in chosen]
    mean = sum(inside) / len(inside)
    share = None
    if sorted(task for pair in chosen for task in pair) == list(tasks):
        means = [sum(by_pair[pair] for pair in pairing) / len(pairing) for pairing in _pairings(tuple(tasks))]
        share = sum(value >= mean - 1e-9 for value in means) / len(means)
    return Relatedness(mean, sum(outside) / len(outside), share)


def _pairings(tasks: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    """Return all the ways to pair an even number of tasks up."""
    if not tasks:
        return [()]
    first, *others = tasks
    return [
        ((first, other), *rest)
        for other in others
        for rest in _pairings(tuple(task for task in others if task != other))
    ]
