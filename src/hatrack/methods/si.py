"""Synaptic intelligence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.methods.at_once import at_once
from hatrack.methods.base import Earlier, Setup
from hatrack.methods.importance import added
from hatrack.methods.multi_head import AnchoredMethod
from hatrack.methods.proximal import Penalty, PenaltySettings
from hatrack.streams import Task
from hatrack.support.ranges import require_range

__all__ = ["SI", "PathIntegral", "SISettings"]


@dataclass(frozen=True)
class SISettings(PenaltySettings):
    """Settings of SI.

    They go with Adam at 0.001, as in the authors' notebook, which is therefore how the method trains. Steps of SGD
    differ in size, so that path and importance do, too. The loss is a mean over samples and the penalty a sum over
    weights, without a factor of one half, here as in the authors' code.

    Attributes:
        strength: c. 100 was best on validation samples of split CIFAR-10 and split Fashion-MNIST, three seeds each. The
            paper has 0.1 for permuted MNIST, as presets of that have; its authors' code 1 for split MNIST, and 0.01 and
            0.1 for CIFAR.
        damping: ξ, 0.1, above 0: keeps the importance of a weight that hardly moved within bounds. The authors'
            code has 0.001 for split MNIST and CIFAR.
        penalty: proximal, a step that is bounded at any strength; or explicit, a term of the loss as in the code.
    """

    strength: float = 100.0
    damping: float = 0.1

    def __post_init__(self) -> None:
        require_range(self, "damping", above=0)


class PathIntegral(nn.Module):
    """Share of each parameter in lowering the loss along its way: ``ω = Σ over steps of −gradient · movement`` (Eq. 3).

    A module with buffers, so that whoever goes back to earlier weights can take ω along.

    Args:
        parameters: what moves, by name.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self._slots = {name: f"omega{index}" for index, name in enumerate(parameters)}  # a buffer's name has no dots
        for name, slot in self._slots.items():
            self.register_buffer(slot, torch.zeros_like(parameters[name].detach()))

    def __getitem__(self, name: str) -> Tensor:
        value = getattr(self, self._slots[name])
        assert isinstance(value, Tensor)
        return value


class SI(AnchoredMethod):
    """Penalises ``c Σ Ω (θ − θ*)²`` (Zenke et al., Eq. 4).

    Ω sums ``ω / (Δ² + ξ)`` over tasks (Eq. 5), Δ being how far a weight moved in the task. As in the authors' code, an
    Ω below 0 is set to 0.
    """

    name = "si"
    description = "synaptic intelligence: weights that lowered the loss on their way move less"
    source = "Zenke et al., ICML 2017"
    capturable = True
    settings_type = SISettings
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001})
    earlier = Earlier({"penalty": Penalty.EXPLICIT, "strength": 0.1}, {})
    # The authors' code has 0.01, 0.1 and 1 for permuted MNIST.
    grid = MappingProxyType({"strength": (0.01, 0.1, 1.0, 10.0, 100.0)})

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.path = PathIntegral(self.shared_parameters())
        self._start: dict[str, Tensor] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def begin_task(self, task: Task) -> None:
        """Start the path where the weights are."""
        super().begin_task(task)
        self.path = PathIntegral(self.shared_parameters())
        self._start = self.copy_of_shared()

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the network, and the path, which belongs to the weights of the best epoch."""
        return [self.network, self.path]

    @torch.no_grad()
    def before_step(self) -> None:
        """Remember weights and gradients; no step is changed."""
        self._before = {}
        for name, parameter in self.shared_parameters().items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.clone()
            if self.importance and self.is_explicit:
                # Only the task's own loss counts: take the penalty's gradient, which is known, off again. That is exact
                # unless the gradient was clipped, which the paper does not do.
                gradient -= 2 * self.scale() * self.importance[name] * (parameter - self.anchor[name])
            self._before[name] = (parameter.detach().clone(), gradient)

    @torch.no_grad()
    def after_step(self) -> None:
        """Add the step to the path, with the way that the penalty drew the weights."""
        parameters = self.shared_parameters()
        for name, (before, gradient) in self._before.items():
            self.path[name].sub_(gradient * (parameters[name] - before))
        self._before = {}

    @at_once()
    def end_task(self, task: Task) -> None:
        """Turn the path into importance, and add it to that of earlier tasks."""
        moved = {name: value - self._start[name] for name, value in self.copy_of_shared().items()}
        new = {name: self.path[name] / (by.square() + self.settings.damping) for name, by in moved.items()}
        self.hold({name: value.clamp_min(0.0) for name, value in added(self.importance, new).items()})
