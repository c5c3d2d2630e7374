"""Backbones by name, and from a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from hatrack.backbones import MLP, AlexNet, ResNet18, ViT, build_reproducibly, initialize_he
from hatrack.errors import HatrackError, InputError
from hatrack.experiments.settings import InitialWeights, NetworkSettings, Norm
from hatrack.state.movement import StateOf
from hatrack.streams import seeded_generator
from hatrack.support.importing import failure_of, imported
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import unknown_name
from hatrack.support.randomness import random_numbers_apart

__all__ = ["NETWORKS", "NetworkSpec", "build_backbone", "find_network", "narrow_builder"]

Build = Callable[[Sequence[int], NetworkSettings, float], nn.Module]
"""Makes a network for the shape of a sample, settings, and a share of the units of every layer."""


@dataclass(frozen=True)
class NetworkSpec:
    """A backbone that can be asked for by name.

    Attributes:
        name: its name, by which it is looked up.
        description: one line for a list.
        source: where it comes from.
        build: makes it for samples of a shape.
        can_be_narrow: whether it can be made with a share of its units in every layer.
        takes_any: whether samples may have any shape; pictures alone otherwise, channels × height × width.
    """

    name: str
    description: str
    source: str
    build: Build
    can_be_narrow: bool = True
    takes_any: bool = False


def _units(number: int, share: float) -> int:
    return max(1, round(number * share))


def _mlp(shape: Sequence[int], settings: NetworkSettings, share: float) -> nn.Module:
    widths = [_units(width, share) for width in settings.hidden]
    return MLP(shape, widths, (settings.dropout_early, settings.dropout_late))


def _alexnet(shape: Sequence[int], settings: NetworkSettings, share: float) -> nn.Module:
    return AlexNet(shape, (settings.dropout_early, settings.dropout_late), settings.width * share)


def _resnet18(shape: Sequence[int], settings: NetworkSettings, share: float) -> nn.Module:
    return ResNet18(shape, _units(64, settings.width * share), batch_norm=settings.norm is Norm.BATCH)


_SPECS = (
    NetworkSpec("mlp", "dense layers; widths by `hidden=2000,2000`", "Serrà et al., ICML 2018", _mlp, takes_any=True),
    NetworkSpec(
        "alexnet",
        "three convolutions, two dense layers; 7.1 million parameters at 32×32; `width=0.5` halves layers",
        "Serrà et al., ICML 2018",
        _alexnet,
    ),
    NetworkSpec(
        "resnet18",
        "residual; 11.2 million parameters; `norm=none` leaves its batch norms out",
        "He et al., CVPR 2016; Dinu, 2019",
        _resnet18,
    ),
    NetworkSpec(
        "vit",
        "a small vision transformer; patches of 4×4",
        "Dosovitskiy et al., ICLR 2021",
        lambda shape, settings, share: ViT(shape),
        can_be_narrow=False,
    ),
)

NETWORKS: Mapping[str, NetworkSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every network by its name."""


def build_backbone(settings: NetworkSettings, input_shape: Sequence[int], seed: int) -> nn.Module:
    """Make the backbone of a run.

    Raises:
        InputError: there is no such network, it is for pictures and samples are none, the user's function does not make
            one, or it does not map samples of that shape to features.
    """
    build, name, shape = find_network(settings.network), settings.network, tuple(input_shape)
    if name in NETWORKS and not NETWORKS[name].takes_any and len(shape) != 3:
        sizes = " × ".join(map(str, shape))
        raise InputError(
            f"{name} is for pictures, channels × height × width, and a sample here is {sizes}; take dense layers "
            "(`network=mlp`)"
        )
    with _explained(f"network {name} cannot be made for samples of shape {shape}"):
        network = _initialized(lambda: _materialised(build(shape, settings, 1.0), shape), seed, settings)
    _require_features(network, name, shape)
    return network


def _materialised(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Run a network once if it has layers whose widths a first batch decides, and return it."""
    if any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters()):
        with torch.no_grad(), evaluation_mode(network):
            network(torch.zeros(1, *shape))
    return network


def _require_features(network: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Check that a network maps a sample to features, and leave it as it was."""
    state = StateOf(network)
    try:
        with (
            _explained(f"network {name} does not run on samples of shape {shape}"),
            random_numbers_apart(),
            torch.no_grad(),
            evaluation_mode(network),
        ):
            features = network(torch.zeros(1, *shape))
    finally:
        state.put_back()
    if not isinstance(features, Tensor) or features.dim() != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise InputError(f"network {name} must map a batch to features (N, F), and gives {found} for one sample")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say what a network was being asked for when an exception of its own came up.

    Raises:
        InputError: in the place of the exception, with its message and the line of the network's code.
    """
    try:
        yield
    except (HatrackError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # whatever a function of somebody else raises, or that it wants to leave
        if isinstance(error, RuntimeError) and "alloc" in str(error):
            raise
        raise InputError(f"{what}: {failure_of(error)}") from error


def narrow_builder(settings: NetworkSettings, input_shape: Sequence[int]) -> Callable[[float, int], nn.Module] | None:
    """Return a builder of the backbone with a share of its units and a seed's initial weights; None if unknown."""
    spec = NETWORKS.get(settings.network)
    if spec is None or not spec.can_be_narrow:
        return None
    build = spec.build
    return lambda share, seed: _initialized(lambda: build(input_shape, settings, share), seed, settings)


def _initialized(build: Callable[[], nn.Module], seed: int, settings: NetworkSettings) -> nn.Module:
    network = build_reproducibly(build, seed, xavier=settings.initialization is InitialWeights.XAVIER)
    if settings.initialization is InitialWeights.HE:
        initialize_he(network, seeded_generator(seed, "he"))
    # Convolutions hand the layout of their weights on to what follows them.
    return network.to(memory_format=torch.channels_last) if settings.channels_last else network  # type: ignore[call-overload]


def find_network(name: str) -> Build:
    """Return the builder of a network: one of :data:`NETWORKS`, or ``module:function``.

    The function of a module of the user's own, looked for in the working directory too, gets the shape of one sample
    and returns a module that maps a batch to features ``(N, F)``.

    Raises:
        InputError: there is no such network, module or function.
    """
    if name in NETWORKS:
        return NETWORKS[name].build
    if ":" not in name:
        raise unknown_name("network", name, [*NETWORKS, "mymodule:build"])
    function = imported("network", name, "mymodule:build")

    def build(input_shape: Sequence[int], settings: NetworkSettings, share: float) -> nn.Module:
        network = function(tuple(input_shape))
        if not isinstance(network, nn.Module):
            raise InputError(f"network {name} must return a torch.nn.Module, not a {type(network).__name__}")
        return network

    return build
