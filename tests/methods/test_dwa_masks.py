from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hatrack.methods.dwa.losses import MaskMagnitude, mask_activity, plasticity_loss
from hatrack.methods.dwa.masks import FactoredDense, MaskedConv, MaskedDense, MaskedLayer, Usage

D = 6


def conv(chunk: int, bias: bool = True) -> MaskedConv:
    return MaskedConv(nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=1, bias=bias), D, chunk)


def dense(chunk: int, bias: bool = True) -> MaskedDense:
    return MaskedDense(nn.Linear(10, 7, bias=bias), D, chunk)


def factored(chunk: int, bias: bool = True) -> FactoredDense:
    return FactoredDense(nn.Linear(10, 7, bias=bias), D, chunk)


Make = Callable[..., MaskedLayer]
LAYERS = pytest.mark.parametrize("make", [conv, dense, factored])


def made(make: Make, chunk: int = 2**24, **options: Any) -> tuple[MaskedLayer, Tensor, Tensor, Tensor]:
    """A layer, inputs and embeddings of nine samples, and an importance of its weight."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = make(chunk, **options)
        x = torch.randn(9, 3, 5, 6) if make is conv else torch.randn(9, 10)
        return layer, x, torch.randn(9, D), torch.rand(layer.layer.weight.shape)


@LAYERS
@pytest.mark.parametrize("bias", [True, False])
def test_samples_together_equal_the_layer_with_each_samples_own_weight(make: Make, bias: bool) -> None:
    layer, x, embedding, importance = made(make, bias=bias)
    result = layer(x, embedding, importance, Usage(eta=0.5))
    masks = layer.masks(embedding)
    for row in range(len(x)):
        weight = layer.layer.weight * masks[row]
        expected = torch.func.functional_call(layer.layer, {"weight": weight}, (x[row : row + 1],))
        torch.testing.assert_close(result.output[row : row + 1], expected, atol=1e-5, rtol=1e-5)
        single = layer(x[row : row + 1], embedding[row : row + 1], importance, Usage(eta=0.5))
        torch.testing.assert_close(result.output[row : row + 1], single.output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.activity, mask_activity(masks))
    torch.testing.assert_close(result.plasticity, plasticity_loss(masks, importance, 0.5))
    absolute = layer(x, embedding, importance, Usage(1.0, MaskMagnitude.ABSOLUTE)).plasticity
    torch.testing.assert_close(absolute, plasticity_loss(masks, importance, 1.0, MaskMagnitude.ABSOLUTE))
    assert layer(x, embedding, None, Usage()).plasticity.tolist() == [0.0] * 9


@LAYERS
def test_masks_have_the_weights_shape_and_lie_between_minus_1_and_1(make: Make) -> None:
    layer, _, embedding, _ = made(make)
    masks = layer.masks(5 * embedding).detach()
    assert masks.shape == (9, *layer.layer.weight.shape)
    assert float(masks.abs().max()) <= 1.0
    assert float(masks.min()) < -0.1
    assert float(masks.max()) > 0.1
    assert not torch.equal(masks[0], masks[1])


def test_the_two_forms_are_the_tanh_of_the_product_and_the_product_of_the_tanh() -> None:
    layer, _, embedding, _ = made(dense)
    assert isinstance(layer, MaskedDense)
    other, *_ = made(factored)
    other.load_state_dict(layer.state_dict())
    a, b = layer.per_output(embedding), layer.per_input(embedding)
    for row in range(len(embedding)):
        torch.testing.assert_close(layer.masks(embedding)[row], torch.outer(a[row], b[row]).tanh())
        torch.testing.assert_close(other.masks(embedding)[row], torch.outer(a[row].tanh(), b[row].tanh()))


@LAYERS
def test_one_embedding_serves_all_samples(make: Make) -> None:
    layer, x, embedding, importance = made(make)
    shared = layer(x, embedding[:1], importance, Usage())
    each = layer(x, embedding[:1].expand(9, -1), importance, Usage())
    torch.testing.assert_close(shared.output, each.output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared.activity.expand(9), each.activity)
    torch.testing.assert_close(shared.plasticity.expand(9), each.plasticity)


@LAYERS
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_chunks_change_neither_outputs_nor_gradients(make: Make, samples: int) -> None:
    def run(chunk: int) -> list[Tensor]:
        layer, x, embedding, importance = made(make, chunk)
        x.requires_grad_()
        embedding.requires_grad_()
        result = layer(x, embedding, importance, Usage())
        scalar = result.output.square().sum() + result.activity.sum() + result.plasticity.sum()
        gradients = torch.autograd.grad(scalar, [x, embedding, *layer.parameters()])
        return [*result, *gradients]

    whole = run(2**24)
    weight = made(make)[0].layer.weight.numel()
    for one, other in zip(whole, run(samples * weight), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Watches for the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return result


def large_dense(chunk: int) -> MaskedDense:
    return MaskedDense(nn.Linear(64, 64), D, chunk)


def large_conv(chunk: int) -> MaskedConv:
    return MaskedConv(nn.Conv2d(16, 16, 3, padding=1), D, chunk)


@pytest.mark.parametrize("make", [large_dense, large_conv])
def test_memory_is_bounded_by_the_chunk(make: Make) -> None:
    """Of 60 samples' masks no more than the chunk is ever made, and none is kept for the backward pass."""
    weight = make(1).layer.weight
    chunk = 8 * weight.numel()  # more than the generator has
    x = torch.randn(60, 64) if make is large_dense else torch.randn(60, 16, 1, 1)
    embedding = torch.randn(60, D, requires_grad=True)

    def measure(entries: int) -> tuple[int, int]:
        layer = make(entries)
        kept: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            kept[value.untyped_storage().data_ptr()] = value.numel()
            return value

        with Largest() as largest:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                result = layer(x, embedding, None, Usage())
            (result.output.sum() + result.activity.sum()).backward()
        return largest.entries, sum(kept.values())

    made_at_once, kept = measure(chunk)
    assert made_at_once <= chunk
    assert kept <= 2 * chunk
    unbounded, kept_unbounded = measure(2**24)
    assert unbounded == 60 * weight.numel()
    assert kept_unbounded > 60 * weight.numel()
