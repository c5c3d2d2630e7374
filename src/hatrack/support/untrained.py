"""Untrained parameters of a network, which had ``requires_grad=False`` when it was attached."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["is_untrained_norm", "untrained_norms", "untrained_parameters"]


def untrained_parameters(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the untrained parameters of a network, in the order of ``named_parameters``.

    A batch norm counts as a whole: where any of its parameters is trained, all of them are.
    """
    norms = [module for module in network.modules() if isinstance(module, _NormBase)]
    trained = {
        id(parameter)
        for norm in norms
        for parameter in norm.parameters()
        if any(each.requires_grad for each in norm.parameters())
    }
    return tuple(
        name
        for name, parameter in network.named_parameters()
        if not parameter.requires_grad and id(parameter) not in trained
    )


def untrained_norms(network: nn.Module, untrained: Collection[str]) -> tuple[str, ...]:
    """Return the names of the batch norms of which all parameters are untrained; those without parameters are not.

    Args:
        network: the network.
        untrained: names of its untrained parameters.
    """
    parameters = dict(network.named_parameters())
    those = {id(parameters[name]) for name in untrained}
    return tuple(name for name, module in network.named_modules() if is_untrained_norm(module, those))


def is_untrained_norm(module: nn.Module, untrained: Collection[int] | None = None) -> bool:
    """Return whether a module is a batch norm of which all parameters are untrained, and which has some.

    Args:
        module: the module.
        untrained: identities of the untrained parameters; None for those that have ``requires_grad=False`` now.
    """
    if not isinstance(module, _NormBase):
        return False
    own = list(module.parameters())
    if untrained is None:
        untrained = [id(parameter) for parameter in own if not parameter.requires_grad]
    return bool(own) and all(id(parameter) in untrained for parameter in own)
