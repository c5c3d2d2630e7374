"""Effects of Ctrl-C on a network: every line of ours in every operation, and real signals at random moments.

Run it with ``python benchmarks/interruptions.py``; it takes some minutes. Each operation is interrupted just before the
first and before the last execution of each of the package's lines that it runs through, on a fresh copy of a network
each time. Then the same is done by signals from a timer. Afterwards a network must be as before or as after, to the
bit, and learn on.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.interrupting import (
    EVERY_KIND,
    OPERATIONS,
    backbone,
    bits,
    build,
    fault_of,
    fault_of_construction,
    faults,
    faults_of_construction,
    looks_of,
    operations_of,
)

CONSTRUCTION = "construction"


def signalled(call: Callable[[], object], seconds: float) -> bool:
    """Call a function, and send a signal after a while; returns whether it was interrupted."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        call()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    return False


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def by_signals(kind: str, operation: str, tries: int, draw: random.Random) -> tuple[int, dict[str, str]]:
    """Interrupt an operation by signals; returns how many came in time, and what went wrong."""
    found: dict[str, str] = {}
    hits, duration = 0, 0.0
    case, _, looks = (None, None, None) if operation == CONSTRUCTION else looks_of(kind, operation)
    for number in range(tries + 1):
        inside = backbone()
        before = bits(inside)
        twin = None if case is None else case.copy()

        def act(inside=inside, twin=twin) -> object:
            return build(kind, inside) if twin is None else OPERATIONS[operation][1](twin)

        if not number:  # to know how long it takes
            start = time.perf_counter()
            act()
            duration = time.perf_counter() - start
            continue
        seconds = max(1e-6, draw.random() * duration)
        if not signalled(act, seconds):
            continue
        hits += 1
        fault = fault_of_construction(kind, inside, before) if twin is None else fault_of(twin, operation, looks)
        if fault is not None:
            found[f"{seconds:.6f} s"] = fault
    return hits, found


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=200, help="signals in all, spread over kinds and operations")
    parser.add_argument("--points", type=int, help="lines per operation and kind; all if left out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _interrupt)
    pairs = [(kind, name) for kind in EVERY_KIND for name in (CONSTRUCTION, *operations_of(kind))]
    draw, rows = random.Random(0), []
    for kind, name in pairs:
        if name == CONSTRUCTION:
            points, wrong = faults_of_construction(kind, arguments.points)
        else:
            points, wrong = faults(kind, name, arguments.points)
        hits, missed = by_signals(kind, name, -(-arguments.signals // len(pairs)), draw)
        rows.append(
            {
                "kind": kind,
                "operation": name,
                "points": points,
                "faults": wrong,
                "signals": hits,
                "signal_faults": missed,
            }
        )
        if not arguments.json:
            print(f"{kind:8} {name:16} {points:5} points {len(wrong):4} faults", end="   ")
            print(f"{hits:3} signals {len(missed):3} faults", *[*wrong.items(), *missed.items()][:3], flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    sys.exit(any(row["faults"] or row["signal_faults"] for row in rows))


if __name__ == "__main__":
    main()
