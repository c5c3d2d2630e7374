"""Global generators of random numbers, which code that takes no other draws from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hatrack import HATNetwork
from hatrack.backbones import build_reproducibly
from hatrack.support.randomness import random_numbers_apart, seed_generators


def test_numbers_of_a_block_depend_on_its_seed_alone_and_leave_no_trace() -> None:
    torch.default_generator.manual_seed(3)
    expected = torch.rand(4)
    torch.default_generator.manual_seed(3)
    drawn = []
    for _ in range(2):
        with random_numbers_apart(5):
            drawn.append(torch.rand(4))
            seed_generators(6)
            drawn.append(torch.rand(4))
    with pytest.raises(ZeroDivisionError), random_numbers_apart(5):
        raise ZeroDivisionError
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("device", ["cuda", "xpu", "mtia"])
def test_devices_that_are_not_in_use_keep_their_seeds(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed for a device that is not in use would wait for it, and take the place of the user's."""

    def refuse(seed: int) -> None:
        raise AssertionError(f"the generators of {device} are seeded with {seed}")

    monkeypatch.setattr(getattr(torch, device), "manual_seed_all", refuse)
    with pytest.raises(AssertionError, match=device):
        torch.random.manual_seed(0)
    backbone = build_reproducibly(lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Hardtanh()), 0, xavier=True)
    net = HATNetwork(backbone, torch.randn(2, 3))
    net.add_task("one", 2, embedding=torch.distributions.Normal(0.0, 1.0))
    net(torch.randn(5, 3), "one").sum().backward()
    net.consolidate("one")
