"""Five small tables, one after the other, on narrow networks with Adam: does it help that c waits for what is learned?

python benchmarks/narrow.py [--seeds 0,1,2,3,4,5] [--out benchmarks/results/narrow.json]

Every task has 200 rows of six normal numbers: rings (the first two far from their origin), xor (their signs differ), a
plane, a choice of three (which of three is furthest from 0), and a plane of which 40 % of the labels are exchanged, in
the 2,000 rows that it is tested with as well. The order of the tasks is drawn with the seed. Beside it: a network for
each task, trained by the same loop, without masks that cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from recording import write_record
from torch import Tensor, nn

from hatrack import HATSettings, Learner
from hatrack.methods.masked import Room
from hatrack.support.environment import describe_environment
from hatrack.train import TrainingSettings
from hatrack.train.settings import OptimizerKind

ROWS, TESTED, COLUMNS = 200, 2000, 6

Labels = Callable[[Tensor, torch.Generator], Tensor]


def plane(x: Tensor, generator: torch.Generator) -> Tensor:
    return (x @ torch.linspace(-1, 1, COLUMNS) + 0.3 * torch.randn(len(x), generator=generator) > 0).long()


def weak(x: Tensor, generator: torch.Generator) -> Tensor:
    y = plane(x, generator)
    return torch.where(torch.rand(len(x), generator=generator) < 0.4, 1 - y, y)


TASKS: Mapping[str, Labels] = {
    "rings": lambda x, _: (x[:, :2].square().sum(1) > 1.4).long(),
    "xor": lambda x, _: (x[:, 0] * x[:, 1] < 0).long(),
    "plane": plane,
    "three": lambda x, _: x[:, :3].abs().argmax(1),
    "weak": weak,
}

TRAININGS: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "2x30, lr 0.001, 60 epochs of 11 steps": (30, {"lr": 0.001, "epochs": 60, "batch_size": 16}),
    "2x30, lr 0.003, 20 epochs of 11 steps": (30, {"lr": 0.003, "epochs": 20, "batch_size": 16}),
    "2x30, lr 0.01, 20 epochs of 11 steps": (30, {"lr": 0.01, "epochs": 20, "batch_size": 16}),
    "2x30, lr 0.01, 20 epochs of 3 steps": (30, {"lr": 0.01, "epochs": 20, "batch_size": 64}),
    "2x100, lr 0.001, 60 epochs of 11 steps": (100, {"lr": 0.001, "epochs": 60, "batch_size": 16}),
    "2x100, lr 0.01, 20 epochs of 11 steps": (100, {"lr": 0.01, "epochs": 20, "batch_size": 16}),
}


def drawn(task: str, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, COLUMNS, generator=generator)
    return x, TASKS[task](x, generator)


def learner(width: int, training: Mapping[str, Any], settings: HATSettings, seed: int) -> Learner:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Linear(COLUMNS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    adam = TrainingSettings(optimizer=OptimizerKind.ADAM, **training)
    return Learner(backbone, (COLUMNS,), settings=settings, training=adam, seed=seed)


def measured(
    width: int, training: Mapping[str, Any], settings: HATSettings, seed: int, *, apart: bool
) -> dict[str, Any]:
    """Learn the tasks in one network, or each in one of its own; accuracies by task in the order of learning."""
    order = [list(TASKS)[i] for i in torch.randperm(len(TASKS), generator=torch.Generator().manual_seed(seed))]
    one, found = learner(width, training, settings, seed), {}
    tests = {}
    for task in order:
        generator = torch.Generator().manual_seed(10 * seed + list(TASKS).index(task))
        train, tests[task] = drawn(task, ROWS, generator), drawn(task, TESTED, generator)
        one = learner(width, training, settings, seed) if apart else one
        one.fit(task, train)
        found[task] = one.evaluate(task, tests[task])
    again = found if apart else {task: one.evaluate(task, tests[task]) for task in order}
    assert again == found, "nothing is forgotten"
    return {"accuracies": found, "used": None if apart else one.network.usage()}


def row(name: str, seeds: list[int], width: int, training: Mapping[str, Any], **ways: Any) -> dict[str, Any]:
    runs = [measured(width, training, seed=seed, **ways) for seed in seeds]
    means = [statistics.fmean(run["accuracies"].values()) for run in runs]
    return {
        "training": name,
        "accuracy": {"mean": round(100 * statistics.fmean(means), 2), "sd": round(100 * statistics.stdev(means), 2)},
        "by_task": {task: round(100 * statistics.fmean(run["accuracies"][task] for run in runs), 1) for task in TASKS},
        "used": None if ways["apart"] else round(statistics.fmean(run["used"] for run in runs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4,5")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "narrow.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(switched off|answers the class)")  # what is measured here
    ways: Mapping[str, tuple[HATSettings, bool]] = {
        "hat, c by the epochs alone (learned_at=0)": (HATSettings(learned_at=0.0), False),
        "hat": (HATSettings(), False),
        "hat, c=0.1": (HATSettings(c=0.1), False),
        "hat, capacity=grow": (HATSettings(capacity=Room.GROW), False),
        "a network per task, all units (c=0)": (HATSettings(c=0.0), True),
    }
    rows = []
    for name, (width, training) in TRAININGS.items():
        for way, (settings, apart) in ways.items():
            rows.append(
                {"way": way, **row(name, seeds_of(options.seeds), width, training, settings=settings, apart=apart)}
            )
            print(json.dumps(rows[-1]), flush=True)
    record = {
        "command": f"python benchmarks/narrow.py --seeds {options.seeds}",
        "environment": describe_environment(),
        "rows": rows,
    }
    write_record(options.out, record)


def seeds_of(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


if __name__ == "__main__":
    main()
