"""Experiments by name, each with its source and the figure that was published there: the table ``presets.toml``."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from hatrack.data.toml import read_packaged_toml
from hatrack.experiments.experiment import Experiment
from hatrack.experiments.settings import NetworkSettings, StreamSettings, parse_value
from hatrack.support.names import look_up
from hatrack.train import TrainingSettings

__all__ = ["EXPERIMENTS", "find_experiment"]

_Settings = TypeVar("_Settings", StreamSettings, NetworkSettings, TrainingSettings)


def _settings(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """Make settings of the values of a row; a key that is none of them fails."""
    types = typing.get_type_hints(kind)
    return kind(**{key: parse_value(key, value, types[key]) for key, value in values.items()})


def _experiment(
    name: str,
    *,
    data: Mapping[str, Any] = MappingProxyType({}),
    network: Mapping[str, Any] = MappingProxyType({}),
    training: Mapping[str, Any] = MappingProxyType({}),
    **others: Any,
) -> Experiment:
    """Make an experiment of a row."""
    return Experiment(
        name,
        data=_settings(StreamSettings, data),
        network=_settings(NetworkSettings, network),
        training=_settings(TrainingSettings, training),
        **{"stream": name, **others},
    )


EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {name: _experiment(name, **row) for name, row in read_packaged_toml("hatrack.experiments", "presets.toml").items()}
)
"""Every experiment by its name."""


def find_experiment(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        InputError: there is none.
    """
    return look_up("experiment", name, EXPERIMENTS)
