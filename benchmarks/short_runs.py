"""What short runs give: HAT beside fine-tuning with few steps a task, and what more steps change.

python benchmarks/short_runs.py [--seeds 0,1,2] [--data DIR] [--out FILE]

Rows that the file holds for these seeds are kept.

Split Fashion-MNIST, 600 training samples a task (510 beside those for validation), one thread, the methods' own
defaults (for HAT the preset's, the paper's schedule) but for what is said.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from recording import write_record

from hatrack.experiments import RunRequest, RunResult, prepare, run
from hatrack.experiments.statistics import spread
from hatrack.support.environment import describe_environment

SETTINGS: dict[str, tuple[int, dict[str, Any], tuple[str, ...]]] = {
    "3 epochs": (24, {"epochs": 3}, ("sgd", "hat")),
    "3 epochs, settled": (24, {"epochs": 3, "schedule": "settled"}, ("hat",)),
    "3 epochs, momentum": (24, {"epochs": 3, "momentum": 0.9}, ("sgd",)),
    "3 epochs, settled, momentum": (24, {"epochs": 3, "momentum": 0.9, "schedule": "settled"}, ("hat",)),
    "3 epochs, batches of 16": (96, {"epochs": 3, "batch_size": 16}, ("sgd", "hat")),
    "12 epochs": (96, {"epochs": 12}, ("sgd", "hat")),
}
"""Steps a task, overrides and methods, by name."""


def finished(method: str, seed: int, overrides: dict[str, Any], data: Path | None) -> RunResult:
    going = prepare(RunRequest("split-fashion-mnist", method, seed, None, data, {"limit": 600, **overrides}))
    for _ in run(going):
        pass
    return going.result


def said(values: list[float]) -> dict[str, float]:
    both = spread(values)
    return {"mean": round(both.mean, 2), "sd": round(both.sd or 0.0, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "short_runs.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    known = before["rows"] if before.get("seeds") == seeds else []
    rows = []
    for name, (steps, overrides, methods) in SETTINGS.items():
        for method in methods:
            asked = {"setting": name, "steps": steps, "overrides": overrides, "method": method}
            if made := [row for row in known if asked.items() <= row.items()]:
                rows += made
                continue
            figures = [finished(method, seed, overrides, options.data).metrics() for seed in seeds]
            row: dict[str, Any] = dict(asked)
            for key, column in (("accuracy", "average_accuracy"), ("forgetting", "forgetting")):
                row[key] = said([100 * (figure[column] or 0.0) for figure in figures])
            rows.append(row)
            print(json.dumps(row), flush=True)
    record = {
        "command": f"python benchmarks/short_runs.py --seeds {options.seeds}",
        "seeds": seeds,
        "environment": describe_environment(),
        "rows": rows,
    }
    write_record(options.out, record)


if __name__ == "__main__":
    main()
