"""Schedules of HAT's masks, measured: the paper's schedule and the one that settles masks, beside a network per task.

python benchmarks/schedules.py --data DATA [--seeds 0,1,2] [--settings mnist,demo] [--methods settled] [--runs DIR]
    [--out FILE]

Settings of a hundred to some thousand steps a task, with the experiment's SGD and with Adam. A run is `hatrack run`
with the settings that the record names; runs that are on disk are not made again, so that the command may be stopped,
and started twice. Settings and methods that are not asked for stay in the record as they are. What the schedule does
was chosen on validation samples (`tested_on=validation`) with the seeds 100 to 102; the record is of test samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from recording import write_record

from hatrack.experiments import RunRequest, prepare, run
from hatrack.experiments.results import RunResult
from hatrack.support.environment import describe_environment

SMALL = {"limit": 1000, "epochs": 12}
DEEP = {"dropout_early": 0.0, "dropout_late": 0.0, "initialization": "torch", "num_tasks": 3}
SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "demo": ("demo", {}),
    "mnist": ("split-mnist", {"limit": 1000, "validation": 0.15, "hidden": (200, 200), "epochs": 20}),
    "fashion-mnist": ("compression-fashion-mnist", {"limit": 2000, "width": 0.25, "epochs": 30}),
    "cifar10": ("split-cifar10", {**SMALL, "width": 0.25}),
    "cifar10-first": ("split-cifar10", {**SMALL, "width": 0.25, "num_tasks": 1}),
    "permuted-mnist": (
        "permuted-mnist-small",
        {"limit": 6000, "validation": 0.1, "batch_size": 10, "epochs": 5, "num_tasks": 5},
    ),
    "layers4-200": ("split-fashion-mnist", {**DEEP, "hidden": (64,) * 4, "limit": 200}),
    "layers8-4000": ("split-fashion-mnist", {**DEEP, "hidden": (64,) * 8, "limit": 4000}),
    "cifar10-resnet18": ("split-cifar10", {**SMALL, "network": "resnet18", "width": 0.25, "epochs": 8, "num_tasks": 3}),
}
"""Experiment and settings of its runs, by name."""

ADAM: Mapping[str, Any] = {"optimizer": "adam", "lr": 0.001}

GROWN: Mapping[str, Any] = {"capacity": "grow", "growth_threshold": 0.4, "growth_share": 0.5}
"""Layers of which less than two fifths are free get half of their width more before a task begins."""

GROWN_MORE: Mapping[str, Any] = {**GROWN, "growth_threshold": 0.7}
"""Layers of which less than seven tenths are free get half of their width more."""

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "independent": ("independent", {}),
    "paper": ("hat", {"schedule": "paper", "c": None, "embedding": None}),
    "settled": ("hat", {"schedule": "settled", "c": None, "embedding": None}),
    "independent-adam": ("independent", ADAM),
    "settled-adam": ("hat", {"schedule": "settled", "c": None, "embedding": None, **ADAM}),
    "grown-adam": ("hat", {"schedule": "settled", "c": None, "embedding": None, **ADAM, **GROWN}),
    "grown-more-adam": ("hat", {"schedule": "settled", "c": None, "embedding": None, **ADAM, **GROWN_MORE}),
    "light-adam": ("hat", {"schedule": "settled", "c": 0.5, "embedding": None, **ADAM}),
}
"""Method and its settings, by name; `c=none` is that of the schedule, whatever the experiment has."""


ASKED_FOR = ("cifar10-first", "light-adam")
"""Names of settings and methods that are made only where they are asked for."""


def by_default(names: Iterable[str]) -> list[str]:
    """Return the settings, or the methods, that are made where none are asked for."""
    return [name for name in names if name not in ASKED_FOR]


def beyond_the_default(rows: Mapping[str, Any]) -> str:
    """Return the options that ask for what a record holds where that is not made by default, with a leading space."""
    if set(rows) <= set(by_default(SETTINGS)):
        return ""
    methods = dict.fromkeys(method for row in rows.values() for method in row["methods"])
    return f" --settings {','.join(rows)} --methods {','.join(methods)}"


def finished(name: str, method: str, seed: int, runs: Path, data: Path) -> RunResult:
    """Make a run, or what is left of it."""
    experiment, common = SETTINGS[name]
    kind, own = METHODS[method]
    out = runs / name / method / f"seed{seed}"
    prepared = prepare(RunRequest(experiment, kind, seed, out, data, {**common, **own}))
    for _ in run(prepared):
        pass
    return prepared.result


def spread(values: list[float]) -> dict[str, float]:
    """Return mean and standard deviation over seeds, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(100 * statistics.fmean(values), 2), "sd": round(100 * deviation, 2)}


def row(results: list[RunResult]) -> dict[str, Any]:
    """Return what runs of one method reach: the first task and the last when they were learned, all in the end."""
    scores = [[[score.value for score in line] for line in result.scores] for result in results]
    used = [result.history[-1].used for result in results]
    sizes = [[history.capacity["parameters"] for history in result.history if history.capacity] for result in results]
    times = statistics.fmean(each[-1] / each[0] for each in sizes) if all(sizes) else 1.0
    return {
        "first": spread([lines[0][0] for lines in scores]),
        "last": spread([lines[-1][-1] for lines in scores]),
        "all": spread([statistics.fmean(lines[-1]) for lines in scores]),
        "used": None if used[0] is None or not used[0] else round(statistics.fmean(each[-1] for each in used), 3),
        **({} if times == 1.0 else {"times_the_parameters": round(times, 2)}),
        "seconds": round(statistics.fmean(sum(result.seconds) for result in results), 1),
    }


def main() -> None:
    """Make all runs, and write the record after every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--settings", default=",".join(by_default(SETTINGS)))
    parser.add_argument("--methods", default=",".join(by_default(METHODS)))
    parser.add_argument("--runs", type=Path, default=Path("runs/schedules"), help="folder for the runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/schedules.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    record: dict[str, Any] = {"seeds": seeds, "settings": {}}
    if arguments.out.exists():
        record = json.loads(arguments.out.read_text(encoding="utf-8"))
    if record["seeds"] != seeds:
        parser.error(f"{arguments.out} is of the seeds {record['seeds']}: ask for these, or give another file (--out)")
    rows = record["settings"]
    for name in arguments.settings.split(","):
        experiment, common = SETTINGS[name]
        found = rows.get(name, {}).get("methods", {})
        for method in arguments.methods.split(","):
            found[method] = row([finished(name, method, seed, arguments.runs, arguments.data) for seed in seeds])
            print(f"{name:18} {method:16} {found[method]}", flush=True)
        rows[name] = {"experiment": experiment, "set": common, "methods": found}
        record = {
            "command": f"python benchmarks/schedules.py --seeds {arguments.seeds}{beyond_the_default(rows)}",
            "seeds": seeds,
            "environment": {**describe_environment(torch.device("cpu")), "threads": 1},
            "settings": {key: rows[key] for key in SETTINGS if key in rows},
        }
        write_record(arguments.out, record)


if __name__ == "__main__":
    main()
