"""The parts by themselves: bits, choices, sources, conditionings, roles, twins."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from hatrack import functional
from hatrack.errors import InputError, UnsupportedError
from hatrack.functional import Compensation
from hatrack.masks import (
    ElasticWeights,
    Embedding,
    FreeWeights,
    Magnitude,
    NoWeights,
    Scores,
    WeightConditioning,
    bytes_for,
    conditioning_from,
    count_features,
    describe,
    largest,
    lay_out,
    pack,
    signed_constant,
    source_from,
    straight_through,
    twin,
    unpack,
)

SHAPES = st.lists(st.integers(0, 5), max_size=4)
SEEDS = st.integers(0, 2**31)


def drawn(shape: list[int], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@given(SHAPES, SEEDS)
def test_what_is_packed_comes_back(shape: list[int], seed: int) -> None:
    mask = drawn(shape, seed)
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(mask.numel() / 8),)
    assert torch.equal(unpack(packed, shape), mask)


@given(st.lists(st.booleans(), max_size=40))
def test_bits_are_where_they_are_said_to_be(entries: list[bool]) -> None:
    by_hand = [0] * bytes_for(len(entries))
    for index, entry in enumerate(entries):
        by_hand[index // 8] |= entry << (index % 8)
    assert pack(torch.tensor(entries, dtype=torch.bool)).tolist() == by_hand


def test_bits_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="9 entries take 2 bytes, not 1"):
        unpack(torch.zeros(1, dtype=torch.uint8), (3, 3))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
def test_the_largest_are_chosen_anew_where_torch_traces_and_transforms() -> None:
    values, others = torch.tensor([1.0, 4.0, 3.0, 2.0]), torch.tensor([8.0, 5.0, 6.0, 7.0])
    traced = torch.jit.trace(lambda x: largest(x, 2), values)  # type: ignore[no-untyped-call]
    gradient = torch.func.grad(lambda x: (x * largest(x, 2)).sum())
    for x in (values, others):
        assert torch.equal(traced(x), largest(x, 2))
        assert torch.equal(gradient(x), largest(x, 2).float())


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_largest_are_those_of_a_sort_in_which_the_first_of_equals_go_first(
    values: list[int], share: float, dtype: torch.dtype
) -> None:
    count = round(share * len(values))
    by_hand = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    chosen = largest(torch.tensor(values, dtype=dtype), count)
    assert chosen.nonzero().flatten().tolist() == sorted(by_hand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_is_never_among_the_largest(dtype: torch.dtype) -> None:
    values = torch.tensor([math.nan, 2.0, 2.0], dtype=dtype)
    assert largest(values, 3).tolist() == [False, True, True]
    assert not largest(values, 1).any()


@pytest.mark.parametrize("count", [-1, 4])
def test_no_more_can_be_chosen_than_there_are(count: int) -> None:
    with pytest.raises(ValueError, match="of 3 entries cannot be chosen"):
        largest(torch.zeros(3), count)


def test_gradients_pass_a_choice_unchanged() -> None:
    scores = torch.randn(3, 4, requires_grad=True)
    chosen = drawn([3, 4], 0)
    arriving = torch.randn(3, 4)
    mask = straight_through(scores, chosen)
    assert torch.equal(mask, chosen.float())
    mask.backward(arriving)
    assert scores.grad is not None
    assert torch.equal(scores.grad, arriving)


def test_an_embedding_is_a_gate_per_weight() -> None:
    source = Embedding(s_max=50.0)
    values = torch.randn(4, 5, requires_grad=True)
    by_hand = values.detach().clone().requires_grad_()
    arriving = torch.randn(4, 5)
    mask = source.in_training(values, 0.25)
    scale = 1 / 50 + (50 - 1 / 50) * 0.25
    assert torch.allclose(mask, torch.sigmoid(scale * values), atol=1e-6)
    mask.backward(arriving)
    functional.gate(by_hand, scale).backward(arriving)
    assert values.grad is not None
    assert by_hand.grad is not None
    factor = functional.compensation_factor(by_hand.detach(), scale, 50.0)
    inside = (scale * by_hand.detach()).abs() < 10  # further out float32 has lost the plain gradient
    assert torch.allclose(values.grad[inside], (by_hand.grad * factor)[inside], rtol=1e-2)
    assert torch.equal(source.final(values, torch.zeros(4, 5), drawn([4, 5], 0)), values > 0)


@pytest.mark.parametrize("source", [Embedding(), Scores(None)])
def test_no_layer_is_left_without_any_weight(source: Any) -> None:
    values = -torch.arange(1.0, 7.0).view(2, 3)
    mask = source.final(values, values, torch.zeros(2, 3, dtype=torch.bool))
    assert mask.nonzero().tolist() == [[0, 0]]


def test_regularisation_is_the_share_of_the_free_weights() -> None:
    masks = [torch.rand(3, 4), torch.rand(5)]
    held = [drawn([3, 4], 1), drawn([5], 2)]
    taken = free = 0.0
    for mask, used in zip(masks, held, strict=True):
        for value, is_held in zip(mask.flatten().tolist(), used.flatten().tolist(), strict=True):
            taken += value * (not is_held)
            free += not is_held
    assert float(Embedding().regularization(masks, held)) == pytest.approx(taken / free)
    assert float(Scores().regularization(masks, held)) == 0.0


@pytest.mark.parametrize("keep", [0.03, 0.3, 0.5, 1.0])
def test_scores_keep_the_share_asked_for_of_each_layer_by_size(keep: float) -> None:
    source = Scores(keep)
    values = torch.randn(6, 7)
    by_hand = torch.zeros(42, dtype=torch.bool)
    by_hand[values.flatten().abs().sort(descending=True).indices[: max(1, round(keep * 42))]] = True
    mask = source.final(values, values, drawn([6, 7], 0))
    assert torch.equal(mask, by_hand.view(6, 7))
    assert torch.equal(source.in_training(values, 0.0), mask.float())


def test_scores_get_the_gradient_of_their_mask_with_their_sign() -> None:
    values, weight = torch.randn(6, 7, requires_grad=True), torch.randn(6, 7)
    x, y = torch.randn(5, 7), torch.randn(5, 6)
    masked = (weight * Scores(0.4).in_training(values, 0.0)).detach().requires_grad_()
    nn.functional.mse_loss(x @ masked.T, y).backward()
    nn.functional.mse_loss(x @ (weight * Scores(0.4).in_training(values, 0.0)).T, y).backward()
    assert values.grad is not None
    assert masked.grad is not None
    assert torch.allclose(values.grad, masked.grad * weight * values.detach().sign(), atol=1e-6)


@given(SEEDS, st.sampled_from([0.0, 0.3, 0.5, 0.75]), st.booleans())
def test_magnitude_keeps_the_largest_of_the_free_weights(seed: int, prune: float, first: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 6, generator=generator).round(decimals=1)
    held = torch.zeros(5, 6, dtype=torch.bool)
    if not first:
        held[torch.rand(5, 6, generator=generator) < 0.3] = True
        held[0, 0] = True
    source = Magnitude(prune, 0.9) if first else Magnitude(0.9, prune)
    mask = source.final(None, weight, held)
    sizes, free = weight.abs().flatten().tolist(), (~held).flatten().nonzero().flatten().tolist()
    order = sorted(free, key=lambda index: (-sizes[index], index))
    kept = order[: len(free) - round(prune * len(free))]
    assert mask[held].all()
    assert (mask & ~held).flatten().nonzero().flatten().tolist() == sorted(kept)


def test_signed_constants() -> None:
    weight = signed_constant(torch.tensor([[0.5, -3.0], [2.0, -0.1]], dtype=torch.float64))
    assert torch.equal(weight, torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64))
    assert signed_constant(torch.randn(4, 3, 5, 5)).abs().unique().tolist() == pytest.approx([(2 / 75) ** 0.5])


@pytest.mark.parametrize(
    "part",
    [
        Embedding(30.0, Compensation.FLOAT32),
        Scores(0.2),
        Scores(None),
        Magnitude(0.1, 0.2),
        FreeWeights(),
        NoWeights(),
        ElasticWeights(3.0),
    ],
)
def test_what_is_described_comes_back(part: Any) -> None:
    made = conditioning_from(describe(part)) if isinstance(part, WeightConditioning) else source_from(describe(part))
    assert made == part
    assert type(made) is type(part)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Embedding(s_max=0.0), "s_max must be positive and finite"),
        (lambda: Scores(0.0), "keep must be above 0 and at most 1, not 0.0"),
        (lambda: Scores(1.1), "keep must be above 0 and at most 1, not 1.1"),
        (lambda: Magnitude(prune=1.0), "prune must be at least 0 and below 1"),
    ],
)
def test_settings_that_mean_nothing(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_what_is_held_is_what_is_used_or_everything() -> None:
    weight, masks = torch.zeros(3, 4), [drawn([3, 4], 0), drawn([3, 4], 1)]
    assert torch.equal(FreeWeights().attention(masks, weight), masks[0] | masks[1])
    assert not FreeWeights().attention([], weight).any()
    assert NoWeights().attention([], weight).all()
    assert not ElasticWeights().attention(masks, weight).any()


class Odd(nn.Module):
    """One of everything that has weights or has none."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.table = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.batch = nn.BatchNorm1d(8)
        self.dense = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.dense.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.table(x)], 1)
        h = self.lstm(self.attention(h, h, h)[0])[0]
        return self.tied(torch.relu(self.dense(self.batch(self.norm(h).mean(1)))))


def test_every_parameter_has_a_role() -> None:
    layout = lay_out(Odd())
    assert layout.masked == (
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "dense.weight",
    )
    assert layout.norms == ("batch",)
    named = {name for name, _ in Odd().named_parameters()}
    assert named == {*layout.masked, *layout.copied, "batch.weight", "batch.bias"}
    assert {"token", "table.weight", "attention.bias_k", "norm.weight", "dense.bias"} <= set(layout.copied)


def sharing_a_norms_parameter() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4))
    network[2].weight = network[1].weight
    return network


REFUSED = {
    "parametrized": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))), "0 computes a weight from"),
    "spectral": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "Linear computes a weight from|Parametrized"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), "0 is not initialised yet"),
    "no weights": (lambda: nn.Sequential(nn.LayerNorm(4)), "no dense, convolutional"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), "weight is complex"),
    "shared norm": (sharing_a_norms_parameter, r"2\.weight is a batch norm's parameter too"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_mask_can_be_for_is_refused(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message):
        lay_out(build())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_style_weight_norm_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="0 computes a weight from others"):
        lay_out(nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4))))


def test_a_removed_parametrization_is_no_obstacle() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    parametrize.remove_parametrizations(layer, "weight")
    assert lay_out(layer).masked == ("weight",)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Flatten(0), r"features \(N, …, F\), and gave \(4,\)"),
        (nn.LSTM(4, 4), "no tensor, but a tuple of 2"),
        (nn.Linear(7, 2), "cannot run on the example input"),
    ],
)
def test_features_are_a_tensor_with_units_along_an_axis(network: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        count_features(network, torch.zeros(1, 1, 4))
    assert count_features(nn.Linear(4, 3), torch.zeros(5, 4)) == 3


@torch.no_grad()
def test_a_twin_computes_with_what_it_is_given_and_leaves_the_original_alone() -> None:
    torch.manual_seed(0)
    original, other = Odd().eval(), Odd().eval()
    x = torch.randint(0, 5, (3, 4))
    before, expected = original(x), other(x)
    values: dict[int, Tensor] = {}
    for (name, parameter), replacement in zip(original.named_parameters(), other.parameters(), strict=True):
        if not name.startswith("batch"):
            # A parameter too: torch has another way of multiplying by what needs no gradient.
            values[id(parameter)] = nn.Parameter(replacement.clone())
    made = twin(original, values, {id(original.batch): other.batch})
    assert torch.equal(made(x), expected)
    assert torch.equal(original(x), before)
    assert not torch.equal(before, expected)
    assert all(isinstance(parameter, nn.Parameter) for parameter in original.parameters())


def test_a_twin_calls_the_originals_hooks() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    seen: list[str] = []
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    twin(network, {}, {id(network[1]): nn.BatchNorm1d(4)})(torch.zeros(2, 4))
    assert seen == ["0", "1", ""]


def test_the_same_module_twice_has_one_twin() -> None:
    layer = nn.Linear(4, 4)
    made = twin(nn.ModuleList([layer, nn.ReLU(), layer]), {}, {})
    parts = list(made._modules.values())
    assert parts[0] is parts[2]
    assert all(one is not other for one, other in pairwise(parts))
    assert parts[0] is not layer
