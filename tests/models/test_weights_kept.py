"""Networks with masks of weights in files, copies, other types, threads and odd backbones."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hatrack
from hatrack import (
    CheckpointError,
    GuaranteeError,
    HATNetwork,
    InputError,
    UnsupportedError,
    WeightMaskedNetwork,
)
from hatrack.backbones import MLP
from hatrack.masks import Embedding, FreeWeights, Unmasked, bytes_for
from support.helpers import CLASSES, easy_task, logits
from support.marks import slow_but
from support.weight_networks import (
    BACKBONES,
    EVERY_KIND,
    attach,
    learn,
    train,
)


@EVERY_KIND
@pytest.mark.parametrize("backbone", slow_but(["mlp", "tied"], ["mlp", "conv-bn", "tied"]))
def test_a_round_trip_and_on_it_goes(kind: str, backbone: str, tmp_path: Path) -> None:
    net = attach(kind, backbone)
    samples = {task: learn(net, task, seed)[0] for seed, task in enumerate(["a", "b.ü"])}
    net.add_task("unfinished", CLASSES, generator=torch.Generator().manual_seed(2))
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", BACKBONES[backbone][0]())
    assert isinstance(again, WeightMaskedNetwork)
    assert (again.source, again.conditioning, again.unmasked) == (net.source, net.conditioning, net.unmasked)
    assert again.task_names == net.task_names
    assert again.task_in_training == "unfinished"
    protected = net.protected()
    assert all(torch.equal(held, protected[name]) for name, held in again.protected().items())
    for task, x in samples.items():
        assert torch.equal(logits(again, x, task), logits(net, x, task))
        assert all(torch.equal(mask, again.masks(task)[name]) for name, mask in net.masks(task).items())
    for each in (net, again):
        x, y = easy_task(each.example_shape[1:], 2)
        optimizer = each.protect(torch.optim.Adam(each.task_parameters("unfinished"), lr=0.01))
        torch.manual_seed(0)
        train(each, "unfinished", x, y, optimizer, 3)
        each.consolidate("unfinished")
    assert torch.equal(logits(again, x, "unfinished"), logits(net, x, "unfinished"))
    again.save(tmp_path / "again.hat")
    net.save(tmp_path / "net.hat")
    assert (tmp_path / "again.hat").read_bytes() == (tmp_path / "net.hat").read_bytes()


def test_a_settled_task_is_saved_and_goes_on(tmp_path: Path) -> None:
    net = attach("packnet")
    net.add_task("first", CLASSES)
    net.settle("first")
    with pytest.raises(InputError, match="mask of task 'first' is settled already"):
        net.settle("first")
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", BACKBONES["mlp"][0]())
    assert all(torch.equal(mask, again.masks("first")[name]) for name, mask in net.masks("first").items())
    again.consolidate("first")


@EVERY_KIND
def test_a_consolidated_mask_takes_a_bit_per_weight(kind: str) -> None:
    net = attach(kind)
    learn(net, "first")
    state = net.tasks[0].state_dict()
    entries = {name: mask.numel() for name, mask in net.masks("first").items()}
    assert state["packed"].dtype == torch.uint8
    assert state["packed"].numel() == sum(map(bytes_for, entries.values()))
    large = [
        name for name, value in state.items() if isinstance(value, Tensor) and value.numel() > max(entries.values())
    ]
    assert large == []
    assert not any(name.startswith("choice") for name in state)


def test_what_a_mask_was_learned_by_leaves_optimizers_too() -> None:
    """Of a consolidated or settled task nothing is left in a protected optimizer that its mask could be read from."""
    net = WeightMaskedNetwork(MLP((6,), (8, 8), (0.0, 0.0)), torch.zeros(1, 6), source=Embedding(s_max=100.0))
    net.add_task("a", 3)
    choice = [parameter for parameter in net.task_parameters("a", new_only=True) if parameter.shape in ((8, 6), (8, 8))]
    assert len(choice) == 2
    optimizer = net.protect(torch.optim.Adam(net.task_parameters("a")))
    x, y = easy_task((6,), 0)
    (F.cross_entropy(net(x, "a"), y) + net.regularization()).backward()
    optimizer.step()
    assert all(optimizer.state[parameter] for parameter in choice)
    net.consolidate("a")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not any(id(parameter) in held or parameter in optimizer.state for parameter in choice)


def test_a_file_of_another_kind_is_read_as_what_it_is(tmp_path: Path) -> None:
    hat = HATNetwork(BACKBONES["mlp"][0](), torch.zeros(2, 6))
    hat.save(tmp_path / "hat.hat")
    assert isinstance(hatrack.load(tmp_path / "hat.hat", BACKBONES["mlp"][0]()), HATNetwork)
    with pytest.raises(CheckpointError, match=r"holds a hatrack\.HATNetwork, not a hatrack\.WeightMaskedNetwork"):
        hatrack.models.loading.load_as(WeightMaskedNetwork, tmp_path / "hat.hat", BACKBONES["mlp"][0]())
    attach("wsn").save(tmp_path / "wsn.hat")
    with pytest.raises(CheckpointError, match="another backbone"):
        hatrack.load(tmp_path / "wsn.hat", MLP((6,), (32, 31)))


@EVERY_KIND
def test_moved_entries_are_noticed_and_put_back(kind: str) -> None:
    net = attach(kind)
    x, _ = learn(net, "first")
    promised = logits(net, x, "first")
    name = "dense2.weight"
    with torch.no_grad():
        net.backbone.get_parameter(name).add_(1.0)
    with pytest.raises(GuaranteeError, match=r"protected entries have moved in backbone\.dense2\.weight"):
        net.check()
    net.restore()
    assert torch.equal(logits(net, x, "first"), promised)
    with torch.no_grad():
        net.tasks[0].packed.bitwise_not_()
    with pytest.raises(GuaranteeError, match="task first"):
        net.check()


@EVERY_KIND
def test_a_copy_and_a_state_dict_go_on_alone(kind: str) -> None:
    net = attach(kind, "conv-bn")
    x, _ = learn(net, "old")
    promised = logits(net, x, "old")
    other = attach(kind, "conv-bn", seed=1)
    other.add_task("old", CLASSES)
    other.load_state_dict(net.state_dict())
    for twin in (copy.deepcopy(net), other):
        assert torch.equal(logits(twin, x, "old"), promised)
        before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, Tensor)}
        learn(twin, "new", 1)
        assert torch.equal(logits(twin, x, "old"), promised)
        assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    learn(net, "new", 2)
    assert torch.equal(logits(net, x, "old"), promised)


def test_a_finished_state_goes_into_an_unfinished_network() -> None:
    net = attach("pmask")
    net.add_task("first", CLASSES)
    chosen, finished = net.masks("first"), copy.deepcopy(net)
    finished.consolidate("first")
    net.load_state_dict(finished.state_dict())
    assert net.task_in_training is None
    assert all(torch.equal(mask, chosen[name]) for name, mask in net.masks("first").items())


@EVERY_KIND
def test_another_type(kind: str, tmp_path: Path) -> None:
    net = attach(kind, "conv-bn").double()
    x, _ = learn_in_double(net)
    promised = logits(net, x, "first")
    with pytest.warns(UserWarning, match="this conversion rounds weights"):
        net.float()
    net.check()
    assert torch.allclose(logits(net, x.float(), "first").double(), promised, atol=1e-3)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", BACKBONES["conv-bn"][0]())
    assert torch.equal(logits(again, x.float(), "first"), logits(net, x.float(), "first"))


def learn_in_double(net: WeightMaskedNetwork) -> tuple[Tensor, Tensor]:
    x, y = easy_task(net.example_shape[1:], 0, torch.float64)
    net.add_task("first", CLASSES)
    net.double()
    train(net, "first", x, y, net.protect(torch.optim.Adam(net.task_parameters("first"), lr=0.01)), 3)
    net.consolidate("first")
    return x, y


@pytest.mark.slow
def test_threads_ask_about_different_tasks_at_the_same_time() -> None:
    net = attach("wsn", "alexnet")
    samples = {f"task {seed}": learn(net, f"task {seed}", seed, steps=2)[0] for seed in range(3)}
    promised = {task: logits(net, x, task) for task, x in samples.items()}
    net.eval()
    wrong: list[str] = []

    def ask(task: str) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(net(samples[task], task), promised[task]):
                    wrong.append(task)

    threads = [threading.Thread(target=ask, args=(task,)) for task in samples]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Recomputing(nn.Module):
    """Recomputes its middle in the backward pass, and asks about another task in between if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(6, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = checkpoint(self.middle, torch.relu(self.first(x)), use_reentrant=False)
        return torch.relu(h)


def test_what_is_recomputed_is_computed_under_the_mask_of_its_forward_pass() -> None:
    torch.manual_seed(0)
    net = WeightMaskedNetwork(Recomputing(), torch.zeros(2, 6))
    net.add_task("first", 2)
    net.consolidate("first")
    net.add_task("second", 2)
    x = torch.randn(5, 6)
    gradients = []
    for disturb in (False, True):
        net.zero_grad()
        loss = net(x, "second").square().sum()
        if disturb:
            net(x, "first")
        loss.backward()
        gradients.append([p.grad.clone() for p in net.task_parameters("second") if p.grad is not None])
    assert len(gradients[0]) > 3
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_task_per_sample() -> None:
    net = attach("wsn")
    samples = {f"task {seed}": learn(net, f"task {seed}", seed)[0] for seed in range(2)}
    x = torch.cat([samples["task 0"][:2], samples["task 1"][:2]])
    mixed = net.eval()(x, ["task 0", "task 0", "task 1", "task 1"])
    assert torch.allclose(mixed[:2], net(x[:2], "task 0"))
    assert torch.allclose(mixed[2:], net(x[2:], "task 1"))


class Hidden(nn.Module):
    """Calls its layers by functions that hold them, so that nobody knows that they are called by it."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.ModuleList([nn.Linear(6, 16), nn.Linear(16, 16)])
        self.hidden = [lambda x, layer=layer: layer(x) for layer in self.known]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return x


def test_layers_that_are_reached_behind_the_masks_back_are_found_out() -> None:
    backbone = Hidden()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(GuaranteeError, match=r"free entries of known\.0\.weight.* change the outputs"):
        WeightMaskedNetwork(backbone, torch.zeros(2, 6))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Centred(nn.Module):
    """Subtracts a running mean that it updates in training: a state that no parameter shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.layer(x))
        if self.training:
            self.mean.lerp_(h.detach().mean(0), 0.1)
        return h - self.mean


def test_a_buffer_that_changes_the_outputs_is_every_tasks_own() -> None:
    net = WeightMaskedNetwork(Centred(), torch.zeros(2, 6))
    net.add_task("first", 2)
    net.consolidate("first")
    x = torch.randn(9, 6)
    promised = logits(net, x, "first")
    net.add_task("second", 2)
    net.train()
    net(x, "second")
    net.consolidate("second")
    assert torch.equal(logits(net, x, "first"), promised)
    assert net.tasks[1].moving.values[0].any()


def test_what_cannot_be_attached() -> None:
    with pytest.raises(UnsupportedError, match="no dense, convolutional"):
        WeightMaskedNetwork(nn.Flatten(), torch.zeros(2, 6))
    with pytest.raises(InputError, match=r"features \(N, …, F\)"):
        WeightMaskedNetwork(nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), torch.zeros(2, 1, 6))
    net = attach("wsn")
    with pytest.raises(InputError, match="anneal acts on the task in training"):
        net.anneal(0.5)
    net.add_task("first", 2)
    with pytest.raises(InputError, match=r"progress must lie in \[0, 1\], not 1.5"):
        net.anneal(1.5)
    with pytest.raises(InputError, match="the network expects"):
        net(torch.zeros(2, 7), "first")


def test_first_tasks_biases_are_everyones_only_if_asked_for() -> None:
    for unmasked in Unmasked:
        net = attach("wsn", "conv-bn", unmasked=unmasked)
        learn(net, "first")
        learn(net, "second", 1)
        own = len(net.tasks[1].copies) + len(net.tasks[1].norms)
        assert (own == 0) == (unmasked is Unmasked.FIRST_TASK)


def test_free_weights_of_a_layer_no_mask_needs_are_trained_on() -> None:
    net = attach("wsn")
    learn(net, "first")
    before = net.backbone.get_parameter("dense2.weight").clone()
    learn(net, "second", 1)
    moved = net.backbone.get_parameter("dense2.weight") != before
    assert not (moved & net.masks("first")["dense2.weight"]).any()
    assert (moved & net.masks("second")["dense2.weight"]).any()
    assert isinstance(net.conditioning, FreeWeights)


@EVERY_KIND
def test_asking_in_inference_mode_leaves_nothing_behind_that_training_would_stumble_on(kind: str) -> None:
    net = attach(kind)
    x, y = learn(net, "first")
    promised = logits(net, x, "first")
    net.add_task("second", CLASSES)
    net.settle("second")
    with torch.inference_mode():
        for task in ("first", "second"):
            net.eval()(x, task)
        assert torch.equal(net(x, "first"), promised)
        net(x, "second")
    train(net, "second", x, y, net.protect(torch.optim.SGD(net.task_parameters("second"), lr=0.05)), 2)
    with torch.inference_mode():
        net.consolidate("second")
    net.check()
    learn(net, "third", 1)
    assert torch.equal(logits(net, x, "first"), promised)
