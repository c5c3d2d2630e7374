from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hatrack import HATNetwork, with_progress
from hatrack.networks import MLP, AlexNet, ResNet18, ViT, build_reproducibly


def test_alexnet_has_the_papers_size() -> None:
    net = AlexNet((3, 32, 32))
    classes = 10 + 100 + 10 + 10 + 10 + 43 + 100 + 10  # of the eight data sets, whose heads are counted
    assert sum(p.numel() for p in net.parameters()) + classes * 2049 == pytest.approx(7.1e6, rel=0.01)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 2048)
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    assert shapes == [(64, 3, 4, 4), (128, 64, 3, 3), (256, 128, 2, 2), (2048, 1024), (2048, 2048)]
    dropouts = [module.p for module in net if isinstance(module, nn.Dropout)]
    assert dropouts == [0.2, 0.2, 0.5, 0.5, 0.5]


def test_mlp_layers_and_names() -> None:
    net = MLP((1, 28, 28), (30, 20), (0.2, 0.5))
    names = ["flatten", "dropout0", "dense1", "relu1", "dropout1", "dense2", "relu2", "dropout2"]
    assert [name for name, _ in net.named_children()] == names
    assert [name for name, _ in MLP((4,), (5,)).named_children()] == ["flatten", "dense1", "relu1"]
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 20)


def test_groups_carry_the_layers_names() -> None:
    groups = HATNetwork(AlexNet((1, 20, 20), width=1 / 16), torch.zeros(1, 1, 20, 20)).units.groups
    assert [group.name for group in groups] == ["conv1", "conv2", "conv3", "dense4", "dense5"]


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int, *, xavier: bool = True) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)
        return next(build_reproducibly(lambda: MLP((4,), (5,)), seed, xavier=xavier).parameters()).detach()

    assert torch.equal(weights(0), weights(0))
    assert torch.equal(weights(0, xavier=False), weights(0, xavier=False))
    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(0), weights(0, xavier=False))


def test_xavier_bounds_and_zero_biases() -> None:
    net = build_reproducibly(lambda: MLP((300,), (200,)), 0, xavier=True)
    bound = (6 / 500) ** 0.5
    weight, bias = net.get_parameter("dense1.weight"), net.get_parameter("dense1.bias")
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert not bias.any()


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    build_reproducibly(lambda: MLP((4,), (5,)), 0, xavier=True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_resnet18_has_its_usual_size_and_one_gate_per_stream() -> None:
    net = ResNet18((3, 32, 32))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(11.2e6, rel=0.01)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 512)
    groups = HATNetwork(ResNet18((3, 16, 16), width=8), torch.zeros(1, 3, 16, 16)).units.groups
    streams = [group.name for group in groups if "+" in group.name]
    assert streams[0] == "conv+stage1block1.conv2+stage1block2.conv2"
    assert streams[1] == "stage2block1.conv2+stage2block1.shortcut.conv+stage2block2.conv2"
    assert len(streams) == 4


def test_a_head_is_a_unit_in_the_vit() -> None:
    net = ViT((3, 32, 32))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    groups = HATNetwork(ViT((3, 8, 8), width=24, depth=2), torch.zeros(1, 3, 8, 8)).units.groups
    sizes = {group.name: group.size for group in groups}
    assert sizes["blocks.0.attention.qkv"] == sizes["blocks.1.attention.qkv"] == 6
    assert sizes["blocks.1.dense1"] == 96


NARROW = {"resnet18": lambda: ResNet18((1, 8, 8), width=8), "vit": lambda: ViT((1, 8, 8), width=24, depth=2)}


@pytest.mark.parametrize("name", NARROW)
def test_narrow_ones_learn_two_tasks_and_forget_nothing(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(NARROW[name](), torch.zeros(2, 1, 8, 8))
    y = torch.arange(48) % 2
    samples, promised = {}, {}
    for task in ("first", "second"):
        pattern = torch.randn(2, 1, 8, 8)
        samples[task] = pattern[y] + 0.3 * torch.randn(48, 1, 8, 8)
        net.add_task(task, 2)
        optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=0.003, weight_decay=0.01))
        net.train()
        for _ in range(8):
            for progress, rows in with_progress(torch.randperm(48).split(12)):
                net.anneal(progress)
                loss = F.cross_entropy(net(samples[task][rows], task), y[rows]) + 0.3 * net.regularization()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        net.consolidate(task)
        net.eval()
        with torch.no_grad():
            promised[task] = net(samples[task], task)
            assert (promised[task].argmax(1) == y).float().mean() > 0.9
            assert all(torch.equal(net(samples[name], name), kept) for name, kept in promised.items())
