"""All methods on one sequence of tasks: is the published ordering found here?

As in the HAT paper, the settings of a method are searched over its recorded grid on one seed, by the final average
accuracy, and then used for all seeds; the untuned figures are recorded too. Runs that are on disk are not made again,
and a file that is there already keeps the other methods that it holds.

python benchmarks/baselines.py split-fashion-mnist [--seeds 3] [--workers 2] [--runs DIR] [--out FILE] [--methods a,b]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hatrack.environment import describe_environment
from hatrack.experiments import RunRequest, finished_result, prepare, run
from hatrack.experiments.results import RunResult
from hatrack.methods import METHODS
from hatrack.names import unknown_name

COMMON: Mapping[str, Mapping[str, Any]] = {
    "split-fashion-mnist": {"limit": 2000, "hidden": (400, 400), "epochs": 10},
    "permuted-mnist": {"limit": 5000, "num_tasks": 5, "hidden": (200, 200), "epochs": 20},
}
"""What makes an experiment small enough for two cores and some minutes; the rest is the preset's."""

GRIDS: Mapping[str, Mapping[str, tuple[float | str, ...]]] = {
    "ewc": {"fisher": ("batches", "sampled"), "strength": (50, 500, 2000, 5000, 10000, 20000, 50000)},
    "lwf": {"strength": (0.5, 1, 2), "temperature": (1, 2, 4)},
    "pathnet": {"generations": (5, 20)},
    "adahat": {"alpha": (1e-6, 1e-4, 1e-2)},
    "si": {"strength": (0.01, 0.1, 1, 10, 100)},
    "mas": {"strength": (0.01, 0.1, 1, 10)},
    "cab": {"aperture": (1, 2, 4, 8, 16)},
}
"""Grids of this benchmark where the method has none of its own, or needs more than the published one."""


def settings_of(method: str) -> Iterator[dict[str, Any]]:
    """Every combination of a method's grid, its defaults first."""
    grid = GRIDS.get(method, METHODS[method].grid)
    yield {}
    for values in itertools.product(*grid.values()) if grid else ():
        yield dict(zip(grid, values, strict=True))


def one_run(experiment: str, method: str, seed: int, own: Mapping[str, Any], runs: Path) -> RunResult | None:
    """A finished run, from disk where it is there; None where training failed."""
    torch.set_num_threads(1)
    name = "-".join([experiment, method, *(f"{key}={value}" for key, value in own.items()), f"seed{seed}"])
    request = RunRequest(experiment, method, seed, runs / name, overrides={**COMMON[experiment], **own})
    try:
        result = finished_result(request)
        if result is None:
            prepared = prepare(request)
            for _ in run(prepared):
                pass
            result = prepared.result
    except Exception as error:  # a grid has corners where training diverges
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
        return None
    print(f"{name}: {accuracy(result):.2f} {forgetting(result):.2f}", flush=True)
    return result


def accuracy(result: RunResult) -> float:
    """Final average accuracy, in percent."""
    return 100 * result.metrics()["average_accuracy"]


def forgetting(result: RunResult) -> float:
    """Final forgetting, in points."""
    return 100 * result.metrics()["forgetting"]


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    return {"mean": round(statistics.fmean(values), 2), "sd": round(statistics.stdev(values), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=list(COMMON))
    parser.add_argument("--methods", default=",".join(METHODS), help="joined by commas; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"), help="folder for the run directories")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    for method in methods:
        if method not in METHODS:
            parser.error(str(unknown_name("method", method, list(METHODS))))
    with ProcessPoolExecutor(arguments.workers) as pool:

        def submit(method: str, seed: int, own: Mapping[str, Any]) -> Any:
            return pool.submit(one_run, arguments.experiment, method, seed, own, arguments.runs)

        searched = [(method, own, submit(method, 0, own)) for method in methods for own in settings_of(method)]
        tried = [(method, own, future.result()) for method, own, future in searched]
        best = {}
        for method, own, result in tried:
            if result is not None and (method not in best or accuracy(result) > accuracy(best[method][1])):
                best[method] = (own, result)
        chosen = {
            method: [submit(method, seed, own) for seed in range(arguments.seeds)] for method, (own, _) in best.items()
        }
        default = {method: [submit(method, seed, {}) for seed in range(arguments.seeds)] for method in methods}
        rows = {
            method: {
                "chosen": best[method][0],
                "searched": [
                    {**own, "accuracy": None if r is None else round(accuracy(r), 2)}
                    for m, own, r in tried
                    if m == method
                ],
                "tuned": summary([future.result() for future in chosen[method]]),
                "untuned": summary([future.result() for future in default[method]]),
            }
            for method in methods
            if method in best
        }
    for method, row in sorted(rows.items(), key=lambda item: -(item[1]["tuned"]["accuracy"]["mean"] or 0)):
        tuned, untuned = row["tuned"], row["untuned"]
        print(f"{method:12} {tuned['accuracy']} {tuned['forgetting']} untuned {untuned['accuracy']} {row['chosen']}")
    if arguments.out:
        if arguments.out.exists():
            rows = {**json.loads(arguments.out.read_text(encoding="utf-8"))["methods"], **rows}
        record = {
            "command": f"python benchmarks/baselines.py {arguments.experiment} --seeds {arguments.seeds}",
            "experiment": arguments.experiment,
            "settings": COMMON[arguments.experiment],
            "seeds": arguments.seeds,
            "methods": rows,
            "environment": describe_environment(torch.device("cpu")),
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def summary(results: list[RunResult | None]) -> dict[str, Any]:
    """Accuracy and forgetting over seeds, and the mean seconds of a run; failed runs are counted, not averaged."""
    good = [result for result in results if result is not None]
    if len(good) < 2:
        return {
            "accuracy": {"mean": 0.0, "sd": 0.0},
            "forgetting": {"mean": 0.0, "sd": 0.0},
            "failed": len(results) - len(good),
        }
    return {
        "accuracy": spread([accuracy(result) for result in good]),
        "forgetting": spread([forgetting(result) for result in good]),
        "seconds": round(statistics.fmean(sum(result.seconds) for result in good), 1),
        "failed": len(results) - len(good),
    }


if __name__ == "__main__":
    main()
