"""Importance of each weight to a task: the diagonal of the Fisher information, and the outputs' sensitivity."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hatrack.methods.sample_gradients import LARGEST_CHUNK, LossOfOutputs, Magnitude, Network, add_one_by_one, chunks
from hatrack.methods.sample_products import dense_layers
from hatrack.models.weight_masked import WeightMaskedNetwork
from hatrack.streams import Task
from hatrack.support.modes import dropping, evaluation_mode
from hatrack.support.randomness import random_numbers_apart

__all__ = ["Fisher", "added", "averaged", "fisher_diagonal", "output_sensitivity"]

REFERENCE_BATCH = 20
"""Samples per batch in the estimate of the HAT authors' code."""


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
    network: Network, task: str, x: Tensor, y: Tensor, objective: LossOfOutputs, magnitude: Magnitude
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
        dense = dense_layers(network, task, parameters, x[:2], y[:2], objective, magnitude)
        left = {name: value for name, value in parameters.items() if name not in dense.parameter_names}
        if dense.layers:
            for samples, labels in chunks(network, x, y, dense.chunk):
                dense.add(total, network, task, samples, labels, objective, magnitude)
        if left:
            add_one_by_one(total, network, task, left, x, y, objective, magnitude)
    return {name: value / len(x) for name, value in total.items()}


def _mean_squared_batch_gradients(
    network: Network, task: str, x: Tensor, y: Tensor, objective: LossOfOutputs
) -> dict[str, Tensor]:
    parameters = _shared(network, task)
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with torch.enable_grad():
        for samples, labels in chunks(network, x, y, REFERENCE_BATCH):
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
