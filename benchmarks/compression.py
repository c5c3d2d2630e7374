"""The compression experiment of the HAT paper (Fig. 7, Table 4), and how large and fast the extracted network is.

python benchmarks/compression.py FOLDER [--only NAME ...] [--out benchmarks/results/compression.json]

A single task per data set, c = 1.5 and embeddings from U(0, 2): share in use and validation accuracy after every epoch,
and beside it a run without masks (`sgd`). Runs are kept in FOLDER and go on from there; `hatrack figure compression
FOLDER/NAME-hat` draws one. Sizes and times are those of `hatrack sizes`, in one thread. The runs are small, so that all
of them fit into a few minutes: two dense layers, where the paper has its AlexNet, all samples and up to 200 epochs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hatrack.experiments import RunRequest, RunResult, measure_sizes, prepare, read_result, run
from hatrack.support.environment import describe_environment

_DENSE = {"network": "mlp", "hidden": (400, 400), "dropout_early": 0.0, "dropout_late": 0.0}
_SMALL = {"limit": 2000, "epochs": 30, "batch_size": 16}

RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mnist": ("compression", {**_DENSE, **_SMALL}),
    "fashion-mnist": ("compression-fashion-mnist", {**_DENSE, **_SMALL}),
    "notmnist": ("compression-notmnist", {**_DENSE, **_SMALL}),
    "cifar10": ("compression-cifar10", {**_DENSE, **_SMALL}),
}
"""By name: the experiment, and settings that differ from it."""


def learned(folder: Path, experiment: str, method: str, settings: Mapping[str, Any]) -> RunResult:
    """A run, or what is left of it."""
    prepared = prepare(RunRequest(experiment, method, 0, folder, overrides=settings))
    for _ in run(prepared):
        pass
    return read_result(folder / "run.json")


def measure(name: str, folder: Path) -> dict[str, Any]:
    experiment, settings = RUNS[name]
    result = learned(folder / f"{name}-hat", experiment, "hat", settings)
    plain = learned(folder / f"{name}-sgd", experiment, "sgd", settings)
    (history,) = result.history
    by_batch = {batch: measure_sizes(folder / f"{name}-hat", batch=batch, repetitions=20)[0] for batch in (1, 64)}
    size = by_batch[64]
    return {
        "command": result.command,
        "accuracy": result.scores[-1][0].value,
        "accuracy without masks": plain.scores[-1][0].value,
        "units": round(size.units / size.full_units, 4),
        "parameters": round(size.parameters / size.full_parameters, 4),
        "operations": round(size.flops / size.full_flops, 4),
        "file": round(size.file_bytes / size.full_file_bytes, 4),
        "speedup": {f"batch of {batch}": round(each.speedup, 2) for batch, each in by_batch.items()},
        "by epoch": {"used": list(history.used), "valid_accuracy": list(history.valid_score)},
        "seconds": result.seconds[0],
        "sizes": [dataclasses.asdict(each) for each in by_batch.values()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(RUNS), default=list(RUNS))
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in arguments.only:
        results[name] = measure(name, arguments.folder)
        shown = {key: value for key, value in results[name].items() if key not in ("by epoch", "sizes")}
        print(name, json.dumps(shown, indent=1), flush=True)
    report = {"results": results, "environment": describe_environment(torch.device("cpu"))}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
