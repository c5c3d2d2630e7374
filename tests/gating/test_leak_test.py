"""The leak test when a network is attached: what it overwrites, what it finds, and how often it runs the backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import GuaranteeError, HATNetwork, units
from hatrack.gating import leak_test
from hatrack.gating.attachment import Attachment
from hatrack.units import analyze


class Mixing(nn.Module):
    """Subtracts the mean over units from them, in the middle of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(6, width), self.Centre(), nn.Linear(width, width)

    class Centre(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h - h.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.leave(torch.relu(self.middle(self.enter(x)))))


@pytest.mark.parametrize("width", [4, 30, 600])
def test_a_leak_in_a_rule_is_found_on_narrow_and_on_wide_networks(width: int) -> None:
    wrong: dict[Any, Any] = {"middle": units.unit_by_unit()}
    torch.manual_seed(0)
    backbone = Mixing(width)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(GuaranteeError, match=r"masks do not protect this network: free entries of .*enter"):
        HATNetwork(backbone, torch.zeros(1, 6), rules=wrong)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def count_runs(backbone: nn.Module) -> list[int]:
    """Return a list to which every later call of a backbone, or of a copy, adds its number of samples."""
    counts: list[int] = []
    backbone.register_forward_pre_hook(lambda module, args: counts.append(len(args[0])))
    return counts


@pytest.mark.parametrize(("width", "masks"), [(4, 4), (30, 2)])
def test_narrow_networks_are_tried_under_more_masks(width: int, masks: int) -> None:
    backbone = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    graph = analyze(backbone, torch.zeros(1, 6), "backbone.")
    attachment, counts = Attachment(graph, backbone), count_runs(backbone)
    assert leak_test.find_leak(attachment, graph, backbone, torch.randn(1, 6), is_drawn=True) is None
    assert counts == [1] * (2 * masks)


def test_attaching_takes_thirteen_forward_passes() -> None:
    reals = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU())
    tokens = nn.Sequential(nn.Embedding(11, 30), nn.Linear(30, 30), nn.ReLU(), nn.Flatten())
    for backbone, example, most in ((reals, torch.zeros(1, 6), 12), (tokens, torch.zeros(1, 5).long(), 13)):
        counts = count_runs(backbone)
        HATNetwork(backbone, example)
        assert sum(counts) <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (500, 300), (2, 200, 30, 30), (1, 300_000)])
def test_free_entries_alone_get_huge_values_of_both_signs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor, free = torch.randn(shape).to(dtype), torch.rand(shape) < 0.5
    before = tensor.clone()
    leak_test.overwrite(tensor, free, generator)
    assert torch.equal(tensor[~free], before[~free])
    assert bool((tensor[free].abs() >= 1e3).all())
    if tensor.numel() > 100:
        assert 0.3 < float((tensor[free] > 0).float().mean()) < 0.7
