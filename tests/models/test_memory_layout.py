"""Layout in memory: last bits depend on it, so that it is kept in files and states, and changes of it are said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hatrack
from hatrack.support.layouts import lay_out, strides_of

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def build() -> nn.Sequential:
    pooled = (nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 3), *pooled)


def attach(kind: Any, layout: torch.memory_format, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(build().to(memory_format=layout), torch.zeros(1, 3, 8, 8))


def with_task(kind: Any, layout: torch.memory_format) -> Any:
    net = attach(kind, layout)
    net.add_task("a", 2)
    net.consolidate("a")
    return net


def ask(net: Any) -> Tensor:
    with torch.no_grad():
        answer: Tensor = net.eval()(X, "a")
    return answer


@pytest.fixture(params=[hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def by_file(net: Any, kind: Any, layout: torch.memory_format, folder: Path) -> Any:
    net.save(folder / "net.hat")
    return hatrack.load(folder / "net.hat", build().to(memory_format=layout))


def by_state(net: Any, kind: Any, layout: torch.memory_format, folder: Path, **how: Any) -> Any:
    other = attach(kind, layout, seed=1)
    other.add_task("a", 2)
    other.load_state_dict(copy.deepcopy(net.state_dict()), **how)
    return other


def by_tensors(net: Any, kind: Any, layout: torch.memory_format, folder: Path) -> Any:
    """Load tensors that lie row by row, as in files of safetensors."""
    other = attach(kind, layout, seed=1)
    other.add_task("a", 2)
    other.load_state_dict({name: value.contiguous() for name, value in net.state_dict().items()}, assign=True)
    return other


WAYS: dict[str, Callable[..., Any]] = {"file": by_file, "state": by_state, "tensors": by_tensors}


@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("here", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_loaded_lies_as_it_lay_and_gives_the_same_bits(
    way: str, here: torch.memory_format, there: torch.memory_format, kind: Any, tmp_path: Path
) -> None:
    net = with_task(kind, there)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = WAYS[way](net, kind, here, tmp_path)
        assert torch.equal(ask(other), ask(net))
        assert strides_of(other) == strides_of(net)
    assert bool(strides_of(net)) == (there is torch.channels_last)
    other.check()
    other.add_task("b", 2)
    other.consolidate("b")
    assert torch.equal(ask(other), ask(net))


PARTS: dict[str, Callable[[Any], nn.Module]] = {"network": lambda net: net, "backbone": lambda net: net.backbone}


def lay(part: nn.Module, layout: torch.memory_format, net: Any) -> Tensor:
    """Lay a part out, and ask the network, one of which warns."""
    part.to(memory_format=layout)  # type: ignore[call-overload]
    return ask(net)


@pytest.mark.parametrize("what", PARTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_said_once_and_the_former_one_brings_the_bits_back(
    layout: torch.memory_format, what: str, kind: Any
) -> None:
    (other,) = (each for each in LAYOUTS if each is not layout)
    net = with_task(kind, layout)
    for each in (net, copy.deepcopy(net)):
        promised, part = ask(each), PARTS[what](each)
        with pytest.warns(UserWarning, match=r"backbone\.0\.weight, .*: values lie otherwise in memory now") as found:
            changed = lay(part, other, each)
        assert found[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(ask(each), changed)  # said once
        each.check()
        with pytest.warns(UserWarning, match="lie otherwise in memory"):
            restored = lay(part, layout, each)
        assert torch.equal(restored, promised)
        each.check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_before_the_first_task_nothing_is_said(layout: torch.memory_format, kind: Any) -> None:
    net = attach(kind, torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.to(memory_format=layout)
        net.add_task("a", 2)
        net.to(memory_format=torch.channels_last)
        net.consolidate("a")
        promised = ask(net)
        net.to(memory_format=torch.channels_last)
        net.to("cpu")
        assert torch.equal(ask(net), promised)


def test_files_and_states_of_before_are_read_into_the_layout_at_hand(
    kind: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    net = with_task(kind, torch.contiguous_format)
    state, checkpoint = net.state_dict(), net.to_checkpoint()
    state["_extra_state"] = dict(net.protection.digests)
    del checkpoint.description["strides"]
    monkeypatch.setattr(net, "to_checkpoint", lambda: checkpoint)
    net.save(tmp_path / "net.hat")
    loaded = hatrack.load(tmp_path / "net.hat", build().to(memory_format=torch.channels_last))
    other = attach(kind, torch.channels_last)
    other.add_task("a", 2)
    layout = strides_of(other)
    other.load_state_dict(state)
    assert layout
    assert strides_of(loaded) == layout
    assert strides_of(other) == layout


def test_what_cannot_be_loaded_leaves_the_layout(kind: Any) -> None:
    source, net = with_task(kind, torch.channels_last), with_task(kind, torch.contiguous_format)
    promised = ask(net)
    bad = {name: v + 1 if v.is_floating_point() else v for name, v in source.state_dict().items()}
    with pytest.raises(hatrack.GuaranteeError):
        net.load_state_dict(bad)
    assert not strides_of(net)
    assert torch.equal(ask(net), promised)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_steps_go_on_after_a_change_of_the_layout(layout: torch.memory_format, kind: Any) -> None:
    """Torch pairs what such an optimizer remembers with other entries then."""
    (other,) = (each for each in LAYOUTS if each is not layout)
    trained = []
    for fused in (True, False):
        net = attach(kind, layout)
        net.add_task("a", 2, generator=torch.Generator().manual_seed(0))
        optimizer = net.protect(torch.optim.AdamW(net.task_parameters("a"), lr=0.1, eps=1e-3, fused=fused))
        for number in range(4):
            if number == 2:
                net.to(memory_format=other)
            optimizer.zero_grad()
            net.train()(X, "a").square().mean().backward()
            for parameter in net.parameters():  # as torch's own fused optimizers need it
                parameter.grad = None if parameter.grad is None else torch.empty_like(parameter).copy_(parameter.grad)
            optimizer.step()
        trained.append(net.backbone[0].weight.detach())
    assert torch.allclose(*trained, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_order_of_axes_is_recorded_and_restored(shape: list[int], random: Any) -> None:
    order = list(range(len(shape)))
    random.shuffle(order)
    values = torch.randn([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(shape))])
    laid, plain = nn.Module(), nn.Module()
    laid.weight, plain.weight = nn.Parameter(values), nn.Parameter(values.clone(memory_format=torch.contiguous_format))
    before, weight = values.clone(), plain.weight
    lay_out(plain, strides_of(laid))
    assert plain.weight is weight
    assert torch.equal(plain.weight, before)
    if strides_of(laid):
        assert plain.weight.stride() == laid.weight.stride()
    lay_out(plain, {})
    assert plain.weight.is_contiguous()
    assert torch.equal(plain.weight, before)


def _train(net: Any) -> None:
    net.add_task("b", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("b"), lr=0.1))
    net.train()(X, "b").square().sum().backward()
    optimizer.step()


def _learn(net: Any) -> None:
    net.add_task("b", 2)
    net.consolidate("b")


BETWEEN: dict[str, Callable[[Any, Path], object]] = {
    "nothing": lambda net, folder: None,
    "a step": lambda net, folder: _train(net),
    "a task": lambda net, folder: _learn(net),
    "a state": lambda net, folder: net.load_state_dict({}, strict=False),
    "a file": lambda net, folder: net.save(folder / "net.hat"),
    "its state": lambda net, folder: net.state_dict(),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_another_layout_of_the_backbone_is_said_whatever_happens_before_old_tasks_are_asked(
    between: str, kind: Any, tmp_path: Path
) -> None:
    net = with_task(kind, torch.contiguous_format)
    ask(net)
    net.backbone.to(memory_format=torch.channels_last)

    def go_on() -> None:
        BETWEEN[between](net, tmp_path)
        ask(net)

    with pytest.warns(UserWarning, match="values lie otherwise in memory now"):
        go_on()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(net)
