"""An experiment of a person's own tasks, with the settings that their ``tasks.toml`` makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments.experiment import Experiment
from hatrack.experiments.presets import find_experiment
from hatrack.experiments.settings import NetworkSettings, StreamSettings
from hatrack.methods import METHODS
from hatrack.streams import OwnStream, own_stream
from hatrack.support.names import look_up, unknown_name
from hatrack.train import TrainingSettings

__all__ = ["describe", "own_experiment"]

_PARTS = {"stream": StreamSettings, "network": NetworkSettings, "training": TrainingSettings}
_NETWORK = NetworkSettings(hidden=(400, 400), dropout_early=0.0, dropout_late=0.0)


def describe(name: str, sources: Sequence[Path] = ()) -> Experiment:
    """Return an experiment by its name, or of a person's own tasks.

    Args:
        name: name of a preset; without meaning if there are sources.
        sources: as for :func:`own_experiment`; empty for presets.

    Raises:
        InputError: there is none, or the sources cannot be used.
    """
    return own_experiment(sources) if sources else find_experiment(name)


def own_experiment(sources: Sequence[Path]) -> Experiment:
    """The experiment that a ``tasks.toml`` describes, or that learns the tasks of some files and folders.

    Without other settings it has two dense layers of 400 units without dropout, and the HAT paper's schedule.

    Args:
        sources: as for :func:`hatrack.streams.own_stream`.

    Raises:
        InputError: a file does not exist, or says something that cannot be.
    """
    own = own_stream(sources)
    method = own.settings.get("method", {})
    for name in method:
        if isinstance(method[name], Mapping):
            look_up("method", name, METHODS)
    return Experiment(
        name=own.name,
        description=f"{len(own.tasks)} tasks of one's own",
        source=", ".join(map(str, own.sources)),
        stream=own.name,
        network=_NETWORK,
        # What stands in [method] itself holds for every method, what stands in [method.hat] for that alone.
        settings={**_common(own), **{key: value for key, value in method.items() if not isinstance(value, Mapping)}},
        methods={key: value for key, value in method.items() if isinstance(value, Mapping)},
        own=own,
    )


def _common(own: OwnStream) -> dict[str, Any]:
    """The settings that do not depend on the method, after checking that each stands in the right table."""
    settings: dict[str, Any] = {}
    for section, part in _PARTS.items():
        known = [field.name for field in dataclasses.fields(part)]
        for key, value in own.settings.get(section, {}).items():
            if key not in known:
                raise InputError(f"{own.sources[0]}: {unknown_name(f'setting in [{section}]', key, known)}")
            settings[key] = value
    return settings
