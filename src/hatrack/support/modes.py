"""Temporary modes: evaluation, dropout and gathered statistics in it, and none of torch's contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from hatrack.errors import InputError

__all__ = ["at_hand", "dropping", "evaluation_mode", "fresh_statistics", "plain_modes", "trainable"]

_CASTING = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that mixed precision is switched on for."""


@contextmanager
def plain_modes() -> Iterator[None]:
    """While this lasts, torch computes as outside of ``torch.autocast`` and ``torch.inference_mode``.

    A network that is attached, read or changed inside of such a context is the same as outside: numbers have their
    digits, and what is made can be trained. Also a decorator.
    """
    casting = [kind for kind in _CASTING if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        for kind in casting:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if casting:  # at the end, or calls in the context around would compute with the weights of before
            stack.callback(torch.clear_autocast_cache)
        yield


@contextmanager
def at_hand() -> Iterator[None]:
    """While this lasts, torch computes with the values of tensors, and neither traces nor exports what is done."""
    tracing = torch._C._get_tracing_state()
    if tracing is not None:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with _disable_current_modes() if torch.compiler.is_exporting() else nullcontext():
            yield
    finally:
        if tracing is not None:
            torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def trainable(module: nn.Module) -> None:
    """Replace tensors of a module that were made in inference mode, with which torch trains nothing, by copies.

    Parameters that several modules share stay shared.

    Args:
        module: the module; called outside of inference mode.
    """
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers, vars(part)):
            for name, value in list(table.items()):
                if isinstance(value, Tensor) and not is_lazy(value) and value.is_inference():
                    if id(value) not in copies:
                        copies[id(value)] = _copied(value)
                    setattr(part, name, copies[id(value)])  # by which recurrent layers note it, too


def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


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
