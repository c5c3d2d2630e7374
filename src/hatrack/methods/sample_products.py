"""Magnitudes of single samples' gradients by products of matrices, where no gradient of a single sample is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from hatrack.methods.multi_head import MultiHeadNetwork
from hatrack.methods.sample_gradients import (
    MOST_GRADIENT_ENTRIES,
    LossOfOutputs,
    Magnitude,
    Network,
    add_one_by_one,
)

__all__ = ["DenseLayers", "dense_layers"]

DENSE_CHUNK = 256
"""Most samples at once where no gradient of a single one is made; fewer where a pass would keep more for them than
gradients of single samples may take."""


@dataclass(frozen=True)
class DenseLayers:
    """Dense layers whose gradient for a sample is the outer product of two vectors.

    The sum of the magnitudes of these products is one product of matrices, ``|δ|ᵀ |h|`` or ``(δ²)ᵀ h²``: δ are the
    gradients of what the layer gives, h what it is given. No sample's gradient has to be made.

    Attributes:
        layers: the layers by their names in the backbone.
        chunk: number of samples that a pass may have.
    """

    layers: Mapping[str, nn.Linear]
    chunk: int = DENSE_CHUNK

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the layers' parameters in the backbone."""
        return tuple(f"{name}.{own}" for name, layer in self.layers.items() for own, _ in layer.named_parameters())

    def calls(self, network: Network, task: str, x: Tensor) -> tuple[Tensor, Mapping[str, list[tuple[Tensor, Tensor]]]]:
        """Return logits with a graph, and what every call of a layer was given and gave."""
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.layers}

        def note(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> Tensor:
            given = args[0] if args else kwargs["input"]
            calls[name].append((given.detach().clone(), result))
            return result.clone()  # what follows may write to it

        handles = [  # before other hooks, which may change the result
            layer.register_forward_hook(
                lambda _, args, kwargs, result, name=name: note(name, args, kwargs, result),
                prepend=True,
                with_kwargs=True,
            )
            for name, layer in self.layers.items()
        ]
        try:
            with torch.enable_grad():
                return network(x, task), calls
        finally:
            for handle in handles:
                handle.remove()

    def add(
        self,
        total: Mapping[str, Tensor],
        network: Network,
        task: str,
        x: Tensor,
        y: Tensor,
        objective: LossOfOutputs,
        magnitude: Magnitude,
    ) -> None:
        """Add the magnitudes of the gradients of all samples of a batch to those of the layers' parameters."""
        logits, calls = self.calls(network, task, x)
        with torch.enable_grad():
            loss = vmap(objective)(logits.unsqueeze(1), y.unsqueeze(1)).sum()
        single = {name: call for name, (call,) in calls.items()}
        results = [result for _, result in single.values()]
        deltas = torch.autograd.grad(loss, results, materialize_grads=True)
        for (name, (given, _)), delta in zip(single.items(), deltas, strict=True):
            size = magnitude(delta)
            total[f"{name}.weight"].addmm_(size.t(), magnitude(given))
            if self.layers[name].bias is not None:
                total[f"{name}.bias"].add_(size.sum(0))


def dense_layers(
    network: Network,
    task: str,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    objective: LossOfOutputs,
    magnitude: Magnitude,
) -> DenseLayers:
    """Return the dense layers that see one vector of every sample, and whose weights nothing else uses.

    Whether something else does is seen in the graph of some samples, even where it gives nothing for these. That the
    layer's vectors are those of single samples is tried out: gradients of one sample at a time are those of products.

    Args:
        network: the network, in evaluation mode; one with masks of weights has no such layers.
        task: a task that it has a head for.
        parameters: values of the parameters whose gradients are asked for, by their names in the backbone.
        x: two samples.
        y: their labels.
        objective: function to differentiate.
        magnitude: square or absolute value.
    """
    none = DenseLayers({})
    if not isinstance(network, MultiHeadNetwork):
        return none  # whose layers compute with masked weights
    device = next(network.parameters()).device
    x, y = x.to(device), y.to(device)
    owners = Counter(id(p) for _, p in network.backbone.named_parameters(remove_duplicate=False))
    found = {
        name: layer
        for name, layer in network.backbone.named_modules()
        if type(layer) is nn.Linear
        and all(f"{name}.{own}" in parameters and owners[id(p)] == 1 for own, p in layer.named_parameters())
        and "weight" in dict(layer.named_parameters())  # else computed from others
    }
    kept = _SavedEntries(network)
    with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
        logits, calls = DenseLayers(found).calls(network, task, x)
    uses = _uses(logits)
    layers = {
        name: found[name]
        for name, made in calls.items()
        if len(made) == 1
        and made[0][0].shape[:-1] == (len(x),)
        and made[0][1].requires_grad
        and made[0][1].dtype == found[name].weight.dtype  # not of mixed precision
        and all(uses[parameter] == 1 for parameter in found[name].parameters())
    }
    dense = DenseLayers(layers)
    if not layers:
        return none
    mine = {name: parameters[name] for name in dense.parameter_names}
    products, gradients = ({name: torch.zeros_like(p) for name, p in mine.items()} for _ in range(2))
    dense.add(products, network, task, x, y, objective, magnitude)
    add_one_by_one(gradients, network, task, mine, x, y, objective, magnitude)
    alike = {
        name
        for name in layers
        if all(
            _are_alike(products[each], gradients[each])
            for each in dense.parameter_names
            if each.rpartition(".")[0] == name
        )
    }
    chunk = max(1, min(DENSE_CHUNK, MOST_GRADIENT_ENTRIES * len(x) // max(1, kept.entries)))
    return DenseLayers({name: layer for name, layer in layers.items() if name in alike}, chunk)


class _SavedEntries:
    """Count of what is kept for a backward pass, without the parameters of a network.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self._sizes: dict[int, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is kept, once for all that share its memory."""
        storage = tensor.untyped_storage()
        memory = storage.data_ptr()
        if memory not in self._parameters:  # and of a view of a large data set only what it shows
            size = min(tensor.numel(), storage.nbytes() // tensor.element_size())
            self._sizes[memory] = max(size, self._sizes.get(memory, 0))
        return tensor

    @property
    def entries(self) -> int:
        """Number of entries that are kept."""
        return sum(self._sizes.values())


def _uses(result: Tensor) -> Counter[Tensor]:
    """Count how often every parameter, or another leaf, occurs in the graph of a result."""
    uses: Counter[Tensor] = Counter()
    pending = [result.grad_fn]
    seen = {result.grad_fn}
    while pending:
        node = pending.pop()
        for function, _ in () if node is None else node.next_functions:
            leaf = getattr(function, "variable", None)  # of what adds up a leaf's gradient
            if isinstance(leaf, Tensor):
                uses[leaf] += 1
            elif function not in seen:
                seen.add(function)
                pending.append(function)
    return uses


def _are_alike(one: Tensor, other: Tensor) -> bool:
    """Return whether magnitudes agree up to rounding, and say something."""
    return bool(other.any()) and torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.max()))
