"""Roles of the parameters of a backbone whose weights are masked."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hatrack.errors import InputError, UnsupportedError
from hatrack.support.inputs import Inputs
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import in_one_line
from hatrack.support.untrained import untrained_norms, untrained_parameters

__all__ = ["Unmasked", "WeightLayout", "WeightRole", "count_features", "lay_out"]

_MASKED_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.MultiheadAttention)
_LAYERS = "dense, convolutional, recurrent or attention"


class WeightRole(str, enum.Enum):
    """Role of a parameter towards the tasks; every parameter has exactly one."""

    MASKED = "masked"
    """Weight of a dense, convolutional, recurrent or attention layer; a mask per task selects the entries it uses."""

    PER_TASK = "per-task"
    """Any other parameter, such as biases, norms and tokens; tasks have copies that start as the backbone's own."""

    UNTRAINED = "untrained"
    """Parameter with ``requires_grad=False``; it has no mask and no copies, and is frozen from attaching on."""


class Unmasked(enum.Enum):
    """Owner of the parameters without masks that tasks use: biases, norms with their statistics, tokens."""

    PER_TASK = "per-task"
    """Every task has copies of its own."""

    FIRST_TASK = "first-task"
    """All tasks use the copies of the first one, frozen once it is consolidated: nothing to store per task, but they
    fit the first task alone."""


@dataclass(frozen=True)
class WeightLayout:
    """Names of the trained parameters of a backbone by their roles.

    Attributes:
        masked: names of the weights with masks.
        copied: names of the parameters that are copied for tasks one by one.
        norms: names of the batch norms, which are copied for tasks as a whole, with their statistics.
    """

    masked: tuple[str, ...]
    copied: tuple[str, ...]
    norms: tuple[str, ...]


def lay_out(backbone: nn.Module) -> WeightLayout:
    """Find the role of every parameter; those with ``requires_grad=False`` have none of these.

    A weight that several layers share has one mask, which holds for all of them; it is masked if any of them is a layer
    with masks.

    Raises:
        UnsupportedError: the backbone has no weight to mask, and none that is untrained; or a trained parameter is
            computed from others before each use, not initialised yet, complex, or shared by a batch norm and something
            else.
    """
    untrained = set(untrained_parameters(backbone))
    parameters = {name: parameter for name, parameter in backbone.named_parameters() if name not in untrained}
    trained = {id(parameter) for parameter in parameters.values()}
    for name, module in backbone.named_modules():
        _require_plain(name or type(backbone).__name__, module, trained)
    left_out = untrained_norms(backbone, untrained)
    norms = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, _NormBase) and name not in left_out
    }
    of_norms = {id(parameter) for norm in norms.values() for parameter in norm.parameters()}
    weights = {id(parameter) for parameter in _weights(backbone)}
    for name, module in backbone.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in of_norms and not isinstance(module, _NormBase):
                raise UnsupportedError(
                    f"{name}.{own} is a batch norm's parameter too, which every task has a copy of; give it its own"
                )
    masked: list[str] = []
    copied: list[str] = []
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise UnsupportedError(f"{name} is complex; masks need real weights")
        if id(parameter) not in of_norms:
            (masked if id(parameter) in weights else copied).append(name)
    if not masked and not untrained:
        raise UnsupportedError(f"the backbone has no {_LAYERS} layer to mask{_advice_for_cells(backbone)}")
    return WeightLayout(tuple(masked), tuple(copied), tuple(norms))


def _advice_for_cells(backbone: nn.Module) -> str:
    """Return what to use in place of recurrent cells, for the end of a message; empty where there are none."""
    cells = [(name, type(m).__name__) for name, m in backbone.named_modules() if isinstance(m, nn.RNNCellBase)]
    if not cells:
        return ""
    named = ", ".join(f"{name} ({kind})" if name else kind for name, kind in cells)
    layers = " or ".join(sorted({f"torch.nn.{kind.removesuffix('Cell')}" for _, kind in cells}))
    return (
        f": cells, {named}, get no masks of weights, since every task has copies of them; take {layers} in place of "
        "the loop over steps, or hatrack.HATNetwork, whose masks of units take cells, too"
    )


def _weights(backbone: nn.Module) -> Iterator[nn.Parameter]:
    for module in backbone.modules():
        if isinstance(module, _MASKED_LAYERS):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() >= 2 and not name.startswith("bias"):
                    yield parameter


def _require_plain(name: str, module: nn.Module, trained: Collection[int]) -> None:
    hooks = module._forward_pre_hooks.values()
    computes = parametrize.is_parametrized(module) or any(isinstance(h, (WeightNorm, SpectralNorm)) for h in hooks)
    if computes and any(id(parameter) in trained for parameter in module.parameters()):
        raise UnsupportedError(
            f"{name} computes a weight from others before every use, so that a mask would not be a mask of weights; "
            "remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm or "
            "remove_spectral_norm), or use a HATNetwork"
        )
    if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False)):
        raise UnsupportedError(f"{name} is not initialised yet; run the backbone once on a batch")


@torch.no_grad()
def count_features(backbone: nn.Module, example: Inputs, interface: Interface = PLAIN) -> int:
    """Count the features that a backbone gives.

    Args:
        backbone: the network.
        example: a batch.
        interface: how the backbone is called, and what of its result are its features.

    Raises:
        InputError: the backbone gives no features, or cannot run on the example.
    """
    try:
        with evaluation_mode(backbone):
            features = interface.run(backbone, example)
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"the backbone cannot run on the example input: {in_one_line(error)}") from error
    axis = interface.axis_of(features)
    interface.require_rows(features, example)
    return features.shape[axis]
