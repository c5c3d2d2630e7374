from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hatrack.errors import InputError
from hatrack.methods.cab import CAB, CABSettings, conceptor, free_space, layer_inputs
from support.toys import TASKS, learn, make, setup, tasks_for


def correlation(seed: int, size: int = 6, rows: int = 40, rank: int | None = None) -> torch.Tensor:
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if rank is not None:
        x[:, rank:] = 0
    return x.T @ x / rows


@pytest.mark.parametrize("rank", [None, 3])
def test_a_conceptor_squeezes_every_direction_by_its_share(rank: int | None) -> None:
    matrix = correlation(0, rank=rank)
    values, vectors = torch.linalg.eigh(matrix)
    shares = values / (values + 4.0**-2)
    torch.testing.assert_close(conceptor(matrix, 4.0), vectors @ torch.diag(shares) @ vectors.T)
    torch.testing.assert_close(free_space(matrix, 4.0), vectors @ torch.diag(1 - shares) @ vectors.T)


def test_the_conceptor_of_summed_correlations_is_the_or_of_the_conceptors() -> None:
    """ "Or" as the paper has it: not(and(not A, not B)), and(A, B) = (A⁻¹ + B⁻¹ − I)⁻¹."""
    one, other = correlation(1), correlation(2)
    eye = torch.eye(6, dtype=torch.float64)
    free = [free_space(matrix, 3.0) for matrix in (one, other)]
    both_free = torch.linalg.inv(torch.linalg.inv(free[0]) + torch.linalg.inv(free[1]) - eye)
    torch.testing.assert_close(conceptor(one + other, 3.0), eye - both_free)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 3),
        nn.Linear(5, 3, bias=False),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(2, 3, (3, 2), stride=2, dilation=(1, 2), bias=False),
    ],
)
def test_the_inputs_of_a_layer_are_what_it_multiplies(layer: nn.Linear | nn.Conv2d) -> None:
    x = torch.randn(4, 5) if isinstance(layer, nn.Linear) else torch.randn(4, 2, 7, 7)
    weights = layer.weight.flatten(1)
    if layer.bias is not None:
        weights = torch.cat([weights, layer.bias.unsqueeze(1)], dim=1)
    outputs = layer(x).movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(layer_inputs(layer, x) @ weights.T, outputs)


@pytest.mark.parametrize("network", ["shallow", "plain"])
def test_correlations_are_means_over_the_inputs_of_each_layer(network: str) -> None:
    tasks = tasks_for(network)
    method = make("cab", network, conceptor_samples=10**6)
    learn(method, tasks[:1], epochs=1)
    x, _ = tasks[0].train.load()
    first, layer = next(iter(method.layers().items()))
    rows = layer_inputs(layer, x)
    torch.testing.assert_close(method.correlation[first], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert set(method.correlation) == set(method.layers())


@pytest.mark.parametrize("network", ["deep", "plain"])
def test_a_projected_step_leaves_outputs_on_old_inputs_nearly_as_they_were(network: str) -> None:
    """The old inputs fill a part of the space, so that there is a free one, and the aperture is large."""
    tasks = tasks_for(network)
    method = make("cab", network, aperture=1e3, pull=0.0)
    learn(method, tasks[:1], epochs=1)
    x, _ = tasks[0].train.load()
    name, layer = next(iter(method.layers().items()))
    narrow = x.clone()
    narrow.flatten(1)[:, ::2] = 0
    rows = layer_inputs(layer, narrow)
    if network == "plain":  # patches are shifted against each other and fill everything, so take a few
        rows = rows[:4]
    method.correlation = {name: rows.T @ rows / len(rows)} | {
        key: torch.zeros_like(value) for key, value in method.correlation.items() if key != name
    }
    method.begin_task(tasks[1])
    gradient = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(layer.bias.shape, generator=torch.Generator().manual_seed(2))
    layer.weight.grad, layer.bias.grad = gradient.clone(), bias.clone()
    method.before_step()
    raw = rows @ torch.cat([gradient.flatten(1), bias.unsqueeze(1)], dim=1).T
    kept = rows @ torch.cat([layer.weight.grad.flatten(1), layer.bias.grad.unsqueeze(1)], dim=1).T
    assert float(kept.abs().max()) < 1e-3 * float(raw.abs().max())
    assert float(layer.weight.grad.abs().max()) > 0.05


def test_the_pull_is_to_the_weights_before_the_task() -> None:
    method = make("cab", "shallow", pull=0.25)
    learn(method, TASKS[:1], epochs=1)
    method.begin_task(TASKS[1])
    weight = method.network.backbone.dense1.weight
    with torch.no_grad():
        weight.add_(1.0)
    for parameter in method.network.backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.before_step()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 0.25), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("network", "kind"), [("norm", "1 is a BatchNorm2d"), ("vit", "the backbone itself is a ViT")])
def test_other_layers_are_refused_in_one_line(network: str, kind: str) -> None:
    with pytest.raises(InputError, match=f"cab trains dense layers and plain convolutions only, and {kind}") as caught:
        make("cab", network)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_layer_that_is_trained_in_part_is_refused_and_one_that_is_not_trained_is_left_out(part: str) -> None:
    given = setup("mlp")

    def build(parts: tuple[str, ...]) -> nn.Module:
        backbone = given.build_backbone()
        first = next(module for module in backbone.modules() if isinstance(module, nn.Linear))
        for name in parts:
            first.get_parameter(name).requires_grad_(False)
        return backbone

    with pytest.raises(InputError, match="weight and bias together, and of dense1 one is not"):
        CAB(replace(given, build_backbone=lambda: build((part,))), CABSettings())
    CAB(replace(given, build_backbone=lambda: build(("weight", "bias"))), CABSettings())


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="aperture must be above 0"):
        CABSettings(aperture=0.0)
    with pytest.raises(InputError, match="conceptor_samples must be at least 1"):
        CABSettings(conceptor_samples=0)
