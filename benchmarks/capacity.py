"""Capacity of a small network over many tasks: when it is full, and what can be done about it.

30 tasks of permuted Fashion-MNIST, 2,000 images each, on two dense layers of 100 units. For every way to deal with
capacity: accuracy per task right after learning and at the end, and after every task the share in use and the size.

python benchmarks/capacity.py [--ways hat hat-grow] [--tasks 30] [--seeds 0,1,2] [--out FILE]

A file that is there already keeps the other ways that it holds. Settings of the ways with momentum were chosen on
validation samples (`validation=0.15`, `tested_on=validation`) with seed 100.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recording import command, write_record

from hatrack.experiments import RunRequest, TaskLearned, prepare, run
from hatrack.support.environment import describe_environment

TASKS = 30
"""Tasks of the recorded runs."""

SETTINGS = {"hidden": (100, 100), "limit": 2000, "epochs": 15, "s_max": 200.0, "c": 0.5}

STEPS: dict[str, Any] = {"scaled": "steps", "optimizer": "sgd", "lr": 0.05}
"""AdaHAT as HAT is trained; its authors scale gradients under Adam at 0.001."""

MOMENTUM: dict[str, Any] = {"momentum": 0.9, "lr": 0.02}

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "hat": ("hat", {}),
    "hat-per-task": ("hat", {"conditioning": "per-task"}),
    "hat-momentum": ("hat", MOMENTUM),
    "hat-inputs": ("hat", {"conditioning": "per-task", "gate_inputs": True, "c": 1.5}),
    "hat-inputs-momentum": ("hat", {"conditioning": "per-task", "gate_inputs": True, "c": 1.5, **MOMENTUM}),
    "hat-grow": ("hat", {"capacity": "grow"}),
    "hat-grow-more": ("hat", {"capacity": "grow", "growth_threshold": 0.4, "growth_share": 0.4}),
    "adahat": ("adahat", STEPS),
    "adahat-more": ("adahat", {**STEPS, "alpha": 1e-2}),
    "adahat-most": ("adahat", {**STEPS, "alpha": 1.0}),
    "adahat-authors": ("adahat", {}),
}
"""For every way the method and what it sets, beside SETTINGS."""


def follow(method: str, settings: dict[str, Any], tasks: int, seed: int, data: Path | None) -> dict[str, Any]:
    """Run one way, and record what a run's own file does not: capacity after every task."""
    overrides = {**SETTINGS, "num_tasks": tasks, **settings}
    prepared = prepare(RunRequest("permuted-fashion-mnist", method, seed, data=data, overrides=overrides))
    started, capacity = time.perf_counter(), []
    for event in run(prepared):
        if isinstance(event, TaskLearned):
            assert event.result.capacity is not None
            capacity.append({**event.result.capacity, "seconds": round(time.perf_counter() - started, 1)})
            learned = event.result.scores[-1][-1].value
            print(f"  task {event.index + 1}: {learned:.2%}, {event.result.capacity['units']:.0%} of the units in use")
    scores = prepared.result.scores
    after_learning = [row[-1].value for row in scores]
    at_end = [score.value for score in scores[-1]]
    return {
        "method": method,
        "settings": prepared.result.config,
        "accuracy_after_learning": after_learning,
        "accuracy_at_end": at_end,
        "average_after_learning": statistics.mean(after_learning),
        "average_at_end": statistics.mean(at_end),
        "average_after_learning_by_tens": [
            statistics.mean(after_learning[start : start + 10]) for start in range(0, len(after_learning), 10)
        ],
        "largest_change_of_an_old_accuracy": max(abs(a - b) for a, b in zip(after_learning, at_end, strict=True)),
        "capacity": capacity,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = arguments.out is not None and arguments.out.exists()
    content = json.loads(arguments.out.read_text()) if known else {"runs": {}}
    for way, seed in itertools.product(arguments.ways, arguments.seeds):
        name = f"{way}, seed {seed}" if seed else way
        name = name if arguments.tasks == TASKS else f"{name}, {arguments.tasks} tasks"
        print(name)
        method, settings = WAYS[way]
        found = follow(method, settings, arguments.tasks, seed, arguments.data)
        found["command"] = command()
        found["environment"] = describe_environment(torch.device("cpu"))
        content["runs"][name] = found
        if arguments.out is not None:
            write_record(arguments.out, content)
        size = found["capacity"][-1]["parameters"]
        print(f"  on average {found['average_at_end']:.2%}, {size} parameters, {found['seconds']} s")


if __name__ == "__main__":
    main()
