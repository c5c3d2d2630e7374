"""Experiments: a stream, a network and a schedule, with the settings of the paper that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatrack.data import DownloadMonitor
from hatrack.experiments.settings import Config, NetworkSettings, StreamSettings
from hatrack.methods import METHODS
from hatrack.streams import OwnStream, StreamOptions, TaskStream, build_stream
from hatrack.support.names import look_up
from hatrack.train import TrainingSettings

__all__ = ["Experiment"]


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
        kind = look_up("method", method, METHODS)
        config = Config(self.data, self.network, self.training, kind.settings_type())
        return config.overridden({**kind.training, **self.settings, **self.methods.get(method, {})})

    def stream_of(
        self, data: StreamSettings, *, seed: int, data_dir: Path | None, monitor: DownloadMonitor | None = None
    ) -> TaskStream:
        """Make the stream; the same for all methods.

        Args:
            data: which samples to take, and how many tasks.
            seed: the run's.
            data_dir: folder to look for data sets in first.
            monitor: told how the download of a data set goes on.

        Raises:
            InputError: a number is out of range.
            DataError: the data is missing or damaged.
        """
        options = StreamOptions(seed, data.validation, data.limit)
        if self.own is not None:
            return self.own.build(options, num_tasks=data.num_tasks)
        return build_stream(self.stream, options, data_dir=data_dir, num_tasks=data.num_tasks, monitor=monitor)
