"""Networks with masks of weights, for tests: the kinds of masks, backbones, optimizers, and the poison."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hatrack import (
    WeightMaskedNetwork,
)
from hatrack.backbones import MLP, AlexNet, ResNet18, ViT
from hatrack.masks import Embedding, Magnitude, NoWeights, Scores, Unmasked
from support.helpers import CLASSES, NETS, easy_task, logits, progress, raw_logits

KINDS: dict[str, dict[str, Any]] = {
    "pmask": {"source": Embedding(s_max=100.0)},
    "wsn": {"source": Scores(0.3)},
    "supsup": {"source": Scores(None), "conditioning": NoWeights()},
    "packnet": {"source": Magnitude(), "unmasked": Unmasked.FIRST_TASK},
}
"""Members of the family, as the parts that they are made of."""


class Recurrent(nn.Module):
    """Attention and a recurrent layer: weights that torch's own kernels read."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x + self.attention(x, x, x, need_weights=False)[0])[0][:, -1]


BACKBONES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP((6,), (32, 32), (0.1, 0.1)), (6,)),
    "alexnet": (lambda: AlexNet((3, 20, 20), (0.1, 0.1), width=1 / 8), (3, 20, 20)),
    "resnet18": (lambda: ResNet18((3, 12, 12), width=4), (3, 12, 12)),
    "vit": (lambda: ViT((3, 8, 8), width=12, depth=1, heads=2), (3, 8, 8)),
    "recurrent": (Recurrent, (5, 8)),
    "conv-bn": (NETS["conv-bn"].build, NETS["conv-bn"].shape),
    "tied": (NETS["residual"].build, NETS["residual"].shape),
}

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum-decay": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5),
}

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def attach(kind: str, backbone: str = "mlp", seed: int = 0, **settings: Any) -> WeightMaskedNetwork:
    torch.manual_seed(seed)
    build, shape = BACKBONES[backbone]
    network = build()
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.kaiming_normal_(module.weight)
    return WeightMaskedNetwork(network, torch.zeros(2, *shape), **{**KINDS[kind], **settings})


def train(net: WeightMaskedNetwork, task: str, x: Tensor, y: Tensor, optimizer: Optimizer, steps: int) -> None:
    net.train()
    for step in range(steps):
        net.anneal(progress(step))
        optimizer.zero_grad()
        (F.cross_entropy(net(x, task), y) + 0.1 * net.regularization()).backward()
        optimizer.step()


def learn(
    net: WeightMaskedNetwork, name: str, seed: int = 0, steps: int = 5, optimizer: str = "momentum-decay"
) -> tuple[Tensor, Tensor]:
    """Open, train, prune and retrain if that is how it is done, and consolidate a task; returns its samples."""
    x, y = easy_task(net.example_shape[1:], seed)
    net.add_task(name, CLASSES, generator=torch.Generator().manual_seed(seed))
    for phase in range(1 + isinstance(net.source, Magnitude)):
        if phase:
            net.settle(name)
        train(net, name, x, y, net.protect(OPTIMIZERS[optimizer](net.task_parameters(name))), steps)
    net.consolidate(name)
    return x, y


def assert_own_poison_harmless(net: WeightMaskedNetwork, samples: dict[str, Tensor]) -> None:
    """No bit of a task's logits depends on a weight outside of its masks, nor on what it has copies of."""
    for task, x in samples.items():
        poisoned, masks = copy.deepcopy(net), net.masks(task)
        with torch.no_grad():
            for name, parameter in poisoned.backbone.named_parameters():
                parameter.masked_fill_(~masks.get(name, torch.zeros_like(parameter, dtype=torch.bool)), 1e30)
        assert torch.equal(raw_logits(poisoned, x, task), logits(net, x, task)), task
