"""Networks that are widened, and how near their old outputs have to stay."""

from __future__ import annotations

import torch
from torch import Tensor

from hatrack import (
    HATNetwork,
)
from hatrack.backbones import MLP
from support.helpers import (
    NETS,
    attach,
    logits,
)
from support.zoo import ZOO

ROUNDING = 1e-6
"""How far old outputs may be from what they were, of their scale: kernels sum in another order for another shape."""

TINY = MLP((6,), (8, 8))


def network(kind: str, **options: object) -> HATNetwork:
    if kind in NETS:
        return attach(kind)
    torch.manual_seed(0)
    return HATNetwork(ZOO[kind].build(), torch.zeros(2, *(ZOO[kind].shape or ())), s_max=100.0, **options)  # type: ignore[arg-type]


def every_group(net: HATNetwork, units: int = 3) -> dict[str, int]:
    return {group.name: units for group in net.units.groups}


def assert_close_to(net: HATNetwork, samples: dict[str, Tensor], before: dict[str, Tensor], share: float) -> None:
    for task, kept in before.items():
        distance = (logits(net, samples[task], task) - kept).abs().max()
        assert distance <= share * kept.abs().max(), (task, float(distance / kept.abs().max()))


def say(net: HATNetwork, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: logits(net, x, task) for task, x in samples.items()}


def sizes(net: HATNetwork) -> dict[str, int]:
    return {group.name: group.size for group in net.units.groups}
