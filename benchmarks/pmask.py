"""PMASK beside the methods of its paper, on split CIFAR-10: five tasks of two classes.

On the AlexNet-like network with a fourth of its units, 1,000 pictures per task, 15 epochs. For every way accuracy after
every task and the share of the weights in use; and how PMASK depends on s_max and c. Apart from that what a step costs
on two dense layers of 2000, as a ratio to a plain step.

python benchmarks/pmask.py [--ways pmask sgd] [--seed 0] [--out benchmarks/results/pmask.json]
python benchmarks/pmask.py --ways --steps 20

A file that is there already keeps the other ways that it holds.
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
from torch.nn import functional as F

from hatrack import WeightMaskedNetwork
from hatrack.backbones import MLP
from hatrack.experiments import RunRequest, TaskLearned, prepare, run
from hatrack.support.environment import describe_environment

EXPERIMENT = "split-cifar10"
SETTINGS = {"width": 0.25, "limit": 1000, "epochs": 15}

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "pmask": ("pmask", {}),
    "sgd": ("sgd", {}),
    "sgd-adam": ("sgd", {"optimizer": "adam", "lr": 0.001}),
    "sgd-frozen": ("sgd-frozen", {}),
    "ewc": ("ewc", {}),
    "ewc-weak": ("ewc", {"fisher": "sampled", "strength": 50.0}),
    "pathnet": ("pathnet", {}),
    "pnn": ("pnn", {}),
    "pmask-grow": ("pmask", {"capacity": "grow"}),
    "pmask-ewc": ("pmask", {"ewc": 5000.0}),
    "pmask-s-max-50": ("pmask", {"s_max": 50.0}),
    "pmask-s-max-800": ("pmask", {"s_max": 800.0}),
    "pmask-c-0": ("pmask", {"c": 0.0}),
    "pmask-c-2.5": ("pmask", {"c": 2.5}),
}
"""For every way the method and what it sets, beside SETTINGS."""


def follow(method: str, settings: dict[str, Any], seed: int, data: Path | None) -> dict[str, Any]:
    """Run one way."""
    prepared = prepare(RunRequest(EXPERIMENT, method, seed, data=data, overrides={**SETTINGS, **settings}))
    started, processor, capacity = time.perf_counter(), time.process_time(), []
    for event in run(prepared):
        if isinstance(event, TaskLearned):
            capacity.append(event.result.capacity)
            print(f"  task {event.index + 1}: {', '.join(f'{s.value:.1%}' for s in event.result.scores[-1])}")
    result, reuse = prepared.result, prepared.method.reuse()
    metrics = result.metrics()
    hashes = [{row[task].logits_sha256 for row in result.scores[task:]} for task in range(len(result.scores))]
    return {
        "method": method,
        "settings": result.config,
        "tasks": [task.name for task in result.tasks],
        "accuracy": [[score.value for score in row] for row in result.scores],
        "average_accuracy": metrics["average_accuracy"],
        "forgetting": metrics["forgetting"],
        "old_logits_keep_every_bit": all(len(different) == 1 for different in hashes),
        "capacity": capacity,
        "reuse": None if reuse is None else reuse.tolist(),
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }


def step_times(make: Callable[..., torch.optim.Optimizer], repetitions: int) -> dict[str, float]:
    """Median processor time of a plain step and of PMASK's at its second task, and the median of their ratios."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 784), torch.arange(64) % 10
    plain = nn.Sequential(MLP((784,), (2000, 2000), (0.2, 0.5)), nn.Linear(2000, 10))
    net = WeightMaskedNetwork(MLP((784,), (2000, 2000), (0.2, 0.5)), torch.zeros(1, 784))
    net.add_task("first", 10)
    net.consolidate("first")
    net.add_task("second", 10)
    of_plain, of_net = make(plain.parameters()), net.protect(make(net.task_parameters("second")))
    pairs = []
    for repetition in range(-3, repetitions):
        net.anneal(repetition % 10 / 9)  # from soft to hard gates, as within an epoch
        seconds = []
        for optimizer, loss in (
            (of_plain, lambda: F.cross_entropy(plain(x), y)),
            (of_net, lambda: F.cross_entropy(net(x, "second"), y) + 0.75 * net.regularization()),
        ):
            started = time.process_time()
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            seconds.append(time.process_time() - started)
        if repetition >= 0:
            pairs.append(seconds)
    return {
        "repetitions": repetitions,
        "plain_ms": round(1e3 * statistics.median(a for a, _ in pairs), 1),
        "pmask_ms": round(1e3 * statistics.median(b for _, b in pairs), 1),
        "ratio": round(statistics.median(b / a for a, b in pairs), 2),
    }


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.001),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=0, help="time so many pairs of steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pmask.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"runs": {}}
    content["command"] = "python benchmarks/pmask.py"
    for way in arguments.ways:
        print(way)
        found = follow(*WAYS[way], arguments.seed, arguments.data)
        found["environment"] = describe_environment(torch.device("cpu"))
        content["runs"][way] = found
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
        print(
            f"  on average {found['average_accuracy']:.2%}, forgetting {found['forgetting']:.4f}, {found['seconds']} s"
        )
    if arguments.steps:
        times = {name: step_times(make, arguments.steps) for name, make in OPTIMIZERS.items()}
        content["step_time"] = {**times, "environment": describe_environment(torch.device("cpu"))}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
        print(times)


if __name__ == "__main__":
    main()
