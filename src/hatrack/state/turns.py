"""Turns of threads: any number of them ask a network at a time, or one changes it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from hatrack.support.compilers import keep_compilers_out

__all__ = ["ATTACHED", "PART_OF", "Turns", "asking_owners", "changing_all"]

ATTACHED = "_hatrack_attached"
"""Attribute of a backbone inside a network of tasks; its value's ``turns`` are the network's, None if unknown, and
``is_dead`` says whether the network is known to be gone."""

PART_OF = "_hatrack_part_of"
"""Attribute of every part of such a backbone, itself included; its value's ``turns`` are those of the last network that
it came into, None if that is gone. In copies of the part alone the value is None."""

_Turn = tuple[int, object]
"""A thread, and what tells its turns apart."""


class Turns:
    """Turns at a network, of those who ask it and those who change its tasks or its structure.

    A thread that changes it waits until all others have their answers, and these wait until it is done. What a thread
    does within its own turn does not wait. Copies have turns of their own.
    """

    __slots__ = ("_asking", "_changing", "_condition")  # no attributes that an undone operation would restore

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._asking: list[_Turn] = []
        self._changing: list[_Turn] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Turns:
        return Turns()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()

    def asking(self) -> _Asking:
        """Ask in a block; waits while another thread changes the network."""
        return _Asking(self)

    def begin_asking(self, turn: _Turn) -> None:
        """Begin to ask as soon as no other thread changes the network."""
        with self._condition:
            while self._changing and _others(turn, self._changing):
                self._condition.wait()
            self._asking.append(turn)

    def end_asking(self, turn: _Turn) -> None:
        """End what :meth:`begin_asking` has begun, or was interrupted in."""
        self._end(turn, self._asking)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change the network in a block; waits while other threads ask or change it.

        A thread that asks, and finds that it has to change the network first, lets others do so before.
        """
        turn = threading.get_ident(), object()
        own = [each for each in self._asking if each[0] == turn[0]]
        try:
            with self._condition:
                for each in own:
                    self._asking.remove(each)
                self._condition.notify_all()
                while _others(turn, self._changing) or _others(turn, self._asking):
                    self._condition.wait()
                self._asking += own
                self._changing.append(turn)
            yield
        finally:
            self._end(turn, self._changing)

    def _end(self, turn: _Turn, turns: list[_Turn]) -> None:
        with self._condition:
            if turn in turns:  # else it was interrupted before it began
                turns.remove(turn)
            self._condition.notify_all()


class _Asking:
    """Turn of a thread that asks; no generator, which would take three times as long in every call."""

    __slots__ = ("_turn", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns, self._turn = turns, (threading.get_ident(), object())

    def __enter__(self) -> None:
        try:
            self._turns.begin_asking(self._turn)
        except BaseException:
            self._turns.end_asking(self._turn)
            raise

    def __exit__(self, *_: object) -> None:
        self._turns.end_asking(self._turn)


@contextmanager
def asking_owners(module: nn.Module) -> Iterator[bool]:
    """Ask in a block, at the networks of tasks that have a module, or parts of it, in their backbones.

    Args:
        module: the module, whose widths and parameters must not change meanwhile.

    Returns:
        The block, with whether there is such a network, so that other threads may run parts of the module; it need not
        be known, as after loading a pickle.
    """
    owners, is_owned = dict[int, Turns](), False
    for part in module.modules():
        mark = vars(part).get(ATTACHED)
        is_owned |= mark is not None and not mark.is_dead
        for each in (mark, vars(part).get(PART_OF)):
            turns: Turns | None = getattr(each, "turns", None)
            if turns is not None:
                owners[id(turns)] = turns
    with ExitStack() as stack:
        for turns in owners.values():
            stack.enter_context(turns.asking())
        yield is_owned or bool(owners)


@contextmanager
def changing_all(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Change those of some modules that are networks of tasks in a block; others have no turns."""
    with ExitStack() as stack:
        for module in modules:
            turns = getattr(module, "turns", None)
            if isinstance(turns, Turns):
                stack.enter_context(turns.changing())
        yield


def _others(turn: _Turn, turns: list[_Turn]) -> bool:
    return any(each[0] != turn[0] for each in turns)


keep_compilers_out(_Asking.__init__, _Asking.__enter__, _Asking.__exit__, Turns.asking)
keep_compilers_out(Turns.changing.__wrapped__)  # type: ignore[attr-defined]
