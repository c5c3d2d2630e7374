"""Speed of a comparison with several workers against that with one.

python benchmarks/workers.py [--workers 2] [--seeds 0,1] [--repetitions 2] [--data DIR] [--out FILE]

The same comparison takes turns with one worker and with more, each in a folder of its own: three methods and the two
that every comparison has, on split Fashion-MNIST with 2x400 units and 4,000 samples a task. Seconds are of
the whole command, from its start to its end, on a machine that does nothing else.

What the machine itself gives is in "machine": as many commands as there are workers begin at once, each with one worker
and all runs, and are compared with one such command alone. More than this no division of the runs can give.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import write_record

from hatrack.support.environment import describe_environment

COMMAND = "compare split-fashion-mnist --methods sgd,hat,lwf --limit 4000 --epochs 4 --set hidden=400,400"


def seconds(workers: int, seeds: str, data: Path | None, *, copies: int = 1) -> float:
    """Return the seconds that a comparison takes, or as many of them at once."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "hatrack", *COMMAND.split(), "--seeds", seeds]
        words += ["--workers", str(workers), "--quiet"]
        words += ["--data", str(data)] if data else []
        start = time.perf_counter()
        going = [subprocess.Popen([*words, "--out", f"{folder}/compared-{copy}"]) for copy in range(copies)]
        if codes := [code for process in going if (code := process.wait())]:
            raise SystemExit(f"a comparison ended with code {codes[0]}")
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    forms = {
        "one worker": lambda: seconds(1, options.seeds, options.data),
        f"{options.workers} workers": lambda: seconds(options.workers, options.seeds, options.data),
        f"{options.workers} commands at once": lambda: seconds(1, options.seeds, options.data, copies=options.workers),
    }
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.repetitions):
        for name, take in forms.items():
            taken[name].append(round(take(), 1))
            print(f"{name}: {taken[name][-1]} s", flush=True)
    one, more, copies = taken.values()
    ratio = statistics.median(a / b for a, b in zip(one, more, strict=True))
    machine = statistics.median(options.workers * a / b for a, b in zip(one, copies, strict=True))
    record = {
        "command": f"python benchmarks/workers.py --workers {options.workers} --seeds {options.seeds} "
        f"--repetitions {options.repetitions}",
        "compared": f"hatrack {COMMAND} --seeds {options.seeds}",
        "load_before": load,
        "seconds": taken,
        "times_as_fast": round(ratio, 2),
        "machine": round(machine, 2),
        "environment": describe_environment(),
    }
    print(json.dumps(record, indent=2))
    if options.out:
        write_record(options.out, record, indent=2)


if __name__ == "__main__":
    main()
