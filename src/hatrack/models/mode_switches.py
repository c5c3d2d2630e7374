"""Modules that compute something of their weights where their mode changes, as those do that merge them for evaluation.

What they keep is no weight, so that no mask reaches it and nothing protects it: it would follow what later tasks learn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hatrack.errors import UnsupportedError

__all__ = ["require_no_folding"]

_Values = dict[str, Tensor]


def require_no_folding(backbone: nn.Module) -> None:
    """Check that weights and what is kept of them do not change with the mode.

    A backbone is copied for it only if some module switches modes by code of its own.

    Args:
        backbone: the backbone.

    Raises:
        UnsupportedError: they do.
    """
    switching = [name for name, module in backbone.named_modules() if _switches_by_itself(module)]
    if not switching:
        return
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        other.train().eval()
        kept = _copied(_kept_by(other))
        for parameter in other.parameters():
            parameter.copy_(torch.rand_like(parameter) if parameter.is_floating_point() else parameter)
        weights = _copied(dict(other.named_parameters()))
        other.train().eval()
    moved = [
        name
        for before, now in ((kept, _kept_by(other)), (weights, dict(other.named_parameters())))
        for name, value in before.items()
        if name in now and not _are_alike(value, now[name])
    ]
    if moved:
        raise UnsupportedError(
            f"{', '.join(moved[:3])} is computed of weights where the mode changes (a train() or eval() of one's own), "
            "as where weights are merged for evaluation: nothing would protect it, and old tasks would follow what "
            "later ones learn; compute it in forward, or merge in an extracted task"
        )


def _switches_by_itself(module: nn.Module) -> bool:
    return any(
        getattr(type(module), name) is not getattr(nn.Module, name) or name in vars(module)
        for name in ("train", "eval")
    )


def _kept_by(module: nn.Module) -> _Values:
    """Return the tensors that are attributes, neither parameters nor buffers."""
    return dict(_attributes_of(module))


def _attributes_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, Tensor):
                yield f"{name}.{key}".lstrip("."), value


def _copied(values: _Values) -> _Values:
    return {name: value.detach().clone() for name, value in values.items()}


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
