"""Networks whose samples see each other: those of a task are answered by themselves, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork

COUPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "a neighbour": lambda h: h + h.roll(1, 0),
    "the mean": lambda h: h - h.mean(0),
    "in turn": lambda h: h + h.flip(0),
    "sums so far": lambda h: h.cumsum(0),
    "shares": lambda h: torch.softmax(h, 0),
}


class Coupled(nn.Module):
    def __init__(self, how: str, before: bool) -> None:
        super().__init__()
        self.layer, self.how, self.before = nn.Linear(6, 12), COUPLED[how], before

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(self.how(x))) if self.before else self.how(torch.relu(self.layer(x)))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("how", COUPLED)
def test_samples_of_other_tasks_do_not_matter(how: str, before: bool) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Coupled(how, before), torch.randn(4, 6))
    for task in "ab":
        net.add_task(task, 3)
        net.consolidate(task)
    net.eval()
    x, tasks = torch.randn(6, 6), list("abbaba")
    rows = torch.tensor([0, 3, 5])
    alone = net(x[rows], "a")
    assert torch.allclose(net(x, tasks)[rows], alone, atol=1e-5)
    other = x.clone()
    other[1:3] += 9
    assert torch.allclose(net(other, tasks)[rows], alone, atol=1e-5)
    assert not net.masking.mixes_samples()
