"""Watch on settings and hooks of a backbone and of tasks' norms, which no mask protects: what changes is said."""

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
        tasks: those of tasks' norms, by the index of the task; tasks whose norms are as before are left out.
    """

    backbone: Controls | None
    tasks: Mapping[int, Controls]

    def put_back_backbone(self, backbone: nn.Module, _: TaskList[Any]) -> None:
        """Give a twin of the backbone the settings and hooks of before."""
        if self.backbone is not None:
            self.backbone.put_back(backbone)

    def put_back_tasks(self, _: nn.Module, tasks: TaskList[Any]) -> None:
        """Give norms of twins of the tasks the settings and hooks of before."""
        for index, controls in self.tasks.items():
            controls.put_back(tasks[index].get_submodule("batch_norms"))


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
        self._of_tasks: dict[str, _Record] = {}

    def record(self, moving: Collection[str]) -> None:
        """Record the present settings and hooks of the backbone.

        Args:
            moving: names of attributes that a run itself changes.
        """
        self._of_backbone = _Record(self._backbone, moving)

    def record_tasks(self) -> None:
        """Record the settings and hooks of the norms of tasks that were consolidated since the last time."""
        known = self._of_tasks
        self._of_tasks = {}
        for state in self._tasks.consolidated:
            norms, record = state.batch_norms, known.get(state.name)
            if record is None or record.part is not norms:
                moving = [f"{index}.num_features" for index in range(len(norms))]  # which widening changes
                record = _Record(norms, moving)
            self._of_tasks[state.name] = record

    def before_change(self, states: Sequence[TaskState]) -> SettingsBefore | None:
        """Return what tasks depend on, where a setting or hook has changed since the last record; else None.

        Args:
            states: the tasks that are asked. Changes of the norms of other tasks alone are left for a later call.
        """
        of_backbone = self._of_backbone.before_change()
        asked = [self._of_tasks[state.name] for state in states if state.name in self._of_tasks]
        if of_backbone is None and not any(record.before_change() for record in asked):
            return None
        records = {i: self._of_tasks[s.name] for i, s in enumerate(self._tasks) if s.name in self._of_tasks}
        of_tasks = {index: record.before_change() for index, record in records.items()}
        return SettingsBefore(of_backbone, {i: controls for i, controls in of_tasks.items() if controls is not None})

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
            for index, controls in before.tasks.items():
                altered += controls.altered(f"tasks.{index}.batch_norms") if found else []
                self._of_tasks[names[index]].take_up(controls if found else None)
            answer_otherwise |= set(found)
        if answer_otherwise:
            _warn(altered, [name for name in names if name in answer_otherwise])


def _warn(altered: list[str], tasks: list[str]) -> None:
    more = f" and {len(altered) - 3} more" if len(altered) > 3 else ""
    word, verb = ("tasks", "answer") if len(tasks) > 1 else ("task", "answers")
    warnings.warn(
        f"{'; '.join(altered[:3])}{more}: {word} {', '.join(map(repr, tasks))} {verb} otherwise because of it, since "
        "no mask protects settings and hooks; set it back, or use a copy of the network for what needs another setting",
        stacklevel=9,  # of whoever calls the network
    )
