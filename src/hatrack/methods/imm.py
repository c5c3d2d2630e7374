"""Incremental moment matching: a network for each task, merged into one for prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from hatrack.methods.at_once import at_once
from hatrack.methods.base import Earlier, Setup, joined
from hatrack.methods.importance import Fisher, added, fisher_diagonal
from hatrack.methods.multi_head import AnchoredMethod, MultiHeadNetwork
from hatrack.methods.proximal import Penalty, PenaltySettings
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task

__all__ = ["IMMMean", "IMMMeanSettings", "IMMMode", "IMMModeSettings"]

LEAST_WEIGHT = 1e-20
"""Added to every Fisher diagonal, so that weights that matter to no task become their plain mean."""


@dataclass(frozen=True)
class IMMMeanSettings(PenaltySettings):
    """Settings of mean-IMM.

    Attributes:
        strength: λ of the L2-transfer, how closely a task's weights stay to those of the task before. 1 was best on
            validation samples of split CIFAR-10 and split Fashion-MNIST, three seeds each; the HAT paper has 0.0001.
        penalty: proximal, a step that is bounded at any strength; or explicit, a term of the loss as in the paper.
    """

    strength: float = 1.0


@dataclass(frozen=True)
class IMMModeSettings(PenaltySettings):
    """Settings of mode-IMM, with the value that the HAT paper chose.

    Attributes:
        strength: λ of the L2-transfer, how closely a task's weights stay to those of the task before.
        fisher: estimate of the Fisher information; true, sampled, batches, or authors. Its scale does not matter.
        penalty: proximal, a step that is bounded at any strength; or explicit, a term of the loss as in the paper.
    """

    strength: float = 1.0
    fisher: Fisher = Fisher.TRUE


class IMMMean(AnchoredMethod):
    """Predicts with the mean of the tasks' weights (mean-IMM of Lee et al., with equal ratios).

    Each task starts from the weights of the task before, not from the merged ones, and stays near them by
    ``λ/2 ‖θ − θ_before‖²`` (their L2-transfer), so that the solutions lie where their mean is one, too. The
    merged network is another one, and :meth:`predict` uses that. Heads belong to one task and are not merged.

    Batch norms: weights and biases are merged as all others. Running statistics are merged to their mean over tasks:
    gathering them anew for the merged weights would take the data of earlier tasks, and those of the last task alone
    would fit that one only.
    """

    name = "imm-mean"
    description = "incremental moment matching, mean: predicts with the mean of the weights of all tasks"
    source = "Lee et al., NeurIPS 2017"
    capturable = True
    settings_type: ClassVar[type] = IMMMeanSettings
    earlier = Earlier({"penalty": Penalty.EXPLICIT, "strength": 1e-4})
    grid = MappingProxyType({"strength": (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)})

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.merged: MultiHeadNetwork | None = None

    def scale(self) -> float:
        """Return λ/2."""
        return super().scale() / 2

    @at_once()
    def end_task(self, task: Task) -> None:
        """Merge the task's weights into those for prediction, and tie the next task to them."""
        shares = self.shares(task)
        earlier, self.merged = self.merged, self.network.frozen_copy()
        if earlier is not None:
            even = torch.tensor(1 / len(self.network.task_names), device=self.setup.device)
            old = _parameters_and_buffers(earlier)
            with torch.no_grad():
                for name, value in _parameters_and_buffers(self.merged).items():
                    if value.is_floating_point():  # counts of batches stay
                        value.copy_(torch.lerp(old[name], value, shares.get(name, even).to(value.dtype)))
        self.hold()

    def shares(self, task: Task) -> Mapping[str, Tensor]:
        """Measure the share of the new task in each merged parameter; 1/t for one that is not named."""
        return {}

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Return the logits of the merged network."""
        return (self.merged or self.network)(x, task)

    def extra_state(self) -> dict[str, Tensor]:
        """Return what ties the weights, and the merged ones."""
        merged = {} if self.merged is None else self.merged.backbone.state_dict()
        return {**super().extra_state(), **joined({"merged": merged})}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`extra_state` gave."""
        super().load_extra_state(state)
        merged = part_of(state, "merged.")
        if merged:
            self.merged = self.network.frozen_copy()
            self.merged.backbone.load_state_dict(merged)


class IMMMode(IMMMean):
    """Predicts with the tasks' weights averaged by their Fisher information: ``Σ F_t θ_t / Σ F_t`` (Lee et al.).

    Everything else is as in :class:`IMMMean`.
    """

    name = "imm-mode"
    description = "incremental moment matching, mode: predicts with the mean of all tasks' weights by their Fisher"
    settings_type: ClassVar[type] = IMMModeSettings
    training = MappingProxyType({"clip_norm": 1000.0})
    earlier = Earlier({"penalty": Penalty.EXPLICIT}, {})
    grid = MappingProxyType({"strength": (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)})
    kept = (*IMMMean.kept, "fisher")

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.fisher: dict[str, Tensor] = {}

    def shares(self, task: Task) -> Mapping[str, Tensor]:
        """Measure the Fisher information of the new task, and divide it by that of all, which is kept."""
        generator = self.setup.generator("fisher", task.name)
        measured = fisher_diagonal(self.network, task, self.settings.fisher, generator)
        new = {name: value + LEAST_WEIGHT for name, value in measured.items()}
        self.fisher = added(self.fisher, new)
        return {name: value / self.fisher[name] for name, value in new.items()}


def _parameters_and_buffers(network: MultiHeadNetwork) -> dict[str, Tensor]:
    """Return parameters and buffers of the backbone by name, each once, whatever shares it."""
    return {**dict(network.backbone.named_parameters()), **dict(network.backbone.named_buffers())}
