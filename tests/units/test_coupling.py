"""Coupling of many units at once, against one pair at a time."""

from __future__ import annotations

import pytest
import torch

from hatrack.units.coupling import Coupling, compact


def naive_roots(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Return the smallest label that each label is coupled with, directly or through others; 0 if with label 0."""
    roots = list(range(count))
    for _ in range(count):
        for one, other in pairs:
            roots = [min(roots[one], roots[other]) if r in (roots[one], roots[other]) else r for r in roots]
    return roots


@pytest.mark.parametrize("seed", range(5))
def test_units_are_coupled_as_one_pair_after_the_other_would(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    coupling, pairs = Coupling(), []
    labels = torch.cat([coupling.open_units("a", 20), coupling.open_units("b", 20)])
    for size in (1, 5, 12):
        one, other = (labels[torch.randint(40, (size,), generator=generator)] for _ in range(2))
        assert torch.equal(coupling.couple(one, other), one)
        pairs += list(zip(one.tolist(), other.tolist(), strict=True))
        expected = naive_roots(41, pairs)
        assert coupling.roots(torch.arange(41)).tolist() == expected
        assert [coupling.root(label) for label in range(41)] == expected
    coupling.pin(labels[:1])
    coupling.open_units("c", 3)
    assert coupling.roots(labels)[0] == 0


def test_labels_that_repeat_themselves_are_viewed_once() -> None:
    labels = torch.arange(1, 13).view(3, 4)[1:, None, :, None].expand(2, 5, 4, 6)
    assert compact(labels).shape == (2, 1, 4, 1)
    assert torch.equal(compact(labels).expand(labels.shape), labels)
    assert compact(labels[:, :0]).shape == (2, 0, 4, 1)
    assert compact(torch.tensor(0).expand(3, 1)).shape == (1, 1)


def test_chains_of_coupled_units_are_followed_to_their_end() -> None:
    coupling = Coupling()
    labels = coupling.open_units("a", 60)
    for last in range(59, 0, -1):  # every coupling puts another root below the ones before
        coupling.couple(labels[last - 1 : last], labels[last : last + 1])
    assert coupling.roots(labels).tolist() == [1] * 60
    coupling.pin(labels[30:31])
    assert coupling.roots(labels).tolist() == [0] * 60


@pytest.mark.parametrize(("axis", "left"), [(0, (1, 2, 100)), (1, (120, 1, 100))])
def test_roots_that_are_repeated_along_an_axis_are_a_view(axis: int, left: tuple[int, ...]) -> None:
    coupling = Coupling()
    labels = coupling.open_units("a", 120 * 2 * 100).view(120, 2, 100)
    assert compact(coupling.roots(labels)).shape == labels.shape
    first = labels.narrow(axis, 0, 1)
    coupling.couple(labels, first)
    assert torch.equal(coupling.roots(labels), first.expand(labels.shape))
    assert compact(coupling.roots(labels)).shape == left
