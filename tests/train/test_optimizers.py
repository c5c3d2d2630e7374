"""Optimizers that make a parameter's step in one pass, against those of torch that take several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hatrack import HATNetwork
from hatrack.methods import METHODS, ParameterGroup
from hatrack.train import OptimizerKind, TrainingSettings
from hatrack.train.optimizers import build_optimizer, load_optimizer, optimizer_tensors
from support.marks import slow_but
from support.toys import learn, logits, setup, tasks

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": Tensor.contiguous,
    "channels last": lambda values: values.contiguous(memory_format=torch.channels_last),
    "turned": lambda values: values.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda values: torch.cat([values, values], dim=1)[:, : values.shape[1]],
}
KINDS = {
    "sgd": TrainingSettings(lr=0.1),
    "momentum": TrainingSettings(lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": TrainingSettings(lr=0.01, optimizer=OptimizerKind.ADAM),
    "adamw": TrainingSettings(lr=0.01, optimizer=OptimizerKind.ADAMW, weight_decay=0.1),
}


def plain(parameters: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    if settings.optimizer is OptimizerKind.SGD:
        return torch.optim.SGD(
            parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=False, foreach=False
        )
    kind = torch.optim.Adam if settings.optimizer is OptimizerKind.ADAM else torch.optim.AdamW
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay, fused=False, foreach=False)


def steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, layout: str, seeds: range) -> None:
    """Make steps with gradients of a layout, each drawn by its seed; the last parameter has none at first."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters if seed else parameters[:-1] or parameters:
            parameter.grad = LAYOUTS[layout](torch.randn(parameter.shape, generator=generator))
        optimizer.step()


def parameters_of(layouts: list[str]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(LAYOUTS[layout](torch.randn(6, 5, 3, 3, generator=generator))) for layout in layouts]


@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=1, max_size=3),
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 4),
)
def test_steps_are_those_of_torch_however_tensors_lie_in_memory(
    kind: str, layouts: list[str], of_gradients: str, before: int
) -> None:
    settings, wanted, found = KINDS[kind], parameters_of(layouts), parameters_of(layouts)
    steps(wanted, plain(wanted, settings), of_gradients, range(5))
    first = build_optimizer([ParameterGroup(found)], settings)
    steps(found, first, of_gradients, range(before))
    then = build_optimizer([ParameterGroup(found)], settings)
    kept = {
        name: value.detach().contiguous().clone() for name, value in optimizer_tensors(first).items()
    }  # as in files
    load_optimizer(then, kept)
    steps(found, then, of_gradients, range(before, 5))
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    if settings.optimizer is OptimizerKind.SGD:
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_sparse_gradients_end_in_what_torch_says_of_them(kind: str) -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = build_optimizer([ParameterGroup([parameter])], KINDS[kind])
    parameter.grad = torch.zeros(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_one_pass_is_taken_where_all_parameters_allow_it(kind: str) -> None:
    def fuses(parameters: list[nn.Parameter]) -> bool:
        return bool(build_optimizer([ParameterGroup(parameters)], KINDS[kind]).param_groups[0]["fused"])

    assert fuses(parameters_of(["rows", "channels last"]))
    assert not fuses(parameters_of(["rows", "with gaps"]))
    assert not fuses([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    assert not fuses([nn.Parameter(torch.zeros(2, device="meta"))])


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_weights_that_are_frozen_as_a_whole_take_no_part_in_steps_of_one_pass(kind: str) -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()), torch.zeros(1, 4))
    net.add_task("old", 2, embedding=torch.ones(net.units.num_units))  # all units, so that all weights are frozen
    net.consolidate("old")
    net.add_task("new", 2)
    groups = [ParameterGroup(net.task_parameters("new"))]
    optimizer = net.protect(build_optimizer(groups, KINDS[kind]))
    assert optimizer.param_groups[0]["fused"]
    net.train().anneal(0.5)
    net(torch.randn(5, 4), "new").sum().backward()
    optimizer.step()
    assert {id(parameter) for parameter in optimizer.state} == {
        id(parameter) for parameter in net.task_parameters("new", new_only=True)
    }


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_weight_decay_acts_on_groups_that_decay_alone(kind: str) -> None:
    settings = replace(KINDS[kind], weight_decay=0.1)
    kept, decaying = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([ParameterGroup([decaying]), ParameterGroup([kept], decays=False)], settings)
    for parameter in (kept, decaying):
        parameter.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(kept, torch.ones(3))
    assert bool((decaying < 1.0).all())


ON_PICTURES = [name for name, method in METHODS.items() if method.trains and name != "den"]
"""Methods that train convolutions."""


@pytest.mark.parametrize("name", slow_but(["gem"], ON_PICTURES))
def test_what_is_learned_does_not_depend_on_how_weights_lie_in_memory(name: str) -> None:
    """Methods may change gradients just before a step, and give them another layout than their parameter's."""
    seen, answers = tasks("plain", 2, samples=48), []
    for layout in (torch.contiguous_format, torch.channels_last):
        start = setup("plain")
        build, narrow = start.build_backbone, start.build_narrow
        assert narrow is not None
        method = METHODS[name](
            replace(
                start,
                build_backbone=lambda build=build, layout=layout: build().to(memory_format=layout),
                build_narrow=lambda share, seed, narrow=narrow, layout=layout: narrow(share, seed).to(
                    memory_format=layout
                ),
            ),
            METHODS[name].settings_type(),
        )
        learn(method, seen, optimizer=OptimizerKind.ADAM, lr=0.01)
        answers.append(torch.cat([logits(method, task).flatten() for task in seen]))
    torch.testing.assert_close(*answers, rtol=0.0, atol=1e-2)  # rounding grows along the way
