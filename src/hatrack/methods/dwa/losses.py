"""The losses of dynamic weight allocation (F. Geilert, "Pay attention to the task"), as pure functions.

Notation: ``E`` embeddings of samples, ``P`` the task's positive anchor, ``N`` its negative anchor, ``N_T`` the negative
anchor that is an earlier task's, ``H`` masks, ``F`` the Fisher diagonal, ``ζ`` the complexity of samples in [0, 1]. The
whole loss is ``L = L_task + λ1 L_emb + λ2 Σ_l L_pl,l + λ3 Σ_l R_sp,l`` (1), summed over the layers l with masks; every
term is a mean over the samples of the batch here.

The author's public code, ``felixnext/dwa``, differs from the paper in more than numbers, and functions whose names end
in ``_of_code`` do what it does. Its sparsity term has the opposite sense (:func:`sparsity_loss_of_code`). Its triplets
take norms that are not squared, over a whole batch at once (:func:`anchor_loss_of_code`). Both are summed over a batch,
and its plasticity is a mean over the weights.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

__all__ = [
    "MaskMagnitude",
    "anchor_loss",
    "anchor_loss_of_code",
    "mask_activity",
    "orthogonal_candidates",
    "plasticity_loss",
    "sparsity_loss",
    "sparsity_loss_of_code",
    "triplet_loss",
]


class MaskMagnitude(enum.Enum):
    """Measure of how much a mask's entry uses its weight, for the plasticity loss."""

    POSITIVE = "positive"
    """``[H]_+``, as the paper has it: an entry below 0 counts as unused, though it passes the weight with its sign."""

    ABSOLUTE = "absolute"
    """``|H|``, as the author's code has it."""

    def of(self, mask: Tensor) -> Tensor:
        """Return the magnitude of every entry."""
        return mask.relu() if self is MaskMagnitude.POSITIVE else mask.abs()


def triplet_loss(embedding: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Return how far samples are from lying nearer to P than to N by a margin (2): ``[‖E − P‖² − ‖E − N‖² + α]_+``.

    Args:
        embedding: E, ``(N, D)``.
        positive: P, ``(D,)``.
        negative: N, ``(D,)``.
        margin: α.

    Returns:
        ``(N,)``.
    """
    to_positive, to_negative = ((embedding - anchor).square().sum(dim=1) for anchor in (positive, negative))
    return (to_positive - to_negative + margin).relu()


def anchor_loss(
    embedding: Tensor,
    complexity: Tensor,
    positive: Tensor,
    negative: Tensor,
    task_negative: Tensor | None,
    margin: float,
    delta: float,
) -> Tensor:
    """Return the anchor triplet loss (3), ``L_emb = (1 − ζ) (Tri(E, P, N) + δ Tri(E, P, N_T))``.

    Simple samples count most.

    Args:
        embedding: E, ``(N, D)``.
        complexity: ζ, ``(N,)``.
        positive: P, ``(D,)``.
        negative: N, ``(D,)``.
        task_negative: N_T, ``(D,)``; None, and no second term, where there is no earlier task.
        margin: α.
        delta: δ.

    Returns:
        ``(N,)``.
    """
    loss = triplet_loss(embedding, positive, negative, margin)
    if task_negative is not None:
        loss = loss + delta * triplet_loss(embedding, positive, task_negative, margin)
    return (1 - complexity) * loss


def anchor_loss_of_code(
    embedding: Tensor,
    complexity: Tensor,
    positive: Tensor,
    negative: Tensor,
    task_negative: Tensor | None,
    margin: float,
    delta: float,
) -> Tensor:
    """Return the anchor loss of the author's code, ``Σ (1 − ζ) (Tri(P, N) + δ Tri(P, N_T)) / (1 + δ)`` over a batch.

    ``Tri(P, N) = [‖E − P‖ − ‖E − N‖ + α]_+`` has one value for the whole batch, with the Frobenius norms of its
    ``(N, D)`` differences. Without an earlier task it is ``Σ (1 − ζ) Tri(P, N)``.

    Args:
        embedding: E, ``(N, D)``.
        complexity: ζ, ``(N,)``.
        positive: P, ``(D,)``.
        negative: N, ``(D,)``.
        task_negative: N_T, ``(D,)``; None where there is no earlier task.
        margin: α.
        delta: δ.

    Returns:
        A scalar.
    """
    to_positive, to_negative = ((embedding - anchor).norm() for anchor in (positive, negative))
    loss = (to_positive - to_negative + margin).relu()
    if task_negative is not None:
        loss = (loss + delta * (to_positive - (embedding - task_negative).norm() + margin).relu()) / (1 + delta)
    total: Tensor = ((1 - complexity) * loss).sum()
    return total


def plasticity_loss(
    mask: Tensor, importance: Tensor, eta: float, magnitude: MaskMagnitude = MaskMagnitude.POSITIVE
) -> Tensor:
    """Return how much a layer's masks use of what matters to earlier tasks (4): ``L_pl = Σ_i F_i [η H_i]_+``.

    Args:
        mask: H, ``(N, *weight)``.
        importance: F, the mean of the earlier tasks' Fisher diagonals, of the weight's shape.
        eta: η, not negative.
        magnitude: what an entry counts as.

    Returns:
        ``(N,)``, none negative.
    """
    return eta * (magnitude.of(mask).flatten(1) @ importance.flatten())


def mask_activity(mask: Tensor) -> Tensor:
    """Return the mean magnitude ``(N,)`` of masks ``(N, *weight)``, for the share of entries in use in (5)."""
    activity: Tensor = torch.linalg.vector_norm(mask.flatten(1), ord=1, dim=1) / mask[:1].numel()
    return activity


def sparsity_loss(activity: Tensor, allowed: float) -> Tensor:
    """Return how much more of a layer is in use than allowed (5): ``R_sp = [mean_i |H_i| − μ]_+``.

    The paper counts entries above 0 instead of ``|H|``, which has no gradient. Its author's code has the opposite
    sense; see :func:`sparsity_loss_of_code`.

    Args:
        activity: of a layer's masks, ``(N,)``; see :func:`mask_activity`.
        allowed: μ.

    Returns:
        ``(N,)``, none negative.
    """
    return (activity - allowed).relu()


def sparsity_loss_of_code(activity: Tensor, allowed: float) -> Tensor:
    """Return the sparsity loss of the author's code, ``[mean_i (1 − |H_i|) − μ]_+``, which is small for *full* masks.

    For ``|H| = .05`` and μ = .2 it is .75, where the paper's is 0; for ``|H| = .95`` it is 0, where the paper's is .75.

    Args:
        activity: mean of ``|H|`` over the entries of a layer's masks, ``(N,)``; see :func:`mask_activity`.
        allowed: μ, the mean of ``1 − |H|`` that costs nothing.

    Returns:
        ``(N,)``, none negative.
    """
    return (1 - activity - allowed).relu()


def orthogonal_candidates(positive: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw vectors orthogonal to P and as long as P, which N is chosen from.

    Args:
        positive: P, ``(D,)``, D at least 2.
        count: how many.
        generator: on the CPU.

    Returns:
        ``(count, D)``; all 0 if P is.
    """
    drawn = torch.randn(count, len(positive), generator=generator).to(positive)
    along = (drawn @ positive) / positive.square().sum().clamp_min(torch.finfo(positive.dtype).tiny)
    across = drawn - along.unsqueeze(1) * positive
    candidates: Tensor = across / across.norm(dim=1, keepdim=True) * positive.norm()
    return candidates
