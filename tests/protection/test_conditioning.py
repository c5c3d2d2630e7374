"""Two choices of what earlier tasks hold, both exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hatrack
from hatrack import Conditioning, HATNetwork
from support.helpers import NETS, assert_poison_harmless, learn, logits
from support.marks import slow_but
from support.zoo import ZOO


def network(kind: str, conditioning: Conditioning) -> HATNetwork:
    torch.manual_seed(0)
    net = NETS[kind]
    return HATNetwork(net.build(), torch.zeros(2, *net.shape), s_max=100.0, conditioning=conditioning)


@pytest.mark.parametrize("conditioning", Conditioning)
@pytest.mark.parametrize("kind", slow_but(["mlp", "residual", "conv1d"], NETS))
def test_the_law_and_the_poison(kind: str, conditioning: Conditioning) -> None:
    net = network(kind, conditioning)
    samples, promised = {}, {}
    for number in range(4):
        task = f"task {number}"
        samples[task], _ = learn(net, task, number)
        promised[task] = logits(net, samples[task], task)
        assert all(torch.equal(logits(net, samples[name], name), kept) for name, kept in promised.items())
    assert_poison_harmless(net, samples)


def test_per_task_holds_what_one_task_uses_at_both_ends() -> None:
    held = {}
    for conditioning in Conditioning:
        net = network("mlp", conditioning)
        for number in range(3):
            learn(net, f"task {number}", number)
        masks = [net.masks(f"task {number}") for number in range(3)]
        protected = net.protected()["backbone.4.weight"]
        for out in range(protected.shape[0]):
            for inp in range(protected.shape[1]):
                pairs = [(bool(mask["4"][out]), bool(mask["1"][inp])) for mask in masks]
                per_task = any(o and i for o, i in pairs)
                cumulative = any(o for o, _ in pairs) and any(i for _, i in pairs)
                expected = per_task if conditioning is Conditioning.PER_TASK else cumulative
                assert bool(protected[out, inp]) == expected
        held[conditioning] = net.capacity().weights
    assert held[Conditioning.PER_TASK] < held[Conditioning.CUMULATIVE]


def test_the_choice_is_saved(tmp_path: Path) -> None:
    net = network("mlp", Conditioning.PER_TASK)
    learn(net, "a")
    learn(net, "b", 1)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", NETS["mlp"].build())
    assert again.conditioning is Conditioning.PER_TASK
    assert all(torch.equal(held, again.protected()[name]) for name, held in net.protected().items())


def test_on_a_transformer() -> None:
    generator = torch.Generator().manual_seed(0)
    architecture = ZOO["vit-by-hand"]
    net = HATNetwork(architecture.build(), architecture.samples(2, generator), conditioning=Conditioning.PER_TASK)
    samples, promised = {}, {}
    for number in range(3):
        task = f"task {number}"
        samples[task], _ = learn(net, task, number)
        promised[task] = logits(net, samples[task], task)
    assert all(torch.equal(logits(net, samples[task], task), kept) for task, kept in promised.items())
    assert_poison_harmless(net, samples)
