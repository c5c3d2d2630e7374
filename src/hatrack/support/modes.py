"""Temporary evaluation mode, dropout in it, and statistics of batch norms gathered in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from hatrack.errors import InputError

__all__ = ["dropping", "evaluation_mode", "fresh_statistics"]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """While this lasts, a module and all its parts are in evaluation mode; then each is back in its own."""
    modes = {part: part.training for part in module.modules()}
    if any(modes.values()):
        module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            if part.training != training:  # a network of many tasks has many parts, nearly all in evaluation mode
                part.training = training


@contextmanager
def dropping(module: nn.Module) -> Iterator[None]:
    """While this lasts, the dropout layers of a module in evaluation mode drop; no other layer changes its mode."""
    layers = [part for part in module.modules() if isinstance(part, _DropoutNd)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


@contextmanager
def fresh_statistics(model: nn.Module) -> Iterator[None]:
    """While this lasts, batch norms gather their statistics anew: means over all batches that are run through them.

    Running averages lag behind the weights, and in a HAT network they are mixed with what the units gave while their
    gates were soft. Run some batches of the training set before you consolidate, in random order (Wu and Johnson,
    "Rethinking 'Batch' in BatchNorm", 2021)::

        with hatrack.fresh_statistics(net):
            for x, _ in loader:
                net(x, "shoes")

    Everything else is in evaluation mode meanwhile, and no gradients are kept. Norms that are in evaluation mode, such
    as those of consolidated tasks, stay as they are, and so do norms that no batch reaches.

    Args:
        model: the model, in training mode.

    Raises:
        InputError: the model is in evaluation mode, in which no norm gathers statistics.
    """
    if not model.training:
        raise InputError("fresh_statistics gathers nothing in evaluation mode: call train() on the model first")
    gathering = [
        part for part in model.modules() if isinstance(part, _NormBase) and part.training and part.track_running_stats
    ]
    momenta = [norm.momentum for norm in gathering]
    with torch.no_grad(), evaluation_mode(model):
        for norm in gathering:
            assert norm.num_batches_tracked is not None
            norm.train()
            norm.momentum = None  # the mean of all batches, of which this is the first:
            norm.num_batches_tracked.zero_()
        try:
            yield
        finally:
            for norm, momentum in zip(gathering, momenta, strict=True):
                norm.momentum = momentum
