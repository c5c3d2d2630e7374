"""Networks on another device than the CPU: whatever is computed with them lies where they do."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, Scorer, WeightMaskedNetwork
from hatrack.methods import METHODS
from hatrack.state.twins import twin
from hatrack.train.scoring import predict_split
from support.architectures import ARCHITECTURES
from support.helpers import open_task
from support.marks import is_deep, slow_but
from support.second_device import second_device
from support.toys import OPTIMIZERS as OPTIONS
from support.toys import learn as learn_with
from support.toys import setup, tasks
from support.weight_networks import BACKBONES, KINDS, OPTIMIZERS
from support.zoo import BasicBlock

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Recurrent(nn.Module):
    """Last outputs of a recurrent layer, and a dense layer."""

    def __init__(self, kind: Callable[..., nn.Module], **options: object) -> None:
        super().__init__()
        self.layer = kind(6, 10, batch_first=True, **options)
        self.dense = nn.LazyLinear(8)
        self.dense(torch.zeros(1, self.layer(torch.zeros(1, 5, 6))[0].shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(self.layer(x)[0][:, -1]))


class Packed(nn.Module):
    """A recurrent layer over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dense = nn.LSTM(6, 10, batch_first=True), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 3), batch_first=True)
        return F.relu(self.dense(nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0][:, -1]))


class Attention(nn.Module):
    """Attention of torch's, with a mask."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(6, 16), nn.Linear(16, 8)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inputs(x))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return F.relu(self.outputs(self.attention(h, h, h, need_weights=False, attn_mask=mask)[0].mean(1)))


class Chosen(nn.Module):
    """Units and rows that are put in another order by indices that lie with the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 8)
        self.register_buffer("order", torch.arange(12).flip(0))
        self.register_buffer("rows", torch.tensor([2, 0, 1, 3, 4]))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x)).index_select(1, self.rows)[..., self.order]
        h = h.gather(2, self.order.expand(h.shape).contiguous()).take_along_dim(self.order.expand(h.shape), 2)
        h = torch.where(self.order > 3, h, 2 * h).masked_fill(self.rows.view(-1, 1) > 3, 0.0)
        added = torch.zeros_like(h).index_add(1, self.rows, h).index_copy(1, self.rows, h)
        added = added.scatter(2, self.order.expand(h.shape).contiguous(), h).clone()
        added[:, self.rows[:2]] = 2 * h[:, :2]
        return F.relu(self.second(added.repeat_interleave(torch.tensor([1, 2, 1, 1, 1], device=x.device), 1).mean(1)))


def convolutions(norm: Callable[[int], nn.Module]) -> nn.Module:
    inside = (nn.Conv2d(3, 8, 3, 2), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8), nn.ReLU())
    return nn.Sequential(*inside, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, norm_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(30, 8))


SEQUENCE, PICTURE = (5, 6), (3, 10, 10)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCE),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCE),
    "rnn": (lambda: Recurrent(nn.RNN), SEQUENCE),
    "lstm, both directions": (lambda: Recurrent(nn.LSTM, bidirectional=True, num_layers=2), SEQUENCE),
    "lstm, projected": (lambda: Recurrent(nn.LSTM, proj_size=5), SEQUENCE),
    "packed": (Packed, SEQUENCE),
    "attention": (Attention, SEQUENCE),
    "attention, more keys": (lambda: Attention(add_bias_kv=True, add_zero_attn=True), SEQUENCE),
    "encoder": (encoder, SEQUENCE),
    "chosen": (Chosen, SEQUENCE),
    "group norms": (lambda: convolutions(lambda width: nn.GroupNorm(2, width)), PICTURE),
    "instance norms": (lambda: convolutions(lambda width: nn.InstanceNorm2d(width, affine=True)), PICTURE),
    "batch norms": (lambda: convolutions(nn.BatchNorm2d), PICTURE),
    "channels last": (lambda: convolutions(nn.BatchNorm2d).to(memory_format=torch.channels_last), PICTURE),
    "resnet": (
        lambda: nn.Sequential(BasicBlock(3, 8, 1), BasicBlock(8, 8, 2), nn.Flatten(), nn.Linear(200, 8)),
        PICTURE,
    ),
    **{name: BACKBONES[name] for name in ("mlp", "vit")},
}


WHOLE = ("chosen", "encoder")
"""Networks with widths written down: indices of all units, and units that are coupled with the inputs."""


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.equal(here, there),
        lambda here, there: there.index_select(0, torch.tensor([1])),
        lambda here, there: there.masked_fill(torch.tensor([True, False, True]), 0.0),
        lambda here, there: here[there.long()],
        lambda here, there: torch.tensor(0.0).add_(there.sum()),
        lambda here, there: F.linear(there, torch.ones(2, 3)),
        lambda here, there: there.uniform_(generator=torch.Generator()),
        lambda here, there: torch.randn(3, device=there.device, generator=torch.Generator()),
        lambda here, there: there.numpy(),
    ],
)
def test_the_second_device_refuses_what_a_gpu_refuses(mixed: Callable[[Tensor, Tensor], object]) -> None:
    with second_device(strict=False) as device, pytest.raises((RuntimeError, TypeError)):
        mixed(torch.zeros(3), torch.ones(3, device=device))


def test_a_refusal_that_is_caught_shows_in_the_end() -> None:
    def caught() -> None:
        with second_device() as device, contextlib.suppress(RuntimeError):
            torch.zeros(3).add(torch.ones(3, device=device))

    with pytest.raises(AssertionError, match="same device"):
        caught()


def test_the_second_device_lets_through_what_a_gpu_does() -> None:
    with second_device() as device:
        here, there = torch.zeros(3), torch.ones(3, device=device)
        assert here.device.type == "cpu"
        results = [there + torch.tensor(1.0), there[torch.tensor([0, 1])], there[1:], here.to(there), there.clone()]
        results += [there.new_zeros(2), torch.zeros_like(there), copy.deepcopy(there), here.cuda(), there.double()]
        assert all(each.device == device for each in results)
        assert (here + there.cpu()).device.type == "cpu"
        layer = nn.Linear(3, 2).to(device)
        layer(there).sum().backward()
        assert all(p.device == device and p.grad is not None and p.grad.device == device for p in layer.parameters())
    assert there.device.type == "cpu", "outside nothing is pretended"


@pytest.mark.parametrize(
    "name",
    slow_but(
        set(NETWORKS) - {"encoder", "resnet", "vit", "chosen", "lstm, projected", "lstm, both directions"}, NETWORKS
    ),
)
@torch.no_grad()
def test_tasks_are_extracted_where_the_network_is(name: str) -> None:
    build, shape = NETWORKS[name]
    with second_device() as device:
        torch.manual_seed(0)
        net = HATNetwork(build().to(device), torch.randn(2, *shape))
        open_task(net, "task", 1, 0.6)
        net.consolidate("task")
        x = torch.randn(4, *shape).to(device)
        network = net.extract("task")
        assert {tensor.device for tensor in (*network.parameters(), *network.buffers())} == {device}
        torch.testing.assert_close(network(x).cpu(), net.eval()(x, "task").cpu(), rtol=1e-4, atol=1e-5)
        assert network.summary is not None
        assert bool(network.summary.whole) == (name in WHOLE), "for no want of a device"


def live(net: HATNetwork | WeightMaskedNetwork, again: Callable[[], nn.Module], optimizer: str, folder: Path) -> None:
    """Do with a network on the second device what can be done with one."""
    device = next(net.parameters()).device
    shape = net.masking.example_input
    samples: dict[str, tuple[Tensor, Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def train(task: str) -> None:
        protected = net.protect(OPTIMIZERS[optimizer](net.task_parameters(task)))
        net.train()
        x = shape.batch(6, torch.device("cpu"))
        assert isinstance(x, Tensor)
        x = x if not x.is_floating_point() else torch.randn(x.shape, generator=generator)
        samples[task] = x.to(device), torch.arange(6).to(device) % 2
        for step in range(2):
            net.anneal(step)
            loss = F.cross_entropy(net(samples[task][0], task), samples[task][1]) + net.regularization()
            protected.zero_grad()
            loss.backward()
            protected.step()
        net.consolidate(task)

    for task in ("a", "b"):
        net.add_task(task, 2)
        train(task)
    net.eval()
    x, _ = samples["a"]
    said = net(x, "a").detach()
    assert said.device == device
    assert net.extract("a")(x).device == device
    assert net(x, ["a", "b"] * 3).device == device
    assert {mask.device for mask in net.masks("a").values()} == {device}
    _ = net.capacity(), net.usage(), net.reuse(), net.plan(), net.protected(), net.check(), net.restore(), repr(net)
    for task, (ours, classes) in samples.items():
        net.calibrate(task, ours, classes)
    for scorer in Scorer if x.is_floating_point() else ():
        net.infer(x, scorer)
    net.save(folder / "net.hat")
    loaded = hatrack.load(folder / "net.hat", again().to(device)).eval()
    assert torch.equal(loaded(x, "a"), said)
    loaded.load_state_dict(net.state_dict())
    moved = hatrack.load(folder / "net.hat", again()).to(device).eval()
    assert torch.equal(moved(x, "a"), said)
    assert torch.equal(net.cpu().to(device)(x, "a"), said)
    assert torch.equal(copy.deepcopy(net)(x, "a"), said)
    net.add_task("c", 2)
    train("c")
    assert torch.equal(net.eval()(x, "a"), said)
    net.forget("b")
    assert torch.equal(net(x, "a"), said)
    net.detach()


LIVES = [(name, "units") for name in NETWORKS] + [
    (name, kind) for name, kind in zip(list(NETWORKS)[:: 1 if is_deep() else 4], itertools.cycle(KINDS), strict=False)
]
"""Networks with masks of units, and some with one kind of masks of weights; in a deep run all."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), LIVES)
def test_a_network_lives_on_a_second_device(name: str, kind: str, tmp_path: Path) -> None:
    build, shape = NETWORKS[name]
    with second_device() as device:
        torch.manual_seed(0)
        backbone, example = build().to(device), torch.randn(2, *shape)
        optimizer = list(OPTIMIZERS)[len(name) % len(OPTIMIZERS)]
        net = (
            HATNetwork(backbone, example) if kind == "units" else WeightMaskedNetwork(backbone, example, **KINDS[kind])
        )
        live(net, build, optimizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words", "swin", "gpt"])
def test_tokens_and_windows_live_on_a_second_device(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    with second_device() as device:
        torch.manual_seed(0)
        example = architecture.samples(2, torch.Generator().manual_seed(0))
        live(HATNetwork(architecture.build().to(device), example), architecture.build, "adamw", tmp_path)


@pytest.mark.slow
@torch.no_grad()
def test_a_network_is_widened_where_it_is() -> None:
    with second_device() as device:
        net = HATNetwork(BACKBONES["mlp"][0]().to(device), torch.zeros(2, 6))
        open_task(net, "task", 1, 0.6)
        net.consolidate("task")
        x = torch.randn(4, 6).to(device)
        before = net.eval()(x, "task")
        net.grow({net.units.groups[0].name: 3})
        torch.testing.assert_close(net(x, "task").cpu(), before.cpu())
        assert {parameter.device for parameter in net.parameters()} == {device}


@pytest.mark.parametrize("name", slow_but(set(METHODS) - {"pnn", "hat", "pathnet", "adahat", "pmask"}, METHODS))
def test_methods_train_on_a_second_device(name: str, tmp_path: Path) -> None:
    seen = tasks("mlp", 2, samples=32)
    options = {} if name in ("pathnet", "den", "packnet") else OPTIONS["momentum-decay"]
    with second_device() as device:
        start = replace(setup("mlp"), device=device, classes=(2, 3))
        method, other = (METHODS[name](start, METHODS[name].settings_type()) for _ in range(2))
        learn_with(method, seen[:1], epochs=2, **options)
        said = predict_split(method, seen[0].test, seen[0].name, 16)
        method.save(tmp_path / "net.hat")
        other.load(tmp_path / "net.hat")
        assert torch.equal(predict_split(other, seen[0].test, seen[0].name, 16), said)
        learn_with(other, seen, first=1, epochs=2, **options)
        predict_split(other, seen[1].test, seen[1].name, 16)


@torch.no_grad()
def test_a_twin_of_a_recurrent_layer_never_moves_weights_to_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a GPU torch puts the weights that a recurrent layer reads, others than before, into memory of their own: those
    # of the original that the twin shares, too.
    layer = nn.LSTM(3, 4)
    x = torch.randn(2, 1, 3)
    other = twin(layer, {id(layer.weight_ih_l0): nn.Parameter(2 * layer.weight_ih_l0)}, {})
    expected = copy.deepcopy(layer)
    expected.weight_ih_l0.mul_(2)
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", lambda self: pytest.fail("weights are moved"))
    assert torch.equal(other(x)[0], expected(x)[0])


@pytest.mark.parametrize("kind", ["units", "weights"])
@torch.no_grad()
def test_an_extracted_recurrent_layer_has_its_weights_side_by_side(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net: HATNetwork | WeightMaskedNetwork
    torch.manual_seed(0)
    if kind == "units":
        net = HATNetwork(Recurrent(nn.LSTM), torch.randn(2, *SEQUENCE))
        open_task(net, "task", 1, 0.6)
    else:
        net = WeightMaskedNetwork(Recurrent(nn.LSTM), torch.randn(2, *SEQUENCE), **KINDS["wsn"])
        net.add_task("task", 2)
    net.consolidate("task")
    flattened = []
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", lambda self: flattened.append(list(self._flat_weights)))
    layer = net.extract("task").get_submodule("backbone.layer")
    kept = [id(parameter) for parameter in layer.parameters()]
    assert kept in [[id(weight) for weight in weights] for weights in flattened]
