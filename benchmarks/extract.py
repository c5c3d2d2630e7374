"""Savings of extracting a task: time at batch 64 and size, against the whole gated network, in one thread.

python benchmarks/extract.py RUN [--repetitions 40] [--out benchmarks/results/extract.json]

RUN is the folder of a finished `hatrack run split-fashion-mnist --method hat`, whose network has 2×2000 units. The
AlexNet and the ResNet-18 are not trained: their tasks use random shares of the units, on which time and size depend.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hatrack
from hatrack import HATNetwork
from hatrack.backbones import MLP, AlexNet, ResNet18
from hatrack.support.environment import describe_environment

BATCH = 64


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def measure(net: HATNetwork, task: str, repetitions: int) -> dict[str, Any]:
    """Median times of interleaved repetitions, and sizes."""
    net.eval()
    compact = net.extract(task)
    summary = compact.summary
    assert summary is not None
    x = torch.randn(BATCH, *net.example_shape[1:])
    pairs = []
    for repetition in range(-3, repetitions):
        pair = seconds_of(lambda: net(x, task)), seconds_of(lambda: compact(x))
        if repetition >= 0:
            pairs.append(pair)
    gated, extracted = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "units": sum(summary.units.values()) / sum(summary.full_units.values()),
        "units_by_group": dict(summary.units),
        "parameters": summary.parameters,
        "parameter_share": round(summary.parameters / summary.full_parameters, 4),
        "flop_share": round(summary.flops / summary.full_flops, 4),
        "gated_ms": round(1e3 * gated, 3),
        "extracted_ms": round(1e3 * extracted, 3),
        "speedup": round(gated / extracted, 2),
        "deviation": summary.deviation,
        "whole": dict(summary.whole),
    }


def with_random_task(backbone: nn.Module, shape: tuple[int, ...], share: float) -> HATNetwork:
    net = HATNetwork(backbone, torch.zeros(1, *shape))
    generator = torch.Generator().manual_seed(0)
    units = net.units.num_units
    on = torch.rand(units, generator=generator) < share
    net.add_task("task", 10, embedding=torch.where(on, 1.0, -1.0))
    net.consolidate("task")
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = hatrack.load(arguments.run / "net.hat", MLP((1, 28, 28), dropout=(0.2, 0.5)))
    assert isinstance(net, HATNetwork)
    command = json.loads((arguments.run / "run.json").read_text())["command"]
    trained = {task: measure(net, task, arguments.repetitions) for task in net.task_names}
    results: dict[str, Any] = {
        "trained with": command,
        "mlp 2x2000, split-fashion-mnist": trained,
        "median speedup": statistics.median(each["speedup"] for each in trained.values()),
    }
    for name, build in (("alexnet", AlexNet), ("resnet18", ResNet18)):
        for share in (0.25, 0.5):
            torch.manual_seed(0)
            wide = with_random_task(build(), (3, 32, 32), share)
            results[f"{name}, random {share:.0%} of the units"] = measure(
                wide, "task", max(5, arguments.repetitions // 4)
            )
    report = {"batch": BATCH, "results": results, "environment": describe_environment(torch.device("cpu"))}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
