"""The networks of ``tests/fixtures``: how they are built, trained and asked, by old code and by this.

``python tests/support/old_networks.py FOLDER NAME...`` writes them and what they say; a README there says how.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, WeightMaskedNetwork
from hatrack.masks import Embedding, Magnitude, Unmasked
from hatrack.support.environment import describe_environment

CLASSES = 3
SAID = "said.safetensors"
"""The file of inputs, by the network's name, and logits, by its name and the task's; with where they were computed."""


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 9), nn.ReLU())


def conv() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 2), nn.BatchNorm2d(8), nn.PReLU(8), nn.Flatten(), nn.Linear(32, 10), nn.ReLU()),
    )


class Attentive(nn.Module):
    """Fused attention with several heads, and with a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.single = nn.MultiheadAttention(8, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.lift(x))
        return torch.tanh(self.single(x, x, x)[0].mean(1))


@dataclass(frozen=True)
class OldNetwork:
    """A network of masks with two tasks and a third one in training."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kind: type[HATNetwork] | type[WeightMaskedNetwork]
    settings: dict[str, Any] = field(default_factory=dict)
    grows: bool = False

    def samples(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(16, *self.shape, generator=generator)
        return x, torch.randint(0, CLASSES, (16,), generator=generator)

    def made(self) -> HATNetwork | WeightMaskedNetwork:
        torch.manual_seed(0)
        net = self.kind(self.build(), torch.zeros(2, *self.shape), **self.settings)
        for seed, task in enumerate(("first", "second.ü")):
            learn(net, task, *self.samples(seed))
            net.calibrate(task, *self.samples(seed))
            if self.grows and seed == 0:
                net.grow({"0": 2}, generator=torch.Generator().manual_seed(0))
        net.add_task("open", CLASSES)
        return net


NETWORKS = {
    "hat-conv": OldNetwork(conv, (2, 8, 8), HATNetwork),
    "hat-mlp": OldNetwork(mlp, (5,), HATNetwork, grows=True),
    "hat-soft": OldNetwork(mlp, (5,), HATNetwork, {"hard": False}),
    "pmask": OldNetwork(mlp, (5,), WeightMaskedNetwork, {"source": Embedding(s_max=100.0)}, grows=True),
    "packnet": OldNetwork(
        conv, (2, 8, 8), WeightMaskedNetwork, {"source": Magnitude(), "unmasked": Unmasked.FIRST_TASK}
    ),
}

OF_LATER_COMMITS = {"hat-attention": OldNetwork(Attentive, (4, 3), HATNetwork)}
"""Networks of which the oldest folders have no files."""


def learn(net: HATNetwork | WeightMaskedNetwork, task: str, x: Tensor, y: Tensor) -> None:
    if task not in net.task_names:
        net.add_task(task, CLASSES)
    net.train()
    optimizer = net.protect(torch.optim.SGD(net.parameters(), lr=0.05))
    for step in range(6):
        net.anneal((step + 1) / 6)
        optimizer.zero_grad()
        (F.cross_entropy(net(x, task), y) + 0.1 * net.regularization()).backward()
        optimizer.step()
    net.consolidate(task)


def logits(net: HATNetwork | WeightMaskedNetwork, task: str, x: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        said: Tensor = net(x, task)
    return said


def here() -> dict[str, Any]:
    """Facts about the environment that the bits of logits depend on."""
    return {key: describe_environment()[key] for key in ("torch", "processor", "threads", "cpu_capability")}


def main(folder: Path, *names: str) -> None:
    torch.set_num_threads(1)
    said, networks = {}, NETWORKS | OF_LATER_COMMITS
    for name in names or NETWORKS:
        network = networks[name]
        net = network.made()
        net.save(folder / f"{name}.hat")
        said[name] = network.samples(99)[0][:4].clone()
        for task in net.task_names[:2]:
            said[f"{name} {task}"] = logits(net, task, said[name])
    safetensors.torch.save_file(said, folder / SAID, {"environment": json.dumps(here())})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
