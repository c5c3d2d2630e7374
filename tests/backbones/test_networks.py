from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, InputError, fresh_statistics, with_progress
from hatrack.backbones import MLP, AlexNet, QuarterTurns, ResNet18, ViT, build_reproducibly, initialize_he


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


def test_he_is_normal_for_convolutions_and_xavier_for_dense_layers() -> None:
    net = nn.Sequential(nn.Conv2d(50, 60, 3), nn.Linear(300, 200))
    initialize_he(net, torch.Generator().manual_seed(0))
    conv, dense = net[0].weight.detach(), net[1].weight.detach()
    deviation = (2 / (50 * 9)) ** 0.5
    assert float(conv.std()) == pytest.approx(deviation, rel=0.02)
    assert float(conv.abs().max()) > 3 * deviation  # which is outside of any uniform distribution of this deviation
    assert 0.99 * (6 / 500) ** 0.5 < float(dense.abs().max()) <= (6 / 500) ** 0.5
    assert not net[0].bias.any()
    assert not net[1].bias.any()


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    build_reproducibly(lambda: MLP((4,), (5,)), 0, xavier=True)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
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
TASKS = ("first", "second", "third")


def noisy_patterns(task: str, count: int) -> tuple[Tensor, Tensor]:
    """Two patterns, one per class, under so much noise that a few samples are taken for the other's."""
    generator = torch.Generator().manual_seed(TASKS.index(task))
    patterns = torch.randn(2, 1, 8, 8, generator=generator)
    y = torch.arange(count) % 2
    return patterns[y] + 1.3 * torch.randn(count, 1, 8, 8, generator=generator), y


def train_on(net: HATNetwork, task: str, epochs: int = 10) -> None:
    x, y = noisy_patterns(task, 96)
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=0.003, weight_decay=0.01))
    net.train()
    for _ in range(epochs):
        for progress, rows in with_progress(torch.randperm(96).split(12)):
            net.anneal(progress)
            loss = F.cross_entropy(net(x[rows], task), y[rows]) + 0.1 * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with fresh_statistics(net):
        for rows in torch.randperm(96).split(12):
            net(x[rows], task)
    net.consolidate(task)
    net.eval()


def plain_accuracy(build: Callable[[], nn.Module], task: str, epochs: int = 10) -> float:
    """Of a network of its own, trained on the task alone and without masks."""
    x, y = noisy_patterns(task, 96)
    model = nn.Sequential(build(), nn.LazyLinear(2))
    model(x[:2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(96).split(12):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    with fresh_statistics(model):
        for rows in torch.randperm(96).split(12):
            model(x[rows])
    x, y = noisy_patterns(task, 1096)
    with torch.no_grad():
        return float((model.eval()(x[96:]).argmax(1) == y[96:]).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_narrow_ones_learn_three_tasks_as_well_as_networks_of_their_own_and_forget_nothing(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(NARROW[name](), torch.zeros(2, 1, 8, 8))
    samples = {task: noisy_patterns(task, 1096)[0][96:] for task in TASKS}
    y = torch.arange(1000) % 2
    promised: dict[str, Tensor] = {}
    for task in TASKS:
        train_on(net, task)
        with torch.no_grad():
            promised[task] = net(samples[task], task)
            assert all(torch.equal(net(samples[earlier], earlier), kept) for earlier, kept in promised.items())
    accuracy = {task: float((logits.argmax(1) == y).float().mean()) for task, logits in promised.items()}
    separate = {task: plain_accuracy(NARROW[name], task) for task in TASKS}
    assert min(separate.values()) > 0.9, separate
    assert mean(accuracy.values()) > mean(separate.values()) - 0.03, (accuracy, separate)


def test_quarter_turns_give_the_features_of_every_turn_and_move_with_the_picture() -> None:
    torch.manual_seed(0)
    inside = AlexNet((2, 20, 20), (0.0, 0.0), width=1 / 16).double()
    turned, x = QuarterTurns(inside), torch.randn(3, 2, 20, 20, dtype=torch.float64)
    expected = torch.cat([inside(torch.rot90(x, turn, (2, 3))) for turn in range(4)], 1) / 4
    torch.testing.assert_close(turned(x), expected)
    torch.testing.assert_close(turned(torch.rot90(x, 1, (2, 3))), expected.roll(-expected.shape[1] // 4, 1))


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 16), (2, 1, 2, 4, 4)])
def test_quarter_turns_refuse_what_is_no_square_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"square pictures .* can be turned, and samples have shape"):
        QuarterTurns(nn.Flatten())(torch.zeros(shape))
