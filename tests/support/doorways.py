"""Networks with several inputs, results that hold their features, and features along several axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hatrack import HATNetwork, WeightMaskedNetwork
from hatrack.support.inputs import tensors_in
from support.helpers import mode

WORDS, LENGTH, WIDTH = 23, 6, 16


class Tokens(nn.Module):
    """A small transformer that takes tokens, a padding mask, vectors beside them and a flag, and gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True)
        self.beside, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 12)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, beside: Tensor | None = None, *, pool: bool = True
    ) -> dict[str, Tensor]:
        h = self.table(ids)
        hidden = None if mask is None or bool(mask.all()) else mask == 0
        h = self.encoder(h, src_key_padding_mask=hidden)
        if beside is not None:
            h = h + self.beside(beside).unsqueeze(1)
        h = torch.relu(self.out(h))
        kept = torch.ones_like(h[..., :1]) if mask is None else mask.unsqueeze(-1).to(h)
        pooled = (h * kept).sum(1) / kept.sum(1).clamp_min(1)
        return {"tokens": h, "pooled": pooled} if pool else {"tokens": h}


class Pair(nn.Module):
    """A network of two inputs, given by position."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, WIDTH), nn.Linear(5, WIDTH), nn.Linear(WIDTH, 12)

    def forward(self, left: Tensor, right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.left(left) + self.right(right[0] * right[1]))
        return left, torch.relu(self.out(h))


class Maps(nn.Module):
    """A convolutional network that gives a map of features for every place."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.up = nn.Conv2d(2, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ConvTranspose2d(12, 10, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.up(torch.relu(self.norm(self.down(x)))))


class SequenceFirst(nn.Module):
    """A network whose samples lie along the second axis of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.out(torch.relu(self.enter(x)).mean(0)))


def tokens(samples: int, generator: torch.Generator) -> dict[str, Any]:
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (samples, 1), generator=generator)).long()
    return {
        "ids": torch.randint(WORDS, (samples, LENGTH), generator=generator),
        "mask": mask,
        "beside": torch.randn(samples, 3, generator=generator),
        "pool": True,
    }


def pair(samples: int, generator: torch.Generator) -> Any:
    def draw(width: int) -> Tensor:
        return torch.randn(samples, width, generator=generator)

    return draw(4), (draw(5), draw(5))


@dataclass(frozen=True)
class Doorway:
    """A network, the arguments that say how it is called and read, and samples for it.

    Attributes:
        build: builds the backbone.
        samples: draws a batch.
        options: keyword arguments of the network of tasks.
        features: shape of the features of one sample.
    """

    build: Callable[[], nn.Module]
    samples: Callable[[int, torch.Generator], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[int, ...] = (12,)


def pooled(output: Any) -> Tensor:
    """Return the mean over tokens, as a function for ``features``."""
    mean: Tensor = output["tokens"].mean(1)
    return mean


DOORWAYS = {
    "mapping": Doorway(Tokens, tokens, {"features": "pooled"}),
    "function": Doorway(Tokens, tokens, {"features": pooled}),
    "token labels": Doorway(Tokens, tokens, {"features": "tokens"}, (LENGTH, 12)),
    "tuple": Doorway(Pair, pair, {"features": 1}),
    "maps": Doorway(Maps, lambda n, g: torch.randn(n, 2, 8, 8, generator=g), {"unit_axis": 1}, (10, 8, 8)),
    "sequence first": Doorway(SequenceFirst, lambda n, g: torch.randn(5, n, 4, generator=g), {"batch_axis": 1}),
}


CLASSES = 3
KINDS = {"units": HATNetwork, "weights": WeightMaskedNetwork}


def batch(door: Doorway, samples: int, seed: int = 0) -> Any:
    return door.samples(samples, torch.Generator().manual_seed(seed))


def attach(kind: str, door: Doorway) -> Any:
    torch.manual_seed(0)
    return KINDS[kind](door.build(), batch(door, 2), **door.options)


def learn(net: Any, task: str, door: Doorway, head: nn.Module | None = None, steps: int = 3) -> Any:
    """Learn a task and consolidate it; returns a batch of it."""
    net.add_task(task, head=head) if head is not None else net.add_task(task, CLASSES)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=1e-2, weight_decay=0.1))
    x = batch(door, 6, seed=len(net.task_names))
    for step in range(steps):
        net.anneal(step / (steps - 1))
        outputs = list(tensors_in(net(x, task)))
        loss = sum((each - 1).square().mean() for each in outputs) + 0.1 * net.regularization()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.consolidate(task)
    return x


def answer(net: Any, x: Any, task: Any) -> Any:
    with torch.no_grad(), mode(net, False):
        return net(x, task)
