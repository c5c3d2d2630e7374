"""Samples of several tasks in one batch: what the tasks say one by one."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import nn

from hatrack import BatchNorms, HATNetwork, InputError
from hatrack.gating.mixing import MixedNorm
from support.architectures import ARCHITECTURES, FOLDED, assert_close, tasks_of
from support.helpers import NETS, SAMPLES, attach, learn, mode, open_task
from support.marks import slow_but
from support.zoo import CHEAP, FEATURES


@pytest.mark.parametrize("name", slow_but(CHEAP, ARCHITECTURES))
def test_a_mixed_batch_is_the_tasks_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    architecture = ARCHITECTURES[name]
    net = HATNetwork(architecture.build(), architecture.samples(2, generator))
    names = tasks_of(net, 3)
    x, order = architecture.samples(11, generator), torch.randint(3, (11,), generator=generator).tolist()
    with mode(net, False), torch.no_grad():
        mixed = net(x, [names[number] for number in order])
        alone = torch.stack([net(x, task) for task in names])
    assert_close(mixed, alone[order, torch.arange(11)], 2e-5)
    assert net.masking.mixes_samples() != (name in FOLDED)


def test_one_pass_serves_all_tasks() -> None:
    net = attach("conv-bn")
    for number in range(3):
        x, _ = learn(net, f"t{number}", number)
    names = [f"t{number % 3}" for number in range(SAMPLES)]
    with mode(net, False), torch.no_grad():
        net(x, names)
        with patch.object(net.masking.attachment, "run", wraps=net.masking.attachment.run) as run:
            net(x, names)
        assert run.call_count == 1
        net.train()
        with patch.object(net.masking.attachment, "run", wraps=net.masking.attachment.run) as run:
            net(x, names)
        assert run.call_count == 3, "in training mode norms look at a task's own samples"


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("norms", BatchNorms)
def test_soft_masks_shared_norms_and_a_task_in_training(hard: bool, norms: BatchNorms) -> None:
    torch.manual_seed(0)
    shape = NETS["conv-bn"].shape
    net = HATNetwork(NETS["conv-bn"].build(), torch.zeros(2, *shape), s_max=100.0, hard=hard, batch_norms=norms)
    learn(net, "a")
    x, _ = learn(net, "b", 1)
    open_task(net, "c", 2)
    names = ["c", "a", "b"] * (SAMPLES // 3)
    with mode(net, False), torch.no_grad():
        mixed = net(x, names)
        for row, name in enumerate(names):
            assert_close(mixed[row], net(x, name)[row])


def test_a_network_that_grew_is_tried_out_again() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    learn(net, "b", 1)
    names = ["a", "b"] * (SAMPLES // 2)
    with mode(net, False), torch.no_grad():
        before = net(x, names)
        net.grow({"1": 4, "4": 4})
        assert_close(net(x, names), before)


def test_a_wrong_shape_is_named() -> None:
    net = attach("mlp")
    learn(net, "a")
    learn(net, "b", 1)
    net.eval()
    with pytest.raises(InputError, match="the network expects"):
        net(torch.zeros(2, 5), ["a", "b"])


class SamplesLast(nn.Module):
    """Sequences before samples, as recurrent networks like it: five steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(*FEATURES, 12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.relu(self.first(x.unsqueeze(0).expand(5, *x.shape)))
        return torch.relu(self.second(steps)).mean(0)


def test_an_axis_that_has_the_batchs_size_by_accident_deceives_nobody() -> None:
    torch.manual_seed(0)
    net = HATNetwork(SamplesLast(), torch.zeros(2, *FEATURES))
    names = tasks_of(net, 2)
    x = torch.randn(5, *FEATURES)
    with mode(net, False), torch.no_grad():
        mixed = net(x, [names[0], names[1], names[1], names[0], names[1]])
        assert_close(mixed[2], net(x, names[1])[2])
    assert not net.masking.mixes_samples()


@pytest.mark.parametrize("affine", [True, False])
def test_a_mixed_norm_is_each_samples_own(affine: bool) -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(3, affine=affine).double().eval() for _ in range(2)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    x, task_of = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.tensor([1, 0, 0, 1])
    found = MixedNorm(norms, task_of)(x)
    for row, number in enumerate(task_of.tolist()):
        torch.testing.assert_close(found[row], norms[number](x)[row])
