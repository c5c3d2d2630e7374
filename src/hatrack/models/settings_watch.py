"""Watch on settings and hooks of a backbone and of tasks' own parts, which no mask protects: what changes is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hatrack.gating.attachment import is_gate
from hatrack.masks.task_list import TaskList
from hatrack.masks.tasks import TaskState
from hatrack.protection.structure import Controls

__all__ = ["SettingsBefore", "SettingsWatch"]


@dataclass(frozen=True)
class SettingsBefore:
    """Settings and hooks that tasks depend on, of all parts where something was changed since.

    Attributes:
        backbone: those of the backbone; None where they are as before.
        tasks: those of tasks' norms and own heads, by the index of the task and the name of the part; those that are as
            before are left out.
    """

    backbone: Controls | None
    tasks: Mapping[tuple[int, str], Controls]

    def put_back_backbone(self, backbone: nn.Module, _: TaskList[Any]) -> None:
        """Give a twin of the backbone the settings and hooks of before."""
        if self.backbone is not None:
            self.backbone.put_back(backbone)

    def put_back_tasks(self, _: nn.Module, tasks: TaskList[Any]) -> None:
        """Give parts of twins of the tasks the settings and hooks of before."""
        for (index, part), controls in self.tasks.items():
            controls.put_back(tasks[index].get_submodule(part))


class _Record:
    """Record of the settings and hooks of one part.

    Args:
        part: the part.
        moving: names of attributes that runs, or the network itself, change.
    """

    def __init__(self, part: nn.Module, moving: Collection[str] = ()) -> None:
        self.part, self._moving = part, moving
        self._seen = Controls(part, moving, is_gate)
        self._relied_on: Controls | None = None  # by tasks; None where that is what was seen last

    def before_change(self) -> Controls | None:
        """Return what tasks depend on, where something has changed since the last record; else None."""
        return (self._relied_on or self._seen) if self._seen.are_altered() else None

    def take_up(self, relied_on: Controls | None) -> None:
        """Record the present settings and hooks.

        Args:
            relied_on: what tasks depend on; None for the present ones.
        """
        self._relied_on, self._seen = relied_on, Controls(self.part, self._moving, is_gate)


class SettingsWatch:
    """Record of the settings and hooks under which calls were analysed and tasks were learned.

    Args:
        backbone: the backbone.
        tasks: the tasks.
    """

    def __init__(self, backbone: nn.Module, tasks: TaskList[Any]) -> None:
        self._backbone, self._tasks = backbone, tasks
        self._of_backbone = _Record(backbone)
        self._of_tasks: dict[str, dict[str, _Record]] = {}  # by the name of the task and of the part

    def record(self, moving: Collection[str]) -> None:
        """Record the present settings and hooks of the backbone.

        Args:
            moving: names of attributes that a run itself changes.
        """
        self._of_backbone = _Record(self._backbone, moving)

    def record_tasks(self) -> None:
        """Record the settings and hooks of norms and own heads of tasks consolidated since the last time."""
        known, self._of_tasks = self._of_tasks, {}
        for state in self._tasks.consolidated:
            before = known.get(state.name, {})
            self._of_tasks[state.name] = {part: _record_of(state, part, before.get(part)) for part in _parts_of(state)}

    def before_change(self, states: Sequence[TaskState]) -> SettingsBefore | None:
        """Return what tasks depend on, where a setting or hook has changed since the last record; else None.

        Args:
            states: the tasks that are asked. Changes of the norms of other tasks alone are left for a later call.
        """
        of_backbone = self._of_backbone.before_change()
        names = dict.fromkeys(state.name for state in states)
        asked = (record for name in names for record in self._of_tasks.get(name, {}).values())
        if of_backbone is None and not any(record.before_change() for record in asked):
            return None
        records = {
            (index, part): record
            for index, state in enumerate(self._tasks)
            for part, record in self._of_tasks.get(state.name, {}).items()
        }
        of_tasks = {place: record.before_change() for place, record in records.items()}
        return SettingsBefore(of_backbone, {at: controls for at, controls in of_tasks.items() if controls is not None})

    def take_up(
        self,
        before: SettingsBefore,
        tasks_changed_by: Callable[[Callable[[nn.Module, TaskList[Any]], None]], list[str]],
    ) -> None:
        """Record the present settings and hooks; warn where old tasks answer otherwise because of them.

        Args:
            before: what :meth:`before_change` returned.
            tasks_changed_by: function that applies a change to twins of the backbone and of the tasks, and returns the
                names of the consolidated tasks that answer otherwise there.
        """
        names = self._tasks.names
        altered: list[str] = []
        answer_otherwise: set[str] = set()
        if before.backbone is not None:
            found = tasks_changed_by(before.put_back_backbone)
            altered += before.backbone.altered() if found else []
            answer_otherwise |= set(found)
            self._of_backbone.take_up(before.backbone if found else None)
        if before.tasks:
            found = tasks_changed_by(before.put_back_tasks)
            for (index, part), controls in before.tasks.items():
                altered += controls.altered(f"tasks.{index}.{part}") if found else []
                self._of_tasks[names[index]][part].take_up(controls if found else None)
            answer_otherwise |= set(found)
        if answer_otherwise:
            _warn(altered, [name for name in names if name in answer_otherwise])


def _parts_of(state: TaskState) -> tuple[str, ...]:
    """Return the names of a task's parts that have settings; a linear head is computed without its hooks."""
    return ("batch_norms",) if state.num_classes is not None else ("batch_norms", "head")


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
