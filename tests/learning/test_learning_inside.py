"""Learners learn inside of torch's contexts what they learn outside of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import Learner
from hatrack.learning.unannounced import UnannouncedLearner
from hatrack.methods import METHODS, Setup
from hatrack.train import TrainingSettings

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())


def samples(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, seed] > 0).long()


def told() -> Any:
    learner = Learner(build(), (4,), training=TrainingSettings(epochs=2, batch_size=8, lr=0.05), validation=0.25)
    for seed, task in enumerate(("a", "b")):
        learner.fit(task, samples(seed), progress=False)
    return learner.network


def untold() -> Any:
    setup = Setup(build, (4,), 0, torch.device("cpu"))
    method = METHODS["hat"](setup, METHODS["hat"].settings_type())
    learner = UnannouncedLearner(method, 2, partial(torch.optim.SGD, lr=0.1), announced=True)
    for seed in range(2):
        if seed:
            learner.announce()
        for _ in range(6):
            learner.observe(*samples(seed))
    learner.finish()
    return method.network


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("learn", [told, untold])
def test_learning_inside_of_a_context_is_learning_outside(learn: Callable[[], Any], context: str) -> None:
    networks = []
    for within in (nullcontext, CONTEXTS[context]):
        with within():
            networks.append(learn())
    expected, found = (net.state_dict() for net in networks)
    assert len(networks[0].task_names) == 2
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
