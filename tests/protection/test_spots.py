"""Spots: writes that torch does not count are noticed by the next answer or step, and put back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hatrack import GuaranteeError, HATNetwork, WeightMaskedNetwork
from hatrack.protection.frozen import Backup, FrozenEntries
from hatrack.protection.spots import Spots

KINDS = [HATNetwork, WeightMaskedNetwork]


def by_data(net: Any) -> None:
    """Average into a network, as those who average weights do."""
    for parameter in net.parameters():
        parameter.data.mul_(0.9).add_(0.05)


def by_clamping(net: Any) -> None:
    for parameter in net.backbone.parameters():
        parameter.data.clamp_(-1e-3, 1e-3)


def by_numpy(net: Any) -> None:
    for parameter in net.backbone.parameters():
        parameter.detach().numpy()[...] += 1


def a_buffer(net: Any) -> None:
    net.backbone.shift.data.add_(1)


def a_head(net: Any) -> None:
    net.tasks[0].head.weight.data.mul_(2)


WRITES: list[Callable[[Any], None]] = [by_data, by_clamping, by_numpy, a_buffer, a_head]


class Convolutional(nn.Module):
    """Convolution, dense layer, and a constant in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 3), nn.Linear(32, 12)
        self.register_buffer("shift", torch.linspace(-1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x)).flatten(1)) + self.shift)


X = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0))


def prepared(kind: Any) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    net = kind(Convolutional(), X)
    for task in "ab":
        net.add_task(task, 3)
        net.consolidate(task)
    net.eval()
    return net, {task: net(X, task).detach() for task in "ab"}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_old_ones_whoever_wrote(kind: Any, write: Callable[[Any], None], training: bool) -> None:
    net, answers = prepared(kind)
    if training:
        net.add_task("c", 3)
    write(net)
    with pytest.warns(UserWarning, match="has changed frozen entries"):
        assert torch.equal(net(X, "a"), answers["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert all(torch.equal(net(X, task), answers[task]) for task in "ab")
    if not training:
        net.check()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("write", [by_data, by_clamping, by_numpy])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_puts_back_what_was_written_before(kind: Any, write: Callable[[Any], None], make: Any) -> None:
    net, answers = prepared(kind)
    net.add_task("c", 3)
    optimizer = net.protect(make(net.task_parameters("c"), lr=0.01))
    net.train()(X, "c").square().sum().backward()
    net.backbone.requires_grad_(True)
    write(net.backbone if write is by_data else net)
    with pytest.warns(UserWarning, match="has changed frozen entries of backbone"):
        optimizer.step()
    net.eval().consolidate("c")
    assert all(torch.equal(net(X, task), answers[task]) for task in "ab")


@pytest.mark.parametrize("kind", KINDS)
def test_inside_of_transforms_it_is_refused(kind: Any) -> None:
    net, _ = prepared(kind)
    by_clamping(net)
    with pytest.raises(GuaranteeError, match="have moved"):
        torch.func.vmap(lambda x: net(x[None], "a")[0])(X)


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@settings(deadline=None, max_examples=60)
@given(shape=shapes, share=st.sampled_from([0.02, 0.3, 0.9, 1.0]), seed=st.integers(0, 99), soft=st.booleans())
def test_spots_know_frozen_entries_alone(shape: tuple[int, ...], share: float, seed: int, soft: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator)
    frozen = torch.rand(shape, generator=generator) < share
    entries = FrozenEntries.of(tensor, frozen.float() if soft else frozen)
    if entries is None:
        assert not frozen.any()
        return
    spots = Spots([(tensor, entries)])
    assert not spots.have_moved()
    tensor[~frozen] += 1
    assert not spots.have_moved()
    found = entries.spot(64, 64)
    if found is None:
        assert frozen.numel() > 64, "of few entries all are tried"
        return
    start, chosen, saved = found
    assert torch.equal(chosen != 0, frozen.flatten()[start : start + 64])
    assert torch.equal(tensor.flatten()[start : start + 64].view(torch.int32) & chosen, saved)
    kept = tensor.clone()
    for place in (start + chosen.nonzero().flatten()).tolist():
        tensor.view(-1)[place] += 1
        assert spots.have_moved()
        tensor.copy_(kept)
    assert not spots.have_moved()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.bool, torch.uint8]
)
def test_spots_of_backups_are_of_any_type(dtype: torch.dtype) -> None:
    tensor = torch.arange(100).remainder(2).to(dtype)
    spots = Spots([(tensor, Backup.of(tensor))])
    assert not spots.have_moved()
    tensor.copy_(torch.ones_like(tensor))
    assert spots.have_moved()


def test_values_may_lie_elsewhere() -> None:
    tensor = torch.randn(9)
    spots = Spots([(tensor, Backup.of(tensor))])
    assert not spots.are_elsewhere()
    tensor.data = torch.zeros(9)
    assert spots.are_elsewhere()


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_come_to_lie_where_earlier_ones_lay_are_noticed(kind: Any) -> None:
    """A line search sets all parameters many times, and memory that is free again is taken again."""
    net, answers = prepared(kind)
    net.add_task("c", 3)
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()
    for size in range(12):
        for step in (0.1, 0.2):
            nn.utils.vector_to_parameters(flat + step * (size + 1), net.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(net(X, "a"), answers["a"])


MEANWHILE: list[Callable[[], object]] = []
"""What happens while a layer computes, as in another thread; no setting of the layer, which would be looked at."""


class Waiting(nn.Module):
    """Layer during which something else may happen."""

    def forward(self, x: Tensor) -> Tensor:
        while MEANWHILE:
            MEANWHILE.pop()()
        return x


@pytest.mark.parametrize("kind", KINDS)
def test_what_moves_while_an_answer_is_computed_is_noticed(kind: Any) -> None:
    torch.manual_seed(0)
    net = kind(nn.Sequential(nn.Linear(6, 12), Waiting(), nn.ReLU(), nn.Linear(12, 12)), torch.zeros(2, 6))
    net.add_task("a", 3)
    net.consolidate("a")
    x = torch.randn(5, 6)
    net.add_task("b", 3)
    before = net.eval()(x, "a").detach()
    last = net.backbone[-1].weight

    @torch.no_grad()
    def perturb() -> None:
        last.add_(0.1)

    MEANWHILE.append(perturb)
    assert torch.equal(net(x, "a"), before)
    assert not MEANWHILE


def test_expanded_gradients_are_conditioned_as_others_are() -> None:
    net, answers = prepared(HATNetwork)
    net.add_task("c", 3)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("c"), lr=0.1))
    for parameter in net.task_parameters("c"):
        parameter.grad = torch.ones(()).expand_as(parameter)
    optimizer.step()
    net.check()
    assert torch.equal(net(X, "a"), answers["a"])
