"""Processor time and memory of attaching a network to a backbone, of consolidating a task, and of checking it.

python benchmarks/attaching.py [--only BERT] [--out benchmarks/results/attaching.json]

Needs ``transformers`` (the extra ``integrations``), whose models have random weights of seed 0. One thread, a fresh
process per network and measurement. A forward pass is that of the plain backbone on the example of one sample, in
evaluation mode, without gradients. Memory is the peak of what a process takes beyond its imports; that of a plain
forward and backward pass is measured on the same example, in evaluation mode, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from recording import write_record
from torch import Tensor, nn

from hatrack import HATNetwork
from hatrack.backbones import MLP
from hatrack.support.environment import describe_environment

MOST_FORWARDS = 20
"""Forward passes that attaching may take."""

MOST_MEMORY = 1.3
"""Memory that attaching may take, in parts of that of a forward and backward pass."""


class Features(nn.Module):
    """A model of another package, of whose results the heads take one.

    Args:
        model: maps a batch to a result.
        take: the features ``(N, F)`` of a result.
    """

    def __init__(self, model: nn.Module, take: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.take = model, take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.model(x))


@dataclass(frozen=True)
class Case:
    """A network, and the example that it is attached with; whether the bounds are meant for it."""

    build: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    is_bounded: bool = True


def resnet() -> nn.Module:
    import transformers

    return Features(transformers.ResNetModel(transformers.ResNetConfig()), lambda r: r.pooler_output.flatten(1))


def vit() -> nn.Module:
    import transformers

    model = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    return Features(model, lambda r: r.last_hidden_state[:, 0])


def bert() -> nn.Module:
    import transformers

    return Features(transformers.BertModel(transformers.BertConfig()), lambda r: r.pooler_output)


CASES = {
    "MLP 2×2000": Case(lambda: MLP((784,), (2000, 2000)), lambda: torch.zeros(1, 784), is_bounded=False),
    "ResNet-50": Case(resnet, lambda: torch.zeros(1, 3, 224, 224)),
    "ViT-B/16": Case(vit, lambda: torch.zeros(1, 3, 224, 224)),
    "BERT-base, 128 tokens": Case(bert, lambda: torch.zeros(1, 128, dtype=torch.int64)),
}


def spent(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def made(case: Case) -> tuple[nn.Module, Tensor, float]:
    """Build a backbone and its example; return them with the memory of the process before, in MB."""
    import transformers  # noqa: F401 - so that its import is not counted

    torch.manual_seed(0)
    before = peak()
    backbone = case.build().eval()
    gc.collect()  # the imports have left a collection due, which takes as long as three passes wherever it falls
    return backbone, case.example(), before


def plain(case: Case) -> dict[str, float]:
    """Memory of a forward and backward pass of the backbone alone."""
    backbone, x, before = made(case)
    backbone(x).sum().backward()
    return {"plain_mb": peak() - before}


def attached(case: Case) -> dict[str, float]:
    """Seconds and memory of attaching, consolidating and checking."""
    backbone, x, before = made(case)
    with torch.no_grad():
        backbone(x)
        forward = statistics.median(spent(lambda: backbone(x)) for _ in range(9))
    nets: list[HATNetwork] = []
    seconds = {"attach": spent(lambda: nets.append(HATNetwork(backbone, x)))}
    memory = {"attach": peak() - before}
    net = nets[0]
    net.add_task("a", num_classes=2)
    seconds["consolidate"] = spent(lambda: net.consolidate("a"))
    memory["consolidate"] = peak() - before
    seconds["check"] = spent(net.check)
    return {
        "forward_s": forward,
        **{f"{what}_s": value for what, value in seconds.items()},
        **{f"{what}_forwards": value / forward for what, value in seconds.items()},
        **{f"{what}_mb": value for what, value in memory.items()},
    }


def measure(name: str, repeats: int) -> dict[str, float | bool]:
    """Medians over fresh processes."""

    def child(kind: str) -> dict[str, float]:
        command = [sys.executable, __file__, "--child", kind, "--only", name]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    runs = [{**child("plain"), **child("attached")} for _ in range(repeats)]
    found: dict[str, float | bool] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    found["memory_over_plain"] = found["attach_mb"] / found["plain_mb"]
    if CASES[name].is_bounded:
        found["holds"] = found["attach_forwards"] <= MOST_FORWARDS and found["memory_over_plain"] <= MOST_MEMORY
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes per case, of which the median counts")
    parser.add_argument("--child", choices=["plain", "attached"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child is not None:
        print(json.dumps({"plain": plain, "attached": attached}[arguments.child](CASES[arguments.only])))
        return
    results = {}
    for name in CASES:
        if arguments.only in name:
            results[name] = measure(name, arguments.repeats)
            print(name, json.dumps(results[name]))
    if arguments.out is not None:
        record = {
            "environment": {**describe_environment(), "transformers": version("transformers")},
            "threads": 1,
            "batch": 1,
            "seed": 0,
            "repeats": arguments.repeats,
            "most_forwards": MOST_FORWARDS,
            "most_memory": MOST_MEMORY,
            "cases": results,
        }
        write_record(arguments.out, record)


if __name__ == "__main__":
    main()
