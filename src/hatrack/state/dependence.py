"""Test of whether the outputs of a network depend on state that its runs move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hatrack.state.movement import set_buffers, without_trace
from hatrack.support.inputs import Inputs
from hatrack.support.randomness import seed_generators

__all__ = ["Copy", "depends_on_state", "other_values", "put_value"]

_FURTHER = (1, 10, 100, 1_000, 10_000, 1_000_000)
"""Steps by which a counter is increased: a path may change at some count, as after a warm-up."""


@dataclass(frozen=True)
class Copy:
    """Copy of a network that may be run and changed.

    Attributes:
        backbone: its backbone.
        ask: computes features of a batch under a mask drawn from a seed, in evaluation mode.
    """

    backbone: nn.Module
    ask: Callable[[Inputs, int], Tensor]


def other_values(module: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, bool | int | float]]:
    """Yield further values of attributes and buffers that are single numbers or truth values.

    Args:
        module: the network.
        names: names of attributes and buffers; others than single numbers, or missing ones, are skipped.
    """
    for name in names:
        present = _value(module, name)
        if isinstance(present, bool):
            yield from ((name, value) for value in (True, False))
        elif isinstance(present, int):
            yield from ((name, present + step) for step in _FURTHER)
        elif isinstance(present, float):
            yield from ((name, value) for value in (0.0, 1.0, 1e6))


def put_value(module: nn.Module, name: str, value: bool | int | float) -> None:
    """Set an attribute, or a buffer of one entry, to another value.

    Args:
        module: the network, or a copy of it that may be changed.
        name: as for :func:`other_values`.
        value: the new value.
    """
    owner, own = _place(module, name)
    if own in owner._buffers:
        buffer = owner._buffers[own]
        assert buffer is not None
        owner._buffers[own] = torch.full_like(buffer, value)
    else:
        vars(owner)[own] = value


@torch.no_grad()
def depends_on_state(
    copy: Callable[[], Copy], names: Sequence[str], x: Inputs, move: Callable[[nn.Module], object] | None = None
) -> bool:
    """Return whether outputs depend on state that all tasks would share.

    Copies are run under two masks, in both orders, before and after a run that moves the state; with other weights than
    those that the state was made with, since it may keep what was computed of them; and with further values of single
    numbers, since a counter may matter only after many calls.

    Args:
        copy: makes a copy of the network as it is now.
        names: names of the attributes and buffers that move.
        x: the batch to run.
        move: runs a backbone in a way that moves the state; None tries further values alone.
    """

    def answers(seeds: Sequence[int], change: Callable[[nn.Module], object] | None) -> list[Tensor]:
        with without_trace(), torch.no_grad():
            made = copy()
            buffers = {name: b.clone() for name, b in made.backbone.named_buffers() if name not in names}
            seed_generators(0)
            if change is not None:
                change(made.backbone)
                set_buffers(made.backbone, list(buffers), list(buffers.values()))
            found = []
            for seed in seeds:
                seed_generators(0)
                found.append(made.ask(x, seed).nan_to_num())
            return found

    expected = {seed: answers([seed], None)[0] for seed in (0, 1)}

    def differ(seeds: Sequence[int], change: Callable[[nn.Module], object] | None) -> bool:
        found = answers(seeds, change)
        return not all(torch.equal(expected[seed], each) for seed, each in zip(seeds, found, strict=True))

    if move is not None and any(differ(seeds, change) for seeds in ((0, 1), (1, 0)) for change in (None, move)):
        return True
    if move is not None and _keeps_weights(copy, x, move):
        return True
    values = list(other_values(copy().backbone, names))
    return any(differ((0,), partial(put_value, name=name, value=value)) for name, value in values)


def _keeps_weights(copy: Callable[[], Copy], x: Inputs, move: Callable[[nn.Module], object]) -> bool:
    """Return whether outputs depend on weights that a network had in an earlier run, as by a cache."""

    def answer(earlier: Callable[[Copy], object] | None) -> Tensor:
        with without_trace(), torch.no_grad():
            made = copy()
            seed_generators(0)
            if earlier is not None:
                buffers = {name: buffer.clone() for name, buffer in made.backbone.named_buffers()}
                earlier(made)
                set_buffers(made.backbone, list(buffers), list(buffers.values()))
            _replace_weights(made.backbone)
            seed_generators(0)
            return made.ask(x, 0).nan_to_num()

    expected = answer(None)
    return any(
        not torch.equal(answer(earlier), expected)
        for earlier in (lambda made: move(made.backbone), lambda made: made.ask(x, 0))
    )


def _replace_weights(backbone: nn.Module) -> None:
    """Give a copy of a network, whose parameters are the original's, other parameters."""
    others: dict[int, nn.Parameter] = {}
    for module in backbone.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                other = others.setdefault(
                    id(parameter), nn.Parameter(1.25 * parameter.detach(), parameter.requires_grad)
                )
                module._parameters[name] = other
        if isinstance(module, nn.RNNBase):  # it reads its weights from a list
            vars(module)["_flat_weights"] = [getattr(module, name) for name in module._flat_weights_names]


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, own = name.rpartition(".")
    return module.get_submodule(owner), own


def _value(module: nn.Module, name: str) -> Any:
    """Return the present value of an attribute or buffer; None where there is no such module."""
    try:
        owner, own = _place(module, name)
    except AttributeError:
        return None
    value = owner._buffers.get(own, vars(owner).get(own))
    if isinstance(value, np.generic):
        return value.item()
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
