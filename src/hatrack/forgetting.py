"""Forgetting a task exactly: whatever no other task uses is drawn anew, as if it had never been learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.fresh import fresh_entries, measure_spread
from hatrack.layers import Layer

__all__ = ["Forgotten", "Initialization", "entries_to_erase", "forget_in_optimizer", "report"]


@dataclass(frozen=True)
class Forgotten:
    """Report on a task that was forgotten.

    Attributes:
        task: its name.
        erased: number of entries of the backbone's parameters that were drawn anew: those that no other task uses.
        kept: number of entries that it used and that stay, since other tasks use them too. They may have been learned
            for it: forgetting them would be forgetting what was learned on top.
        shared: for every other task, how many entries it used together with the forgotten one.
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
class Initialization:
    """Spread of a backbone's parameters when it was given, from which erased entries are drawn anew.

    The initial values themselves are not kept: of a backbone that was trained beforehand, erased entries do not come
    back.

    Attributes:
        spread: of layers' parameters, by name; see :func:`hatrack.fresh.measure_spread`.
        moments: of all parameters of numbers, mean and standard deviation; without deviation, as of a norm's weights,
            an erased entry gets the mean.
    """

    spread: Mapping[str, float]
    moments: Mapping[str, tuple[float, float]]

    @classmethod
    @torch.no_grad()
    def of(cls, backbone: nn.Module) -> Initialization:
        """Measure a backbone that has learned no task yet."""
        moments = {}
        for name, parameter in backbone.named_parameters():
            if parameter.is_floating_point() and parameter.numel():
                values = parameter.detach().double()
                moments[name] = (float(values.mean()), float(values.std(unbiased=False)))
        return cls(measure_spread(backbone), moments)

    def draw(self, backbone: nn.Module, name: str, generator: torch.Generator | None) -> Tensor:
        """New values for all entries of a parameter, of its shape, type and device.

        Args:
            backbone: the network, which may be wider by now.
            name: the parameter's name.
            generator: on the CPU; torch's global one if None.
        """
        owner, _, own = name.rpartition(".")
        parameter, layer = backbone.get_parameter(name), Layer.of(backbone.get_submodule(owner))
        if layer is not None and own not in layer.fresh:
            return fresh_entries(layer, own, parameter.shape, parameter.detach(), self.spread.get(name), generator)
        mean, deviation = self.moments.get(name, (0.0, 0.0))
        drawn = torch.empty(parameter.shape).uniform_(-1.0, 1.0, generator=generator)
        return (mean + 3**0.5 * deviation * drawn).to(parameter.device, parameter.dtype)


def entries_to_erase(parameters: Mapping[str, nn.Parameter], used: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name of a parameter, True where no remaining task uses an entry.

    Args:
        parameters: the parameters that tasks share, by name.
        used: by the same names, True where some remaining task uses an entry; what is left out is used by nobody.
    """
    return {
        name: ~used[name] if name in used else torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in parameters.items()
        if parameter.is_floating_point()
    }


def report(
    task: str, own: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]], erased: Iterable[Tensor]
) -> Forgotten:
    """Say what is shared with whom.

    Args:
        task: the task to forget.
        own: what it uses, booleans by name of a parameter.
        others: the same for every other task.
        erased: what is erased, booleans.
    """
    kept = 0
    shared = dict.fromkeys(others, 0)
    for name, mine in own.items():
        anyone = torch.zeros_like(mine)
        for other, uses in others.items():
            common = mine & uses[name]
            shared[other] += int(common.sum())
            anyone |= common
        kept += int(anyone.sum())
    return Forgotten(task, sum(int(where.sum()) for where in erased), kept, shared)


def forget_in_optimizer(
    optimizer: Optimizer, own: Sequence[nn.Parameter], erased: Mapping[nn.Parameter, Tensor]
) -> None:
    """Let an optimizer forget, too: the task's own parameters, and what it remembers of erased entries.

    Args:
        optimizer: the optimizer.
        own: parameters that exist no longer.
        erased: True where a parameter's entries were erased.
    """
    gone = {id(parameter) for parameter in own}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    for parameter in own:
        optimizer.state.pop(parameter, None)
    for parameter, where in erased.items():
        memory = optimizer.state.get(parameter, {})
        for key, value in list(memory.items()):
            if isinstance(value, Tensor) and value.shape == where.shape:
                memory[key] = value.masked_fill(where.to(value.device), 0.0)  # a new one, so that this can be undone
