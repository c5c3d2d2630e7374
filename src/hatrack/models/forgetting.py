"""Unlearning a task exactly: entries that no other task uses are drawn anew, as if it had never been learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hatrack.growth.layers import Layer, draw_entries, measure_initial_scales, measure_moments
from hatrack.masks import union
from hatrack.support.parameters import DRAWN

__all__ = ["Forgotten", "InitialDistribution", "report"]


@dataclass(frozen=True)
class Forgotten:
    """Report on a task that was unlearned.

    Attributes:
        task: its name.
        erased: number of entries of the backbone's parameters that were drawn anew: those that no other task uses.
        kept: number of entries that it used and that stay, since other tasks use them too. They may have been learned
            for it, but later tasks were learned on top of them.
        shared: for every other task, the number of entries that it used together with the unlearned one.
    """

    task: str
    erased: int
    kept: int
    shared: Mapping[str, int]

    def __str__(self) -> str:
        holders = ", ".join(f"{name} {count}" for name, count in self.shared.items() if count)
        kept = f"; {self.kept} entries stay, shared with {holders}" if self.kept else ""
        return f"{self.task} is forgotten: {self.erased} entries were drawn anew{kept}"


@dataclass(frozen=True)
class InitialDistribution:
    """Distribution of a backbone's parameters when it was given, from which erased entries are drawn anew.

    The initial values themselves are not kept: erased entries of a pretrained backbone do not come back.

    Attributes:
        initial_scales: initial scale of layers' parameters, by name; see
            :func:`hatrack.growth.layers.measure_initial_scales`.
        moments: mean and standard deviation of every floating-point parameter, by name; where the deviation is 0, as
            of a norm's weights, an erased entry gets the mean.
    """

    initial_scales: Mapping[str, float]
    moments: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, backbone: nn.Module) -> InitialDistribution:
        """Measure a backbone that has learned no task yet."""
        measured = {id(p): measure_moments(p) for p in backbone.parameters() if p.is_floating_point() and p.numel()}
        named = backbone.named_parameters()
        moments = {name: measured[id(parameter)] for name, parameter in named if id(parameter) in measured}
        return cls(measure_initial_scales(backbone, measured), moments)

    def draw(self, backbone: nn.Module, name: str, generator: torch.Generator | None) -> Tensor:
        """Draw new values for all entries of a parameter, of its shape, type and device.

        Args:
            backbone: the network, which may have been widened since it was measured.
            name: the parameter's name.
            generator: on the CPU; torch's global one if None.
        """
        owner, _, own = name.rpartition(".")
        parameter, layer = backbone.get_parameter(name), Layer.of(backbone.get_submodule(owner))
        if layer is not None and own not in layer.constants:
            return draw_entries(
                layer, own, parameter.shape, parameter.detach(), self.initial_scales.get(name), generator
            )
        mean, deviation = self.moments.get(name, (0.0, 0.0))
        drawn = torch.empty(parameter.shape, dtype=DRAWN).uniform_(-1.0, 1.0, generator=generator)
        return (mean + 3**0.5 * deviation * drawn).to(parameter.device, parameter.dtype)


def report(
    task: str, own: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]], erased: Iterable[Tensor]
) -> Forgotten:
    """Count erased entries, and entries shared with every other task.

    Args:
        task: the task to unlearn.
        own: entries that it uses, booleans by name of a parameter.
        others: the same for every other task, by the task's name.
        erased: entries that are erased, booleans, one tensor per parameter.
    """
    kept = 0
    shared = dict.fromkeys(others, 0)
    for name, mine in own.items():
        common = {other: mine & uses[name] for other, uses in others.items()}
        for other, entries in common.items():
            shared[other] += int(entries.sum())
        kept += int(union([*common.values()], mine).sum())
    return Forgotten(task, sum(int(where.sum()) for where in erased), kept, shared)
