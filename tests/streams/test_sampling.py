from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hatrack.errors import InputError
from hatrack.streams.sampling import balanced_rows, stratified_split

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(torch.tensor)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 10))
def test_stratified_split_keeps_every_class_share(labels: torch.Tensor, fraction: float, seed: int) -> None:
    sizes = labels.bincount(minlength=5)
    assume(sizes.max() > 1)
    train, valid = stratified_split(labels, fraction, generator(seed))
    assert sorted(train.tolist() + valid.tolist()) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert valid.tolist() == sorted(valid.tolist())
    held_out = labels[valid].bincount(minlength=5)
    for size, held in zip(sizes.tolist(), held_out.tolist(), strict=True):
        assert abs(held - fraction * size) < 1
        if size > 1:
            assert 0 < held < size


def test_stratified_split_depends_on_the_generator_alone() -> None:
    labels = torch.arange(100) % 2
    torch.manual_seed(1)
    first = stratified_split(labels, 0.3, generator(0))[1]
    torch.manual_seed(2)
    assert torch.equal(first, stratified_split(labels, 0.3, generator(0))[1])
    assert not torch.equal(first, stratified_split(labels, 0.3, generator(1))[1])


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, float("nan")])
def test_split_share_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match="validation share must be"):
        stratified_split(torch.tensor([0, 0, 1, 1]), fraction, generator())


def test_nothing_to_hold_out() -> None:
    with pytest.raises(InputError, match="2 samples, one of each class, are too few for a validation split"):
        stratified_split(torch.tensor([0, 1]), 0.5, generator())


@given(LABELS, st.integers(1, 100), st.integers(0, 10))
def test_balanced_rows_are_as_even_as_the_classes_allow(labels: torch.Tensor, limit: int, seed: int) -> None:
    rows = balanced_rows(labels, limit, generator(seed))
    assert rows.tolist() == sorted(set(rows.tolist()))
    sizes = labels.bincount()
    kept = labels[rows].bincount(minlength=len(sizes))
    assert len(rows) == min(len(labels), max(limit, int((sizes > 0).sum())))
    cut = [count for size, count in zip(sizes.tolist(), kept.tolist(), strict=True) if count < size]
    if cut:
        assert min(cut) >= 1
        assert max(cut) - min(cut) <= 1
        assert kept.max() <= min(cut) + 1


def test_balanced_rows_are_drawn_not_taken_from_the_front() -> None:
    labels = torch.arange(1000) % 2
    rows = balanced_rows(labels, 100, generator())
    assert rows.max() > 900
    assert not torch.equal(rows, balanced_rows(labels, 100, generator(1)))


def test_limit_out_of_range() -> None:
    with pytest.raises(InputError, match="at least 1, not 0"):
        balanced_rows(torch.tensor([0, 1]), 0, generator())
