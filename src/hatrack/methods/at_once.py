"""Ends of tasks that are all or nothing, so that one that was cut off can be called again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hatrack.state.undo import leaves_modes
from hatrack.streams import Task

__all__ = ["at_once"]

MethodT = TypeVar("MethodT")


def at_once(end: Callable[[MethodT, Task], None]) -> Callable[[MethodT, Task], None]:
    """Make a method's ``end_task`` take back what it has done after any error, an interrupt among them.

    It leaves modes of torch that it had entered, too. Attributes are recorded by reference, so that it is to replace
    them and not to write into them; of streams of random numbers it is the state.

    Args:
        end: the ``end_task``.
    """

    @leaves_modes
    @functools.wraps(end)
    def ended(method: MethodT, task: Task) -> None:
        attributes: dict[str, Any] = vars(method)
        before = dict(attributes)
        streams = [(each, each.get_state()) for each in before.values() if isinstance(each, torch.Generator)]
        try:
            end(method, task)
        except BaseException:
            for name in attributes.keys() - before.keys():
                del attributes[name]
            attributes.update(before)
            for stream, state in streams:
                stream.set_state(state)
            raise

    return ended
