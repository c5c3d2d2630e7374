"""Loading of states: a task that is consolidated stays so, whatever is loaded; all that goes forward works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hatrack import HATNetwork, InputError, WeightMaskedNetwork

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
State = dict[str, Any]


def build(kind: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU()), torch.zeros(2, 6))


def step(net: Any, name: str, steps: int = 3) -> None:
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(name), lr=0.03))
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(X, name), torch.arange(len(X)) % 2).backward()
        optimizer.step()


def ask(net: Any, name: str) -> Tensor:
    with torch.no_grad():
        answer: Tensor = net.eval()(X, name)
    return answer


def state_of(net: nn.Module) -> State:
    return copy.deepcopy(net.state_dict())


def below(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.fixture(params=[HATNetwork, WeightMaskedNetwork])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


LOADINGS: dict[str, Callable[[Any, State], object]] = {
    "all of it": lambda net, state: net.load_state_dict(state),
    "by reference": lambda net, state: net.load_state_dict(state, assign=True),
    "what there is of it": lambda net, state: net.load_state_dict(state, strict=False),
    "in a parent": lambda net, state: nn.Sequential(net).load_state_dict(below("0.", state)),
    "in a parent, what there is": lambda net, state: nn.Sequential(net).load_state_dict(
        below("0.", state), strict=False
    ),
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("how", LOADINGS)
def test_what_is_consolidated_stays_so(how: str, later: bool, kind: Any) -> None:
    net = build(kind)
    net.add_task("first", 2)
    step(net, "first")
    net.consolidate("first")
    net.add_task("a", 2)
    step(net, "a")
    snapshot = state_of(net)
    step(net, "a")
    net.consolidate("a")
    if later:
        net.add_task("b", 2)
        step(net, "b")
    before, answers = state_of(net), {name: ask(net, name) for name in net.task_names}
    with pytest.raises(InputError, match=r"consolidated tasks \['first'\].*task 'a' stays consolidated.*net.forget"):
        LOADINGS[how](net, snapshot)
    assert net.task_in_training == ("b" if later else None)
    assert all(torch.equal(ask(net, name), answer) for name, answer in answers.items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.check()
    if later:
        step(net, "b")
        net.consolidate("b")
    assert torch.equal(ask(net, "a"), answers["a"])


@pytest.mark.parametrize("part", ["tasks", "tasks.1"])
def test_parts_of_a_network_are_loaded_no_further_back(part: str, kind: Any) -> None:
    net = build(kind)
    for name in ("first", "a"):
        net.add_task(name, 2)
        step(net, name)
        if name == "first":
            net.consolidate(name)
    snapshot = state_of(net.get_submodule(part))
    net.consolidate("a")
    answer = ask(net, "a")
    with pytest.raises(RuntimeError, match="task 'a' is in training there, and consolidated here"):
        net.get_submodule(part).load_state_dict(snapshot)
    assert net.task_in_training is None
    assert torch.equal(ask(net, "a"), answer)
    net.check()


@pytest.mark.parametrize("how", LOADINGS)
@pytest.mark.parametrize("consolidated", [(), ("first",), ("first", "a")])
def test_fresh_networks_take_over_what_is_consolidated(consolidated: tuple[str, ...], how: str, kind: Any) -> None:
    net, fresh = build(kind), build(kind, seed=1)
    for name in ("first", "a"):
        net.add_task(name, 2)
        step(net, name)
        net.consolidate(name)
        if name in consolidated:
            fresh.add_task(name, 2)
            fresh.consolidate(name)
        else:
            fresh.masking.open_task(name, 2)
    LOADINGS[how](fresh, state_of(net))
    assert fresh.task_in_training is None
    for name in ("first", "a"):
        assert torch.equal(ask(fresh, name), ask(net, name))
    fresh.check()


@pytest.mark.parametrize("how", LOADINGS)
def test_a_training_goes_back_to_its_best_epoch(how: str, kind: Any) -> None:
    net = build(kind)
    net.add_task("first", 2)
    step(net, "first")
    net.consolidate("first")
    answer = ask(net, "first")
    net.add_task("a", 2)
    step(net, "a")
    best, of_best = state_of(net), ask(net, "a")
    step(net, "a")
    assert not torch.equal(ask(net, "a"), of_best)
    LOADINGS[how](net, best)
    assert net.task_in_training == "a"
    assert torch.equal(ask(net, "a"), of_best)
    step(net, "a")
    net.consolidate("a")
    assert torch.equal(ask(net, "first"), answer)
    net.check()
