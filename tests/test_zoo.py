"""The law and the poison test over a zoo of architectures, in train mode with dropout and batch norm on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hatrack import HATNetwork
from support.helpers import CLASSES, SAMPLES, assert_poison_harmless, logits, loss_of, mode, open_task, progress
from support.marks import in_turn, is_deep, slow_but, slow_unless
from support.zoo import CHEAP, QUICK, ZOO
from support.zoo_models import MODELS

ARCHITECTURES = {**ZOO, **MODELS}

RECIPES: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum-decay": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1),
}


STEPS = 30 if is_deep() else 20  # epochs of ten, each from the softest gates to the hardest

CASES = [
    *dict.fromkeys([*((name, "adamw") for name in QUICK), *in_turn(ZOO, tuple(RECIPES))]),
    *((name, "adamw") for name in MODELS),
]


@pytest.mark.parametrize(
    ("name", "recipe"), slow_unless(lambda name, recipe: name in QUICK and recipe == "adamw", CASES)
)
def test_old_tasks_keep_every_bit_and_free_entries_may_hold_anything(name: str, recipe: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    architecture = ARCHITECTURES[name]
    net = HATNetwork(architecture.build(), architecture.samples(2, generator))
    samples, promised = {}, {}
    for number in range(3):
        task = f"task {number}"
        x, y = architecture.samples(SAMPLES, generator), torch.arange(SAMPLES) % CLASSES
        open_task(net, task, number)
        before = {n: p.detach().clone() for n, p in net.backbone.named_parameters()}
        optimizer = net.protect(RECIPES[recipe](net.task_parameters(task)))
        net.train()
        first = last = 0.0
        for step in range(STEPS):
            net.anneal(progress(step))
            loss = loss_of(net, task, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            first, last = (loss.item() if step == 0 else first), loss.item()
        assert last < first, "the task was not learned at all"
        moved = [n for n, p in net.backbone.named_parameters() if not torch.equal(p, before[n])]
        assert moved, "no free entry was trained"
        net.consolidate(task)
        samples[task], promised[task] = x, logits(net, x, task)
        for earlier, kept in promised.items():
            assert torch.equal(logits(net, samples[earlier], earlier), kept), earlier
    assert_poison_harmless(net, samples)


@pytest.mark.parametrize("name", slow_but(CHEAP, ARCHITECTURES))
def test_with_all_units_on_it_is_the_plain_network(name: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    architecture = ARCHITECTURES[name]
    backbone = architecture.build().eval()
    x = architecture.samples(4, generator)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    with torch.no_grad():
        plain = backbone(x)
    net = HATNetwork(backbone, x)
    net.add_task("all", CLASSES)
    with torch.no_grad():
        net.tasks[0].embedding.fill_(1.0)
    with mode(net, False), torch.no_grad():
        gated = net(x, "all")
        expected = net.tasks[0].head(plain)
    if any(isinstance(module, nn.MultiheadAttention) for module in backbone.modules()):
        torch.testing.assert_close(gated, expected)  # without hooks, torch takes a faster path with other last bits
    else:
        assert torch.equal(gated, expected)
    detached = net.detach().eval()
    with torch.no_grad():
        assert torch.equal(detached(x), plain)
    assert all(torch.equal(value, state[key]) for key, value in detached.state_dict().items())


@pytest.mark.parametrize("name", slow_but(CHEAP, ARCHITECTURES))
def test_every_parameter_has_a_role_and_every_unit_a_group(name: str) -> None:
    architecture = ARCHITECTURES[name]
    graph = HATNetwork(architecture.build(), architecture.samples(2, torch.Generator())).units
    assert {key for key in graph.roles if key.startswith("backbone.")} == {
        f"backbone.{key}" for key, _ in architecture.build().named_parameters()
    }
    covered = sorted(position for group in graph.groups for position in range(group.start, group.start + group.size))
    assert covered == list(range(graph.num_units))
    assert all(group.readers for group in graph.groups)
