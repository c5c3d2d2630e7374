"""Experiments by name: a stream, a network and a schedule, with the settings of the paper that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hatrack.experiments.settings import Config, Initialization, NetworkSettings, StreamSettings
from hatrack.methods import METHODS
from hatrack.names import look_up
from hatrack.train import TrainingSettings

__all__ = ["EXPERIMENTS", "Experiment", "find_experiment"]


@dataclass(frozen=True)
class Experiment:
    """A setup of a paper.

    Attributes:
        name: what the command line calls it.
        description: one line for a list.
        source: where the setup comes from, and what figure was published or measured there.
        stream: name of its stream.
        data: settings of the stream.
        network: the backbone.
        training: the schedule.
        methods: for a method's name, settings that differ from the method's own defaults, or from ``training``.
    """

    name: str
    description: str
    source: str
    stream: str
    data: StreamSettings = field(default_factory=StreamSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def config(self, method: str) -> Config:
        """The settings for a method.

        Raises:
            InputError: there is no such method.
        """
        kind = look_up("method", method, METHODS)
        config = Config(self.data, self.network, self.training, kind.settings_type())
        return config.overridden({**kind.training, **self.methods.get(method, {})})


_PAPER = "Serrà et al., ICML 2018"
_PMASK = "the data of PMASK (Raskoti and Ghimire)"
_DWA = {"dwa": {"lr": 0.075, "batch_size": 32, "initialization": "he", "dropout_early": 0.0, "dropout_late": 0.0}}
"""What the DWA paper trains its AlexNet with."""
_TRAIN_IS_VALID = StreamSettings(validation=0.0)

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        experiment.name: experiment
        for experiment in (
            Experiment(
                name="demo",
                description="5 tasks of 2 classes from the small part of Fashion-MNIST that ships with hatrack",
                source="hatrack's own, for a first look",
                stream="demo",
                # Small initial weights make features move far, and with them the forgetting that there is to see.
                network=NetworkSettings(
                    hidden=(200, 200), dropout_early=0.0, dropout_late=0.2, initialization=Initialization.TORCH
                ),
                training=TrainingSettings(epochs=30, lr=0.1),
            ),
            Experiment(
                name="split-fashion-mnist",
                description="5 tasks of 2 classes of clothing",
                source=f"{_PAPER}; its authors' code reaches 99.10 % in 5 epochs, fine-tuning 90.13 %",
                stream="split-fashion-mnist",
                # The choices of the authors' code, not of the paper, since its figures are those to compare with.
                network=NetworkSettings(initialization=Initialization.TORCH),
                methods={"hat": {"compensation": "float32"}},
            ),
            Experiment(
                name="permuted-fashion-mnist",
                description="10 tasks of 10 classes of clothing, the pixels in another order for each",
                source=f"the permuted setup of {_PAPER}, appendix C.2, on Fashion-MNIST",
                stream="permuted-fashion-mnist",
                data=_TRAIN_IS_VALID,
                network=NetworkSettings(hidden=(500, 500), dropout_early=0.0, dropout_late=0.0),
                methods={"hat": {"c": 0.5}},
            ),
            Experiment(
                name="split-mnist",
                description="2 tasks of 5 digits: 0 to 4, 5 to 9",
                source=f"{_PAPER}, table 8: 99.0 %",
                stream="split-mnist",
                data=_TRAIN_IS_VALID,
                network=NetworkSettings(hidden=(800, 800), dropout_early=0.0, dropout_late=0.0),
                training=TrainingSettings(epochs=50),
                methods={"hat": {"c": 0.1}},
            ),
            Experiment(
                name="permuted-mnist",
                description="10 tasks of 10 digits, the pixels in another order for each; the medium network",
                source=f"{_PAPER}, table 7: 98.6 % with the large network",
                stream="permuted-mnist",
                data=_TRAIN_IS_VALID,
                network=NetworkSettings(hidden=(500, 500), dropout_early=0.0, dropout_late=0.0),
                methods={"hat": {"c": 0.5}},
            ),
            Experiment(
                name="split-cifar10",
                description="5 tasks of 2 classes of photographs",
                source=f"{_PMASK}; network and schedule of {_PAPER}",
                stream="split-cifar10",
                network=NetworkSettings(network="alexnet"),
                methods=_DWA,
            ),
            Experiment(
                name="split-cifar100",
                description="5 tasks of 20 classes of photographs",
                source=f"{_PMASK}; network and schedule of {_PAPER}",
                stream="split-cifar100",
                network=NetworkSettings(network="alexnet"),
                methods=_DWA,
            ),
            Experiment(
                name="residual-cifar",
                description="5 tasks of 2 classes of CIFAR-10 and 5 of 20 of CIFAR-100, at random, on a ResNet-18",
                # The document says that tasks are broken at random out of the two sets, not how many, nor how large;
                # these are the numbers and sizes of the incremental CIFAR of the HAT paper.
                source='M.-C. Dinu, "Overcoming Catastrophic Forgetting of Hard Attention Residual Networks", 2019',
                stream="residual-cifar",
                network=NetworkSettings(network="resnet18"),
            ),
        )
    }
)
"""Every experiment by its name."""


def find_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        InputError: there is none.
    """
    return look_up("experiment", name, EXPERIMENTS)
