"""Effect of depth on masks: are they hard by the end of training, how much do tasks use, and do they learn as well?

For plain and residual stacks of dense layers of equal width, on the first tasks of split Fashion-MNIST.

python benchmarks/depth.py [--seeds 3] [--out benchmarks/results/depth.json]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import torch
from recording import write_record
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, with_progress
from hatrack.backbones import initialize_xavier
from hatrack.streams import StreamOptions, Task, build_stream
from hatrack.support.environment import describe_environment

WIDTH, TASKS, EPOCHS, LIMIT, BATCH, C, LR, S_MAX = 100, 3, 10, 2000, 64, 0.75, 0.05, 400.0
DEPTHS = (1, 2, 4, 8, 16)


class Residual(nn.Module):
    """Two dense layers beside a shortcut, which they leave as it is at first: deep stacks are stable then."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.relu(self.inner(x)))


def stack(kind: str, depth: int) -> nn.Module:
    """A backbone with so many dense layers of WIDTH units; a residual block counts as two, behind a first layer."""
    first = [nn.Flatten(), nn.Linear(784, WIDTH), nn.ReLU()]
    if kind == "residual":
        return nn.Sequential(*first, *(Residual() for _ in range(depth // 2)))
    return nn.Sequential(*first, *(layer for _ in range(depth - 1) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    initialize_xavier(model, generator)
    for module in model.modules():
        if isinstance(module, Residual):
            nn.init.zeros_(module.outer.weight)


def learn(net: HATNetwork, task: Task, generator: torch.Generator) -> tuple[float, float]:
    """Train and consolidate a task.

    Returns:
        Share of units whose gate is still between 1 % and 99 % at the largest scale, and the test accuracy with the
        gates as they are in training, before they become 0 or 1.
    """
    x, y = task.train.load()
    net.add_task(task.name, task.num_classes, generator=generator)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters(task.name), lr=LR))
    net.train()
    for _ in range(EPOCHS):
        for progress, rows in with_progress(torch.randperm(len(x), generator=generator).split(BATCH)):
            net.anneal(progress)
            loss = F.cross_entropy(net(x[rows], task.name), y[rows]) + C * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.anneal(1.0)
    gates = torch.sigmoid(S_MAX * net.tasks[-1].embedding.detach())
    undecided = float(((gates > 0.01) & (gates < 0.99)).float().mean())
    soft = accuracy(net, task)
    net.consolidate(task.name)
    return undecided, soft


def without_masks(kind: str, depth: int, task: Task, seed: int) -> float:
    """Test accuracy of a network of its own, trained likewise on one task without masks."""
    x, y = task.train.load()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(stack(kind, depth), nn.Linear(WIDTH, task.num_classes))
    initialize(model, generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    x, y = task.test.load()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@torch.no_grad()
def accuracy(net: HATNetwork, task: Task) -> float:
    x, y = task.test.load()
    return float((net(x, task.name).argmax(1) == y).float().mean())


def overlap(masks: list[Tensor]) -> float:
    """Mean over pairs of tasks: units that both use, as a share of those that either uses."""
    pairs = itertools.combinations(masks, 2)
    return statistics.mean(float((a & b).sum() / (a | b).sum()) for a, b in pairs)


def measure(kind: str, depth: int, seed: int) -> dict[str, float]:
    stream = build_stream("split-fashion-mnist", StreamOptions(seed, validation=0.15, limit=LIMIT), num_tasks=TASKS)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone = stack(kind, depth)
    initialize(backbone, generator)
    net = HATNetwork(backbone, torch.zeros(1, 1, 28, 28), s_max=S_MAX)
    undecided, soft = zip(*(learn(net, task, generator) for task in stream), strict=True)
    net.eval()
    masks = [torch.cat(list(net.masks(task.name).values())) for task in stream]
    return {
        "undecided": statistics.mean(undecided),
        "accuracy_soft": statistics.mean(soft),
        "accuracy": statistics.mean(accuracy(net, task) for task in stream),
        "accuracy_without_masks": statistics.mean(without_masks(kind, depth, task, seed) for task in stream),
        "units_first_task": float(masks[0].float().mean()),
        "units_all_tasks": net.capacity().units,
        "overlap": overlap(masks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for kind, depth in itertools.product(("plain", "residual"), DEPTHS):
        if kind == "residual" and depth == 1:
            continue  # the plain one
        runs = [measure(kind, depth, seed) for seed in range(options.seeds)]
        mean = {key: round(statistics.mean(run[key] for run in runs), 4) for key in runs[0]}
        rows.append({"kind": kind, "depth": depth, **mean})
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.out:
        settings = {"width": WIDTH, "tasks": TASKS, "epochs": EPOCHS, "limit": LIMIT, "batch": BATCH, "c": C, "lr": LR}
        record = {
            "command": f"python benchmarks/depth.py --seeds {options.seeds}",
            "settings": {**settings, "s_max": S_MAX},
            "results": rows,
            "environment": describe_environment(),
        }
        write_record(options.out, record, indent=2)


if __name__ == "__main__":
    main()
