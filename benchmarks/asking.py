"""Time of an old task's answer relative to the plain network's: median ratio of interleaved pairs in one process.

python benchmarks/asking.py [--pairs 200] [--out benchmarks/results/asking.json]

To compare versions, run it in turns with ``PYTHONPATH`` set to the ``src`` of each.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from recording import write_record
from torch import Tensor, nn

from hatrack import HATNetwork
from hatrack.support.environment import describe_environment

BATCH = 64


def network() -> tuple[HATNetwork, nn.Module]:
    """A network with two consolidated tasks and one in training, 2×2000, and the plain one with a head."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(784, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU())
    plain = nn.Sequential(copy.deepcopy(backbone), nn.Linear(2000, 2))
    net = HATNetwork(backbone, torch.zeros(1, 784))
    for name in ("first", "second"):
        net.add_task(name, num_classes=2)
        net.consolidate(name)
    net.add_task("third", num_classes=2)
    return net.eval(), plain.eval()


@torch.no_grad()
def ratios(net: HATNetwork, plain: nn.Module, x: Tensor, pairs: int) -> list[float]:
    found = []
    for pair in range(-20, pairs):
        start = time.perf_counter()
        net(x, "first")
        between = time.perf_counter()
        plain(x)
        end = time.perf_counter()
        if pair >= 0:
            found.append((between - start) / (end - between))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = ratios(*network(), torch.randn(BATCH, 784), arguments.pairs)
    record = {
        "environment": describe_environment(),
        "network": "2x2000",
        "batch": BATCH,
        "pairs": arguments.pairs,
        "ratio": statistics.median(found),
        "quartiles": statistics.quantiles(found, n=4),
    }
    print(json.dumps(record))
    if arguments.out is not None:
        write_record(arguments.out, record)


if __name__ == "__main__":
    main()
