from __future__ import annotations

import pytest
import torch
from torch import tensor

from hatrack.methods.dwa.losses import (
    MaskMagnitude,
    anchor_loss,
    anchor_loss_of_code,
    mask_activity,
    orthogonal_candidates,
    plasticity_loss,
    sparsity_loss,
    sparsity_loss_of_code,
    triplet_loss,
)

E = tensor([[1.0, 0.0], [0.0, 0.5]])
P, N, N_T = tensor([1.0, 0.0]), tensor([0.0, 1.0]), tensor([-1.0, 0.0])


def test_triplets_by_hand() -> None:
    # ‖E−P‖² = 0 and 1.25, ‖E−N‖² = 2 and 0.25
    assert triplet_loss(E, P, N, margin=1.5).tolist() == [0.0, 2.5]
    assert triplet_loss(E, P, N, margin=2.5).tolist() == [0.5, 3.5]


def test_the_anchor_loss_by_hand() -> None:
    # ‖E−N_T‖² = 4 and 1.25: the second triplet is 0 and 1.5
    zeta = tensor([0.0, 0.6])
    both = anchor_loss(E, zeta, P, N, N_T, margin=1.5, delta=2.0)
    assert both.tolist() == pytest.approx([0.0, 0.4 * (2.5 + 2.0 * 1.5)])
    assert anchor_loss(E, zeta, P, N, None, 1.5, 2.0).tolist() == pytest.approx([0.0, 0.4 * 2.5])
    assert anchor_loss(E, torch.ones(2), P, N, N_T, 1.5, 1.0).tolist() == [0.0, 0.0]


def test_the_plasticity_loss_by_hand() -> None:
    mask = tensor([[[0.5, -0.5], [0.0, 1.0]], [[-1.0, -1.0], [0.25, 0.0]]])
    importance = tensor([[2.0, 3.0], [5.0, 7.0]])
    assert plasticity_loss(mask, importance, eta=1.0).tolist() == [8.0, 1.25]
    assert plasticity_loss(mask, importance, eta=2.0).tolist() == [16.0, 2.5]
    assert plasticity_loss(mask, importance, 1.0, MaskMagnitude.ABSOLUTE).tolist() == [9.5, 6.25]


def test_the_sparsity_loss_by_hand() -> None:
    mask = tensor([[[0.5, -0.5], [0.0, 1.0]], [[0.1, -0.1], [0.0, 0.2]]])
    activity = mask_activity(mask)
    assert activity.tolist() == pytest.approx([0.5, 0.1])
    assert sparsity_loss(activity, allowed=0.2).tolist() == pytest.approx([0.3, 0.0])


def test_the_sparsity_loss_has_a_gradient_only_where_too_much_is_in_use() -> None:
    mask = tensor([[0.5, -0.5], [0.1, -0.1]], requires_grad=True)
    sparsity_loss(mask_activity(mask), 0.2).sum().backward()
    assert mask.grad is not None
    assert mask.grad.tolist() == [[0.5, -0.5], [0.0, 0.0]]


def test_the_sparsity_loss_of_the_code_has_the_opposite_sense() -> None:
    nearly_off, nearly_on = mask_activity(torch.full((1, 4), 0.05)), mask_activity(torch.full((1, 4), -0.95))
    assert sparsity_loss_of_code(nearly_off, 0.2).tolist() == pytest.approx([0.75])
    assert sparsity_loss_of_code(nearly_on, 0.2).tolist() == [0.0]
    assert [float(sparsity_loss(each, 0.2)) for each in (nearly_off, nearly_on)] == pytest.approx([0.0, 0.75])


def test_the_anchor_loss_of_the_code_by_hand() -> None:
    """Norms of all differences of the batch at once: to P 1.25, to N 2.25, to N_T 5.25, before the roots."""
    zeta = tensor([0.0, 0.6])
    first, second = 1.25**0.5 - 2.25**0.5 + 1.0, 1.25**0.5 - 5.25**0.5 + 1.0
    assert second < 0 < first
    alone = anchor_loss_of_code(E, zeta, P, N, None, 1.0, 2.0)
    assert float(alone) == pytest.approx(1.4 * first)
    both = anchor_loss_of_code(E, zeta, P, N, N_T, 3.0, 2.0)
    assert float(both) == pytest.approx(1.4 * ((first + 2) + 2 * (second + 2)) / 3)


def test_candidates_are_orthogonal_to_the_anchor_and_as_long() -> None:
    positive = torch.randn(100, generator=torch.Generator().manual_seed(0))
    candidates = orthogonal_candidates(positive, 5, torch.Generator().manual_seed(1))
    assert candidates.shape == (5, 100)
    assert float((candidates @ positive).abs().max()) < 1e-4
    torch.testing.assert_close(candidates.norm(dim=1), positive.norm().expand(5))
    assert torch.linalg.matrix_rank(candidates) == 5
    assert orthogonal_candidates(torch.zeros(3), 2, torch.Generator()).tolist() == [[0.0] * 3] * 2
