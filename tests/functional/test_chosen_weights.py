"""Weights under a choice by scores in one pass: the same bits as the operations that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from hatrack.functional import blocks, chosen_weight, straight_through
from hatrack.masks import Embedding, MaskSource, Scores
from hatrack.masks.sources import Passed
from support.weight_networks import attach


def by_operations(weight: Tensor, scores: Tensor, chosen: Tensor, by_size: bool) -> Tensor:
    """Oracle: a mask of numbers, whose gradient is that of the scores or of their sizes."""
    return weight * straight_through(scores.abs() if by_size else scores, chosen)


def results(function: Any, weight: Tensor, scores: Tensor, of: Tensor, trains: tuple[bool, bool]) -> list[Tensor]:
    weight, scores = (
        tensor.detach().clone().requires_grad_(flag) for tensor, flag in zip((weight, scores), trains, strict=True)
    )
    product = function(weight, scores)
    product.backward(of)
    return [product.detach(), *(tensor.grad for tensor in (weight, scores) if tensor.grad is not None)]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


@example([9, 5, 3], torch.float32, True, (True, True), 0)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
    st.sampled_from([(True, True), (False, True), (True, False)]),
    st.integers(0, 2**31),
)
def test_product_and_gradients_keep_every_bit(
    shape: list[int], dtype: torch.dtype, by_size: bool, trains: tuple[bool, bool], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, scores, of = (torch.randn(shape, generator=generator).round(decimals=1).to(dtype) for _ in range(3))
    chosen = torch.rand(shape, generator=generator) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK", 64)
        found = results(lambda *each: chosen_weight(*each, chosen, by_size=by_size), weight, scores, of, trains)
    expected = results(lambda *each: by_operations(*each, chosen, by_size), weight, scores, of, trains)
    assert len(found) == len(expected) == 1 + sum(trains)
    for one, other in zip(found, expected, strict=True):
        assert same_bits(one, other)


def test_a_weight_whose_entries_lie_otherwise_in_memory() -> None:
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    scores, of, chosen = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5), torch.rand(4, 3, 5, 5) < 0.3
    found = results(lambda *each: chosen_weight(*each, chosen, by_size=True), weight, scores, of, (True, True))
    expected = results(lambda *each: by_operations(*each, chosen, True), weight, scores, of, (True, True))
    assert all(same_bits(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("source", [Scores(0.5), Scores(None), Embedding(50.0)])
@pytest.mark.parametrize("lies", ["channels last", "transposed"])
def test_sources_pass_such_a_weight_without_memory_of_the_callers(source: MaskSource, lies: str) -> None:
    weight = torch.randn(6, 5).T if lies == "transposed" else torch.randn(4, 3, 5, 5)
    if lies == "channels last":
        weight = weight.to(memory_format=torch.channels_last)
    values, free = torch.randn(weight.shape), torch.ones(weight.shape, dtype=torch.bool)
    passed = source.passed(weight, values, free, 0.5).weight
    mask = source.in_training(values, 0.5)
    assert mask is not None
    assert torch.equal(passed, weight * mask)


def test_memory_whose_entries_lie_otherwise_is_refused() -> None:
    weight = torch.randn(6, 5).T
    with pytest.raises(ValueError, match="contiguous"):
        chosen_weight(weight, weight, weight > 0, by_size=True, new=torch.empty_like)


@pytest.mark.parametrize("by_size", [False, True])
def test_second_derivatives_and_batches_of_gradients_are_those_of_the_operations(by_size: bool) -> None:
    weight, scores = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    chosen, of = torch.rand(4, 5) < 0.5, torch.randn(3, 4, 5)

    def results(product: Tensor) -> list[Tensor]:
        batched = torch.autograd.grad(product, [weight, scores], of, retain_graph=True, is_grads_batched=True)
        first = torch.autograd.grad(product.square().sum(), [weight, scores], create_graph=True)
        return [*batched, *first, *torch.autograd.grad(sum(each.square().sum() for each in first), [weight, scores])]

    found = results(chosen_weight(weight, scores, chosen, by_size=by_size))
    torch.testing.assert_close(found, results(by_operations(weight, scores, chosen, by_size)))


@pytest.mark.parametrize("moved", ["weight", "scores"])
def test_what_moved_between_the_passes_is_noticed(moved: str) -> None:
    tensors = {name: torch.randn(3, 3, requires_grad=True) for name in ("weight", "scores")}
    product = chosen_weight(*tensors.values(), torch.ones(3, 3, dtype=torch.bool), by_size=True)
    with torch.no_grad():
        tensors[moved].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("keep", [None, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_pass_weights_as_any_source_does(keep: float | None, dtype: torch.dtype) -> None:
    source, free = Scores(keep), torch.ones(7, 11, dtype=torch.bool)
    weight, of = torch.randn(7, 11).to(dtype), torch.randn(7, 11).to(dtype)
    for scores in (torch.randn(7, 11), torch.randn(7, 11).to(dtype).round(decimals=1)):

        def passed(kind: type[MaskSource], scores: Tensor = scores) -> list[Tensor]:
            make = lambda w, s: kind.passed(source, w, s, free, 0.5).weight  # noqa: E731
            return results(make, weight, scores, of, (True, True))

        assert all(same_bits(*each) for each in zip(passed(Scores), passed(MaskSource), strict=True))


@pytest.mark.parametrize("kind", ["wsn", "supsup", "packnet"])
def test_masks_without_a_price_are_not_made_for_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = attach(kind)
    net.add_task("one", 2)
    net.train()
    monkeypatch.setattr(type(net.source), "in_training", None)
    cost = net.regularization()
    assert cost.item() == 0.0
    cost.backward()  # as a loop does that suits all masks


def test_a_cost_that_a_source_takes_while_it_passes_weights_counts() -> None:
    class Taking(Scores):
        def passed(self, weight: Any, values: Any, free: Any, progress: float, new: Any = None) -> Passed:
            mask = self.in_training(values, progress)
            return Passed(weight * mask, (mask * free).sum())

    net = attach("wsn", source=Taking(0.25))
    net.add_task("one", 2)
    net.train()(torch.zeros(2, 6), "one")
    assert net.regularization().item() == pytest.approx(0.25, rel=0.05)


def test_a_source_with_a_price_of_its_own_is_asked_for_it() -> None:
    class Priced(Scores):
        def regularization(self, masks: Any, used: Any) -> Tensor:
            return torch.stack([mask.mean() for mask in masks]).sum()

    net = attach("wsn", source=Priced(0.25))
    net.add_task("one", 2)
    assert net.train().regularization().item() == pytest.approx(0.25 * len(net.masks("one")), rel=0.05)
