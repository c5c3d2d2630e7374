"""All methods on one sequence of tasks, with searched settings and with default ones.

The settings of a method are searched over its recorded grid by the average accuracy on the *validation* samples after
the last task, on a seed that no figure is reported of, and then used for all seeds; the figures are those of the test
samples. Figures of default settings are recorded too. This is `hatrack tune` for every method and `hatrack compare`
twice, in one JSON file. Runs that are on disk are not made again, and a file that is there already
keeps the other methods that it holds.

python benchmarks/baselines.py split-fashion-mnist [--seeds 3] [--workers 2] [--runs DIR] [--out FILE] [--methods a,b]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recording import write_record

from hatrack.experiments import Comparison, ComparisonPlan, JobDone, JobFailed, LocalExecutor, compare, jobs_of
from hatrack.experiments.tuning import Candidate, GridSearch, best, outcomes, tune
from hatrack.methods import METHODS
from hatrack.support.environment import describe_environment

COMMON: Mapping[str, Mapping[str, Any]] = {
    "split-fashion-mnist": {"limit": 2000, "hidden": (400, 400), "epochs": 10},
    "permuted-mnist": {"limit": 5000, "num_tasks": 5, "hidden": (200, 200), "epochs": 20},
}
"""What makes an experiment small enough for two cores and some minutes; the rest is the preset's."""

SEARCH = {"validation": 0.15, "tested_on": "validation"}
SEARCH_SEED = 100
"""What makes a search one on validation samples, and its seed."""

GRIDS: Mapping[str, Mapping[str, tuple[float | str, ...]]] = {
    "lwf": {"strength": (0.5, 1, 2), "temperature": (1, 2, 4)},
    "pathnet": {"generations": (5, 20)},
    "adahat": {"alpha": (1e-6, 1e-4, 1e-2)},
    "mas": {"strength": (0.01, 0.1, 1, 10)},
    "cab": {"aperture": (1, 2, 4, 8, 16)},
}
"""Grids of this benchmark where the method has none of its own, or needs more than the published one."""


def searched(experiment: str, method: str, runs: Path, executor: LocalExecutor) -> tuple[Candidate, ...]:
    """The method's grid on a seed of its own; nothing for a method that has nothing to search."""
    grid = GRIDS.get(method, METHODS[method].grid)
    if not grid:
        return ()
    search = GridSearch.make(experiment, method, SEARCH_SEED, {**COMMON[experiment], **SEARCH}, grid)
    folder = runs / f"tune-{experiment}-{method}"
    jobs = search.jobs(folder)
    follow(tune(search, folder, jobs, executor))
    return outcomes(search, jobs)


def compared(plan: ComparisonPlan, folder: Path, executor: LocalExecutor) -> Comparison:
    """All runs of a plan."""
    follow(compare(plan, folder, jobs_of(plan, folder), executor))
    return Comparison.read(folder)


def follow(events: Any) -> None:
    """Print what ends."""
    for event in events:
        if isinstance(event, (JobDone, JobFailed)):
            print(event.job.folder, getattr(event, "error", "done"), flush=True)


def summary(comparison: Comparison, method: str) -> dict[str, Any]:
    """Accuracy and forgetting in percent over seeds, and the mean seconds of a run; failed runs are only counted."""
    row: dict[str, Any] = {}
    for name, figure, factor in (
        ("accuracy", "average_accuracy", 100),
        ("forgetting", "forgetting", 100),
        ("forgetting_ratio", "forgetting_ratio", 1),
    ):
        found = comparison.spread(method, figure)
        sd = None if found is None or found.sd is None else round(factor * found.sd, 3)
        row[name] = {"mean": None if found is None else round(factor * found.mean, 3), "sd": sd}
    good = [run for seed in comparison.seeds if (run := comparison.run(method, seed)) is not None]
    row["memory"] = max((run.memory for run in good if run.memory is not None), default=None)
    row["seconds"] = round(statistics.fmean(sum(run.seconds) for run in good), 1) if good else None
    return {**row, "failed": len(comparison.seeds) - len(good)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=list(COMMON))
    parser.add_argument("--methods", default=",".join(METHODS), help="joined by commas; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"), help="folder for the run directories")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    experiment, executor, common = arguments.experiment, LocalExecutor(arguments.workers), COMMON[arguments.experiment]
    untuned = ComparisonPlan.make(experiment, arguments.methods.split(","), range(arguments.seeds), common)
    tried = {method: searched(experiment, method, arguments.runs, executor) for method in untuned.methods}
    chosen = {method: best(candidates) for method, candidates in tried.items()}
    own = {f"{m}.{key}": value for m, c in chosen.items() if c is not None for key, value in c.settings.items()}
    tuned = ComparisonPlan.make(experiment, untuned.methods, untuned.seeds, {**common, **own})
    plain = compared(untuned, arguments.runs / f"untuned-{experiment}", executor)
    found = compared(tuned, arguments.runs / f"tuned-{experiment}", executor)
    rows = {}
    for method in untuned.methods:
        candidate = chosen[method]
        rows[method] = {
            "chosen": {} if candidate is None else dict(candidate.settings),
            "searched": [
                {**c.settings, "accuracy": None if c.score is None else round(100 * c.score, 2)} for c in tried[method]
            ],
            "tuned": summary(found, method),
            "untuned": summary(plain, method),
        }
    for method, row in sorted(rows.items(), key=lambda item: -(item[1]["tuned"]["accuracy"]["mean"] or 0)):
        print(f"{method:12} {row['tuned']} {row['chosen']}")
    if arguments.out:
        if arguments.out.exists():
            rows = {**json.loads(arguments.out.read_text(encoding="utf-8"))["methods"], **rows}
        record = {
            "command": f"python benchmarks/baselines.py {experiment} --seeds {arguments.seeds}",
            "experiment": experiment,
            "settings": common,
            "seeds": arguments.seeds,
            "methods": rows,
            "environment": {**describe_environment(torch.device("cpu")), "threads": 1},
        }
        write_record(arguments.out, record)


if __name__ == "__main__":
    main()
