"""Processor time of whole runs with and without the memory kept that they free, and the most memory that they took.

python benchmarks/kept_memory.py --data DATA [--repetitions 3] [--out benchmarks/results/kept_memory.json]

Every run is a process of its own with one thread; both ways take turns. Times are those of the processor, in it and in
the system, since other work on the machine lengthens every other clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from recording import command, write_record

from hatrack.support.environment import describe_environment

HERE = Path(__file__).parent
RUNS = {
    "AlexNet, width 0.25": ("split-cifar10", "limit=1000", "epochs=4", "width=0.25"),
    "AlexNet, width 0.5": ("split-cifar10", "limit=1000", "epochs=4", "width=0.5"),
    "ResNet-18": ("residual-cifar", "limit=200", "epochs=1"),
    "two layers of 2,000": ("split-fashion-mnist", "limit=2000", "epochs=2"),
}
"""Experiment and settings of a run over two tasks."""

PROGRAM = """
import resource, sys
from hatrack import cli, keep_freed_memory
kept, *sys.argv[1:] = sys.argv[1:]
if kept == "kept":
    assert keep_freed_memory()
code = cli.main()
spent = resource.getrusage(resource.RUSAGE_SELF)
print(spent.ru_utime, spent.ru_stime, spent.ru_maxrss)
sys.exit(code)
"""


def measured(way: str, experiment: str, settings: tuple[str, ...], data: Path) -> tuple[float, float, float]:
    """Return seconds in the process, seconds in the system, and the most GiB of memory, of a run."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [part for setting in ("num_tasks=2", *settings) for part in ("--set", setting)]
        asked = ["run", experiment, "--method", "hat", *chosen, "--quiet", "--data", str(data), "--threads", "1"]
        line = [sys.executable, "-c", PROGRAM, way, *asked, "--out", f"{folder}/run"]
        said = subprocess.check_output(line, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    own, system, memory = map(float, said.split()[-3:])
    return own, system, memory / 2**20


def main() -> None:
    """Measure all runs and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for name, (experiment, *settings) in RUNS.items():
        times: dict[str, list[tuple[float, float, float]]] = {"plain": [], "kept": []}
        for _ in range(arguments.repetitions):
            for way, of in times.items():
                of.append(measured(way, experiment, tuple(settings), arguments.data))
        ratios = [sum(kept[:2]) / sum(plain[:2]) for plain, kept in zip(*times.values(), strict=True)]
        found[name] = {
            "processor time, kept / plain": {
                "median": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            },
            **{
                f"{label}, {way}": round(statistics.median(one[i] for one in of), 2)
                for way, of in times.items()
                for i, label in enumerate(("seconds in the process", "seconds in the system", "GiB at most"))
            },
        }
        print(name, found[name], flush=True)
    record = {
        "command": command(),
        "repetitions": arguments.repetitions,
        "environment": {**describe_environment(torch.device("cpu")), "threads": 1},
        "runs": found,
    }
    if arguments.out is not None:
        write_record(arguments.out, record)


if __name__ == "__main__":
    main()
