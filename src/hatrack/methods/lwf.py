"""Learning without forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.methods.base import Earlier
from hatrack.methods.multi_head import DistilledMethod, MultiHeadNetwork
from hatrack.objectives import Classification
from hatrack.support.ranges import require_range

__all__ = ["LWF", "LWFSettings", "distillation"]


@dataclass(frozen=True)
class LWFSettings:
    """Settings of LwF.

    Both the new task's loss and the distillation are means over samples, as in the HAT authors' code; the distillation
    is summed over old tasks, so that it weighs more the more of them there are.

    Attributes:
        strength: λ, the weight of the old tasks; 2 as in the HAT paper, where the method's own paper has 1.
        temperature: T, above 0: the larger, the more small probabilities count; 2 as in the method's own paper, which
            was better on validation samples than the HAT paper's 1 in five of six runs.
        smoothing: ε, which the HAT authors' code adds to the new network's probabilities, shared out among the classes:
            an answer that is surely wrong costs at most about −log(ε / classes), and has next to no gradient.
        matched_dropout: whether features of the old network are dropped as those of the new one are. False asks the
            new network to say under dropout what the old one says without, as the HAT authors' code does: a network
            that has not moved is pushed away from where it is, the more the larger λ is (see the recorded strengths).
    """

    strength: float = 2.0
    temperature: float = 2.0
    smoothing: float = 1e-5
    matched_dropout: bool = True

    def __post_init__(self) -> None:
        require_range(self, "temperature", above=0)
        require_range(self, "smoothing", least=0, below=1)


def distillation(logits: Tensor, targets: Tensor, temperature: float, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy between two networks' class probabilities at a temperature (Li and Hoiem).

    Probabilities raised to 1/T and normalised are the softmax of the logits divided by T.

    Args:
        logits: of the network in training, ``(N, classes)``.
        targets: logits of the old network, of the same shape; no gradient flows there.
        temperature: T.
        smoothing: added to the probabilities of the network in training, shared out among the classes; at least 0.

    Returns:
        Mean over the samples, a scalar.
    """
    wanted = F.softmax(targets.detach() / temperature, dim=1)
    if smoothing == 0.0:
        return -(wanted * F.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()
    probabilities = F.softmax(logits / temperature, dim=1) + smoothing / logits.shape[1]
    return -(wanted * (probabilities / (1 + smoothing)).log()).sum(dim=1).mean()


class LWF(DistilledMethod):
    """Adds, for every old head, the distance of its answers on the new data from those of the old network.

    The old network answers batch by batch, under the dropout of the new one. As in the HAT authors' code the new head
    has no warm-up, which its paper has.
    """

    name = "lwf"
    description = "learning without forgetting: old heads are to answer on new data as they did before"
    source = "Li and Hoiem, ECCV 2016"
    objectives = (Classification,)
    settings_type = LWFSettings
    training = MappingProxyType({"clip_norm": 100.0})
    earlier = Earlier({"smoothing": 0.0, "matched_dropout": False, "temperature": 1.0}, {})
    grid = MappingProxyType({"strength": (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0), "temperature": (0.5, 1.0, 2.0, 4.0)})

    def distance(self, old: MultiHeadNetwork, features: Tensor, old_features: Tensor) -> Tensor:
        """Return the distillation of all old heads, summed."""
        temperature, smoothing = self.settings.temperature, self.settings.smoothing
        each = [
            distillation(self.network.head(task)(features), old.head(task)(old_features), temperature, smoothing)
            for task in old.task_names
        ]
        return torch.stack(each).sum()
