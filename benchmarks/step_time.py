"""Cost of a HAT step, as a ratio to the plain step: medians of interleaved repetitions in one process.

python benchmarks/step_time.py [--repetitions 60] [--only MLP] [--out benchmarks/results/step_time.json]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from recording import write_record
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork
from hatrack.backbones import MLP, AlexNet, ResNet18
from hatrack.support.environment import describe_environment

BATCH = 64

MakeOptimizer = Callable[..., torch.optim.Optimizer]


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def hat_step(net: HATNetwork, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, progress: float) -> None:
    net.anneal(progress)
    loss = F.cross_entropy(net(x, "third"), y) + 0.75 * net.regularization()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def at_third_task(
    backbone: nn.Module, shape: tuple[int, ...], make: MakeOptimizer
) -> tuple[HATNetwork, torch.optim.Optimizer]:
    """A network with two consolidated tasks, each of which uses the units that a normal embedding turns on."""
    net = HATNetwork(backbone, torch.zeros(1, *shape, device=next(backbone.parameters()).device))
    for name in ("first", "second"):
        net.add_task(name, num_classes=2)
        net.consolidate(name)
    net.add_task("third", num_classes=2)
    return net, net.protect(make(net.task_parameters("third")))


def measure(
    build: Callable[[], nn.Module], features: int, shape: tuple[int, ...], make: MakeOptimizer, repetitions: int
) -> dict[str, float]:
    """Median seconds of both steps, and the median of the ratios pair by pair.

    On a shared machine other processes take their turns in the middle of steps; processor time leaves that out. It is
    that of the thread that works, and says nothing with more than one.
    """
    x, y = torch.randn(BATCH, *shape), torch.randint(0, 2, (BATCH,))
    plain = nn.Sequential(build(), nn.Linear(features, 2))
    plain_optimizer = make(plain.parameters())
    net, optimizer = at_third_task(build(), shape, make)
    pairs = []
    for repetition in range(-3, repetitions):
        progress = (repetition % 10) / 9  # from soft to hard gates, as within an epoch
        seconds = []
        for step in (
            lambda: plain_step(plain, plain_optimizer, x, y),
            lambda progress=progress: hat_step(net, optimizer, x, y, progress),
        ):
            start, worked = time.perf_counter(), time.thread_time()
            step()
            seconds += [time.perf_counter() - start, time.thread_time() - worked]
        if repetition >= 0:
            pairs.append(seconds)
    plain_s, plain_cpu, hat_s, hat_cpu = (list(times) for times in zip(*pairs, strict=True))
    return {
        "plain_ms": round(1e3 * statistics.median(plain_s), 3),
        "hat_ms": round(1e3 * statistics.median(hat_s), 3),
        "ratio": round(statistics.median(b / a for a, b in zip(plain_s, hat_s, strict=True)), 3),
        "ratio_of_medians": round(statistics.median(hat_s) / statistics.median(plain_s), 3),
        "processor_time_ratio": round(statistics.median(b / a for a, b in zip(plain_cpu, hat_cpu, strict=True)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="networks whose names begin so")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    wide = (lambda: MLP((1, 28, 28), hidden=(2000, 2000), dropout=(0.2, 0.5)), 2000, (1, 28, 28))
    alexnet = (lambda: AlexNet((3, 32, 32)), 2048, (3, 32, 32))
    optimizers: dict[str, MakeOptimizer] = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
        "SGD, momentum, weight decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
        "AdamW, weight decay": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2),
    }
    resnet = (lambda: ResNet18((3, 32, 32)), 512, (3, 32, 32))
    networks = {"MLP 2×2000": wide, "AlexNet-like 32×32×3": alexnet, "ResNet-18 32×32×3": resnet}
    results = {}
    for network, spec in networks.items():
        if not network.startswith(options.only or ""):
            continue
        repetitions = options.repetitions if network != "ResNet-18 32×32×3" else max(1, options.repetitions // 5)
        for name, make in optimizers.items():
            figures = measure(*spec, make, repetitions)
            results[f"{network}, {name}"] = {"repetitions": repetitions, **figures}
            print(f"{network + ', ' + name:50} {figures}", flush=True)
    if options.out:
        command = f"python benchmarks/step_time.py --repetitions {options.repetitions} --threads {options.threads}"
        command += f" --only {options.only}" if options.only else ""
        record = {
            "command": command,
            "batch": BATCH,
            "results": results,
            "load": round(os.getloadavg()[0], 1),
            "environment": describe_environment(),
        }
        write_record(options.out, record, indent=2)


if __name__ == "__main__":
    main()
