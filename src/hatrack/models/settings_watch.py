"""Watch on settings and hooks of a backbone and of tasks' own parts, which no mask protects: what changes is said.

Every task relies on the settings that there were when it was consolidated, which may be others than those of the task
before. What changes is compared at once, on the batch at hand; where answers stay the same, again on later batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from hatrack.gating.attachment import is_gate
from hatrack.masks.task_list import TaskList
from hatrack.masks.tasks import TaskState
from hatrack.protection.structure import Controls

__all__ = ["SettingsBefore", "SettingsWatch", "TwinChange"]

TwinChange: TypeAlias = Callable[[nn.Module, TaskList[Any]], None]
"""Function that changes twins of the backbone and of the tasks."""

_Place: TypeAlias = "tuple[str, str] | None"
"""Part of a network: the name of a task and of a part of it; None for the backbone."""

_PARTS = ("batch_norms", "head")
"""Parts of a task that have settings."""


@dataclass(frozen=True)
class _Reliance:
    """What a task relies on, where that is something else than a part has now.

    Attributes:
        controls: settings and hooks of when the task was consolidated.
        is_told: whether the task was said to answer otherwise.
    """

    controls: Controls
    is_told: bool


@dataclass(frozen=True)
class SettingsBefore:
    """Settings and hooks that tasks rely on, of all parts that have others now.

    Attributes:
        altered: parts of which some have changed since the last call; none where answers are compared again.
        relied_on: by name of the task, and by part.
    """

    altered: Collection[_Place]
    relied_on: Mapping[str, Mapping[_Place, Controls]]

    @property
    def of_backbone(self) -> bool:
        """Return whether some of the backbone have changed since the last call."""
        return None in self.altered

    def worlds(self) -> list[tuple[list[str], dict[_Place, Controls]]]:
        """Return what is to be put back for which tasks: settings of the backbone apart from those of tasks."""
        found: dict[tuple[int, ...], tuple[list[str], dict[_Place, Controls]]] = {}
        for name, by_place in self.relied_on.items():
            for is_backbone in (True, False):
                part = {place: controls for place, controls in by_place.items() if (place is None) is is_backbone}
                if part:
                    names, _ = found.setdefault(tuple(map(id, part.values())), ([], part))
                    names.append(name)
        return list(found.values())


class _Record:
    """Record of the settings and hooks of one part.

    Args:
        part: the part.
        moving: names of attributes that runs, or the network itself, change.
        relied_on: by name of the task, what tasks rely on that is something else.
    """

    def __init__(
        self, part: nn.Module, moving: Collection[str] = (), relied_on: Mapping[str, _Reliance] | None = None
    ) -> None:
        self.part, self._moving = part, moving
        self._seen = Controls(part, moving, is_gate)
        self.relied_on: Mapping[str, _Reliance] = {} if relied_on is None else relied_on

    def is_altered(self) -> bool:
        """Return whether something has changed since the last record."""
        return self._seen.are_altered()

    def before_change(self, names: Iterable[str]) -> dict[str, Controls]:
        """Return by name what tasks rely on, those left out that rely on what there is now."""
        others: dict[int, bool] = {}
        found = {}
        for name in names:
            known = self.relied_on.get(name)
            if known is None:
                found[name] = self._seen
            elif others.setdefault(id(known.controls), bool(known.controls.altered())):
                found[name] = known.controls
        return found

    def unshown(self, name: str) -> Controls | None:
        """Return what a task relies on, where it is something else and no batch has shown it; else None."""
        known = self.relied_on.get(name)
        return None if known is None or known.is_told else known.controls

    def keep(self, names: Collection[str]) -> None:
        """Forget what all tasks but some relied on."""
        self.relied_on = {name: known for name, known in self.relied_on.items() if name in names}

    def see(self) -> None:
        """Record the present settings and hooks."""
        self._seen = Controls(self.part, self._moving, is_gate)


@dataclass
class _Wait:
    """Calls about a task since a change that none has shown.

    Attributes:
        calls: their number.
        until: the number at which answers are compared again.
    """

    calls: int = 0
    until: int = 1


class SettingsWatch:
    """Record of the settings and hooks under which calls were analysed and tasks were learned.

    Args:
        backbone: the backbone.
        tasks: the tasks.
    """

    def __init__(self, backbone: nn.Module, tasks: TaskList[Any]) -> None:
        self._backbone, self._tasks = backbone, tasks
        self._records: dict[_Place, _Record] = {None: _Record(backbone)}
        self._waits: dict[str, _Wait] = {}  # by name of the task

    def record(self, moving: Collection[str]) -> None:
        """Record the present settings and hooks of the backbone.

        Args:
            moving: names of attributes that a run itself changes.
        """
        self._records = {**self._records, None: _Record(self._backbone, moving, self._records[None].relied_on)}

    def record_tasks(self) -> None:
        """Record the settings and hooks of norms and own heads of tasks consolidated since the last time."""
        states = {state.name: state for state in self._tasks.consolidated}
        self._records = {
            None: self._records[None],
            **{
                (name, part): _record_of(state, part, self._records.get((name, part)))
                for name, state in states.items()
                for part in _parts_of(state)
            },
        }
        for record in self._records.values():
            record.keep(states)
        self._waits = {name: wait for name, wait in self._waits.items() if name in states}

    def before_change(self, states: Sequence[TaskState]) -> SettingsBefore | None:
        """Return what tasks rely on, where something has changed, or answers are to be compared again; else None.

        Args:
            states: the tasks that are asked. Changes of the norms of other tasks alone are left for a later call.
        """
        asked = list(dict.fromkeys(state.name for state in states))
        records = self._records
        of_asked = (records.get((name, part)) for name in asked for part in _PARTS)
        if not any(record is not None and record.is_altered() for record in (records[None], *of_asked)):
            return self._due(asked) if self._waits else None
        names = [state.name for state in self._tasks.consolidated]  # a task that is being unlearned is not among them
        present = {place: record for place, record in records.items() if place is None or place[0] in names}
        altered = [place for place, record in present.items() if record.is_altered()]
        relied_on: dict[str, dict[_Place, Controls]] = {name: {} for name in names}
        for place, record in present.items():
            concerned = names if place in altered else [name for name in names if name in record.relied_on]
            for name, controls in record.before_change(concerned).items():
                relied_on[name][place] = controls
        return SettingsBefore(altered, relied_on)

    def _due(self, asked: Sequence[str]) -> SettingsBefore | None:
        """Return what asked tasks rely on that no batch has shown, where it is time to compare again; else None."""
        due = []
        for name in asked:
            if name in self._waits:
                self._waits[name].calls += 1
                due += [name] if self._waits[name].calls >= self._waits[name].until else []
        if not due:
            return None
        unshown = {name: {place: record.unshown(name) for place, record in self._records.items()} for name in due}
        found = {
            name: {place: controls for place, controls in by_place.items() if controls is not None}
            for name, by_place in unshown.items()
        }
        return SettingsBefore((), found)

    def take_up(
        self, before: SettingsBefore, tasks_changed_by: Callable[[Collection[str], TwinChange], list[str]]
    ) -> None:
        """Record the present settings and hooks; warn where old tasks answer otherwise because of them.

        Answers that are the same, as where a batch does not reach a bound that has changed, are compared again in the
        second, fourth, eighth call about the task, and so on.

        Args:
            before: what :meth:`before_change` returned.
            tasks_changed_by: function that applies a change to twins of the backbone and of the tasks, and returns the
                names of those of some consolidated tasks that answer otherwise there.
        """
        altered: list[str] = []
        told: set[tuple[_Place, str]] = set()
        for names, controls in before.worlds():
            found = tasks_changed_by(names, partial(self._put_back, controls))
            if found:
                places = {name: index for index, name in enumerate(self._tasks.names)}
                for place, earlier in controls.items():
                    altered += earlier.altered("" if place is None else f"tasks.{places[place[0]]}.{place[1]}")
            told |= {(place, name) for place in controls for name in found}
        for place, record in self._records.items():
            compared = {
                name: _Reliance(by_place[place], (place, name) in told)
                for name, by_place in before.relied_on.items()
                if place in by_place and by_place[place].altered()
            }
            others = {
                name: known
                for name, known in record.relied_on.items()
                if place not in before.relied_on.get(name, {}) and known.controls.altered()
            }
            record.relied_on = {**others, **compared}
            if place in before.altered:
                record.see()
        self._wait_anew(before)
        if told:
            answer_otherwise = {name for _, name in told}
            _warn(list(dict.fromkeys(altered)), [name for name in self._tasks.names if name in answer_otherwise])

    def _wait_anew(self, before: SettingsBefore) -> None:
        """Wait twice as long as the last time before tasks whose answers were compared are compared again."""
        waits = dict(self._waits)
        for name in before.relied_on:
            wait = waits.pop(name, _Wait())
            if any(record.unshown(name) is not None for record in self._records.values()):
                waits[name] = _Wait() if before.altered else _Wait(wait.calls, 2 * wait.calls)
        self._waits = waits

    def _put_back(self, earlier: Mapping[_Place, Controls], backbone: nn.Module, tasks: TaskList[Any]) -> None:
        """Give twins of the backbone and of the tasks earlier settings and hooks."""
        for place, controls in earlier.items():
            controls.put_back(backbone if place is None else tasks.named(place[0]).get_submodule(place[1]))


def _parts_of(state: TaskState) -> Sequence[str]:
    """Return the names of a task's parts that have settings; a linear head is computed without its hooks."""
    return _PARTS if state.num_classes is None else _PARTS[:1]


def _record_of(state: TaskState, part: str, known: _Record | None) -> _Record:
    """Return the record of a part of a task: the one that is known, or a new one."""
    module = state.get_submodule(part)
    if known is not None and known.part is module:
        return known
    widened = [f"{name}.num_features" for name, _ in module.named_children()] if part == "batch_norms" else []
    return _Record(module, widened)


def _warn(altered: list[str], tasks: list[str]) -> None:
    more = f" and {len(altered) - 3} more" if len(altered) > 3 else ""
    word, verb = ("tasks", "answer") if len(tasks) > 1 else ("task", "answers")
    warnings.warn(
        f"{'; '.join(altered[:3])}{more}: {word} {', '.join(map(repr, tasks))} {verb} otherwise because of it, since "
        "no mask protects settings and hooks; set it back, or use a copy of the network for what needs another setting",
        stacklevel=9,  # of whoever calls the network
    )
