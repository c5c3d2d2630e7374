"""Experiments: a stream, a network and a schedule, with the settings of the paper that they come from.

Those with names are the table ``presets.toml``, each with its source and the figure that was published there; those of
a person's own tasks have the settings that their ``tasks.toml`` makes.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from hatrack.data import DownloadMonitor
from hatrack.errors import InputError
from hatrack.experiments.settings import OTHERWISE, Config, NetworkSettings, StreamSettings
from hatrack.methods import Earlier, Method, find_method
from hatrack.streams import OwnStream, StreamOptions, TaskStream, build_stream, find_origins, own_stream
from hatrack.support.names import look_up, unknown_name
from hatrack.support.toml import read_packaged_toml
from hatrack.support.values import parse_value
from hatrack.train import TrainingSettings

__all__ = ["EXPERIMENTS", "Experiment", "completed", "describe", "find_experiment", "own_experiment"]


@dataclass(frozen=True)
class Experiment:
    """A setup of a paper, or of one's own.

    Attributes:
        name: its name, by which it is looked up.
        description: one line for a list.
        source: where the setup comes from, down to the table or figure.
        published: what figure was published or measured there; empty if none was.
        stream: name of its stream.
        data: settings of the stream.
        network: the backbone.
        training: the schedule.
        settings: settings by key that differ from all these, for every method.
        methods: for a method's name, settings that differ from the method's own defaults, or from any of these.
        own: the person's own tasks, instead of a stream that has a name; None for presets.
    """

    name: str
    description: str
    source: str
    stream: str
    published: str = ""
    data: StreamSettings = field(default_factory=StreamSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    settings: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own: OwnStream | None = None

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that a person's own tasks are made of; empty for presets."""
        return () if self.own is None else self.own.sources

    def config(self, method: str) -> Config:
        """The settings for a method.

        Raises:
            InputError: there is no such method.
        """
        kind = find_method(method)
        config = Config(self.data, self.network, self.training, kind.settings_type())
        return config.overridden({**kind.training, **self.settings, **self.methods.get(method, {})})

    def earlier_configs(self, method: str) -> tuple[Config, ...]:
        """The settings for a method that runs of earlier versions have, the newest first; empty where they are as now.

        Raises:
            InputError: there is no such method.
        """
        kind = find_method(method)
        config = Config(self.data, self.network, self.training, kind.settings_type())
        of_all = {**self.settings, **self.methods.get(method, {})}
        return tuple(
            config.overridden(
                {**earlier.settings, **(kind.training if earlier.training is None else earlier.training), **of_all}
            )
            for earlier in _earlier_versions(kind)
        )

    def stream_of(
        self,
        data: StreamSettings,
        *,
        seed: int,
        data_dir: Path | None,
        download: bool = True,
        monitor: DownloadMonitor | None = None,
    ) -> TaskStream:
        """Make the stream; the same for all methods.

        Args:
            data: which samples to take, and how many tasks.
            seed: the run's.
            data_dir: folder to look for data sets in first.
            download: whether a data set found nowhere may be fetched from the network.
            monitor: told how the download of a data set goes on.

        Raises:
            InputError: a number is out of range.
            DataError: the data is missing or damaged.
        """
        options = StreamOptions(seed, data.validation, data.limit, data.weights, data.tested_on)
        if self.own is not None:
            return self.own.build(
                options,
                num_tasks=data.num_tasks,
                targets=data.choice,
                test_share=data.test_share,
                cells=data.cells,
            )
        if data.about_own:
            names = " and ".join(data.about_own)
            raise InputError(f"{names}: the classes of {self.name} are what they are; this is for tasks of your own")
        return build_stream(
            self.stream, options, data_dir=data_dir, num_tasks=data.num_tasks, download=download, monitor=monitor
        )

    def find_data(self, data_dir: Path | None, num_tasks: int | None = None) -> tuple[str, ...]:
        """Return the lines that a run made now would record about its data, as far as that is on this machine.

        The network is not asked, and the tasks of one's own are not read but for their digests.

        Args:
            data_dir: folder to look for data sets in first.
            num_tasks: number of one's own tasks, the first ones; None takes all.

        Raises:
            DataError: a file of one's own tasks cannot be opened.
        """
        return find_origins(self.stream, data_dir) if self.own is None else self.own.origins(num_tasks)


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


def completed(method: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Add the settings to a record that did not exist when it was made, with the values that do what was done then.

    Args:
        method: name of the method.
        recorded: settings by key, as JSON values.

    Raises:
        InputError: there is no such method.
    """
    kind = find_method(method)
    config = Config(StreamSettings(), NetworkSettings(), TrainingSettings(), kind.settings_type())
    for earlier in _earlier_versions(kind):
        config = config.overridden(earlier.settings)
    return {**config.flat(), **recorded}


def _earlier_versions(kind: type[Method]) -> tuple[Earlier, ...]:
    """Return the defaults of a method in earlier versions, the newest first."""
    return () if kind.earlier is None else kind.earlier.versions()


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
            find_method(name)
    return Experiment(
        name=f"own-{own.name}" if own.name in EXPERIMENTS else own.name,
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
                raise InputError(f"{own.sources[0]}: {unknown_name(f'setting in [{section}]', key, known, OTHERWISE)}")
            settings[key] = value
    return settings
