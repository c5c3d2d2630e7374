"""Watch on settings and hooks of a backbone, which no mask protects: what changes is followed anew, and said."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection

from torch import nn

from hatrack.protection.structure import Controls

__all__ = ["SettingsWatch"]


class SettingsWatch:
    """Record of the settings and hooks under which calls were analysed and tasks were learned.

    Args:
        backbone: the backbone.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self._moving: Collection[str] = ()
        self._controls = Controls(backbone)
        self._promised: Controls | None = None  # what tasks depend on, where it was changed since

    def record(self, moving: Collection[str]) -> None:
        """Record the present settings and hooks.

        Args:
            moving: names of attributes that a run itself changes.
        """
        self._moving, self._controls = moving, Controls(self._backbone, moving)

    def before_change(self) -> Controls | None:
        """Return the record that tasks depend on, where a setting or hook has changed since the last one; else None."""
        return (self._promised or self._controls) if self._controls.are_altered() else None

    def take_up(self, before: Controls, tasks_changed_by: Callable[[Callable[[nn.Module], None]], list[str]]) -> None:
        """Record the present settings and hooks; warn where old tasks answer otherwise because of them.

        Args:
            before: what :meth:`before_change` returned.
            tasks_changed_by: function that applies a change to a twin of the backbone, and returns the names of the
                consolidated tasks that answer otherwise there.
        """
        others = tasks_changed_by(before.put_back)
        self._promised = before if others else None
        self.record(self._moving)
        if others:
            _warn(before.altered(), others)


def _warn(altered: list[str], tasks: list[str]) -> None:
    more = f" and {len(altered) - 3} more" if len(altered) > 3 else ""
    word, verb = ("tasks", "answer") if len(tasks) > 1 else ("task", "answers")
    warnings.warn(
        f"{'; '.join(altered[:3])}{more}: {word} {', '.join(map(repr, tasks))} {verb} otherwise because of it, since "
        "no mask protects settings and hooks; set it back, or use a copy of the network for what needs another setting",
        stacklevel=9,  # of whoever calls the network
    )
