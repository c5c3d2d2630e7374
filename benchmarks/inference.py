"""Accuracy in recognising tasks that nobody names, by every scorer, with and without calibration.

python benchmarks/inference.py RUN [RUN ...] [--samples N] [--out benchmarks/results/inference.json]

Each RUN is the folder of a finished `hatrack run ... --method hat`. Calibration is measured on the training samples.
With --samples every task is tested on so many of its test samples, drawn at random, so that all tasks weigh the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from hatrack import HATNetwork, Scorer, measure_inference
from hatrack.experiments import RunRequest, prepare, read_result
from hatrack.support.environment import describe_environment


def measure(folder: Path, most: int | None) -> dict[str, Any]:
    recorded = read_result(folder / "run.json")
    device = torch.device("cpu")
    request = RunRequest(recorded.experiment, recorded.method, recorded.seed, None, None, recorded.config, device)
    prepared = prepare(request)
    learned = prepared.method.load(folder / "net.hat")
    net = prepared.method.network  # type: ignore[attr-defined]
    assert isinstance(net, HATNetwork)
    tasks = prepared.stream[: len(learned)]
    for task in tasks:
        net.calibrate(task.name, *task.train.load())
    samples = {}
    for task in tasks:
        order = torch.randperm(len(task.test), generator=torch.Generator().manual_seed(0))
        samples[task.name] = task.test.part(order[:most]).load()
    counts = {name: len(y) for name, (_, y) in samples.items()}
    found: dict[str, Any] = {"command": recorded.command, "tasks": len(tasks), "samples": counts}
    for scorer in Scorer:
        for calibrated in (False, True):
            accuracy = measure_inference(net, samples, scorer, calibrated=calibrated)
            key = f"{scorer.value}, {'calibrated' if calibrated else 'as it is'}"
            found[key] = {name: round(value, 4) for name, value in dataclasses.asdict(accuracy).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(folder, arguments.samples) for folder in arguments.runs]
    report = {"results": results, "environment": describe_environment(torch.device("cpu"))}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
