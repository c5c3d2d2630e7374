"""Time that the first call of a new kind takes beyond its answer, to find its units and try them out.

python benchmarks/further_signature.py [--only BERT] [--out benchmarks/results/further_signature.json]

Needs ``transformers`` (the extra ``integrations``), whose models have random weights. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recording import write_record
from torch import Tensor, nn

from hatrack import HATNetwork
from hatrack.backbones import MLP, ResNet18
from hatrack.support.environment import describe_environment

MOST_FORWARDS = 15
"""Forward passes that may be spent on a further signature, where these take longer than the seconds of a case."""


class Features(nn.Module):
    """A model of another package, of whose results the heads take one.

    Args:
        model: maps a batch to a result.
        take: the features ``(N, F)`` of a result.
        **arguments: further arguments of every call.
    """

    def __init__(self, model: nn.Module, take: Callable[[Any], Tensor], **arguments: Any) -> None:
        super().__init__()
        self.model, self.take, self.arguments = model, take, arguments

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.model(x, **self.arguments))


@dataclass(frozen=True)
class Case:
    """A network, the example it is attached with, and inputs of another shape; seconds that these may take anyway."""

    name: str
    build: Callable[[], nn.Module]
    example: Tensor
    other: Tensor
    seconds: float = 0.1


def cases() -> Iterator[Case]:
    yield Case("MLP 2×2000", lambda: MLP((784,), (2000, 2000)), torch.randn(2, 784), torch.randn(2, 1, 28, 28), 1.0)
    yield Case("ResNet-18", ResNet18, torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64))
    import transformers

    transformers.logging.set_verbosity_error()

    def resnet() -> nn.Module:
        return Features(transformers.ResNetModel(transformers.ResNetConfig()), lambda r: r.pooler_output.flatten(1))

    def vit() -> nn.Module:
        model = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
        return Features(model, lambda r: r.last_hidden_state[:, 0], interpolate_pos_encoding=True)

    def bert() -> nn.Module:
        model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
        return Features(model, lambda r: r.last_hidden_state[:, 0])

    def words(length: int) -> Tensor:
        return torch.randint(0, 30000, (2, length), generator=torch.Generator().manual_seed(length))

    yield Case("ResNet-50", resnet, torch.randn(2, 3, 224, 224), torch.randn(2, 3, 192, 192))
    yield Case("ViT-B/16", vit, torch.randn(2, 3, 224, 224), torch.randn(2, 3, 192, 192))
    yield Case("BERT-base", bert, words(64), words(96))


def spent(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def measure(case: Case) -> dict[str, float | bool]:
    """Seconds of attaching, of a forward pass, and of what first calls take beyond one."""
    torch.manual_seed(0)
    backbone = case.build().eval()
    forward = statistics.median(spent(lambda: backbone(case.other)) for _ in range(5))
    made: list[HATNetwork] = []
    attach = spent(lambda: made.append(HATNetwork(backbone, case.example)))
    net = made[0].eval()
    net.add_task("a", num_classes=2)
    net(case.example, "a")
    ask = statistics.median(spent(lambda: net(case.example, "a")) for _ in range(3))
    known = statistics.median(spent(lambda: backbone(case.example)) for _ in range(3))
    seconds = {"evaluation": spent(lambda: net(case.other, "a"))}
    net.train()
    with torch.enable_grad():
        seconds["training"] = spent(lambda: net(case.other, "a"))
    answers = {"evaluation": statistics.median(spent(lambda: net.eval()(case.other, "a")) for _ in range(3))}
    net.train()
    with torch.enable_grad():
        answers["training"] = statistics.median(spent(lambda: net(case.other, "a")) for _ in range(3))
    beyond = {mode: seconds[mode] - answers[mode] for mode in seconds}
    bound = max(case.seconds, MOST_FORWARDS * forward)
    return {
        "forward_s": forward,
        "attach_s": attach,
        "attach_forwards": attach / known,
        "answer_over_plain": ask / known,
        **{f"{mode}_s": value for mode, value in beyond.items()},
        **{f"{mode}_forwards": value / forward for mode, value in beyond.items()},
        "bound_s": bound,
        "holds": max(beyond.values()) <= bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cases whose names contain this")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for case in cases():
        if arguments.only is None or arguments.only in case.name:
            results[case.name] = measure(case)
            print(case.name, json.dumps(results[case.name], default=str))
    if arguments.out is not None:
        record = {"environment": describe_environment(), "threads": 1, "batch": 2, "cases": results}
        write_record(arguments.out, record)


if __name__ == "__main__":
    main()
