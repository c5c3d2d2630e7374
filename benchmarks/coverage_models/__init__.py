"""Public models on which the coverage is measured: one file per family, each with a function ``models``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

__all__ = ["FAMILIES", "Features", "Model", "all_models", "without_unknown"]

FAMILIES = ("timm", "vit_pytorch", "transformers", "torch_layers")
"""Files of this folder; each has ``models() -> Iterator[Model]``, which builds nothing before it is asked to."""


@dataclass(frozen=True)
class Model:
    """Model of a family.

    Attributes:
        name: its name in the family, unique there.
        family: name of the file that it is from.
        build: makes the model, a module that maps one tensor to features ``(N, F)``, with random weights.
        example: makes a batch of one sample of what it takes; floating-point numbers are replaced by random ones.
        classes: number of different values of an input of whole numbers; ignored for others.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    classes: int = 2


class Features(nn.Module):
    """Model whose result is turned into features ``(N, F)``.

    Args:
        model: the model.
        features: turns its result into features.
    """

    def __init__(self, model: nn.Module, features: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.model(x))


def without_unknown(function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return those settings that a function has an argument for."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in settings.items() if name in known}


def all_models(families: tuple[str, ...] = FAMILIES) -> Iterator[Model]:
    """Yield the models of some families; of none whose packages are missing."""
    for family in families:
        try:
            module = import_module(f"coverage_models.{family}")
        except ModuleNotFoundError as error:
            print(f"{family}: left out ({error})")
            continue
        yield from module.models()
