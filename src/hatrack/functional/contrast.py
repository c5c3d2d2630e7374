"""Losses that look at classes in quarter turns, and at samples side by side."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "supervised_contrast",
    "turned_logits",
]


def turned_logits(features: Tensor, weight: Tensor, bias: Tensor | None = None, turns: int = 4) -> Tensor:
    """Return logits of all classes in all turns for a picture in each of its turns.

    ``W_{c,r} · f_s + b_c`` is the logit of class c turned by r for the picture turned by s, where ``f_s`` is what
    :class:`hatrack.backbones.QuarterTurns` has of its features at their own scale, and ``W_{c,r}`` the r-th part of the
    head's row c. The mean over r = s is what the head answers for the picture. After Kim et al., *Continual learning
    based on OOD detection and task masking*, 2022; they have a bias for every turn, which the mean cannot tell from one
    for all.

    Args:
        features: features of the turns side by side, divided by their number, ``(N, R F)``.
        weight: weight of the head, ``(C, R F)``.
        bias: bias of the head, ``(C,)``; None for none.
        turns: R, the number of turns.

    Returns:
        ``(N, R, R C)``: the picture's turn s, then the class and its turn, ``R c + r``.
    """
    each = features.shape[1] // turns
    logits = turns * features.reshape(-1, turns, each) @ weight.reshape(-1, each).T
    return logits if bias is None else logits + bias.repeat_interleave(turns)


def supervised_contrast(projected: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Compute the supervised contrastive loss (Khosla et al., NeurIPS 2020, Eq. 2), a scalar.

    ``mean_i −1/|P(i)| Σ_{p ∈ P(i)} log( exp(z_i·z_p / T) / Σ_{a ≠ i} exp(z_i·z_a / T) )``, where ``z`` are the
    projections at length 1, and P(i) are the other samples with the label of i.

    Args:
        projected: projections of samples, ``(N, D)``.
        labels: their labels, int64 ``(N,)``; a sample with a label of its own does not count.
        temperature: T, above 0.

    Returns:
        The loss; 0 where no two samples have the same label.
    """
    z = torch.nn.functional.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similar = (z @ z.T / temperature).masked_fill(itself, -math.inf)
    logs = similar - similar.logsumexp(1, keepdim=True)
    positive = (labels.unsqueeze(1) == labels) & ~itself
    counts = positive.sum(1)
    of_samples = torch.where(positive, logs, 0.0).sum(1) / counts.clamp_min(1)
    return -of_samples.sum() / (counts > 0).sum().clamp_min(1)
