"""Experiments by name, each with its source and the figure that was published there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hatrack.experiments.experiment import Experiment
from hatrack.experiments.settings import InitialWeights, NetworkSettings, StreamSettings
from hatrack.names import look_up
from hatrack.train import TrainingSettings

__all__ = ["EXPERIMENTS", "find_experiment"]

_HAT = "Serrà et al., ICML 2018"
_PMASK = "Raskoti and Ghimire (PMASK)"
_TRAIN_IS_VALID = StreamSettings(validation=0.0)
_ALEXNET = NetworkSettings(network="alexnet")
_DWA = {"dwa": {"lr": 0.075, "batch_size": 32, "initialization": "he", "dropout_early": 0.0, "dropout_late": 0.0}}
"""What the DWA paper trains its AlexNet with."""
_COMPRESSION = {"hat": {"c": 1.5, "embedding": "uniform", "embedding_low": 0.0, "embedding_high": 2.0}}


def _dense(*widths: int) -> NetworkSettings:
    """Dense layers without dropout."""
    return NetworkSettings(hidden=widths, dropout_early=0.0, dropout_late=0.0)


_OWN = (
    Experiment(
        name="demo",
        description="5 tasks of 2 classes from the small part of Fashion-MNIST that ships with hatrack",
        source="hatrack's own, for a first look",
        stream="demo",
        # Small initial weights make features move far, and with them the forgetting that there is to see.
        network=NetworkSettings(
            hidden=(200, 200), dropout_early=0.0, dropout_late=0.2, initialization=InitialWeights.TORCH
        ),
        training=TrainingSettings(epochs=30, lr=0.1),
    ),
    Experiment(
        name="split-fashion-mnist",
        description="5 tasks of 2 classes of clothing",
        source=f"the code of {_HAT}",
        published="99.10 % in 5 epochs, fine-tuning 90.13 % (measured with that code)",
        stream="split-fashion-mnist",
        # The choices of the authors' code, not of the paper, since its figures are those to compare with.
        network=NetworkSettings(initialization=InitialWeights.TORCH),
        methods={"hat": {"compensation": "float32"}},
    ),
    Experiment(
        name="permuted-fashion-mnist",
        description="10 tasks of 10 classes of clothing, the pixels in another order for each",
        source=f"the permuted setup of {_HAT}, appendix C.2, on Fashion-MNIST",
        stream="permuted-fashion-mnist",
        data=_TRAIN_IS_VALID,
        network=_dense(500, 500),
        methods={"hat": {"c": 0.5}},
    ),
    Experiment(
        name="rotated-mnist",
        description="10 tasks of 10 digits, turned by another angle for each; the medium network",
        source="the rotations of Lopez-Paz and Ranzato, NIPS 2017, on all of MNIST",
        stream="rotated-mnist",
        data=_TRAIN_IS_VALID,
        network=_dense(500, 500),
        methods={"hat": {"c": 0.5}},
    ),
    Experiment(
        name="mixture-open",
        description="NOT the paper's mixture: 6 sets that are freely at hand, of which 5 are the paper's, one in part",
        source=f"the setup of {_HAT}, section 3, without CIFAR-100, FaceScrub and SVHN, with animal silhouettes",
        stream="mixture-open",
        network=_ALEXNET,
        methods=_DWA,
    ),
    Experiment(
        name="transfer",
        description="2 tasks: digits, then clothing, on the mixture's network",
        source=f"the two-task sequences of {_HAT}, section 3, as source and target",
        published="for two sets of the mixture, forgetting ratio -.02 (table 1)",
        stream="transfer-mnist-fashion",
        network=_ALEXNET,
    ),
)

_OF_HAT = (
    Experiment(
        name="mixture",
        description="8 data sets as colour images of 32 x 32, in an order by the seed",
        source=f"{_HAT}, figure 3 and tables 1 and 3",
        published="forgetting ratio -.02 (sd .03) after 2 tasks, -.06 (.01) after 8; EWC -.08 and -.25; 10 seeds",
        stream="mixture",
        network=_ALEXNET,
        methods=_DWA,
    ),
    Experiment(
        name="incremental-cifar",
        description="5 tasks of 2 classes of CIFAR-10 and 5 of 20 of CIFAR-100, in an order by the seed",
        source=f"{_HAT}, appendix C.1, figure 9 and table 6",
        published="forgetting ratio -.09 after 10 tasks; EWC -.18",
        stream="incremental-cifar",
        data=StreamSettings(validation=0.1),
        network=_ALEXNET,
        methods=_DWA,
    ),
    Experiment(
        name="incremental-cifar10",
        description="NOT the paper's incremental CIFAR: its 5 tasks of CIFAR-10 alone, in an order by the seed",
        source=f"the setup of {_HAT}, appendix C.1, without CIFAR-100",
        stream="incremental-cifar10",
        data=StreamSettings(validation=0.1),
        network=_ALEXNET,
        methods=_DWA,
    ),
    Experiment(
        name="permuted-mnist",
        description="10 tasks of 10 digits, the pixels in another order for each; the medium network, 2 x 500",
        source=f"{_HAT}, appendix C.2, table 7",
        published="98.6 % with the large network",
        stream="permuted-mnist",
        data=_TRAIN_IS_VALID,
        network=_dense(500, 500),
        methods={"hat": {"c": 0.5}},
    ),
    Experiment(
        name="permuted-mnist-small",
        description="10 tasks of 10 digits, the pixels in another order for each; the small network, 2 x 100",
        source=f"{_HAT}, appendix C.2, table 7",
        published="98.6 % with the large network; 91.75 % with this one (measured with its code, 15 epochs)",
        stream="permuted-mnist",
        data=_TRAIN_IS_VALID,
        network=_dense(100, 100),
        methods={"hat": {"c": 0.5, "s_max": 200.0}},
    ),
    Experiment(
        name="permuted-mnist-large",
        description="10 tasks of 10 digits, the pixels in another order for each; the large network, 2 x 2000",
        source=f"{_HAT}, appendix C.2, table 7",
        published="98.6 %; SI 97.1 %",
        stream="permuted-mnist",
        data=_TRAIN_IS_VALID,
        network=NetworkSettings(hidden=(2000, 2000), dropout_early=0.2, dropout_late=0.5),
        methods={"hat": {"c": 0.5}},
    ),
    Experiment(
        name="split-mnist",
        description="2 tasks of 5 digits: 0 to 4, 5 to 9",
        source=f"{_HAT}, appendix C.3, table 8",
        published="99.0 %; CAB 94.9 %",
        stream="split-mnist",
        data=_TRAIN_IS_VALID,
        network=_dense(800, 800),
        training=TrainingSettings(epochs=50),
        methods={"hat": {"c": 0.1}},
    ),
    Experiment(
        name="compression",
        description="1 task of 10 digits, learned with as little of the network as will do",
        source=f"{_HAT}, section 3, figure 7, and appendix B.3, table 4",
        published="1 % of the network's size (DEN: 18 %)",
        stream="all-mnist-rgb32",
        network=_ALEXNET,
        methods=_COMPRESSION,
    ),
    Experiment(
        name="compression-cifar100",
        description="1 task of 100 classes of photographs, learned with as little of the network as will do",
        source=f"{_HAT}, section 3, figure 7, and appendix B.3, table 4",
        published="21 % of the network's size (DEN: 52 %)",
        stream="all-cifar100-rgb32",
        network=_ALEXNET,
        methods=_COMPRESSION,
    ),
    *(
        Experiment(
            name=f"compression-{data}",
            description=f"1 task of 10 classes of {kind}, learned with as little of the network as will do",
            source=f"{_HAT}, section 3, figure 7, and appendix B.3, table 4",
            published="between 1 % (MNIST) and 21 % (CIFAR-100) of the network's size",
            stream=f"all-{data}-rgb32",
            network=_ALEXNET,
            methods=_COMPRESSION,
        )
        for data, kind in (("fashion-mnist", "clothing"), ("notmnist", "letters"), ("cifar10", "photographs"))
    ),
    Experiment(
        name="feature-selection",
        description="1 task of 10 digits, learned from as few pixels as will do",
        source=f"{_HAT}, appendix D, figure 10, which leaves c and the network open",
        published="pictures of the masks, without figures",
        stream="all-mnist",
        data=_TRAIN_IS_VALID,
        network=_dense(500, 500),
        methods={"hat": {**_COMPRESSION["hat"], "gate_inputs": True}},
    ),
)

_OF_OTHERS = (
    Experiment(
        name="split-cifar10",
        description="5 tasks of 2 classes of photographs",
        source=f"{_PMASK}, figure 3 and table 1; network and schedule of {_HAT}",
        published="PMASK above EWC, PathNet and SGD",
        stream="split-cifar10",
        network=_ALEXNET,
        methods=_DWA,
    ),
    Experiment(
        name="split-cifar100",
        description="5 tasks of 20 classes of photographs",
        source=f"{_PMASK}, table 2; network and schedule of {_HAT}",
        published="PMASK above EWC, PathNet and SGD",
        stream="split-cifar100",
        network=_ALEXNET,
        methods=_DWA,
    ),
    Experiment(
        name="residual-cifar",
        description="5 tasks of 2 classes of CIFAR-10 and 5 of 20 of CIFAR-100, at random, on a ResNet-18",
        # The document says that tasks are broken at random out of the two sets, not how many, nor how large;
        # these are the numbers and sizes of the incremental CIFAR of the HAT paper.
        source='M.-C. Dinu, "Overcoming Catastrophic Forgetting of Hard Attention Residual Networks", 2019',
        published="curves of the forgetting ratio, without figures",
        stream="residual-cifar",
        network=NetworkSettings(network="resnet18"),
    ),
    Experiment(
        name="dwa-mixture",
        description="the mixture with DWA's schedule: from simple samples to complex ones, without dropout",
        source="F. Geilert, dynamic weight allocation (DWA), a fork of HAT",
        published="its paper: less forgetting than SGD, more than HAT and EWC; its readme: less than both",
        stream="mixture",
        network=NetworkSettings(
            network="alexnet", dropout_early=0.0, dropout_late=0.0, initialization=InitialWeights.HE
        ),
        training=TrainingSettings(lr=0.075, batch_size=32),
    ),
)

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {experiment.name: experiment for experiment in (*_OWN, *_OF_HAT, *_OF_OTHERS)}
)
"""Every experiment by its name."""


def find_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        InputError: there is none.
    """
    return look_up("experiment", name, EXPERIMENTS)
