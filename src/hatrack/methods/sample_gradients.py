"""Gradients of single samples, of which magnitudes are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hatrack.methods.multi_head import MultiHeadNetwork
from hatrack.models.weight_masked import WeightMaskedNetwork

__all__ = [
    "LARGEST_CHUNK",
    "MOST_GRADIENT_ENTRIES",
    "LossOfOutputs",
    "Magnitude",
    "Network",
    "add_one_by_one",
    "chunks",
]

LARGEST_CHUNK = 64
MOST_GRADIENT_ENTRIES = 2**26
"""Gradients of so many single samples are held at once: at most 64, and at most 256 MiB in float32."""

LossOfOutputs = Callable[[Tensor, Tensor], Tensor]
Magnitude = Callable[[Tensor], Tensor]
Network = MultiHeadNetwork | WeightMaskedNetwork


def chunks(network: Network, x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of samples and labels, on the network's device."""
    device = next(network.parameters()).device
    for samples, labels in zip(torch.split(x, size), torch.split(y, size), strict=True):
        yield samples.to(device), labels.to(device)


def add_one_by_one(
    total: Mapping[str, Tensor],
    network: Network,
    task: str,
    parameters: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    objective: LossOfOutputs,
    magnitude: Magnitude,
) -> None:
    """Add the magnitudes of single samples' gradients of some parameters, each of which is made.

    Args:
        total: sums by parameter, to add to.
        network: the network, in evaluation mode.
        task: a task that it has a head for.
        parameters: values of some of the backbone's parameters, by their names.
        x: samples.
        y: their labels.
        objective: function to differentiate.
        magnitude: square or absolute value.
    """
    places = _places(network.backbone, parameters)

    def of_sample(values: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        named = {f"backbone.{place}": values[name] for place, name in places.items()}
        # Torch ties names by itself, but leaves a module that has two of them with the values that it was lent.
        logits = functional_call(network, named, (sample.unsqueeze(0), task), tie_weights=False)
        return objective(logits, label.unsqueeze(0))

    gradients = vmap(grad(of_sample), in_dims=(None, 0, 0))
    entries = sum(value.numel() for value in parameters.values())
    chunk = max(1, min(LARGEST_CHUNK, MOST_GRADIENT_ENTRIES // max(1, entries)))
    for samples, labels in chunks(network, x, y, chunk):
        for name, value in gradients(parameters, samples, labels).items():
            total[name].add_(magnitude(value).sum(0))


def _places(backbone: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, str]:
    """Return by which of the given names the parameter at every place of a backbone goes; a module has one place."""
    names = {id(backbone.get_parameter(name)): name for name in parameters}
    places = ((f"{path}.{own}" if path else own, p) for path, m in backbone.named_modules() for own, p in _own(m))
    return {place: names[id(parameter)] for place, parameter in places if id(parameter) in names}


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(recurse=False, remove_duplicate=False)
