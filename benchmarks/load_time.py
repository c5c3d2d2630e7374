"""Time that data sets take to load, the first time and again: seconds of wall and processor time.

python benchmarks/load_time.py [--data DIR] [--repetitions 5] [--out benchmarks/results/load_time.json] [NAME ...]

The first time, pictures are decoded into a cache made for this purpose; idx files are decoded every time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from recording import write_record

from hatrack.data import load_dataset
from hatrack.support.environment import describe_environment


def timed(name: str, data: Path | None) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    load_dataset(name, data, download=False)
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["mnist", "fashion-mnist", "traffic-signs"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for name in arguments.names:
            first = timed(name, arguments.data)
            again = [timed(name, arguments.data) for _ in range(arguments.repetitions)]
            medians = {key: statistics.median(one[key] for one in again) for key in first}
            results[name] = {"first": first, "again": medians, "slowest": max(one["wall"] for one in again)}
            then = f"{medians['wall']:.2f} s (processor {medians['processor']:.2f})"
            print(f"{name}: first {first['wall']:.2f} s, then {then}")
    if arguments.out:
        report = {"load_average": os.getloadavg()[0], "environment": describe_environment(), "seconds": results}
        write_record(arguments.out, report, indent=2)


if __name__ == "__main__":
    main()
