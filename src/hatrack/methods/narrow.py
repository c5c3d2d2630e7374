"""Narrow copies of the backbone, for methods that make several and keep to its number of parameters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from hatrack.errors import InputError
from hatrack.methods.base import Setup

__all__ = [
    "expected_classes",
    "matching_share",
    "narrow_builder_of",
    "number_of_parameters",
    "parameters_with_heads",
    "sections_of",
]


def number_of_parameters(module: nn.Module) -> int:
    """Return the number of entries of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def expected_classes(setup: Setup, tasks: int | None = None) -> tuple[int, ...]:
    """Return the numbers of classes of the tasks to come.

    Args:
        setup: says what is known of them.
        tasks: how many there will be; as many as are known if left out, or 8, as in the HAT paper.

    Returns:
        A number per task; 10 for those that nothing is known of.
    """
    tasks = tasks or len(setup.classes) or 8
    return (*setup.classes, *(10,) * tasks)[:tasks]


def parameters_with_heads(setup: Setup, classes: Sequence[int]) -> int:
    """Return how many parameters the backbone has, with heads for so many classes."""
    backbone = setup.build_backbone()
    return number_of_parameters(backbone) + sum(classes) * (setup.features_of(backbone) + 1)


def narrow_builder_of(setup: Setup, method: str) -> Callable[[float, int], nn.Module]:
    """Return the function that makes a copy of the backbone with a share of its units and a seed's initial weights.

    Raises:
        InputError: nobody knows how.
    """
    if setup.build_narrow is None:
        raise InputError(
            f"{method} needs narrower copies of the network, which hatrack can make of mlp, alexnet and resnet18 alone"
        )
    return setup.build_narrow


def matching_share(count: Callable[[float], int], target: int) -> float:
    """Find the share of units at which copies have about as many parameters as they should.

    Args:
        count: number of parameters at a share above 0 and up to 1; more units never mean fewer parameters.
        target: the number to come near to.

    Returns:
        The share, 1 if that is not enough; of two neighbouring numbers of units the one that comes nearer.
    """
    low = 0.0
    # Small copies are made fast: come from below, doubling, and halve the interval afterwards.
    share = 1 / 64
    while share < 1.0 and count(share) < target:
        low, share = share, 2 * share
    high = min(share, 1.0)
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return low if low > 0.0 and target - count(low) < count(high) - target else high


def sections_of(network: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Take a sequential network apart before each part with a dense or convolutional layer in it.

    Args:
        network: an ``nn.Sequential`` of layers and blocks.

    Returns:
        What comes before the first such part, and the sections, of which every one begins with such a part. Only the
        first may begin earlier, with what has parameters or statistics, such as a norm: those belong to a section.

    Raises:
        InputError: the network is no sequence of parts.
    """
    if not isinstance(network, nn.Sequential):
        raise InputError(f"the network must be an nn.Sequential to be taken apart, not a {type(network).__name__}")
    sections: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    waits = False  # for the layer of a section that something else has begun
    for name, part in network.named_children():
        layer = any(isinstance(inner, (nn.Linear, nn.modules.conv._ConvNd)) for inner in part.modules())
        early = not layer and len(sections) == 1 and bool(part.state_dict())
        if early or (layer and not waits):
            sections.append(OrderedDict())
        waits = early or (waits and not layer)
        sections[-1][name] = part
    stem, *others = (nn.Sequential(section) for section in sections)
    return stem, list(others)
