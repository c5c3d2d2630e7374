"""The compression experiment of the HAT paper (Fig. 7, Table 4), and how large and fast the extracted network is.

python benchmarks/compression.py FOLDER [--seeds 0,1,2] [--only NAME ...] [--out benchmarks/results/compression.json]

A single task per data set, c = 1.5 and embeddings from U(0, 2): share in use and validation accuracy after every
epoch, and beside it a run without masks (`sgd`). Runs are kept in FOLDER and go on from there; `hatrack figure
compression FOLDER/NAME-hat-SEED` draws one. Sizes and times are those of `hatrack sizes`, in one thread. The runs are
small, so that all of them fit into an hour: a quarter of the paper's AlexNet, 2,000 pictures, at most 60 epochs, where
the paper has all samples and up to 200 epochs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recording import write_record

from hatrack import keep_freed_memory
from hatrack.experiments import RunRequest, RunResult, measure_sizes, prepare, read_result, run
from hatrack.support.environment import describe_environment

EXPERIMENTS: Mapping[str, str] = {
    "mnist": "compression",
    **{name: f"compression-{name}" for name in ("fashion-mnist", "notmnist", "cifar10", "traffic-signs", "cifar100")},
}
"""Experiments by the name of their data set; the easiest first, as the paper has it."""

SETTINGS: Mapping[str, Any] = {"width": 0.25, "limit": 2000, "epochs": 60, "channels_last": True}
"""Settings of all runs that differ from those of the experiments."""


def learned(folder: Path, experiment: str, method: str, seed: int) -> RunResult:
    """Make a run, or what is left of it."""
    prepared = prepare(RunRequest(experiment, method, seed, folder, overrides=SETTINGS))
    for _ in run(prepared):
        pass
    return read_result(folder / "run.json")


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return accuracies of a run with masks and of one without, and the share of the network that is extracted."""
    masked = folder / f"{name}-hat-{seed}"
    result = learned(masked, EXPERIMENTS[name], "hat", seed)
    plain = learned(folder / f"{name}-sgd-{seed}", EXPERIMENTS[name], "sgd", seed)
    (history,) = result.history
    by_batch = {batch: measure_sizes(masked, batch=batch, repetitions=20)[0] for batch in (1, 64)}
    size = by_batch[64]
    return {
        "seed": seed,
        "command": result.command,
        "accuracy": result.scores[-1][0].value,
        "accuracy without masks": plain.scores[-1][0].value,
        "units": round(size.units / size.full_units, 4),
        "parameters": round(size.parameters / size.full_parameters, 4),
        "operations": round(size.flops / size.full_flops, 4),
        "file": round(size.file_bytes / size.full_file_bytes, 4),
        "speedup": {f"batch of {batch}": round(each.speedup_over_masked, 2) for batch, each in by_batch.items()},
        "speedup over plain": {f"batch of {batch}": round(each.speedup, 2) for batch, each in by_batch.items()},
        "by epoch": {"used": list(history.used), "valid_accuracy": list(history.valid_score)},
        "data": list(result.data),
        "seconds": result.seconds[0],
        "sizes": [dataclasses.asdict(each) for each in by_batch.values()],
    }


def spread(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over seeds of accuracies and shares."""
    names = ("accuracy", "accuracy without masks", "units", "parameters", "operations", "file")
    values = {name: [run[name] for run in runs] for name in names}
    return {
        name: {
            "mean": round(statistics.fmean(of), 4),
            "sd": round(statistics.stdev(of) if len(of) > 1 else 0.0, 4),
        }
        for name, of in values.items()
    }


def main() -> None:
    """Make the runs, and write the record after every data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas")
    parser.add_argument("--only", nargs="+", choices=tuple(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    report: dict[str, Any] = {"results": {}, "environment": describe_environment(torch.device("cpu"))}
    for name in arguments.only:
        runs = [measure(name, int(seed), arguments.folder) for seed in arguments.seeds.split(",")]
        report["results"][name] = {"spread": spread(runs), "runs": runs}
        print(name, json.dumps(spread(runs)), flush=True)
        if arguments.out is not None:
            write_record(arguments.out, report)


if __name__ == "__main__":
    main()
