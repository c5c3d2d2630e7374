"""Optimizers of a training: made from its settings, and what they have gathered, to be kept and given back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hatrack.methods import ParameterGroup, joined
from hatrack.storage.checkpoint import part_of
from hatrack.support.layouts import laid_out_like, lay_gradients_out, memory_format_of
from hatrack.train.settings import OptimizerKind, TrainingSettings

__all__ = ["build_optimizer", "load_optimizer", "optimizer_tensors"]


def build_optimizer(
    groups: Sequence[ParameterGroup],
    settings: TrainingSettings,
    protect: Callable[[torch.optim.Optimizer], torch.optim.Optimizer] = lambda optimizer: optimizer,
) -> torch.optim.Optimizer:
    """Make the optimizer of some groups of parameters; Adam and AdamW on a CPU are torch's fused ones if possible.

    Args:
        groups: the parameters, by the rate at which they learn.
        settings: the kind of optimizer and its numbers.
        protect: puts hooks around the optimizer's steps, and returns it.
    """
    lr, weight_decay = settings.lr, settings.weight_decay
    parameters = [
        {
            "params": group.parameters,
            "lr": lr * group.lr_factor,
            "weight_decay": weight_decay if group.decays else 0.0,
        }
        for group in groups
    ]
    if settings.optimizer is OptimizerKind.SGD:
        # Its fused form fails where a parameter has its first gradient later than others, and gains little.
        return protect(torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=weight_decay))
    adam = torch.optim.Adam if settings.optimizer is OptimizerKind.ADAM else torch.optim.AdamW
    if settings.captured or not all(_can_be_fused(each) for group in groups for each in group.parameters):
        return protect(adam(parameters, lr=lr, weight_decay=weight_decay, capturable=settings.captured))
    optimizer = protect(adam(parameters, lr=lr, weight_decay=weight_decay, fused=True))
    optimizer.register_step_pre_hook(lay_gradients_out)  # the last one: hooks before it may give other gradients
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors that an optimizer has gathered, such as momentum, by names."""
    gathered = joined({f"optimizer.{index}": values for index, values in optimizer.state_dict()["state"].items()})
    return {name: value for name, value in gathered.items() if isinstance(value, Tensor)}  # None: not begun


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Give a new optimizer what :func:`optimizer_tensors` found in another one."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gathered: dict[int, dict[str, Tensor]] = {}
    for name, value in part_of(saved, "optimizer.").items():
        index, _, key = name.partition(".")
        gathered.setdefault(int(index), {})[key] = laid_out_like(parameters[int(index)], value)
    if gathered:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": gathered})


def _can_be_fused(parameter: Tensor) -> bool:
    """Return whether a fused optimizer of torch takes a parameter: real numbers on a CPU, in memory without gaps."""
    lies_dense = parameter.is_contiguous(memory_format=memory_format_of(parameter))
    return parameter.device.type == "cpu" and parameter.is_floating_point() and lies_dense
