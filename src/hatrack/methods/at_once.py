"""Ends of tasks that are all or nothing, so that one that was cut off can be called again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hatrack.state.undo import leaves_modes
from hatrack.streams import Task

__all__ = ["at_once"]

MethodT = TypeVar("MethodT")


def at_once(
    values_of: Callable[[Any], Iterable[Tensor]] | None = None,
) -> Callable[[Callable[[MethodT, Task], None]], Callable[[MethodT, Task], None]]:
    """Decorate a method's ``end_task`` so that any error, an interrupt among them, takes back what it has done.

    It leaves modes of torch that it had entered, too. Attributes are recorded by reference, so that it is to replace
    them and not to write into them; of streams of random numbers it is the state.

    Args:
        values_of: returns the tensors of a method that its ``end_task`` writes into; None where it replaces tensors.
    """

    def decorate(end: Callable[[MethodT, Task], None]) -> Callable[[MethodT, Task], None]:
        @leaves_modes
        @functools.wraps(end)
        def ended(method: MethodT, task: Task) -> None:
            attributes: dict[str, Any] = vars(method)
            before = dict(attributes)
            streams = [(each, each.get_state()) for each in before.values() if isinstance(each, torch.Generator)]
            values = [(each, each.detach().clone()) for each in (() if values_of is None else values_of(method))]
            try:
                end(method, task)
            except BaseException:
                for name in attributes.keys() - before.keys():
                    del attributes[name]
                attributes.update(before)
                for stream, state in streams:
                    stream.set_state(state)
                with torch.no_grad():
                    for each, value in values:
                        each.copy_(value)
                raise

        return ended

    return decorate
