"""Networks with masks of weights: the law, the poison test, and slow oracles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import (
    HATNetwork,
    InputError,
    UnsupportedError,
    WeightMaskedNetwork,
)
from hatrack.masks import Unmasked, WeightRole
from support.helpers import CLASSES, assert_poison_harmless, logits, mode, progress
from support.marks import in_turn, slow_but, slow_unless
from support.weight_networks import (
    BACKBONES,
    EVERY_KIND,
    KINDS,
    OPTIMIZERS,
    assert_own_poison_harmless,
    attach,
    learn,
)


@EVERY_KIND
@pytest.mark.parametrize(
    ("backbone", "optimizer"),
    slow_unless(
        lambda backbone, optimizer: backbone in ("mlp", "tied") and optimizer == "adamw",
        dict.fromkeys([("mlp", "adamw"), ("tied", "adamw"), *in_turn(BACKBONES, ("momentum-decay", "adamw"))]),
    ),
)
def test_the_law_and_the_poison(kind: str, backbone: str, optimizer: str) -> None:
    net = attach(kind, backbone)
    samples: dict[str, Tensor] = {}
    promised: dict[str, Tensor] = {}
    for seed in range(3):
        task = f"task {seed}"
        samples[task], _ = learn(net, task, seed, steps=4, optimizer=optimizer)
        promised[task] = logits(net, samples[task], task)
        for name, x in samples.items():
            assert torch.equal(logits(net, x, name), promised[name]), f"{name} after {task}"
    net.check()
    assert_poison_harmless(net, samples)  # type: ignore[arg-type]
    assert_own_poison_harmless(net, samples)


@EVERY_KIND
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_optimizer_for_all_tasks_with_all_parameters(kind: str, optimizer: str) -> None:
    net = attach(kind)
    x, _ = learn(net, "first")
    promised = logits(net, x, "first")
    net.add_task("second", CLASSES)
    carried = net.protect(OPTIMIZERS[optimizer](net.parameters()))
    y = torch.arange(len(x)) % CLASSES
    net.train()
    for step in range(6):
        net.anneal(progress(step))
        carried.zero_grad(set_to_none=False)
        F.cross_entropy(net(x, "second"), y).backward()
        carried.step()
        assert torch.equal(logits(net, x, "first"), promised)
        net.train()
    net.consolidate("second")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "optimizer"), [("pmask", "adam"), ("wsn", "adam"), ("supsup", "adam"), ("packnet", "sgd")]
)
def test_tasks_are_learned(kind: str, optimizer: str) -> None:
    net = attach(kind)
    samples = {f"task {seed}": learn(net, f"task {seed}", seed, 60, optimizer) for seed in range(3)}
    for task, (x, y) in samples.items():
        assert float((logits(net, x, task).argmax(1) == y).float().mean()) > 0.9, task


@EVERY_KIND
@pytest.mark.parametrize("backbone", slow_but(["mlp", "tied"], ["mlp", "resnet18", "tied", "recurrent"]))
def test_a_plain_network_with_weights_multiplied_by_the_mask_says_the_same(kind: str, backbone: str) -> None:
    net = attach(kind, backbone)
    samples = {f"task {seed}": learn(net, f"task {seed}", seed)[0] for seed in range(2)}
    for index, (task, x) in enumerate(samples.items()):
        plain = BACKBONES[backbone][0]().eval()
        plain.load_state_dict(net.backbone.state_dict())
        masks = net.masks(task)
        state = net.tasks[0 if net.unmasked is Unmasked.FIRST_TASK else index]
        rest = [n for n, _ in plain.named_parameters() if n not in masks and n.rpartition(".")[0] not in state.norms]
        with torch.no_grad():
            for name, mask in masks.items():
                plain.get_parameter(name).mul_(mask)
            for name, copied in zip(rest, state.copies, strict=True):
                plain.get_parameter(name).copy_(copied)
            for name, norm in state.norms.items():
                plain.get_submodule(name).load_state_dict(norm.state_dict())
            torch.testing.assert_close(net.tasks[index].head(plain(x)), logits(net, x, task))


@EVERY_KIND
def test_capacity_reuse_and_protection_by_hand(kind: str) -> None:
    net = attach(kind)
    for seed in range(3):
        learn(net, f"task {seed}", seed)
    masks = [net.masks(task) for task in net.task_names]
    used = {name: masks[0][name] | masks[1][name] | masks[2][name] for name in masks[0]}
    capacity = net.capacity()
    for name, entries in used.items():
        assert capacity.groups[name] == pytest.approx(float(entries.float().mean()))
    everything = torch.cat([entries.flatten() for entries in used.values()])
    assert capacity.weights == pytest.approx(float(everything.float().mean()))
    assert capacity.units is None
    assert str(capacity).startswith(f"weights {capacity.weights:.0%} (")
    reuse = net.reuse()
    for i, of_i in enumerate(masks):
        for j, of_j in enumerate(masks):
            both = sum(int((of_i[name] & of_j[name]).sum()) for name in of_i)
            own = sum(int(mask.sum()) for mask in of_i.values())
            assert float(reuse[i, j]) == pytest.approx(both / own)
    protected = net.protected()
    for name, entries in used.items():
        held = torch.ones_like(entries) if kind == "supsup" else entries
        assert torch.equal(protected[f"backbone.{name}"], held)
    assert all(protected[name].all() for name in protected if name.startswith("tasks."))
    roles = net.roles
    assert roles.keys() == protected.keys()
    assert {name for name, role in roles.items() if role is WeightRole.MASKED} == {f"backbone.{name}" for name in used}


def test_regularisation_counts_what_is_still_free() -> None:
    net = attach("pmask")
    learn(net, "first")
    held = net.masks("first")
    net.add_task("second", CLASSES)
    net.train()
    net.anneal(0.5)
    scale = 1 / 100 + (100 - 1 / 100) * 0.5
    taken = free = 0.0
    for values, used in zip(net.tasks[1].choice, held.values(), strict=True):
        taken += float((torch.sigmoid(scale * values.detach()) * ~used).sum())
        free += int((~used).sum())
    assert net.regularization().requires_grad
    assert float(net.regularization().detach()) == pytest.approx(taken / free, rel=1e-4)
    net.eval()
    chosen = sum(int((mask & ~held[name]).sum()) for name, mask in net.masks("second").items())
    assert float(net.regularization()) == pytest.approx(chosen / free, rel=1e-4)


def test_weights_of_supsup_are_never_trained() -> None:
    net = attach("supsup")
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    for seed in range(2):
        learn(net, f"task {seed}", seed, optimizer="adamw")
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    net.add_task("new", 2)
    backbone = {id(parameter) for parameter in net.backbone.parameters()}
    assert not backbone & {id(parameter) for parameter in net.task_parameters("new")}


@pytest.mark.slow
@EVERY_KIND
@pytest.mark.parametrize("backbone", slow_but(["mlp"], ["mlp", "resnet18"]))
def test_the_backbone_is_not_touched_and_comes_back(kind: str, backbone: str) -> None:
    torch.manual_seed(0)
    build, shape = BACKBONES[backbone]
    plain = build()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    parts = {name: set(vars(module)) for name, module in plain.named_modules()}
    x = torch.randn(3, *shape)
    with torch.no_grad(), mode(plain, False):
        said = plain(x)
    net = WeightMaskedNetwork(plain, torch.zeros(2, *shape), **KINDS[kind])
    with torch.no_grad(), mode(plain, False):
        assert torch.equal(plain(x), said)
    with pytest.raises(InputError, match=r"already inside a WeightMaskedNetwork: call its detach\(\) first"):
        HATNetwork(plain, torch.zeros(2, *shape))
    with pytest.raises(InputError, match="already inside a WeightMaskedNetwork"):
        WeightMaskedNetwork(nn.Sequential(plain), torch.zeros(2, *shape))
    assert net.detach() is plain
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert {name: set(vars(module)) for name, module in plain.named_modules()} == parts
    with pytest.raises(InputError, match="was detached from its backbone; attach a new WeightMaskedNetwork"):
        net.save("nowhere")
    HATNetwork(plain, torch.zeros(2, *shape))


class Steps(nn.Module):
    """A loop of a recurrent cell over the steps of a sequence."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        features: Tensor = state[0] if isinstance(state, tuple) else state
        return features


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_cells_are_refused_by_name_with_what_to_take(kind: str) -> None:
    backbone = Steps(getattr(nn, f"{kind}Cell")(3, 4))
    said = rf"cell \({kind}Cell\), get no masks .* take torch\.nn\.{kind} in place"
    with pytest.raises(UnsupportedError, match=said):
        WeightMaskedNetwork(backbone, torch.zeros(1, 2, 3))
    HATNetwork(backbone, torch.zeros(1, 2, 3))  # as the message says
