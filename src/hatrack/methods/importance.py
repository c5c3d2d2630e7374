"""Importance of each weight to a task: the diagonal of the Fisher information, and the outputs' sensitivity."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from hatrack.methods.multi_head import MultiHeadNetwork
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.streams import Task
from hatrack.support.modes import dropping, evaluation_mode
from hatrack.support.randomness import random_numbers_apart

__all__ = ["Fisher", "added", "averaged", "fisher_diagonal", "output_sensitivity"]

REFERENCE_BATCH = 20
"""Samples per batch in the estimate of the HAT authors' code."""

LARGEST_CHUNK = 64
MOST_GRADIENT_ENTRIES = 2**26
"""Gradients of so many single samples are held at once: at most 64, and at most 256 MiB in float32."""

DENSE_CHUNK = 256
"""Most samples at once where no gradient of a single one is made; fewer where a pass would keep more for them than
gradients of single samples may take."""

LossOfOutputs = Callable[[Tensor, Tensor], Tensor]
Network = MultiHeadNetwork | WeightMaskedNetwork


class Fisher(enum.Enum):
    """Estimate of the diagonal of the Fisher information matrix."""

    TRUE = "true"
    """Mean over the samples of the squared gradient of −log p(y | x) for the true label: the "empirical" Fisher."""

    SAMPLED = "sampled"
    """The same for one label per sample that is drawn from the model: an unbiased estimate of the Fisher itself."""

    BATCHES = "batches"
    """Formula of the HAT authors' code, with true labels: over batches of 20, ``Σ 20 (mean gradient)² / N``.

    That is the mean over batches of the squared mean gradient. Where the mean over all samples vanishes, as it does at
    an optimum, it is a twentieth of the others; the strength of the penalty that was chosen with it counts on that.
    """

    AUTHORS = "authors"
    """The same as their code computes it: in training mode, so that dropout drops; batch norms are left alone here.

    Gradients of a network that drops do not vanish at an optimum, so that this is larger than ``BATCHES`` where tasks
    are learned to the last sample.
    """


def fisher_diagonal(
    network: Network, task: Task, kind: Fisher, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Measure the diagonal of the Fisher information of the shared parameters on a task's training samples.

    Shared are all of a backbone's; of a network with masks of weights only those that have masks, and the task's own
    decides: what it does not let through has no information about the task.

    Args:
        network: taken in evaluation mode, so that samples do not depend on each other and nothing is dropped, but for
            the dropout of :attr:`Fisher.AUTHORS`.
        task: one that the network has a head for.
        kind: the estimate.
        generator: draws the labels of :attr:`Fisher.SAMPLED` and the dropout of :attr:`Fisher.AUTHORS`, on the CPU;
            None takes torch's global one.

    Returns:
        A tensor of its shape for every shared parameter, by its name in the backbone, none negative.
    """
    x, y = task.train.load()
    if kind is Fisher.BATCHES:
        with evaluation_mode(network):
            return _mean_squared_batch_gradients(network, task.name, x, y, task.objective.loss)
    if kind is Fisher.AUTHORS:
        seed = int(torch.randint(2**62, (), generator=generator))
        with random_numbers_apart(seed), evaluation_mode(network), dropping(network):
            return _mean_squared_batch_gradients(network, task.name, x, y, task.objective.loss)
    if kind is Fisher.SAMPLED:
        y = _drawn_targets(network, task, x, generator)
    return _mean_over_samples(network, task.name, x, y, task.objective.loss, torch.square)


def output_sensitivity(network: Network, task: Task) -> dict[str, Tensor]:
    """Measure the mean of ``|∂ ‖logits‖² / ∂θ|`` over a task's training samples, without labels (Aljundi et al., 2018).

    Returns:
        A tensor of its shape for every shared parameter, by its name in the backbone, none negative.
    """
    x, y = task.train.load()
    return _mean_over_samples(network, task.name, x, y, lambda logits, _: logits.square().sum(), torch.abs)


def added(earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return sums of what was measured on earlier tasks and on a new one, by name; the new alone where none was."""
    return {name: earlier[name] + value if name in earlier else value for name, value in new.items()}


def averaged(earlier: Mapping[str, Tensor], new: Mapping[str, Tensor], tasks: int) -> dict[str, Tensor]:
    """Return means over all tasks by name, given those over the earlier ones.

    Args:
        earlier: means over the earlier tasks; empty if there were none.
        new: what was measured on the last task.
        tasks: number of tasks, the last one included.
    """
    return {n: (earlier[n] * (tasks - 1) + value) / tasks if n in earlier else value for n, value in new.items()}


def _mean_over_samples(
    network: Network, task: str, x: Tensor, y: Tensor, objective: LossOfOutputs, magnitude: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the mean of the magnitude of each single sample's gradient of ``objective(logits, labels)``.

    Args:
        network: the network.
        task: a task that it has a head for.
        x: samples.
        y: their labels.
        objective: function to differentiate.
        magnitude: square or absolute value; that of a product is the product of those of its factors.
    """
    parameters = {name: value.detach() for name, value in _shared(network, task).items()}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    # Heads are not differentiated, so no graph is kept for them. Fused attention has no rule for many samples at once.
    with evaluation_mode(network), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        dense = _dense_layers(network, task, parameters, x[:2], y[:2], objective, magnitude)
        left = {name: value for name, value in parameters.items() if name not in dense.names}
        if dense.layers:
            for samples, labels in _chunks(network, x, y, dense.chunk):
                dense.add(total, network, task, samples, labels, objective, magnitude)
        if left:
            _add_one_by_one(total, network, task, left, x, y, objective, magnitude)
    return {name: value / len(x) for name, value in total.items()}


def _add_one_by_one(
    total: Mapping[str, Tensor],
    network: Network,
    task: str,
    parameters: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    objective: LossOfOutputs,
    magnitude: Callable[[Tensor], Tensor],
) -> None:
    """Add the magnitudes of the gradients of some parameters, which are made for every sample."""
    places = _places(network.backbone, parameters)

    def of_sample(values: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        named = {f"backbone.{place}": values[name] for place, name in places.items()}
        # Torch ties names by itself, but leaves a module that has two of them with the values that it was lent.
        logits = functional_call(network, named, (sample.unsqueeze(0), task), tie_weights=False)
        return objective(logits, label.unsqueeze(0))

    gradients = vmap(grad(of_sample), in_dims=(None, 0, 0))
    entries = sum(value.numel() for value in parameters.values())
    chunk = max(1, min(LARGEST_CHUNK, MOST_GRADIENT_ENTRIES // max(1, entries)))
    for samples, labels in _chunks(network, x, y, chunk):
        for name, value in gradients(parameters, samples, labels).items():
            total[name].add_(magnitude(value).sum(0))


def _places(backbone: nn.Module, parameters: Mapping[str, Tensor]) -> Mapping[str, str]:
    """Return by which of the given names the parameter at every place of a backbone goes; a module has one place."""
    names = {id(backbone.get_parameter(name)): name for name in parameters}
    places = ((f"{path}.{own}" if path else own, p) for path, m in backbone.named_modules() for own, p in _own(m))
    return {place: names[id(parameter)] for place, parameter in places if id(parameter) in names}


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(recurse=False, remove_duplicate=False)


@dataclass(frozen=True)
class _DenseLayers:
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
    def names(self) -> Mapping[str, nn.Linear]:
        """The layers by the names of their parameters."""
        return {f"{name}.{own}": layer for name, layer in self.layers.items() for own, _ in layer.named_parameters()}

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
        magnitude: Callable[[Tensor], Tensor],
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


def _dense_layers(
    network: Network,
    task: str,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    objective: LossOfOutputs,
    magnitude: Callable[[Tensor], Tensor],
) -> _DenseLayers:
    """Return the dense layers that see one vector of every sample, and whose weights nothing else uses.

    Whether something else does is seen in the graph of some samples, even where it gives nothing for these. That the
    layer's vectors are those of single samples is tried out: gradients of one sample at a time are those of products.
    """
    none = _DenseLayers({})
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
    kept = _Kept(network)
    with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
        logits, calls = _DenseLayers(found).calls(network, task, x)
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
    dense = _DenseLayers(layers)
    if not layers:
        return none
    mine = {name: parameters[name] for name in dense.names}
    products, gradients = ({name: torch.zeros_like(p) for name, p in mine.items()} for _ in range(2))
    dense.add(products, network, task, x, y, objective, magnitude)
    _add_one_by_one(gradients, network, task, mine, x, y, objective, magnitude)
    alike = {
        name
        for name in layers
        if all(_are_alike(products[each], gradients[each]) for each in dense.names if each.rpartition(".")[0] == name)
    }
    chunk = max(1, min(DENSE_CHUNK, MOST_GRADIENT_ENTRIES * len(x) // max(1, kept.entries)))
    return _DenseLayers({name: layer for name, layer in layers.items() if name in alike}, chunk)


class _Kept:
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


def _mean_squared_batch_gradients(
    network: Network, task: str, x: Tensor, y: Tensor, objective: LossOfOutputs
) -> dict[str, Tensor]:
    parameters = _shared(network, task)
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with torch.enable_grad():
        for samples, labels in _chunks(network, x, y, REFERENCE_BATCH):
            loss = objective(network(samples, task), labels)
            gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += REFERENCE_BATCH * gradient.square()
    return {name: value / len(x) for name, value in total.items()}


def _drawn_targets(network: Network, task: Task, x: Tensor, generator: torch.Generator | None) -> Tensor:
    with evaluation_mode(network), torch.no_grad():
        device = next(network.parameters()).device
        parts = [network(part.to(device), task.name).cpu() for part in torch.split(x, LARGEST_CHUNK)]
    return task.objective.drawn(torch.cat(parts), generator)


def _shared(network: Network, task: str) -> dict[str, Tensor]:
    """Return the parameters that a task relies on and later tasks would move, by their names in the backbone."""
    parameters = {name: p for name, p in network.backbone.named_parameters() if p.requires_grad}
    if isinstance(network, WeightMaskedNetwork):
        return {name: parameters[name] for name in network.masks(task) if name in parameters}
    return {**parameters}


def _chunks(network: Network, x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of samples and labels, on the network's device."""
    device = next(network.parameters()).device
    for samples, labels in zip(torch.split(x, size), torch.split(y, size), strict=True):
        yield samples.to(device), labels.to(device)
